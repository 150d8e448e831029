"""MS COCO in the layout of 2014 (Lin et al., 2014), with pycocotools' run lengths.

Ground truth of a pair is the union of the segmentation masks of the class, crowd annotations included.
Images without annotations have no pairs.

torchvision's `CocoDetection` keeps every annotation as a dictionary in each process; here they become arrays once.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from camexp.datasets.base import Dataset, Target, open_rgb
from camexp.datasets.coco_index import read_coco
from camexp.datasets.index import cached, unpack_failures, unpack_json
from camexp.datasets.layout import require, require_images
from camexp.datasets.run_lengths import RunLengths


class COCO(Dataset):
    """Images, pairs and segmentation masks of one COCO split.

    Parameters
    ----------
    root: folder that holds `annotations/` and the folder of images.
    split: `annotations/instances_<split>.json` and `<split>/` are read; "val2014" for the papers' tables.
    hint: what the error for missing data advises.
    cache: folder that keeps what was read of the annotations; None reads them every time.

    Class indices follow the sorted category ids, as the networks of the papers were trained. Annotations without a
    segmentation are passed over; a pair that has no others, or a broken one, fails when it is loaded. A category or
    an image that the file does not list is a failure of the image.

    Raises
    ------
    CamexpError: when a folder or the JSON is missing or cannot be parsed, no image is there, or an id stands twice.
    """

    def __init__(
        self,
        root: str,
        split: str = "val2014",
        hint: str = "Pass dataset.root=<folder that holds annotations/ and val2014/>.",
        cache: str | None = None,
    ):
        path = require(Path(root), f"annotations/instances_{split}.json", "COCO annotations", hint)
        self.folder = require(Path(root), split, "COCO images", hint)
        index = cached(cache, f"coco_{split}", [path], [], lambda: read_coco(path))
        self.image_ids = tuple(map(str, index["image_id"].tolist()))
        self._file_names, self._widths, self._heights = index["file_name"], index["width"], index["height"]
        require_images(self.folder, self._file_names, hint)
        self._start, self._pair_class = index["pair_start"], index["pair_class"]
        self._runs, self._reasons = RunLengths.from_index(index), dict(unpack_json(index["reasons"]))
        self.classes = tuple(unpack_json(index["classes"]))
        self.annotations_sha256 = str(index["sha256"])
        self.failures = unpack_failures(index["failures"])
        targets = [Target(class_id) for class_id in range(len(self.classes))]
        explained, start = [targets[c] for c in self._pair_class.tolist()], self._start.tolist()
        self.targets = tuple(tuple(explained[a:b]) for a, b in pairwise(start))

    def read_image(self, index: int) -> Image.Image:
        return open_rgb(self.folder / str(self._file_names[index]))

    def read_mask(self, index: int, class_id: int, width: int, height: int) -> np.ndarray:
        """Union of the class's segmentations."""
        listed = int(self._widths[index]), int(self._heights[index])
        if listed != (width, height):
            raise ValueError(f"the file has {width}x{height} pixels, the JSON says {listed[0]}x{listed[1]}")
        first, last = self._start[index : index + 2]
        number = int(first + np.searchsorted(self._pair_class[first:last], class_id))
        if number in self._reasons:
            raise ValueError(self._reasons[number])
        return self._runs.mask(number, height, width)
