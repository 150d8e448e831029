"""What extremal perturbations are made of: blur pyramid, smooth masks on a coarse grid, and the area's ideal step."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from camexp.methods.blur import gaussian_blur
from camexp.ranking import largest

SHARPNESS = 20.0
"""1/T of the smooth maximum."""

ROUNDING = 1e-5
"""Differences between a mask's values that mean nothing."""


def blur_pyramid(images: Tensor, levels: int, max_blur: float, released: bool = False) -> Tensor:
    """Images (B,3,H,W) blurred with sigma falling linearly from `max_blur` pixels to 0, (B,levels,3,H,W).

    `released`: as of `gaussian_blur`.
    """
    sigmas = [max_blur * (1 - level / (levels - 1)) for level in range(levels)]
    return torch.stack([gaussian_blur(images, sigma, released) for sigma in sigmas], 1)


def perturb(pyramid: Tensor, masks: Tensor) -> Tensor:
    """The perturbed images m (x) x, (R,3,H,W): at each pixel the blur that the mask's value asks for.

    A mask's value m stands at the level m (levels - 1) of the pyramid, 0 for the strongest blur and 1 for the
    image itself; between two levels the value is interpolated linearly.

    Parameters
    ----------
    pyramid: (R,levels,3,H,W) from strongest blur to none.
    masks: (R,H,W) in [0,1].
    """
    levels = pyramid.shape[1]
    position = masks * (levels - 1)
    lower = position.detach().long().clamp(0, levels - 2)  # a mask of 1 ends the last interval
    index = lower[:, None, None]  # (R, 1, 1, H, W)
    below, above = (pyramid.gather(1, i.expand(-1, -1, *pyramid.shape[2:]))[:, 0] for i in (index, index + 1))
    return below.lerp(above, (position - lower)[:, None])


class SmoothMask:
    """Masks (R,H,W) from values on a coarse grid (R,h,w), by a smooth max-convolution.

        m(u) = smax_v k( |u - v| / sigma ) g(v),   smax f = sum_v f_v exp(f_v / T) / sum_v exp(f_v / T)
        k(z) = exp( -2 max(0, z - 1/2)^2 ),   T = 1/20

    k and T are those of the released code. The grid's nodes v are the centres of cells of step x step pixels,
    h = ceil(H / step). k is 1 up to sigma / 2 and one half at 1.09 sigma: one node alone makes a round blob of that
    radius (with a sigma of 21 3.3 % of 224 x 224 pixels), and no mask has smaller details. The maximum runs over the
    square of cells around the pixel's own that holds all nodes within 1.5 sigma; further off k < 0.14. Beyond the
    border the outermost nodes are repeated, so that a constant grid makes the same mask at the border as in the
    middle.

    In the released code nodes are the first pixels of their cells, nodes beyond the border are 0, the square goes
    one cell beyond sigma, and the mask is larger than the image: it goes on for `sigma` pixels above and to the left
    of it, and for about as many (sigma - step + 1, for sides that are multiples of the step) below and to the right.

    Memory grows with the side of that square, not with its area.

    Parameters
    ----------
    height, width: of the image.
    step: side of a cell in pixels.
    sigma: radius of the kernel in pixels.
    released: as in the released code, for which sigma must be a multiple of the step.

    Attributes
    ----------
    size: (H',W') of the masks.
    inside: where the image is in masks (R,H',W').
    """

    def __init__(self, height: int, width: int, step: int, sigma: float, device: torch.device, released: bool = False):
        self.grid, self.step = (math.ceil(height / step), math.ceil(width / step)), step
        if released:
            margin = round(sigma / step)  # cells
            radius, node = margin + 1, 0.0
            self.size = tuple((cells + 2 * margin - 1) * step + 1 for cells in self.grid)
        else:
            margin, node = 0, (step - 1) / 2
            radius = math.ceil(1.5 * sigma / step - 0.5)  # a pixel lies up to half a cell from its own node
            self.size = height, width
        start = margin * step
        self.inside = (slice(None), slice(start, start + height), slice(start, start + width))
        self.window = 2 * radius + 1
        cells = torch.arange(-radius, radius + 1) * step
        pixels = torch.arange(step) - node  # from the node of their own cell
        offset = (pixels[:, None] - cells) ** 2  # (step, window)
        distance = (offset[:, None, :, None] + offset[None, :, None, :]).sqrt()  # (step, step, window, window)
        profile = torch.exp(-2 * (distance / sigma - 0.5).clamp(min=0) ** 2)
        self.kernel = profile.flatten(2).flatten(0, 1).to(device)  # (step^2, window^2)
        # a product, because padding's backward pass on a GPU has no fixed order of summation
        self.pad = [_padding(n, radius + margin, repeat=not released).to(device) for n in self.grid]

    def __call__(self, nodes: Tensor) -> Tensor:
        rows, columns = (pad.to(nodes.dtype) for pad in self.pad)
        padded = rows @ nodes @ columns.T
        windows = F.unfold(padded[:, None], self.window)  # (R, window^2, h w)
        kernel = self.kernel.to(nodes.dtype)
        together = 1 if nodes.device.type == "cpu" else len(nodes)  # the products of one row fit a processor's cache
        parts = [_SmoothMax.apply(part, kernel, self.window) for part in windows.split(together)]
        maxima = torch.cat(parts)  # (R, step^2, h w)
        cells = [side - self.window + 1 for side in padded.shape[1:]]
        masks = F.pixel_shuffle(maxima.unflatten(2, cells), self.step)[:, 0]
        return masks[:, : self.size[0], : self.size[1]]


