"""Methods against hand-computed 4x4 cases, naive references from the formulas, axioms, and public libraries.

The references are plain loops and plain autograd over the modules of an `nn.Sequential`; they share no code with
the package but the draws of RISE's grids.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import make_batch, make_classifier, tiny_network
from torch import Tensor, nn
from torch.nn import functional as F

from camexp.errors import CamexpError
from camexp.methods.base import Method, scale_to_unit, upsample
from camexp.methods.center import Center
from camexp.methods.gradcam import GradCAM
from camexp.methods.gradcam_pp import GradCAMPlusPlus
from camexp.methods.igcam import IntegratedGradCAM
from camexp.methods.otsu import hard_mask, otsu_level, soft_mask
from camexp.methods.random import Random
from camexp.methods.rise import RISE, RandomMasks
from camexp.methods.sise import SISE
from camexp.methods.uniform import Uniform
from camexp.models.build import build
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs
from camexp.seeding import torch_generator

ONE_PAIR = Pairs(torch.tensor([0]), torch.tensor([0]), ("image0",))

seeds = pytest.mark.parametrize("seed", [0, 1, 2])


def plain(network: nn.Sequential) -> nn.Sequential:
    """A copy of the network that no classifier touches, without in-place activations."""
    network = copy.deepcopy(network).eval()
    return nn.Sequential(*(nn.ReLU() if isinstance(module, nn.ReLU) else module for module in network))


def enlarge(cam: Tensor, images: Tensor) -> Tensor:
    """One map (h,w) enlarged to (H,W)."""
    return F.interpolate(cam[None, None], images.shape[2:], mode="bilinear", align_corners=False)[0, 0]


def unit(values: Tensor) -> Tensor:
    """One map scaled to [0,1]."""
    if values.max() == values.min():
        return torch.zeros_like(values)
    return (values - values.min()) / (values.max() - values.min())


def activation_and_gradient(network: nn.Sequential, image: Tensor, target: int, cut: int) -> tuple[Tensor, Tensor]:
    """A and dy_c/dA (K,h,w) of one image behind the first `cut` modules."""
    activation = network[:cut](image[None]).detach().requires_grad_()
    logit = network[cut:](activation)[0, target]
    (gradient,) = torch.autograd.grad(logit, activation)
    return activation.detach()[0], gradient[0]


def compare(method: Method, reference: Callable[..., Tensor], seed: int, **kwargs: Any) -> None:
    """The method's maps of a random network and batch against the reference for every pair."""
    network = tiny_network(seed=seed)
    untouched = plain(network)
    images, pairs = make_batch(height=12, width=20, seed=seed + 10)
    maps = method(make_classifier(network), images, pairs)
    expected = torch.stack([reference(untouched, images[i : i + 1], c, **kwargs) for i, _, c in pairs])
    extent = expected.abs().amax((1, 2), keepdim=True)
    assert (extent > 0).any()
    assert ((maps - expected).abs() / extent.where(extent > 0, 1.0)).max() < 1e-4


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine similarity of two maps."""
    return F.cosine_similarity(a.flatten().double(), b.flatten().double(), 0).item()


# ---------------------------------------------------------------------------------------------- shared steps


def test_upsampling_by_hand() -> None:
    # new pixel centres lie at -1/4, 1/4, 3/4, 5/4 of the old grid: a, 3/4 a + 1/4 b, 1/4 a + 3/4 b, b
    assert upsample(torch.tensor([[[1.0, 2.0]]]), (1, 4)).flatten().tolist() == [1, 1.25, 1.75, 2]


def test_scaling_to_unit_is_per_map_and_defined_for_constant_maps() -> None:
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[4.0, 4.0], [4.0, 4.0]]])
    assert scale_to_unit(maps).tolist() == [[[0, 0.5], [0.25, 1]], [[0, 0], [0, 0]]]


# ---------------------------------------------------------------------------------------- Grad-CAM, Grad-CAM++


def pooled_case() -> tuple[Classifier, Tensor]:
    """A 4x4 image whose 2x2 CAM layer and gradients are known.

    A^0 = [[1, 0], [0, 0]]    A^1 = [[0, 2], [0, 0]]    A^2 = [[0, 0], [4, 0]]
    g^0 = [[4, 0], [0, 0]]    g^1 = [[1, 1], [1, 1]]    g^2 = [[-1, -1], [-1, -1]]
    """
    network = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        network[2].weight[0] = torch.tensor([4.0, 0, 0, 0, 1, 1, 1, 1, -1, -1, -1, -1])
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, :2, :2], image[0, 1, :2, 2:], image[0, 2, 2:, :2] = 1, 2, 4
    return make_classifier(network, layers={"cam": "0"}), image


ROWS = torch.tensor([1, 0.75, 0.25, 0])[:, None]
"""What becomes of a column [1, 0] when it is enlarged to four pixels."""


def test_gradcam_by_hand() -> None:
    classifier, image = pooled_case()
    # w = mean g = (1, 1, -1): ReLU([[1, 2], [-4, 0]]) = [[1, 2], [0, 0]]
    expected = ROWS * torch.tensor([1, 1.25, 1.75, 2])
    # the ReLU comes before the enlargement: the -4 does not pull its neighbours down
    assert torch.allclose(GradCAM()(classifier, image, ONE_PAIR)[0], expected)


def test_gradcam_pp_by_hand() -> None:
    classifier, image = pooled_case()
    # channel 0: sum A = 1, alpha = 1 / (2 + 4 * 1) = 1/6 at one position, w = 1/6 * 4 = 2/3
    # channel 1: sum A = 2, alpha = 1 / (2 + 1 * 2) = 1/4 at four, w = 4 * 1/4 * 1 = 1
    # channel 2: no positive gradient, w = 0;  M = [[2/3, 2], [0, 0]]
    expected = ROWS * torch.tensor([2 / 3, 1, 5 / 3, 2])
    assert torch.allclose(GradCAMPlusPlus()(classifier, image, ONE_PAIR)[0], expected)
    # normalised: alpha of channel 0 is 1, w = 4; of channel 1 a quarter each as before;  M = [[4, 2], [0, 0]]
    expected = ROWS * torch.tensor([4, 3.5, 2.5, 2])
    assert torch.allclose(GradCAMPlusPlus(variant="normalised")(classifier, image, ONE_PAIR)[0], expected)


def naive_gradcam(network: nn.Sequential, image: Tensor, target: int, cut: int = 5) -> Tensor:
    activation, gradient = activation_and_gradient(network, image[0], target, cut)
    cam = torch.zeros(activation.shape[1:])
    for k in range(len(activation)):
        cam += gradient[k].sum() / gradient[k].numel() * activation[k]
    return enlarge(cam.clamp(min=0), image)


def naive_gradcam_pp(network: nn.Sequential, image: Tensor, target: int, variant: str, cut: int = 5) -> Tensor:
    activation, gradient = (t.double() for t in activation_and_gradient(network, image[0], target, cut))
    cam = torch.zeros(activation.shape[1:], dtype=torch.float64)
    for a, g in zip(activation, gradient, strict=True):
        alpha = torch.zeros_like(g)
        for i in range(len(g)):
            for j in range(g.shape[1]):
                if g[i, j] != 0:
                    alpha[i, j] = g[i, j] ** 2 / (2 * g[i, j] ** 2 + a.sum() * g[i, j] ** 3)
        if variant == "normalised" and (g > 0).any():
            alpha = alpha / alpha[g > 0].sum()
        cam += (alpha * g.clamp(min=0)).sum() * a
    return enlarge(cam.clamp(min=0).float(), image)


@seeds
@pytest.mark.parametrize(("layer", "cut"), [(None, 5), ("1", 2)])
def test_gradcam_equals_naive_reference(seed: int, layer: str | None, cut: int) -> None:
    compare(GradCAM(layer), naive_gradcam, seed, cut=cut)


@seeds
@pytest.mark.parametrize("variant", ["paper", "normalised"])
@pytest.mark.parametrize(("layer", "cut"), [(None, 5), ("1", 2)])
def test_gradcam_pp_equals_naive_reference(seed: int, variant: str, layer: str | None, cut: int) -> None:
    compare(GradCAMPlusPlus(layer, variant), naive_gradcam_pp, seed, variant=variant, cut=cut)


def test_gradcam_pp_weights_do_not_vanish_with_the_gradients() -> None:
    # g = 1e-20: g^2 underflows in float32; alpha = 1 / (2 + tiny) = 1/2 and w = 4 * 1/2 * 1e-20
    classifier, image = pooled_case()
    with torch.no_grad():
        classifier.network.get_submodule("2").weight.mul_(1e-20)
    maps = GradCAMPlusPlus()(classifier, image, ONE_PAIR)
    assert maps[0, 0, 3].item() == pytest.approx(2 * 2e-20)


# ------------------------------------------------------------------------------------------ Integrated Grad-CAM


def saturating_case() -> tuple[Classifier, Tensor]:
    """y = 1 - ReLU(1 - x1 - x2), x1 and x2 the means of the red and the green channel, both 1: saturated."""
    network = nn.Sequential(
        nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1)
    )
    with torch.no_grad():
        network[3].weight.copy_(torch.tensor([[-1.0, -1.0, 0.0]]))
        network[5].weight.fill_(-1)
        network[3].bias.fill_(1)
        network[5].bias.fill_(1)
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, 0, 1], image[0, 1, 2, 3] = 16, 16
    return make_classifier(network, layers={"cam": "0"}), image


def test_igcam_sees_what_saturation_hides_from_gradcam() -> None:
    classifier, image = saturating_case()
    assert not GradCAM()(classifier, image, ONE_PAIR).any()
    # At t = 1 of 3, 1 - 2/3 > 0 and dy/dA = 1/16 at every pixel: ReLU(1/3 * 16/16 * (A^0 + A^1) / 3), 16/9 at the two
    # pixels; at t = 2, 3 the gradient is 0.
    maps = IntegratedGradCAM(m=3)(classifier, image, ONE_PAIR)[0]
    assert maps[0, 1].item() == pytest.approx(16 / 9)
    assert maps[2, 3].item() == pytest.approx(16 / 9)
    assert maps.count_nonzero() == 2
    # released: t = 0, 1, 2; at t = 0, A = 0; at t = 1 mean gradient 1/16, no 1/m: 1/16 * 16/3 = 1/3
    maps = IntegratedGradCAM(m=3, variant="released")(classifier, image, ONE_PAIR)[0]
    assert maps[0, 1].item() == pytest.approx(1 / 3)
    assert maps[2, 3].item() == pytest.approx(1 / 3)
    assert maps.count_nonzero() == 2


def naive_igcam(
    network: nn.Sequential, image: Tensor, target: int, m: int, variant: str, cut: int = 5, black: float = 0.0
) -> Tensor:
    dark = torch.full_like(image, black)
    reference = network[:cut](dark)[0].detach()
    total = torch.zeros(reference.shape[1:])
    for t in range(1, m + 1) if variant == "paper" else range(m):
        activation, gradient = activation_and_gradient(network, (dark + t / m * (image - dark))[0], target, cut)
        step = torch.zeros(reference.shape[1:])
        for k in range(len(activation)):
            if variant == "paper":
                step += gradient[k].sum() * (activation[k] - reference[k]) / m
            else:
                step += gradient[k].mean() * activation[k]
        total += step.clamp(min=0)
    return enlarge(total, image)


@seeds
@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize(("m", "layer", "cut"), [(1, None, 5), (7, None, 5), (7, "1", 2)])
def test_igcam_equals_naive_reference(seed: int, variant: str, m: int, layer: str | None, cut: int) -> None:
    if (m, variant) == (1, "released"):  # explains the black image alone, on which a pair's map may be all zero
        m = 2
    compare(IntegratedGradCAM(m, variant, layer), naive_igcam, seed, m=m, variant=variant, cut=cut)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_igcam_path_begins_at_the_fill(variant: str) -> None:
    network = tiny_network()
    untouched = plain(network)
    images, pairs = make_batch()
    classifier = make_classifier(network, fill=torch.full((3, 1, 1), -1.5))
    maps = IntegratedGradCAM(6, variant)(classifier, images, pairs)
    expected = [naive_igcam(untouched, images[i : i + 1], c, 6, variant, black=-1.5) for i, _, c in pairs]
    assert torch.allclose(maps, torch.stack(expected), rtol=1e-4, atol=1e-4)
    dark = [naive_igcam(untouched, images[i : i + 1], c, 6, variant) for i, _, c in pairs]
    assert not torch.allclose(maps, torch.stack(dark), rtol=1e-2, atol=1e-2)


def test_igcam_converges() -> None:
    images, pairs = make_batch(height=8, width=8)
    classifier = make_classifier(forward_batch=200)
    few, some, many = (IntegratedGradCAM(m)(classifier, images, pairs) for m in (20, 200, 400))
    extent = many.amax((1, 2), keepdim=True).clamp(min=1e-6)
    coarse, fine = (((maps - many) / extent).abs().max() for maps in (few, some))
    assert fine < 0.02
    assert fine < coarse / 4


@seeds
def test_igcam_of_a_linear_network_is_gradcam(seed: int) -> None:
    # A(a I) = a A(I) and a constant gradient, summed instead of averaged over h w = 12 * 20 positions:
    # M = sum_t ReLU(1/m * 240 w t/m A) = 240 (m + 1) / (2 m) Grad-CAM
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    )
    classifier = make_classifier(network, layers={"cam": "0"})
    images, pairs = make_batch(height=12, width=20)
    gradcam, igcam = (method(classifier, images, pairs) for method in (GradCAM(), IntegratedGradCAM(m=8)))
    assert gradcam.amax((1, 2)).gt(0).all()
    assert torch.allclose(igcam, 240 * 9 / 16 * gradcam, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- Otsu


def naive_level(values: Tensor) -> int:
    """The lowest level from 0 to 255 that maximises the variance between the pixels below it and the others."""
    levels = [min(255, round(v * 256)) for v in values.flatten().tolist()]
    best, found = 0.0, 0
    for level in range(1, 256):
        below, above = [v for v in levels if v < level], [v for v in levels if v >= level]
        if below and above:
            means = sum(below) / len(below), sum(above) / len(above)
            between = len(below) * len(above) * (means[0] - means[1]) ** 2
            if between > best * (1 + 1e-12):
                best, found = between, level
    return found


def naive_hard(values: Tensor) -> Tensor:
    level = naive_level(values)
    kept = [float(min(255, round(v * 256)) >= level) for v in values.flatten().tolist()]
    return torch.tensor(kept).view_as(values)


def naive_soft(values: Tensor) -> Tensor:
    if values.min() == values.max():
        return torch.ones_like(values)
    threshold = float(naive_level(values))
    higher = round(1.5 * threshold)
    above = sum(min(255, round(v * 256)) >= higher for v in values.flatten().tolist())
    if above / values.numel() < 0.1:
        threshold *= 1.5
    steps = [1 / (1 + math.exp(-100 * (v - threshold / 256))) for v in values.flatten().tolist()]
    return torch.tensor(steps).view_as(values)


def otsu_maps() -> Tensor:
    """Noise, a blob, a small bright spot on noise, and two levels."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(12, 20, generator=generator)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 12), torch.linspace(-1, 1, 20), indexing="ij")
    spot = 0.6 * noise
    spot[3, 4:7] = 1
    return torch.stack([noise, torch.exp(-4 * (x**2 + y**2)), spot, (noise > 0.8).float()])


