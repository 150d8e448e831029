"""A network run on differences from a reference: the forward pass of DeepLIFT's two nonlinear rules.

`network(Difference(...))` runs the network's own code. Every torch function that it calls on a Difference is
looked up in `OPERATIONS` and carried out on the reference's value and on the difference, layer by layer. So a module
that is used several times makes a separate operation each time, nothing is hooked or replaced, and nothing has to be
undone. The reference's values are the same for all images; a second run with the same `Values` finds them there.

The difference of an output is, with all multipliers held constant, a *linear* function of the difference of the
input. Its derivative, which autograd gives, is the product of the multipliers along all paths: DeepLIFT's chain rule.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from camexp.errors import CamexpError
from camexp.methods._deeplift_secants import (
    NEGLIGIBLE,
    Secant,
    elementwise_secant,
    max_pool_secant,
    relu_secant,
    settle,
)


class Values:
    """What the layers put out for a reference, in the order in which the network computes it.

    Parameters
    ----------
    reference: (1,3,H,W).
    """

    def __init__(self, reference: Tensor):
        self.known, self.read = [reference], 1

    def next(self, compute: Callable[[], Tensor]) -> Tensor:
        """The value after the last: known from an earlier run of the network, or computed."""
        if self.read == len(self.known):
            with torch.no_grad():
                self.known.append(compute())
        self.read += 1
        return self.known[self.read - 1]


class Difference:
    """What a layer puts out for P images: its value for the reference, and how they differ from it.

    Attributes
    ----------
    reference: (1,...), the value for the reference, one of the `values`.
    parts: one or two (P,...), whose sum is the difference. One: the difference itself, for the Rescale rule.
        Two: its positive and its negative part, for RevealCancel.
    """

    def __init__(self, reference: Tensor, parts: tuple[Tensor, ...], values: Values):
        self.reference, self.parts, self.values = reference, parts, values

    @classmethod
    def of_images(cls, values: Values, difference: Tensor, separate: bool) -> "Difference":
        """The network's input (P,3,H,W); `separate` the positive from the negative parts."""
        values.read = 1
        parts = (difference.clamp(min=0), difference.clamp(max=0)) if separate else (difference,)
        return cls(values.known[0], parts, values)

    def then(self, reference: Callable[[], Tensor], parts: tuple[Tensor, ...]) -> "Difference":
        """What the next operation puts out."""
        return Difference(self.values.next(reference), parts, self.values)

    @property
    def total(self) -> Tensor:
        """The difference (P,...)."""
        return self.parts[0] if len(self.parts) == 1 else self.parts[0] + self.parts[1]

    # ------------------------------------------------------------------------------------------ the rules

    def each(self, function: Callable[[Tensor], Tensor]) -> "Difference":
        """A linear function without negative weights: of the reference and of every part."""
        return self.then(lambda: function(self.reference), tuple(function(part) for part in self.parts))

    def weighted(
        self,
        function: Callable[..., Tensor],
        weight: Tensor,
        bias: Tensor | None,
        usual: Callable[..., Tensor] | None = None,
    ) -> "Difference":
        """The Linear rule for `function(x, weight, bias)` with many inputs (section 3.5.1).

        D_y = W D,   D_y+ = sum_i [w_i D_i > 0] w_i D_i = (W D + |W| |D|) / 2,   D_y- = (W D - |W| |D|) / 2

        |D| is D times its constant sign, which is 0 where D's parts cancel, as they do in a unit that is off
        for image and reference: such a unit passes half of its weight to each part, as the paper has it.

        Parameters
        ----------
        usual: the same function, where `function` is made for the network's own weights.
        """
        parts: tuple[Tensor, ...] = (function(self.total, weight, None),)
        if len(self.parts) == 2:
            magnitude = (usual or function)(self.total * self._sign(), weight.abs(), None)
            slack = NEGLIGIBLE * magnitude.detach()
            parts = tuple(settle((parts[0] + m) / 2, slack) for m in (magnitude, -magnitude))
        return self.then(lambda: function(self.reference, weight, bias), parts)

    @torch.no_grad()
    def _scale(self) -> Tensor:
        """Sum of the parts' absolute values (P,...): sums of parts are exact up to a share of it."""
        return self.parts[0].abs() if len(self.parts) == 1 else self.parts[0].abs() + self.parts[1].abs()

    @torch.no_grad()
    def _sign(self) -> Tensor:
        """-1, 0 or 1 (P,...), the sign of the difference; what is left when two parts cancel is rounding."""
        return settle(self.total, NEGLIGIBLE * self._scale()).sign()

    def scaled(self, function: Callable[[Tensor], Tensor], scale: Tensor) -> "Difference":
        """A function that brings every value times its own constant, which swaps the parts where it is negative."""
        swapped = zip(self.parts, reversed(self.parts), strict=True)
        parts = tuple(scale * torch.where(scale > 0, part, other) for part, other in swapped)
        return self.then(lambda: function(self.reference), parts)

    def nonlinear(self, function: Callable[[Tensor], Tensor], secant: Secant) -> "Difference":
        """The Rescale rule (section 3.5.2) for one part, the RevealCancel rule (section 3.5.3) for two.

        Rescale:       D_y  = f(x0 + D) - f(x0)
        RevealCancel:  D_y+ = 1/2 [ f(x0 + D+) - f(x0) ] + 1/2 [ f(x0 + D- + D+) - f(x0 + D-) ],   D_y- likewise
        """
        x = self.reference
        if len(self.parts) == 1:  # beside x a change that is negligible adds nothing to the slack
            return self.then(lambda: function(x), (secant(x, self.parts[0], None),))
        slack = NEGLIGIBLE * (x.abs() + self._scale())
        plus, minus = self.parts
        with torch.no_grad():
            raised, lowered = settle(x + plus, slack), settle(x + minus, slack)
        parts = (
            (secant(x, plus, slack) + secant(lowered, plus, slack)) / 2,
            (secant(x, minus, slack) + secant(raised, minus, slack)) / 2,
        )
        return self.then(lambda: function(x), parts)

    # --------------------------------------------------------------------------- what networks call on tensors

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> "Difference":
        if function not in OPERATIONS:
            raise unsupported(getattr(function, "__name__", str(function)))
        return OPERATIONS[function](*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        raise unsupported(name)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __add__(self, other: "Difference | Tensor | float") -> "Difference":
        if not isinstance(other, Difference):
            return self.then(lambda: self.reference + other, self.parts)
        parts = tuple(mine + its for mine, its in zip(self.parts, other.parts, strict=True))
        return self.then(lambda: self.reference + other.reference, parts)

    def _refuse(self, *operands: object) -> "Difference":
        raise unsupported("subtraction, multiplication, division or indexing")

    __radd__ = __add__
    __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __matmul__ = __neg__ = __getitem__ = _refuse

    def dim(self) -> int:
        return self.reference.dim()

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> "Difference":
        return self.each(lambda x: x.flatten(start_dim, end_dim))


def unsupported(name: str) -> CamexpError:
    known = sorted({function.__name__ for function in OPERATIONS})
    return CamexpError(
        f"deeplift has no rule for {name}, which the network uses; it has rules for addition and {', '.join(known)} "
        "(method.rule=linear works for every network)"
    )


# -------------------------------------------------------------------------------------------- operations


def conv2d(input: Difference, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Difference:
    return input.weighted(lambda x, w, b: F.conv2d(x, w, b, *args, **kwargs), weight, bias)


def linear(input: Difference, weight: Tensor, bias: Tensor | None = None) -> Difference:
    return input.weighted(F.linear, weight, bias)


def batch_norm(
    input: Difference,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Difference:
    """With constant statistics: the same as folding it into the convolution before it."""
    if running_mean is None or running_var is None or training:
        raise unsupported("batch_norm with the statistics of the batch")
    scale = (running_var + eps).rsqrt() * (1.0 if weight is None else weight)
    scale = scale.view(-1, *[1] * (input.dim() - 2))
    return input.scaled(lambda x: F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps), scale)


def max_pool2d(input: Difference, *args: Any, return_indices: bool = False, **kwargs: Any) -> Difference:
    secant = max_pool_secant(lambda x: F.max_pool2d(x, *args, **kwargs, return_indices=True))
    return input.nonlinear(lambda x: F.max_pool2d(x, *args, **kwargs), secant)


def dropout(input: Difference, p: float = 0.5, training: bool = True, inplace: bool = False) -> Difference:
    if training:
        raise unsupported("dropout in training mode")
    return input


def add(one: Any, other: Any) -> Difference:
    return one + other if isinstance(one, Difference) else other + one


def elementwise(function: Callable[..., Tensor]) -> Callable[..., Difference]:
    def operation(input: Difference, *args: Any, inplace: bool = False, **kwargs: Any) -> Difference:
        def apply(x: Tensor) -> Tensor:
            return function(x, *args, **kwargs)

        return input.nonlinear(apply, elementwise_secant(apply))

    return operation


def relu(input: Difference, inplace: bool = False) -> Difference:
    return input.nonlinear(torch.relu, relu_secant)


def without_weights(function: Callable[..., Tensor]) -> Callable[..., Difference]:
    return lambda input, *args, **kwargs: input.each(lambda x: function(x, *args, **kwargs))


OPERATIONS: dict[Any, Callable[..., Difference]] = {
    torch.conv2d: conv2d,
    F.linear: linear,
    F.batch_norm: batch_norm,
    torch.max_pool2d: max_pool2d,
    F.max_pool2d: max_pool2d,  # what nn.MaxPool2d dispatches on depends on the version of torch
    F.dropout: dropout,
    torch.add: add,
    torch.Tensor.add: add,
    F.relu: relu,
    torch.relu: relu,
}
OPERATIONS |= {f: elementwise(f) for f in (F.leaky_relu, torch.sigmoid, torch.tanh)}
OPERATIONS |= {f: without_weights(f) for f in (torch.flatten, F.avg_pool2d, F.adaptive_avg_pool2d)}
