"""The gradient for images with few channels, against autograd."""

import pytest
import torch
from torch import nn

from camexp.models.subpixel import cell_weight, image_gradient, takes


@pytest.mark.parametrize("kernel", range(1, 12))
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_gradients_are_the_same(kernel: int, stride: int) -> None:
    """For every padding that is taken, and every rest that the last window leaves."""
    torch.manual_seed(0)
    known = 0
    for padding in range(kernel + 1):
        convolution = nn.Conv2d(1, 2, kernel, stride, padding).double().requires_grad_(False)
        if not takes(convolution):
            continue
        known += 1
        for size in range(max(1, kernel - 2 * padding), kernel + 2 * stride + 1):
            images = torch.randn(1, 1, size, size + 1, dtype=torch.float64, requires_grad=True)
            product = convolution(images)
            upper = torch.randn_like(product)
            (expected,) = torch.autograd.grad(product, images, upper)
            found = image_gradient(upper, cell_weight(convolution.weight, stride), convolution, images.shape)
            torch.testing.assert_close(found, expected)
    assert known > 0


def test_by_hand() -> None:
    """y_o = I_{2o-1} + 10 I_{2o} + 100 I_{2o+1} both ways: dy_0/dI is 10, 100 from 0 on, dy_1/dI 1, 10, 100."""
    convolution = nn.Conv2d(1, 1, 3, 2, 1, bias=False)
    line = torch.tensor([1.0, 10, 100])
    weight = line[:, None] * line
    assert takes(convolution)
    upper = torch.tensor([[[[1.0, 0], [0, 2]]]])
    found = image_gradient(upper, cell_weight(weight[None, None], 2), convolution, torch.Size([1, 1, 4, 4]))
    first, second = torch.tensor([10.0, 100, 0, 0]), torch.tensor([0.0, 1, 10, 100])
    assert torch.equal(found[0, 0], first[:, None] * first + 2 * second[:, None] * second)


def test_what_no_window_covers_is_0() -> None:
    single = nn.Conv2d(1, 2, 1, 3)
    assert takes(single)
    upper, cells = torch.ones(1, 2, 2, 2), cell_weight(single.weight.detach(), 3)
    found = image_gradient(upper, cells, single, torch.Size([1, 1, 6, 6]))
    assert found.shape == (1, 1, 6, 6)
    assert found.nonzero()[:, 2:].tolist() == [[0, 0], [0, 3], [3, 0], [3, 3]]


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(5, 8, 7, stride=2, padding=3),
        nn.Conv2d(3, 8, 1, stride=3),
        nn.Conv2d(3, 8, 7, stride=(2, 1), padding=3),
        nn.Conv2d(3, 8, (7, 5), stride=2, padding=3),
        nn.Conv2d(3, 8, 7, stride=2, padding=(3, 2)),
        nn.Conv2d(3, 8, 7, stride=2, padding=3, dilation=2),
        nn.Conv2d(2, 8, 7, stride=2, padding=3, groups=2),
        nn.Conv2d(3, 8, 4, stride=2, padding=0),  # would need one cell more at the end
        nn.Conv2d(3, 8, 1, stride=2, padding=2),
    ],
    ids=["stride", "channels", "cells", "strides", "kernels", "paddings", "dilation", "groups", "end", "padding"],
)
def test_others_are_refused(convolution: nn.Conv2d) -> None:
    assert not takes(convolution)


def test_stems_are_taken() -> None:
    assert takes(nn.Conv2d(3, 64, 7, stride=2, padding=3))
    assert takes(nn.Conv2d(3, 32, 3, stride=2, padding=1))
