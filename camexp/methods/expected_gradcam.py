"""Expected Grad-CAM, a reconstruction (after Buono et al., 2024, arXiv 2406.01274)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Size, Tensor

from camexp.errors import CamexpError
from camexp.methods.base import upsample
from camexp.methods.blur import gaussian_blur
from camexp.methods.smooth_gradcam_pp import gaussian_noise, input_range
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs
from camexp.seeding import torch_generator

BLUR = 0.1
"""Standard deviation of the blurred reference's kernel as a share of the shorter side."""


@dataclass(frozen=True)
class Reference:
    """A distribution of references, I' = centre + range * offset, range = largest minus smallest fed value of I.

    Attributes
    ----------
    centre: (B,3,H,W) of images (B,3,H,W) and the fill (3,1,1).
    offset: random (3,H,W) of a size, the method's sigma and a generator; None where I' is fixed.
    """

    centre: Callable[[Tensor, Tensor], Tensor]
    offset: Callable[[Size, float, Generator], Tensor] | None = None


REFERENCES = {
    "black": Reference(lambda images, fill: fill.expand_as(images)),
    "noise": Reference(
        lambda images, fill: fill.expand_as(images),
        lambda size, sigma, generator: sigma * torch.randn(size, generator=generator),
    ),
    "blur": Reference(lambda images, fill: gaussian_blur(images, BLUR * min(images.shape[2:]))),
    "uniform": Reference(
        lambda images, fill: images.amin((1, 2, 3), keepdim=True).expand_as(images),
        lambda size, sigma, generator: torch.rand(size, generator=generator),
    ),
}
"""The distributions D by the name that `method.reference` gives."""


@dataclass(frozen=True)
class ExpectedGradCAM:
    """Grad-CAM with weights in expectation over references, paths from them, and noise. A *reconstruction*.

        M = ReLU( sum_k w_k A^k(I) )
        w_k = E[ sum_ij g^k(I' + a (I - I') + e)_ij (A^k(I) - A^k(I'))_ij ]
        I' ~ D,   a ~ U(0,1),   e ~ N(0, sigma^2),   g = dy_c / dA

    The authors have released no code. What is public says: only Grad-CAM's weights are replaced, by the smoothed
    expectation of the perturbed integrated gradients, with references drawn from a distribution D, kernel smoothing
    in the input, and the difference from the reference. The formula above is the plainest that fits; report its
    numbers as a reconstruction's. The expectation over e smooths g with a Gaussian kernel; sigma = 0 switches
    that off. Draws are seeded by (seed, "expected_gradcam", image id): all classes of an image share them.

    Cost: n forwards per image, one for A(I), and for "difference" one for each A(I'), which is one alone where I'
    is fixed; n backwards through the tail per pair.

    Parameters
    ----------
    samples: n, draws of (I', a, e); the expectation is their mean.
    sigma: standard deviation of the noise as a share of the image's range, its largest fed value minus its
        smallest.
    reference: D, a name of `REFERENCES`: "black", the fed value of a masked-out pixel; "noise", that plus noise
        distributed like e (the noisy baseline of Yeh et al., 2019); "blur", the image under a Gaussian kernel;
        "uniform", every value uniform in the image's range.
    variant: "difference"; or "plain", w_k = E[ mean_ij g^k(...) ], Grad-CAM's weights averaged over the points.
    stratified: draw a once in each of n equal parts of (0,1), in order: unbiased as well, with less variance.
    seed: seed of the draws.
    layer: module path; None for the model's CAM layer.

    Raises
    ------
    CamexpError: for parameters out of range.
    """

    samples: int = 25
    sigma: float = 0.15
    reference: str = "noise"
    variant: str = "difference"
    stratified: bool = False
    seed: int = 0
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise CamexpError(f"method.samples of expected_gradcam must be at least 1, not {self.samples}")
        if self.sigma < 0:
            raise CamexpError(f"method.sigma of expected_gradcam must be at least 0, not {self.sigma}")
        for name, allowed in {"reference": REFERENCES, "variant": ("difference", "plain")}.items():
            value = getattr(self, name)
            if value not in allowed:
                raise CamexpError(
                    f"method.{name} of expected_gradcam must be one of {', '.join(allowed)}, not {value!r}"
                )

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer
        activation = classifier.activations(images, [layer])[0][pairs.image]  # (P, K, h, w)
        weight = self.weights(classifier, images, pairs, layer, activation)  # (P, K)
        cam = torch.einsum("pk,pkhw->phw", weight, activation).relu()
        return upsample(cam, images.shape[2:])

    def weights(self, classifier: Classifier, images: Tensor, pairs: Pairs, layer: str, activation: Tensor) -> Tensor:
        """w (P,K) for activations A(I) (P,K,h,w)."""
        draws = _Draws(self, images, classifier.fill, pairs.image_ids)
        total = activation.new_zeros(activation.shape[:2])
        at_reference: Tensor | None = None
        at_once = classifier.copies_at_once(len(images))
        for start in range(0, self.samples, at_once):
            samples = range(start, min(start + at_once, self.samples))
            reference, points = draws.take(samples)  # (T, B, 3, H, W) each; one reference where it is fixed
            _, gradient = classifier.activations_and_gradients(points.flatten(0, 1), pairs.tile(len(samples)), layer)
            gradient = gradient.unflatten(0, (len(samples), -1))  # (T, P, K, h, w)
            if self.variant == "plain":
                total += gradient.mean((3, 4)).sum(0)
                continue
            if at_reference is None or draws.reference.offset is not None:
                found = classifier.activations(reference.flatten(0, 1), [layer])[0]
                at_reference = found.unflatten(0, reference.shape[:2])[:, pairs.image]
            total += (gradient * (activation - at_reference)).sum((0, 3, 4))
        return total / self.samples


class _Draws:
    """The method's draws for a batch of images (B,3,H,W), in order, from one generator per image."""

    def __init__(self, method: ExpectedGradCAM, images: Tensor, fill: Tensor, image_ids: Sequence[str]):
        self.method, self.images, self.reference = method, images, REFERENCES[method.reference]
        self.generators = [torch_generator(method.seed, "expected_gradcam", image_id) for image_id in image_ids]
        self.centre, self.extent = self.reference.centre(images, fill), input_range(images)

    def take(self, samples: range) -> tuple[Tensor, Tensor]:
        """References I' (T,B,3,H,W), or (1,B,3,H,W) where I' is fixed, and points I' + a (I - I') + e (T,B,3,H,W)."""
        drawn = [self._one(s) for s in samples]
        reference, points = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        return reference if self.reference.offset else reference[:1], points

    def _one(self, sample: int) -> tuple[Tensor, Tensor]:
        alpha = torch.stack([torch.rand(1, 1, 1, generator=g) for g in self.generators]).to(self.images.device)
        if self.method.stratified:
            alpha = (sample + alpha) / self.method.samples
        reference = self.centre
        if self.reference.offset:
            size, sigma = self.images.shape[1:], self.method.sigma
            offsets = torch.stack([self.reference.offset(size, sigma, g) for g in self.generators])
            reference = reference + self.extent * offsets.to(reference.device)
        noise = self.method.sigma * self.extent * gaussian_noise(self.generators, self.images)
        return reference, reference + alpha * (self.images - reference) + noise
