"""Extremal perturbation and Ada-SISE, each against a naive reading of its formula."""

import dataclasses
import itertools
import math

import pytest
import torch
from conftest import make_batch, make_classifier
from torch import Tensor, nn

from camexp.errors import CamexpError
from camexp.methods.ada_sise import AdaSISE
from camexp.methods.blur import gaussian_blur
from camexp.methods.extremal_perturbation import ExtremalPerturbation
from camexp.methods.sise import SISE
from camexp.methods.smooth_mask import ROUNDING, SmoothMask, blur_pyramid, ideal_step, perturb
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

CPU = torch.device("cpu")
SMALL = ExtremalPerturbation(areas=(0.1, 0.3), iterations=15, step=3, sigma=4.0, levels=4, max_blur=3.0)


def hooks(classifier: Classifier) -> int:
    return sum(len(module._forward_hooks) for module in classifier.network.modules())


class Failing(nn.Module):
    """A network that raises at the end of its n-th forward pass."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body, self.left = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), n

    def forward(self, images: Tensor) -> Tensor:
        logits, self.left = self.body(images), self.left - 1
        if self.left == 0:
            raise ValueError("last pass")
        return logits


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------ naive references


def naive_blur(image: Tensor, sigma: float, released: bool = False) -> Tensor:
    """Two-dimensional Gaussian convolution of image (H,W), pixel by pixel."""
    if sigma == 0:
        return image.clone()
    radius = math.ceil(4 * sigma if released else 3 * sigma)
    height, width = image.shape
    blurred = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            total = weights = 0.0
            for v in range(-radius, radius + 1):
                for u in range(-radius, radius + 1):
                    weight = math.exp(-(u * u + v * v) / (2 * sigma**2))
                    inside = 0 <= y + v < height and 0 <= x + u < width
                    if inside or not released:
                        total += weight * float(image[min(max(y + v, 0), height - 1), min(max(x + u, 0), width - 1)])
                    weights += weight
            blurred[y, x] = total / weights
    return blurred


def naive_kernel(grid: tuple[int, int], height: int, width: int, step: int, sigma: float) -> tuple[Tensor, Tensor]:
    """For every pixel its nodes (flat indices) and k(|u - v| / sigma) for each, (H W, nodes), written out."""
    radius = math.ceil(1.5 * sigma / step - 0.5)
    nodes, weights = [], []
    for y, x in itertools.product(range(height), range(width)):
        for j in range(y // step - radius, y // step + radius + 1):
            for i in range(x // step - radius, x // step + radius + 1):
                distance = math.hypot(y - (j * step + (step - 1) / 2), x - (i * step + (step - 1) / 2))
                nodes.append(min(max(j, 0), grid[0] - 1) * grid[1] + min(max(i, 0), grid[1] - 1))
                weights.append(math.exp(-2 * max(0.0, distance / sigma - 0.5) ** 2))
    return torch.tensor(nodes).view(height * width, -1), torch.tensor(weights).view(height * width, -1)


def naive_released_kernel(grid: tuple[int, int], step: int, sigma: int) -> tuple[Tensor, Tensor]:
    """As `naive_kernel`, of the larger mask; nodes beyond the border have the index after the last one's."""
    rows, columns = (range(-sigma, cells * step + sigma - step + 1) for cells in grid)
    nodes, weights = [], []
    for y, x in itertools.product(rows, columns):
        for j in range(y // step - sigma // step - 1, y // step + sigma // step + 2):
            for i in range(x // step - sigma // step - 1, x // step + sigma // step + 2):
                known = 0 <= j < grid[0] and 0 <= i < grid[1]
                nodes.append(j * grid[1] + i if known else grid[0] * grid[1])
                weights.append(math.exp(-2 * max(0.0, math.hypot(y - j * step, x - i * step) / sigma - 0.5) ** 2))
    pixels = len(rows) * len(columns)
    return torch.tensor(nodes).view(pixels, -1), torch.tensor(weights).view(pixels, -1)


def naive_mask(nodes: Tensor, kernel: tuple[Tensor, Tensor], height: int, width: int) -> Tensor:
    """The smooth max-convolution (H,W) of one grid (h,w); differentiable."""
    f = kernel[1] * torch.cat([nodes.flatten(), torch.zeros(1)])[kernel[0]]
    return ((f * (20 * f).exp()).sum(1) / (20 * f).exp().sum(1)).view(height, width)


def naive_ideal(mask: Tensor, ones: int) -> Tensor:
    """The step 0..0 1..1 against the sorted mask (H,W); values equal to the cut get the mean of their places."""
    values = mask.flatten().tolist()
    order = sorted(range(len(values)), key=values.__getitem__)
    step = [0.0] * (len(values) - ones) + [1.0] * ones
    cut = values[order[len(values) - ones]]
    tied = [rank for rank, pixel in enumerate(order) if abs(values[pixel] - cut) <= 1e-5]
    for rank, mean in [(rank, sum(step[r] for r in tied) / len(tied)) for rank in tied]:
        step[rank] = mean
    ideal = torch.zeros(len(values))
    ideal[order] = torch.tensor(step)
    return ideal.view_as(mask)


def naive_perturb(pyramid: Tensor, mask: Tensor) -> Tensor:
    """One perturbed image (3,H,W) of a pyramid (levels,3,H,W), as a sum over intervals between levels."""
    last = len(pyramid) - 1
    result = torch.zeros_like(pyramid[0])
    for level in range(last):
        inside = (mask * last >= level) & ((mask * last < level + 1) | (level == last - 1))
        share = mask * last - level
        result = result + inside * ((1 - share) * pyramid[level] + share * pyramid[level + 1])
    return result


def naive_extremal(method: ExtremalPerturbation, classifier: Classifier, image: Tensor, target: int) -> Tensor:
    """One pair's map (H,W): each area by itself, one image at a time."""
    height, width = image.shape[1:]
    sigmas = [method.max_blur * (1 - level / (method.levels - 1)) for level in range(method.levels)]
    released = method.variant == "released"
    pyramid = torch.stack([torch.stack([naive_blur(c, s, released) for c in image]) for s in sigmas]).float()
    grid = (math.ceil(height / method.step), math.ceil(width / method.step))
    rows, columns, start = height, width, 0
    if released:
        start = int(method.sigma)
        rows, columns = (cells * method.step + 2 * start - method.step + 1 for cells in grid)
        kernel = naive_released_kernel(grid, method.step, start)
    else:
        kernel = naive_kernel(grid, height, width, method.step, method.sigma)

    def of_image(mask: Tensor) -> Tensor:
        return mask[start : start + height, start : start + width]

    total = torch.zeros(height, width)
    for area in method.areas:
        nodes = torch.ones(grid)
        velocity = torch.zeros_like(nodes)
        for t in range(method.iterations):
            nodes = nodes.detach().requires_grad_()
            mask = naive_mask(nodes, kernel, rows, columns)
            fed = naive_perturb(pyramid, of_image(mask))
            if method.jitter and t % 2 == (0 if released else 1):
                fed = fed.flip(2)
            logits = classifier.network(fed[None])
            score = logits if method.reward == "logit" else logits.softmax(1)
            ones = rows * columns - int(rows * columns * (1 - area)) if released else round(area * rows * columns)
            misfit = ((mask - naive_ideal(mask.detach(), ones)) ** 2).mean()
            loss = -score[0, target] + method.penalty * method.penalty_growth**t * misfit
            loss.backward()
            gradient = nodes.grad
            assert gradient is not None
            velocity = gradient if t == 0 else method.momentum * velocity + (1 - method.momentum) * gradient
            nodes = (nodes.detach() - method.learning_rate * velocity).clamp(0, 1)
        total += of_image(mask.detach() if released else naive_mask(nodes, kernel, rows, columns))
    return naive_blur(total, method.smooth * min(height, width), released).float()


def naive_otsu_keep(alpha: Tensor) -> Tensor:
    """Which of the scores (K,) lie in the upper class of the split with the largest variance between classes."""
    levels = {k: min(255, round(float(a / alpha.max()) * 256)) for k, a in enumerate(alpha) if a > 0}
    best, cut = 0.0, 0
    for level in range(256):
        low = [v for v in levels.values() if v < level]
        high = [v for v in levels.values() if v >= level]
        if low and high:
            between = len(low) * len(high) * (sum(low) / len(low) - sum(high) / len(high)) ** 2
            if between > best * (1 + 1e-12):
                best, cut = between, level
    return torch.tensor([k in levels and levels[k] >= cut for k in range(len(alpha))])


# ------------------------------------------------------------------------------------------ blur and pyramid


def test_blur_is_gaussian_convolution_with_repeated_border():
    image = torch.randn(7, 10)
    for sigma in (0.6, 3.0):  # 3.0: the kernel is larger than the image
        expected = naive_blur(image, sigma)
        assert torch.allclose(gaussian_blur(image[None, None], sigma)[0, 0].double(), expected, atol=1e-6)


def test_released_blur_fades_to_0_beyond_the_border():
    image = torch.randn(7, 10)
    for sigma in (0.6, 3.0):
        expected = naive_blur(image, sigma, released=True)
        assert torch.allclose(
            gaussian_blur(image[None, None], sigma, released=True)[0, 0].double(), expected, atol=1e-6
        )
    corner = gaussian_blur(torch.ones(1, 64, 64), 4.0, released=True)[0, 0, 0]
    assert corner == pytest.approx(0.25, abs=0.06)  # a quarter of the plane, and the corner's own row and column


def test_blur_keeps_constants_and_mean_of_an_interior_spot():
    assert torch.allclose(gaussian_blur(torch.full((1, 9, 5), 2.5), 4.0), torch.tensor(2.5))
    spot = torch.zeros(1, 21, 21)
    spot[0, 10, 10] = 1
    blurred = gaussian_blur(spot, 2.0)[0]
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert float(blurred[10, 12] / blurred[10, 10]) == pytest.approx(math.exp(-0.5), abs=1e-5)


def test_pyramid_runs_from_strongest_blur_to_the_image():
    images = torch.randn(2, 3, 6, 9)
    pyramid = blur_pyramid(images, levels=4, max_blur=3.0)
    assert pyramid.shape == (2, 4, 3, 6, 9)
    assert torch.equal(pyramid[:, 3], images)
    for level, sigma in enumerate((3.0, 2.0, 1.0)):
        assert torch.allclose(pyramid[1, level, 2].double(), naive_blur(images[1, 2], sigma), atol=1e-5)


def test_perturb_interpolates_between_neighbouring_levels():
    pyramid = torch.tensor([10.0, 20.0, 40.0]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 1, 5)
    masks = torch.tensor([[[0.0, 0.25, 0.5, 0.75, 1.0]]])
    assert torch.allclose(perturb(pyramid, masks)[0, 1, 0], torch.tensor([10.0, 15.0, 20.0, 30.0, 40.0]))


def test_perturb_of_what_is_not_a_number_is_none_either():
    """Of that row alone: one failed pair must not stop the others."""
    pyramid, masks = torch.rand(2, 5, 3, 1, 4), torch.rand(2, 1, 4)
    masks[0, 0, 1] = torch.nan
    found = perturb(pyramid, masks)
    assert found.isnan().nonzero().tolist() == [[0, channel, 0, 1] for channel in range(3)]


def test_perturb_has_a_gradient_at_both_ends():
    pyramid = torch.tensor([10.0, 20.0, 40.0]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 1, 2)
    masks = torch.tensor([[[0.0, 1.0]]], requires_grad=True)
    (slope,) = torch.autograd.grad(perturb(pyramid, masks).sum(), masks)
    assert slope.flatten().tolist() == [60.0, 120.0]  # 3 channels, 2 intervals, differences 10 and 20


# ----------------------------------------------------------------------------------------------- smooth mask


def test_mask_is_the_naive_smooth_max_convolution():
    nodes = torch.rand(2, 3, 4)
    mask = SmoothMask(8, 11, step=3, sigma=4.0, device=CPU)
    assert mask.grid == (3, 4)
    expected = torch.stack([naive_mask(n, naive_kernel((3, 4), 8, 11, 3, 4.0), 8, 11) for n in nodes])
    assert torch.allclose(mask(nodes), expected, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(9, 12), (8, 11)])
def test_released_mask_is_the_naive_one_and_larger_than_the_image(height: int, width: int):
    nodes = torch.rand(2, 3, 4)
    mask = SmoothMask(height, width, step=3, sigma=6.0, device=CPU, released=True)
    assert mask.grid == (3, 4)
    assert mask.size == (3 * 3 + 2 * 6 - 2, 4 * 3 + 2 * 6 - 2)
    expected = torch.stack([naive_mask(n, naive_released_kernel((3, 4), 3, 6), *mask.size) for n in nodes])
    found = mask(nodes)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(found[mask.inside], found[:, 6 : 6 + height, 6 : 6 + width])


def test_released_mask_of_224_pixels_has_260():
    """With the released step and sigma; node (0, 0) is the image's first pixel."""
    mask = SmoothMask(224, 224, step=7, sigma=21.0, device=CPU, released=True)
    assert (mask.grid, mask.size, mask.window) == ((32, 32), (260, 260), 9)
    nodes = torch.zeros(1, 32, 32)
    nodes[0, 0, 0] = 1
    found = mask(nodes)
    blob = found[0, :43, :43]
    assert found[mask.inside][0, 0, 0] == blob[21, 21] == found.max()
    assert torch.allclose(blob, blob.flip(0), atol=1e-6)
    assert torch.allclose(blob, blob.T, atol=1e-6)


@pytest.mark.parametrize(("step", "sigma"), [(7, 21.0), (1, 4.0), (4, 5.0), (5, 1.0)])
def test_mask_sees_all_nodes_within_one_and_a_half_sigma(step: int, sigma: float):
    side = 17 * step
    mask = SmoothMask(side, side, step, sigma, CPU)
    nodes = torch.zeros(1, 17, 17)
    nodes[0, 8, 8] = 1
    seen = mask(nodes)[0] > 0
    offset = torch.arange(side) - (side - 1) / 2
    assert seen[torch.hypot(offset[:, None], offset) <= 1.5 * sigma].all()
    assert seen.sum() == (step * mask.window) ** 2


@pytest.mark.parametrize("released", [False, True])
def test_mask_gradient(released: bool):
    nodes = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    mask = SmoothMask(5, 7, step=3, sigma=3.0, device=CPU, released=released)
    assert torch.autograd.gradcheck(mask, (nodes,))


def test_single_node_makes_a_round_blob_of_the_kernels_profile():
    nodes = torch.zeros(1, 9, 9)
    nodes[0, 4, 4] = 1
    blob = SmoothMask(63, 63, step=7, sigma=21.0, device=CPU)(nodes)[0]
    assert blob[31, 31] == pytest.approx(1, abs=1e-6)
    assert torch.allclose(blob, blob.T, atol=1e-6)
    assert torch.allclose(blob, blob.flip(0), atol=1e-6)
    assert (blob > 0.5).sum().item() == pytest.approx(math.pi * 23**2, rel=0.05)


def test_constant_grid_makes_the_same_mask_at_the_border():
    mask = SmoothMask(24, 36, step=4, sigma=6.0, device=CPU)(torch.ones(1, 6, 9))[0]
    cells = mask.unfold(0, 4, 4).unfold(1, 4, 4)  # (6, 9, 4, 4)
    assert torch.allclose(cells, cells[2, 3].expand_as(cells), atol=1e-6)
    assert 0.95 < mask.min() <= mask.max() <= 1


# ----------------------------------------------------------------------------------------------- area penalty


def test_ideal_step_marks_the_largest_values():
    masks = torch.tensor([[[0.1, 0.9], [0.5, 0.3]]]).repeat(3, 1, 1)
    expected = [[[0, 1], [0, 0]], [[0, 1], [1, 0]], [[1, 1], [1, 1]]]
    assert ideal_step(masks, torch.tensor([1, 2, 4])).tolist() == expected


def test_ideal_step_shares_ones_among_equal_values():
    masks = torch.tensor([[[0.2, 0.9], [0.5, 0.5], [0.5, 0.5]]])
    assert ideal_step(masks, torch.tensor([2])).tolist() == [[[0, 1], [0.25, 0.25], [0.25, 0.25]]]
    assert ideal_step(torch.ones(1, 2, 4), torch.tensor([2])).unique().tolist() == [0.25]
    rounded = 0.7 + 1e-7 * torch.arange(8).view(1, 2, 4)
    assert ideal_step(rounded, torch.tensor([2])).unique().tolist() == [0.25]


def sorted_step(masks: Tensor, ones: Tensor) -> Tensor:
    """The ideal step from the whole ranking."""
    values, count = masks.flatten(1), ones[:, None]
    cut = values.sort(1, descending=True).values.gather(1, count - 1)
    above = values > cut + ROUNDING
    level = (values >= cut - ROUNDING) & ~above
    return (above + level * (count - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True)).view_as(masks)


@pytest.mark.parametrize("levels", [None, 3])
def test_ideal_step_is_that_of_the_whole_ranking(levels: int | None):
    masks = torch.rand(4, 30, 41)
    masks = masks if levels is None else (masks * levels).round() / levels + 1e-7 * masks
    ones = torch.tensor([1, 61, 246, 30 * 41])
    step = ideal_step(masks, ones)
    assert torch.allclose(step, sorted_step(masks, ones), rtol=0, atol=1e-7)
    assert torch.allclose(step.sum((1, 2)), ones.float())


def test_ideal_step_gives_the_gradient_of_the_sorted_formula():
    masks = torch.rand(2, 5, 6, requires_grad=True)
    step = torch.cat([torch.zeros(23), torch.ones(7)])
    sorted_form = (masks.flatten(1).sort(1).values - step).square().mean(1).sum()
    ours = (masks - ideal_step(masks.detach(), torch.tensor([7, 7]))).square().mean((1, 2)).sum()
    assert torch.allclose(ours, sorted_form)
    (expected,), (gradient,) = torch.autograd.grad(sorted_form, masks), torch.autograd.grad(ours, masks)
    assert torch.allclose(gradient, expected)


# --------------------------------------------------------------------------------------- extremal perturbation


@pytest.mark.parametrize("reward", ["logit", "confidence"])
def test_extremal_perturbation_is_the_naive_loop(reward: str):
    classifier = make_classifier()
    images, pairs = make_batch(2, 8, 11)
    method = dataclasses.replace(SMALL, reward=reward, penalty=30.0, learning_rate=0.1)
    maps = method(classifier, images, pairs)
    expected = torch.stack([naive_extremal(method, classifier, images[i], c) for i, _, c in pairs])
    assert maps.dtype == torch.float32
    assert torch.allclose(maps, expected, atol=1e-4)
    assert expected.std() > 0.01  # the masks have left their start


@pytest.mark.parametrize("jitter", [True, False])
def test_released_extremal_perturbation_is_the_naive_loop(jitter: bool):
    classifier = make_classifier()
    images, pairs = make_batch(2, 8, 11)
    changed = {"variant": "released", "sigma": 6.0, "penalty": 30.0, "learning_rate": 0.1, "jitter": jitter}
    method = dataclasses.replace(SMALL, **changed)
    maps = method(classifier, images, pairs)
    expected = torch.stack([naive_extremal(method, classifier, images[i], c) for i, _, c in pairs])
    assert torch.allclose(maps, expected, atol=1e-4)
    assert expected.std() > 0.01
    assert not torch.allclose(maps, dataclasses.replace(method, variant="paper")(classifier, images, pairs), atol=0.01)


def test_jitter_flips_odd_iterations():
    classifier, (images, pairs) = make_classifier(), make_batch()
    still = dataclasses.replace(SMALL, jitter=False)
    once = [dataclasses.replace(method, iterations=1)(classifier, images, pairs) for method in (SMALL, still)]
    assert torch.equal(*once)
    assert not torch.equal(SMALL(classifier, images, pairs), still(classifier, images, pairs))


def test_extremal_perturbation_does_not_depend_on_batch_or_chunks():
    images, pairs = make_batch(3, 12, 16)
    maps = SMALL(make_classifier(), images, pairs)
    for p, (i, name, c) in enumerate(pairs):
        alone = SMALL(make_classifier(), images[i : i + 1], Pairs(torch.tensor([0]), torch.tensor([c]), (name,)))
        assert torch.allclose(alone[0], maps[p], atol=1e-4)
    for forward_batch in (1, 5):
        again = SMALL(make_classifier(forward_batch=forward_batch), images, pairs)
        assert torch.allclose(again, maps, atol=1e-4)


class RegionMean(nn.Module):
    """Logit of class c: the mean of the positive part of the image over region c; regions are halves."""

    def __init__(self) -> None:
        super().__init__()
        self.grey = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.grey.weight, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        bright = self.grey(images).relu()[:, 0]
        half = images.shape[3] // 2
        return 10 * torch.stack([bright[:, :, :half].mean((1, 2)), bright[:, :, half:].mean((1, 2))], 1)


def test_masks_concentrate_where_the_score_comes_from_and_keep_their_area():
    # white noise: its positive part is lost where it is blurred
    images = torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    pairs = Pairs(torch.tensor([0, 0]), torch.tensor([0, 1]), ("noise",))
    classifier = Classifier(RegionMean(), {"cam": "grey"})
    method = ExtremalPerturbation(
        areas=(0.2,), iterations=150, step=2, sigma=4.0, learning_rate=0.05, max_blur=4.0, jitter=False, smooth=0.0
    )
    left, right = method(classifier, images, pairs)
    assert left[:, :16].sum() > 0.9 * left.sum()
    assert right[:, 16:].sum() > 0.9 * right.sum()
    for mask in (left, right):
        assert mask.mean().item() == pytest.approx(0.2, abs=0.04)
        assert mask.max() > 0.9
        assert mask.min() < 0.05
    blurred = gaussian_blur(images, 4.0)
    kept = classifier.logits(perturb(blur_pyramid(images, 8, 4.0), left[None]))[0, 0]
    assert kept > classifier.logits(blurred)[0, 0] + 1


def test_map_is_the_smoothed_sum_over_areas():
    classifier, (images, pairs) = make_classifier(), make_batch()
    single = [dataclasses.replace(SMALL, areas=(a,), smooth=0.0)(classifier, images, pairs) for a in SMALL.areas]
    expected = gaussian_blur(single[0] + single[1], 0.09 * 16)
    assert torch.allclose(SMALL(classifier, images, pairs), expected, atol=1e-4)


def test_extremal_perturbation_costs_areas_times_iterations_passes():
    classifier, (images, pairs) = make_classifier(), make_batch()
    forwards, backwards = [], []
    first = classifier.network[0]
    first.register_forward_hook(lambda module, args, output: forwards.append(len(output)))
    first.register_full_backward_hook(lambda module, into, out: backwards.append(len(out[0])))
    SMALL(classifier, images, pairs)
    assert sum(forwards) == sum(backwards) == len(pairs) * len(SMALL.areas) * SMALL.iterations


def test_extremal_perturbation_leaves_nothing_behind():
    classifier, (images, pairs) = make_classifier(), make_batch()
    given = images.clone()
    with torch.no_grad():
        maps = SMALL(classifier, images, pairs)
    assert not maps.requires_grad
    assert torch.equal(images, given)
    assert not images.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in classifier.network.parameters())
    failing = Classifier(Failing(3), {"cam": "body"})
    with pytest.raises(ValueError, match="last pass"):
        SMALL(failing, images, pairs)
    assert hooks(failing) == 0
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("areas", ()),
        ("areas", (0.1, 1.0)),
        ("areas", (0.0,)),
        ("iterations", 0),
        ("step", 0),
        ("sigma", 0.0),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("penalty", -1.0),
        ("penalty_growth", 0.0),
        ("levels", 1),
        ("max_blur", 0.0),
        ("smooth", -0.1),
        ("reward", "softmax"),
        ("variant", "torchray"),
    ],
)
def test_extremal_perturbation_names_the_wrong_parameter(name: str, value: object):
    with pytest.raises(CamexpError, match=rf"method\.{name} of extremal_perturbation must be .*, not "):
        dataclasses.replace(SMALL, **{name: value})


