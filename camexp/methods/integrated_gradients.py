"""Integrated Gradients (Sundararajan, Taly and Yan, ICML 2017, arXiv 1703.01365, eq. 1 and 3)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.methods.blur import gaussian_blur
from camexp.methods.reduce import REDUCTIONS, check_reduce
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

REDUCES = ("sum_abs", "abs_sum", "sum", "max_abs")


def _trapezoid(m: int) -> tuple[Tensor, Tensor]:
    weights = torch.full((m,), 1 / (m - 1))
    weights[[0, -1]] /= 2
    return torch.linspace(0, 1, m), weights


RULES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "midpoint": lambda m: ((torch.arange(m) + 0.5) / m, torch.full((m,), 1 / m)),
    "trapezoid": _trapezoid,
    "right": lambda m: ((torch.arange(m) + 1) / m, torch.full((m,), 1 / m)),
}
"""Points alpha (m,) in [0,1] and weights (m,) with sum 1 that approximate the integral over the path."""


BASELINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fill": lambda images, fill: fill.expand_as(images),
    "blur": lambda images, fill: gaussian_blur(images, BLUR * min(images.shape[2:])),
}
"""I' (B,3,H,W) of images (B,3,H,W) and the fill (3,1,1), by the name that `method.baseline` gives."""

BLUR = 0.1
"""Standard deviation of the blurred baseline's kernel as a share of the shorter side."""


@dataclass(frozen=True)
class IntegratedGradients:
    """Gradients integrated along the straight path from a baseline I' to the image I.

        IG(I) = (I - I') * integral_{a=0..1} dy_c / dI ( I' + a (I - I') ) da
              ~ (I - I') * sum_{t=1..m} w_t dy_c / dI ( I' + a_t (I - I') )

    The sum of IG over all values is y_c(I) - y_c(I') (completeness), up to the error of the approximation.

    Cost: m forwards per image, m backwards per pair. Memory does not grow with m.

    Parameters
    ----------
    steps: m, the number of gradients, for every rule.
    rule: where and with which weights: "midpoint", a_t = (t - 1/2) / m; "trapezoid", a_t = (t - 1) / (m - 1) with
        half the weight at both ends; "right", a_t = t / m, as the paper's eq. 3.
    baseline: I', "fill", the fed value of a masked-out pixel (the zero of the fed tensor by default), or "blur", the
        image under a Gaussian kernel.
    reduce: map of an attribution: "sum_abs", the sum over channels of |IG|; "abs_sum", |sum over channels|;
        "sum", signed; "max_abs", the largest |IG|.

    Raises
    ------
    CamexpError: for another rule, baseline or reduction, steps < 1, or steps < 2 with "trapezoid".
    """

    steps: int = 50
    rule: str = "midpoint"
    baseline: str = "fill"
    reduce: str = "sum_abs"

    def __post_init__(self) -> None:
        check_reduce("integrated_gradients", self.reduce, REDUCES)
        for name, value, allowed in (("rule", self.rule, [*RULES]), ("baseline", self.baseline, [*BASELINES])):
            if value not in allowed:
                raise CamexpError(
                    f"method.{name} of integrated_gradients must be one of {', '.join(allowed)}, not {value!r}"
                )
        fewest = 2 if self.rule == "trapezoid" else 1
        if self.steps < fewest:
            raise CamexpError(f"method.steps of integrated_gradients must be at least {fewest}, not {self.steps}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        return REDUCTIONS[self.reduce](self.attributions(classifier, images, pairs))

    def attributions(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        """IG (P,3,H,W); its sum is y_c(I) - y_c(I') for every pair."""
        baseline = BASELINES[self.baseline](images, classifier.fill)  # I', (B, 3, H, W)
        change = images - baseline
        alphas, weights = (values.to(images).view(-1, 1, 1, 1, 1) for values in RULES[self.rule](self.steps))
        total = torch.zeros_like(images[pairs.image])
        at_once = classifier.copies_at_once(len(images))
        for alpha, weight in zip(alphas.split(at_once), weights.split(at_once), strict=True):
            path = (baseline + alpha * change).flatten(0, 1)  # (T * B, 3, H, W)
            gradient = classifier.input_gradients(path, pairs.tile(len(alpha)))
            total += (weight * gradient.unflatten(0, (len(alpha), -1))).sum(0)  # (P, 3, H, W)
        return change[pairs.image] * total
