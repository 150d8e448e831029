"""Methods that explain with the gradient at the input, and occlusion: by hand, by naive references, by captum."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from captum.attr import GuidedBackprop as CaptumGuidedBackprop
from captum.attr import GuidedGradCam as CaptumGuidedGradCam
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import Occlusion as CaptumOcclusion
from captum.attr import Saliency
from conftest import make_batch, make_classifier, tiny_network
from torch import Tensor, nn
from torch.nn import functional as F

from camexp.errors import CamexpError
from camexp.methods.base import scale_to_unit
from camexp.methods.blur import gaussian_blur
from camexp.methods.deeplift import DeepLIFT
from camexp.methods.fullgrad import FullGrad, bias_of, full_gradients
from camexp.methods.gradcam import GradCAM
from camexp.methods.gradient import Gradient
from camexp.methods.guided_backprop import GuidedBackprop, guided_gradients
from camexp.methods.guided_gradcam import GuidedGradCAM
from camexp.methods.integrated_gradients import IntegratedGradients
from camexp.methods.occlusion import Occlusion
from camexp.methods.smoothgrad import SmoothGrad
from camexp.models.build import build
from camexp.models.classifier import Classifier
from camexp.models.fold import fold_batch_norms
from camexp.pairs import Pairs
from camexp.seeding import torch_generator

METHODS: dict[str, Callable[[], Any]] = {
    "gradient": Gradient,
    "integrated_gradients": lambda: IntegratedGradients(steps=7),
    "smoothgrad": lambda: SmoothGrad(samples=5),
    "guided_backprop": GuidedBackprop,
    "guided_gradcam": GuidedGradCAM,
    "occlusion": lambda: Occlusion(size=6, stride=3),
    "fullgrad": FullGrad,
    "deeplift": DeepLIFT,
}
every_method = pytest.mark.parametrize("name", METHODS)


class Block(nn.Module):
    """A residual block with biases and batch norms whose three nonlinearities are one module, as in torchvision."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.bn1 = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv3 = nn.Conv2d(5, 5, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(20, 4)
        for norm in (self.bn1, self.bn2):
            nn.init.normal_(norm.weight, mean=0.5, std=0.5)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(x)))
        return self.fc(torch.flatten(self.pool(self.relu(self.conv3(out) + x)), 1))


def block_classifier(**kwargs: Any) -> Classifier:
    return make_classifier(Block(), layers={"cam": "conv1"}, **kwargs)


def linear_classifier(weight: Tensor, bias: float = 0.0, **kwargs: Any) -> Classifier:
    """y = sum(weight * x) + bias of images (N,3,H,W), weight (C,3,H,W)."""
    linear = nn.Linear(weight[0].numel(), len(weight))
    linear.weight.data, linear.bias.data = weight.flatten(1), torch.full((len(weight),), bias)
    return make_classifier(nn.Sequential(nn.Flatten(), linear), layers={}, **kwargs)


def pair(target: int = 0) -> Pairs:
    return Pairs(torch.tensor([0]), torch.tensor([target]), ("image",))


def gradient_at(classifier: Classifier, image: Tensor, target: int) -> Tensor:
    """dy_c/dI (3,H,W) of one image."""
    image = image[None].clone().requires_grad_()
    return torch.autograd.grad(classifier.network(image)[0, target], image)[0][0]


def cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


# ------------------------------------------------------------------------------------------------- by hand


def test_gradient_of_a_linear_network_is_its_weight() -> None:
    weight = torch.arange(-24.0, 24).view(1, 3, 4, 4)
    classifier, image = linear_classifier(weight), torch.randn(1, 3, 4, 4)
    assert torch.equal(Gradient()(classifier, image, pair()), weight.abs().amax(1))
    assert torch.equal(Gradient("sum_abs")(classifier, image, pair()), weight.abs().sum(1))
    assert torch.allclose(SmoothGrad(samples=3)(classifier, image, pair()), weight.abs().amax(1))
    assert torch.allclose(SmoothGrad(samples=3, square=True)(classifier, image, pair()), (weight**2).amax(1))


