"""From decoded images to maps: stacked, explained, checked, and timed to the moment when the device is done."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.methods.base import Method
from camexp.models.classifier import Classifier
from camexp.models.preprocess import Fed
from camexp.pairs import Pairs


@dataclass(frozen=True)
class Explanation:
    """Images of one size with their pairs and maps.

    Attributes
    ----------
    fed: B images; images: (B,3,H,W) as fed; pairs: P pairs over them.
    maps: (P,H,W) float32, zero where the method's map was not finite; finite: (P,) bool.
    seconds: that the method took.
    """

    fed: Sequence[Fed]
    images: Tensor
    pairs: Pairs
    maps: Tensor
    finite: Tensor
    seconds: float


@dataclass(frozen=True)
class Explainer:
    """A method with the network that it explains.

    Attributes
    ----------
    share_classes: call the method once for all classes of an image, so that they share what does not depend on the
        class; otherwise for one class of each image at a time.
    """

    classifier: Classifier
    method: Method
    share_classes: bool = True

    def explain(self, fed: Sequence[Fed]) -> Iterator[Explanation]:
        """The maps of a batch; images of different sizes (with the aspect kept) go in groups of one size."""
        for group in groups(fed):
            yield self.explain_stack(group, *stack(group, self.classifier))

    def explain_stack(self, fed: Sequence[Fed], images: Tensor, pairs: Pairs) -> Explanation:
        """The maps of pairs over images of one size.

        Raises
        ------
        TypeError: when the method returns maps of another shape or type; that is a mistake in its code.
        """
        started = clock(self.classifier.device)
        maps = self.maps(images, pairs)
        seconds = clock(self.classifier.device) - started
        expected = (len(pairs), *images.shape[2:])
        if tuple(maps.shape) != expected or maps.dtype != torch.float32:
            raise TypeError(f"a method must return float32 maps {expected}, got {maps.dtype} {tuple(maps.shape)}")
        finite = maps.isfinite().flatten(1).all(1)
        return Explanation(fed, images, pairs, torch.where(finite[:, None, None], maps, 0), finite, seconds)

    def maps(self, images: Tensor, pairs: Pairs) -> Tensor:
        """The maps (P,H,W) that the method returns, in the order of the pairs."""
        if self.share_classes:
            return self.method(self.classifier, images, pairs)
        found, order = [], []
        for some in classes_apart(pairs):
            needed, alone = pairs.chunk(some)
            found.append(self.method(self.classifier, images[needed], alone))
            order.append(some)
        return torch.cat(found)[torch.cat(order).argsort()]


def groups(fed: Sequence[Fed]) -> Iterator[list[Fed]]:
    """The images that have pairs and could be read, in groups of one size."""
    usable = [(tuple(f.image.shape), f) for f in fed if f.image is not None and f.sample.targets]
    for shape in sorted({shape for shape, _ in usable}):
        yield [f for own, f in usable if own == shape]


def classes_apart(pairs: Pairs) -> list[Tensor]:
    """The first pair of every image, then the second of those that have one, and so on: indices (p,) each."""
    known: Counter[int] = Counter()
    rounds: list[list[int]] = []
    for p, image in enumerate(pairs.image.tolist()):
        if known[image] == len(rounds):
            rounds.append([])
        rounds[known[image]].append(p)
        known[image] += 1
    return [torch.tensor(some, device=pairs.image.device) for some in rounds]


def stack(group: Sequence[Fed], classifier: Classifier) -> tuple[Tensor, Pairs]:
    """Images of one size (B,3,H,W) and their pairs, where and in the layout in which the classifier reads them."""
    images = torch.stack([f.image for f in group if f.image is not None])
    images = images.to(classifier.device, memory_format=classifier.memory_format)
    index = [i for i, f in enumerate(group) for _ in f.sample.targets]
    target = [t.class_id for f in group for t in f.sample.targets]
    ids = tuple(f.sample.image_id for f in group)
    pairs = Pairs(torch.tensor(index), torch.tensor(target), ids, torch.cat([f.masks for f in group]))
    return images, pairs.to(classifier.device)


def clock(device: torch.device) -> float:
    """Seconds, after the device has finished what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
