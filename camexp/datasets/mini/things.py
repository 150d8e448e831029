"""The things that stand in the embedded scenes: twelve drawings made of polygons.

A thing is a list of parts in painting order; a part is a polygon in the square [-1, 1]^2 (x right, y down)
and the index of its colour. Colours are drawn at random for every instance, so that a network has to learn
the form.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Rng = np.random.Generator


class Part(NamedTuple):
    """One polygon of a thing: points (N,2) in [-1,1] and the index of its colour (0, 1, 2 or 3)."""

    points: np.ndarray
    colour: int


def _oval(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 1.0) -> np.ndarray:
    turn = np.linspace(start, stop, 40) * 2 * np.pi
    return np.stack([cx + rx * np.cos(turn), cy + ry * np.sin(turn)], axis=1)


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=float)


def _poly(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=float)


def ball(rng: Rng) -> list[Part]:
    """A beach ball: coloured sectors round a cap."""
    n = int(rng.integers(3, 5)) * 2
    sectors = [Part(np.vstack([[0.0, 0.0], _oval(0, 0, 0.95, 0.95, i / n, (i + 1) / n)]), i % 2) for i in range(n)]
    return [*sectors, Part(_oval(0, 0, 0.18, 0.18), 2)]


def house(rng: Rng) -> list[Part]:
    """Walls, a gable roof, a door, two windows and sometimes a chimney."""
    door = rng.uniform(-0.15, 0.15)
    chimney = [Part(_box(0.35, -0.85, 0.55, -0.3), 2)] if rng.random() < 0.6 else []
    return [
        *chimney,
        Part(_box(-0.75, -0.15, 0.75, 0.9), 0),
        Part(_poly((-0.95, -0.1), (0, -0.9), (0.95, -0.1)), 1),
        Part(_box(door - 0.15, 0.35, door + 0.15, 0.9), 2),
        Part(_box(-0.6, 0.05, -0.3, 0.32), 3),
        Part(_box(0.3, 0.05, 0.6, 0.32), 3),
    ]


def tree(rng: Rng) -> list[Part]:
    """A conifer: three or four tiers on a trunk."""
    tiers = int(rng.integers(3, 5))
    parts = [Part(_box(-0.12, 0.55, 0.12, 0.95), 1)]
    for i in range(tiers):
        top = 0.3 - 1.25 * i / tiers
        half = 0.75 - 0.45 * i / tiers
        parts.append(Part(_poly((-half, top + 0.4), (0, top - 0.3), (half, top + 0.4)), 0 if i % 2 else 2))
    return parts


def star(rng: Rng) -> list[Part]:
    """A five-pointed star with a smaller one inside."""
    turn = (np.arange(10) / 10 - 0.25) * 2 * np.pi
    inner = rng.uniform(0.36, 0.46)
    radius = np.where(np.arange(10) % 2 == 0, 0.98, 0.98 * inner)
    outline = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
    return [Part(outline, 0), Part(outline * 0.5, 1)]


def fish(rng: Rng) -> list[Part]:
    """An oval body with a forked tail, a fin, stripes and an eye."""
    stripes = [Part(_box(x, -0.28, x + 0.09, 0.28), 1) for x in (-0.15, 0.08)]
    return [
        Part(_poly((0.35, 0), (0.95, -0.5), (0.8, 0), (0.95, 0.5)), 1),
        Part(_poly((-0.25, -0.3), (0.05, -0.68), (0.3, -0.25)), 1),
        Part(_oval(-0.2, 0, 0.75, 0.42), 0),
        *stripes[: int(rng.integers(1, 3))],
        Part(_oval(-0.62, -0.1, 0.1, 0.1), 3),
        Part(_oval(-0.64, -0.1, 0.045, 0.045), 2),
    ]


def car(rng: Rng) -> list[Part]:
    """A body with a cabin, two windows and two wheels with hubs."""
    cabin = rng.uniform(-0.1, 0.1)
    return [
        Part(_poly((-0.55 + cabin, 0.0), (-0.35 + cabin, -0.42), (0.3 + cabin, -0.42), (0.55 + cabin, 0.0)), 0),
        Part(_poly((-0.42 + cabin, 0.0), (-0.28 + cabin, -0.33), (-0.05 + cabin, -0.33), (-0.05, 0.0)), 3),
        Part(_poly((0.05, 0.0), (0.05 + cabin, -0.33), (0.25 + cabin, -0.33), (0.42 + cabin, 0.0)), 3),
        Part(_box(-0.97, 0.0, 0.97, 0.35), 0),
        Part(_box(-0.97, 0.2, 0.97, 0.27), 1),
        *[Part(_oval(x, 0.35, 0.22, 0.22), 2) for x in (-0.55, 0.55)],
        *[Part(_oval(x, 0.35, 0.1, 0.1), 3) for x in (-0.55, 0.55)],
    ]


def flower(rng: Rng) -> list[Part]:
    """Five to eight round petals about a disc, on a stem with a leaf."""
    n = int(rng.integers(5, 9))
    turn = np.arange(n) / n * 2 * np.pi
    petals = [Part(_oval(0.4 * np.cos(t), -0.35 + 0.4 * np.sin(t), 0.24, 0.24), 0) for t in turn]
    return [
        Part(_box(-0.05, 0.0, 0.05, 0.97), 1),
        Part(_poly((0.0, 0.7), (0.5, 0.35), (0.42, 0.75)), 1),
        *petals,
        Part(_oval(0, -0.35, 0.24, 0.24), 2),
    ]


def clock(rng: Rng) -> list[Part]:
    """A ring, a pale face, four ticks and two hands at a random time."""
    hands = []
    for angle, length in ((rng.uniform(0, 2 * np.pi), 0.62), (rng.uniform(0, 2 * np.pi), 0.4)):
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]]) * 0.06
        hands.append(Part(np.array([across, along * length + across, along * length - across, -across]), 2))
    ticks = [(0, -0.68), (0, 0.68), (0.68, 0), (-0.68, 0)]
    return [
        Part(_oval(0, 0, 0.96, 0.96), 0),
        Part(_oval(0, 0, 0.8, 0.8), 3),
        *[Part(_box(x - 0.06, y - 0.06, x + 0.06, y + 0.06), 2) for x, y in ticks],
        *hands,
    ]


def mushroom(rng: Rng) -> list[Part]:
    """A half-round cap with spots on a stalk."""
    spots = [(-0.45, -0.25, 0.14), (0.05, -0.5, 0.17), (0.5, -0.22, 0.13), (-0.08, -0.16, 0.1)]
    return [
        Part(_poly((-0.22, -0.05), (0.22, -0.05), (0.32, 0.92), (-0.32, 0.92)), 3),
        Part(_oval(0, 0, 0.95, 0.88, 0.5, 1.0), 0),
        *[Part(_oval(x, y, r, r), 1) for x, y, r in spots[: int(rng.integers(3, 5))]],
    ]


def umbrella(rng: Rng) -> list[Part]:
    """A canopy of panels with a scalloped edge and a hooked handle."""
    n = int(rng.integers(4, 7))
    edge = np.linspace(-0.95, 0.95, n + 1)
    panels = []
    for i in range(n):
        x0, x1 = edge[i], edge[i + 1]
        rim = _oval((x0 + x1) / 2, 0.05, (x1 - x0) / 2, 0.13, 0.5, 1.0)
        panels.append(Part(np.vstack([[(0.0, -0.85)], rim]), i % 2))
    hook = np.vstack([_oval(0.17, 0.72, 0.2, 0.2, 0.0, 0.5), _oval(0.17, 0.72, 0.1, 0.1, 0.0, 0.5)[::-1]])
    dome = _oval(0, 0.05, 0.95, 0.9, 0.5, 1.0)
    return [Part(_box(-0.04, -0.95, 0.04, 0.75), 2), Part(hook, 2), Part(dome, 0), *panels]


def sailboat(rng: Rng) -> list[Part]:
    """A hull, a mast and two sails."""
    top = rng.uniform(-0.95, -0.8)
    return [
        Part(_box(-0.04, top, 0.04, 0.5), 2),
        Part(_poly((0.07, top + 0.05), (0.85, 0.35), (0.07, 0.35)), 0),
        Part(_poly((-0.07, top + 0.2), (-0.65, 0.35), (-0.07, 0.35)), 1),
        Part(_poly((-0.95, 0.48), (0.95, 0.48), (0.6, 0.92), (-0.6, 0.92)), 2),
    ]


def cup(rng: Rng) -> list[Part]:
    """A tapered cup with a band, a handle and a saucer."""
    band = rng.uniform(-0.2, 0.2)
    ring = np.vstack([_oval(0.55, 0.0, 0.4, 0.38, -0.25, 0.25), _oval(0.55, 0.0, 0.24, 0.22, -0.25, 0.25)[::-1]])
    return [
        Part(ring, 0),
        Part(_poly((-0.7, -0.6), (0.6, -0.6), (0.42, 0.6), (-0.52, 0.6)), 0),
        Part(_box(-0.6, band - 0.1, 0.5, band + 0.1), 1),
        Part(_oval(-0.05, -0.6, 0.65, 0.13), 2),
        Part(_oval(-0.05, 0.68, 0.85, 0.16), 1),
    ]


THINGS: dict[str, Callable[[Rng], list[Part]]] = {
    thing.__name__: thing
    for thing in (ball, house, tree, star, fish, car, flower, clock, mushroom, umbrella, sailboat, cup)
}
