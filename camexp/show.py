"""Images of a data set as people and as the network see them, with ground truth and maps: rows of a picture sheet.

`scripts/show.py` is the command.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from camexp.datasets.base import Dataset, Sample
from camexp.errors import CamexpError
from camexp.explain import stack
from camexp.maps import fed_pixels
from camexp.methods.base import Method, scale_to_unit
from camexp.metrics import Explained, Metric
from camexp.models.classifier import Classifier
from camexp.models.preprocess import Fed, Preprocess, feed
from camexp.pictures import Picture, SheetRow, label_objects, outline, overlay

LABEL_SIZE = 12
"""Of a class's name, in pixels of a photograph that is 224 high, as sheets show it."""


@dataclass(frozen=True)
class Shown:
    """One image with what is drawn and told of it.

    Attributes
    ----------
    index: its position in the data set.
    sample: the decoded image (W,H), its P pairs and their masks (H,W).
    fed: image (3,h,w) and masks (P,h,w), as the network is fed them.
    pixels: (h,w,3) uint8, the fed image.
    names: P class names, marked when all the objects are difficult.
    """

    index: int
    sample: Sample
    fed: Fed
    pixels: np.ndarray
    names: list[str]

    @property
    def title(self) -> str:
        return f"{self.sample.image_id} (index {self.index})"

    @property
    def photograph(self) -> np.ndarray:
        """(H,W,3) uint8."""
        return np.array(self.sample.image)

    def size(self) -> str:
        height, width = self.photograph.shape[:2]
        return f"{width}x{height} pixels, fed as {self.pixels.shape[1]}x{self.pixels.shape[0]}"

    def share(self, pair: int) -> str:
        """How much of the fed image the pair's ground truth covers."""
        return f"{100 * self.fed.masks[pair].double().mean().item():.1f} %"

    def photograph_with(self, which: Sequence[int]) -> Picture:
        """The photograph with the ground truth of some pairs, outlined and named."""
        drawn = self.photograph
        scale = len(drawn) / 224
        masks = [self.sample.masks[pair] for pair in which]
        for mask in masks:
            drawn = outline(drawn, mask, max(1, round(scale + 0.25)))
        names = [self.names[pair] for pair in which]
        return Picture(label_objects(drawn, masks, names, max(8, round(LABEL_SIZE * scale))))

    def fed_with(self, pair: int) -> Picture:
        """The image as fed with one pair's ground truth and its share of the image."""
        drawn = outline(self.pixels, self.fed.masks[pair].numpy())
        return Picture(drawn, f"{self.names[pair]}, area {self.share(pair)}")


def show(dataset: Dataset, index: int, preprocess: Preprocess) -> Shown:
    """Decode one image.

    Raises
    ------
    CamexpError: when it cannot be read.
    """
    sample = dataset.load(index)
    fed = feed(sample, preprocess)
    if fed.image is None:
        raise CamexpError(f"{sample.image_id} (index {index}): {sample.failures[0].reason}")
    names = [dataset.classes[t.class_id] + " (difficult)" * t.difficult for t in sample.targets]
    return Shown(index, sample, fed, fed_pixels(fed.image, preprocess), names)


def show_all(dataset: Dataset, indices: Sequence[int], preprocess: Preprocess) -> tuple[list[Shown], list[str]]:
    """Images, and what of them cannot be shown."""
    images, problems = [], []
    for index in indices:
        try:
            images.append(show(dataset, index, preprocess))
        except CamexpError as error:
            problems.append(str(error))
    failures = [failure for shown in images for failure in shown.sample.failures]
    wanted = {shown.sample.image_id for shown in images}
    failures += [failure for failure in dataset.failures if failure.image_id in wanted]
    return images, problems + [f"{failure.image_id}: {failure.reason}" for failure in failures]


def ground_truth_row(shown: Shown) -> SheetRow:
    """The photograph with all its pairs, then the fed image once for each pair."""
    pairs = range(len(shown.names))
    fed = [shown.fed_with(pair) for pair in pairs] or [Picture(shown.pixels, "no pairs to explain")]
    return SheetRow(f"{shown.title}, {shown.size()}", [shown.photograph_with(pairs), *fed])


# ---------------------------------------------------------------------------------------------------- maps


@dataclass(frozen=True)
class ShownMaps:
    """The maps (P,h,w) of one method for the pairs of one image, on the CPU, and their EBPG (P,)."""

    maps: Tensor
    ebpg: Tensor

    def caption(self, pair: int) -> str:
        values = self.maps[pair]
        if not values.isfinite().all():
            return "the map is not finite"
        return f"EBPG {100 * self.ebpg[pair].item():.1f} %" + ", degenerate" * bool(values.amin() == values.amax())

    def picture(self, shown: Shown, pair: int, colours: str) -> Picture:
        values = scale_to_unit(self.maps[pair].nan_to_num())
        laid_over = overlay(shown.pixels, values.numpy(), colours)
        return Picture(outline(laid_over, shown.fed.masks[pair].numpy()), self.caption(pair))


@dataclass(frozen=True)
class MapMaker:
    """The network, and the metric that stands under each map."""

    classifier: Classifier
    ebpg: Metric

    @torch.no_grad()
    def confidence(self, shown: Shown) -> list[str]:
        """What the network says of each pair."""
        images, pairs = stack([shown.fed], self.classifier)
        scores = self.classifier.scores(images)[0]
        first = int(scores.argmax())
        return [f"p = {scores[t].item():.3g}" + ", first choice" * (t == first) for t in pairs.target.tolist()]

    def maps(self, method: Method, shown: Shown) -> ShownMaps:
        """The method's maps of the image's pairs."""
        if not shown.names:
            return ShownMaps(torch.zeros(0), torch.zeros(0))
        images, pairs = stack([shown.fed], self.classifier)
        maps = method(self.classifier, images, pairs).detach()
        with torch.no_grad():
            confidence = self.classifier.scores(images)[0, pairs.target]
            ebpg = self.ebpg(Explained(self.classifier, images, pairs, maps.nan_to_num(), confidence))
        return ShownMaps(maps.cpu(), ebpg.cpu())


def maps_of_all(
    maker: MapMaker, methods: dict[str, Method], images: Sequence[Shown]
) -> tuple[dict[str, list[ShownMaps]], list[str]]:
    """The maps of all images by each method that can run, and why others cannot."""
    maps, problems = {}, []
    with tqdm(methods.items(), leave=False, disable=None) as progress:
        for title, method in progress:
            progress.set_description(title)
            try:
                maps[title] = [maker.maps(method, shown) for shown in images]
            except CamexpError as error:
                problems.append(f"{title} skipped: {error}")
    return maps, problems


def map_rows(shown: Shown, confidence: Sequence[str], maps: Sequence[ShownMaps], colours: str) -> Iterator[SheetRow]:
    """For each pair the photograph, the image as fed, and every method's map."""
    for pair, (name, said) in enumerate(zip(shown.names, confidence, strict=True)):
        laid_over = [of_method.picture(shown, pair, colours) for of_method in maps]
        pictures = [shown.photograph_with([pair]), shown.fed_with(pair), *laid_over]
        yield SheetRow(f"{shown.title}, {name}: {said}", pictures)
