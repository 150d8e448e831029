"""FullGrad (Srinivas and Fleuret, NeurIPS 2019, arXiv 1905.00780, sections 3 and 4)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camexp.errors import CamexpError
from camexp.methods.base import scale_to_unit, upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

SCALINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "sample": lambda a: scale_to_unit(a.flatten(1, 2)).unflatten(1, a.shape[1:3]),
    "channel": scale_to_unit,
}
"""Ways to scale (P,C,h,w) to [0,1]: by the extrema of all channels together, or of each channel."""


@dataclass(frozen=True)
class FullGrad:
    """The gradient of the logit times the input, and its gradients at every bias times the bias.

        y_c(x) = sum( dy_c/dx * x ) + sum_b sum( dy_c/dz_b * b )         (complete: exact for ReLU networks)
        M = sum_k psi( dy_c/dx * x )_k + sum_b sum_k psi( dy_c/dz_b * b )_k

    z_b is the output of a convolution or batch norm, b its bias, at every position of z_b; k a channel. Batch norm
    has the implicit bias beta - mean gamma / sqrt(var + eps). psi takes absolute values, scales them to [0,1] by
    minimum and maximum, and enlarges them bilinearly to the image. Biases of linear layers have no place in the
    image and are left out of the map, as in the paper; completeness needs them (see `full_gradients`).

    Cost: one forward and one backward per pair; the gradients at all outputs of convolutions and batch norms are
    in memory together.

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
        def work(rows: slice) -> Tensor:
            terms = full_gradients(classifier, images[pairs.image[rows]], pairs.target[rows])
            maps = [self.psi(term, images) for term in terms if term.dim() == 4]
            return torch.stack(maps).sum(0)

        return torch.cat(classifier.in_chunks(work, len(pairs)))

    def psi(self, term: Tensor, images: Tensor) -> Tensor:
        """Sum over channels of the scaled absolute values of a term (P,C,h,w), enlarged, (P,H,W)."""
        return upsample(SCALINGS[self.scaling](term.abs()).sum(1), images.shape[2:])


def full_gradients(classifier: Classifier, images: Tensor, target: Tensor) -> list[Tensor]:
    """Terms of the complete sum for images (P,3,H,W) and classes (P,), in one pass.

    Returns
    -------
    dy_c/dx * x (P,3,H,W), then dy_c/dz * b for every call of a convolution or batch norm, (P,C,h,w), and of a
    linear layer, (P,N). The sum of everything is y_c, if every bias belongs to such a layer and all other
    operations are positively homogeneous.
    """
    inputs = images.detach().requires_grad_()
    with biased_outputs(classifier.network) as found, torch.enable_grad():
        score = classifier.forward(inputs).gather(1, target[:, None]).sum()
    outputs, biases = [output for output, _ in found], [bias for _, bias in found]
    gradient, *gradients = torch.autograd.grad(score, [inputs, *outputs], materialize_grads=True)
    terms = [g * b.view(-1, *[1] * (g.dim() - 2)) for g, b in zip(gradients, biases, strict=True)]
    return [gradient * images, *terms]


@contextmanager
def biased_outputs(network: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The list to which, while the context lasts, every call of a layer with a bias adds its output and bias (C,)."""
    found: list[tuple[Tensor, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda module, args, output, bias=bias: found.append((output, bias)))
        for module in network.modules()
        if (bias := bias_of(module)) is not None
    ]
    try:
        yield found
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
