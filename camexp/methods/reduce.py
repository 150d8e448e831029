"""From an attribution of the three colour channels to one map, which may be smoothed."""

from collections.abc import Callable, Sequence

from torch import Tensor

from camexp.errors import CamexpError
from camexp.methods.blur import gaussian_blur

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda a: a.sum(1),
    "sum_abs": lambda a: a.abs().sum(1),
    "abs_sum": lambda a: a.sum(1).abs(),
    "max_abs": lambda a: a.abs().amax(1),
    "max": lambda a: a.abs().amax(1),  # what the gradient's literature calls max_abs
}
"""Reductions of an attribution a (P,3,H,W) over its channels, (P,H,W)."""

OF_GRADIENTS = ("max", "sum_abs")
"""What methods offer whose attribution is a gradient, the sign of which says nothing about importance."""


def check_reduce(method: str, reduce: str, allowed: Sequence[str]) -> None:
    """Raise a CamexpError unless the method's reduction is one of those that it allows."""
    if reduce not in allowed:
        raise CamexpError(f"method.reduce of {method} must be one of {', '.join(allowed)}, not {reduce!r}")


def smoothed(maps: Tensor, share: float) -> Tensor:
    """Maps (P,H,W) blurred by a Gaussian whose standard deviation is this share of the longer side; 0 for none."""
    return gaussian_blur(maps, share * max(maps.shape[1:]))


def check_smooth(method: str, share: float) -> None:
    """Raise a CamexpError unless maps can be smoothed with it."""
    if not 0 <= share < 1:
        raise CamexpError(f"method.smooth of {method} must be in [0, 1), not {share!r}")
