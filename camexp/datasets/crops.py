"""Crops of sheets: which class a crop shows, which sheets are test sheets, and which crops are kept."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

Areas = Mapping[int, int]
"""Pixels of a crop by the defect that covers them."""

MULTI: dict[str, Callable[[Areas], tuple[int, ...]]] = {
    "largest": lambda areas: (largest(areas),),
    "skip": lambda areas: tuple(areas) if len(areas) == 1 else (),
    "all": tuple,
}
"""The classes to explain in a crop with the given defects; none leaves it out."""


class Crop(NamedTuple):
    """A crop of a sheet: its left edge, the class that covers most of it (0 for none), and the classes to explain."""

    sheet: str
    left: int
    label: int
    explained: tuple[int, ...]

    @property
    def image_id(self) -> str:
        return f"{PurePath(self.sheet).stem}@{self.left}"


def largest(areas: Areas) -> int:
    """The class that covers most, the lower one of equals."""
    return min(areas, key=lambda class_id: (-areas[class_id], class_id))


def classify(areas: Areas, min_pixels: int, multi: str) -> tuple[int, tuple[int, ...]] | None:
    """Label of a crop and the classes to explain in it; None when it is left out."""
    shown = {class_id: area for class_id, area in sorted(areas.items()) if area >= min_pixels}
    if not shown:
        return None if any(areas.values()) else (0, ())
    explained = MULTI[multi](shown)
    return (largest(shown), explained) if explained else None


def full(crops: Sequence[Crop], limit: int, seed: int) -> list[Crop]:
    """All crops."""
    return list(crops)


def balanced(crops: Sequence[Crop], limit: int, seed: int) -> list[Crop]:
    """Of each defect class the `limit` crops with the smallest hashes of (seed, id), in the old order."""
    taken: Counter[int] = Counter()
    kept = set()
    for crop in sorted(crops, key=lambda crop: _hash(seed, crop.image_id)):
        taken[crop.label] += 1
        if crop.label == 0 or taken[crop.label] <= limit:
            kept.add(crop)
    return [crop for crop in crops if crop in kept]


SELECTIONS = {"full": full, "balanced": balanced}


def split_by_hash(names: Sequence[str], split: str, test_share: float, seed: int) -> list[str]:
    """The `names` of a split in their order: those with the smallest hashes of (seed, name) are the test images."""
    order = sorted(names, key=lambda name: _hash(seed, name))
    test = set(order[: round(test_share * len(names))])
    return [name for name in names if split == "all" or (name in test) == (split == "test")]


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