def test_otsu_by_hand() -> None:
    # eight pixels at 0.25 (level 64), six at 0.5 (128), two at 1 (255). From 65 on: 8 * 8 * (64 - 159.75)^2 = 586k;
    # from 129 on: 14 * 2 * (91.4 - 255)^2 = 749k: the upper class is the two bright pixels.
    maps = torch.tensor([0.25] * 8 + [0.5] * 6 + [1.0] * 2).view(1, 4, 4)
    assert otsu_level(maps).tolist() == [129]
    assert hard_mask(maps).flatten().tolist() == [0] * 14 + [1] * 2
    # four of the bright ones: from 65 on 6 * 10 * (64 - 178.8)^2 = 791k; from 129 on 12 * 4 * (96 - 255)^2 = 1213k
    maps = torch.tensor([0.25] * 6 + [0.5] * 6 + [1.0] * 4).view(1, 4, 4)
    assert otsu_level(maps).tolist() == [129]
    # two equal classes: the lowest level that parts them
    maps = torch.tensor([0.0] * 8 + [1.0] * 8).view(1, 4, 4)
    assert otsu_level(maps).tolist() == [1]
    assert otsu_level(torch.zeros(1, 4, 4)).tolist() == [0]


def test_otsu_equals_naive_reference() -> None:
    maps = otsu_maps()
    assert otsu_level(maps).tolist() == [naive_level(values) for values in maps]
    assert torch.equal(hard_mask(maps), torch.stack([naive_hard(values) for values in maps]))
    assert torch.allclose(soft_mask(maps), torch.stack([naive_soft(values) for values in maps]), atol=1e-5)


