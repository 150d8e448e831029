"""SISE: Semantic Input Sampling for Explanation (Sattarzadeh et al., AAAI 2021, arXiv 2010.00672)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.methods.base import scale_to_unit, upsample
from camexp.methods.otsu import hard_mask, soft_mask
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

FUSIONS = {"hard_otsu": hard_mask, "soft_otsu": soft_mask}


@dataclass(frozen=True)
class SISE:
    """Feature maps of five layers as masks, scored by the confidence in the masked image and fused.

    1. Layers: the inputs of the down-sampling layers; A^k are the feature maps of one.
    2. Selection (eq. 2): alpha_k = sum_ij dPsi_c / dA^k_ij; keep k with alpha_k > mu max_k alpha_k, alpha_k > 0.
    3. Visualisation map of a layer (eq. 3): m_k = A^k enlarged bilinearly and scaled to [0,1],
       V(p) = sum_k Psi_c(I * m_k) m_k(p) / sum_p m_k(p), scaled to [0,1].
    4. Fusion, from shallow to deep: e_1 = V_1, e_b = (e_{b-1} + V_b) * Otsu(V_b).

    Psi is the confidence (softmax), not the logit. Its gradient underflows for a saturated network; only signs
    and ratios of alpha matter, so the gradient of the log-odds is used, a positive multiple of it. A layer of
    which no map is kept has V = 0 and leaves e as it is. Constant feature maps are no masks.

    Cost: one forward per image, one backward to the first layer per pair, and one forward per (image, feature map
    that is kept for any of the image's classes): all classes share the masked passes. Memory does not grow with the
    number of masks.

    Parameters
    ----------
    mu: selection threshold in [0,1); 0 in the paper's tables.
    fusion: "hard_otsu" (paper) or "soft_otsu" (the authors' lab code; see `otsu.soft_mask`).
    layers: module paths from shallow to deep, or the name under which the model's config lists them: "sise",
        for VGG16 also "sise_pool_outputs".

    Raises
    ------
    CamexpError: for another fusion, or mu out of range.
    """

    mu: float = 0.0
    fusion: str = "hard_otsu"
    layers: str | Sequence[str] = "sise"

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise CamexpError(f"method.fusion of sise must be one of {', '.join(FUSIONS)}, not {self.fusion!r}")
        if not 0 <= self.mu < 1:
            raise CamexpError(f"method.mu of sise must be in [0, 1), not {self.mu}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layers = classifier.layer_names(self.layers)
        features, alphas = self.features_and_alphas(classifier, images, pairs, layers)
        first, *deeper = (
            visualise(classifier, images, pairs, feature, self.keep(alpha))
            for feature, alpha in zip(features, alphas, strict=True)
        )
        fused = first
        for visualisation in deeper:
            fused = (fused + visualisation) * FUSIONS[self.fusion](visualisation)
        return fused

    def keep(self, alpha: Tensor) -> Tensor:
        """Which feature maps (P,K) become masks, of their scores alpha (P,K)."""
        return (alpha > 0) & (alpha > self.mu * alpha.amax(1, keepdim=True))

    @staticmethod
    def features_and_alphas(
        classifier: Classifier, images: Tensor, pairs: Pairs, layers: Sequence[str]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """A (B,K,h,w) and alpha (P,K) of every layer, alpha up to one positive factor per pair."""
        return classifier.features_and_gradients(
            images, pairs, layers, classifier.log_odds, lambda gradient: gradient.sum((2, 3))
        )


def visualise(classifier: Classifier, images: Tensor, pairs: Pairs, feature: Tensor, keep: Tensor) -> Tensor:
    """One layer's visualisation maps V (P,H,W) in [0,1].

    Parameters
    ----------
    feature: (B,K,h,w), the layer's feature maps.
    keep: (P,K) bool, the maps that a pair uses; those of no pair of an image are not evaluated.
    """
    height, width = images.shape[2:]
    used = images.new_zeros(feature.shape[:2]).index_add_(0, pairs.image, keep.float()) > 0
    used &= feature.amax((2, 3)) > feature.amin((2, 3))
    image, channel = torch.nonzero(used, as_tuple=True)  # (R,) each: the masked passes to make
    total = images.new_zeros(len(pairs), height * width)

    def work(rows: slice) -> None:
        i, k = image[rows], channel[rows]
        mask = scale_to_unit(upsample(feature[i, k], (height, width)))  # (r, H, W)
        masked = classifier.masked(images[i], mask[:, None])
        score = classifier.scores(masked)[:, pairs.target]  # (r, P)
        mine = (i[:, None] == pairs.image) & keep[:, k].T  # (r, P)
        weight = torch.where(mine, score, 0.0) / mask.flatten(1).sum(1, keepdim=True)
        total.addmm_(weight.T, mask.flatten(1))

    classifier.in_chunks(work, len(image))
    return scale_to_unit(total.view(-1, height, width))
