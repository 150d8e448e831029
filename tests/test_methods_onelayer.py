"""Methods that explain with one layer's activations, against hand computation, their formulas, and public libraries.

The naive references read plainly: single pixels, single channels, plain autograd, nothing of camexp but the
generators' names.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import make_batch, make_classifier, tiny_network
from torch import Tensor, nn
from torch.nn import functional as F

from camexp import config
from camexp.errors import CamexpError
from camexp.methods.ablationcam import AblationCAM, _Copies
from camexp.methods.base import Method
from camexp.methods.cam import CAM
from camexp.methods.counterfactual_gradcam import CounterfactualGradCAM
from camexp.methods.expected_gradcam import REFERENCES, ExpectedGradCAM
from camexp.methods.gradcam import GradCAM
from camexp.methods.gradcam_pp import GradCAMPlusPlus
from camexp.methods.hirescam import HiResCAM
from camexp.methods.layercam import LayerCAM
from camexp.methods.scorecam import ScoreCAM
from camexp.methods.smooth_gradcam_pp import SmoothGradCAMPlusPlus
from camexp.methods.xgradcam import XGradCAM
from camexp.models.build import build
from camexp.models.classifier import Classifier
from camexp.models.tail import tail_behind
from camexp.pairs import Pairs
from camexp.seeding import torch_generator

# --------------------------------------------------------------------------------------- by hand, on 4x4 pixels

HAND_LAYER = "1"


def hand_network() -> nn.Sequential:
    """Activations are the red and green channels; y_0 = 2 mean(R) - mean(G) + 1, y_1 = 3 mean(G)."""
    network = nn.Sequential(
        nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]])[:, :, None, None])
        network[4].weight.copy_(torch.tensor([[2.0, -1], [0, 3]]))
        network[4].bias.copy_(torch.tensor([1.0, 0]))
    return network


def hand_image() -> Tensor:
    """R = 4 at the top left, G = 1 on the last row: y_0 = 1.25, y_1 = 0.75."""
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, 0, 0] = 4
    image[0, 1, 3] = 1
    return image


E15, E075 = math.exp(1.5), math.exp(0.75)

HAND = [  # method, class, value at the top left, value on the last row
    (CAM(), 0, 8, -1),
    (CAM(), 1, 0, 3),
    (XGradCAM(), 0, 0.5, 0),  # g is constant: w = (2/16, -1/16)
    (XGradCAM(), 1, 0, 3 / 16),
    (LayerCAM(), 0, 0.5, 0),
    (LayerCAM(), 1, 0, 3 / 16),
    (HiResCAM(), 0, 0.5, -1 / 16),
    (HiResCAM(relu=True), 0, 0.5, 0),
    (CounterfactualGradCAM(), 0, 0, 1 / 16),
    (CounterfactualGradCAM(), 1, 0, 0),
    (AblationCAM(), 0, 4 * (1.25 - 0.75) / 1.25, 0),  # without R y_0 = 0.75, without G 1.5
    (AblationCAM(), 1, 0, 1),
    (ScoreCAM(), 0, 4 * 1.5, 0.75),  # masked with R y_0 = 1.5, with G 0.75
    (ScoreCAM(), 1, 0, 0.75),
    (ScoreCAM(baseline=True), 0, 4 * (1.5 - 1), 0),
    (ScoreCAM(normalise="softmax"), 0, 4 * E15 / (E15 + E075), E075 / (E15 + E075)),
    (ScoreCAM(normalise="softmax", baseline=True), 0, 4 * E15 / (E15 + E075), E075 / (E15 + E075)),
    (SmoothGradCAMPlusPlus(samples=2, sigma=0), 0, 4 * 16 * 1 / (2 + 4 / 8) / 8, 0),  # alpha = 1 / (2 + g sum A)
    (SmoothGradCAMPlusPlus(samples=2, sigma=0, variant="printed"), 0, 4 * 16 * 8 / (2 + 4 / 8) / 8, 0),
    (ExpectedGradCAM(samples=2, sigma=0), 0, 4 * 4 / 8, 0),  # A(0) = 0: w_k = g sum A
    (ExpectedGradCAM(samples=2, sigma=0), 1, 0, 4 * 3 / 16),
    (ExpectedGradCAM(samples=2, sigma=0, variant="plain"), 0, 0.5, 0),
]


@pytest.mark.parametrize(("method", "target", "top_left", "last_row"), HAND, ids=str)
def test_equals_hand_computation(method: Method, target: int, top_left: float, last_row: float) -> None:
    classifier = Classifier(hand_network(), {"cam": HAND_LAYER}, confidence="logit")
    (cam,) = method(classifier, hand_image(), Pairs(torch.tensor([0]), torch.tensor([target]), ("a",)))
    expected = torch.zeros(4, 4)
    expected[0, 0], expected[3] = top_left, last_row
    assert torch.allclose(cam, expected, atol=1e-5)


def test_negative_logit_turns_ablationcam_around_unless_magnitude() -> None:
    network = hand_network()
    with torch.no_grad():
        network[4].bias[0] = -10.0  # y_0 = -9.75; without R -10.25, without G -9.5
    classifier = Classifier(network, {"cam": HAND_LAYER})
    pairs = Pairs(torch.tensor([0]), torch.tensor([0]), ("a",))
    paper = AblationCAM()(classifier, hand_image(), pairs)[0]
    magnitude = AblationCAM("magnitude")(classifier, hand_image(), pairs)[0]
    assert torch.allclose(paper[3], torch.tensor(0.25 / 9.75))
    assert paper[0, 0] == 0
    assert magnitude[0, 0].item() == pytest.approx(4 * 0.5 / 9.75)
    assert magnitude[3, 0] == 0


@pytest.mark.parametrize("bias", [0.75, 0.75 + 1e-7, 0.75 - 1e-7])
def test_a_logit_of_zero_leaves_ablationcam_finite(bias: float) -> None:
    network = hand_network()
    with torch.no_grad():
        network[4].weight[0] = torch.tensor([2.0, -5])  # 0.5 - 1.25 + bias
        network[4].bias[0] = bias
    classifier = Classifier(network, {"cam": HAND_LAYER})
    (cam,) = AblationCAM("magnitude")(classifier, hand_image(), Pairs(torch.tensor([0]), torch.tensor([0]), ("a",)))
    assert cam.isfinite().all()
    assert cam[0, 0] > 0
    assert cam[3, 0] == 0


def test_hirescam_sums_to_the_logit_without_its_bias() -> None:
    images, pairs = make_batch(height=8, width=8)
    network = tiny_network()
    network[2] = nn.Identity()  # keeps the resolution: nothing to enlarge
    classifier = make_classifier(network)
    maps = HiResCAM()(classifier, images, pairs)
    logits = classifier.logits(images)[pairs.image, pairs.target]
    assert torch.allclose(maps.sum((1, 2)), logits - network[7].bias[pairs.target], atol=1e-5)


# ------------------------------------------------------------------------- naive references from the formulas


def bent_network(seed: int = 0) -> nn.Sequential:
    """As the tiny network, but with a convolution, max-pooling and two linear layers behind the CAM layer "4"."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *[nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()],
        *[nn.Conv2d(6, 5, 3, padding=1), nn.Tanh(), nn.AdaptiveMaxPool2d(2), nn.Flatten()],
        *[nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 4)],
    )