def _padding(nodes: int, around: int, repeat: bool) -> Tensor:
    """What puts so many nodes around those of an axis, (nodes + 2 around, nodes): the outermost again, or 0."""
    source = torch.arange(-around, nodes + around)
    matrix = torch.eye(nodes)[source.clamp(0, nodes - 1)]
    return matrix if repeat else matrix * ((source >= 0) & (source < nodes))[:, None]


class _SmoothMax(torch.autograd.Function):
    """smax_n k_sn g_rnl, (R,S,L), of windows g (R,N,L) and kernel k (S,N), `group` nodes n at a time.

    The products (R,S,N,L) are too many to keep, so the backward pass makes them again:
    d smax / d f_n = exp(f_n / T) / (sum exp(f / T)) (1 + (f_n - smax) / T).
    """

    @staticmethod
    def forward(ctx, windows: Tensor, kernel: Tensor, group: int) -> Tensor:  # type: ignore[no-untyped-def]
        shape = (len(windows), len(kernel), windows.shape[2])
        numerator, denominator = windows.new_zeros(shape), windows.new_zeros(shape)
        for window, weight in zip(windows.split(group, 1), kernel.split(group, 1), strict=True):
            value = weight[..., None] * window[:, None]  # (R, S, n, L)
            share = (value * SHARPNESS).exp_()
            denominator += share.sum(2)
            numerator += value.mul_(share).sum(2)
        maximum = numerator.div_(denominator)
        ctx.save_for_backward(windows, kernel, maximum, denominator)
        ctx.group = group
        return maximum

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        windows, kernel, maximum, denominator = ctx.saved_tensors
        scaled = (gradient / denominator)[:, :, None]
        level = (1 - SHARPNESS * maximum)[:, :, None]
        parts = []
        for window, weight in zip(windows.split(ctx.group, 1), kernel.split(ctx.group, 1), strict=True):
            exponent = (SHARPNESS * weight)[..., None] * window[:, None]  # f / T, (R, S, n, L)
            slope = exponent.exp().mul_(exponent.add_(level)).mul_(scaled)
            parts.append(slope.mul_(weight[..., None]).sum(1))
        return torch.cat(parts, 1), None, None


def ideal_step(masks: Tensor, ones: Tensor) -> Tensor:
    """What each pixel of masks (R,H,W) would be if the `ones` (R,) largest were 1 and the others 0, (R,H,W).

    Values at the cut that are equal but for `ROUNDING` share the ones that are left: a constant mask asks the
    same of all pixels, and no corner of the image is favoured.
    """
    above, level, places = largest(masks.flatten(1), ones, ROUNDING)
    share = places / level.sum(1)
    return (above + level * share[:, None]).view_as(masks)
