"""PAO Severstal's steel sheets (Kaggle, 2019): crops of run-length-coded defects, as SISE classifies them.

A sheet of 1600x256 pixels is cut into square crops from the left; what remains at the right edge is left out.
A crop's class is the defect that covers most of it (0 when none covers `min_pixels`); crops whose defects all
stay below `min_pixels` without being empty are left out as undecided. Classes 1..4 are explained.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from camexp.datasets.base import Dataset, Failure, Target, open_rgb, require
from camexp.errors import CamexpError


class Severstal(Dataset):
    """Crops, their classes and defect masks.

    Parameters
    ----------
    root: folder that holds `train.csv` (ImageId, ClassId, EncodedPixels) and `train_images/`.
    split: "test", "train" or "all"; images are split by a hash of `split_seed` and name.
    test_share: share of the images that are test images.
    height, width: size of the sheets in pixels.
    crop, stride: side of the square crops and distance between their left edges.
    n_defects: number of defect classes; class 0 is "no defect".
    min_pixels: a crop shows a defect from this many of its pixels on.
    with_normal: also list crops of class 0 (without pairs), as training needs them.
    hint: what the error for missing data advises.

    Raises
    ------
    CamexpError: when the CSV or the folder is missing or has other columns.
    """

    def __init__(
        self,
        root: str,
        split: str = "test",
        test_share: float = 0.3,
        split_seed: int = 0,
        height: int = 256,
        width: int = 1600,
        crop: int = 256,
        stride: int = 256,
        n_defects: int = 4,
        min_pixels: int = 1,
        with_normal: bool = False,
        hint: str = "Pass dataset.root=<folder that holds train.csv and train_images/>.",
    ):
        if split not in ("test", "train", "all"):
            raise CamexpError(f"dataset.split must be test, train or all, not {split!r}")
        path = require(Path(root) / "train.csv", "Severstal's run lengths", hint)
        self.folder = require(Path(root) / "train_images", "Severstal's images", hint)
        self.shape, self.crop = (height, width), crop
        self.classes = ("no defect", *(f"defect {i}" for i in range(1, n_defects + 1)))
        self.annotations_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        failures: list[Failure] = []
        self._masks = self._read_runs(path, n_defects, failures)
        present = {p.name for p in self.folder.glob("*.jpg")}
        if not present:
            raise CamexpError(f"no .jpg images in {self.folder.absolute()}\n{hint}")
        names = sorted(present | set(self._masks))  # missing sheets with defects fail when they are loaded
        chosen = split_by_hash(names, split, test_share, split_seed)
        broken = {f.image_id for f in failures}  # what they show is unknown
        crops = [
            (name, x, label)
            for name in chosen
            if name not in broken
            for x in range(0, width - crop + 1, stride)
            if (label := self._label(name, x, min_pixels)) is not None and (label or with_normal)
        ]
        self._crops = [(name, x) for name, x, _ in crops]
        self.labels = tuple(label for _, _, label in crops)
        self.image_ids = tuple(f"{Path(name).stem}@{x}" for name, x in self._crops)
        self.targets = tuple((Target(label),) if label else () for label in self.labels)
        kept = set(chosen)
        self.failures = tuple(f for f in failures if f.image_id in kept)

    def limit(self, count: int) -> None:
        """Keep only the first `count` crops; failures are of whole sheets and stay."""
        failures = self.failures
        super().limit(count)
        self.failures = failures

    def _read_runs(self, path: Path, n_defects: int, failures: list[Failure]) -> dict[str, dict[int, np.ndarray]]:
        table = pd.read_csv(path, dtype={"ImageId": str, "EncodedPixels": str})
        missing = {"ImageId", "ClassId", "EncodedPixels"} - set(table.columns)
        if missing:
            raise CamexpError(f"{path} lacks the columns {sorted(missing)}; it has {list(table.columns)}")
        masks: dict[str, dict[int, np.ndarray]] = {}
        for name, class_id, runs in table[["ImageId", "ClassId", "EncodedPixels"]].itertuples(index=False):
            try:
                if not 1 <= class_id <= n_defects:
                    raise ValueError(f"class {class_id} is not one of 1..{n_defects}")
                masks.setdefault(name, {})[int(class_id)] = np.packbits(decode_runs(runs, *self.shape))
            except (ValueError, TypeError, AttributeError) as error:
                failures.append(Failure(name, None, f"run lengths: {error}"))
        return masks

    def _mask(self, name: str, class_id: int) -> np.ndarray:
        height, width = self.shape
        packed = self._masks[name][class_id]
        return np.unpackbits(packed, count=height * width).reshape(height, width).astype(bool)

    def _label(self, name: str, x: int, min_pixels: int) -> int | None:
        areas = {c: int(self._mask(name, c)[:, x : x + self.crop].sum()) for c in self._masks.get(name, {})}
        largest = max(areas, key=lambda c: areas[c], default=0)
        if areas.get(largest, 0) >= min_pixels:
            return largest
        return 0 if not any(areas.values()) else None

    def read_image(self, index: int) -> Image.Image:
        name, x = self._crops[index]
        image = open_rgb(self.folder / name)
        height, width = self.shape
        if (image.width, image.height) != (width, height):
            raise ValueError(f"{name} has {image.width}x{image.height} pixels, {width}x{height} expected")
        return image.crop((x, 0, x + self.crop, height))

    def read_mask(self, index: int, class_id: int, width: int, height: int) -> np.ndarray:
        name, x = self._crops[index]
        return self._mask(name, class_id)[:, x : x + self.crop]


def decode_runs(runs: str, height: int, width: int) -> np.ndarray:
    """Mask (H,W) of bool from "start length start length ...": 1-based, column by column.

    Raises
    ------
    ValueError: when the numbers are no pairs, a run is empty or overlaps another, or one leaves the image.
    """
    numbers = np.array(runs.split(), dtype=np.int64)
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    if len(starts) != len(lengths):
        raise ValueError("an odd count of numbers")
    if (lengths < 1).any() or (starts < 0).any() or (starts + lengths > height * width).any():
        raise ValueError(f"a run that is empty or leaves the image of {width}x{height}")
    change = np.zeros(height * width + 1, np.int32)
    np.add.at(change, starts, 1)
    np.add.at(change, starts + lengths, -1)
    covered = np.cumsum(change[:-1])
    if covered.max(initial=0) > 1:
        raise ValueError("runs that overlap")
    return covered.reshape(width, height).T.astype(bool)


def encode_runs(mask: np.ndarray) -> str:
    """The inverse of `decode_runs` for a mask (H,W) of bool."""
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8), [0]])
    starts, stops = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    return " ".join(f"{start + 1} {stop - start}" for start, stop in zip(starts, stops, strict=True))


def split_by_hash(names: list[str], split: str, test_share: float, seed: int) -> list[str]:
    """The `names` of a split, sorted: those with the smallest hashes of (seed, name) are the test images."""
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    test = set(order[: round(test_share * len(names))])
    return [name for name in names if split == "all" or (name in test) == (split == "test")]
