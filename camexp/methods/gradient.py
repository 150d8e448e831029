"""Vanilla gradient (Simonyan, Vedaldi and Zisserman, ICLR Workshop 2014, arXiv 1312.6034, section 3.1)."""

from dataclasses import dataclass

from torch import Tensor

from camexp.methods.reduce import OF_GRADIENTS, REDUCTIONS, check_reduce, check_smooth, smoothed
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class Gradient:
    """How strongly the class's logit reacts to each pixel.

        M_ij = max_k | dy_c / dI_kij |,   k = colour channel

    Cost: one forward per image, one backward per pair.

    Parameters
    ----------
    reduce: "max" (paper) or "sum_abs", the sum over channels of |dy_c / dI|.
    smooth: standard deviation of a Gaussian over the map as a share of its longer side; 0 for none. TorchRay's
        pointing game takes 0.02.

    Raises
    ------
    CamexpError: for another reduction, or a share out of range.
    """

    reduce: str = "max"
    smooth: float = 0.0

    def __post_init__(self) -> None:
        check_reduce("gradient", self.reduce, OF_GRADIENTS)
        check_smooth("gradient", self.smooth)

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        return smoothed(REDUCTIONS[self.reduce](classifier.input_gradients(images, pairs)), self.smooth)
