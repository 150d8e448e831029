"""Score-CAM (Wang et al., CVPR Workshops 2020, arXiv 1910.01279, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.methods.base import scale_to_unit, upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class ScoreCAM:
    """Channels of the CAM layer, weighted by the confidence in the image masked with them.

        M = ReLU( sum_k w_k A^k ),   w_k = Psi_c(I * m_k),   m_k = A^k enlarged bilinearly and scaled to [0,1]

    This is the authors' code. The paper's text subtracts the confidence in a black image, w_k = Psi_c(I * m_k) -
    Psi_c(I_b), and its algorithm takes the softmax of the weights over the channels, in which that constant
    cancels: `baseline` and `normalise`. Constant channels are no masks; their weight is 0.

    Cost: one forward per image and one per (image, channel); all classes of an image share them. Memory does not
    grow with the number of masks.

    Parameters
    ----------
    normalise: "none" (authors' code) or "softmax" over the channels that are masks.
    baseline: subtract the confidence in the fully masked image, `classifier.fill` at every pixel.
    layer: module path; None for the model's CAM layer.

    Raises
    ------
    CamexpError: for another normalise.
    """

    normalise: str = "none"
    baseline: bool = False
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.normalise not in ("none", "softmax"):
            raise CamexpError(f"method.normalise of scorecam must be none or softmax, not {self.normalise!r}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer
        activation = classifier.activations(images, [layer])[0]  # (B, K, h, w)
        is_mask = activation.amax((2, 3)) > activation.amin((2, 3))  # (B, K)
        weight = masked_confidence(classifier, images, pairs, activation, is_mask)  # (P, K)
        if self.baseline:
            black = classifier.fill.expand(1, 3, *images.shape[2:])
            weight = weight - classifier.scores(black)[0, pairs.target, None]
        if self.normalise == "softmax":
            weight = weight.where(is_mask[pairs.image], -torch.inf).softmax(1)
        weight = weight.where(is_mask[pairs.image], 0.0)  # also where no channel is a mask
        cam = torch.einsum("pk,pkhw->phw", weight, activation[pairs.image]).relu()
        return upsample(cam, images.shape[2:])


def masked_confidence(
    classifier: Classifier, images: Tensor, pairs: Pairs, activation: Tensor, is_mask: Tensor
) -> Tensor:
    """Psi (P,K) of the pair's class in the image masked with each channel; 0 for channels that are no masks.

    Parameters
    ----------
    activation: (B,K,h,w), the channels; is_mask: (B,K) bool.
    """
    height, width = images.shape[2:]
    image, channel = torch.nonzero(is_mask, as_tuple=True)  # (R,) each: the masked passes to make
    confidence = images.new_zeros(len(pairs), activation.shape[1])

    def work(rows: slice) -> None:
        i, k = image[rows], channel[rows]
        mask = scale_to_unit(upsample(activation[i, k], (height, width)))  # (r, H, W)
        masked = classifier.masked(images[i], mask[:, None])
        scores = classifier.scores(masked)  # (r, C)
        pair, row = torch.nonzero(pairs.image[:, None] == i, as_tuple=True)
        confidence[pair, k[row]] = scores[row, pairs.target[pair]]

    classifier.in_chunks(work, len(image))
    return confidence
