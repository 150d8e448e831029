"""The one interface of all data sets: images, their (image, class) pairs, and the pairs' ground-truth masks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Failure:
    """Why an image, or one pair of it, is listed and not counted. `class_id` is None for a whole image."""

    image_id: str
    class_id: int | None
    reason: str


@dataclass(frozen=True)
class Target:
    """One class to explain in an image; `difficult` marks pairs whose objects are all difficult."""

    class_id: int
    difficult: bool = False


@dataclass(frozen=True)
class Sample:
    """A decoded image with the masks of its pairs.

    Attributes
    ----------
    image_id: name of the image, unique in its data set.
    image: RGB, size (W,H).
    targets: the P classes to explain.
    masks: P arrays (H,W) of bool, True on the class's objects.
    failures: pairs of the image that could not be read.
    """

    image_id: str
    image: Image.Image | None
    targets: tuple[Target, ...]
    masks: tuple[np.ndarray, ...]
    failures: tuple[Failure, ...] = ()


class Dataset(ABC):
    """Images in a fixed order, with the classes to explain in each.

    Everything that the annotations alone can tell (ids, targets, what is broken) is known after construction;
    `load` decodes one image. Subclasses fill the attributes below in their constructor.

    Attributes
    ----------
    classes: class names; a class's index is the network's output.
    image_ids: (N,) all images of the split in evaluation order, those without pairs too.
    targets: (N,) tuples of `Target`.
    annotations_sha256: of the ground truth's source; a run is not resumed on another one.
    failures: what was found broken while the annotations were read.
    """

    classes: tuple[str, ...]
    image_ids: tuple[str, ...]
    targets: tuple[tuple[Target, ...], ...]
    annotations_sha256: str = ""
    failures: tuple[Failure, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def limit(self, count: int) -> None:
        """Keep only the first `count` images."""
        self.image_ids, self.targets = self.image_ids[:count], self.targets[:count]
        kept = set(self.image_ids)
        self.failures = tuple(f for f in self.failures if f.image_id in kept)

    @abstractmethod
    def read_image(self, index: int) -> Image.Image:
        """Decode image `index` as RGB; raises OSError or ValueError when it is missing or corrupt."""

    @abstractmethod
    def read_mask(self, index: int, class_id: int, width: int, height: int) -> np.ndarray:
        """Ground truth (height,width) bool of one class; raises ValueError when it cannot be made."""

    def load(self, index: int) -> Sample:
        """Decode image `index` with its masks; what cannot be read is in `Sample.failures`."""
        image_id, targets = self.image_ids[index], self.targets[index]
        try:
            image = self.read_image(index)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            failures = tuple(Failure(image_id, t.class_id, f"image: {error}") for t in targets)
            return Sample(image_id, None, (), (), failures or (Failure(image_id, None, f"image: {error}"),))
        readable, masks, failed = [], [], []
        for target in targets:
            try:
                mask = self.read_mask(index, target.class_id, image.width, image.height)
                if not mask.any():
                    raise ValueError("the object covers no pixel")
            except ValueError as error:
                failed.append(Failure(image_id, target.class_id, f"ground truth: {error}"))
            else:
                readable.append(target)
                masks.append(mask)
        return Sample(image_id, image, tuple(readable), tuple(masks), tuple(failed))


def open_rgb(path: Path) -> Image.Image:
    """Decode an image file completely, as RGB.

    The pixels stay as they are stored: annotations refer to them, so an EXIF orientation is not applied. Grey,
    palette and CMYK images are converted, transparency is dropped, 16 bits become 8 by division (Pillow alone
    would make everything from 255 on white).

    Raises
    ------
    OSError: when the file is missing, empty, truncated or no image.
    ValueError: when its pixels have no known range (floating point, 32 bits).
    """
    with Image.open(path) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return _from_deep(np.asarray(image))
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


def _from_deep(pixels: np.ndarray) -> Image.Image:
    """Grey of 16 bits as RGB."""
    if not np.issubdtype(pixels.dtype, np.integer) or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"grey pixels of type {pixels.dtype} from {pixels.min()} to {pixels.max()}: no known range")
    return Image.fromarray((pixels // 257).astype(np.uint8)).convert("RGB")
