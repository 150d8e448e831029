"""3 x 3 convolutions with a quarter of the multiplications."""

import copy
from fractions import Fraction

import pytest
import torch
from conftest import Operations
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from camexp.methods.gradient import Gradient
from camexp.models import winograd
from camexp.models.build import build
from camexp.models.classifier import Classifier
from camexp.models.fold import fold_batch_norms
from camexp.models.pack import pack_convolutions
from camexp.models.speed_up import speed_up
from camexp.pairs import Pairs

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")

SIZES = [(1, 128, 28, 28), (1, 128, 29, 30), (3, 128, 45, 46), (9, 128, 14, 17), (2, 128, 80, 72), (12, 128, 8, 7)]
"""One image, several of them, a part of one at a time; sides that are multiples of four or not."""


@pytest.fixture(autouse=True)
def _little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are of small images."""
    monkeypatch.setattr(winograd, "LEAST_WORK", 0)


def images(*size: int) -> Tensor:
    batch = torch.randn(*size, generator=torch.Generator().manual_seed(1))
    return batch.contiguous(memory_format=torch.channels_last)


def convolution(channels: int = 128, filters: int = 160, **settings) -> nn.Conv2d:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    made = nn.Conv2d(channels, filters, **({"kernel_size": 3, "padding": 1} | settings)).requires_grad_(False)
    return made.to(memory_format=torch.channels_last)


def with_winograd(plain: nn.Conv2d) -> nn.Conv2d:
    packed = copy.deepcopy(plain)
    assert pack_convolutions(packed, with_winograd=True) == 1
    return packed


class Counted(Operations):
    """Counts what only Winograd's way does."""

    @property
    def transforms(self) -> int:
        return self.count("bmm")

    @property
    def orders(self) -> int:
        return self.count("_reorder_convolution_weight")


# ------------------------------------------------------------------------------------------------ the formula