NETWORKS = {"pooled": tiny_network, "bent": bent_network}


class Naive:
    """One image (3,H,W), one class, layer "4" of a sequence."""

    def __init__(self, network: nn.Sequential, image: Tensor, target: int, image_id: str):
        self.network, self.image, self.target, self.image_id = network, image, target, image_id
        self.A = self.activation(image)

    def activation(self, image: Tensor) -> Tensor:
        return self.network[:5](image[None])[0].detach()

    def gradient(self, image: Tensor) -> Tensor:
        activation = self.activation(image).requires_grad_()
        self.network[5:](activation[None])[0, self.target].backward()
        assert activation.grad is not None
        return activation.grad

    def logit(self, image: Tensor) -> Tensor:
        return self.network(image[None])[0, self.target].detach()

    def probability(self, image: Tensor) -> Tensor:
        return self.network(image[None])[0].softmax(0)[self.target].detach()

    def enlarged(self, low: Tensor) -> Tensor:
        return F.interpolate(low[None, None], tuple(self.image.shape[1:]), mode="bilinear", align_corners=False)[0, 0]

    def weighted(self, weights: list[Any], relu: bool = True) -> Tensor:
        low = torch.zeros_like(self.A[0])
        for k, weight in enumerate(weights):
            low += weight * self.A[k]
        return self.enlarged(low.clamp(min=0) if relu else low)


def naive_cam(naive: Naive) -> Tensor:
    return naive.weighted(list(naive.network[7].weight[naive.target]), relu=False)


def naive_xgradcam(naive: Naive) -> Tensor:
    gradient, weights = naive.gradient(naive.image), []
    for k in range(len(naive.A)):
        total = float(naive.A[k].sum())
        weights.append(float((gradient[k] * naive.A[k]).sum()) / (total + 1e-7))
    return naive.weighted(weights)


def naive_layercam(naive: Naive) -> Tensor:
    gradient, low = naive.gradient(naive.image), torch.zeros_like(naive.A[0])
    for y in range(low.shape[0]):
        for x in range(low.shape[1]):
            low[y, x] = sum(max(0.0, float(gradient[k, y, x])) * float(naive.A[k, y, x]) for k in range(len(naive.A)))
    return naive.enlarged(low.clamp(min=0))


def naive_hirescam(naive: Naive) -> Tensor:
    gradient, low = naive.gradient(naive.image), torch.zeros_like(naive.A[0])
    for y in range(low.shape[0]):
        for x in range(low.shape[1]):
            low[y, x] = sum(float(gradient[k, y, x]) * float(naive.A[k, y, x]) for k in range(len(naive.A)))
    return naive.enlarged(low)


def naive_counterfactual(naive: Naive) -> Tensor:
    return naive.weighted([-g.mean() for g in naive.gradient(naive.image)])


def naive_ablationcam(naive: Naive) -> Tensor:
    score, weights = naive.logit(naive.image), []
    for k in range(len(naive.A)):
        without = naive.A.clone()
        without[k] = 0
        weights.append((score - naive.network[5:](without[None])[0, naive.target].detach()) / score)
    return naive.weighted(weights)


def naive_scorecam(naive: Naive, normalise: str = "none", baseline: bool = False) -> Tensor:
    scores: dict[int, float] = {}
    for k in range(len(naive.A)):
        mask = naive.enlarged(naive.A[k])
        if naive.A[k].max() > naive.A[k].min():
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            scores[k] = float(naive.probability(naive.image * mask))
            if baseline:
                scores[k] -= float(naive.probability(torch.zeros_like(naive.image)))
    if normalise == "softmax":
        total = sum(math.exp(s) for s in scores.values())
        scores = {k: math.exp(s) / total for k, s in scores.items()}
    return naive.weighted([scores.get(k, 0.0) for k in range(len(naive.A))])


