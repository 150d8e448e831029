"""Pascal VOC: a VOCdevkit folder of any year and split (Everingham et al., 2010).

Ground truth of a pair is the union of the class's boxes, difficult ones included; a pair whose boxes are all
difficult is skipped (or kept and marked, with `difficult="keep"`). Boxes are 1-based and inclusive.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from camexp.datasets.base import Dataset, Failure, Target, open_rgb, require, require_unique
from camexp.errors import CamexpError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class Box(NamedTuple):
    """An annotated box: class, corners as written in the file (1-based, inclusive), difficult flag."""

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

    Raises
    ------
    CamexpError: when the folder or the list is missing, or an id stands twice.
    """

    def __init__(
        self,
        root: str,
        year: int | str = 2007,
        split: str = "test",
        classes: Sequence[str] = VOC_CLASSES,
        difficult: str = "skip",
        hint: str = "Pass dataset.root=<folder that holds VOC<year>/>, dataset.year= and dataset.split=.",
    ):
        if difficult not in ("skip", "keep"):
            raise CamexpError(f"dataset.difficult must be skip or keep, not {difficult!r}")
        self.folder = require(Path(root) / f"VOC{year}", f"VOC{year}", hint)
        listing = require(self.folder / "ImageSets" / "Main" / f"{split}.txt", f"image list of split {split!r}", hint)
        self.image_ids = tuple(line.split()[0] for line in listing.read_text().splitlines() if line.strip())
        if not self.image_ids:
            raise CamexpError(f"the image list {listing} is empty")
        require_unique(self.image_ids, listing)
        self.classes = tuple(classes)
        failures: list[Failure] = []
        self.boxes = [self._read_boxes(image_id, failures) for image_id in self.image_ids]
        self.annotations_sha256 = hashlib.sha256(repr(self.boxes).encode()).hexdigest()
        self.targets = tuple(self._targets(boxes, difficult) for boxes in self.boxes)
        self.failures = tuple(failures)

    def _read_boxes(self, image_id: str, failures: list[Failure]) -> list[Box]:
        path = self.folder / "Annotations" / f"{image_id}.xml"
        try:
            root = ElementTree.parse(path).getroot()
        except (OSError, ElementTree.ParseError) as error:
            failures.append(Failure(image_id, None, f"annotation {path.name}: {error}"))
            return []
        boxes = []
        for element in root.iter("object"):
            name = (element.findtext("name") or "").strip()
            if name not in self.classes:
                failures.append(Failure(image_id, None, f"object class {name!r} is not one of the data set's"))
                continue
            class_id = self.classes.index(name)
            try:
                corners = [float(element.findtext(f"bndbox/{c}") or "") for c in ("xmin", "ymin", "xmax", "ymax")]
            except ValueError:
                failures.append(Failure(image_id, class_id, f"annotation {path.name}: an object without a box"))
                continue
            difficult = (element.findtext("difficult") or "0").strip() == "1"
            boxes.append(Box(class_id, difficult, *corners))
        broken = {f.class_id for f in failures if f.image_id == image_id and f.class_id is not None}
        return [box for box in boxes if box.class_id not in broken]

    @staticmethod
    def _targets(boxes: list[Box], difficult: str) -> tuple[Target, ...]:
        classes = sorted({box.class_id for box in boxes})
        all_difficult = {c: all(box.difficult for box in boxes if box.class_id == c) for c in classes}
        return tuple(Target(c, all_difficult[c]) for c in classes if difficult == "keep" or not all_difficult[c])

    def read_image(self, index: int) -> Image.Image:
        return open_rgb(self.folder / "JPEGImages" / f"{self.image_ids[index]}.jpg")

    def read_mask(self, index: int, class_id: int, width: int, height: int) -> np.ndarray:
        """Union of the class's boxes, clipped to the image; a box wholly outside raises ValueError."""
        mask = np.zeros((height, width), bool)
        for box in self.boxes[index]:
            if box.class_id == class_id:
                mask[box_slice(box, width, height)] = True
        return mask


def box_slice(box: Box, width: int, height: int) -> tuple[slice, slice]:
    """Rows and columns of a 1-based, inclusive box, clipped to the image.

    Raises
    ------
    ValueError: when no pixel of the box lies in the image.
    """
    x0, y0 = max(round(box.xmin) - 1, 0), max(round(box.ymin) - 1, 0)
    x1, y1 = min(round(box.xmax), width), min(round(box.ymax), height)
    if x0 >= x1 or y0 >= y1:
        corners = ", ".join(f"{value:g}" for value in box[2:])
        raise ValueError(f"box ({corners}) has no pixel in the image of {width}x{height}")
    return slice(y0, y1), slice(x0, x1)
