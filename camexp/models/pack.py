"""Convolutions that keep their weights in the order in which the CPU's library reads them."""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


class PackedProduct:
    """Computes a convolution; without a graph, from weights kept in order instead of reordered in every pass.

    On a CPU oneDNN computes with weights in blocks whose order depends on the shape of the images; PyTorch brings them
    into that order in every pass, which for a single image can take longer than the product itself. Here the order
    for the last shape is kept, beside the weights themselves. Passes with a graph, in bfloat16, on another device, of
    images that are not in channels-last order, or of what oneDNN does not take are left to PyTorch.
    """

    packed: Tensor | None = None  # the weights in order
    weight: Tensor | None = None  # those that it was made of
    made_for: tuple[torch.Size, int] | None = None  # shape of the images, version of the weights

    def __init__(self, convolution: nn.Conv2d):
        self.convolution = convolution

    def __call__(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = self.product(images, weight, bias)
        return nn.Conv2d._conv_forward(self.convolution, images, weight, bias) if found is None else found

    def product(
        self,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        then: str = "none",
        plus: Tensor | None = None,
        over: bool = False,
    ) -> Tensor | None:
        """The convolution, with what follows it done as it is written.

        Parameters
        ----------
        images: (N,C,H,W); weight, bias: as of `nn.Conv2d`.
        then: "relu" of the result, or "none".
        plus: added before that, of the result's shape; over: the result is written into its memory.

        Returns
        -------
        (N,K,h,w), or None where it is left to PyTorch.
        """
        if not (_takes(images, weight, bias) and (plus is None or _takes(plus, weight, bias))):
            return None
        c, made_for = self.convolution, (images.shape, weight._version)
        shape = c.padding, c.stride, c.dilation, c.groups
        try:
            if self.weight is not weight or self.made_for != made_for:
                self.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *shape, images.shape)
                self.weight, self.made_for = weight, made_for
            given = self.packed, bias, *shape
            if plus is None:
                return torch.ops.mkldnn._convolution_pointwise(images, *given, then, [], "")
            if over:
                return torch.ops.mkldnn._convolution_pointwise_.binary(plus, images, *given, "add", 1.0, then, [], "")
            return torch.ops.mkldnn._convolution_pointwise.binary(images, plus, *given, "add", 1.0, then, [], "")
        except RuntimeError:
            return None  # PyTorch tells in its own words what may be wrong with the images

    def __getstate__(self) -> dict[str, Any]:
        """Copies make an order of their own."""
        return {"convolution": self.convolution}


def _takes(images: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        type(images) is Tensor  # what only behaves like one expects the usual functions
        and images.device.type == "cpu"
        and images.dtype == weight.dtype == torch.float32
        and images.ndim == 4
        and images.numel() > 0
        and images.is_contiguous(memory_format=torch.channels_last)  # as the result is
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (images, weight, bias)))
        and not torch.is_autocast_enabled("cpu")
        and not weight.is_inference()  # it does not count its changes
    )


def pack_convolutions(network: nn.Module) -> int:
    """Let the network's convolutions keep their weights in order, in place; returns how many do.

    They stay plain `nn.Conv2d`. None does where PyTorch was built without oneDNN.
    """
    found = [module for module in network.modules() if _packable(module)] if _works() else []
    for module in found:
        vars(module)["_conv_forward"] = PackedProduct(module)  # what nn.Conv2d.forward calls
    return len(found)


def _packable(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and not module.weight.is_inference()  # it does not count its changes
    )


@torch.inference_mode(False)
def _works() -> bool:
    """Whether the operations, which are not among PyTorch's documented ones, are there and do what they are for."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.random.fork_rng(devices=[]):  # its weights are drawn
        plain = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
    images = torch.linspace(-1, 1, 32).view(1, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    expected, packed = plain(images), PackedProduct(plain)
    ways = {"then": "none"}, {"then": "relu"}, {"plus": expected}, {"plus": expected.clone(), "over": True}
    try:
        found = [packed.product(images, plain.weight, plain.bias, **{"then": "relu"} | way) for way in ways]
    except (AttributeError, TypeError):
        return False
    return all(map(_near, found, (expected, expected.relu(), *[(2 * expected).relu()] * 2)))


def _near(found: Tensor | None, expected: Tensor) -> bool:
    return found is not None and torch.allclose(found, expected, atol=1e-5)
