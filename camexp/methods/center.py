"""Control: a Gaussian in the middle of the image. Photographers centre things, so it beats some methods."""

from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class Center:
    """M(y,x) = exp( -(u^2 + v^2) / (2 sigma^2) ), u and v the distances from the centre in image sides, (P,H,W).

    Cost: none.

    Parameters
    ----------
    sigma: standard deviation as a share of the image's sides.

    Raises
    ------
    CamexpError: unless sigma > 0.
    """

    sigma: float = 0.15

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise CamexpError(f"method.sigma of center must be positive, not {self.sigma}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        height, width = images.shape[2:]
        v = (torch.arange(height, device=images.device) + 0.5) / height - 0.5
        u = (torch.arange(width, device=images.device) + 0.5) / width - 0.5
        gaussian = torch.exp(-(v[:, None] ** 2 + u**2) / (2 * self.sigma**2))
        return gaussian.expand(len(pairs), height, width).contiguous()