@pytest.mark.parametrize("make", [Gradient, GuidedBackprop])
def test_map_may_be_smoothed_by_a_share_of_its_longer_side(make: Callable[..., Any]) -> None:
    classifier, (images, pairs) = make_classifier(), make_batch(2, 12, 20)
    plain = make()(classifier, images, pairs)
    found = make(smooth=0.1)(classifier, images, pairs)
    assert torch.equal(found, gaussian_blur(plain, 2.0))
    assert not torch.allclose(found, plain)
    assert torch.equal(make(smooth=0.0)(classifier, images, pairs), plain)


@pytest.mark.parametrize(("reduce", "expected"), [("sum_abs", 7.0), ("abs_sum", 3.0), ("sum", -3.0), ("max_abs", 5.0)])
def test_integrated_gradients_of_a_linear_network(reduce: str, expected: float) -> None:
    weight = torch.tensor([1.0, -5.0, 2.0]).view(1, 3, 1, 1)
    classifier = linear_classifier(weight, fill=torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1))
    image = torch.tensor([2.0, 2.0, 0.0]).view(1, 3, 1, 1)  # IG = 2, -5, 0
    found = IntegratedGradients(steps=3, reduce=reduce)(classifier, image, pair())
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rule", "expected"),  # of y = x^2 on [0, 1] with two gradients: 2 (a_1 w_1 + a_2 w_2)
    [("midpoint", 1.0), ("trapezoid", 1.0), ("right", 1.5)],
)
def test_rules_of_integration(rule: str, expected: float) -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x**2).flatten(1)

    image = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    classifier = make_classifier(Square(), layers={})
    found = IntegratedGradients(steps=2, rule=rule, reduce="sum")(classifier, image, pair())
    assert found.item() == pytest.approx(expected)


def test_saturation_hides_from_the_gradient_but_not_from_the_integral() -> None:
    hidden, last = nn.Linear(3, 1), nn.Linear(1, 1)  # y = 1 - ReLU(1 - x1 - x2)
    hidden.weight.data, hidden.bias.data = torch.tensor([[-1.0, -1.0, 0.0]]), torch.tensor([1.0])
    last.weight.data, last.bias.data = torch.tensor([[-1.0]]), torch.tensor([1.0])
    classifier = make_classifier(nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), last), layers={})
    image = torch.tensor([1.0, 1.0, 0.3]).view(1, 3, 1, 1)
    assert not Gradient()(classifier, image, pair()).any()
    found = IntegratedGradients(steps=10).attributions(classifier, image, pair()).flatten().tolist()
    assert found == pytest.approx([0.5, 0.5, 0.0])


def test_guided_backprop_stops_what_is_negative_on_either_side() -> None:
    first, last = nn.Linear(3, 3), nn.Linear(3, 1)
    first.weight.data, first.bias.data = torch.eye(3), torch.zeros(3)
    last.weight.data, last.bias.data = torch.tensor([[2.0, -3.0, 4.0]]), torch.zeros(1)
    classifier = make_classifier(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last), layers={})
    image = torch.tensor([1.0, 1.0, -1.0]).view(1, 3, 1, 1)
    assert guided_gradients(classifier, image, pair()).flatten().tolist() == [2.0, 0.0, 0.0]


def test_occlusion_of_a_linear_network_is_the_mass_of_the_windows() -> None:
    weight = torch.zeros(1, 3, 4, 4)
    weight[0, 0, 0, 0], weight[0, 1, 3, 3] = 8.0, -4.0
    classifier = linear_classifier(weight, fill=torch.full((3, 1, 1), 1.0))
    image = torch.full((1, 3, 4, 4), 3.0)  # a hidden pixel changes by -2: the first window drops 16, the last rises 8
    found = Occlusion(size=2, stride=2, score="logit")(classifier, image, pair())[0]
    expected = torch.zeros(4, 4)
    expected[:2, :2], expected[2:, 2:] = 16, -8
    assert torch.allclose(found, expected)


def test_last_window_of_occlusion_ends_with_the_image() -> None:
    weight = torch.zeros(1, 3, 1, 5)
    weight[0, 0, 0, 4] = 1.0
    classifier = linear_classifier(weight)
    found = Occlusion(size=3, stride=3, score="logit")(classifier, torch.ones(1, 3, 1, 5), pair())[0, 0]
    assert found.tolist() == pytest.approx([0, 0, 0.5, 1, 1])  # windows 0..2 and 2..4 share the middle


