"""Guided Grad-CAM (Selvaraju et al., ICCV 2017, section 3)."""

from dataclasses import dataclass

from torch import Tensor

from camexp.methods.gradcam import GradCAM
from camexp.methods.guided_backprop import guided_gradients
from camexp.methods.reduce import OF_GRADIENTS, REDUCTIONS, check_reduce
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class GuidedGradCAM:
    """Guided backpropagation, which is fine but not specific to the class, times Grad-CAM, which is both in turn.

        M_ij = max_k | R^0_kij | L_ij

    R^0 is what guided backpropagation leaves at the image's colour channel k, L Grad-CAM's map (see
    `guided_backprop` and `gradcam`), enlarged bilinearly to the image.

    Cost: one forward and one backward per pair, and Grad-CAM's.

    Parameters
    ----------
    layer: module path of Grad-CAM's layer; None for the model's CAM layer.
    reduce: "max" or "sum_abs", as for the vanilla gradient.

    Raises
    ------
    CamexpError: for another reduction, and for a network without `nn.ReLU` modules.
    """

    layer: str | None = None
    reduce: str = "max"

    def __post_init__(self) -> None:
        check_reduce("guided_gradcam", self.reduce, OF_GRADIENTS)

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        return REDUCTIONS[self.reduce](self.attributions(classifier, images, pairs))

    def attributions(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        """R^0 * L (P,3,H,W), signed."""
        cam = GradCAM(self.layer)(classifier, images, pairs)  # (P, H, W)
        return guided_gradients(classifier, images, pairs) * cam[:, None]
