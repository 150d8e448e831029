"""Extremal perturbations (Fong, Patrick and Vedaldi, ICCV 2019, arXiv 1910.08485, section 3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.methods.blur import gaussian_blur
from camexp.methods.smooth_mask import SmoothMask, blur_pyramid, ideal_step, perturb
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class ExtremalPerturbation:
    """Masks of given areas that preserve the class's score best while everything else is blurred.

        m_a = argmax_m  y_c(m (x) x) - lambda R_a(m),   R_a(m) = mean_i ( sort(m)_i - r_a,i )^2
        M = G * sum_a m_a

    r_a is the ideal step: (1 - a) H W zeros, then a H W ones. m (x) x is the image where m = 1 and its strongest
    blur where m = 0 (see `smooth_mask.perturb`); m is smooth by construction, from values on a coarse grid (see
    `smooth_mask.SmoothMask`), which start at 1 and are kept in [0,1]. G is a Gaussian.

    The optimiser climbs the gradient g of the objective with momentum and equal dampening,
    v_0 = g, v_t = momentum v_{t-1} + (1 - momentum) g, lambda_t = penalty penalty_growth^t. Jitter is not random:
    at odd iterations t the perturbed image is flipped horizontally, for every pair alike. So each row, a pair with
    one area, is optimised independently of all others. Equal values at the step share its ones, which
    is the mean of the gradients of R_a over all orders of sorting.

    The defaults are those of the benchmark that the authors released (TorchRay). Lengths in pixels are meant for a
    shorter side of 224. On COCO the areas are 0.018, 0.025, 0.05 and 0.1. "released" does what its code does
    otherwise: masks are larger than the image (`SmoothMask`) and a is the share of the larger area, so that with
    224 x 224 pixels up to 1.35 a of the image is kept; blurred images fade to 0 towards the border, as G does; even
    iterations are flipped; the map is made of the masks before the last step.

    Cost: per pair len(areas) * iterations forwards and as many backwards through the whole network; 3200 of each
    with the defaults. Nothing is shared by the classes of an image but its blur pyramid.

    Parameters
    ----------
    areas: shares of the image's pixels, in (0,1).
    iterations: steps of the optimiser.
    step: side of the mask grid's cells in pixels.
    sigma: radius of the mask's smoothing kernel in pixels.
    learning_rate, momentum: of the optimiser.
    penalty, penalty_growth: weight of R_a at the first iteration, and its factor per iteration.
    levels: of the blur pyramid, the image included.
    max_blur: strongest blur, standard deviation in pixels.
    smooth: standard deviation of G as a share of the shorter side; 0 for none.
    jitter: whether to flip.
    reward: "logit", or "confidence" for Psi_c instead of y_c.
    variant: "paper" or "released".

    Raises
    ------
    CamexpError: for parameters out of range, and for a sigma that is no multiple of the step with "released".
    """

    areas: Sequence[float] = (0.025, 0.05, 0.1, 0.2)
    iterations: int = 800
    step: int = 7
    sigma: float = 21.0
    learning_rate: float = 0.01
    momentum: float = 0.9
    penalty: float = 300.0
    penalty_growth: float = 1.0035
    levels: int = 8
    max_blur: float = 20.0
    smooth: float = 0.09
    jitter: bool = True
    reward: str = "logit"
    variant: str = "paper"

    def __post_init__(self) -> None:
        object.__setattr__(self, "areas", tuple(self.areas))  # a config gives a list
        for name, valid, expected in (
            ("areas", len(self.areas) > 0 and all(0 < area < 1 for area in self.areas), "shares in (0, 1)"),
            ("iterations", self.iterations >= 1, "at least 1"),
            ("step", self.step >= 1, "at least 1"),
            ("sigma", self.sigma > 0, "positive"),
            ("learning_rate", self.learning_rate > 0, "positive"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("penalty", self.penalty >= 0, "at least 0"),
            ("penalty_growth", self.penalty_growth > 0, "positive"),
            ("levels", self.levels >= 2, "at least 2"),
            ("max_blur", self.max_blur > 0, "positive"),
            ("smooth", self.smooth >= 0, "at least 0"),
            ("reward", self.reward in ("logit", "confidence"), "logit or confidence"),
            ("variant", self.variant in ("paper", "released"), "paper or released"),
            (
                "sigma",
                not self.released or self.step < 1 or self.sigma % self.step == 0,
                "a multiple of the step for the released variant",
            ),
        ):
            if not valid:
                raise CamexpError(
                    f"method.{name} of extremal_perturbation must be {expected}, not {getattr(self, name)!r}"
                )

    @property
    def released(self) -> bool:
        return self.variant == "released"

    def ones(self, area: float, pixels: int) -> int:
        """How many of a mask's pixels the ideal step has."""
        return max(1, pixels - int(pixels * (1 - area)) if self.released else round(area * pixels))

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        height, width = images.shape[2:]
        areas = len(self.areas)
        mask = SmoothMask(height, width, self.step, self.sigma, images.device, self.released)
        sizes = [self.ones(area, math.prod(mask.size)) for area in self.areas]
        ones = torch.tensor(sizes, device=images.device).repeat(len(pairs))  # (P * areas,)
        image, target = pairs.image.repeat_interleave(areas), pairs.target.repeat_interleave(areas)
        pyramid = blur_pyramid(images, self.levels, self.max_blur, self.released)  # (B, levels, 3, H, W)

        def work(rows: slice) -> Tensor:
            return self.optimise(classifier, mask, pyramid[image[rows]], target[rows], ones[rows])

        masks = torch.cat(classifier.in_chunks(work, len(ones)))  # (P * areas, H, W)
        return gaussian_blur(masks.unflatten(0, (-1, areas)).sum(1), self.smooth * min(height, width), self.released)

    def optimise(
        self, classifier: Classifier, mask: SmoothMask, pyramid: Tensor, target: Tensor, ones: Tensor
    ) -> Tensor:
        """The masks m_a (R,H,W) of R rows: pyramid (R,levels,3,H,W), class (R,) and number of ones (R,)."""
        nodes = pyramid.new_ones(len(pyramid), *mask.grid)
        velocity: Tensor | None = None
        for t in range(self.iterations):
            nodes.requires_grad_()
            with torch.enable_grad():
                masks = mask(nodes)
                perturbed = perturb(pyramid, masks[mask.inside])
                if self.jitter and t % 2 == (0 if self.released else 1):
                    perturbed = perturbed.flip(3)
                logits = classifier.forward(perturbed)
                scores = logits if self.reward == "logit" else classifier.confidence(logits)
                misfit = (masks - ideal_step(masks.detach(), ones)).square().mean((1, 2))  # R_a, (R,)
                objective = scores.gather(1, target[:, None])[:, 0] - self.penalty * self.penalty_growth**t * misfit
                (gradient,) = torch.autograd.grad(objective.sum(), [nodes])
            velocity = gradient if velocity is None else gradient.lerp(velocity, self.momentum)
            nodes = (nodes.detach() + self.learning_rate * velocity).clamp(0, 1)
        return (masks.detach() if self.released else mask(nodes))[mask.inside]
