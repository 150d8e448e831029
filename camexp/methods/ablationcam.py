"""Ablation-CAM (Desai and Ramaswamy, WACV 2020, section 3)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.methods.base import upsample
from camexp.models.classifier import Classifier
from camexp.models.tail import Tail, tail_behind
from camexp.pairs import Pairs

VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {"paper": lambda y: y, "magnitude": torch.abs}
"""The denominator of the weights as a function of the logit."""

SMALLEST = 1e-6
"""A denominator nearer to 0 is moved to this distance, on its side."""


@dataclass(frozen=True)
class AblationCAM:
    """Channels of the CAM layer, weighted by the share of the logit that is lost without them.

        M = ReLU( sum_k w_k A^k ),   w_k = (y_c - y_c^k) / y_c

    y_c^k is the class's logit with channel k of the layer's activations set to 0. The formula is made for classes
    that the network sees: with y_c < 0 the weights, and with them the map, change sign. The variant "magnitude"
    divides by |y_c|, so that what lowers the logit always speaks for the class. Channels without activation have
    no weight and need no pass.

    Cost: one forward per image (two where the tail reads what was computed before the layer, as it does beside a skip
    connection), and one pass through the tail behind the layer per (image, channel); no backward. All classes of an
    image share them.

    Parameters
    ----------
    variant: "paper", or "magnitude" (see above).
    layer: module path; None for the model's CAM layer.

    Raises
    ------
    CamexpError: for another variant.
    """

    variant: str = "paper"
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise CamexpError(
                f"method.variant of ablationcam must be one of {', '.join(VARIANTS)}, not {self.variant!r}"
            )

    @torch.no_grad()
    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        maps = []
        with tail_behind(classifier, images, self.layer or classifier.cam_layer) as tail:
            for i, activation in enumerate(tail.activations):
                target = pairs.target[pairs.image == i]  # (p,)
                without = logits_without(classifier, tail, i)  # (K, C)
                weight = self.weights(tail.logits[i, target], without[:, target])  # (K, p)
                maps.append(torch.einsum("kp,khw->phw", weight, activation).relu())
        order = pairs.image.argsort(stable=True)
        cam = torch.cat(maps)[order.argsort()]  # (P, h, w), in the order of the pairs
        return upsample(cam, images.shape[2:])

    def weights(self, score: Tensor, without: Tensor) -> Tensor:
        """w_k (K,p) for the logits of p classes with all channels, (p,), and without each channel, (K,p)."""
        denominator = VARIANTS[self.variant](score)
        sign = torch.where(denominator < 0, -1.0, 1.0)
        return (score - without) / (sign * denominator.abs().clamp(min=SMALLEST))


def logits_without(classifier: Classifier, tail: Tail, i: int) -> Tensor:
    """Logits (K,C) of image i without each channel."""
    activation, logits = tail.activations[i], tail.logits[i]  # (K, h, w), (C,)
    channel = torch.nonzero(activation.flatten(1).any(1))[:, 0]  # (R,)
    copies, without = _Copies(activation), logits.repeat(len(activation), 1)

    def work(rows: slice) -> None:
        with copies.without(channel[rows]) as ablated:
            without[channel[rows]] = tail.run(ablated, i)

    classifier.in_chunks(work, len(channel), tail.times)
    return without


class _Copies:
    """Copies of activations (K,h,w), each without one channel, in memory that is written only once."""

    def __init__(self, activation: Tensor):
        self.activation = activation.contiguous()  # it is faster to copy than channels last
        self.intact: Tensor | None = None

    @contextmanager
    def without(self, channel: Tensor) -> Iterator[Tensor]:
        """As many copies (n,K,h,w) as channels (n,), to be read while the context lasts."""
        copies, self.intact = self.intact, None  # they are dropped where the context is left by an exception
        if copies is None or len(copies) < len(channel):
            copies = self.activation.repeat(len(channel), 1, 1, 1)
        row = torch.arange(len(channel), device=channel.device)
        copies[row, channel] = 0
        yield copies[: len(channel)]
        copies[row, channel] = self.activation[channel]
        self.intact = copies