def naive_smooth(naive: Naive, variant: str = "plus_plus") -> Tensor:
    generator, n = torch_generator(7, "smooth_gradcam_pp", naive.image_id), 5
    deviation = 0.2 * (naive.image.max() - naive.image.min())
    noisy = [naive.image + deviation * torch.randn(naive.image.shape, generator=generator) for _ in range(n)]
    gradients = [naive.gradient(image).double() for image in noisy]
    weights = []
    for k in range(len(naive.A)):
        total, weight = float(naive.A[k].sum()), 0.0
        for y in range(naive.A.shape[1]):
            for x in range(naive.A.shape[2]):
                d1, d2, d3 = (sum(float(g[k, y, x]) ** p for g in gradients) / n for p in (1, 2, 3))
                denominator = 2 * d2 + total * d3
                numerator = d1 if variant == "printed" else d2
                weight += (numerator / denominator if denominator else 0.0) * max(0.0, d1)
        weights.append(weight)
    return naive.weighted(weights)


def naive_expected(
    naive: Naive, reference: str = "noise", variant: str = "difference", stratified: bool = False
) -> Tensor:
    generator, n, sigma = torch_generator(7, "expected_gradcam", naive.image_id), 5, 0.2
    image, weights = naive.image, torch.zeros(len(naive.A))
    extent = image.max() - image.min()
    for sample in range(n):
        alpha = torch.rand(1, 1, 1, generator=generator).item()
        if stratified:
            alpha = (sample + alpha) / n
        start = torch.zeros_like(image)
        if reference == "noise":
            start = sigma * extent * torch.randn(image.shape, generator=generator)
        elif reference == "uniform":
            start = image.min() + extent * torch.rand(image.shape, generator=generator)
        elif reference == "blur":
            start = blurred(image, 0.1 * min(image.shape[1:]))
        noise = sigma * extent * torch.randn(image.shape, generator=generator)
        gradient = naive.gradient(start + alpha * (image - start) + noise)
        for k in range(len(weights)):
            if variant == "plain":
                weights[k] += gradient[k].mean() / n
            else:
                weights[k] += (gradient[k] * (naive.A[k] - naive.activation(start)[k])).sum() / n
    return naive.weighted(list(weights))


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur cut at 3 sigma, border pixels repeated, as one two-dimensional convolution."""
    radius = math.ceil(3 * sigma)
    axis = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2))
    padded = F.pad(image[:, None], [radius] * 4, mode="replicate")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0]


def smooth(variant: str) -> SmoothGradCAMPlusPlus:
    return SmoothGradCAMPlusPlus(samples=5, sigma=0.2, seed=7, variant=variant)


def expected(**parameters: Any) -> ExpectedGradCAM:
    return ExpectedGradCAM(samples=5, sigma=0.2, seed=7, **parameters)


FORMULAS: dict[str, tuple[Method, Callable[[Naive], Tensor]]] = {
    "xgradcam": (XGradCAM(), naive_xgradcam),
    "layercam": (LayerCAM(), naive_layercam),
    "hirescam": (HiResCAM(), naive_hirescam),
    "counterfactual_gradcam": (CounterfactualGradCAM(), naive_counterfactual),
    "ablationcam": (AblationCAM(), naive_ablationcam),
    "scorecam": (ScoreCAM(), naive_scorecam),
    "scorecam_baseline": (ScoreCAM(baseline=True), lambda naive: naive_scorecam(naive, baseline=True)),
    "scorecam_softmax": (ScoreCAM(normalise="softmax"), lambda naive: naive_scorecam(naive, "softmax")),
    "smooth_gradcam_pp": (smooth("plus_plus"), naive_smooth),
    "smooth_gradcam_pp_printed": (smooth("printed"), lambda naive: naive_smooth(naive, "printed")),
    "expected_noise": (expected(), naive_expected),
    "expected_black": (expected(reference="black"), lambda naive: naive_expected(naive, "black")),
    "expected_blur": (expected(reference="blur"), lambda naive: naive_expected(naive, "blur")),
    "expected_uniform": (expected(reference="uniform"), lambda naive: naive_expected(naive, "uniform")),
    "expected_plain": (expected(variant="plain"), lambda naive: naive_expected(naive, variant="plain")),
    "expected_stratified": (expected(stratified=True), lambda naive: naive_expected(naive, stratified=True)),
}


def naive_maps(network: nn.Sequential, images: Tensor, pairs: Pairs, formula: Callable[[Naive], Tensor]) -> Tensor:
    return torch.stack([formula(Naive(network, images[i], c, image_id)).detach() for i, image_id, c in pairs])


def assert_same(maps: Tensor, references: Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to the tolerance times the largest value of each reference, not all of which may be empty."""
    assert references.any()
    extent = references.abs().amax((1, 2), keepdim=True).clamp(min=1e-3)
    assert ((maps - references).abs() / extent).max() <= tolerance


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", FORMULAS)
def test_equals_naive_reference(name: str, network: str, seed: int) -> None:
    method, formula = FORMULAS[name]
    images, pairs = make_batch(height=12, width=8, seed=seed)
    model = NETWORKS[network](seed=seed)
    references = naive_maps(model, images, pairs, formula)
    assert_same(method(make_classifier(model, forward_batch=4), images, pairs), references)


def test_cam_equals_naive_reference() -> None:
    images, pairs = make_batch(height=12, width=8)
    network = tiny_network()
    assert_same(CAM()(make_classifier(network), images, pairs), naive_maps(network, images, pairs, naive_cam))


@pytest.mark.parametrize("name", FORMULAS)
def test_batch_equals_one_by_one_behind_a_bent_tail(name: str) -> None:
    method, _ = FORMULAS[name]
    images, pairs = make_batch()
    classifier = make_classifier(bent_network(), forward_batch=4)
    maps = method(classifier, images, pairs)
    for p, (image, image_id, target) in enumerate(pairs):
        alone = Pairs(torch.tensor([0]), torch.tensor([target]), (image_id,))
        one = method(make_classifier(bent_network(), forward_batch=1), images[image : image + 1], alone)
        assert torch.allclose(maps[p], one[0], atol=1e-5 * float(one.abs().max()) + 1e-7)


# --------------------------------------------------------------------------------- relations between methods


