"""Convolutions that keep their weights in the order in which the CPU's library reads them."""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from camexp.models import onednn, subpixel, winograd


class PackedProduct:
    """Computes a convolution, and its gradient for the images, from weights kept in order.

    On a CPU oneDNN computes with weights in blocks whose order depends on the shape of the images; PyTorch brings them
    into that order in every pass, which for a single image can take longer than the product itself. Here two orders
    are kept beside the weights themselves: for one image and for several, of the size that came last. Passes with a
    graph of the weights, in bfloat16, on another device, of images that are not in channels-last order, or of what
    oneDNN does not take are left to PyTorch.

    Parameters
    ----------
    convolution: whose weights are kept.
    with_winograd: compute with fewer multiplications where that is worth it (`camexp.models.winograd`). What has a
        rule of its own, which may ask whether a difference is exactly 0, gets only its gradient so.
    """

    def __init__(self, convolution: nn.Conv2d, with_winograd: bool = False):
        self.convolution, self.with_winograd = convolution, with_winograd
        self.direct = _Direct(self) if with_winograd else self
        self.forth, self.back = (Kept(), Kept()), (Kept(), Kept())  # for one image, for several; or few tiles, many

    def __call__(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if onednn.has_own_rule(images):
            return images.weighted(self.direct, weight, bias, self.usual)
        found = self.product(images, weight, bias)
        return self.usual(images, weight, bias) if found is None else found

    def usual(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution as PyTorch computes it."""
        return nn.Conv2d._conv_forward(self.convolution, images, weight, bias)

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
        if not (onednn.takes(images, weight, bias) and _in_order(images)):
            return None
        if plus is not None and not (onednn.takes_rows(plus) and _in_order(plus)):
            return None
        try:
            if torch.is_grad_enabled() and (images.requires_grad or (plus is not None and plus.requires_grad)):
                return _Recorded.apply(images, plus, weight, bias, self, then)
            return self.compute(images, weight, bias, then, plus, over)
        except RuntimeError:
            return None  # PyTorch tells in its own words what may be wrong with the images

    def compute(
        self, images: Tensor, weight: Tensor, bias: Tensor | None, then: str, plus: Tensor | None, over: bool
    ) -> Tensor:
        """`product` of what is taken, without a graph."""
        mkldnn, geometry, size = torch.ops.mkldnn, self.geometry, images.shape
        if self.with_winograd and winograd.takes(self.convolution, size):
            found = winograd.product(images, len(weight), self._filters(self.forth, weight), bias)
            found = found if plus is None else found.add_(plus)
            return found.relu_() if then == "relu" else found
        order = self.forth[size[0] > 1](
            weight, (*size[1:], *geometry), lambda: mkldnn._reorder_convolution_weight(weight, *geometry, size)
        )
        if plus is None:
            return mkldnn._convolution_pointwise(images, order, bias, *geometry, then, [], "")
        added = order, bias, *geometry, "add", 1.0, then, [], ""
        if over:
            return mkldnn._convolution_pointwise_.binary(plus, images, *added)
        found = mkldnn._convolution_pointwise.binary(images, plus, *added)
        if found.shape != plus.shape:  # it does not look
            raise RuntimeError(f"{tuple(plus.shape)} cannot be added to {tuple(found.shape)}")
        return found

    def gradient(self, upper: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
        """dL/dI for images I of a size (N,C,H,W), from dL/dy (N,K,h,w) for their product y.

        By the first of these that takes it: PyTorch itself, for groups and what oneDNN does not take; Winograd's
        filtering; the pixels of a cell at once, for strides and images of few channels (`camexp.models.subpixel`);
        oneDNN's transposed convolution.
        """
        mkldnn, (padding, stride, dilation, groups) = torch.ops.mkldnn, self.geometry
        if groups > 1 or not onednn.takes_back(upper):
            images = upper.new_empty(()).expand(size)  # of which nothing but the size is read
            settings = None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
            return torch.ops.aten.convolution_backward(upper, images, weight, *settings)[0]
        upper = upper.contiguous(memory_format=torch.channels_last)
        if self.with_winograd and winograd.takes(self.convolution, upper.shape):
            return winograd.product(upper, size[1], self._filters(self.back, weight, winograd.of_gradient), None)
        if subpixel.takes(self.convolution):
            cells = self.back[0](weight, self.geometry, lambda: subpixel.cell_weight(weight, stride[0]))  # for any
            return subpixel.image_gradient(upper, cells, self.convolution, size)
        geometry = padding, self._beyond_the_windows(size), stride, dilation, groups
        order = self.back[size[0] > 1](
            weight,
            (*size[1:], *self.geometry),
            lambda: mkldnn._reorder_convolution_transpose_weight(weight, *geometry, upper.shape),
        )
        return mkldnn._convolution_transpose_pointwise(upper, order, None, *geometry, "none", [], "")

    def _filters(
        self, kept: tuple["Kept", "Kept"], weight: Tensor, used: Callable[[Tensor], Tensor] = lambda weight: weight
    ) -> Callable[[int], Tensor]:
        """Those of `camexp.models.winograd` by number of tiles, made of the weight as it is used."""
        return lambda tiles: kept[tiles == winograd.MANY](weight, (tiles,), lambda: winograd.order(used(weight), tiles))

    @property
    def geometry(self) -> tuple[Any, ...]:
        """Padding, stride, dilation and number of groups."""
        c = self.convolution
        return c.padding, c.stride, c.dilation, c.groups

    def _beyond_the_windows(self, size: torch.Size) -> list[int]:
        """Rows and columns of images of a size (N,C,H,W), padded, that the last window does not reach."""
        paddings, strides, dilations, _ = self.geometry
        sides = zip(size[2:], self.convolution.kernel_size, paddings, strides, dilations, strict=True)
        return [(side + 2 * padding - dilation * (k - 1) - 1) % stride for side, k, padding, stride, dilation in sides]

    def __getstate__(self) -> dict[str, Any]:
        """Copies make orders of their own."""
        return {"convolution": self.convolution, "with_winograd": self.with_winograd}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Direct(PackedProduct):
    """Another's product without Winograd's filtering; back it goes as the other."""

    def __init__(self, other: PackedProduct):
        super().__init__(other.convolution)
        self.other = other

    def gradient(self, upper: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
        return self.other.gradient(upper, weight, size)


class Weights:
    """Weights (K,C,h,w) where they lie in memory, and what is looked at of them."""

    def __init__(self, weight: Tensor):
        self.of = weight.detach()
        numbers = self.of.numpy()
        self.filters, self.channels = numbers[:, 0, 0, 0], numbers[0, :, 0, 0]

    def sample(self) -> tuple[bytes, bytes]:
        return self.filters.tobytes(), self.channels.tobytes()


class Kept:
    """What was last made of weights, and for what.

    Writes through `weight.data`, which PyTorch does not count, are seen by a sample: of every filter (K,C,h,w) and of
    every channel one number.
    """

    last: tuple[Weights, tuple[Any, ...], Tensor] | None = None  # made of what, and of which of its values; what

    def __call__(self, weight: Tensor, use: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        last = self.last
        if last is None or not last[0].of.is_set_to(weight) or last[1] != (weight._version, *use, *last[0].sample()):
            weights = Weights(weight)
            self.last = last = weights, (weight._version, *use, *weights.sample()), make()
        return last[2]


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
        ctx.product, ctx.size = product, images.shape
        ctx.save_for_backward(weight, found if then == "relu" else None)
        return found

    @staticmethod
    def backward(ctx, upper: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        weight, rectified = ctx.saved_tensors
        if rectified is not None:
            upper = torch.ops.aten.threshold_backward(upper, rectified, 0)
        of_images, of_plus, *_ = ctx.needs_input_grad
        images = ctx.product.gradient(upper, weight, ctx.size) if of_images else None
        return images, upper if of_plus else None, None, None, None, None


def _in_order(images: Tensor) -> bool:
    """Whether the images (N,C,H,W) lie in memory as the result does."""
    return images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last)


def pack_convolutions(network: nn.Module, with_winograd: bool = False) -> int:
    """Let the network's convolutions keep their weights in order, in place; returns how many do.

    They stay plain `nn.Conv2d`. None does where PyTorch was built without oneDNN. With Winograd's minimal filtering,
    those for which it is worth it are computed by it (`camexp.models.winograd`).
    """
    with_winograd = with_winograd and winograd.works()
    found = [module for module in network.modules() if _packable(module)] if _works() else []
    for module in found:
        vars(module)["_conv_forward"] = PackedProduct(module, with_winograd)  # what nn.Conv2d.forward calls
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
    usual = [expected, expected.relu(), *[(2 * expected).relu()] * 2]
    usual.append(_back(lambda x: (plain(x) + expected).relu(), images))
    try:
        found = [packed.product(images, plain.weight, plain.bias, **{"then": "relu"} | way) for way in ways]
        found.append(_back(lambda x: packed.product(x, plain.weight, plain.bias, "relu", expected), images))
    except (AttributeError, TypeError, RuntimeError):
        return False
    return all(
        one is not None and torch.allclose(one, other, atol=1e-5) for one, other in zip(found, usual, strict=True)
    )


def _back(function: Callable[[Tensor], Tensor | None], images: Tensor) -> Tensor:
    """The gradient of half the squares' sum for the images."""
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        found = function(images)
        if found is None:
            raise TypeError("left to PyTorch")
        return torch.autograd.grad(found.square().sum() / 2, images)[0]