def test_soft_mask_by_hand() -> None:
    # levels 0 and 255: threshold 1/256, raised to 1.5/256 only when fewer than a tenth of the pixels lie above
    many = torch.tensor([0.0] * 12 + [1.0] * 4).view(1, 4, 4)
    few = torch.tensor([0.0] * 15 + [1.0]).view(1, 4, 4)
    assert soft_mask(many)[0, 0, 0].item() == pytest.approx(1 / (1 + math.exp(100 / 256)))
    assert soft_mask(few)[0, 0, 0].item() == pytest.approx(1 / (1 + math.exp(150 / 256)))
    assert soft_mask(many)[0, 3, 3].item() == pytest.approx(1)
    assert soft_mask(torch.zeros(1, 4, 4)).eq(1).all()  # a SISE layer that keeps no map changes nothing


# ------------------------------------------------------------------------------------------------------- SISE


def sise_case() -> tuple[Classifier, Tensor]:
    """An image of one red, one green and one blue corner pixel; y_0 - y_1 = R log 3 + G log 2 - B, sums over pixels.

    The masks of layer "0" are the colour channels, each of which keeps one corner: Psi_0 is 3/4 for the red one
    and 2/3 for the green one; the blue one speaks against class 0. Layer "1" is half the size.
    """
    network = nn.Sequential(nn.Identity(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        network[3].weight.zero_()
        network[3].bias.zero_()
        network[3].weight[0] = torch.tensor([math.log(3), math.log(2), -1.0]).repeat_interleave(4)
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, 0, 0] = image[0, 1, 0, 3] = image[0, 2, 3, 0] = 1
    return make_classifier(network, layers={"sise": ("0", "1")}), image


def test_sise_of_one_layer_by_hand() -> None:
    classifier, image = sise_case()
    # V = 3/4 at the red and 2/3 at the green corner, scaled to 1 and 8/9
    expected = torch.zeros(4, 4)
    expected[0, 0], expected[0, 3] = 1, 8 / 9
    assert torch.allclose(SISE(layers=["0"])(classifier, image, ONE_PAIR)[0], expected, atol=1e-6)
    # log 2 / log 3 = 0.63: above mu = 0.6 and below 0.7
    assert torch.allclose(SISE(0.6, layers=["0"])(classifier, image, ONE_PAIR)[0], expected, atol=1e-6)
    expected[0, 3] = 0
    assert torch.allclose(SISE(0.7, layers=["0"])(classifier, image, ONE_PAIR)[0], expected, atol=1e-6)
    # class 1 has the opposite signs: only the blue corner
    other = Pairs(torch.tensor([0]), torch.tensor([1]), ("image0",))
    expected = torch.zeros(4, 4)
    expected[3, 0] = 1
    assert torch.allclose(SISE(layers=["0"])(classifier, image, other)[0], expected, atol=1e-6)


def test_sise_fusion_by_hand() -> None:
    classifier, image = sise_case()
    # Layer "1": each mask is a corner enlarged to u = 1, 3/4, 1/4, 0 in both directions, sum 4; Psi as before.
    # Along the columns 9 u + 8 (u reversed) = 9, 8.75, 8.25, 8, scaled by 1/9; along the rows u: V_2.
    second = ROWS * torch.tensor([9, 8.75, 8.25, 8]) / 9
    assert torch.allclose(SISE(layers=["1"])(classifier, image, ONE_PAIR)[0], second, atol=1e-6)
    # Otsu parts the rows 0 and 1 (0.67 to 1) from 2 and 3 (0 to 0.25); e_2 = (V_1 + V_2) there
    expected = second.clone()
    expected[0, 0] += 1
    expected[0, 3] += 8 / 9
    expected[2:] = 0
    assert torch.allclose(SISE()(classifier, image, ONE_PAIR)[0], expected, atol=1e-6)


def probability_alphas(network: nn.Sequential, image: Tensor, target: int, cuts: tuple[int, ...]) -> list[Tensor]:
    """alpha (K,) = sum_ij dPsi/dA^k of each layer, by the direct gradient of the softmax probability."""
    x, activations = image, []
    for begin, end in pairwise((0, *cuts)):
        x = network[begin:end](x)
        x = x if activations else x.detach().requires_grad_()
        activations.append(x)
    psi = network[cuts[-1] :](x).softmax(1)[0, target]
    return [gradient[0].sum((1, 2)) for gradient in torch.autograd.grad(psi, activations)]


def naive_sise(network: nn.Sequential, image: Tensor, target: int, mu: float, fusion: str) -> Tensor:
    cuts = (2, 5)
    alphas = probability_alphas(copy.deepcopy(network).double(), image.double(), target, cuts)
    fused = None
    for cut, alpha in zip(cuts, alphas, strict=True):
        features = network[:cut](image)[0].detach()
        total = torch.zeros(image.shape[2:])
        for k, feature in enumerate(features):
            if alpha[k] > 0 and alpha[k] > mu * alpha.max() and feature.max() > feature.min():
                mask = unit(enlarge(feature, image))
                total += network(image * mask).softmax(1)[0, target].detach() * mask / mask.sum()
        layer_map = unit(total)
        otsu = naive_hard if fusion == "hard_otsu" else naive_soft
        fused = layer_map if fused is None else (fused + layer_map) * otsu(layer_map)
    assert fused is not None
    return fused


@seeds
@pytest.mark.parametrize("fusion", ["hard_otsu", "soft_otsu"])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_sise_equals_naive_reference(seed: int, fusion: str, mu: float) -> None:
    compare(SISE(mu, fusion), naive_sise, seed, mu=mu, fusion=fusion)


@seeds
@pytest.mark.parametrize("mu", [0.0, 0.3, 0.75])
def test_sise_selects_as_the_gradient_of_the_probability_does(seed: int, mu: float) -> None:
    network = tiny_network(seed=seed)
    exact = plain(network).double()
    images, pairs = make_batch(seed=seed)
    method = SISE(mu)
    _, alphas = method.features_and_alphas(make_classifier(network), images, pairs, ("1", "4"))
    for p, (image, _, target) in enumerate(pairs):
        expected = probability_alphas(exact, images[image : image + 1].double(), target, (2, 5))
        for alpha, reference in zip(alphas, expected, strict=True):
            kept = (reference > 0) & (reference > mu * reference.max())
            assert torch.equal(method.keep(alpha)[p], kept)
            assert cosine(alpha[p], reference) > 1 - 1e-6  # one positive factor


def test_sise_keeps_maps_when_the_softmax_is_saturated() -> None:
    network = tiny_network()
    with torch.no_grad():
        network[7].weight.mul_(1e4)
        network[7].bias.mul_(1e4)
    untouched, classifier = plain(network), make_classifier(network)
    images, _ = make_batch()
    target = classifier.logits(images).argmax(1)
    pairs = Pairs(torch.arange(3), target, ("a", "b", "c"))
    for image, _, c in pairs:  # the probability's gradient has nothing left
        assert not torch.cat(probability_alphas(untouched, images[image : image + 1], c, (2, 5))).any()
    method = SISE()
    for alpha in method.features_and_alphas(classifier, images, pairs, ("1", "4"))[1]:
        assert method.keep(alpha).any(1).all()
    maps = method(classifier, images, pairs)
    assert maps.isfinite().all()
    assert maps[0].any()  # a masked image of another class has confidence 0, so not every image's need be


def test_sise_evaluates_every_kept_map_once_for_all_classes() -> None:
    images, pairs = make_batch()
    classifier = make_classifier(forward_batch=1000)
    method = SISE()
    _, alphas = method.features_and_alphas(classifier, images, pairs, ("1", "4"))
    needed = 0
    for feature, alpha in zip(classifier.activations(images, ("1", "4")), alphas, strict=True):
        wanted = {
            (i, k) for p, (i, _, _) in enumerate(pairs) for k in method.keep(alpha)[p].nonzero().flatten().tolist()
        }
        needed += sum(int(feature[i, k].max() > feature[i, k].min()) for i, k in wanted)
    passes: list[int] = []
    classifier.network.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    method(classifier, images, pairs)
    assert sum(passes) == 3 + needed  # activations with gradients, masked images


def test_sise_masks_with_the_fill() -> None:
    images, pairs = make_batch()
    black, grey = (make_classifier(fill=torch.full((3, 1, 1), value)) for value in (0.0, 0.7))
    shifted = tiny_network()  # sees x + 0.7 as the other network sees x; zero padding keeps them apart
    for network in (black.network, grey.network, shifted):
        for layer in (0, 3):
            network.get_submodule(str(layer)).padding = (0, 0)
    with torch.no_grad():
        shifted[0].bias -= 0.7 * shifted[0].weight.sum((1, 2, 3))
    expected = SISE(layers=["1"])(black, images, pairs)
    shifted_maps = SISE(layers=["1"])(make_classifier(shifted, fill=torch.full((3, 1, 1), 0.7)), images + 0.7, pairs)
    assert torch.allclose(shifted_maps, expected, atol=1e-4)
    assert not torch.allclose(SISE(layers=["1"])(grey, images, pairs), expected, atol=1e-2)


# ------------------------------------------------------------------------------------------------------- RISE


def test_rise_mask_by_hand() -> None:
    # 2 cells of 2 pixels, enlarged from 2 to 6 pixels: the right cell's weight is 0, 0, 1/3, 2/3, 1, 1 there;
    # rows cropped at a shift of 1, columns at 0
    masks = RandomMasks(RISE(masks=1, cells=2), 4, 4, torch.device("cpu"))
    masks.grids[0] = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    masks.row_shifts[0], masks.column_shifts[0] = 1, 0
    rows, columns = torch.tensor([0, 1, 2, 3]) / 3, torch.tensor([0, 0, 1, 2]) / 3
    assert torch.allclose(masks[0:1][0], rows[:, None] * columns, atol=1e-6)


def test_rise_by_hand() -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    # with p_1 = 1 nothing is masked: S = Psi(I) everywhere
    expected = classifier.scores(images)[pairs.image, pairs.target]
    maps = RISE(masks=5, p1=1.0)(classifier, images, pairs)
    assert torch.allclose(maps, expected[:, None, None].expand(-1, 16, 16), atol=1e-6)


def naive_rise(network: nn.Sequential, image: Tensor, target: int, rise: RISE) -> Tensor:
    """Enlarge each grid to (cells + 1) cells of pixels, crop, weigh; the draws are those of the method."""
    height, width = image.shape[2:]
    generator = torch_generator(rise.seed, "rise")
    grids = (torch.rand(rise.masks, rise.cells, rise.cells, generator=generator) < rise.p1).float()
    shifts = torch.rand(rise.masks, 2, generator=generator)
    cell = math.ceil(height / rise.cells), math.ceil(width / rise.cells)
    total = torch.zeros(height, width)
    for grid, shift in zip(grids, shifts, strict=True):
        size = (rise.cells + 1) * cell[0], (rise.cells + 1) * cell[1]
        large = F.interpolate(grid[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        y, x = int(shift[0] * cell[0]), int(shift[1] * cell[1])
        mask = large[y : y + height, x : x + width]
        total += network(image * mask).softmax(1)[0, target].detach() * mask
    return total / rise.masks / rise.p1


@seeds
@pytest.mark.parametrize(("cells", "p1"), [(7, 0.5), (3, 0.2), (1, 0.5)])
def test_rise_equals_naive_reference(seed: int, cells: int, p1: float) -> None:
    rise = RISE(masks=15, cells=cells, p1=p1, seed=seed)
    compare(rise, naive_rise, seed, rise=rise)


def test_rise_masks_are_drawn_as_said() -> None:
    masks = RandomMasks(RISE(masks=3000, cells=4, p1=0.3), 12, 20, torch.device("cpu"))
    values = masks[0:3000]
    assert values.shape == (3000, 12, 20)
    assert values.min() >= 0
    assert values.max() <= 1 + 1e-6
    assert torch.allclose(values.mean(0), torch.full((12, 20), 0.3), atol=0.04)  # 5 sigma of a whole cell
    assert sorted(set(masks.row_shifts.tolist())) == [0, 1, 2]  # cells of 3 x 5 pixels
    assert sorted(set(masks.column_shifts.tolist())) == [0, 1, 2, 3, 4]


def test_rise_never_holds_all_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    slices: list[range] = []
    original = RandomMasks.__getitem__

    def recorded(self: RandomMasks, index: slice) -> Tensor:
        slices.append(range(index.start, index.stop))
        return original(self, index)

    monkeypatch.setattr(RandomMasks, "__getitem__", recorded)
    images, pairs = make_batch()
    maps = RISE(masks=20)(make_classifier(forward_batch=8), images, pairs)
    assert [n for part in slices for n in part] == list(range(20))
    assert max(map(len, slices)) == 2  # 8 images per pass are 2 masks of 3 images
    slices.clear()
    assert torch.allclose(maps, RISE(masks=20)(make_classifier(forward_batch=1), images, pairs), atol=1e-6)
    assert max(map(len, slices)) == 1


def test_rise_differs_by_seed() -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    first, again, other = (RISE(masks=10, seed=seed)(classifier, images, pairs) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


# --------------------------------------------------------------------------------------------------- controls


def test_uniform_is_one_everywhere() -> None:
    images, pairs = make_batch(height=12, width=20)
    maps = Uniform()(make_classifier(), images, pairs)
    assert torch.equal(maps, torch.ones(len(pairs), 12, 20))


def test_center_by_hand() -> None:
    # pixel centres lie at -3/8, -1/8, 1/8, 3/8 of a side from the middle; sigma = 1/8: exp(-(y^2 + x^2) * 32)
    near, far = 1 / 64, 9 / 64
    values = [[far, near, near, far], [near, far, far, near]]
    expected = torch.tensor([[math.exp(-32 * (r + c)) for c in values[0]] for r in values[0]])
    images, pairs = make_batch(height=4, width=4)
    maps = Center(sigma=0.125)(make_classifier(), images, pairs)
    assert torch.allclose(maps, expected.expand(len(pairs), 4, 4), rtol=1e-5)
    assert maps[0, 1, 1].item() == pytest.approx(math.exp(-1))


def test_center_stretches_with_the_image() -> None:
    images, pairs = make_batch(height=6, width=10)
    maps = Center()(make_classifier(), images, pairs)[0]
    assert torch.allclose(maps, maps.flip(0))
    assert torch.allclose(maps, maps.flip(1))
    images, pairs = make_batch(height=10, width=6)
    assert torch.allclose(Center()(make_classifier(), images, pairs)[0].T, maps)


def test_random_is_seeded_by_image_and_class() -> None:
    images, _ = make_batch()
    classifier = make_classifier()

    def draw(image_id: str, target: int, seed: int = 0) -> Tensor:
        pairs = Pairs(torch.tensor([0]), torch.tensor([target]), (image_id,))
        return Random(seed)(classifier, images[:1], pairs)[0]

    pairs = Pairs(torch.tensor([2, 0, 2]), torch.tensor([1, 1, 3]), ("a", "b", "c"))
    for drawn, expected in zip(
        Random()(classifier, images, pairs), [draw("c", 1), draw("a", 1), draw("c", 3)], strict=True
    ):
        assert torch.equal(drawn, expected)
    assert torch.equal(draw("a", 1), torch.rand(16, 16, generator=torch_generator(0, "random", "a", 1)))
    for other in (draw("b", 1), draw("a", 2), draw("a", 1, seed=1)):
        assert (draw("a", 1) == other).double().mean() < 0.01
    assert 0.4 < draw("a", 1).mean() < 0.6


# -------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: GradCAMPlusPlus(variant="exact"),
            "method.variant of gradcam_pp must be paper or normalised, not 'exact'",
        ),
        (lambda: IntegratedGradCAM(variant="exact"), "method.variant of igcam must be paper or released, not 'exact'"),
        (lambda: IntegratedGradCAM(m=0), "method.m of igcam must be at least 1, not 0"),
        (lambda: SISE(fusion="otsu"), "method.fusion of sise must be one of hard_otsu, soft_otsu, not 'otsu'"),
        (lambda: SISE(mu=1.0), r"method.mu of sise must be in \[0, 1\), not 1.0"),
        (lambda: SISE(mu=-0.1), r"method.mu of sise must be in \[0, 1\), not -0.1"),
        (lambda: RISE(masks=0), "method.masks >= 1"),
        (lambda: RISE(cells=0), "method.cells >= 1"),
        (lambda: RISE(p1=0.0), "0 < method.p1 <= 1"),
        (lambda: RISE(p1=1.5), "0 < method.p1 <= 1"),
        (lambda: Center(sigma=0), "method.sigma of center must be positive, not 0"),
    ],
)
def test_parameters_out_of_range_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(CamexpError, match=message):
        call()


@pytest.mark.parametrize("method", [GradCAM("nine"), GradCAMPlusPlus("nine"), IntegratedGradCAM(layer="nine")])
def test_unknown_layers_are_named(method: Method) -> None:
    images, pairs = make_batch()
    with pytest.raises(CamexpError, match="no layer 'nine'"):
        method(make_classifier(), images, pairs)


# -------------------------------------------------------------------------------------- public implementations


FULL_SIZE = {"resnet50": "layer4", "vgg16": "features.29"}


@pytest.fixture(scope="module", params=["tiny", "resnet50", "vgg16"])
def public_case(request: pytest.FixtureRequest) -> tuple[Classifier, Tensor, Pairs]:
    """A tiny network, and the papers' at full size with random weights; one image and two classes."""
    torch.manual_seed(0)
    if request.param == "tiny":
        classifier, image = make_classifier(tiny_network(seed=2)), torch.randn(1, 3, 32, 32)
    else:
        network = build(request.param, 20)
        classifier = Classifier(network, {"cam": FULL_SIZE[request.param]})
        image = torch.randn(1, 3, 224, 224)
    # the two classes with the largest maps: of a random network those of others may vanish
    candidates = torch.arange(4)
    pairs = Pairs(torch.zeros(4, dtype=torch.long), candidates, ("image0",))
    strongest = GradCAM()(classifier, image, pairs).amax((1, 2)).argsort(descending=True)[:2]
    return classifier, image, Pairs(torch.zeros(2, dtype=torch.long), candidates[strongest], ("image0",))


@contextmanager
def recorded(layer: nn.Module) -> Iterator[nn.Module]:
    """The libraries need a graph at the layer; it begins at the layer's input."""
    handle = layer.register_forward_pre_hook(lambda module, args: args[0].clone().requires_grad_())
    try:
        yield layer
    finally:
        handle.remove()


def library_maps(cam: type, case: tuple[Classifier, Tensor, Pairs]) -> Tensor:
    """What pytorch-grad-cam gives for each pair, scaled to [0,1]."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: PLC0415

    classifier, image, pairs = case
    with (
        recorded(classifier.network.get_submodule(classifier.cam_layer)) as layer,
        cam(classifier.network, [layer]) as library,
    ):
        maps = [library(image, [ClassifierOutputTarget(c)])[0] for c in pairs.target.tolist()]
    return torch.stack([torch.as_tensor(values) for values in maps])


def test_gradcam_agrees_with_pytorch_grad_cam(public_case: tuple[Classifier, Tensor, Pairs]) -> None:
    library = pytest.importorskip("pytorch_grad_cam")
    ours = scale_to_unit(GradCAM()(*public_case))
    for a, b in zip(ours, library_maps(library.GradCAM, public_case), strict=True):
        assert a.max() > 0
        assert cosine(a, b) >= 0.999


def test_gradcam_agrees_with_captum(public_case: tuple[Classifier, Tensor, Pairs]) -> None:
    attr = pytest.importorskip("captum.attr")
    classifier, image, pairs = public_case
    with recorded(classifier.network.get_submodule(classifier.cam_layer)) as layer:
        library = attr.LayerGradCam(classifier.network, layer)
        cams = [library.attribute(image, c, relu_attributions=True).detach() for c in pairs.target.tolist()]
    for ours, cam in zip(GradCAM()(*public_case), cams, strict=True):
        theirs = attr.LayerAttribution.interpolate(cam, tuple(image.shape[2:]), "bilinear")[0, 0]
        assert ours.max() > 0
        assert cosine(ours, theirs) >= 0.999
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * ours.max().item())  # unscaled, too


def test_gradcam_pp_agrees_with_pytorch_grad_cam(public_case: tuple[Classifier, Tensor, Pairs]) -> None:
    library = pytest.importorskip("pytorch_grad_cam")
    ours = scale_to_unit(GradCAMPlusPlus()(*public_case))
    for a, b in zip(ours, library_maps(library.GradCAMPlusPlus, public_case), strict=True):
        assert a.max() > 0
        assert cosine(a, b) >= 0.999


def test_gradcam_pp_of_small_gradients_follows_the_closed_form() -> None:
    """With small gradients pytorch-grad-cam and this package differ; this package follows the paper's closed form.

    The library adds 1e-6 to the denominator 2 g^2 + g^3 sum A. With the gradients of the hand-computed case
    times 1e-4 it outweighs 2 g^2 = 2e-8, and the weights become proportional to the sum of g^3 instead of g.
    """
    library = pytest.importorskip("pytorch_grad_cam")
    classifier, image = pooled_case()
    with torch.no_grad():
        classifier.network.get_submodule("2").weight.mul_(1e-4)
    # alpha = 1/2: w = (4/2, 4 * 1/2) 1e-4, M = [[2, 4], [0, 0]] 1e-4
    ours = GradCAMPlusPlus()(classifier, image, ONE_PAIR)
    assert torch.allclose(ours[0], 1e-4 * ROWS * torch.tensor([2, 2.5, 3.5, 4]), rtol=1e-3)
    # the library: w proportional to (4^3, 4 * 1^3), M to [[64, 8], [0, 0]]
    theirs = library_maps(library.GradCAMPlusPlus, (classifier, image, ONE_PAIR))
    assert (theirs[0, 0, 3] / theirs[0, 0, 0]).item() == pytest.approx(8 / 64, rel=0.3)
