"""Gaussian blur."""

import math

import torch
from torch import Tensor


def gaussian_blur(images: Tensor, sigma: float, released: bool = False) -> Tensor:
    """Images (..., H, W) convolved with a Gaussian of `sigma` pixels, cut at 3 sigma; border pixels are repeated.

    sigma = 0 leaves them as they are. `released`: cut at 4 sigma, and beyond the border everything is 0, as in the
    code of extremal perturbations.
    """
    if sigma == 0:
        return images
    rows, columns = (_blur_matrix(side, sigma, released).to(images) for side in images.shape[-2:])
    return rows @ images @ columns.T


def _blur_matrix(side: int, sigma: float, released: bool) -> Tensor:
    """The blur of one axis as a matrix (side, side); weights of pixels beyond the border count for the border's."""
    radius = math.ceil((4 if released else 3) * sigma)
    offset = torch.arange(-radius, radius + 1)
    weight = torch.exp(-(offset.double() ** 2) / (2 * sigma**2))
    source = torch.arange(side)[:, None] + offset  # (side, offsets)
    weights = (weight / weight.sum()).expand(side, -1)
    if released:
        weights = weights * ((source >= 0) & (source < side))
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, source.clamp(0, side - 1), weights)
