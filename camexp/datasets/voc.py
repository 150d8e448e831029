"""Pascal VOC: a VOCdevkit folder of any year and split (Everingham et al., 2010).

Ground truth of a pair is the union of the class's boxes, difficult ones included; a pair whose boxes are all
difficult is skipped (or kept and marked, with `difficult="keep"`). Boxes are 1-based and inclusive, in pixels of the
image file; the size that an XML file states may be wrong and is not read.

torchvision's `VOCDetection` parses an XML file per access and knows no pairs; here all are read beforehand.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from tqdm import tqdm

from camexp.datasets.base import Dataset, Failure, Target, open_rgb
from camexp.datasets.index import Index, cached, offsets, pack_failures, unpack_failures
from camexp.datasets.layout import require, require_images, require_unique
from camexp.errors import CamexpError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Box(NamedTuple):
    """An annotated box: class, difficult flag, corners as written in the file (1-based, inclusive)."""

    class_id: int
    difficult: bool
    xmin: float
    ymin: float
    xmax: float
    ymax: float


class VOC(Dataset):
    """Images, pairs and box masks of one VOC year and split.

    Parameters
    ----------
    root: the VOCdevkit folder, which holds `VOC<year>/`.
    year, split: which list `VOC<year>/ImageSets/Main/<split>.txt` names the images.
    classes: class names in the order of the network's outputs; the twenty of VOC by default.
    difficult: "skip" leaves out pairs whose boxes are all difficult, "keep" keeps and marks them.
    hint: what the error for missing data advises.
    cache: folder that keeps what was read of the annotations; None reads them every time.

    An object whose box is missing, not a number or inverted makes the failure of its class in that image; an XML file
    that cannot be read, or an object of an unknown class, is a failure of the image.

    Raises
    ------
    CamexpError: when a folder or the list is missing, no image is there, or an id stands twice.
    """

    def __init__(
        self,
        root: str,
        year: int | str = 2007,
        split: str = "test",
        classes: Sequence[str] = VOC_CLASSES,
        difficult: str = "skip",
        hint: str = "Pass dataset.root=<folder that holds VOC<year>/>, dataset.year= and dataset.split=.",
        cache: str | None = None,
    ):
        if difficult not in ("skip", "keep"):
            raise CamexpError(f"dataset.difficult must be skip or keep, not {difficult!r}")
        place, name = Path(root), f"VOC{year}"
        require(place, name, name, hint)
        listing = require(place, f"{name}/ImageSets/Main/{split}.txt", f"image list of split {split!r}", hint)
        annotations = require(place, f"{name}/Annotations", "VOC annotations", hint)
        self.folder = require(place, f"{name}/JPEGImages", "VOC images", hint)
        self.classes = tuple(classes)
        self.image_ids = _read_list(listing)
        require_images(self.folder, [f"{image_id}.jpg" for image_id in self.image_ids], hint)
        files = [annotations / f"{image_id}.xml" for image_id in self.image_ids]
        index = cached(cache, f"voc{year}_{split}", [listing, *files], self.classes, lambda: self._build(files))
        self._start, self._class_id, self._difficult = index["start"], index["class_id"], index["difficult"]
        self._corners = index["corners"]
        self.annotations_sha256 = str(index["sha256"])
        self.failures = unpack_failures(index["failures"])
        self.targets = tuple(self._targets(number, difficult) for number in range(len(self.image_ids)))

    def _build(self, files: Sequence[Path]) -> Index:
        failures: list[Failure] = []
        bar = tqdm(files, desc="reading annotations", unit="file", delay=2, leave=False)
        boxes = [read_annotation(path, self.classes, failures) for path in bar]
        flat = [box for image in boxes for box in image]
        return {
            "start": offsets([len(image) for image in boxes]),
            "class_id": np.array([box.class_id for box in flat], np.int16),
            "difficult": np.array([box.difficult for box in flat], bool),
            "corners": np.array([box[2:] for box in flat], np.float64).reshape(-1, 4),
            "sha256": np.array(hashlib.sha256(repr(boxes).encode()).hexdigest()),
            "failures": pack_failures(failures),
        }

    def boxes(self, index: int) -> list[Box]:
        """The objects of image `index` in the order of the file."""
        objects = range(self._start[index], self._start[index + 1])
        return [Box(int(self._class_id[n]), bool(self._difficult[n]), *self._corners[n].tolist()) for n in objects]

    def _targets(self, index: int, difficult: str) -> tuple[Target, ...]:
        all_difficult: dict[int, bool] = {}
        for box in self.boxes(index):
            all_difficult[box.class_id] = all_difficult.get(box.class_id, True) and box.difficult
        return tuple(Target(c, d) for c, d in sorted(all_difficult.items()) if difficult == "keep" or not d)

    def read_image(self, index: int) -> Image.Image:
        return open_rgb(self.folder / f"{self.image_ids[index]}.jpg")

    def read_mask(self, index: int, class_id: int, width: int, height: int) -> np.ndarray:
        """Union of the class's boxes; one that is not inside the image raises ValueError."""
        mask = np.zeros((height, width), bool)
        for box in self.boxes(index):
            if box.class_id == class_id:
                mask[box_slice(box, width, height)] = True
        return mask


