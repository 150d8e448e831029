"""Procedural scenes: textured backgrounds, distractors, one to five things that may occlude one another."""

import colorsys
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from camexp.datasets.mini.things import THINGS, Part, Rng

SMALLEST, LARGEST = 0.03, 0.6
"""Share of the image that a thing's bounding box covers, drawn log-uniformly between these."""

VISIBLE = 0.45
"""A scene in which less of a thing than this stays visible is laid out anew."""


@dataclass
class Instance:
    """One thing in a scene: its class name, visible mask (H,W), outlines in pixels, and visible share."""

    name: str
    mask: np.ndarray
    outlines: list[np.ndarray] = field(default_factory=list)
    visible: float = 1.0

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Visible bounding box, 0-based, half-open: x0, y0, x1, y1."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass
class Scene:
    """An image (H,W,3) uint8 and the things in it, farthest first."""

    image: np.ndarray
    instances: list[Instance]


def noise(rng: Rng, height: int, width: int, cells: int, octaves: int = 4) -> np.ndarray:
    """Smooth value noise in [0,1], (H,W): octaves of bicubically enlarged random grids."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        n = min(cells * 2**octave, height, width)
        grid = Image.fromarray(rng.random((n, n), dtype=np.float32))
        enlarged = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        total += enlarged * 0.5**octave
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def colour(rng: Rng, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    """A random colour (3,) in [0,1] of any hue."""
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)), np.float32)


def background(rng: Rng, height: int, width: int) -> np.ndarray:
    """Noise between two dull colours, a gradient, and sometimes stripes or tiles; (H,W,3) in [0,1]."""
    first, second = colour(rng, (0.05, 0.5), (0.2, 0.9)), colour(rng, (0.05, 0.5), (0.2, 0.9))
    texture = noise(rng, height, width, int(rng.integers(2, 9)))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / width
    texture = 0.75 * texture + 0.25 * np.clip(along, 0, 1)
    pattern = rng.random()
    if pattern < 0.25:
        texture += 0.15 * np.sign(np.sin(along * rng.uniform(20, 90)))
    elif pattern < 0.45:
        n = rng.uniform(12, 40)
        texture += 0.15 * np.sign(np.sin(x / width * n) * np.sin(y / width * n))
    image = first + np.clip(texture, 0, 1)[..., None] * (second - first)
    return np.clip(image + rng.normal(0, 0.02, image.shape).astype(np.float32), 0, 1)


def _rasterise(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    """Coverage of a polygon in [0,1], (H,W), antialiased by drawing at twice the size."""
    canvas = Image.new("L", (2 * width, 2 * height))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in (2 * outline).tolist()], fill=255)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float32) / 255


def _paint(image: np.ndarray, coverage: np.ndarray, paint: np.ndarray) -> None:
    image += coverage[..., None] * (paint - image)


def distract(rng: Rng, image: np.ndarray) -> None:
    """Paint blobs, bars and scribbles that belong to no class, in the things' own colours."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(4, 13))):
        centre = rng.random(2) * (width, height)
        size = rng.uniform(0.02, 0.15) * width
        kind = rng.random()
        if kind < 0.4:
            turn = np.sort(rng.random(int(rng.integers(5, 9)))) * 2 * np.pi
            radius = size * rng.uniform(0.4, 1.0, turn.shape)
            outline = centre + np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)
        elif kind < 0.7:
            angle, thick = rng.uniform(0, np.pi), rng.uniform(0.01, 0.03) * width
            along = np.array([np.cos(angle), np.sin(angle)]) * size * 2.5
            across = np.array([-np.sin(angle), np.cos(angle)]) * thick
            outline = centre + np.stack([-along - across, along - across, along + across, -along + across])
        else:
            steps = np.cumsum(rng.normal(0, size / 3, (6, 2)), axis=0) + centre
            outline = np.vstack([steps, steps[::-1] + size / 8])
        _paint(image, _rasterise(outline, height, width) * 0.9, colour(rng, (0.3, 1.0), (0.2, 1.0)))


