"""Control: an edge detector. It knows the image but neither the network nor the class."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from camexp.errors import CamexpError
from camexp.methods.blur import gaussian_blur
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class Edges:
    """M = G * sqrt( (S_x I)^2 + (S_y I)^2 ), (P,H,W): the gradient's magnitude by the Sobel operator.

    I is the grey image, the mean of the fed channels, with border pixels repeated;
    S_x = (1,2,1)^T (-1,0,1), S_y = S_x^T. G is a Gaussian, or nothing.

    Cost: none.

    Parameters
    ----------
    sigma: standard deviation of G in pixels; 0, the default, leaves the edges as thin as they are.

    Raises
    ------
    CamexpError: unless sigma >= 0.
    """

    sigma: float = 0.0

    def __post_init__(self) -> None:
        if self.sigma < 0:
            raise CamexpError(f"method.sigma of edges must be at least 0, not {self.sigma}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        return gaussian_blur(sobel_magnitude(images.mean(1)), self.sigma)[pairs.image]


def sobel_magnitude(grey: Tensor) -> Tensor:
    """Magnitude (B,H,W) of the Sobel gradient of grey images (B,H,W), border pixels repeated."""
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    # differences first: they are exactly 0 where the image is constant
    across, down = padded[:, :, 2:] - padded[:, :, :-2], padded[:, 2:] - padded[:, :-2]
    horizontal = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    vertical = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return torch.hypot(horizontal, vertical)
