"""PAO Severstal's steel sheets (Kaggle, 2019): crops of run-length-coded defects, as SISE classifies them.

A sheet of 1600x256 pixels is cut into square crops from the left; what remains at the right edge is left out. A crop
shows a defect that covers `min_pixels` of it; a crop without any defect is of class 0; one whose defects all stay
below `min_pixels` is left out as undecided. Classes 1..4 are explained.

The paper counts 7124/401/63/3500/417 test crops of classes 0..4 without the rule behind them. Tried on the run
lengths of 2667 of the competition's 6666 sheets with defects, and scaled to 30 % of all, the nearest is stride 256,
crops of class 0 from sheets with defects only, `multi="skip"` and `min_pixels=500`: 7154/413/64/3497/533. With
`multi="largest"` and `min_pixels=1` the counts are 7154/464/73/3685/596; other strides are far from both.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from camexp.datasets.base import Dataset, Target, open_rgb
from camexp.datasets.crops import MULTI, SELECTIONS, Crop, classify, split_by_hash
from camexp.datasets.index import Index, cached, unpack_failures
from camexp.datasets.layout import require
from camexp.datasets.run_lengths import RunLengths
from camexp.datasets.severstal_index import read_severstal
from camexp.errors import CamexpError


class Severstal(Dataset):
    """Crops, their classes and defect masks.

    Parameters
    ----------
    root: folder that holds `train.csv` (ImageId, ClassId, EncodedPixels) and `train_images/`.
    split: "test", "train" or "all"; images are split by a hash of `split_seed` and name.
    test_share: share of the images that are test images.
    height, width: size of the sheets in pixels.
    crop, stride: width of the crops, which have the height of the sheet, and distance between their left edges.
    n_defects: number of defect classes; class 0 is "no defect".
    min_pixels: a crop shows a defect from this many of its pixels on.
    multi: what becomes of a crop that shows several defects: "largest" gives it the class that covers most of it,
        "skip" leaves it out, "all" makes a pair of each.
    with_normal: also list crops of class 0 (without pairs), as training needs them.
    sheets: where crops of class 0 come from: "all" sheets, or the "defective" ones only.
    selection: "full" keeps every crop of the split. "balanced" keeps at most `class_limit` crops of each defect class
        (those with the smallest hashes of `split_seed` and id; a crop counts for the class that covers most of it):
        with 500, the paper's 3500 test crops of class 3 become 500, and its 4381 defect crops the 1381 of its table.
    class_limit: see `selection`.
    hint: what the error for missing data advises.
    cache: folder that keeps what was read of the CSV; None reads it every time.

    Attributes
    ----------
    labels: (N,) the class that covers most of each crop, 0 for none.

    A sheet with a broken row (run lengths beyond the image or overlapping, an unknown class, a class twice) is a
    failure, and none of its crops are listed: what they show is unknown.

    Raises
    ------
    CamexpError: when the CSV or the folder is missing, empty or of another form, or an option is unknown.
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
        multi: str = "largest",
        with_normal: bool = False,
        sheets: str = "all",
        selection: str = "full",
        class_limit: int = 500,
        hint: str = "Pass dataset.root=<folder that holds train.csv and train_images/>.",
        cache: str | None = None,
    ):
        _check("split", split, ("test", "train", "all"))
        _check("multi", multi, MULTI)
        _check("sheets", sheets, ("all", "defective"))
        _check("selection", selection, SELECTIONS)
        if not (0 < crop <= width and stride > 0):
            raise CamexpError(f"dataset.crop={crop} and stride={stride} cut no crops out of sheets of width {width}")
        path = require(Path(root), "train.csv", "Severstal's run lengths", hint)
        self.folder = require(Path(root), "train_images", "Severstal's images", hint)
        self.classes = ("no defect", *(f"defect {i}" for i in range(1, n_defects + 1)))
        self.shape, self.crop, self._left = (height, width), crop, range(0, width - crop + 1, stride)
        arguments = (height, width, n_defects, self._left, crop)
        self._read_index(cached(cache, "severstal", [path], arguments, lambda: read_severstal(path, *arguments)))
        chosen = split_by_hash(self._sheets(hint), split, test_share, split_seed)
        broken = {f.image_id for f in self.failures}
        readable = [sheet for sheet in chosen if sheet not in broken]
        crops = [found for sheet in readable for found in self._crops_of(sheet, min_pixels, multi)]
        normal = set(chosen if sheets == "all" else self._rows) if with_normal else set()
        listed = [found for found in crops if found.label or found.sheet in normal]
        self._list(SELECTIONS[selection](listed, class_limit, split_seed))
        self.failures = tuple(f for f in self.failures if f.image_id in set(chosen))

    def _read_index(self, index: Index) -> None:
        self.annotations_sha256 = str(index["sha256"])
        self.failures = unpack_failures(index["failures"])
        self._areas, self._runs = index["areas"], RunLengths.from_index(index)
        self._rows: dict[str, dict[int, int]] = {}
        for row, (sheet, class_id) in enumerate(zip(index["sheet"].tolist(), index["class_id"].tolist(), strict=True)):
            self._rows.setdefault(sheet, {})[class_id] = row

    def _sheets(self, hint: str) -> list[str]:
        """All sheets by name; missing ones with defects fail when they are loaded."""
        present = {p.name for p in self.folder.glob("*.jpg")}
        if not present:
            raise CamexpError(f"no .jpg images in {self.folder.absolute()}\n{hint}")
        listed = {*self._rows, *(f.image_id for f in self.failures)}
        if not present & listed:
            raise CamexpError(
                f"{self.folder.absolute()} holds none of the {len(listed)} sheets of train.csv, "
                f"for instance {min(listed)}; it holds {min(present)}\n{hint}"
            )
        return sorted(present | listed)

    def _crops_of(self, sheet: str, min_pixels: int, multi: str) -> list[Crop]:
        rows = self._rows.get(sheet, {})
        crops = []
        for number, left in enumerate(self._left):
            areas = {class_id: int(self._areas[row, number]) for class_id, row in rows.items()}
            shown = classify(areas, min_pixels, multi)
            if shown is not None:
                crops.append(Crop(sheet, left, *shown))
        return crops

    def _list(self, crops: Sequence[Crop]) -> None:
        self._crops = crops
        self.image_ids = tuple(crop.image_id for crop in crops)
        self.labels = tuple(crop.label for crop in crops)
        self.targets = tuple(tuple(Target(class_id) for class_id in crop.explained) for crop in crops)

    def limit(self, count: int) -> None:
        """Keep only the first `count` crops; failures are of whole sheets and stay."""
        failures = self.failures
        super().limit(count)
        self.labels, self.failures = self.labels[:count], failures

    def read_image(self, index: int) -> Image.Image:
        sheet, left = self._crops[index][:2]
        image = open_rgb(self.folder / sheet)
        height, width = self.shape
        if (image.width, image.height) != (width, height):
            raise ValueError(f"{sheet} has {image.width}x{image.height} pixels, {width}x{height} expected")
        return image.crop((left, 0, left + self.crop, height))

    def read_mask(self, index: int, class_id: int, width: int, height: int) -> np.ndarray:
        sheet, left = self._crops[index][:2]
        return self._runs.mask(self._rows[sheet][class_id], *self.shape)[:, left : left + self.crop]


def _check(option: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        *first, last = allowed
        raise CamexpError(f"dataset.{option} must be {', '.join(first)} or {last}, not {value!r}")
