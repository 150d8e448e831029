"""Batches of labelled images: streamed from disk by worker processes or kept in memory, and augmented.

A source is made from the labelled images, the seed and its options of augmentation, and has `batches(rows, first,
side, generator)`: the images (B,3,side,side) of each of `rows`, `first` being the number of the step before which
the first of them comes. What it yields depends on these arguments alone, so that training can go on in the middle
of an epoch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2
from tqdm import tqdm

from camexp.datasets.base import Dataset, Failure
from camexp.errors import CamexpError
from camexp.loading import in_workers
from camexp.models.preprocess import Preprocess
from camexp.seeding import seed_from

View = Callable[[Image.Image, int, int], Tensor]
"""From a decoded image, the number of its batch and its place in it, to what is fed (3,h,w)."""


@dataclass(frozen=True)
class Labelled:
    """Images of a data set with their label sets.

    Attributes
    ----------
    indices: (N) into the data set.
    labels: (N,C) in {0,1}.
    workers: processes that decode; "auto" is none for a few batches, or on two cores without a GPU, else up to four.
    """

    dataset: Dataset
    indices: Sequence[int]
    labels: Tensor
    preprocess: Preprocess
    workers: int | str = "auto"

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, rows: Sequence[int]) -> "Labelled":
        """Only the given rows, in their order."""
        return replace(self, indices=[self.indices[row] for row in rows], labels=self.labels[list(rows)])

    def read(self, batches: Sequence[Tensor], view: View) -> Iterator[Tensor]:
        """The images of each batch of rows, seen through `view`, in order.

        Raises
        ------
        CamexpError: when an image cannot be read.
        """
        batches_in_turn = _Batches(self, batches, view)
        loader = in_workers(batches_in_turn, len(batches), self.workers, pin_memory=torch.cuda.is_available())
        for item in loader:
            if isinstance(item, Failure):
                raise CamexpError(f"image {item.image_id} cannot be used: {item.reason}\nMend or replace the file.")
            yield item

    def fed(self, label: str, batch: int = 32) -> Iterator[Tensor]:
        """All images (B,3,h,w) in order, as a network is fed them when it is explained."""
        batches = torch.arange(len(self)).split(batch)
        yield from tqdm(self.read(batches, Plain(self.preprocess)), label, len(batches), leave=False, unit="batch")


class _Batches(TorchDataset):
    """One item per batch, so that a worker decodes a whole batch; a `Failure` where an image cannot be read."""

    def __init__(self, images: Labelled, batches: Sequence[Tensor], view: View):
        self.images, self.batches, self.view = images, batches, view

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Tensor | Failure:
        if number >= len(self):
            raise IndexError(number)
        dataset, seen = self.images.dataset, []
        for place, row in enumerate(self.batches[number].tolist()):
            index = self.images.indices[row]
            try:
                seen.append(self.view(dataset.read_image(index), number, place))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                return Failure(dataset.image_ids[index], None, str(error))
        return torch.stack(seen)


@dataclass(frozen=True)
class Plain:
    """The view that is explained and evaluated."""

    preprocess: Preprocess

    def __call__(self, image: Image.Image, number: int, place: int) -> Tensor:
        return self.preprocess.image(image)


@dataclass(frozen=True)
class Augmented:
    """A view through random transforms, seeded by the step and the place in its batch."""

    preprocess: Preprocess
    transform: v2.Transform
    seed: int
    first: int

    def __call__(self, image: Image.Image, number: int, place: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(self.seed, "augment", self.first + number, place))
            return self.preprocess.image(self.transform(image))


class Source(Protocol):
    """What makes the batches of an epoch."""

    def batches(
        self, rows: Sequence[Tensor], first: int, side: int, generator: torch.Generator
    ) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class Streamed:
    """Images decoded from disk in every epoch; crops, mirror images and colours are drawn for each.

    Parameters
    ----------
    crop: smallest and largest share of the image that is cut out and scaled to the fed side.
    aspect: smallest and largest ratio of the cut's sides.
    vertical: mirror top and bottom too.
    colour: largest relative change of brightness, contrast and saturation.
    """

    images: Labelled
    seed: int
    crop: Sequence[float] = (0.5, 1.0)
    aspect: Sequence[float] = (0.75, 1.3333)
    vertical: bool = False
    colour: float = 0.2

    def transform(self, side: int) -> v2.Transform:
        """The random transforms of one decoded image."""
        return v2.Compose(
            [
                v2.RandomResizedCrop(side, tuple(self.crop), tuple(self.aspect)),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(0.5 if self.vertical else 0.0),
                v2.ColorJitter(self.colour, self.colour, self.colour),
            ]
        )

    def batches(self, rows: Sequence[Tensor], first: int, side: int, generator: torch.Generator) -> Iterator[Tensor]:
        preprocess = replace(self.images.preprocess, size=side)
        yield from self.images.read(rows, Augmented(preprocess, self.transform(side), self.seed, first))


class Preloaded:
    """All images in memory, as float16; each batch is moved and recoloured as a whole.

    Parameters
    ----------
    zoom, shift: range of the scale, and largest shift as a share of half the side.
    contrast, brightness: range of the factor on, and largest addition to, the fed values.
    vertical: mirror top and bottom too.
    """

    def __init__(
        self,
        images: Labelled,
        seed: int,
        zoom: Sequence[float] = (0.85, 1.15),
        shift: float = 0.1,
        contrast: Sequence[float] = (0.8, 1.2),
        brightness: float = 0.3,
        vertical: bool = False,
    ):
        self.zoom, self.contrast = tuple(zoom), tuple(contrast)
        self.shift, self.brightness, self.vertical = shift, brightness, vertical
        side, start = images.preprocess.size, 0
        self.pixels = torch.empty(len(images), 3, side, side, dtype=torch.float16)
        for batch in images.fed("training images"):
            self.pixels[start : start + len(batch)] = batch
            start += len(batch)

    def batches(self, rows: Sequence[Tensor], first: int, side: int, generator: torch.Generator) -> Iterator[Tensor]:
        for batch in rows:
            yield self.augment(self.pixels[batch].float(), side, generator)

    def augment(self, images: Tensor, side: int, generator: torch.Generator) -> Tensor:
        """Mirror, zoom, shift and recolour a batch (B,3,h,w); resize to `side`."""
        n = len(images)

        def uniform(low: float, high: float) -> Tensor:
            return torch.rand(n, generator=generator) * (high - low) + low

        zoom, theta = uniform(*self.zoom), torch.zeros(n, 2, 3)
        theta[:, 0, 0] = zoom * uniform(-1, 1).sign()
        theta[:, 1, 1] = zoom * (uniform(-1, 1).sign() if self.vertical else 1)
        theta[:, :, 2] = torch.stack([uniform(-self.shift, self.shift), uniform(-self.shift, self.shift)], 1)
        grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
        if side < images.shape[-1]:
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        moved = moved * uniform(*self.contrast).view(-1, 1, 1, 1)
        return moved + uniform(-self.brightness, self.brightness).view(-1, 1, 1, 1)