def test_released_extremal_perturbation_needs_a_whole_number_of_cells():
    with pytest.raises(CamexpError, match="sigma of extremal_perturbation must be a multiple of the step for"):
        dataclasses.replace(SMALL, variant="released")  # 4 of 3
    with pytest.raises(CamexpError, match="step of extremal_perturbation must be at least 1"):
        dataclasses.replace(SMALL, variant="released", step=0)


def test_a_list_of_areas_is_the_default_tuple():
    assert ExtremalPerturbation(areas=[0.025, 0.05, 0.1, 0.2]) == ExtremalPerturbation()


# -------------------------------------------------------------------------------------------------- Ada-SISE


def test_ada_sise_keeps_the_upper_group_of_positive_scores():
    alpha = torch.tensor([[-9.0, 1.0, 1.2, 8.0, 10.0, 0.0], [-1.0, -2.0, 0.0, -1.0, 0.0, -3.0]])
    assert AdaSISE().keep(alpha).tolist() == [[False, False, False, True, True, False], [False] * 6]


def test_ada_sise_threshold_ignores_negative_scores():
    positive = torch.tensor([[0.5, 0.6, 0.9, 1.0]])
    with_noise = torch.cat([positive, -torch.rand(1, 50)], 1)
    assert torch.equal(AdaSISE().keep(with_noise)[:, :4], AdaSISE().keep(positive))
    assert AdaSISE().keep(with_noise).sum() == 2


