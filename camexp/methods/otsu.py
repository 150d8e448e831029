"""Otsu's threshold (1979) for a batch of maps in [0,1]."""

import torch
from torch import Tensor

BINS = 256


def _levels(maps: Tensor) -> Tensor:
    """Maps (P,H,W) in [0,1] as the index of their histogram bin, 0..255."""
    return (maps * BINS).round().clamp(0, BINS - 1).long()


def _histogram(maps: Tensor) -> Tensor:
    """Counts (P,256) of the levels of maps (P,H,W), float64."""
    levels = _levels(maps).flatten(1)
    counts = torch.zeros(len(maps), BINS, dtype=torch.float64, device=maps.device)
    return counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))


def otsu_level(maps: Tensor) -> Tensor:
    """The first level (P,) of the upper class: it maximises w0 w1 (u0 - u1)^2, the variance between classes.

    w0, w1 are the counts and u0, u1 the mean levels of the pixels below the level and of those from it on. The
    lowest such level is taken; 0 for a constant map.
    """
    counts = _histogram(maps)
    value = torch.arange(BINS, dtype=torch.float64, device=maps.device)
    below = counts.cumsum(1) - counts  # w0 for every level
    mass_below = (counts * value).cumsum(1) - counts * value
    above = counts.sum(1, keepdim=True) - below
    mass_above = (counts * value).sum(1, keepdim=True) - mass_below
    both = (below > 0) & (above > 0)
    difference = mass_below / below.where(both, 1.0) - mass_above / above.where(both, 1.0)
    between = torch.where(both, below * above * difference**2, 0.0)
    return between.argmax(1)


def hard_mask(maps: Tensor) -> Tensor:
    """1 on the upper of Otsu's two classes and 0 on the lower, (P,H,W) float32."""
    return (_levels(maps) >= otsu_level(maps)[:, None, None]).float()


def soft_mask(maps: Tensor, slope: float = 100.0, raised: float = 1.5, share: float = 0.1) -> Tensor:
    """Logistic step (P,H,W) of the given slope at Otsu's threshold; 1 for a constant map, as of `hard_mask`.

    The threshold is multiplied by `raised` when fewer than `share` of the pixels lie above the product: what
    the authors' lab code does for maps with a small bright spot.
    """
    level = otsu_level(maps)
    higher = (level * raised).round()
    above = (_levels(maps) >= higher[:, None, None]).flatten(1).double().mean(1)
    threshold = torch.where(above < share, level * raised, level.double()).to(maps.dtype) / BINS
    step = torch.sigmoid(slope * (maps - threshold[:, None, None]))
    constant = maps.amax((1, 2)) == maps.amin((1, 2))
    return step.masked_fill(constant[:, None, None], 1.0)
