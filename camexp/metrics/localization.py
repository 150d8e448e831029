"""Metrics against ground truth: EBPG, Bbox and mIoU.

All take maps (P,H,W) float and masks (P,H,W) bool and return one value in [0,1] per pair, (P,).
Where places in a ranking are shared by equal values, each of them gets its expected share under random order
(`ties="expected"`), so that a constant map scores the object's area and no corner of the image is favoured;
`ties="stable"` fills them from the top left.
"""

import torch
from torch import Tensor

from camexp.ranking import largest, top


def scale(maps: Tensor, scaling: str = "minmax") -> Tensor:
    """S of maps (P,H,W): "minmax" brings each to [0,1] by minimum and maximum, "clip" cuts at 0 only.

    A map that is constant (or not positive anywhere, for "clip") becomes all ones.

    Raises
    ------
    ValueError: for another scaling.
    """
    if scaling == "minmax":
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        extent = high - low
        return torch.where(extent > 0, (maps - low) / extent.where(extent > 0, 1.0), 1.0)
    if scaling == "clip":
        positive = maps.clamp(min=0)
        return torch.where(positive.amax((1, 2), keepdim=True) > 0, positive, 1.0)
    raise ValueError(f"scaling must be minmax or clip, not {scaling!r}")


def ebpg(maps: Tensor, masks: Tensor, scaling: str = "minmax") -> Tensor:
    """Energy-based pointing game: sum(S G) / sum(S) (Wang et al., Score-CAM, 2020)."""
    energy = scale(maps, scaling).double()
    return energy.where(masks, 0).sum((1, 2)) / energy.sum((1, 2))


def bbox(maps: Tensor, masks: Tensor, ties: str = "expected") -> Tensor:
    """Share of the top N pixels that lie in G, N = number of pixels of G (Schulz et al., 2020); 0 if G is empty."""
    size = masks.sum((1, 2))
    return top_hits(maps, masks, size, ties) / size.clamp(min=1)


def miou(maps: Tensor, masks: Tensor, share: float = 0.2, ties: str = "expected") -> Tensor:
    """Intersection over union of the top `share` of the pixels with G; averaged over pairs it is the mIoU.

    The top set has int(share H W) pixels.
    """
    count = int(share * maps[0].numel()) if len(maps) else 0
    counts = torch.full((len(maps),), count, device=maps.device)
    hits = top_hits(maps, masks, counts, ties)
    return hits / (counts + masks.sum((1, 2)) - hits).clamp(min=1)


def top_hits(maps: Tensor, masks: Tensor, counts: Tensor, ties: str = "expected") -> Tensor:
    """How many of the `counts` (P,) largest pixels of each map lie in its mask, (P,) float64.

    Raises
    ------
    ValueError: for ties other than "expected" and "stable".
    """
    values, truth = maps.flatten(1), masks.flatten(1)
    if ties == "stable":
        return (top(values, counts) & truth).sum(1).double()
    if ties != "expected":
        raise ValueError(f"ties must be expected or stable, not {ties!r}")
    above, level, places = largest(values, counts)
    return (above & truth).sum(1) + places.double() / level.sum(1) * (level & truth).sum(1)
