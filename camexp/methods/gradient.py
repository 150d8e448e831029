"""Vanilla gradient (Simonyan, Vedaldi and Zisserman, ICLR Workshop 2014, arXiv 1312.6034, section 3.1)."""

from dataclasses import dataclass

from torch import Tensor

from camexp.methods.reduce import OF_GRADIENTS, REDUCTIONS, check_reduce
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

    Raises
    ------
    CamexpError: for another reduction.
    """

    reduce: str = "max"

    def __post_init__(self) -> None:
        check_reduce("gradient", self.reduce, OF_GRADIENTS)

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        return REDUCTIONS[self.reduce](classifier.input_gradients(images, pairs))
