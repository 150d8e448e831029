"""MS COCO in the layout of 2014 (Lin et al., 2014), read by pycocotools.

Ground truth of a pair is the union of the segmentation masks of the class, crowd annotations included.
Images without annotations have no pairs.
"""

import contextlib
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO as Annotations

from camexp.datasets.base import Dataset, Failure, Target, open_rgb, require, require_unique
from camexp.errors import CamexpError


class COCO(Dataset):
    """Images, pairs and segmentation masks of one COCO split.

    Parameters
    ----------
    root: folder that holds `annotations/` and the folder of images.
    split: `annotations/instances_<split>.json` and `<split>/` are read; "val2014" for the papers' tables.
    hint: what the error for missing data advises.

    Class indices follow the sorted category ids, as the networks of the papers were trained.

    Raises
    ------
    CamexpError: when a folder or the JSON is missing or cannot be parsed.
    """

    def __init__(
        self,
        root: str,
        split: str = "val2014",
        hint: str = "Pass dataset.root=<folder that holds annotations/ and val2014/>.",
    ):
        path = require(Path(root) / "annotations" / f"instances_{split}.json", "COCO annotations", hint)
        self.folder = require(Path(root) / split, "COCO images", hint)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.annotations = Annotations(str(path))
            if not self.annotations.imgs or not self.annotations.cats:
                raise ValueError("it lists no images or no categories")
        except (ValueError, AssertionError, KeyError, TypeError) as error:
            raise CamexpError(f"{path} is not a COCO annotation file: {error!r}") from error
        self.annotations_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        categories = sorted(self.annotations.cats)
        self.classes = tuple(self.annotations.cats[c]["name"] for c in categories)
        self._class_of = {category: index for index, category in enumerate(categories)}
        self._images = [self.annotations.imgs[i] for i in sorted(self.annotations.imgs)]
        self.image_ids = tuple(str(image["id"]) for image in self._images)
        require_unique(self.image_ids, path)
        failures: list[Failure] = []
        self.targets = tuple(self._targets(image, failures) for image in self._images)
        self.failures = tuple(failures)

    def _targets(self, image: dict, failures: list[Failure]) -> tuple[Target, ...]:
        found = set()
        for annotation in self.annotations.imgToAnns.get(image["id"], []):
            category = annotation["category_id"]
            if category in self._class_of:
                found.add(self._class_of[category])
            else:
                failures.append(Failure(str(image["id"]), None, f"category id {category} is not in the file's list"))
        return tuple(Target(class_id) for class_id in sorted(found))

    def read_image(self, index: int) -> Image.Image:
        return open_rgb(self.folder / self._images[index]["file_name"])

    def read_mask(self, index: int, class_id: int, width: int, height: int) -> np.ndarray:
        """Union of the class's segmentations; annotations without a segmentation are passed over."""
        image = self._images[index]
        if (image["width"], image["height"]) != (width, height):
            raise ValueError(f"the file has {width}x{height} pixels, the JSON says {image['width']}x{image['height']}")
        runs = [
            self._runs(annotation, width, height)
            for annotation in self.annotations.imgToAnns[image["id"]]
            if self._class_of.get(annotation["category_id"]) == class_id and annotation.get("segmentation")
        ]
        if not runs:
            raise ValueError("every annotation of the class has an empty segmentation")
        return rle.decode(rle.merge(runs)).astype(bool)

    def _runs(self, annotation: dict, width: int, height: int) -> dict:
        """The compressed run lengths of one annotation; raises ValueError when they do not fit the image."""
        try:
            runs = self.annotations.annToRLE(annotation)
        except Exception as error:  # pycocotools raises bare exceptions
            raise ValueError(f"annotation {annotation['id']}: {error}") from error
        if list(runs["size"]) != [height, width]:
            raise ValueError(f"annotation {annotation['id']} is of an image of {runs['size'][1]}x{runs['size'][0]}")
        return runs
