"""Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1 and 2)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from camexp.methods.base import upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class GradCAM:
    """Channels of the CAM layer, weighted by the mean gradient of the class's logit.

        M = ReLU( sum_k w_k A^k ),   w_k = mean_ij dy_c / dA^k_ij

    A (P,K,h,w) are the layer's activations; M is enlarged bilinearly from (h,w) to (H,W).

    Cost: one forward per image; per pair one backward through the tail behind the layer.

    Parameters
    ----------
    layer: module path; None for the model's CAM layer.
    """

    layer: str | None = None

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer
        activation, gradient = classifier.activations_and_gradients(images, pairs, layer)
        return gradcam(activation, gradient, images.shape[2:])


def gradcam(activation: Tensor, gradient: Tensor, size: Sequence[int]) -> Tensor:
    """M (P,H,W) of activations A and gradients dy_c/dA (P,K,h,w)."""
    weight = gradient.mean((2, 3), keepdim=True)  # (P, K, 1, 1)
    cam = (weight * activation).sum(1).relu()  # (P, h, w)
    return upsample(cam, size)
