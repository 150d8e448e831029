"""XGrad-CAM (Fu et al., Axiom-based Grad-CAM, BMVC 2020, arXiv 2008.02312, section 3)."""

from dataclasses import dataclass

from torch import Tensor

from camexp.errors import CamexpError
from camexp.methods.base import upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class XGradCAM:
    """Grad-CAM with gradients averaged in proportion to the activations.

        M = ReLU( sum_k w_k A^k ),   w_k = sum_ij dy_c / dA^k_ij A^k_ij / ( sum_ij A^k_ij + eps )

    The weights follow from two axioms, sensitivity and conservation, as nearly as one weight per channel can.

    Cost: as Grad-CAM.

    Parameters
    ----------
    layer: module path; None for the model's CAM layer.
    eps: keeps channels without activation at weight 0.

    Raises
    ------
    CamexpError: unless eps > 0.
    """

    layer: str | None = None
    eps: float = 1e-7

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise CamexpError(f"method.eps of xgradcam must be positive, not {self.eps}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer
        activation, gradient = classifier.activations_and_gradients(images, pairs, layer)
        total = activation.sum((2, 3), keepdim=True) + self.eps  # (P, K, 1, 1)
        total = total.where(total != 0, self.eps)  # activations of both signs may cancel
        weight = (gradient * activation).sum((2, 3), keepdim=True) / total
        cam = (weight * activation).sum(1).relu()  # (P, h, w)
        return upsample(cam, images.shape[2:])