def test_ada_sise_keeps_all_equal_scores():
    assert AdaSISE().keep(torch.tensor([[3.0, 3.0, -1.0], [0.0, 2.0, 0.0]])).tolist() == [
        [True, True, False],
        [False, True, False],
    ]


def test_ada_sise_keep_is_naive_otsu():
    alpha = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) ** 3
    assert torch.equal(AdaSISE().keep(alpha), torch.stack([naive_otsu_keep(a) for a in alpha]))


def test_ada_sise_is_sise_with_the_mu_of_naive_otsu_per_layer(monkeypatch: pytest.MonkeyPatch):
    classifier, (images, pairs) = make_classifier(), make_batch()
    maps = AdaSISE()(classifier, images, pairs)
    _, alphas = SISE.features_and_alphas(classifier, images, pairs, ("1", "4"))
    for p, (i, name, c) in enumerate(pairs):
        thresholds = []
        for alpha in alphas:
            normalised = alpha[p] / alpha[p].max()
            kept, rest = normalised[naive_otsu_keep(alpha[p])], normalised[~naive_otsu_keep(alpha[p])]
            low = max(float(rest.max()) if len(rest) else 0.0, 0.0)
            thresholds.append((low + float(kept.min())) / 2 if len(kept) else 0.0)
        layer = iter(thresholds)
        with monkeypatch.context() as patch:
            # SISE calls `keep` once per layer, from shallow to deep
            patch.setattr(SISE, "keep", lambda self, a, layer=layer: (a > 0) & (a > next(layer) * a.amax(1)[:, None]))
            expected = SISE()(classifier, images[i : i + 1], Pairs(torch.tensor([0]), torch.tensor([c]), (name,)))
        assert torch.allclose(maps[p], expected[0], atol=1e-5)


