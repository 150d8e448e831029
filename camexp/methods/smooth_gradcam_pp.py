"""Smooth Grad-CAM++ (Omeiza et al., 2019, arXiv 1908.01224)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from camexp.errors import CamexpError
from camexp.methods.base import upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs
from camexp.seeding import torch_generator

VARIANTS = {"plus_plus": 2, "printed": 1}
"""The power of g in the numerator of alpha."""


@dataclass(frozen=True)
class SmoothGradCAMPlusPlus:
    """Grad-CAM++ with the powers of the gradient averaged over noisy copies of the image.

        M = ReLU( sum_k w_k A^k ),   w_k = sum_ij alpha^k_ij ReLU(D1^k_ij)
        alpha^k_ij = D2 / ( 2 D2 + (sum_ab A^k_ab) D3 ),   Dp = 1/n sum_{s=1..n} g(I + e_s)^p,   e_s ~ N(0, sigma^2)

    g = dy_c / dA; A are the activations of the clean image. With sigma = 0 this is Grad-CAM++. Where the
    denominator is 0, alpha = 0. The noise is seeded by (seed, "smooth_gradcam_pp", image id): all classes of an
    image share it.

    Cost: n + 1 forwards per image; n backwards through the tail per pair.

    Parameters
    ----------
    samples: n.
    sigma: standard deviation of the noise as a share of the image's range, its largest fed value minus its
        smallest. (SmoothGrad, from which the noise is taken, advises 0.1 to 0.2.)
    variant: "plus_plus", Grad-CAM++'s numerator D2; or "printed", the numerator D1 that the paper prints, with
        which sigma = 0 is no longer Grad-CAM++.
    seed: seed of the noise.
    layer: module path; None for the model's CAM layer.

    Raises
    ------
    CamexpError: for another variant, samples < 1 or sigma < 0.
    """

    samples: int = 25
    sigma: float = 0.15
    variant: str = "plus_plus"
    seed: int = 0
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise CamexpError(
                f"method.variant of smooth_gradcam_pp must be one of {', '.join(VARIANTS)}, not {self.variant!r}"
            )
        if self.samples < 1:
            raise CamexpError(f"method.samples of smooth_gradcam_pp must be at least 1, not {self.samples}")
        if self.sigma < 0:
            raise CamexpError(f"method.sigma of smooth_gradcam_pp must be at least 0, not {self.sigma}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer
        activation = classifier.activations(images, [layer])[0][pairs.image]  # (P, K, h, w)
        d1, d2, d3 = self.mean_powers(classifier, images, pairs, layer)
        denominator = 2 * d2 + activation.sum((2, 3), keepdim=True) * d3
        numerator = (d1, d2)[VARIANTS[self.variant] - 1]
        alpha = torch.where(denominator != 0, numerator / denominator.where(denominator != 0, 1.0), 0.0)
        weight = (alpha * d1.relu()).sum((2, 3), keepdim=True).to(activation.dtype)  # (P, K, 1, 1)
        cam = (weight * activation).sum(1).relu()  # (P, h, w)
        return upsample(cam, images.shape[2:])

    def mean_powers(self, classifier: Classifier, images: Tensor, pairs: Pairs, layer: str) -> list[Tensor]:
        """D1, D2, D3 (P,K,h,w), in float64: cubes of small gradients underflow in float32."""
        generators = [torch_generator(self.seed, "smooth_gradcam_pp", i) for i in pairs.image_ids]
        scale = self.sigma * input_range(images)
        sums: list[Tensor] = []
        at_once = classifier.copies_at_once(len(images))
        for start in range(0, self.samples, at_once):
            times = min(at_once, self.samples - start)
            noisy = torch.cat([images + scale * gaussian_noise(generators, images) for _ in range(times)])
            _, gradient = classifier.activations_and_gradients(noisy, pairs.tile(times), layer)
            gradient = gradient.double().unflatten(0, (times, -1))  # (T, P, K, h, w)
            powers = [(gradient**p).sum(0) for p in (1, 2, 3)]
            sums = [a + b for a, b in zip(sums, powers, strict=True)] if sums else powers
        return [total / self.samples for total in sums]


def input_range(images: Tensor) -> Tensor:
    """Largest minus smallest fed value of each image (B,3,H,W), (B,1,1,1)."""
    return images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)


def gaussian_noise(generators: Sequence[Generator], images: Tensor) -> Tensor:
    """Standard normal noise (B,3,H,W) for one copy of images (B,3,H,W), from one generator per image."""
    return torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]).to(images.device)