def test_without_noise_smooth_gradcam_pp_is_gradcam_pp() -> None:
    images, pairs = make_batch()
    classifier = make_classifier(bent_network())
    maps = SmoothGradCAMPlusPlus(samples=2, sigma=0)(classifier, images, pairs)
    assert_same(maps, GradCAMPlusPlus()(classifier, images, pairs), 1e-5)


def test_small_gradients_do_not_underflow_in_smooth_gradcam_pp() -> None:
    images, pairs = make_batch()
    network = bent_network()
    with torch.no_grad():
        network[11].weight.mul_(1e-16)  # the gradients' cubes are far below float32's range
    references = naive_maps(network, images, pairs, naive_smooth)
    maps = smooth("plus_plus")(make_classifier(network), images, pairs)
    assert_same(1e16 * maps, 1e16 * references)


def test_pooled_head_makes_the_linear_methods_one() -> None:
    """Behind global average pooling g^k is w^c_k / (h w) everywhere."""
    images, pairs = make_batch()
    classifier = make_classifier()
    gradcam = GradCAM()(classifier, images, pairs)
    assert_same(HiResCAM(relu=True)(classifier, images, pairs), gradcam)
    assert_same(XGradCAM()(classifier, images, pairs), gradcam)
    h, w = 8, 8
    signed = CAM()(classifier, images, pairs) / (h * w)
    low = classifier.activations(images, ["4"])[0][pairs.image]
    weight = classifier.network.get_submodule("7").weight[pairs.target]
    rectified = torch.einsum("pk,pkhw->phw", weight, low).relu() / (h * w)
    assert_same(F.interpolate(rectified[:, None], (16, 16), mode="bilinear")[:, 0], gradcam)
    assert (signed < -1e-4).any()  # no ReLU


def test_counterfactual_and_gradcam_share_the_signed_map_between_them() -> None:
    images, pairs = make_batch()
    network = bent_network()
    network[2] = nn.Identity()  # keeps the resolution
    classifier = make_classifier(network)
    both = [method(classifier, images, pairs) for method in (GradCAM(), CounterfactualGradCAM())]
    activation, gradient = classifier.activations_and_gradients(images, pairs, "4")
    signed = (gradient.mean((2, 3), keepdim=True) * activation).sum(1)
    assert torch.allclose(both[0] - both[1], signed, atol=1e-6)
    assert (both[0] * both[1] == 0).all()


def test_scorecam_baseline_cancels_in_the_softmax() -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    plain = ScoreCAM(normalise="softmax")(classifier, images, pairs)
    assert_same(ScoreCAM(normalise="softmax", baseline=True)(classifier, images, pairs), plain, 1e-5)


def test_expected_gradcam_of_the_reference_itself_is_gradcam() -> None:
    """Where I = I' every point of the path is I, and the plain weights are Grad-CAM's."""
    images, pairs = make_batch()
    images = torch.zeros_like(images)
    classifier = make_classifier(bent_network(seed=5))
    plain = ExpectedGradCAM(samples=3, reference="black", variant="plain")
    gradcam = GradCAM()(classifier, images, pairs)
    assert gradcam.any()
    assert torch.allclose(plain(classifier, images, pairs), gradcam, atol=1e-6)
    assert not ExpectedGradCAM(samples=3, reference="black")(classifier, images, pairs).any()  # no difference


@pytest.mark.parametrize(("stratified", "tolerance"), [(False, 0.08), (True, 0.01)])
def test_plain_weights_converge_to_the_mean_gradient_on_igcams_path(stratified: bool, tolerance: float) -> None:
    """IG-CAM's weights are sums over positions of g(I_a); here their mean over a, on a fine grid of midpoints."""
    images, pairs = make_batch(images=2, height=8, width=8)
    network = bent_network()
    naive = [Naive(network, images[i], c, image_id) for i, image_id, c in pairs]
    grid = [(t + 0.5) / 400 for t in range(400)]
    path = torch.stack([torch.stack([n.gradient(a * n.image) for a in grid]).mean(0).sum((1, 2)) for n in naive])
    ends = torch.stack([n.gradient(n.image).sum((1, 2)) for n in naive])
    assert (ends - path).norm() > 0.2 * path.norm()  # the path matters
    method = ExpectedGradCAM(samples=400, sigma=0, reference="black", variant="plain", stratified=stratified)
    classifier = make_classifier(network)
    activation = classifier.activations(images, ["4"])[0][pairs.image]
    weights = method.weights(classifier, images, pairs, "4", activation)
    assert (weights * activation[0, 0].numel() - path).norm() < tolerance * path.norm()


@pytest.mark.parametrize("method", [SmoothGradCAMPlusPlus(samples=3), ExpectedGradCAM(samples=3)])
def test_seed_and_image_id_make_the_noise(method: Any) -> None:
    images, pairs = make_batch()
    classifier = make_classifier(bent_network())
    maps = method(classifier, images, pairs)
    other_seed = type(method)(samples=3, seed=1)(classifier, images, pairs)
    renamed = method(classifier, images, Pairs(pairs.image, pairs.target, ("x", *pairs.image_ids[1:])))
    mine = pairs.image == 0
    assert not torch.equal(other_seed, maps)
    assert not torch.equal(renamed[mine], maps[mine])
    assert torch.allclose(renamed[~mine], maps[~mine], atol=1e-6)


def test_expected_gradcam_asks_for_fixed_references_once() -> None:
    images, pairs = make_batch()
    classifier, seen = make_classifier(forward_batch=3), []
    classifier.on_forward = seen.append
    for reference, extra in {"black": 3, "blur": 3, "noise": 12, "uniform": 12}.items():
        seen.clear()
        ExpectedGradCAM(samples=4, reference=reference)(classifier, images, pairs)
        with_difference = sum(seen)
        seen.clear()
        ExpectedGradCAM(samples=4, reference=reference, variant="plain")(classifier, images, pairs)
        assert with_difference - sum(seen) == extra


