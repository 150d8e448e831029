"""DeepLIFT (Shrikumar, Greenside and Kundaje, ICML 2017, arXiv 1704.02685, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.methods._deeplift_graph import Difference, Values
from camexp.methods.reduce import REDUCTIONS, check_reduce
from camexp.models.backward import by_class
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

RULES = ("rescale", "revealcancel", "linear")
REDUCES = ("sum", "sum_abs", "abs_sum", "max_abs")


@dataclass(frozen=True)
class DeepLIFT:
    """The difference of the logit from its value for a reference, shared among the pixels.

        C_i = m_i D_i,   D = I - I',   sum_i C_i = y_c(I) - y_c(I')          (summation-to-delta, eq. 1)
        M = sum_k C_k,   k = colour channel

    I' is the fed value of a masked-out pixel, `classifier.fill`. The multipliers m_i obey a chain rule like
    derivatives (eq. 3): m_i = sum_j m_{i,j} m_j over the neurons j that i feeds. Below, x0 is a neuron's input for I'
    and D its difference.

    Affine layers (convolution, linear layer, batch norm, average pooling, sums) always have the Linear rule,
    m = w. The rules differ at a nonlinearity f:

    - "rescale": m = ( f(x0 + D) - f(x0) ) / D.
    - "revealcancel": the positive part D+ of a pre-activation, the sum of the positive contributions w_i D_i to it, and
      the negative part D- have each their own multiplier m+ = D_y+ / D+ and m- = D_y- / D-, with
      D_y+ = 1/2 [ f(x0 + D+) - f(x0) ] + 1/2 [ f(x0 + D- + D+) - f(x0 + D-) ] and D_y- likewise: the mean over
      both orders in which the parts can be added.
    - "linear": m = f'(x), the local gradient, so that M is gradient times (I - I'). A baseline beside the paper's two
      rules; summation-to-delta does not hold.

    Where D is negligible, m is the local gradient. For max-pooling the difference of the maximum goes to the input
    that holds the larger of both maxima, and RevealCancel's four terms are formed with f = max (see
    `_deeplift_secants`). How sums of many inputs are parted for RevealCancel: see `Difference.weighted`; a batch norm
    acts as if folded into the convolution before it.

    Cost: one forward per image, one backward per pair; for "rescale" every nonlinearity is evaluated twice, for
    "revealcancel" convolutions twice and nonlinearities four times. One forward of the reference per call.

    Parameters
    ----------
    rule: "rescale", "revealcancel" or "linear".
    reduce: map of the contributions: "sum", signed; "sum_abs", "abs_sum" or "max_abs".

    Raises
    ------
    CamexpError: for another rule or reduction, and for an operation of the network that the nonlinear rules lack.
    """

    rule: str = "rescale"
    reduce: str = "sum"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise CamexpError(f"method.rule of deeplift must be one of {', '.join(RULES)}, not {self.rule!r}")
        check_reduce("deeplift", self.reduce, REDUCES)

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        return REDUCTIONS[self.reduce](self.contributions(classifier, images, pairs))

    def contributions(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        """C (P,3,H,W) of every value of the image."""
        difference = images - classifier.fill  # (B, 3, H, W)
        if self.rule == "linear":
            return classifier.input_gradients(images, pairs) * difference[pairs.image]

        values = Values(classifier.fill.expand(1, *images.shape[1:]).contiguous(memory_format=classifier.memory_format))

        def work(image: Tensor, target: Tensor) -> list[Tensor]:
            change = difference[image]
            return [change[:, None] * self._multipliers(classifier, values, change, target)]

        (contributions,) = classifier.of_images(pairs, work)
        return contributions

    def _multipliers(self, classifier: Classifier, values: Values, change: Tensor, target: Tensor) -> Tensor:
        """m (n,c,3,H,W) of the differences (n,3,H,W) for the logits of the classes (n,c)."""
        with torch.enable_grad():
            change = change.detach().contiguous(memory_format=classifier.memory_format).requires_grad_()
            inputs = Difference.of_images(values, change, separate=self.rule == "revealcancel")
            classifier.on_forward(len(change) + (len(values.known) == 1))  # the reference goes with the first
            logits = classifier.network(inputs).total  # y(I) - y(I'), (n, C)
        return torch.stack([gradient for (gradient,) in by_class(logits, target, [change])], 1)
