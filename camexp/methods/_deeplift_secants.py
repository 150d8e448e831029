"""Rises of nonlinear functions as multiplier times change: what DeepLIFT's two nonlinear rules are made of."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

NEGLIGIBLE = 1e-6
"""A change of less than this share of the value is taken for rounding."""


Secant = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""secant(x, change, slack) of a function f: f(x + change) - f(x), written as multiplier * change with a constant
multiplier; what is not above `slack`, by default `rounding(x)`, is rounding."""


def rounding(x: Tensor) -> Tensor:
    """The slack of a function of x alone."""
    return NEGLIGIBLE * x.abs()


def settle(values: Tensor, slack: Tensor) -> Tensor:
    """The values, but exactly 0 where that is within the slack; derivatives stay.

    Units that are off, and parts that nothing contributes to, must not differ by rounding.
    """
    return values - values.detach().where(values.abs() <= slack, 0.0)


def multiplier(rise: Tensor, change: Tensor, slack: Tensor, slope: Tensor, out: Tensor | None = None) -> Tensor:
    """rise / change, or the slope where the change is negligible, as the paper advises; it overwrites the rise."""
    return torch.where(change.abs() > slack, rise.div_(change), slope, out=out)  # what is not taken may be infinite


class _Product(torch.autograd.Function):
    """What was computed before as multiplier * change, as a function of the change alone."""

    @staticmethod
    def forward(ctx, change: Tensor, product: Tensor, multiplier: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(multiplier)
        return product

    @staticmethod
    def backward(ctx, upper: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        (multiplier,) = ctx.saved_tensors
        return upper * multiplier, None, None


PIECE = 2**17
"""Values of every tensor that a CPU works on at once: they stay in its caches from step to step."""


Place = tuple[slice, ...]


def pieces(x: Tensor, change: Tensor) -> Iterator[tuple[Place, list[Place]]]:
    """Where the parts of x (P,...) or (1,...) are that are worked on at once, each with those of the change (P,...).

    A part is one image's; of maps (P,K,h,w) it is some rows. A GPU works on everything at once.
    """
    if change.device.type != "cpu":
        yield (slice(None),), [(slice(None),)]
        return
    rows = list(_rows(change.shape))
    for i in range(len(x)):
        sharing = [i] if len(x) > 1 else range(len(change))
        for where in rows:
            yield (slice(i, i + 1), *where), [(slice(k, k + 1), *where) for k in sharing]


def _rows(shape: torch.Size) -> Iterator[Place]:
    if len(shape) < 4:
        yield ()
        return
    height = shape[2]
    rows = max(1, PIECE * height // max(1, shape[1:].numel()))
    for start in range(0, height, rows):
        yield slice(None), slice(start, start + rows)


def elementwise_secant(function: Callable[[Tensor], Tensor]) -> Secant:
    """Of a function of single values."""

    def value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            value = function(point)
            (slope,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), slope

    def secant(x: Tensor, change: Tensor, slack: Tensor | None) -> Tensor:
        m, product = torch.empty_like(change), torch.empty_like(change)
        slack = slack if slack is None else slack.expand_as(change)
        with torch.no_grad():
            for start, ends in pieces(x, change):
                before, slope = value_and_slope(x[start])
                own = rounding(x[start])
                for end in ends:
                    rise = function(x[start] + change[end]).sub_(before)
                    multiplier(rise, change[end], own if slack is None else slack[end], slope, out=m[end])
                    torch.mul(m[end], change[end], out=product[end])
        return _Product.apply(change, product, m)

    return secant


def relu_secant(x: Tensor, change: Tensor, slack: Tensor | None) -> Tensor:
    """Of ReLU: relu(x + D) - relu(x) = max(D, -x) + min(x, 0).

    So written, values that nearly agree are not subtracted: a negligible D has the slope for its multiplier without a
    slack. Only a D of 0 must be looked for; it is rare, and known by a sum that is no number.
    """
    m, product = torch.empty_like(change), torch.empty_like(change)
    with torch.no_grad():
        for start, ends in pieces(x, change):
            lowest, offset = -x[start], x[start].clamp(max=0)
            for end in ends:
                rise = torch.maximum(change[end], lowest, out=product[end]).add_(offset)
                torch.div(rise, change[end], out=m[end])
                if m.device.type != "cpu" or not m[end].sum().isfinite():
                    m[end].copy_(m[end].where(change[end] != 0, (x[start] > 0).to(m.dtype)))
    return _Product.apply(change, product, m)


def max_pool_secant(pool: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Secant:
    """Of max-pooling, `pool(x)` = (maxima, their flat positions in the plane).

    The rise of a window's maximum is the work of the input that holds the larger of the two maxima, before or after:
    it has itself risen, or fallen, at least as much, so that its multiplier is in [0,1]. Of several such, as in a
    constant reference, or among units that are all off, it is the one that holds the other maximum too.
    """

    def secant(x: Tensor, change: Tensor, slack: Tensor | None) -> Tensor:
        with torch.no_grad():
            if slack is None:
                slack = rounding(x)
            y = x + change
            (before, first), (after, second), (slack, _) = pool(x), pool(y), pool(slack)
            before, first = before.expand_as(after), first.expand_as(second)
            both = at(y, first) >= after - slack  # rounding decides nothing among units that are all off
            other = (after > before) | (at(x, second) >= before - slack)
            winner = torch.where(other & ~both, second, first)
        moved = at(change, winner)  # (P, K, h, w)
        with torch.no_grad():
            m = multiplier(after - before, moved, slack, moved.new_ones(()))
        return m * moved

    return secant


def at(values: Tensor, positions: Tensor) -> Tensor:
    """The values (N,K,H,W), or (1,K,H,W), at the flat positions (N,K,h,w) of each plane, in the positions' order."""
    if not positions[:1].is_contiguous(memory_format=torch.channels_last):  # all of them may share one image's
        planes = values.flatten(2).expand(len(positions), -1, -1)
        return planes.gather(2, positions.flatten(2)).view_as(positions)
    values, last = values.permute(0, 2, 3, 1).flatten(1, 2), positions.permute(0, 2, 3, 1)
    found = values.expand(len(positions), -1, -1).gather(1, last.flatten(1, 2))
    return found.view_as(last).permute(0, 3, 1, 2)