def test_references_respect_fill() -> None:
    images, _ = make_batch()
    fill = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    for name in ("black", "noise"):
        centre = REFERENCES[name].centre(images, fill)
        assert centre.shape == images.shape
        assert (centre == fill).all()


# --------------------------------------------------------------------------------------------- CAM's condition


def test_cam_refuses_a_tail_that_is_not_linear() -> None:
    images, pairs = make_batch()
    with pytest.raises(CamexpError, match=r"cam needs a network .* layer '4' .* global average pooling"):
        CAM()(make_classifier(bent_network()), images, pairs)


@pytest.mark.parametrize(
    "pooling", [nn.AdaptiveMaxPool2d(1), nn.LPPool2d(1, 8), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Sigmoid())]
)
def test_cam_refuses_other_pooling_of_the_same_shape(pooling: nn.Module) -> None:
    images, pairs = make_batch()
    network = tiny_network()
    network[5] = pooling
    with pytest.raises(CamexpError, match="global average pooling"):
        CAM()(make_classifier(network), images, pairs)


def test_cam_refuses_a_layer_before_the_last() -> None:
    images, pairs = make_batch()
    with pytest.raises(CamexpError, match="layer '1'"):
        CAM(layer="1")(make_classifier(), images, pairs)


class WithDecoy(nn.Module):
    """The tiny network with dropout, after a linear layer of the head's shape that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.decoy, network = nn.Linear(6, 4), tiny_network()
        self.body = nn.Sequential(*network[:6], nn.Dropout(0.5), *network[6:])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_cam_finds_the_head_behind_a_decoy_and_dropout() -> None:
    images, pairs = make_batch()
    classifier = make_classifier(WithDecoy(), layers={"cam": "body.4"})
    assert torch.equal(CAM()(classifier, images, pairs), CAM()(make_classifier(), images, pairs))


# ------------------------------------------------------------------------------------- Ablation-CAM's short cut


class CountedConv(nn.Conv2d):
    """Records the batch size of every call that does its work."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return super().forward(x)


def test_ablationcam_runs_the_head_once_and_the_tail_in_chunks() -> None:
    images, pairs = make_batch()
    network = bent_network()
    network[0], network[5] = CountedConv(3, 4, 3, padding=1), CountedConv(6, 5, 3, padding=1)
    classifier = make_classifier(network, forward_batch=2)  # activations are half as large as those before
    AblationCAM()(classifier, images, pairs)
    active = [int(a.flatten(1).any(1).sum()) for a in classifier.activations(images, ["4"])[0]]
    assert max(active) > 4
    assert network[0].seen == [2, 1, 2, 1]  # the last two are the line above
    tail = [min(4, n - start) for n in active for start in range(0, n, 4)]
    assert network[5].seen == [2, 1, 1, *tail, 2, 1]  # the third finds out what the tail reads


class Winding(nn.Module):
    """What makes it hard to leave modules out: one shared before and behind the layer, changes in place, a by-pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem, self.shared = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.last, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        x = self.shared(x)
        by_pass = x.add_(0.1)
        x = self.block(x)
        x = self.shared(x)
        x += by_pass
        return self.head(torch.tanh(self.last(x)).mean((2, 3)))


class CountsFirst(nn.Module):
    """Reads how many images there are before its layer runs, and uses it afterwards."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        return self.head(torch.tanh(self.stem(x)).reshape(n, 4, -1).mean(2))


class Dense(nn.Module):
    """Joins what its layer puts out with what the layer was given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem, self.layer, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.tanh(torch.cat([x, self.layer(x)], 1)).mean((2, 3)))


def ablated_by_hook(network: nn.Module, layer: str, images: Tensor, pairs: Pairs) -> Tensor:
    """Ablation-CAM's maps (P,H,W) by full forwards, one channel at a time."""

    def logits(image: Tensor, channel: int | None) -> tuple[Tensor, Tensor]:
        found = []

        def zero(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            if channel is not None:
                output[:, channel] = 0
            found.append(output.clone())
            return output

        handle = network.get_submodule(layer).register_forward_hook(zero)
        with torch.no_grad():
            result = network(image[None].clone())[0]
        handle.remove()
        return result, found[0][0]

    maps = []
    for i, _, c in pairs:
        score, activation = logits(images[i], None)
        drops = [(score[c] - logits(images[i], k)[0][c]) / score[c] for k in range(len(activation))]
        maps.append(sum(d * a for d, a in zip(drops, activation, strict=True)).relu())  # type: ignore[union-attr]
    return F.interpolate(torch.stack(maps)[:, None], tuple(images.shape[2:]), mode="bilinear")[:, 0]


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (Winding, "block"),
        (Winding, "block.0"),
        (Winding, "stem"),
        (CountsFirst, "stem"),
        (Dense, "layer"),
        (lambda: build("resnet50", 4, 0.0625), "layer3"),
        (lambda: build("resnet50", 4, 0.0625), "layer4.1.bn2"),
        (lambda: build("resnet50", 4, 0.0625), "layer4.1.bn3"),  # the block adds to it in place
        (lambda: build("resnet50", 4, 0.0625), "layer4"),
        (lambda: build("vgg16", 4, 0.0625), "features.29"),
    ],
)
def test_ablationcam_leaves_out_nothing_that_matters(make: Callable[[], nn.Module], layer: str) -> None:
    torch.manual_seed(0)
    network = make()
    images, pairs = make_batch(images=2, height=32, width=32)
    classifier = Classifier(network, {"cam": layer}, forward_batch=3)
    maps = AblationCAM()(classifier, images, pairs)
    assert_same(maps, ablated_by_hook(network, layer, images, pairs), 1e-3)