def test_implicit_bias_of_batch_norm() -> None:
    norm = nn.BatchNorm2d(1, eps=0.0)
    norm.weight.data, norm.bias.data = torch.tensor([3.0]), torch.tensor([1.0])
    norm.running_mean, norm.running_var = torch.tensor([4.0]), torch.tensor([4.0])
    bias = bias_of(norm.eval())
    assert bias is not None
    assert bias.tolist() == [1 - 4 * 3 / 2]
    assert torch.allclose(norm(torch.zeros(1, 1, 1, 1)).flatten(), bias)
    plain = bias_of(nn.BatchNorm2d(2, affine=False))
    assert plain is not None
    assert plain.tolist() == [0, 0]
    assert bias_of(nn.Conv2d(1, 1, 1, bias=False)) is None


# -------------------------------------------------------------------------------------- naive references


def test_integrated_gradients_agree_with_a_loop() -> None:
    images, pairs = make_batch()
    classifier = make_classifier(fill=torch.tensor([0.2, -0.1, 0.4]).view(3, 1, 1), forward_batch=5)
    found = IntegratedGradients(steps=6, rule="right").attributions(classifier, images, pairs)
    for p, (i, _, c) in enumerate(pairs):
        change = images[i] - classifier.fill
        gradients = [gradient_at(classifier, classifier.fill + t / 6 * change, c) for t in range(1, 7)]
        assert torch.allclose(found[p], change * sum(gradients) / 6, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("square", [False, True])
def test_smoothgrad_agrees_with_a_loop(square: bool) -> None:
    images, pairs = make_batch()
    classifier = make_classifier(forward_batch=4)
    found = SmoothGrad(samples=4, sigma=0.2, square=square, reduce="sum_abs", seed=3)(classifier, images, pairs)
    for p, (i, name, c) in enumerate(pairs):
        generator = torch_generator(3, "smoothgrad", name)
        total = torch.zeros(3, 16, 16)
        for _ in range(4):
            noise = torch.randn(3, 16, 16, generator=generator) * 0.2 * (images[i].max() - images[i].min())
            total += gradient_at(classifier, images[i] + noise, c) ** (2 if square else 1) / 4
        assert torch.allclose(found[p], total.abs().sum(0), rtol=1e-4, atol=1e-5)


class Guided(torch.autograd.Function):
    """ReLU with guided backpropagation's backward pass, for the reference."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * (gradient > 0) * (x > 0)


@pytest.mark.parametrize("make", [Block, tiny_network])
def test_guided_backprop_agrees_with_a_network_of_guided_relus(make: Callable[[], nn.Module]) -> None:
    images, pairs = make_batch()
    classifier = make_classifier(make(), layers={})
    found = guided_gradients(classifier, images, pairs)
    for module in classifier.network.modules():
        if isinstance(module, nn.ReLU):
            module.forward = Guided.apply  # type: ignore[method-assign]
    expected = torch.stack([gradient_at(classifier, images[i], c) for i, _, c in pairs])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert found.abs().sum() > 0


def test_guided_gradcam_is_the_product() -> None:
    images, pairs = make_batch()
    classifier = block_classifier()
    cam = GradCAM()(classifier, images, pairs)
    guided = GuidedBackprop("sum_abs")(classifier, images, pairs)
    found = GuidedGradCAM(reduce="sum_abs")(classifier, images, pairs)
    assert torch.allclose(found, guided * cam)
    assert found.any()


@pytest.mark.parametrize("score", ["confidence", "logit"])
@pytest.mark.parametrize(("size", "stride"), [(4, 2), (5, 3), (40, 16)])
def test_occlusion_agrees_with_a_loop(score: str, size: int, stride: int) -> None:
    images, pairs = make_batch(height=12, width=20)
    classifier = make_classifier(fill=torch.tensor([0.2, -0.1, 0.4]).view(3, 1, 1), forward_batch=7)
    found = Occlusion(size, stride, score)(classifier, images, pairs)
    run = classifier.scores if score == "confidence" else classifier.logits
    for p, (i, _, c) in enumerate(pairs):
        total, count = torch.zeros(12, 20), torch.zeros(12, 20)
        for top in naive_starts(12, size, stride):
            for left in naive_starts(20, size, stride):
                occluded = images[i].clone()
                occluded[:, top : top + size, left : left + size] = classifier.fill
                drop = run(images[i : i + 1])[0, c] - run(occluded[None])[0, c]
                total[top : top + size, left : left + size] += drop
                count[top : top + size, left : left + size] += 1
        assert torch.allclose(found[p], total / count, rtol=1e-4, atol=1e-5)


def naive_starts(side: int, size: int, stride: int) -> list[int]:
    starts = [0]
    while starts[-1] + size < side:
        starts.append(min(starts[-1] + stride, side - size))
    return starts


def naive_full_gradients(network: Block, image: Tensor, target: int) -> list[Tensor]:
    """Input and bias terms of `Block`, each bias spelt out as a tensor at every position."""
    biases: list[Tensor] = []

    def biased(x: Tensor, bias: Tensor) -> Tensor:
        biases.append(bias.view(-1, *[1] * (x.dim() - 2)).expand_as(x).clone().requires_grad_())
        return x + biases[-1]

    def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        deviation = torch.sqrt(layer.running_var + layer.eps)
        scaled = x * (layer.weight / deviation).view(-1, 1, 1)
        return biased(scaled, layer.bias - layer.running_mean * layer.weight / deviation)

    image = image[None].clone().requires_grad_()
    assert network.conv1.bias is not None
    x = biased(F.conv2d(image, network.conv1.weight, padding=1), network.conv1.bias)
    x = norm(x, network.bn1).relu()
    out = norm(F.conv2d(x, network.conv2.weight, padding=1), network.bn2).relu()
    out = F.conv2d(out, network.conv3.weight) + x
    pooled = F.adaptive_avg_pool2d(out.relu(), 2).flatten(1)
    score = biased(pooled @ network.fc.weight.T, network.fc.bias)[0, target]
    values = [image, *biases]
    return [(g * v).detach() for g, v in zip(torch.autograd.grad(score, values), values, strict=True)]


def taken_terms(classifier: Classifier, images: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
    """The terms for one class per image, from the input on."""
    terms: list[torch.Tensor] = []
    assert len(list(full_gradients(classifier, images, target, terms.append))) == 1
    return terms[-1:] + terms[-2::-1]


def test_full_gradients_agree_with_biases_spelt_out_and_sum_to_the_logit() -> None:
    images, pairs = make_batch()
    network = Block()
    classifier = make_classifier(network, layers={})
    terms = taken_terms(classifier, images[pairs.image], pairs.target[:, None])
    assert [term.dim() for term in terms] == [4, 4, 4, 4, 2]
    for p, (i, _, c) in enumerate(pairs):
        for term, expected in zip(terms, naive_full_gradients(network, images[i], c), strict=True):
            assert torch.allclose(term[p], expected[0], rtol=1e-4, atol=1e-6)
    total = torch.stack([term.flatten(1).sum(1) for term in terms]).sum(0)
    assert torch.allclose(total, classifier.logits(images)[pairs.image, pairs.target], rtol=1e-3, atol=1e-5)


class Pointwise(nn.Module):
    """A layer for each position of maps, as a convolution or as a linear layer; and one that no image reaches."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.stem, self.aside = linear, nn.Conv2d(3, 4, 3, stride=2), nn.Linear(2, 1)
        weight, self.bias = torch.randn(5, 4), nn.Parameter(torch.randn(5))
        self.layer: nn.Module = nn.Linear(4, 5) if linear else nn.Conv2d(4, 5, 1)
        self.layer.weight = nn.Parameter(weight if linear else weight[:, :, None, None])
        self.layer.bias = self.bias

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        x = self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.linear else self.layer(x)
        return x.relu().mean((2, 3)) + self.aside(torch.ones(2))


def test_fullgrad_takes_linear_layers_on_maps_for_the_convolutions_that_they_are() -> None:
    images, pairs = make_batch()
    maps = [FullGrad()(make_classifier(Pointwise(linear), layers={}), images, pairs) for linear in (False, True)]
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
def test_fullgrad_keeps_its_terms_when_batch_norms_are_folded(biased: bool) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, bias=biased), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = nn.Sequential(*layers, nn.Linear(6, 4)).eval()
    network[1].running_mean.normal_()  # type: ignore[operator, union-attr]
    network[1].bias.data.normal_()  # type: ignore[operator, union-attr]
    folded = copy.deepcopy(network)
    assert fold_batch_norms(folded) == (not biased)
    images, pairs = make_batch()
    maps = [FullGrad()(make_classifier(each, layers={}), images, pairs) for each in (network, folded)]
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scaling", ["sample", "channel"])
def test_fullgrad_sums_the_scaled_terms_but_not_the_linear_one(scaling: str) -> None:
    images, pairs = make_batch()
    network = Block()
    found = FullGrad(scaling)(make_classifier(network, layers={}, forward_batch=4), images, pairs)
    for p, (i, _, c) in enumerate(pairs):
        expected = torch.zeros(16, 16)
        for term in naive_full_gradients(network, images[i], c)[:-1]:
            for channel in term[0].abs():
                values = term.abs() if scaling == "sample" else channel
                if values.max() > values.min():
                    expected += (channel - values.min()) / (values.max() - values.min())
        assert torch.allclose(found[p], expected, rtol=1e-4, atol=1e-4)