def test_usual_points_give_the_matrices_of_the_paper() -> None:
    result, filters, tile = winograd.matrices((0, 1, -1, 2, -2))
    assert result.tolist() == [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
    assert (24 * filters).round(decimals=12).tolist() == [
        [6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]
    ]  # fmt: skip
    assert tile.tolist() == [
        [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
    ]  # fmt: skip


@pytest.mark.parametrize("points", [winograd.POINTS, (0, 1, -1, 2, -2)])
def test_six_products_give_four_sums_of_three(points: tuple[float, ...]) -> None:
    result, filters, tile = winograd.matrices(points)
    pixels, weights = torch.tensor([3.0, -1, 4, 1, -5, 9]).double(), torch.tensor([2.0, 7, -1]).double()
    found = result @ ((filters @ weights) * (tile @ pixels))
    assert found.tolist() == pytest.approx([-5, 25, 20, -42])  # 3 2 - 1 7 - 4 1, ...


def test_matrices_are_exact_in_the_numbers_that_are_computed_with() -> None:
    for single, double in ((winograd.A32, winograd.A), (winograd.B32, winograd.B)):
        assert torch.equal(single.double(), double)
        assert all(Fraction(value).denominator <= 2**14 for value in double.flatten().tolist())


def test_product_is_the_formula_tile_by_tile() -> None:
    batch, plain = images(2, 3, 7, 9), convolution(3, 5)
    result, filters, tile = winograd.matrices()
    framed = F.pad(batch, (1, 4, 1, 2)).double()
    expected = torch.zeros(2, 5, 8, 12, dtype=torch.float64)
    for n in range(2):
        for top in range(0, 8, 4):
            for left in range(0, 12, 4):
                for k in range(5):
                    total = torch.zeros(6, 6, dtype=torch.float64)
                    for c in range(3):
                        pixels = framed[n, c, top : top + 6, left : left + 6]
                        total += (filters @ plain.weight[k, c].double() @ filters.T) * (tile @ pixels @ tile.T)
                    expected[n, k, top : top + 4, left : left + 4] = result @ total @ result.T + plain.bias[k]
    expected = expected[:, :, :7, :9]
    usual = F.conv2d(batch.double(), plain.weight.double(), plain.bias.double(), padding=1)
    torch.testing.assert_close(expected, usual)
    found = winograd.product(batch, 5, lambda tiles: winograd.order(plain.weight, tiles), plain.bias)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------ as convolutions


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_convolutions_are_the_same(size: tuple[int, ...]) -> None:
    plain = convolution()
    packed, batch = with_winograd(plain), images(*size)
    with Counted() as counted, torch.inference_mode():
        found = packed(batch)
    assert counted.transforms > 0
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, plain(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_are_the_same(size: tuple[int, ...]) -> None:
    plain, gradients = convolution(bias=False), []
    for each in (plain, with_winograd(plain)):
        batch = images(*size).requires_grad_()
        with Counted() as counted:
            found = each(batch)
            forth = counted.transforms
            found.square().sum().backward()
        assert (forth > 0, counted.transforms > forth) == (each is not plain,) * 2
        gradients.append(batch.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-3)


def test_what_follows_is_done_as_well() -> None:
    plain = convolution(128, 128)
    product = vars(with_winograd(plain))["_conv_forward"]
    batch, plus = images(3, 128, 16, 16), images(3, 128, 16, 16).flip(0)
    for way, expected in (
        ({}, plain(batch)),
        ({"then": "relu"}, plain(batch).relu()),
        ({"plus": plus}, plain(batch) + plus),
        ({"plus": plus.clone(), "then": "relu", "over": True}, (plain(batch) + plus).relu()),
    ):
        found = product.product(batch, plain.weight, plain.bias, **way)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plus, images(3, 128, 16, 16).flip(0))


@pytest.mark.parametrize("side", [16, 18])
def test_results_may_be_changed_in_place(side: int) -> None:
    gradients = []
    for each in (plain := convolution(), with_winograd(plain)):
        batch = images(4, 128, side, side).requires_grad_()
        found = each(batch)
        found += batch.sum()
        found.relu_().square().sum().backward()
        gradients.append(batch.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-2)


def test_blocks_are_the_same_fused_or_not_forth_and_back() -> None:
    torch.manual_seed(0)
    block = BasicBlock(128, 128).eval().requires_grad_(False)
    fold_batch_norms(block)
    results = []
    for switches in ((False, False, False), (True, True, False), (True, True, True)):
        network = copy.deepcopy(block).to(memory_format=torch.channels_last)
        speed_up(network, *switches, onednn_linear=False)
        batch = images(4, 128, 16, 16).requires_grad_()
        with Counted() as counted:
            found = network(batch)
            found.square().sum().backward()
        assert counted.transforms == 8 * switches[1]  # two convolutions, forth and back, two each
        results.append((found.detach(), batch.grad))
    for each in results[1:]:
        torch.testing.assert_close(each, results[0], rtol=1e-4, atol=1e-4)


def test_networks_at_full_width_give_the_same_maps() -> None:
    pictures = images(2, 3, 64, 64)
    pairs = Pairs(torch.tensor([0, 1]), torch.tensor([2, 0]), ("a", "b"))
    torch.manual_seed(0)
    network = build("vgg16", 3, 1.0, 16)
    found = []
    for switch in (False, True):
        classifier = Classifier(copy.deepcopy(network), {"cam": "features.29"}, winograd=switch)
        with Counted() as counted:
            found.append((classifier.logits(pictures), Gradient()(classifier, pictures, pairs)))
        assert (counted.transforms > 0) == switch
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    cosines = torch.cosine_similarity(*(maps.flatten(1) for _, maps in found))
    assert cosines.min() > 0.9999


@pytest.mark.parametrize(("number", "rows", "columns"), [(1, 4, 4), (40, 4, 4), (3, 7, 7), (2, 28, 28), (2, 70, 100)])
def test_tiles_in_hand_are_few_and_every_tile_is_once(number: int, rows: int, columns: int) -> None:
    seen = torch.zeros(number, rows, columns, dtype=torch.long)
    for some in winograd._at_once(number, rows, columns):
        assert 0 < seen[some].numel() <= winograd.AT_ONCE
        seen[some] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("number", [1, 16, 17, 32, 33, 49, 64, 65, 196, 256])
def test_parts_are_of_two_sizes_and_little_is_computed_for_nothing(number: int) -> None:
    parts = winograd._parts(number)
    assert set(parts) <= {winograd.FEW, winograd.MANY}
    assert 0 <= sum(parts) - number < winograd.MANY // 2
    assert parts == sorted(parts, reverse=True)


def test_double_gradients_go_the_usual_way() -> None:
    gradients = []
    for each in (plain := convolution(), with_winograd(plain)):
        batch = images(3, 128, 16, 16).requires_grad_()
        (first,) = torch.autograd.grad(each(batch).square().sum(), batch, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), batch)
        gradients.append(second)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)


def test_nothing_is_where_the_operations_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = convolution()
    monkeypatch.setattr(winograd, "order", lambda weight, tiles: (_ for _ in ()).throw(RuntimeError("no such kernel")))
    assert not winograd.works()
    packed = with_winograd(plain)
    with Counted() as counted:
        packed(images(3, 128, 16, 16))
    assert (counted.transforms, counted.orders) == (0, 1)


