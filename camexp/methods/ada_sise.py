"""Ada-SISE: SISE with an adaptive selection of feature maps (Sudhakar et al., ICASSP 2021, arXiv 2102.07799)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from camexp.methods.otsu import hard_mask
from camexp.methods.sise import SISE


@dataclass(frozen=True)
class AdaSISE(SISE):
    """SISE whose threshold mu is found for every layer and pair instead of being a parameter.

        keep k with alpha_k > 0 and alpha_k / max_k alpha_k in the upper of Otsu's two classes

    Otsu's threshold is that of the positive alpha / max alpha alone, on 256 levels; the others are noise to SISE
    and would draw the threshold down. When all positive alphas fall on one level, all are kept; when none is
    positive, none is.

    Cost: as SISE, with fewer masked forwards: the authors report up to 30 % less time.

    Parameters
    ----------
    fusion, layers: as SISE.
    """

    mu: float = field(default=0.0, init=False, repr=False)  # not a parameter here

    def keep(self, alpha: Tensor) -> Tensor:
        """Which feature maps (P,K) become masks, of their scores alpha (P,K)."""
        kept = torch.zeros_like(alpha, dtype=torch.bool)
        for row, scores in enumerate(alpha):  # the number of positive scores differs
            positive = scores > 0
            if positive.any():
                normalised = scores[positive] / scores.max()
                kept[row, positive] = hard_mask(normalised[None, None])[0, 0] > 0
        return kept