def test_fullgrad_enlarges_the_terms_of_deeper_layers() -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    terms = taken_terms(classifier, images[pairs.image], pairs.target[:, None])
    assert [tuple(term.shape[2:]) for term in terms] == [(16, 16), (16, 16), (8, 8), ()]
    expected = torch.zeros(len(pairs), 16, 16)
    for term in terms[:3]:
        low, high = term.abs().amin((1, 2, 3), keepdim=True), term.abs().amax((1, 2, 3), keepdim=True)
        expected += F.interpolate((term.abs() - low) / (high - low), (16, 16), mode="bilinear").sum(1)
    assert torch.allclose(FullGrad()(classifier, images, pairs), expected, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------- axioms


def test_integrated_gradients_from_a_blurred_baseline_are_complete() -> None:
    classifier, (images, pairs) = make_classifier(), make_batch()
    total = IntegratedGradients(steps=600, baseline="blur", reduce="sum")(classifier, images, pairs).sum((1, 2))
    blurred = gaussian_blur(images, 0.1 * 16)
    change = classifier.logits(images) - classifier.logits(blurred)
    torch.testing.assert_close(total, change[pairs.image, pairs.target], rtol=2e-3, atol=2e-3)


def test_integrated_gradients_of_an_unknown_baseline_are_refused() -> None:
    with pytest.raises(CamexpError, match=r"method\.baseline of integrated_gradients must be one of fill, blur"):
        IntegratedGradients(baseline="white")


@pytest.mark.parametrize("rule", ["midpoint", "trapezoid"])
def test_integrated_gradients_are_complete(rule: str) -> None:
    images, pairs = make_batch(images=2, height=8, width=8)
    classifier = make_classifier(fill=torch.tensor([0.2, -0.1, 0.4]).view(3, 1, 1), forward_batch=120)
    total = IntegratedGradients(steps=600, rule=rule, reduce="sum")(classifier, images, pairs).sum((1, 2))
    baseline = classifier.logits(classifier.fill.expand(1, 3, 8, 8))
    expected = (classifier.logits(images) - baseline)[pairs.image, pairs.target]
    assert torch.allclose(total, expected, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------ captum


def both(images: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    return images[pairs.image], pairs.target


def test_gradient_agrees_with_captum() -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    inputs, target = both(images, pairs)
    expected = Saliency(classifier.network).attribute(inputs.clone().requires_grad_(), target=target)
    assert torch.allclose(Gradient()(classifier, images, pairs), expected.amax(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rule", "captum_rule"), [("midpoint", "riemann_middle"), ("right", "riemann_right")])
def test_integrated_gradients_agree_with_captum(rule: str, captum_rule: str) -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    inputs, target = both(images, pairs)
    captum = CaptumIntegratedGradients(classifier.network)
    expected = captum.attribute(inputs, 0.3, target=target, n_steps=9, method=captum_rule)
    classifier.fill = torch.full((3, 1, 1), 0.3)
    found = IntegratedGradients(steps=9, rule=rule).attributions(classifier, images, pairs)
    assert torch.allclose(found, expected.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_guided_methods_agree_with_captum() -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    inputs, target = both(images, pairs)
    expected = CaptumGuidedBackprop(classifier.network).attribute(inputs, target=target)
    assert torch.allclose(guided_gradients(classifier, images, pairs), expected, rtol=1e-4, atol=1e-6)
    captum = CaptumGuidedGradCam(classifier.network, classifier.network[4])
    expected = captum.attribute(inputs, target=target, interpolate_mode="bilinear")
    found = GuidedGradCAM().attributions(classifier, images, pairs)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("size", "stride"), [(4, 2), (4, 4), (8, 4)])
def test_occlusion_agrees_with_captum(size: int, stride: int) -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    inputs, target = both(images, pairs)
    captum = CaptumOcclusion(classifier.scores)
    expected = captum.attribute(inputs, (3, size, size), (3, stride, stride), baselines=0, target=target)
    found = Occlusion(size, stride)(classifier, images, pairs)
    assert torch.allclose(found, expected[:, 0].float(), rtol=1e-4, atol=1e-5)


def test_fullgrad_agrees_with_pytorch_grad_cam() -> None:
    """Its maps are scaled channel by channel and once more at the end: `scaling="channel"` up to that."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    images, pairs = make_batch()
    classifier = make_classifier()
    inputs, target = both(images, pairs)
    with grad_cam.FullGrad(classifier.network, []) as cam:
        expected = cam(inputs.clone(), [targets.ClassifierOutputTarget(c) for c in target.tolist()])
    found = scale_to_unit(FullGrad("channel")(classifier, images, pairs))
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-3)
    by_sample = scale_to_unit(FullGrad()(classifier, images, pairs))  # the authors' code
    assert not torch.allclose(by_sample, torch.from_numpy(expected), atol=1e-2)


@cache
def full_network(architecture: str) -> Classifier:
    """torchvision's network at full width with quickly made random weights."""
    with torch.device("meta"):
        network = build(architecture, 10)
    network.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = (6 / module.weight[0].numel()) ** 0.5
                module.weight.uniform_(-bound, bound)
                if module.bias is not None:
                    module.bias.normal_(std=0.1)
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
                module.bias.normal_(std=0.1)
    return Classifier(network, {"cam": {"vgg16": "features.29", "resnet50": "layer4"}[architecture]})


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("architecture", ["vgg16", "resnet50"])
def test_torchvision_networks_agree_with_captum(architecture: str) -> None:
    classifier = full_network(architecture)
    network, target = classifier.network, torch.tensor([3])
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    saliency = Saliency(network).attribute(image.clone().requires_grad_(), target=target)
    assert cosine(Gradient()(classifier, image, pair(3)), saliency.amax(1)) > 0.999
    path = CaptumIntegratedGradients(network).attribute(image, target=target, n_steps=3, method="riemann_middle")
    found = IntegratedGradients(steps=3).attributions(classifier, image, pair(3))
    assert cosine(found, path.float()) > 0.999
    windows = CaptumOcclusion(network).attribute(image, (3, 48, 48), (3, 48, 48), baselines=0, target=target)
    found = Occlusion(48, 48, "logit")(classifier, image, pair(3))
    assert cosine(found, windows[:, 0].float()) > 0.999
    guided = CaptumGuidedBackprop(network).attribute(image, target=target)
    assert cosine(guided_gradients(classifier, image, pair(3)), guided) > 0.999


# ---------------------------------------------------------------------------------------------- properties


@every_method
def test_batch_equals_one_by_one_on_a_network_that_reuses_its_relu(name: str) -> None:
    images, pairs = make_batch(height=12, width=20)
    method = METHODS[name]()
    maps = method(block_classifier(), images, pairs)
    assert maps.shape == (len(pairs), 12, 20)
    assert maps.isfinite().all()
    assert maps.any()
    one_row = block_classifier(forward_batch=1)
    for p, (image, image_id, target) in enumerate(pairs):
        alone = Pairs(torch.tensor([0]), torch.tensor([target]), (image_id,))
        assert torch.allclose(method(one_row, images[image : image + 1], alone)[0], maps[p], rtol=1e-3, atol=1e-5)


@every_method
@pytest.mark.parametrize("forward_batch", [2, 5])
def test_maps_do_not_depend_on_forward_batch(name: str, forward_batch: int) -> None:
    images, pairs = make_batch()
    method = METHODS[name]()
    maps = method(block_classifier(), images, pairs)
    assert torch.allclose(
        method(block_classifier(forward_batch=forward_batch), images, pairs), maps, rtol=1e-3, atol=1e-5
    )


@every_method
def test_network_is_as_before_after_an_exception(name: str) -> None:
    images, pairs = make_batch()
    classifier, method = block_classifier(), METHODS[name]()
    before = classifier.input_gradients(images, pairs)

    def fail(x: Tensor) -> Tensor:
        raise ArithmeticError

    classifier.network.fc.forward = fail  # type: ignore[union-attr, assignment]
    with pytest.raises(ArithmeticError):
        method(classifier, images, pairs)
    del classifier.network.fc.forward
    for module in classifier.network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
        assert not module.training
    assert not any(parameter.requires_grad for parameter in classifier.network.parameters())
    assert torch.equal(classifier.input_gradients(images, pairs), before)


def test_guided_hooks_go_after_an_exception_in_the_backward_pass() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            raise ArithmeticError

    images, pairs = make_batch()
    classifier = make_classifier()
    classifier.network.get_submodule("2").forward = Fails.apply  # type: ignore[assignment]
    with pytest.raises(ArithmeticError):
        GuidedBackprop()(classifier, images, pairs)
    assert not any(module._forward_hooks for module in classifier.network.modules())


def test_noise_of_smoothgrad_belongs_to_the_image_and_the_seed() -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    maps = SmoothGrad(samples=4)(classifier, images, pairs)
    assert torch.equal(SmoothGrad(samples=4)(classifier, images, pairs), maps)
    assert not torch.allclose(SmoothGrad(samples=4, seed=1)(classifier, images, pairs), maps, rtol=1e-2)
    renamed = Pairs(pairs.image, pairs.target, ("a", "b", "c"))
    assert not torch.allclose(SmoothGrad(samples=4)(classifier, images, renamed), maps, rtol=1e-2)
    still = SmoothGrad(samples=4, sigma=0.0)(classifier, images, pairs)
    assert torch.allclose(still, Gradient()(classifier, images, pairs), rtol=1e-4)


# ----------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gradient("mean"), "method.reduce of gradient .* 'mean'"),
        (lambda: GuidedBackprop("mean"), "method.reduce of guided_backprop .* 'mean'"),
        (lambda: Gradient(smooth=1.0), r"method.smooth of gradient must be in \[0, 1\), not 1.0"),
        (lambda: GuidedBackprop(smooth=-0.1), r"method.smooth of guided_backprop must be in \[0, 1\), not -0.1"),
        (lambda: GuidedGradCAM(reduce="mean"), "method.reduce of guided_gradcam .* 'mean'"),
        (lambda: IntegratedGradients(reduce="mean"), "method.reduce of integrated_gradients .* 'mean'"),
        (lambda: IntegratedGradients(rule="left"), "method.rule of integrated_gradients .* 'left'"),
        (lambda: IntegratedGradients(steps=0), "method.steps of integrated_gradients .* 1, not 0"),
        (lambda: IntegratedGradients(steps=1, rule="trapezoid"), "method.steps of integrated_gradients .* 2, not 1"),
        (lambda: SmoothGrad(samples=0), "method.samples of smoothgrad .* 0"),
        (lambda: SmoothGrad(sigma=-1.0), "method.sigma of smoothgrad .* -1.0"),
        (lambda: SmoothGrad(reduce="mean"), "method.reduce of smoothgrad .* 'mean'"),
        (lambda: Occlusion(score="loss"), "method.score of occlusion .* 'loss'"),
        (lambda: Occlusion(size=4, stride=5), "method.stride of occlusion .* stride 5 and size 4"),
        (lambda: Occlusion(size=4, stride=0), "method.stride of occlusion .* stride 0 and size 4"),
        (lambda: FullGrad("batch"), "method.scaling of fullgrad .* 'batch'"),
    ],
)
def test_bad_parameters_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(CamexpError, match=message):
        make()


def test_guided_backprop_needs_relu_modules() -> None:
    images, pairs = make_batch()
    classifier = make_classifier(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), layers={})
    with pytest.raises(CamexpError, match="Sequential has none"):
        GuidedBackprop()(classifier, images, pairs)
