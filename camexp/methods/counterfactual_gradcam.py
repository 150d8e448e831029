"""Counterfactual Grad-CAM (Selvaraju et al., ICCV 2017, section on counterfactual explanations)."""

from dataclasses import dataclass

from torch import Tensor

from camexp.methods.base import upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class CounterfactualGradCAM:
    """Grad-CAM with the gradient negated: what would make the network doubt the class.

        M = ReLU( sum_k w_k A^k ),   w_k = mean_ij -dy_c / dA^k_ij

    The map is bright where removing the concept would raise the class's logit, and 0 where Grad-CAM's is not.

    Cost: as Grad-CAM.

    Parameters
    ----------
    layer: module path; None for the model's CAM layer.
    """

    layer: str | None = None

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer
        activation, gradient = classifier.activations_and_gradients(images, pairs, layer)
        weight = -gradient.mean((2, 3), keepdim=True)  # (P, K, 1, 1)
        cam = (weight * activation).sum(1).relu()  # (P, h, w)
        return upsample(cam, images.shape[2:])
