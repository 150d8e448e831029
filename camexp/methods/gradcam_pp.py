"""Grad-CAM++ (Chattopadhay et al., WACV 2018, eq. 10 and 19)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.methods.base import upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class GradCAMPlusPlus:
    """Channels weighted by positive gradients, each position weighted by its share of the evidence.

        M = ReLU( sum_k w_k A^k ),   w_k = sum_ij alpha^k_ij ReLU(g^k_ij)
        alpha^k_ij = g^2 / ( 2 g^2 + (sum_ab A^k_ab) g^3 ),   g = dy_c / dA

    This is the closed form for the score exp(y): its second and third derivatives are powers of g, and the
    common factor exp(y) cancels in alpha and in the scaling of the map. (Of the logit itself a ReLU network has
    no second derivative.) Where g = 0, alpha = 0.

    Cost: as Grad-CAM.

    Parameters
    ----------
    layer: module path; None for the model's CAM layer.
    variant: "paper"; or "normalised", as the authors' TensorFlow code: alpha divided by its sum over the
        positions of the channel where the gradient is positive.

    Raises
    ------
    CamexpError: for another variant.
    """

    layer: str | None = None
    variant: str = "paper"

    def __post_init__(self) -> None:
        if self.variant not in ("paper", "normalised"):
            raise CamexpError(f"method.variant of gradcam_pp must be paper or normalised, not {self.variant!r}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer
        activation, gradient = classifier.activations_and_gradients(images, pairs, layer)
        alpha = plus_plus_alpha(activation, gradient)
        if self.variant == "normalised":
            total = alpha.where(gradient > 0, 0.0).sum((2, 3), keepdim=True)
            alpha = alpha / total.where(total != 0, 1.0)
        weight = (alpha * gradient.relu()).sum((2, 3), keepdim=True)  # (P, K, 1, 1)
        cam = (weight * activation).sum(1).relu()  # (P, h, w)
        return upsample(cam, images.shape[2:])


def plus_plus_alpha(activation: Tensor, gradient: Tensor) -> Tensor:
    """alpha (P,K,h,w) of A and g (P,K,h,w): 1 / (2 + g sum A), and 0 where g or the denominator is 0.

    The fraction g^2 / (2 g^2 + s g^3) is reduced by g^2 first: the powers of a small gradient underflow.
    """
    denominator = 2 + gradient * activation.sum((2, 3), keepdim=True)
    defined = (gradient != 0) & (denominator != 0)
    return torch.where(defined, 1 / denominator.where(defined, 1.0), 0.0)
