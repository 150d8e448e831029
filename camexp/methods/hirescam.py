"""HiResCAM (Draelos and Carin, 2020, arXiv 2011.08891)."""

from dataclasses import dataclass

from torch import Tensor

from camexp.methods.base import upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class HiResCAM:
    """Activations times gradients, position by position, summed over the channels.

        M = sum_k g^k * A^k,   g = dy_c / dA

    The paper's claim of faithfulness is about this sum: where one linear layer follows, sum_ij M = y_c - b_c. It
    holds only without a ReLU, which is therefore off by default; public implementations apply one.

    Cost: as Grad-CAM.

    Parameters
    ----------
    layer: module path; None for the model's CAM layer.
    relu: cut M at 0.
    """

    layer: str | None = None
    relu: bool = False

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer
        activation, gradient = classifier.activations_and_gradients(images, pairs, layer)
        cam = (gradient * activation).sum(1)  # (P, h, w)
        return upsample(cam.relu() if self.relu else cam, images.shape[2:])
