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

from collections.abc import Callable, Iterator, Sequence
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
"""Channels in by channels out: with fewer, giving tiles their other form and back takes as long as is saved."""

LEAST_TILES = 48
"""In a pass: with fewer, reading the filters, four times as large in their other form, takes as long as is saved."""

LEAST_WORK = 2**22
"""Filters by tiles: with less, starting a dozen operations instead of one takes as long as is saved."""

FEW, MANY = 16, 64
"""Tiles of a grouped convolution: always the same numbers, because the order of the filters in memory hangs on them."""

AT_ONCE = 1024
"""Tiles that are cut out at once, so that large images need little more memory than small ones."""


def matrices(points: Sequence[float] = POINTS) -> tuple[Tensor, Tensor, Tensor]:
    """A^T (4,6), G (6,3) and B^T (6,6) in float64, exact but for the quotients of G."""
    others = [np.delete(points, i) for i in range(len(points))]
    infinity = [[0.0] * (size - 1) + [1.0] for size in (STEP, KERNEL)]
    result = np.column_stack([np.vander(points, STEP, increasing=True).T, infinity[0]])
    scale = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]
    filters = np.vstack([np.vander(points, KERNEL, increasing=True) / scale, infinity[1]])
    rows = [*(np.append(np.poly(rest)[::-1], 0.0) for rest in others), np.poly(points)[::-1]]  # by powers, from 0 on
    return torch.from_numpy(result), torch.from_numpy(filters), torch.from_numpy(np.array(rows))


A, G, B = (torch.kron(matrix, matrix) for matrix in matrices())
"""Both sides of the formula at once, for pixels in one row: (16,36), (36,9) and (36,36)."""

A32, B32 = A.float(), B.float()

PRODUCTS: tuple[Any, ...] = ([0, 0], [1, 1], [1, 1], TILE**2)
"""Padding, stride, dilation and groups of the grouped convolution."""


def takes(convolution: nn.Conv2d, size: torch.Size) -> bool:
    """Whether it is worth it for the convolution of images of a size (N,C,H,W), or for the way back to them."""
    c = convolution
    rows, columns = _tiles(size)
    filters, tiles = c.in_channels * c.out_channels, size[0] * rows * columns
    return (
        (c.kernel_size, c.padding, c.stride, c.dilation, c.groups) == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        and filters >= LEAST_FILTERS
        and tiles >= LEAST_TILES
        and filters * tiles >= LEAST_WORK
    )


def of_gradient(weight: Tensor) -> Tensor:
    """The weight (C,K,3,3) with which dL/dy becomes dL/dI, for the product y of images I and weights (K,C,3,3)."""
    return weight.flip(2, 3).transpose(0, 1)


def order(weight: Tensor, tiles: int) -> Tensor:
    """G g G^T for all g of a weight (K,C,3,3), in the order in which oneDNN reads them for so many tiles."""
    filters = (G @ weight.double().flatten(2).movedim(2, 0).flatten(1)).float()  # (36, K C)
    filters = filters.view(TILE**2 * weight.shape[0], weight.shape[1], 1, 1)
    size = (1, TILE**2 * weight.shape[1], 1, tiles)
    return torch.ops.mkldnn._reorder_convolution_weight(filters, *PRODUCTS, size)


def product(images: Tensor, outputs: int, filters: Callable[[int], Tensor], bias: Tensor | None) -> Tensor:
    """The convolution of images with zeros around them.

    Parameters
    ----------
    images: (N,C,H,W) in channels-last order.
    outputs: K.
    filters: their `order` for so many tiles, `FEW` or `MANY`.
    bias: (K,), or none.

    Returns
    -------
    (N,K,H,W) in channels-last order.
    """
    (number, _, height, width), (rows, columns) = images.shape, _tiles(images.shape)
    bias = images.new_zeros(outputs) if bias is None else bias
    size = (number, outputs, rows * STEP, columns * STEP)
    found = torch.empty(size, dtype=images.dtype, memory_format=torch.channels_last)
    cells = found.permute(0, 2, 3, 1).unflatten(2, (columns, STEP)).unflatten(1, (rows, STEP))
    cells = cells.transpose(2, 3)  # (N, rows, columns, 4, 4, K), in the memory of `found`
    framed = F.pad(images, (1, columns * STEP - width + 1, 1, rows * STEP - height + 1))
    framed = framed.permute(0, 2, 3, 1)  # (N, 4 rows + 2, 4 columns + 2, C)
    tiles = framed.unfold(1, TILE, STEP).unfold(2, TILE, STEP).movedim(3, 5)  # (N, rows, columns, 6, 6, C)
    for some in _at_once(number, rows, columns):
        into = cells[some]  # (..., 4, 4, K)
        torch.add(_results(tiles[some], outputs, filters).view(into.shape), bias, out=into)
    whole = found.shape[2:] == (height, width)
    return found if whole else found[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


def _results(tiles: Tensor, outputs: int, filters: Callable[[int], Tensor]) -> Tensor:
    """Y (T,16,K) of tiles d (...,6,6,C), T in all."""
    number, channels = tiles.shape[:-3].numel(), tiles.shape[-1]
    parts = _parts(number)
    d, y = tiles.new_empty(sum(parts), TILE**2, channels), tiles.new_empty(sum(parts), STEP**2, outputs)
    d[:number].view(tiles.shape).copy_(tiles)
    d[number:].zero_()
    for some, into in zip(d.split(parts), y.split(parts), strict=True):
        count = len(some)
        forms = torch.bmm(B32.expand(count, -1, -1), some)  # B^T d B
        forms = forms.view(1, 1, count, -1).permute(0, 3, 1, 2)  # (1, 36 C, 1, T) in channels-last order; sums: 36 K
        sums = torch.ops.mkldnn._convolution_pointwise(forms, filters(count), None, *PRODUCTS, "none", [], "")
        torch.bmm(A32.expand(count, -1, -1), sums.permute(0, 2, 3, 1).view(count, -1, outputs), out=into)
    return y[:number]


def _tiles(size: torch.Size) -> tuple[int, int]:
    """Rows and columns of tiles of one of the images of a size (N,C,H,W)."""
    return -(-size[2] // STEP), -(-size[3] // STEP)


def _at_once(number: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """The images, and the rows of tiles in them, that are cut out at once."""
    images, band = max(1, AT_ONCE // (rows * columns)), max(1, AT_ONCE // columns)
    for first in range(0, number, images):
        for top in range(0, rows, band):
            yield slice(first, first + images), slice(top, top + band)


def _parts(number: int) -> list[int]:
    """So many tiles in parts of `MANY`, and at the end of `FEW` where less is computed for nothing."""
    many, rest = divmod(number, MANY)
    few = -(-rest // FEW)
    return [MANY] * many + ([FEW] * few if few <= MANY // FEW // 2 else [MANY])


def works() -> bool:
    """Whether oneDNN's operations are there and do what they are for here."""
    weight, images = torch.linspace(-1, 1, 54).view(3, 2, 3, 3), torch.linspace(-1, 1, 800).view(1, 2, 20, 20)
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        found = [product(part, 3, lambda tiles: order(weight, tiles), None) for part in (images, images[:, :, 4:8])]
    except (AttributeError, TypeError, RuntimeError):
        return False
    usual = F.conv2d(images, weight, padding=1), F.conv2d(images[:, :, 4:8], weight, padding=1)
    return all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, usual, strict=True))
