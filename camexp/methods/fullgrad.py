"""FullGrad (Srinivas and Fleuret, NeurIPS 2019, arXiv 1905.00780, sections 3 and 4)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camexp.errors import CamexpError
from camexp.methods.base import upsample
from camexp.models.backward import by_class
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

SCALINGS: dict[str, tuple[int, ...]] = {"sample": (1, 2, 3), "channel": (2, 3)}
"""Which dimensions of a term (n,C,h,w) have one minimum and maximum: all channels together, or each by itself."""


@dataclass(frozen=True)
class FullGrad:
    """The gradient of the logit times the input, and its gradients at every bias times the bias.

        y_c(x) = sum( dy_c/dx * x ) + sum_b sum( dy_c/dz_b * b )         (complete: exact for ReLU networks)
        M = sum_k psi( dy_c/dx * x )_k + sum_b sum_k psi( dy_c/dz_b * b )_k

    z_b is the output of a convolution or batch norm, b its bias, at every position of z_b; k a channel. Batch norm
    has the implicit bias beta - mean gamma / sqrt(var + eps). psi takes absolute values, scales them to [0,1] by
    minimum and maximum, and enlarges them bilinearly to the image. Biases of linear layers that see the image as a
    whole have no place in it and are left out of the map, as in the paper; completeness needs them (see
    `full_gradients`).

    Cost: one forward per image, one backward per pair.

    Parameters
    ----------
    scaling: extent of psi's minimum and maximum: "sample", all channels of one term together (the authors'
        code), or "channel", each channel by itself (the formula to the letter).

    Raises
    ------
    CamexpError: for another scaling.
    """

    scaling: str = "sample"

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise CamexpError(f"method.scaling of fullgrad must be one of {', '.join(SCALINGS)}, not {self.scaling!r}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        def work(image: Tensor, target: Tensor) -> list[Tensor]:
            sums: dict[Sequence[int], Tensor] = {}  # terms of one size are added before they are enlarged

            def add(term: Tensor) -> None:
                if term.dim() == 4:
                    psi = self.scaled(term)
                    sums[psi.shape] = sums[psi.shape] + psi if psi.shape in sums else psi

            maps = []
            for _ in full_gradients(classifier, images[image], target, add):
                maps.append(torch.stack([upsample(total, images.shape[2:]) for total in sums.values()]).sum(0))
                sums.clear()
            return [torch.stack(maps, 1)]

        (maps,) = classifier.of_images(pairs, work)
        return maps

    def scaled(self, term: Tensor) -> Tensor:
        """Sum over channels of the absolute values of a term (n,C,h,w), scaled to [0,1], (n,h,w); it is overwritten."""
        values, extent = term.abs_(), SCALINGS[self.scaling]
        low, high = values.amin(extent, keepdim=True), values.amax(extent, keepdim=True)
        factor = torch.where(high > low, 1 / (high - low), 0.0)
        if self.scaling == "sample":  # the same for all channels: once, of their sum
            return (values.sum(1) - values.shape[1] * low[:, 0]) * factor[:, 0]
        return values.sub_(low).mul_(factor).sum(1)


def full_gradients(
    classifier: Classifier, images: Tensor, target: Tensor, take: Callable[[Tensor], None]
) -> Iterator[None]:
    """Hand over the terms of the complete sum for images (n,3,H,W), for each column of the classes (n,c) in turn.

    `take` is called with every term as the backward pass comes to it, so that the gradients need not be kept:
    dy_c/dz * b for every call of a convolution or batch norm, (n,C,h,w), and of a linear layer, (n,N), or (n,N,h,w) if
    it was given (n,h,w,...), the last call first; then dy_c/dx * x (n,3,H,W). The sum of everything is y_c, if every
    bias belongs to such a layer and all other operations are positively homogeneous. One forward pass serves all
    classes.
    """
    inputs = images.detach().requires_grad_()
    with biased_outputs(classifier.network, take), torch.enable_grad():
        logits = classifier.forward(inputs)
    for (gradient,) in by_class(logits, target, [inputs]):
        take(gradient * images)
        yield


@contextmanager
def biased_outputs(network: nn.Module, take: Callable[[Tensor], None]) -> Iterator[None]:
    """While the context lasts, let gradients that will come back to a layer with a bias be taken, times the bias."""

    def watch(module: nn.Module, output: Tensor, bias: Tensor) -> None:
        channels = -1 if isinstance(module, nn.Linear) else 1  # their dimension
        shaped = bias.view(-1, *[1] * (output.dim() - 2))
        if output.requires_grad:  # otherwise it does not depend on the images
            output.register_hook(lambda gradient: take(gradient.movedim(channels, 1) * shaped))

    handles = [
        module.register_forward_hook(lambda module, args, output, bias=bias: watch(module, output, bias))
        for module in network.modules()
        if (bias := bias_of(module)) is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def bias_of(module: nn.Module) -> Tensor | None:
    """What a layer adds to every position of its output, (C,); None if nothing."""
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
        scale = (module.running_var + module.eps).rsqrt()
        shift = -module.running_mean * scale
        return shift if module.weight is None else module.bias + shift * module.weight
    return module.bias if isinstance(module, nn.Conv2d | nn.Linear) else None
