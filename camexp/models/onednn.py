"""What is left to oneDNN, a CPU's library of products, and what to PyTorch."""

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def takes(rows: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the product of rows (N,...) and constant weights is one of float32 numbers on a CPU, and nothing else."""
    return (
        torch._C._get_mkldnn_enabled()  # torch.backends.mkldnn.flags
        and takes_rows(rows)
        and _is_constant(weight)
        and not weight.is_inference()  # it does not count its changes, and no graph may keep it
        and (bias is None or (_is_constant(bias) and bias.is_contiguous() and bias.shape == weight.shape[:1]))
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
    )


def takes_rows(rows: Tensor) -> bool:
    """Whether rows (N,...) are numbers and nothing else, as far as it does not hang on the weights."""
    return type(rows) is Tensor and _of_numbers(rows) and is_plain(rows) and rows.numel() > 0


def _is_constant(parameter: Tensor) -> bool:
    known = type(parameter) in (Tensor, nn.Parameter)  # what only behaves like one expects the usual functions
    return known and _of_numbers(parameter) and not (parameter.requires_grad and torch.is_grad_enabled())


class OwnRule(Protocol):
    """What is no tensor, but goes through a network like one."""

    def weighted(
        self,
        function: Callable[..., Tensor],
        weight: Tensor,
        bias: Tensor | None,
        usual: Callable[..., Tensor] | None = None,
    ) -> Any:
        """Its product with weights, made of `function(x, weight, bias)` of tensors x; `usual`: PyTorch's own."""


def has_own_rule(rows: object) -> TypeGuard[OwnRule]:
    """Whether the rows are no tensor, but say themselves what their product with weights is."""
    return not isinstance(rows, Tensor) and hasattr(type(rows), "weighted")


def _of_numbers(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype is torch.float32 and tensor.layout is torch.strided


def takes_back(upper: Tensor) -> bool:
    """Whether the gradient dL/dy of a product y goes back the same way, and nobody differentiates it further."""
    return not torch.is_grad_enabled() and is_plain(upper) and not torch.is_autocast_enabled("cpu")


def is_plain(tensor: Tensor) -> bool:
    """Whether it stands for itself, and not for many or with a direction: not within `torch.func`'s transforms."""
    transforms = torch._C._functorch
    transformed = transforms.peek_interpreter_stack() is not None or transforms.is_legacy_batchedtensor(tensor)
    return not transformed and forward_ad._current_level < 0
