"""Guided Grad-CAM (Selvaraju et al., ICCV 2017, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.methods.gradcam import gradcam
from camexp.methods.guided_backprop import guided_relus
from camexp.methods.reduce import OF_GRADIENTS, REDUCTIONS, check_reduce
from camexp.models.backward import by_class
from camexp.models.classifier import Classifier, of_layers, require_maps
from camexp.pairs import Pairs


@dataclass(frozen=True)
class GuidedGradCAM:
    """Guided backpropagation, which is fine but not specific to the class, times Grad-CAM, which is both in turn.

        M_ij = max_k | R^0_kij | L_ij

    R^0 is what guided backpropagation leaves at the image's colour channel k, L Grad-CAM's map (see
    `guided_backprop` and `gradcam`), enlarged bilinearly to the image.

    Cost: one forward per image; per pair one backward to the image, and one to the layer. Both start from the same
    forward pass.

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
        layer = self.layer or classifier.cam_layer

        def work(image: Tensor, target: Tensor) -> list[Tensor]:
            inputs, found = images[image].detach().requires_grad_(), dict[str, Tensor]()

            def keep(name: str, output: Tensor) -> Tensor:
                require_maps(name, output, found)
                found[name] = output
                return output.clone()  # what follows may change its input in place

            with guided_relus(classifier.network) as guide, classifier.hooks([layer], keep), torch.enable_grad():
                logits = classifier.forward(inputs)
            guide.on = False
            (activation,) = of_layers([layer], found)
            plain = [gradient for (gradient,) in by_class(logits, target, [activation], keep=True)]
            guide.on = True
            guided = [gradient for (gradient,) in by_class(logits, target, [inputs])]
            cams = [gradcam(activation.detach(), gradient, images.shape[2:]) for gradient in plain]  # (n, H, W) each
            return [torch.stack(guided, 1) * torch.stack(cams, 1)[:, :, None]]

        (attributions,) = classifier.of_images(pairs, work)
        return attributions