def _read_list(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CamexpError(f"the image list {path} cannot be read: {error}") from error
    image_ids = tuple(line.split()[0] for line in lines if line.strip())
    if not image_ids:
        raise CamexpError(f"the image list {path} is empty")
    require_unique(image_ids, path)
    return image_ids


def read_annotation(path: Path, classes: Sequence[str], failures: list[Failure]) -> list[Box]:
    """The boxes that one XML file states; a class with a broken box has none. What is broken is added to `failures`."""
    try:
        root = ElementTree.parse(path).getroot()
        if root.tag != "annotation":
            raise ValueError(f"its root is <{root.tag}>, not <annotation>")
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        failures.append(Failure(path.stem, None, f"annotation {path.name}: {error}"))
        return []
    boxes, broken = [], set()
    for element in root.iter("object"):
        name = (element.findtext("name") or "").strip()
        if name not in classes:
            failures.append(Failure(path.stem, None, f"object class {name!r} is not one of the data set's"))
            continue
        class_id = classes.index(name)
        try:
            difficult = (element.findtext("difficult") or "0").strip() == "1"
            boxes.append(Box(class_id, difficult, *_corners(element)))
        except ValueError as error:
            broken.add(class_id)
            failures.append(Failure(path.stem, class_id, f"annotation {path.name}: {error}"))
    return [box for box in boxes if box.class_id not in broken]


def _corners(element: ElementTree.Element) -> list[float]:
    """The corners of an object; raises ValueError when they make no box."""
    texts = [(element.findtext(f"bndbox/{corner}") or "").strip() for corner in CORNERS]
    if not all(texts):
        raise ValueError("an object without a box")
    corners = [float(text) for text in texts]
    written = ", ".join(texts)
    if not all(map(math.isfinite, corners)):
        raise ValueError(f"box ({written}) has a corner that is not finite")
    xmin, ymin, xmax, ymax = corners
    if xmax < xmin or ymax < ymin:
        raise ValueError(f"box ({written}) is empty: xmax < xmin or ymax < ymin")
    return corners


def box_slice(box: Box, width: int, height: int) -> tuple[slice, slice]:
    """Rows and columns of a 1-based, inclusive box; what lies one pixel outside the image is cut off.

    Raises
    ------
    ValueError: when the box reaches further outside, so that it may be another image's, or has no pixel inside.
    """
    left, top, right, bottom = round(box.xmin) - 1, round(box.ymin) - 1, round(box.xmax), round(box.ymax)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if min(left, top) < -1 or right > width + 1 or bottom > height + 1 or x0 >= x1 or y0 >= y1:
        corners = ", ".join(f"{value:g}" for value in box[2:])
        raise ValueError(f"box ({corners}) reaches outside the image file of {width}x{height} pixels")
    return slice(y0, y1), slice(x0, x1)
