"""Convolutions that keep their weights in the order in which the CPU's library reads them."""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from camexp.models import subpixel


class PackedProduct:
    """Computes a convolution, and its gradient for the images, from weights kept in order.

    On a CPU oneDNN computes with weights in blocks whose order depends on the shape of the images; PyTorch brings them
    into that order in every pass, which for a single image can take longer than the product itself. Here the orders
    for the last shape are kept, beside the weights themselves. Passes with a graph of the weights, in bfloat16, on
    another device, of images that are not in channels-last order, or of what oneDNN does not take are left to PyTorch.
    """

    def __init__(self, convolution: nn.Conv2d):
        self.convolution = convolution
        self.forth, self.back = Kept(), Kept()

    @property
    def padding(self) -> tuple[int, ...]:
        padding = self.convolution.padding
        assert not isinstance(padding, str)
        return padding

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
        plus: added before the ReLU, of the result's shape; over: the result may be written into its memory.

        Returns
        -------
        (N,K,h,w), or None where it is left to PyTorch.
        """
        given = [images] if plus is None else [images, plus]
        if not all(_takes(one, weight, bias) for one in given):
            return None
        try:
            if torch.is_grad_enabled() and any(one.requires_grad for one in given):
                return _Recorded.apply(images, plus, weight, bias, self, then)
            return self.compute(images, weight, bias, then, plus, over)
        except RuntimeError:
            return None  # PyTorch tells in its own words what may be wrong with the images

    def compute(
        self, images: Tensor, weight: Tensor, bias: Tensor | None, then: str, plus: Tensor | None, over: bool
    ) -> Tensor:
        """`product` of what is taken, without a graph."""
        c, mkldnn = self.convolution, torch.ops.mkldnn
        shape = self.padding, c.stride, c.dilation, c.groups
        order = self.forth(
            weight, images.shape, lambda: mkldnn._reorder_convolution_weight(weight, *shape, images.shape)
        )
        given = order, bias, *shape
        if plus is None:
            return mkldnn._convolution_pointwise(images, *given, then, [], "")
        if over:
            return mkldnn._convolution_pointwise_.binary(plus, images, *given, "add", 1.0, then, [], "")
        return mkldnn._convolution_pointwise.binary(images, plus, *given, "add", 1.0, then, [], "")

    def gradient(self, upper: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """The gradient for images of a shape (N,C,H,W), from that of their product (N,K,h,w)."""
        c, mkldnn = self.convolution, torch.ops.mkldnn
        beyond = self._beyond_the_windows(shape)
        if torch.is_grad_enabled():  # somebody wants a graph of the gradient
            return F.conv_transpose2d(upper, weight, None, c.stride, self.padding, beyond, c.groups, c.dilation)
        upper = upper.contiguous(memory_format=torch.channels_last)
        if subpixel.takes(c):
            cells = self.back(weight, shape, lambda: subpixel.cell_weight(weight, c.stride[0]))
            return subpixel.image_gradient(upper, cells, c, shape)
        given = self.padding, beyond, c.stride, c.dilation, c.groups
        order = self.back(
            weight, shape, lambda: mkldnn._reorder_convolution_transpose_weight(weight, *given, upper.shape)
        )
        return mkldnn._convolution_transpose_pointwise(upper, order, None, *given, "none", [], "")

    def _beyond_the_windows(self, shape: torch.Size) -> list[int]:
        """Rows and columns of images of a shape (N,C,H,W), padded, that the last window does not reach."""
        c = self.convolution
        kernels = [dilation * (size - 1) + 1 for dilation, size in zip(c.dilation, c.kernel_size, strict=True)]
        padded = [size + 2 * padding for size, padding in zip(shape[2:], self.padding, strict=True)]
        return [(side - kernel) % stride for side, kernel, stride in zip(padded, kernels, c.stride, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        """Copies make orders of their own."""
        return {"convolution": self.convolution}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Kept:
    """What was last made of weights for a shape."""

    made: Tensor | None = None
    weight: Tensor | None = None
    made_for: tuple[torch.Size, int] | None = None  # shape, version of the weights

    def __call__(self, weight: Tensor, shape: torch.Size, make: Callable[[], Tensor]) -> Tensor:
        made_for = shape, weight._version
        if self.made is None or self.weight is not weight or self.made_for != made_for:
            self.made, self.weight, self.made_for = make(), weight, made_for
        return self.made


class _Recorded(torch.autograd.Function):
    """`PackedProduct.product` with a graph of the images and of what is added."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        images: Tensor,
        plus: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        product: PackedProduct,
        then: str,
    ) -> Tensor:
        found = product.compute(images, weight, bias, then, plus, over=False)
        ctx.product, ctx.shape = product, images.shape
        ctx.save_for_backward(weight, *([found] if then == "relu" else []))
        return found

    @staticmethod
    def backward(ctx, upper: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        weight, *rectified = ctx.saved_tensors
        for found in rectified:
            upper = torch.ops.aten.threshold_backward(upper, found, 0)
        of_images, of_plus, *_ = ctx.needs_input_grad
        images = ctx.product.gradient(upper, weight, ctx.shape) if of_images else None
        return images, upper if of_plus else None, None, None, None, None


def _takes(images: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        type(images) is Tensor  # what only behaves like one expects the usual functions
        and not torch._C._functorch.is_functorch_wrapped_tensor(images)  # within vmap and the like
        and forward_ad.unpack_dual(images).tangent is None
        and images.device.type == "cpu"
        and images.dtype == weight.dtype == torch.float32
        and images.ndim == 4
        and images.numel() > 0
        and images.is_contiguous(memory_format=torch.channels_last)  # as the result is
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (weight, bias)))
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
        back = [_gradient(product, plain, images) for product in (packed, plain._conv_forward)]
    except (AttributeError, TypeError, RuntimeError):
        return False
    results = zip([*found, back[0]], (expected, expected.relu(), *[(2 * expected).relu()] * 2, back[1]), strict=True)
    return all(one is not None and torch.allclose(one, other, atol=1e-5) for one, other in results)


def _gradient(product: Callable[..., Tensor], convolution: nn.Conv2d, images: Tensor) -> Tensor:
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        found = product(images, convolution.weight, convolution.bias)
        return torch.autograd.grad(found.square().sum(), images)[0]
