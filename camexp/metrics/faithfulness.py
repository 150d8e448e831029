"""Metrics against the model: Drop, Increase (Chattopadhay et al., 2018, on the top pixels as in SISE), Average Gain."""

import torch
from torch import Tensor

from camexp.ranking import top, value_at_rank


def top_pixels(maps: Tensor, share: float = 0.15, rule: str = "strict") -> Tensor:
    """The pixels (P,H,W) bool of each map (P,H,W) that are kept.

    Parameters
    ----------
    share: share of the pixels, in (0,1).
    rule: "strict" keeps the pixels strictly above the value at rank int(share H W) (counted from 0) of the
        descending order, as the released code does, so ties keep fewer; "exact" keeps int(share H W) pixels, ties
        by position.

    Raises
    ------
    ValueError: for another rule.
    """
    values = maps.flatten(1)
    rank = torch.full((len(maps),), int(share * values.shape[1]), device=maps.device)
    if rule == "strict":
        return maps > value_at_rank(values, rank)[..., None]
    if rule == "exact":
        return top(values, rank).view_as(maps)
    raise ValueError(f"rule must be strict or exact, not {rule!r}")


def drop(before: Tensor, after: Tensor) -> Tensor:
    """max(0, p - q) / p for confidences p before and q after masking, (P,); 0 where p <= 0."""
    positive = before > 0
    return ((before - after).clamp(min=0).where(positive, 0.0) / before.where(positive, 1.0)).double()


def increase(before: Tensor, after: Tensor) -> Tensor:
    """1 where the confidence rose, q > p, otherwise 0, (P,)."""
    return (after > before).double()


def average_gain(before: Tensor, after: Tensor) -> Tensor:
    """max(0, q - p) / (1 - p), the rise as a share of the possible one, (P,); 0 where p >= 1.

    The counterpart of `drop` (Zhang et al., Opti-CAM, 2023); it weighs a rise by its size, where `increase` counts it.
    """
    below = before < 1
    return ((after - before).clamp(min=0).where(below, 0.0) / (1 - before).where(below, 1.0)).double()
