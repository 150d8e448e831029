"""SmoothGrad (Smilkov et al., ICML Workshop 2017, arXiv 1706.03825)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.methods.reduce import OF_GRADIENTS, REDUCTIONS, check_reduce
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs
from camexp.seeding import torch_generator


@dataclass(frozen=True)
class SmoothGrad:
    """Mean of the gradients in noisy copies of the image.

        M_ij = max_k | 1/n sum_{s=1..n} dy_c / dI_kij (I + e_s) |,   e_s ~ N(0, (sigma (max I - min I))^2)

    The mean is over signed gradients, k is the colour channel. The noise is drawn for every value of the image,
    seeded by (seed, "smoothgrad", image id): all classes of an image see the same copies.

    Cost: n forwards per image, n backwards per pair. Memory does not grow with n.

    Parameters
    ----------
    samples: n; 50 in the paper's figures.
    sigma: standard deviation of the noise as a share of the image's range of values; 0.1 to 0.2 in the paper.
    square: mean of squared gradients instead (SmoothGrad-Squared; Hooker et al., NeurIPS 2019).
    reduce: "max" or "sum_abs", as for the vanilla gradient.
    seed: seed of the noise.

    Raises
    ------
    CamexpError: for another reduction, samples < 1 or sigma < 0.
    """

    samples: int = 50
    sigma: float = 0.15
    square: bool = False
    reduce: str = "max"
    seed: int = 0

    def __post_init__(self) -> None:
        check_reduce("smoothgrad", self.reduce, OF_GRADIENTS)
        if self.samples < 1:
            raise CamexpError(f"method.samples of smoothgrad must be at least 1, not {self.samples}")
        if self.sigma < 0:
            raise CamexpError(f"method.sigma of smoothgrad must be at least 0, not {self.sigma}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        return REDUCTIONS[self.reduce](self.attributions(classifier, images, pairs))

    def attributions(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        """Mean gradients, or mean squared gradients, (P,3,H,W)."""
        generators = [torch_generator(self.seed, "smoothgrad", image_id) for image_id in pairs.image_ids]
        deviation = self.sigma * (images.amax((1, 2, 3)) - images.amin((1, 2, 3))).view(-1, 1, 1, 1)  # (B, 1, 1, 1)
        total = torch.zeros_like(images[pairs.image])
        at_once = classifier.copies_at_once(len(images))
        for start in range(0, self.samples, at_once):
            count = min(at_once, self.samples - start)
            copies = torch.stack([images + deviation * self._noise(images, generators) for _ in range(count)])
            gradient = classifier.input_gradients(copies.flatten(0, 1), pairs.tile(count))
            gradient = gradient**2 if self.square else gradient
            total += gradient.unflatten(0, (count, -1)).sum(0)  # (P, 3, H, W)
        return total / self.samples

    @staticmethod
    def _noise(images: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The next noise (B,3,H,W) ~ N(0,1) of every image; one copy at a time, so that chunks draw the same."""
        return torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]).to(images.device)
