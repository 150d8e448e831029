"""The gradient of a convolution for images with few channels, as a convolution that makes several pixels at once.

A processor computes 16 channels at once, also where the images have only three, and most of its work is for nothing.
With stride s the s x s pixels of one cell are s^2 times as many channels, whose gradients are one plain convolution
(the equivalence of Shi et al., arXiv 1609.07009): for y_o = sum_k W_k I_{s o + k - p} with padding p

    dL/dI_{s q + r - p} = sum_j W_{r + s j} dL/dy_{q - j},   r in {0..s-1}^2,   W = 0 beyond its own size

Where dL/dy is not a number, so is more of dL/dI than in the strided convolution's gradient.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 16
"""That a processor computes at once."""


def takes(convolution: nn.Conv2d) -> bool:
    """Whether all pixels of a cell are so few channels, and the convolution is one that `image_gradient` knows."""
    c, stride = convolution, convolution.stride[0]
    if stride == 1 or c.in_channels * stride**2 > CHANNELS or c.groups > 1 or c.dilation != (1, 1):
        return False
    kernel, padding = c.kernel_size[0], c.padding[0]
    same_both_ways = all(pair[0] == pair[1] for pair in (c.kernel_size, c.stride, c.padding))
    whole, beyond = divmod(int(padding), stride)
    cells = -(-kernel // stride)
    reached = cells > whole and cells * stride + beyond >= kernel + stride - 1  # the last pixels of any image
    return same_both_ways and reached


def cell_weight(weight: Tensor, stride: int) -> Tensor:
    """The weight (C s^2, K, J, J) of the plain convolution, J = ceil(k / s), from that of the strided one (K,C,k,k)."""
    s, size = stride, weight.shape[2]
    cells = -(-size // s)
    whole = F.pad(weight, (0, cells * s - size) * 2)
    whole = whole.unflatten(3, (cells, s)).unflatten(2, (cells, s)).flip(2, 4)  # (K, C, J, s, J, s)
    return whole.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).contiguous(memory_format=torch.channels_last)


def image_gradient(upper: Tensor, cells: Tensor, convolution: nn.Conv2d, size: torch.Size) -> Tensor:
    """dL/dI for images I of a size (N,C,H,W), from dL/dy (N,K,h,w) for their product y and from `cell_weight`."""
    stride, (height, width) = convolution.stride[0], size[2:]
    whole, beyond = divmod(int(convolution.padding[0]), stride)  # cells and pixels of the padding
    deep = F.conv2d(upper, cells, padding=cells.shape[2] - 1 - whole)  # (N, C s^2, ...)
    return F.pixel_shuffle(deep, stride)[:, :, beyond : beyond + height, beyond : beyond + width]