def test_differences_are_computed_directly_and_their_gradients_are_not() -> None:
    """DeepLIFT asks whether they are exactly 0."""
    plain = convolution()
    packed, asked = with_winograd(plain), []
    batches = [images(3, 128, 16, 16).requires_grad_() for _ in range(2)]

    class Own:
        def weighted(self, function, weight, bias, usual):  # type: ignore[no-untyped-def]
            asked.append(function)
            return function(batches[0], weight, bias)

    with Counted() as counted:
        found = packed._conv_forward(Own(), packed.weight, packed.bias)
        assert counted.transforms == 0
        found.square().sum().backward()
        assert counted.transforms > 0
    assert asked
    expected = plain(batches[1])
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(batches[0].grad, batches[1].grad, rtol=1e-4, atol=1e-3)


def test_rounding_error_is_at_most_four_times_that_of_the_plain_sum() -> None:
    plain = convolution(512, 512, bias=False)
    batch = images(4, 512, 16, 16).relu()
    exact = F.conv2d(batch.double(), plain.weight.double(), padding=1)
    errors = [(each(batch) - exact).square().mean().sqrt() for each in (with_winograd(plain), plain)]
    assert errors[0] < 4 * errors[1]


def test_no_light_gives_the_bias_to_the_bit() -> None:
    plain = convolution()
    found = with_winograd(plain)(images(3, 128, 16, 16) * 0)
    assert torch.equal(found, plain.bias[:, None, None].expand_as(found))


def test_what_is_not_a_number_is_seen() -> None:
    batch = images(3, 128, 16, 16)
    batch[0, 5, 3, 3] = torch.nan
    found = with_winograd(convolution())(batch)[0]
    assert found[:, 2:5, 2:5].isnan().all()
    assert found[:, 8:].isfinite().all()


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"channels": 64}, 16), ({"filters": 80}, 16), ({"kernel_size": 1, "padding": 0}, 16),
        ({"kernel_size": 5, "padding": 2}, 16), ({"padding": 0}, 16), ({"padding": 2}, 16), ({"stride": 2}, 16),
        ({"dilation": 2}, 16), ({"groups": 2}, 16), ({}, 12),  # 27 tiles
    ],
)  # fmt: skip
def test_others_are_convolved_as_before(settings: dict[str, int], side: int) -> None:
    plain = convolution(**settings)
    packed = with_winograd(plain)
    results = []
    for each in (plain, packed):
        batch = images(3, plain.in_channels, side, side).requires_grad_()
        with Counted() as counted:
            found = each(batch)
            found.square().sum().backward()
        assert counted.transforms == 0
        results.append((found, batch.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "size", "taken"),
    [(128, (6, 128, 28, 28), True), (128, (5, 128, 28, 28), False), (512, (1, 512, 28, 28), True)],
)
def test_little_work_is_left_to_the_usual_way(
    channels: int, size: tuple[int, ...], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert winograd.takes(convolution(channels, channels), torch.Size(size)) == taken


def test_switched_off_nothing_is() -> None:
    packed = convolution()
    pack_convolutions(packed)
    with Counted() as counted:
        packed(images(3, 128, 16, 16))
    assert counted.transforms == 0


# ----------------------------------------------------------------------------------------------- what is kept


def test_filters_are_made_once_whatever_the_number_of_images_and_their_size() -> None:
    plain = convolution()
    packed = with_winograd(plain)
    with Counted() as counted:
        for size, made in (((4, 16, 16), 1), ((3, 16, 16), 1), ((5, 16, 16), 2), ((3, 45, 46), 2), ((1, 20, 37), 2)):
            batch = images(size[0], 128, *size[1:])
            torch.testing.assert_close(packed(batch), plain(batch), rtol=1e-4, atol=1e-5)
            assert counted.orders == made


def test_filters_are_made_anew_for_other_weights_and_by_copies() -> None:
    plain = convolution()
    packed, batch = with_winograd(plain), images(3, 128, 16, 16)
    packed(batch)
    for each in (plain, packed):
        each.weight.mul_(2)
    torch.testing.assert_close(packed(batch), plain(batch), rtol=1e-4, atol=1e-5)
    copied = copy.deepcopy(packed)
    for each in (plain, copied):
        each.weight.neg_()
    with Counted() as counted:
        torch.testing.assert_close(copied(batch), plain(batch), rtol=1e-4, atol=1e-5)
    assert counted.orders == 1
