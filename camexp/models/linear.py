"""Large linear layers computed by oneDNN, from the weights as they are.

PyTorch leaves them to a BLAS library, which for few rows, as in VGG16's first linear layer, takes up to four times
longer than the weights take to be read from memory. Back from a single row not even all of them need be read.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camexp.models import onednn

LARGE = 2**20
"""Weights from which on a product takes longer than calling for it."""

MANY = 0.75
"""Share of a layer's units of which more are not worth picking."""

PARTS = 8
"""Into which a sum over units is divided: processors take some each, and rounding errors stay small."""


class LinearProduct:
    """Runs an `nn.Linear` in its place, and back to what goes in; what oneDNN does not take is left to PyTorch."""

    def __init__(self, linear: nn.Linear):
        self.linear = linear

    def __call__(self, input: Tensor) -> Tensor:
        weight, bias = self.linear.weight, self.linear.bias
        if onednn.has_own_rule(input):
            return input.weighted(self.product, weight, bias)
        return self.product(input, weight, bias)

    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + b (N,K) of rows x (N,C)."""
        if not (onednn.takes(input, weight, bias) and input.ndim == 2 and input.shape[1] == weight.shape[1]):
            return F.linear(input, weight, bias)
        recorded = torch.is_grad_enabled() and input.requires_grad
        return (_Recorded.apply if recorded else product)(input, weight, bias)


def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b (N,K) for rows x (N,C), weights W (K,C) in any order of memory, and b (K,)."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _Recorded(torch.autograd.Function):
    """`product` with a graph of the rows."""

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight.detach())  # which stays when another is put in its place
        return product(rows, weight, bias)

    @staticmethod
    def backward(ctx, upper: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        (weight,) = ctx.saved_tensors
        return back(upper, weight), None, None


def back(upper: Tensor, weight: Tensor) -> Tensor:
    """dL/dx (N,C) of dL/dy (N,K) for y = x W^T."""
    if not onednn.takes_back(upper):
        return upper @ weight
    return _back_of_one(upper, weight) if len(upper) == 1 else product(upper, weight.t(), None)


def _back_of_one(upper: Tensor, weight: Tensor) -> Tensor:
    """`back` for a single row; weights of units to which nothing comes back, behind a ReLU most, are not read.

    So it is not noticed if such weights are infinite or no numbers.
    """
    (units,) = upper[0].nonzero(as_tuple=True)
    if len(units) > MANY * len(weight) or not weight.is_contiguous():
        return upper @ weight  # a single row is what BLAS is good at
    parts = torch.arange(PARTS, device=upper.device) * (len(units) // PARTS)
    return F.embedding_bag(units, weight, parts, mode="sum", per_sample_weights=upper[0, units]).sum(0, keepdim=True)


def speed_up_linear(network: nn.Module) -> int:
    """Let the network's large linear layers be computed by oneDNN, in place; returns how many are.

    They stay plain `nn.Linear`. None is where PyTorch was built without oneDNN.
    """
    found = [module for module in network.modules() if _is_large(module)] if _works() else []
    for module in found:
        vars(module)["forward"] = LinearProduct(module)  # what nn.Module.__call__ calls
    return len(found)


def _is_large(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and module.weight.numel() >= LARGE and "forward" not in vars(module)


@torch.inference_mode(False)
def _works() -> bool:
    """Whether the operation, which is not among PyTorch's documented ones, is there and does what it is for."""
    if not torch.backends.mkldnn.is_available():
        return False
    weight, bias, rows = torch.linspace(-1, 1, 15).view(3, 5), torch.ones(3), torch.linspace(0, 2, 10).view(2, 5)
    usual = F.linear(rows, weight, bias)
    try:
        found: list[Any] = [product(rows, weight, bias), product(usual, weight.t(), None)]
    except (AttributeError, TypeError, RuntimeError):
        return False
    return all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, (usual, usual @ weight), strict=True))
