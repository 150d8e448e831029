"""Procedural steel sheets of 1600x256 pixels with four kinds of defect, as in Severstal's photographs."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from camexp.datasets.mini.scenes import noise
from camexp.datasets.mini.things import Rng

HEIGHT, WIDTH = 256, 1600
DEFECTS = (1, 2, 3, 4)
"""1 pits, 2 cracks across the sheet, 3 scratches along it, 4 rough patches."""


def _sheet(rng: Rng) -> np.ndarray:
    """A rolled surface (256,1600) in [0,1]: grain along the sheet, bands of light, faint stains."""
    grain = np.repeat(rng.normal(0, 1, (HEIGHT, WIDTH // 8)), 8, axis=1)
    light = noise(rng, HEIGHT, WIDTH, 2, octaves=2) * rng.uniform(0.05, 0.25)
    bands = np.repeat(rng.normal(0, 0.02, HEIGHT // 4), 4)[:, None]
    stains = np.clip(noise(rng, HEIGHT, WIDTH, 6) - 0.65, 0, 1) * rng.uniform(-0.5, 0.5)
    sheet = rng.uniform(0.3, 0.5) + light + bands + stains
    sheet = sheet + 0.025 * grain + rng.normal(0, 0.02, (HEIGHT, WIDTH))
    edge = int(rng.integers(0, 200)) if rng.random() < 0.25 else 0
    if edge:  # beyond the end of the sheet
        sheet[:, :edge] = 0.03 + rng.normal(0, 0.01, (HEIGHT, edge))
    return sheet


def _stroke(points: np.ndarray, width: int, blur: float) -> np.ndarray:
    """A soft line (256,1600) in [0,1] through points (N,2)."""
    canvas = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(canvas).line([tuple(p) for p in points.tolist()], fill=255, width=width, joint="curve")
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255


def _pits(rng: Rng, sheet: np.ndarray, x: float) -> np.ndarray:
    canvas = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(canvas)
    centre = np.array([x, rng.uniform(50, HEIGHT - 50)])
    spots = rng.normal(0, 1, (int(rng.integers(14, 40)), 2)) * rng.uniform(20, 45, 2) + centre
    for (u, v), r in zip(spots, rng.uniform(1.5, 5, len(spots)), strict=True):
        draw.ellipse((u - r, v - r, u + r, v + r), fill=255)
    soft = np.asarray(canvas.filter(ImageFilter.GaussianBlur(1)), np.float32) / 255
    sheet -= soft * rng.uniform(0.2, 0.35)
    closed = canvas.filter(ImageFilter.MaxFilter(9)).filter(ImageFilter.MaxFilter(5))
    return np.asarray(closed) > 0


def _cracks(rng: Rng, sheet: np.ndarray, x: float) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for _ in range(int(rng.integers(1, 4))):
        y = np.linspace(0, rng.uniform(50, 150), 9) + rng.uniform(5, 100)
        u = x + rng.uniform(-30, 30) + np.cumsum(rng.normal(0, 5, 9))
        points = np.stack([u, y], 1)
        sheet -= _stroke(points, int(rng.integers(2, 4)), 0.7) * rng.uniform(0.2, 0.4)
        mask |= _stroke(points, 9, 0.5) > 0.5
    return mask


def _scratches(rng: Rng, sheet: np.ndarray, x: float) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for _ in range(int(rng.integers(1, 5))):
        half, y, slope = rng.uniform(40, 180), rng.uniform(15, HEIGHT - 15), rng.normal(0, 0.03)
        u = np.linspace(-half, half, 7)
        points = np.stack([x + u, y + slope * u + rng.normal(0, 0.7, 7)], 1)
        sheet += _stroke(points, int(rng.integers(2, 5)), 0.8) * rng.uniform(0.2, 0.45)
        mask |= _stroke(points, 11, 0.5) > 0.5
    return mask


def _patches(rng: Rng, sheet: np.ndarray, x: float) -> np.ndarray:
    y = rng.uniform(60, HEIGHT - 60)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    radius = np.hypot((u - x) / rng.uniform(50, 120), (v - y) / rng.uniform(35, 80))
    mask = radius + 0.7 * noise(rng, HEIGHT, WIDTH, 24, octaves=2) < 1.0
    rough = noise(rng, HEIGHT, WIDTH, 60, octaves=3) - 0.5
    sheet += mask * (rng.uniform(-0.12, 0.12) + 0.55 * rough)
    return mask


_PAINTERS = dict(zip(DEFECTS, (_pits, _cracks, _scratches, _patches), strict=True))


def compose_sheet(rng: Rng) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """A sheet (256,1600) uint8 and the masks (256,1600) bool of its defect classes; one in four has none."""
    sheet = _sheet(rng)
    masks: dict[int, np.ndarray] = {}
    count = 0 if rng.random() < 0.25 else int(rng.integers(1, 4))
    places = rng.permutation(np.arange(4))[:count]
    for place in places:
        kind = int(rng.choice(DEFECTS))
        mask = _PAINTERS[kind](rng, sheet, 100 + 400 * place + rng.uniform(60, 340))
        masks[kind] = masks.get(kind, np.zeros_like(mask)) | mask
    return (np.clip(sheet, 0, 1) * 255).round().astype(np.uint8), masks
