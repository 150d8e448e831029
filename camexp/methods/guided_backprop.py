"""Guided backpropagation (Springenberg et al., ICLR Workshop 2015, arXiv 1412.6806, figure 1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from camexp.errors import CamexpError
from camexp.methods.reduce import OF_GRADIENTS, REDUCTIONS, check_reduce, check_smooth, smoothed
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class GuidedBackprop:
    """The gradient of the class's logit, with a stricter rule for the backward pass of every ReLU.

        R^l = (f^l > 0) (R^{l+1} > 0) R^{l+1}

    f^l is a ReLU's input and R^{l+1} what comes back to its output: only where both are positive does anything
    pass. The map is the largest |R^0| over the colour channels, as for the vanilla gradient.

    Cost: one forward per image, one backward per pair.

    Parameters
    ----------
    reduce, smooth: as for the vanilla gradient.

    Raises
    ------
    CamexpError: for another reduction or a share out of range, and for a network without `nn.ReLU` modules (ReLUs
        that a network calls as functions cannot be guided).
    """

    reduce: str = "max"
    smooth: float = 0.0

    def __post_init__(self) -> None:
        check_reduce("guided_backprop", self.reduce, OF_GRADIENTS)
        check_smooth("guided_backprop", self.smooth)

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        return smoothed(REDUCTIONS[self.reduce](guided_gradients(classifier, images, pairs)), self.smooth)


def guided_gradients(classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
    """R^0 (P,3,H,W), signed."""
    with guided_relus(classifier.network):
        return classifier.input_gradients(images, pairs)


@dataclass
class Guide:
    """Whether the rule holds for a backward pass; without it the gradient is the plain one."""

    on: bool = True

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient.relu() if self.on else gradient


@contextmanager
def guided_relus(network: nn.Module) -> Iterator[Guide]:
    """Let the ReLUs of a network pass back only positive gradients while the context lasts.

    The guide hangs on the output of every single call, so that a module which a forward pass uses several
    times, as the blocks of torchvision's ResNets do, is guided each time.
    """
    guide = Guide()

    def attach(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(guide)

    relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    if not relus:
        raise CamexpError(
            f"guided backpropagation needs a network with nn.ReLU modules, {type(network).__name__} has none"
        )
    handles = [module.register_forward_hook(attach) for module in relus]
    try:
        yield guide
    finally:
        for handle in handles:
            handle.remove()