def _pose(parts: list[Part], rng: Rng, share: float, height: int, width: int) -> list[Part]:
    """Turn, mirror, stretch and move a thing so that its bounding box covers `share` of the image."""
    angle = rng.normal(0, 0.2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    stretch = np.array([rng.choice([-1, 1]) * rng.uniform(0.8, 1.25), 1.0])
    posed = [(part.points * stretch) @ turn for part in parts]
    every = np.vstack(posed)
    extent = every.max(0) - every.min(0)
    scale = np.sqrt(share * height * width / extent.prod())
    scale = min(scale, 0.97 * width / extent[0], 0.97 * height / extent[1])
    extent, low = extent * scale, every.min(0) * scale
    room = np.array([width, height]) - extent
    corner = rng.uniform(-0.04, 1.04, 2) * room
    return [Part(points * scale - low + corner, part.colour) for part, points in zip(parts, posed, strict=True)]


def _draw(image: np.ndarray, parts: list[Part], rng: Rng) -> np.ndarray:
    """Paint a posed thing with a soft shadow; returns its full silhouette (H,W) bool."""
    height, width = image.shape[:2]
    palette = [
        colour(rng, (0.45, 1.0), (0.35, 1.0)),
        colour(rng, (0.3, 1.0), (0.3, 1.0)),
        colour(rng, (0.2, 0.8), (0.1, 0.4)),
        colour(rng, (0.0, 0.3), (0.75, 1.0)),
    ]
    coverages = [_rasterise(part.points, height, width) for part in parts]
    silhouette = np.max(coverages, axis=0)
    shadow = Image.fromarray((silhouette * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(width / 60))
    offset = max(1, width // 80)
    soft = np.roll(np.asarray(shadow, np.float32) / 255, (offset, offset), (0, 1))
    image *= 1 - 0.35 * soft[..., None]
    grain = 0.8 + 0.4 * noise(rng, height, width, int(rng.integers(3, 12)), octaves=3)
    for part, coverage in zip(parts, coverages, strict=True):
        _paint(image, coverage, np.clip(palette[part.colour] * grain[..., None], 0, 1))
    return silhouette > 0.5


def _shares(rng: Rng, count: int) -> np.ndarray:
    """Bounding-box shares of `count` things, largest (farthest) first, small enough to fit together."""
    shares = np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST), count))
    shares *= min(1.0, 0.9 / shares.sum())
    return np.sort(np.maximum(shares, SMALLEST))[::-1]


def compose(rng: Rng, classes: tuple[str, ...]) -> Scene:
    """A scene with one to five things of one to four of the `classes`; sides of 240 to 400 pixels."""
    while True:
        height, width = int(rng.integers(240, 340)), int(rng.integers(280, 400))
        kinds = rng.choice(classes, size=int(rng.integers(1, 5)), replace=False)
        count = int(np.clip(len(kinds) + rng.integers(0, 3), 1, 5))
        names = [str(name) for name in kinds] + [str(name) for name in rng.choice(kinds, count - len(kinds))]
        rng.shuffle(names)
        image = background(rng, height, width)
        distract(rng, image)
        instances: list[Instance] = []
        full: list[int] = []
        for name, share in zip(names, _shares(rng, count), strict=True):
            parts = _pose(THINGS[name](rng), rng, float(share), height, width)
            silhouette = _draw(image, parts, rng)
            for earlier in instances:
                earlier.mask &= ~silhouette
            instances.append(Instance(name, silhouette, [part.points for part in parts]))
            full.append(int(silhouette.sum()))
        for instance, area in zip(instances, full, strict=True):
            instance.visible = float(instance.mask.sum()) / max(area, 1)
        if min(instance.visible for instance in instances) >= VISIBLE:
            break
    image = np.clip(image + rng.normal(0, 0.015, image.shape), 0, 1)
    return Scene((image * 255).round().astype(np.uint8), instances)
