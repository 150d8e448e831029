"""Integrated Grad-CAM (Sattarzadeh et al., ICASSP 2021, arXiv 2102.07805, eq. 5 and 6)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.methods.base import upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class IntegratedGradCAM:
    """Grad-CAM's terms integrated along the straight path from a black image I' to the image I.

        M = sum_{t=1..m} ReLU( 1/m sum_k [ sum_ij dy_c / dA^k_ij (I_t) ] ( A^k(I_t) - A^k(I') ) )
        I_t = I' + t/m (I - I')

    I' is the fed value of a masked-out pixel, `classifier.fill`: the zero of the fed tensor by default.

    Cost: m forwards per image (one more for I'); m backwards through the tail per pair.

    Parameters
    ----------
    m: number of points on the path; 20 in the paper's tables.
    variant: "paper"; or "released", as the authors' notebook: points t = 0..m-1, A(I') not subtracted,
        gradients averaged over positions, ReLU at each step, sum.
    layer: module path; None for the model's CAM layer (the notebook's `layer4.2` has the output of `layer4`).

    Raises
    ------
    CamexpError: for another variant, or m < 1.
    """

    m: int = 20
    variant: str = "paper"
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.variant not in ("paper", "released"):
            raise CamexpError(f"method.variant of igcam must be paper or released, not {self.variant!r}")
        if self.m < 1:
            raise CamexpError(f"method.m of igcam must be at least 1, not {self.m}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer
        paper = self.variant == "paper"
        black = classifier.fill.expand(1, 3, *images.shape[2:])  # I'
        reference = classifier.activations(black, [layer])[0] if paper else 0.0  # A(I'), (1, K, h, w)
        points = torch.arange(self.m, device=images.device) + (1 if paper else 0)
        total: Tensor | float = 0.0
        at_once = classifier.copies_at_once(len(images))
        for t in points.split(at_once):
            alpha = (t / self.m).view(-1, 1, 1, 1, 1)
            path = (black + alpha * (images - black)).flatten(0, 1)  # (T * B, 3, H, W)
            activation, gradient = classifier.activations_and_gradients(path, pairs.tile(len(t)), layer)
            weight = (gradient.sum if paper else gradient.mean)((2, 3), keepdim=True)
            step = (weight * (activation - reference)).sum(1).relu()  # (T * P, h, w)
            total = total + step.unflatten(0, (len(t), -1)).sum(0) / (self.m if paper else 1)
        assert isinstance(total, Tensor)
        return upsample(total, images.shape[2:])