def test_ada_sise_makes_fewer_masked_passes_than_sise():
    images, pairs = make_batch(3)
    passes = {}
    for method in (SISE(), AdaSISE()):
        classifier, count = make_classifier(), []
        classifier.network[0].register_forward_hook(lambda module, args, output, count=count: count.append(len(output)))
        method(classifier, images, pairs)
        passes[type(method)] = sum(count)
    assert passes[AdaSISE] < passes[SISE]


@pytest.mark.parametrize("fusion", ["hard_otsu", "soft_otsu"])
def test_ada_sise_does_not_depend_on_batch_or_chunks(fusion: str):
    images, pairs = make_batch(3, 12, 20)
    method = AdaSISE(fusion=fusion)
    maps = method(make_classifier(), images, pairs)
    assert maps.shape == (len(pairs), 12, 20)
    assert maps.isfinite().all()
    for p, (i, name, c) in enumerate(pairs):
        alone = method(make_classifier(), images[i : i + 1], Pairs(torch.tensor([0]), torch.tensor([c]), (name,)))
        assert torch.allclose(alone[0], maps[p], atol=1e-5)
    assert torch.allclose(method(make_classifier(forward_batch=2), images, pairs), maps, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3])  # the activations', the gradient's, a masked pass
def test_ada_sise_leaves_no_hooks_after_an_exception(n: int):
    images, pairs = make_batch()
    failing = Classifier(Failing(n), {"cam": "body.0", "sise": ("body.0",)})
    with pytest.raises(ValueError, match="last pass"):
        AdaSISE()(failing, images, pairs)
    assert hooks(failing) == 0


def test_ada_sise_has_no_mu_and_checks_the_fusion():
    with pytest.raises(TypeError, match="mu"):
        AdaSISE(mu=0.3)
    with pytest.raises(CamexpError, match=r"method\.fusion .* not 'mean'"):
        AdaSISE(fusion="mean")
