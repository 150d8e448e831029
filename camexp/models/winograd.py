"""Convolutions of 3 x 3 pixels with a quarter of the multiplications.

Winograd's minimal filtering F(4x4, 3x3), as Lavin and Gray apply it to networks (arXiv 1509.09308): of tiles d of 6 x 6
pixels, four apart, and filters g come 4 x 4 pixels of the result each,

    Y = A^T [ sum_c (G g_c G^T) o (B^T d_c B) ] A

with 36 products per channel instead of 144. For all tiles they are 36 products of matrices (tiles, channels) and
(channels, filters), which to oneDNN are one grouped convolution of 1 x 1.

The matrices follow from five points and infinity (Toom and Cook). With the paper's points, 0, 1, -1, 2 and -2, the
rounding error is six times that of the plain sum, with those here three times; that the choice matters so much is from
Barabasz et al. (arXiv 1803.10986).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEP, KERNEL = 4, 3
TILE = STEP + KERNEL - 1

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Beside infinity."""

LEAST_FILTERS = 2**14
"""Channels in by channels out: with fewer, bringing tiles into their other form and back takes as long as is saved."""

LEAST_TILES = 16
"""Of an image: with fewer, reading the filters, four times as large in their other form, does."""

TILES_IN_HAND = 128
"""From which on more at a time are not faster."""


def matrices(points: Sequence[float] = POINTS) -> tuple[Tensor, Tensor, Tensor]:
    """A^T (4,6), G (6,3) and B^T (6,6) in float64, exact but for the quotients of G."""
    others = [np.delete(points, i) for i in range(len(points))]
    infinity = [[0.0] * (size - 1) + [1.0] for size in (STEP, KERNEL)]
    back = np.column_stack([np.vander(points, STEP, increasing=True).T, infinity[0]])
    scale = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]
    filters = np.vstack([np.vander(points, KERNEL, increasing=True) / scale, infinity[1]])
    rows = [*(np.append(np.poly(rest)[::-1], 0.0) for rest in others), np.poly(points)[::-1]]  # by powers, from 0 on
    return torch.from_numpy(back), torch.from_numpy(filters), torch.from_numpy(np.array(rows))


OF_RESULT, OF_FILTER, OF_TILE = (torch.kron(matrix, matrix) for matrix in matrices())
"""Both sides at once, for pixels in one row: (16,36), (36,9) and (36,36)."""

FORTH, BACK = OF_TILE.float(), OF_RESULT.float()

PRODUCTS: tuple[Any, ...] = ([0, 0], [1, 1], [1, 1], TILE**2)
"""Padding, stride, dilation and groups of the grouped convolution."""


def takes(convolution: nn.Conv2d, size: torch.Size) -> bool:
    """Whether it is worth it for the convolution of images of a size (N,C,H,W), or for the way back to them."""
    c = convolution
    return (
        (c.kernel_size, c.padding, c.stride, c.dilation, c.groups) == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        and c.in_channels * c.out_channels >= LEAST_FILTERS
        and tiles_of(size) >= LEAST_TILES
    )


def tiles_of(size: torch.Size) -> int:
    """Of one of the images of a size (N,C,H,W)."""
    return -(-size[2] // STEP) * -(-size[3] // STEP)


def in_hand(size: torch.Size) -> list[int]:
    """How many of the images of a size (N,C,H,W) are computed at a time: so many as often as there are, then one."""
    several = -(-TILES_IN_HAND // tiles_of(size))
    times, rest = divmod(size[0], several)
    return [several] * times + [1] * rest


def of_gradient(weight: Tensor) -> Tensor:
    """The weight (C,K,3,3) with which dL/dy becomes dL/dI, for the product y of images I and weights (K,C,3,3)."""
    return weight.flip(2, 3).transpose(0, 1)


def order(weight: Tensor, tiles: int) -> Tensor:
    """G g G^T for all g of a weight (K,C,3,3), in the order in which oneDNN reads them for so many tiles in hand."""
    filters = (OF_FILTER @ weight.double().flatten(2).movedim(2, 0).flatten(1)).float()  # (36, K C)
    filters = filters.view(TILE**2 * weight.shape[0], weight.shape[1], 1, 1)
    size = (1, TILE**2 * weight.shape[1], 1, tiles)
    return torch.ops.mkldnn._reorder_convolution_weight(filters, *PRODUCTS, size)


def product(images: Tensor, outputs: int, filters: Callable[[int], Tensor], bias: Tensor | None) -> Tensor:
    """The convolution of images with zeros around them.

    Parameters
    ----------
    images: (N,C,H,W) in channels-last order.
    outputs: K.
    filters: their `order` for so many tiles at a time.
    bias: (K,), or none.

    Returns
    -------
    (N,K,H,W) in channels-last order.
    """
    size, bias = images.shape, images.new_zeros(outputs) if bias is None else bias
    rows, columns = -(-size[2] // STEP), -(-size[3] // STEP)
    found = images.new_empty(size[0], rows * STEP, columns * STEP, outputs)
    cells = found.unflatten(2, (columns, STEP)).unflatten(1, (rows, STEP)).transpose(2, 3)  # (N, rows, columns, ...)
    numbers = in_hand(size)
    for some, into in zip(images.split(numbers), cells.split(numbers), strict=True):
        tiles = cut(some, rows, columns)
        forms = torch.bmm(FORTH.expand(len(tiles), -1, -1), tiles)
        forms = forms.flatten(1)[None, None].permute(0, 3, 1, 2)  # (1, 36 C, 1, tiles) in channels-last order
        forms = torch.ops.mkldnn._convolution_pointwise(forms, filters(len(tiles)), None, *PRODUCTS, "none", [], "")
        forms = forms.permute(0, 2, 3, 1).reshape(len(tiles), TILE**2, outputs)
        torch.add(torch.bmm(BACK.expand(len(tiles), -1, -1), forms).view(into.shape), bias, out=into)
    return found[:, : size[2], : size[3]].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def cut(images: Tensor, rows: int, columns: int) -> Tensor:
    """The tiles (N rows columns, 36, C) of images (N,C,H,W), four pixels apart, with zeros around them."""
    height, width = images.shape[2:]
    framed = F.pad(images, (1, columns * STEP - width + 1, 1, rows * STEP - height + 1)).permute(0, 2, 3, 1)
    tiles = framed.unfold(1, TILE, STEP).unfold(2, TILE, STEP)  # (N, rows, columns, C, 6, 6)
    return tiles.movedim(3, 5).reshape(-1, TILE**2, images.shape[1])
