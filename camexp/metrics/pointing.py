"""Pointing game (Zhang et al., Excitation Backprop, ECCV 2016): does the map's maximum point at the object?

A hit is a maximum within a tolerance of the ground truth G, measured in pixels of the original image: from the centre
of the maximum's pixel, mapped to the original, to the centre of the nearest original pixel that a pixel of G covers.
In a squashed image a step to the side and a step down have different lengths.
"""

import math

import torch
from torch import Tensor

POINTS = 8192
"""Maxima that are looked at together; it bounds the memory."""


def pointing(maps: Tensor, masks: Tensor, pixel: Tensor, tolerance: float = 15.0, ties: str = "expected") -> Tensor:
    """1 where a map's maximum lies at most `tolerance` from its mask, otherwise 0, (P,) float64.

    Parameters
    ----------
    maps: (P,H,W); masks: (P,H,W) bool. An empty mask is never hit.
    pixel: (P,2), width and height of a pixel of the map in pixels of the original image.
    tolerance: Euclidean distance in pixels of the original image.
    ties: "expected" gives the share of equal maxima that hit, so that a constant map scores the share of the
        pixels that would hit; "first" looks only at the first of them, row by row.

    Raises
    ------
    ValueError: for other ties.
    """
    if not len(maps):
        return torch.zeros(0, dtype=torch.float64, device=maps.device)
    top = maxima(maps, ties)
    points = torch.nonzero(top)  # (N, 3): pair, y, x
    gap = row_gap(masks)
    reach = min(maps.shape[1] - 1, math.ceil(tolerance / float(pixel[:, 1].min()) + 0.5))  # rows
    near = torch.cat([_near(gap, pixel, tolerance, reach, some) for some in points.split(POINTS)])
    hits = torch.zeros(len(maps), dtype=torch.float64, device=maps.device).index_add_(0, points[:, 0], near.double())
    return hits / top.flatten(1).sum(1)


def maxima(maps: Tensor, ties: str = "expected") -> Tensor:
    """Where maps (P,H,W) have their maximum, (P,H,W) bool; with ties "first", one pixel per map."""
    top = maps == maps.amax((1, 2), keepdim=True)
    if ties == "expected":
        return top
    if ties == "first":
        flat = top.flatten(1)
        return (flat & (flat.cumsum(1) == 1)).view_as(maps)
    raise ValueError(f"ties must be expected or first, not {ties!r}")


def row_gap(masks: Tensor) -> Tensor:
    """Columns from each pixel to the nearest pixel of its mask in that row, (P,H,W) float32; inf if there is none."""
    column = torch.arange(masks.shape[2], dtype=torch.float32, device=masks.device)
    left = torch.where(masks, column, -torch.inf).cummax(2).values
    right = torch.where(masks, column, torch.inf).flip(2).cummin(2).values.flip(2)
    return torch.minimum(column - left, right - column)


def _near(gap: Tensor, pixel: Tensor, tolerance: float, reach: int, points: Tensor) -> Tensor:
    """Whether a mask's pixel lies within the tolerance of each of `points` (N,3), (N,) bool; by rows around them."""
    pair, y, x = points.T[:, :, None]  # (N, 1) each
    step = torch.arange(-reach, reach + 1, device=gap.device)
    row = (y + step).clamp(0, gap.shape[1] - 1)  # (N, rows); beyond the border, border rows taken for farther ones
    across, down = _distance(gap[pair, row, x], pixel[pair, 0]), _distance(step.abs(), pixel[pair, 1])
    return (across**2 + down**2 <= tolerance**2).any(1)


def _distance(steps: Tensor, side: Tensor) -> Tensor:
    """Along one axis: to the nearest original pixel in the pixel `steps` away, if a pixel is `side` of them long."""
    return (steps * side - (side - 1).clamp(min=0) / 2).clamp(min=0)
