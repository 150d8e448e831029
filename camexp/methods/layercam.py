"""LayerCAM (Jiang et al., IEEE TIP 2021, eq. 6 to 8)."""

from dataclasses import dataclass

from torch import Tensor

from camexp.methods.base import upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class LayerCAM:
    """Activations, each weighted by its own gradient where that is positive.

        M = ReLU( sum_k ReLU(g^k) * A^k ),   g = dy_c / dA

    One weight per position instead of one per channel, so that shallow layers give usable maps, too.

    Cost: as Grad-CAM.

    Parameters
    ----------
    layer: module path; None for the model's CAM layer.
    """

    layer: str | None = None

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer
        activation, gradient = classifier.activations_and_gradients(images, pairs, layer)
        cam = (gradient.relu() * activation).sum(1).relu()  # (P, h, w)
        return upsample(cam, images.shape[2:])
