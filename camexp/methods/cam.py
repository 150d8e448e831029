"""CAM: Class Activation Mapping (Zhou et al., CVPR 2016, eq. 2)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camexp.errors import CamexpError
from camexp.methods.base import upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

TOLERANCE = 1e-2
"""How far logits may lie from head(mean_ij A), as a share of the sum of the absolute terms: half precision passes."""


@dataclass(frozen=True)
class CAM:
    """Channels of the CAM layer, weighted by the class's weights in the linear head.

        M = sum_k w^c_k A^k,   y_c = sum_k w^c_k mean_ij A^k + b_c

    A (P,K,h,w) are the layer's activations; M is enlarged bilinearly from (h,w) to (H,W). As in the paper there is
    no ReLU: where M is negative the image speaks against the class.

    The second equation must hold: between the layer and the logits lie only global average pooling, what does
    nothing in evaluation mode (flatten, dropout), and one linear layer. It is checked on the images at hand.

    Cost: one forward per image.

    Parameters
    ----------
    layer: module path; None for the model's CAM layer.

    Raises
    ------
    CamexpError: when called with a network of another structure.
    """

    layer: str | None = None

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer

        def work(rows: slice) -> tuple[Tensor, Tensor]:
            (activation,), logits = classifier.capture(images[rows], [layer])
            return activation.detach(), logits.detach()

        activation, logits = (torch.cat(p) for p in zip(*classifier.in_chunks(work, len(images)), strict=True))
        weight = linear_head(classifier.network, layer, activation, logits).weight[pairs.target]  # (P, K)
        cam = torch.einsum("pk,pkhw->phw", weight, activation[pairs.image])
        return upsample(cam, images.shape[2:])


def linear_head(network: nn.Module, layer: str, activation: Tensor, logits: Tensor) -> nn.Linear:
    """The linear layer that turns the mean activations into the logits.

    Parameters
    ----------
    activation: (B,K,h,w), output of the layer; logits: (B,C), of the same images.

    Raises
    ------
    CamexpError: if no linear layer of the network does.
    """
    shape = (logits.shape[1], activation.shape[1])  # (C, K)
    for head in network.modules():
        if isinstance(head, nn.Linear) and head.weight.shape == shape and _explains(head, activation, logits):
            return head
    raise CamexpError(
        f"cam needs a network in which layer {layer!r} is followed by global average pooling and one linear layer, "
        f"but the logits are not such a function of its {shape[1]} channels; choose another method (gradcam), or the "
        f"last convolutional stage as method.layer"
    )


def _explains(head: nn.Linear, activation: Tensor, logits: Tensor) -> bool:
    """Whether logits = head(mean_ij A), up to rounding."""
    mean = activation.mean((2, 3))
    bias = torch.zeros_like(logits[0]) if head.bias is None else head.bias
    size = mean.abs() @ head.weight.abs().T + bias.abs()  # of the terms that may cancel
    return bool(((head(mean) - logits).abs() <= TOLERANCE * size).all())