class Centring(nn.Module):
    """Changes the image in place, and reads it behind the layer again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).mul_(2)
        return self.head((self.stem(x) * x.sigmoid()).mean((2, 3)))


def test_ablationcam_allows_a_network_that_changes_the_image() -> None:
    images, pairs = make_batch()
    fed = images.to(memory_format=torch.channels_last)
    network = Centring()
    maps = AblationCAM()(Classifier(network, {"cam": "stem"}, forward_batch=2), fed, pairs)
    assert torch.equal(fed, images)
    expected = ablated_by_hook(network, "stem", images, pairs)
    assert_same(maps, expected, 1e-3)


def test_ablationcam_works_in_inference_mode() -> None:
    images, pairs = make_batch()
    expected = AblationCAM()(make_classifier(Winding(), layers={"cam": "block"}), images, pairs)
    with torch.inference_mode():
        maps = AblationCAM()(make_classifier(Winding(), layers={"cam": "block"}), images.clone(), pairs)
    assert_same(maps, expected, 1e-5)


def test_images_are_passed_again_where_the_tail_reads_what_came_before() -> None:
    images, pairs = make_batch()
    network = Winding()
    network.stem = CountedConv(3, 4, 3, padding=1)
    AblationCAM()(make_classifier(network, layers={"cam": "block"}, forward_batch=2), images, pairs)
    assert network.stem.seen == [2, 1, 2, 1]


def test_copies_lack_one_channel_each_whatever_was_left_out_before() -> None:
    activation = torch.randn(5, 2, 3)
    copies = _Copies(activation)
    for channels in ([0, 3], [4], [1, 2, 3]):
        with copies.without(torch.tensor(channels)) as rows:
            assert len(rows) == len(channels)
            for row, channel in zip(rows, channels, strict=True):
                expected = activation.clone()
                expected[channel] = 0
                assert torch.equal(row, expected)


def test_copies_are_made_anew_after_an_exception() -> None:
    activation = torch.randn(2, 2, 3)
    copies = _Copies(activation)

    def fail() -> None:
        with copies.without(torch.tensor([1])) as rows:
            rows.zero_()
            raise ValueError("planned")

    with pytest.raises(ValueError, match="planned"):
        fail()
    with copies.without(torch.tensor([0])) as rows:
        assert torch.equal(rows[0, 1], activation[1])


def test_network_works_as_before_after_the_tail() -> None:
    images, _ = make_batch(images=1)
    classifier = make_classifier(Winding(), layers={"cam": "block"})
    before, interventions = classifier.logits(images), _interventions(classifier.network)

    def fail() -> None:
        with torch.no_grad(), tail_behind(classifier, images, "block") as tail:
            assert torch.allclose(tail.logits, before)
            assert torch.allclose(tail.run(tail.activations, 0), before, atol=1e-6)
            assert not torch.allclose(tail.run(2 * tail.activations, 0), before, atol=1e-3)
            tail.run(tail.activations[:, :1], 0)  # too few channels

    with pytest.raises(RuntimeError, match="channels"):
        fail()
    assert _interventions(classifier.network) == interventions
    assert torch.equal(classifier.logits(images), before)


# ------------------------------------------------------------------------------------------------- properties

ALL: list[Method] = [CAM(), *(method for method, _ in FORMULAS.values()), AblationCAM("magnitude")]


@pytest.mark.parametrize("method", ALL, ids=str)
@pytest.mark.parametrize("zeroed", [(7,), (3,), (0, 3, 7)])  # no gradient, constant activations, neither
def test_dead_layers_give_finite_maps(method: Method, zeroed: tuple[int, ...]) -> None:
    network = tiny_network()
    for index in zeroed:
        nn.init.zeros_(network[index].weight)
    images, pairs = make_batch()
    assert method(make_classifier(network), images, pairs).isfinite().all()


@pytest.mark.parametrize("method", [XGradCAM(), ScoreCAM(normalise="softmax"), AblationCAM()], ids=str)
def test_layer_without_activation_gives_an_empty_map(method: Method) -> None:
    network = tiny_network()
    nn.init.zeros_(network[3].weight)
    nn.init.constant_(network[3].bias, -1.0)
    images, pairs = make_batch()
    assert not method(make_classifier(network), images, pairs).any()


def test_xgradcam_survives_activations_that_cancel() -> None:
    network = tiny_network()
    network[4] = nn.Identity()
    nn.init.zeros_(network[3].weight)
    nn.init.constant_(network[3].bias, -1e-7 / 64)  # the sum over 8 x 8 positions is -eps
    images, pairs = make_batch()
    assert XGradCAM()(make_classifier(network), images, pairs).isfinite().all()


@pytest.mark.parametrize("method", ALL, ids=str)
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_hooks_are_gone_after_an_exception(method: Method, failing: int) -> None:
    images, pairs = make_batch()
    network = tiny_network()
    calls = 0

    def fail(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise ValueError("planned")

    network[7].register_forward_pre_hook(fail)
    classifier = make_classifier(network, forward_batch=1)
    before = _interventions(network)
    with pytest.raises(ValueError, match="planned"):
        method(classifier, images, pairs)
    assert _interventions(network) == before


def _interventions(network: nn.Module) -> list[tuple[Any, ...]]:
    """What is called in the place of each module or after it."""
    return [(vars(module).get("forward"), *module._forward_hooks) for module in network.modules()]


@pytest.mark.parametrize("method", ALL[1:], ids=str)  # behind other layers CAM has no head
def test_layer_parameter_chooses_the_layer(method: Any) -> None:
    images, pairs = make_batch()
    elsewhere = type(method)(**{**vars(method), "layer": "1"})
    expected_maps = method(make_classifier(layers={"cam": "1"}), images, pairs)
    assert torch.equal(elsewhere(make_classifier(), images, pairs), expected_maps)
    assert not torch.equal(method(make_classifier(), images, pairs), expected_maps)


BAD = [
    (XGradCAM, {"eps": 0.0}, "method.eps of xgradcam must be positive, not 0.0"),
    (ScoreCAM, {"normalise": "max"}, "method.normalise of scorecam must be none or softmax, not 'max'"),
    (AblationCAM, {"variant": "x"}, "method.variant of ablationcam must be one of paper, magnitude, not 'x'"),
    (SmoothGradCAMPlusPlus, {"variant": "x"}, "method.variant of smooth_gradcam_pp must be one of .*, not 'x'"),
    (SmoothGradCAMPlusPlus, {"samples": 0}, "method.samples of smooth_gradcam_pp must be at least 1, not 0"),
    (SmoothGradCAMPlusPlus, {"sigma": -0.1}, "method.sigma of smooth_gradcam_pp must be at least 0, not -0.1"),
    (ExpectedGradCAM, {"samples": 0}, "method.samples of expected_gradcam must be at least 1, not 0"),
    (ExpectedGradCAM, {"sigma": -1}, "method.sigma of expected_gradcam must be at least 0, not -1"),
    (ExpectedGradCAM, {"reference": "white"}, "method.reference of expected_gradcam must be one of black, .*'white'"),
    (ExpectedGradCAM, {"variant": "x"}, "method.variant of expected_gradcam must be one of difference, plain, not"),
]


@pytest.mark.parametrize(("method", "parameters", "message"), BAD)
def test_bad_parameters_are_named(method: type, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(CamexpError, match=message):
        method(**parameters)


CONFIGS = {
    "cam": CAM,
    "xgradcam": XGradCAM,
    "layercam": LayerCAM,
    "hirescam": HiResCAM,
    "smooth_gradcam_pp": SmoothGradCAMPlusPlus,
    "ablationcam": AblationCAM,
    "scorecam": ScoreCAM,
    "counterfactual_gradcam": CounterfactualGradCAM,
    "expected_gradcam": ExpectedGradCAM,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_holds_the_defaults(name: str) -> None:
    assert config.make_method(config.compose_config([f"method={name}"])) == CONFIGS[name]()


# ------------------------------------------------------------------------------------------- public libraries


def cosine(maps: Tensor, references: Tensor) -> Tensor:
    """Smallest cosine similarity of the maps (P,H,W) and their references, each scaled to [0,1]."""
    a, b = (scaled(m.double()).flatten(1) for m in (maps, references))
    return F.cosine_similarity(a, b).min()


def scaled(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    assert (high > low).all()
    return (maps - low) / (high - low)


class Model:
    """A network with its classifier, CAM layer, a few images, and the class to explain in each."""

    def __init__(self, network: nn.Module, layer: str, images: Tensor):
        self.network, self.layer, self.images = network, layer, images
        self.classifier = Classifier(network, {"cam": layer})
        ranking = self.classifier.logits(images).argsort(1, descending=True)
        self.best, self.worst = ranking[:, 0], ranking[:, -1]

    def explain(self, method: Method, target: Tensor | None = None) -> Tensor:
        target = self.best if target is None else target
        pairs = Pairs(torch.arange(len(target)), target, tuple(f"image{i}" for i in range(len(target))))
        return method(self.classifier, self.images, pairs)

    @contextmanager
    def graph_from_layer(self) -> Iterator[nn.Module]:
        """The layer, with a graph that begins at it: libraries want one, and the head's backward takes time."""
        layer = self.network.get_submodule(self.layer)
        handle = layer.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())
        try:
            yield layer
        finally:
            handle.remove()

    def grad_cam(self, name: str, target: Callable[[int], Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        """Maps (P,H,W) of pytorch-grad-cam's class of that name; `target` makes its score of a class."""
        library = pytest.importorskip("pytorch_grad_cam")
        targets = [(target or (lambda c: lambda y: y[c]))(c) for c in self.best.tolist()]
        with self.graph_from_layer() as layer, getattr(library, name)(self.network, [layer]) as explainer:
            return torch.from_numpy(explainer(self.images.clone(), targets))

    def torchcam(self, name: str, prepare: Callable[[Any, int], None] | None = None, **parameters: Any) -> Tensor:
        """Maps (P,H,W) of torch-cam's class of that name, image by image, enlarged as camexp does it."""
        library, maps = pytest.importorskip("torchcam.methods"), []
        with self.graph_from_layer(), getattr(library, name)(self.network, self.layer, **parameters) as explainer:
            for i, (image, target) in enumerate(zip(self.images, self.best.tolist(), strict=True)):
                if prepare:
                    prepare(explainer, i)
                maps += explainer(target, self.network(image[None]), normalized=False)
        return F.interpolate(torch.stack(maps).detach(), tuple(self.images.shape[2:]), mode="bilinear")[:, 0]


@pytest.fixture(scope="module", params=["pooled", "bent", "resnet50", "vgg16"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    """Tiny networks, and torchvision's at full size with random weights."""
    if request.param in NETWORKS:
        yield Model(NETWORKS[request.param](), "4", make_batch()[0])
    else:
        torch.manual_seed(0)
        layer = {"resnet50": "layer4", "vgg16": "features.29"}[request.param]
        yield Model(build(request.param, 20), layer, make_batch(1, 224, 224)[0])


@pytest.fixture(params=["pooled", "bent", "resnet50", "vgg16"])
def small_model(request: pytest.FixtureRequest) -> Model:
    """Tiny networks, and torchvision's topologies at a sixteenth of the width."""
    if request.param in NETWORKS:
        return Model(NETWORKS[request.param](), "4", make_batch()[0])
    torch.manual_seed(0)
    layer = {"resnet50": "layer4", "vgg16": "features.29"}[request.param]
    return Model(build(request.param, 10, 0.0625), layer, make_batch(2, 64, 64)[0])


GRAD_CAM = {"XGradCAM": XGradCAM(), "LayerCAM": LayerCAM(), "HiResCAM": HiResCAM(relu=True), "GradCAM": GradCAM()}


@pytest.mark.parametrize("name", GRAD_CAM)
def test_agrees_with_pytorch_grad_cam(model: Model, name: str) -> None:
    assert cosine(model.explain(GRAD_CAM[name]), model.grad_cam(name)) >= 0.999


def test_counterfactual_agrees_with_pytorch_grad_cam_of_the_negated_logit(model: Model) -> None:
    model.best, best = model.worst, model.best  # what speaks against the best class may be nothing
    negated = model.grad_cam("GradCAM", lambda c: lambda y: -y[c])
    maps = model.explain(CounterfactualGradCAM())
    model.best = best
    assert cosine(maps, negated) >= 0.999


@pytest.mark.parametrize(("name", "method"), [("LayerCAM", LayerCAM()), ("XGradCAM", XGradCAM())])
def test_agrees_with_torchcam(model: Model, name: str, method: Method) -> None:
    assert cosine(model.explain(method), model.torchcam(name)) >= 0.999


def test_cam_agrees_with_torchcam_or_refuses(model: Model) -> None:
    """Its raw CAM has no ReLU either. It does not ask whether the head is one linear layer behind a pooling."""
    linear = [name for name, module in model.network.named_modules() if isinstance(module, nn.Linear)]
    if len(linear) == 1:
        assert cosine(model.explain(CAM()), model.torchcam("CAM")) >= 0.999
    else:
        with pytest.raises(CamexpError, match="global average pooling"):
            model.explain(CAM())


class Replayed:
    """Stands in for torch-cam's noise: what camexp draws for an image."""

    def __init__(self, image: Tensor, index: int, sigma: float, seed: int):
        self.deviation = sigma * (image.max() - image.min())
        self.generator = torch_generator(seed, "smooth_gradcam_pp", f"image{index}")

    def sample(self, size: torch.Size) -> Tensor:
        return self.deviation * torch.randn(size[1:], generator=self.generator)[None]


def torchcam_smooth(model: Model, samples: int, sigma: float) -> Tensor:
    def prepare(explainer: Any, index: int) -> None:
        explainer._distrib = Replayed(model.images[index], index, sigma, 0)

    return model.torchcam("SmoothGradCAMpp", prepare, num_samples=samples)


def test_smooth_gradcam_pp_agrees_with_torchcam_under_little_noise(model: Model) -> None:
    ours = model.explain(SmoothGradCAMPlusPlus(samples=2, sigma=1e-3))
    assert cosine(ours, torchcam_smooth(model, 2, 1e-3)) >= 0.999


def test_torchcam_takes_gradient_and_activations_of_the_last_noisy_copy() -> None:
    """The formula, as here, has ReLU of the mean gradient, and weights the activations of the clean image."""
    model = Model(bent_network(), "4", make_batch()[0])

    def of_the_last_copy(naive: Naive) -> Tensor:
        generator = torch_generator(0, "smooth_gradcam_pp", naive.image_id)
        deviation = 0.15 * (naive.image.max() - naive.image.min())
        noisy = [naive.image + deviation * torch.randn(naive.image.shape, generator=generator) for _ in range(4)]
        g = torch.stack([naive.gradient(image) for image in noisy]).double()
        d2, d3 = (g**2).mean(0), (g**3).mean(0)
        alpha = d2 / (2 * d2 + naive.A.sum((1, 2), keepdim=True) * d3 + 1e-8)
        naive.A = naive.activation(noisy[-1])
        return naive.weighted(list((alpha * g[-1].relu()).sum((1, 2)).float()))

    pairs = Pairs(torch.arange(3), model.best, ("image0", "image1", "image2"))
    theirs = torchcam_smooth(model, 4, 0.15)
    assert cosine(naive_maps(bent_network(), model.images, pairs, of_the_last_copy), theirs) >= 0.9999
    assert cosine(model.explain(SmoothGradCAMPlusPlus(samples=4)), theirs) < 0.95


def logits_only(model: Model) -> Model:
    """Libraries weight with the logit."""
    model.classifier.confidence_name = "logit"
    return model


def test_ablationcam_agrees_with_pytorch_grad_cam(small_model: Model) -> None:
    assert cosine(small_model.explain(AblationCAM()), small_model.grad_cam("AblationCAM")) >= 0.999


def test_scorecam_agrees_with_pytorch_grad_cam(small_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It enlarges masks with aligned corners; the authors' code, as camexp, does not. All else is the same."""
    theirs = small_model.grad_cam("ScoreCAM")
    ours = logits_only(small_model).explain(ScoreCAM(normalise="softmax"))
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear"))
    assert cosine(ours, small_model.grad_cam("ScoreCAM")) >= 0.999999
    assert cosine(ours, theirs) >= 0.99


def test_scorecam_agrees_with_torchcam(small_model: Model) -> None:
    """It scales channels to [0,1] before it enlarges them; the paper's order, as here, is the other one."""
    ours = logits_only(small_model).explain(ScoreCAM(normalise="softmax"))
    assert cosine(ours, small_model.torchcam("ScoreCAM")) >= 0.999


@pytest.mark.parametrize("network", NETWORKS)
def test_scorecam_agrees_with_torchcam_where_nothing_is_enlarged(network: str) -> None:
    full_size = NETWORKS[network]()
    full_size[2] = nn.Identity()
    model = logits_only(Model(full_size, "4", make_batch(height=8, width=8)[0]))
    assert cosine(model.explain(ScoreCAM(normalise="softmax")), model.torchcam("ScoreCAM")) >= 0.9999
