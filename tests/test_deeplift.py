"""DeepLIFT against hand computations, the paper's formulas written as loops, captum, and its axiom."""

import copy
import itertools
from itertools import pairwise
from typing import Any

import pytest
import torch
from captum.attr import DeepLift
from conftest import Operations, make_batch, make_classifier, tiny_network
from torch import Tensor, nn
from torch.nn import functional as F

from camexp.errors import CamexpError
from camexp.methods import _deeplift_secants
from camexp.methods._deeplift_secants import at, elementwise_secant, relu_secant
from camexp.methods.deeplift import DeepLIFT
from camexp.models.build import build
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

NONLINEAR = ("rescale", "revealcancel")


class Residual(nn.Module):
    """A small residual network, with one ReLU module for all places or one for each, and overlapping pooling."""

    def __init__(self, reused: bool = True, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.first = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.relus = nn.ModuleList([nn.ReLU(inplace=True)] * 3 if reused else [nn.ReLU() for _ in range(3)])
        self.pool = nn.MaxPool2d(2)
        self.average = nn.AdaptiveAvgPool2d(2)
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(24, 4)
        shake(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relus[0](self.stem(x)))
        out = self.second(self.relus[1](self.first(x)))
        out += x
        return self.fc(self.dropout(torch.flatten(self.average(self.relus[2](out)), 1)))


@torch.no_grad()
def shake(network: nn.Module) -> None:
    """Biases and batch statistics that are not zero: or the reference would be zero in all layers."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.weight, mean=0.5, std=0.5)  # some are negative


def pair(target: int = 0) -> Pairs:
    return Pairs(torch.tensor([0]), torch.tensor([target]), ("image",))


def dense(*layers: tuple[list[list[float]], list[float]]) -> Classifier:
    """Linear layers with ReLUs between them, on images (N,3,1,1)."""
    modules: list[nn.Module] = [nn.Flatten()]
    for weight, bias in layers:
        linear = nn.Linear(len(weight[0]), len(weight))
        linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
        modules += [linear, nn.ReLU(inplace=True)]
    return make_classifier(nn.Sequential(*modules[:-1]), layers={})


def contributions(classifier: Classifier, values: list[float], rule: str) -> list[float]:
    image = torch.tensor(values).view(1, 3, 1, 1)
    return DeepLIFT(rule).contributions(classifier, image, pair()).flatten().tolist()


def difference_of_logits(classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
    reference = classifier.logits(classifier.fill.expand(1, *images.shape[1:]))
    return (classifier.logits(images) - reference)[pairs.image, pairs.target]


# ------------------------------------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("rule", "expected"), [("rescale", [0.5, 0.5, 0]), ("revealcancel", [0.5, 0.5, 0]), ("linear", [0, 0, 0])]
)
def test_saturated_unit_hides_from_the_gradient_only(rule: str, expected: list[float]) -> None:
    saturated = dense(([[-1.0, -1, 0]], [1.0]), ([[-1.0]], [1.0]))  # y = 1 - ReLU(1 - x1 - x2)
    assert contributions(saturated, [1.0, 1.0, 0.3], rule) == pytest.approx(expected)


@pytest.mark.parametrize(("x1", "x2"), [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0)])
def test_revealcancel_shares_a_minimum_equally(x1: float, x2: float) -> None:
    minimum = dense(([[1.0, -1, 0], [1.0, 0, 0]], [0.0, 0]), ([[-1.0, 1]], [0.0]))  # x1 - ReLU(x1 - x2), x1 >= 0
    half = min(x1, x2) / 2
    assert contributions(minimum, [x1, x2, 0], "revealcancel") == pytest.approx([half, half, 0])
    credited = [0, x2, 0] if x1 > x2 else [x1, 0, 0]  # Rescale sees only the one that is smaller
    assert contributions(minimum, [x1, x2, 0], "rescale") == pytest.approx(credited)


@pytest.mark.parametrize("rule", NONLINEAR)
@pytest.mark.parametrize(
    ("image", "reference", "expected"),
    [
        ([1.0, 5.0, 4.0, 2.0], [0.0, 1.0, 3.0, 0.0], [0.0, 2.0, 0.0, 0.0]),  # 3 -> 5, risen at the second
        ([1.0, 0.5, -2.0, 0.0], [0.0, 1.0, 3.0, 0.0], [0.0, 0.0, -2.0, 0.0]),  # 3 -> 1, fallen from the third
        ([1.0, 0.5, -2.0, 1.5], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, -0.5]),  # all equal: who stays the largest
        ([2.0, 2.0, 2.0, 2.0], [1.0, 0.5, -2.0, 1.5], [0.0, 0.0, 0.0, 0.5]),
    ],
)
def test_difference_of_a_maximum_goes_to_the_input_that_decides(
    rule: str, image: list[float], reference: list[float], expected: list[float]
) -> None:
    fill = torch.tensor(reference).view(1, 2, 2).expand(3, 2, 2)
    classifier = make_classifier(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), layers={}, fill=fill)
    maps = DeepLIFT(rule).contributions(classifier, torch.tensor(image).view(1, 1, 2, 2).expand(1, 3, 2, 2), pair())[0]
    assert not maps[1:].any()  # class 0 is the first channel
    if rule == "rescale":
        assert maps[0].flatten().tolist() == pytest.approx(expected)
    assert maps[0].sum().item() == pytest.approx(sum(expected))


def test_revealcancel_shares_a_maximum_over_both_orders() -> None:
    classifier = make_classifier(nn.Sequential(nn.MaxPool2d((1, 2)), nn.Flatten()), layers={})
    classifier.fill = torch.tensor([[3.0, 1.0]]).expand(3, 1, 2)
    image = torch.tensor([[0.0, 2.0]]).expand(1, 3, 1, 2)
    # D = -3, 1. D_y+ = 1/2 [max(3, 2) - 3] + 1/2 [max(0, 2) - max(0, 1)] = 1/2
    # D_y- = 1/2 [max(0, 1) - 3] + 1/2 [max(0, 2) - max(3, 2)] = -3/2
    found = DeepLIFT("revealcancel").contributions(classifier, image, pair())[0, 0]
    assert found.flatten().tolist() == pytest.approx([-1.5, 0.5])


def test_linear_rule_is_gradient_times_difference() -> None:
    images, pairs = make_batch()
    classifier = make_classifier(fill=torch.tensor([0.1, -0.2, 0.3]).view(3, 1, 1))
    expected = classifier.input_gradients(images, pairs) * (images - classifier.fill)[pairs.image]
    assert torch.equal(DeepLIFT("linear").contributions(classifier, images, pairs), expected)
    assert torch.equal(DeepLIFT("linear")(classifier, images, pairs), expected.sum(1))


# ------------------------------------------------------------------------------- the paper's formulas


def naive_dense(weights: list[Tensor], biases: list[Tensor], x: Tensor, x0: Tensor, rule: str) -> Tensor:
    """Contributions (n,) to output 0 of linear layers with ReLUs between, one neuron and one weight at a time."""
    change, value = (x - x0).tolist(), x0.tolist()
    steps: list[list[list[float]]] = []  # per layer, [output][input]: multiplier of a contribution
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        new_change, new_value, step = [], [], []
        for w, b in zip(weight.tolist(), bias.tolist(), strict=True):
            parts = [wi * ci for wi, ci in zip(w, change, strict=True)]
            positive, negative = sum(p for p in parts if p > 0), sum(p for p in parts if p < 0)
            start = sum(wi * vi for wi, vi in zip(w, value, strict=True)) + b
            up = down = 1.0
            if layer < len(weights) - 1:
                up, down = naive_relu(start, positive, negative, rule)
                new_value.append(max(start, 0))
                new_change.append(max(start + positive + negative, 0) - max(start, 0))
            else:
                new_value.append(start)
                new_change.append(positive + negative)
            step.append([wi * {1: up, 0: (up + down) / 2, -1: down}[sign(p)] for wi, p in zip(w, parts, strict=True)])
        change, value = new_change, new_value
        steps.append(step)
    multipliers = torch.tensor(steps[-1][:1], dtype=torch.float64)
    for step in reversed(steps[:-1]):
        multipliers = multipliers @ torch.tensor(step, dtype=torch.float64)
    return multipliers[0] * (x - x0)


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def naive_relu(start: float, positive: float, negative: float, rule: str) -> tuple[float, float]:
    """Multipliers m+ and m- of a ReLU; of a part that is zero, the limit."""

    def f(x: float) -> float:
        return max(x, 0)

    def slope(x: float) -> float:
        return float(x > 0)

    if rule == "rescale":
        both = positive + negative
        m = (f(start + both) - f(start)) / both
        return m, m
    up = (f(start + positive) - f(start) + f(start + negative + positive) - f(start + negative)) / 2
    down = (f(start + negative) - f(start) + f(start + positive + negative) - f(start + positive)) / 2
    return (
        up / positive if positive else (slope(start) + slope(start + negative)) / 2,
        down / negative if negative else (slope(start) + slope(start + positive)) / 2,
    )


@pytest.mark.parametrize("rule", NONLINEAR)
@pytest.mark.parametrize("seed", range(5))
def test_dense_network_agrees_with_the_formulas(rule: str, seed: int) -> None:
    torch.manual_seed(seed)
    sizes = (12, 8, 7, 3)
    layers = [nn.Linear(i, o) for i, o in pairwise(sizes)]
    network = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    classifier = make_classifier(network, layers={}, fill=torch.randn(3, 1, 1))
    image = torch.randn(1, 3, 2, 2)
    found = DeepLIFT(rule).contributions(classifier, image, pair()).flatten()
    reference = classifier.fill.expand(3, 2, 2).flatten().double()
    weights, biases = [m.weight.double() for m in layers], [m.bias.double() for m in layers]
    expected = naive_dense(weights, biases, image.flatten().double(), reference, rule)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_revealcancel_counts_the_signs_of_contributions() -> None:
    """For one layer with many inputs of both signs the two rules differ, whatever the signs of the weights."""
    classifier = dense(([[1.0, -2, 1]], [-1.0]), ([[1.0]], [0.0]))
    # contributions 4, -2, 1; x0 = -1, D+ = 5, D- = -2: D_y+ = (4 + 2) / 2 = 3, D_y- = (0 - 2) / 2 = -1
    expected = [4 * 3 / 5, -2 * 1 / 2, 1 * 3 / 5]
    assert contributions(classifier, [4.0, 1.0, 1.0], "revealcancel") == pytest.approx(expected)
    assert contributions(classifier, [4.0, 1.0, 1.0], "rescale") == pytest.approx([8 / 3, -4 / 3, 2 / 3])


@pytest.mark.parametrize("rule", NONLINEAR)
def test_batch_norm_equals_the_folded_convolution(rule: str) -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
    tail = [nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    separate = nn.Sequential(convolution, norm, *tail).eval()
    shake(separate)
    folded = nn.Sequential(nn.utils.fuse_conv_bn_eval(convolution, norm), *tail)
    images, pairs = make_batch()
    one, other = (
        DeepLIFT(rule).contributions(make_classifier(n, layers={}), images, pairs) for n in (separate, folded)
    )
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------- another implementation


def captum_rescale(network: nn.Module, images: Tensor, pairs: Pairs, fill: Tensor) -> Tensor:
    inputs = images[pairs.image]
    return DeepLift(network).attribute(inputs, fill.expand_as(inputs).contiguous(), target=pairs.target).detach()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fill", [0.0, 0.3])
def test_rescale_agrees_with_captum(fill: float) -> None:
    network = tiny_network()
    network[2] = nn.AvgPool2d(2)
    images, pairs = make_batch()
    classifier = make_classifier(network, fill=torch.full((3, 1, 1), fill))
    expected = captum_rescale(classifier.network, images, pairs, classifier.fill)
    found = DeepLIFT().contributions(classifier, images, pairs)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_max_pooling_agrees_with_captum() -> None:
    """Only away from a ReLU, beside which captum's contributions do not sum to the difference, and without ties."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(320, 4))
    images, pairs = make_batch()
    reference = torch.randn(3, 16, 16)
    classifier = make_classifier(network, layers={}, fill=reference)
    expected = captum_rescale(network, images, pairs, reference)
    assert torch.allclose(expected.sum((1, 2, 3)), difference_of_logits(classifier, images, pairs), atol=1e-5)
    assert torch.allclose(DeepLIFT().contributions(classifier, images, pairs), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reused_relu_agrees_with_captum_on_separate_ones() -> None:
    """captum cannot run a module twice: it sees the twin network, with one ReLU per place."""
    images, pairs = make_batch()
    reused, separate = Residual(), Residual(reused=False)
    reused.pool = separate.pool = nn.AvgPool2d(2)
    classifier = make_classifier(reused, layers={})
    expected = captum_rescale(separate.eval(), images, pairs, classifier.fill)
    found = DeepLIFT().contributions(classifier, images, pairs)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(found, DeepLIFT("linear").contributions(classifier, images, pairs), rtol=0.1, atol=1e-4)


# ------------------------------------------------------------------------------------------------- the axiom


@pytest.mark.parametrize("rule", NONLINEAR)
@pytest.mark.parametrize("network", [Residual(), tiny_network()], ids=["residual", "plain"])
def test_contributions_sum_to_the_difference(rule: str, network: nn.Module) -> None:
    images, pairs = make_batch(height=12, width=20)
    classifier = make_classifier(network, layers={}, fill=torch.tensor([0.3, -0.1, 0.2]).view(3, 1, 1))
    maps = DeepLIFT(rule)(classifier, images, pairs)
    expected = difference_of_logits(classifier, images, pairs)
    assert torch.allclose(maps.sum((1, 2)), expected, rtol=1e-4, atol=1e-5)
    gradient = DeepLIFT("linear")(classifier, images, pairs)
    assert not torch.allclose(gradient.sum((1, 2)), expected, rtol=1e-2, atol=1e-2)


def test_overlapping_and_padded_pooling_sums_to_the_difference() -> None:
    torch.manual_seed(0)
    pools = [nn.MaxPool2d(3, 2, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2)]
    layers = [nn.Conv2d(3, 6, 3), pools[0], nn.ReLU(), nn.Conv2d(6, 6, 2), pools[1], nn.LeakyReLU(), pools[2]]
    classifier = make_classifier(nn.Sequential(*layers, nn.Flatten()), layers={})
    images, pairs = make_batch(height=24, width=24)
    for rule in NONLINEAR:
        maps = DeepLIFT(rule)(classifier, images, pairs)
        expected = difference_of_logits(classifier, images, pairs)
        assert torch.allclose(maps.sum((1, 2)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def random_network(architecture: str, width: float) -> Classifier:
    """Uniform weights of the variance that keeps activations in bounds; made at once, not by the slow initialiser."""
    with torch.device("meta"):
        network = build(architecture, 10, width)
    network.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = (6 / module.weight[0].numel()) ** 0.5
            module.weight.uniform_(-bound, bound)
    shake(network)
    return Classifier(network, {})


def assert_sums_to_the_difference(classifier: Classifier, size: int, rule: str) -> None:
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    expected = difference_of_logits(classifier, image, pair()).item()
    total = DeepLIFT(rule)(classifier, image, pair()).sum().item()
    assert total == pytest.approx(expected, rel=1e-3)
    gradient = DeepLIFT("linear")(classifier, image, pair()).sum().item()
    assert gradient != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("rule", NONLINEAR)
@pytest.mark.parametrize("architecture", ["vgg16", "resnet50"])
def test_narrow_torchvision_networks_sum_to_the_difference(architecture: str, rule: str) -> None:
    assert_sums_to_the_difference(random_network(architecture, 0.125), 64, rule)


@pytest.mark.parametrize("architecture", ["vgg16", "resnet50"])
def test_torchvision_networks_sum_to_the_difference(architecture: str) -> None:
    classifier = random_network(architecture, 1.0)
    for rule in NONLINEAR:
        assert_sums_to_the_difference(classifier, 224, rule)


# --------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("rule", NONLINEAR)
def test_contributions_depend_neither_on_batch_nor_on_forward_batch(rule: str) -> None:
    images, pairs = make_batch()
    maps = DeepLIFT(rule)(make_classifier(Residual(), layers={}), images, pairs)
    classifier = make_classifier(Residual(), layers={}, forward_batch=1)
    assert torch.allclose(DeepLIFT(rule)(classifier, images, pairs), maps, rtol=1e-4, atol=1e-5)
    for p, (image, image_id, target) in enumerate(pairs):
        alone = Pairs(torch.tensor([0]), torch.tensor([target]), (image_id,))
        found = DeepLIFT(rule)(classifier, images[image : image + 1], alone)[0]
        assert torch.allclose(found, maps[p], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", NONLINEAR)
def test_reference_runs_once_for_all_images(rule: str) -> None:
    images, _ = make_batch()
    pairs = Pairs(torch.arange(3), torch.tensor([2, 0, 1]), ("a", "b", "c"))
    passes = []
    for forward_batch in (len(images), 1):
        told: list[int] = []
        classifier = make_classifier(Residual(), layers={}, forward_batch=forward_batch)
        classifier.on_forward = told.append
        with Operations() as operations:
            DeepLIFT(rule)(classifier, images, pairs)
        assert (told[0], sum(told)) == (1 + forward_batch, 1 + len(images))
        passes.append(operations.count("adaptive_avg_pool2d.default"))
    every = 1 if rule == "rescale" else 2  # parts
    assert passes == [1 + every, 1 + every * len(images)]


@pytest.mark.parametrize(
    ("x", "change", "rise", "multiplier"),
    [
        (2.0, -3.0, -2.0, 2 / 3),  # switched off
        (-1.0, 4.0, 3.0, 0.75),  # switched on
        (2.0, 1.0, 1.0, 1.0),
        (-2.0, 1.0, 0.0, 0.0),
        (0.0, 5.0, 5.0, 1.0),
        (0.0, -5.0, 0.0, 0.0),
        (3.0, 0.0, 0.0, 1.0),  # no change: the slope, which PyTorch takes for 0 at 0
        (0.0, 0.0, 0.0, 0.0),
        (-3.0, 0.0, 0.0, 0.0),
        (3.0, 1e-9, 1e-9, 1.0),  # lost in x + change
        (1e-30, -2e-30, -1e-30, 0.5),
    ],
)
def test_rise_of_a_relu_by_hand(x: float, change: float, rise: float, multiplier: float) -> None:
    leaf = torch.tensor([[change]], requires_grad=True)
    found = relu_secant(torch.tensor([[x]]), leaf, None)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert found.item() == pytest.approx(rise, rel=1e-6, abs=0)
    assert gradient.item() == pytest.approx(multiplier, rel=1e-6, abs=0)


@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_values_are_taken_at_positions_in_either_order(images: int, order: torch.memory_format, shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 6, 8, generator=generator).contiguous(memory_format=order)
    _, positions = nn.functional.max_pool2d(x[:1] if shared else x, 2, return_indices=True)
    positions = positions.expand(3, -1, -1, -1)
    values = torch.randn(images, 5, 6, 8, generator=generator).contiguous(memory_format=order)
    found = at(values, positions)
    for n, k, i, j in itertools.product(range(3), range(5), range(3), range(4)):
        assert found[n, k, i, j] == values[n % images, k].flatten()[positions[n, k, i, j]]
    assert found.is_contiguous(memory_format=order)


def test_rise_of_a_relu_is_that_of_any_function_of_single_values() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 8, 8, generator=generator, dtype=torch.float64)
    change = torch.randn(3, 5, 8, 8, generator=generator, dtype=torch.float64)
    change[1, :, :4] = 0
    change.requires_grad_()
    upper = torch.randn(change.shape, generator=generator, dtype=torch.float64)
    found, expected = (secant(x, change, None) for secant in (relu_secant, elementwise_secant(torch.relu)))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, change, upper)[0] for y in (found, expected)))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
@pytest.mark.parametrize("rule", NONLINEAR)
def test_contributions_do_not_depend_on_how_products_and_secants_are_computed(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, pairs = make_batch()
    large = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(16), nn.Flatten())
    large = nn.Sequential(*large, nn.Linear(64 * 256, 80), nn.ReLU(), nn.Linear(80, 4))
    shake(large)
    switches = {"packed_weights": False, "onednn_linear": False}
    expected = DeepLIFT(rule)(make_classifier(copy.deepcopy(large), layers={}, **switches), images, pairs)
    with Operations() as operations:
        found = DeepLIFT(rule)(make_classifier(large, layers={}), images, pairs)
    assert operations.count("_convolution_pointwise") > 0
    assert operations.count("_linear_pointwise") > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(_deeplift_secants, "PIECE", 100)  # a row of the maps at a time
    torch.testing.assert_close(DeepLIFT(rule)(make_classifier(large, layers={}), images, pairs), found)

    def at_once(x: Tensor, change: Tensor) -> Any:  # as on a GPU
        return pieces(x.to("meta"), change.to("meta"))

    pieces = _deeplift_secants.pieces
    monkeypatch.setattr(_deeplift_secants, "pieces", at_once)
    assert len(list(at_once(images, images))) == 1
    torch.testing.assert_close(DeepLIFT(rule)(make_classifier(large, layers={}), images, pairs), found)


@pytest.mark.parametrize("rule", NONLINEAR)
def test_image_that_is_the_reference_has_no_contributions(rule: str) -> None:
    images, pairs = make_batch()
    assert not DeepLIFT(rule)(make_classifier(Residual(), layers={}), torch.zeros_like(images), pairs).any()


class Unsupported(nn.Module):
    """A network that multiplies, or runs another operation, where DeepLIFT has no rule."""

    def __init__(self, operation: str):
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        operations = {"mul": lambda: x * x, "silu": lambda: F.silu(x), "amax": lambda: x.amax(3)}
        return operations[self.operation]().flatten(1)


@pytest.mark.parametrize(("operation", "named"), [("mul", "multiplication"), ("silu", "silu"), ("amax", "amax")])
def test_operation_without_a_rule_is_named(operation: str, named: str) -> None:
    images, pairs = make_batch()
    classifier = make_classifier(Unsupported(operation), layers={})
    with pytest.raises(CamexpError, match=f"no rule for .*{named}"):
        DeepLIFT()(classifier, images, pairs)
    assert DeepLIFT("linear")(classifier, images, pairs).isfinite().all()


def test_batch_statistics_and_active_dropout_are_refused() -> None:
    images, pairs = make_batch()
    for layer in (nn.BatchNorm2d(3, track_running_stats=False), nn.Dropout()):
        classifier = make_classifier(nn.Sequential(layer, nn.Flatten()), layers={})
        layer.train()
        with pytest.raises(CamexpError, match="no rule for"):
            DeepLIFT()(classifier, images, pairs)


@pytest.mark.parametrize(("name", "value"), [("rule", "epsilon"), ("reduce", "mean")])
def test_bad_parameters_are_named(name: str, value: str) -> None:
    with pytest.raises(CamexpError, match=rf"method\.{name} of deeplift .*{value}"):
        DeepLIFT(**{name: value})
