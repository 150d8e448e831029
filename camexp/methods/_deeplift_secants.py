"""Rises of nonlinear functions as multiplier times change: what DeepLIFT's two nonlinear rules are made of."""

from collections.abc import Callable

import torch
from torch import Tensor

NEGLIGIBLE = 1e-6
"""A change of less than this share of the value is taken for rounding."""

Secant = Callable[[Tensor, Tensor, Tensor], Tensor]
"""secant(x, change, slack) of a function f: f(x + change) - f(x), written as multiplier * change with a constant
multiplier; what is not above `slack` is rounding."""


def settle(values: Tensor, slack: Tensor) -> Tensor:
    """The values, but exactly 0 where that is within the slack; derivatives stay.

    Units that are off, and parts that nothing contributes to, must not differ by rounding.
    """
    return values - values.detach().where(values.abs() <= slack, 0.0)


def multiplier(rise: Tensor, change: Tensor, slack: Tensor, slope: Tensor | float) -> Tensor:
    """rise / change, or the slope where the change is negligible, as the paper advises; it overwrites the rise."""
    return torch.where(change.abs() > slack, rise.div_(change), slope)  # what is not taken may be infinite


def elementwise_secant(function: Callable[[Tensor], Tensor]) -> Secant:
    """Of a function of single values."""

    def secant(x: Tensor, change: Tensor, slack: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            start = function(point)
            (slope,) = torch.autograd.grad(start.sum(), point)
        with torch.no_grad():
            rise = function(x + change).sub_(start)
            m = multiplier(rise, change, slack, slope)
        return m * change

    return secant


def max_pool_secant(pool: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Secant:
    """Of max-pooling, `pool(x)` = (maxima, their flat positions in the plane).

    The rise of a window's maximum is the work of the input that holds the larger of the two maxima, before or after:
    it has itself risen, or fallen, at least as much, so that its multiplier is in [0,1]. Of several such, as in a
    constant reference, or among units that are all off, it is the one that holds the other maximum too.
    """

    def at(values: Tensor, positions: Tensor) -> Tensor:
        return values.flatten(2).gather(2, positions.flatten(2)).view_as(positions)

    def secant(x: Tensor, change: Tensor, slack: Tensor) -> Tensor:
        with torch.no_grad():
            x = x.expand_as(change)
            y = settle(x + change, slack)
            (before, first), (after, second), (slack, _) = pool(x), pool(y), pool(slack)
            rises = (after > before) & (at(y, first) < after - slack)
            stays = (after <= before) & (at(x, second) >= before - slack)
            winner = torch.where(rises | stays, second, first)
        moved = at(change, winner)  # (P, K, h, w)
        with torch.no_grad():
            m = multiplier(after - before, moved, slack, 1.0)
        return m * moved

    return secant
