"""Metrics against hand-computed 4x4 cases, naive references and the mistakes that public code makes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_batch, make_classifier
from torch import Tensor, nn

from camexp.errors import CamexpError
from camexp.metrics import EBPG, METRICS, AverageGain, Bbox, Drop, Explained, Increase, MIoU, Pointing
from camexp.metrics.faithfulness import average_gain, drop, increase, top_pixels
from camexp.metrics.localization import bbox, ebpg, miou, scale, top_hits
from camexp.metrics.pointing import POINTS, maxima, pointing, row_gap
from camexp.pairs import Pairs
from camexp.report.subsets import difficult_subset, select

MAP = torch.tensor([[[4.0, 3, 1, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
"""Sum 12, minimum 0; descending: 4 3 2 2 1 and eleven zeros."""

MASK = torch.tensor([[[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]]).bool()
"""Four pixels: on the values 4, 1, 2 and 0."""


def random_case(seed: int, levels: int | None, height: int = 6, width: int = 9) -> tuple[Tensor, Tensor]:
    """Five maps, of `levels` different values where there shall be ties, and masks of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(5, height, width, generator=generator)
    if levels is not None:
        maps = torch.randint(levels, maps.shape, generator=generator).float() - 1
    share = torch.linspace(0.1, 0.9, 5)[:, None, None]
    return maps, torch.rand(maps.shape, generator=generator) < share


# ------------------------------------------------------------------------------------------- naive references


def naive_scale(values: np.ndarray, scaling: str) -> np.ndarray:
    if scaling == "clip":
        return np.maximum(values, 0) if values.max() > 0 else np.ones_like(values)
    if values.max() == values.min():
        return np.ones_like(values)
    return (values - values.min()) / (values.max() - values.min())


def naive_ebpg(values: np.ndarray, mask: np.ndarray, scaling: str) -> float:
    inside = total = 0.0
    scaled = naive_scale(values, scaling)
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            total += scaled[y, x]
            inside += scaled[y, x] if mask[y, x] else 0.0
    return inside / total


def naive_hits(values: np.ndarray, mask: np.ndarray, count: int, ties: str) -> float:
    """Pixels of the mask among the `count` largest: fill places by value, sharing or filling the last ones."""
    flat, truth = values.ravel().tolist(), mask.ravel().tolist()
    hits, left = 0.0, count
    for value in sorted(set(flat), reverse=True):
        group = [position for position, other in enumerate(flat) if other == value]
        if len(group) <= left:
            hits += sum(truth[position] for position in group)
        elif ties == "stable":
            hits += sum(truth[position] for position in group[:left])
        else:
            hits += left * sum(truth[position] for position in group) / len(group)
        left = max(0, left - len(group))
    return hits


def naive_bbox(values: np.ndarray, mask: np.ndarray, ties: str) -> float:
    return naive_hits(values, mask, int(mask.sum()), ties) / mask.sum()


def naive_miou(values: np.ndarray, mask: np.ndarray, share: float, ties: str) -> float:
    count = int(share * values.size)
    hits = naive_hits(values, mask, count, ties)
    return hits / (count + mask.sum() - hits)


def naive_top(values: np.ndarray, share: float, rule: str) -> np.ndarray:
    count = int(share * values.size)
    flat = values.ravel().tolist()
    if rule == "strict":
        return values > sorted(flat, reverse=True)[count]
    order = sorted(range(len(flat)), key=lambda position: (-flat[position], position))
    kept = np.zeros(values.size, dtype=bool)
    kept[order[:count]] = True
    return kept.reshape(values.shape)


def sorted_hits(maps: Tensor, masks: Tensor, counts: Tensor, ties: str) -> Tensor:
    """The hits among the `counts` largest pixels of each map, from the whole ranking, (P,)."""
    values, truth = maps.flatten(1), masks.flatten(1)
    ranked, order = values.sort(dim=1, descending=True, stable=True)
    if ties == "stable":
        chosen = torch.arange(values.shape[1]) < counts[:, None]
        return (truth.gather(1, order) & chosen).sum(1).double()
    cut = ranked.gather(1, (counts - 1).clamp(min=0)[:, None])
    above, level = values > cut, values == cut
    places = (counts - above.sum(1)).double()
    return (above & truth).sum(1) + places / level.sum(1) * (level & truth).sum(1)


def sorted_top(maps: Tensor, share: float, rule: str) -> Tensor:
    """The pixels (P,H,W) that are kept, from the whole ranking."""
    values = maps.flatten(1)
    rank = int(share * values.shape[1])
    ranked, order = values.sort(dim=1, descending=True, stable=True)
    if rule == "strict":
        return maps > ranked[:, rank, None, None]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order[:, :rank], True).view_as(maps)


def each(reference: Callable[..., float], maps: Tensor, masks: Tensor, *args: object) -> Tensor:
    """The reference's value for each pair, (P,)."""
    arrays = zip(maps.double().numpy(), masks.numpy(), strict=True)
    return torch.tensor([reference(m, g, *args) for m, g in arrays], dtype=torch.float64)


with_and_without_ties = pytest.mark.parametrize("levels", [None, 4, 2])


# ------------------------------------------------------------------------------------------------------- EBPG


def test_ebpg_by_hand() -> None:
    # the minimum is 0, so scaling divides out: (4 + 1 + 2 + 0) / 12
    assert ebpg(MAP, MASK).item() == pytest.approx(7 / 12)


def test_ebpg_depends_on_the_scaling() -> None:
    # min-max of MAP - 1: as MAP, 7 / 12; clipped at 0: 3, 2 and twice 1 remain, of them 3 + 1 in the mask
    assert ebpg(MAP - 1, MASK, "minmax").item() == pytest.approx(7 / 12)
    assert ebpg(MAP - 1, MASK, "clip").item() == pytest.approx(4 / 7)
    # MAP + 1: clipping does not take the minimum away: (7 + 4) / (12 + 16)
    assert ebpg(MAP + 1, MASK, "minmax").item() == pytest.approx(7 / 12)
    assert ebpg(MAP + 1, MASK, "clip").item() == pytest.approx(11 / 28)


@with_and_without_ties
@pytest.mark.parametrize("scaling", ["minmax", "clip"])
def test_ebpg_equals_naive_reference(levels: int | None, scaling: str) -> None:
    maps, masks = random_case(0, levels)
    assert torch.allclose(ebpg(maps, masks, scaling), each(naive_ebpg, maps, masks, scaling), atol=1e-6)


def test_scale_of_maps_that_cannot_be_scaled_is_ones() -> None:
    assert scale(torch.full((1, 2, 2), 3.0)).eq(1).all()
    assert scale(torch.full((1, 2, 2), 0.0), "clip").eq(1).all()
    assert scale(-MAP - 1, "clip").eq(1).all()


def test_scale_is_per_map() -> None:
    scaled = scale(torch.cat([MAP, 10 * MAP - 5]))
    assert scaled.amin((1, 2)).tolist() == [0, 0]
    assert scaled.amax((1, 2)).tolist() == [1, 1]


# ------------------------------------------------------------------------------------------------------- Bbox


def test_bbox_by_hand() -> None:
    # N = 4: the top pixels are 4, 3, 2, 2; of the mask's, 4 and one 2 are among them
    assert bbox(MAP, MASK).item() == pytest.approx(2 / 4)


def test_bbox_shares_the_last_places_of_equal_values() -> None:
    mask = MASK.clone()
    mask[0, 1, 0] = False
    # N = 3: places for 4, 3 and one of two 2s, neither in the mask: hit is the 4
    assert bbox(MAP, mask).item() == pytest.approx(1 / 3)
    mask[0, 1, 0], mask[0, 0, 2] = True, False
    # N = 3, the mask on 4, the left 2 and a 0: of one place for two 2s each expects 1/2; "stable" gives it to the left
    assert bbox(MAP, mask).item() == pytest.approx(1.5 / 3)
    assert bbox(MAP, mask, "stable").item() == pytest.approx(2 / 3)


@with_and_without_ties
@pytest.mark.parametrize("ties", ["expected", "stable"])
def test_bbox_equals_naive_reference(levels: int | None, ties: str) -> None:
    maps, masks = random_case(1, levels)
    assert torch.allclose(bbox(maps, masks, ties), each(naive_bbox, maps, masks, ties))


def test_expected_ties_are_the_mean_over_random_orders() -> None:
    maps, masks = random_case(2, 3, height=4, width=5)
    generator = torch.Generator().manual_seed(0)
    trials = [bbox(maps + 1e-3 * torch.rand(maps.shape, generator=generator), masks) for _ in range(2000)]
    assert torch.allclose(torch.stack(trials).mean(0), bbox(maps, masks), atol=0.01)


# ------------------------------------------------------------------------------------------------------- mIoU


def test_miou_by_hand() -> None:
    # int(0.2 * 16) = 3 top pixels: 4, 3 and one of two 2s, of which one is in the mask: 1 + 1/2 hits
    assert miou(MAP, MASK).item() == pytest.approx(1.5 / (3 + 4 - 1.5))
    # from the top left: the left 2, in the mask: 2 hits
    assert miou(MAP, MASK, ties="stable").item() == pytest.approx(2 / (3 + 4 - 2))
    # int(0.3 * 16) = 4 pixels: 4, 3, 2, 2: 2 hits
    assert miou(MAP, MASK, share=0.3).item() == pytest.approx(2 / (4 + 4 - 2))


@with_and_without_ties
@pytest.mark.parametrize("ties", ["expected", "stable"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_miou_equals_naive_reference(levels: int | None, ties: str, share: float) -> None:
    maps, masks = random_case(3, levels)
    assert torch.allclose(miou(maps, masks, share, ties), each(naive_miou, maps, masks, share, ties))


# -------------------------------------------------------------------------------------- top pixels, Drop, Increase


def test_top_pixels_by_hand() -> None:
    # int(0.15 * 16) = 2, and the value at rank 2 (from 0) is 2: strictly above it are 4 and 3
    assert top_pixels(MAP).nonzero()[:, 1:].tolist() == [[0, 0], [0, 1]]
    # int(0.2 * 16) = 3, and the value at rank 3 is the other 2: the ties fall out, 4 and 3 stay
    assert top_pixels(MAP, 0.2).nonzero()[:, 1:].tolist() == [[0, 0], [0, 1]]
    # exactly 3: the left of the 2s stays
    assert top_pixels(MAP, 0.2, "exact").nonzero()[:, 1:].tolist() == [[0, 0], [0, 1], [1, 0]]


def test_strict_keeps_only_positive_pixels_of_a_sparse_map() -> None:
    # int(0.5 * 16) = 8, and the value at rank 8 is 0
    assert torch.equal(top_pixels(MAP, 0.5), MAP > 0)
    assert top_pixels(MAP, 0.5, "exact").sum() == 8


def test_a_constant_map_keeps_nothing_or_the_first_pixels() -> None:
    assert not top_pixels(torch.ones(1, 4, 4)).any()
    assert top_pixels(torch.ones(1, 4, 4), rule="exact").nonzero()[:, 1:].tolist() == [[0, 0], [0, 1]]


@with_and_without_ties
@pytest.mark.parametrize("rule", ["strict", "exact"])
@pytest.mark.parametrize("share", [0.01, 0.15, 0.6])
def test_top_pixels_equal_naive_reference(levels: int | None, rule: str, share: float) -> None:
    maps, _ = random_case(4, levels)
    expected = np.stack([naive_top(values, share, rule) for values in maps.numpy()])
    assert np.array_equal(top_pixels(maps, share, rule).numpy(), expected)


def test_rules_agree_without_ties() -> None:
    maps, _ = random_case(5, None)
    assert torch.equal(top_pixels(maps, 0.15, "strict"), top_pixels(maps, 0.15, "exact"))


def test_drop_and_increase_by_hand() -> None:
    before = torch.tensor([0.8, 0.5, 0.2, 0.4])
    after = torch.tensor([0.2, 0.5, 0.9, 0.0])
    # relative to the original score: 0.6 / 0.8, and not 0.6
    assert drop(before, after).tolist() == pytest.approx([0.75, 0, 0, 1])
    assert increase(before, after).tolist() == [0, 0, 1, 0]  # equal is no increase


def test_a_confidence_of_zero_is_defined() -> None:
    zero = torch.zeros(2)
    after = torch.tensor([0.0, 0.3])
    assert drop(zero, after).tolist() == [0, 0]
    assert increase(zero, after).tolist() == [0, 1]


def test_tiny_confidences_do_not_overflow() -> None:
    before = torch.tensor([1e-45, 1e-38])
    assert drop(before, torch.zeros(2)).tolist() == [1, 1]
    assert drop(before, torch.ones(2)).tolist() == [0, 0]


# --------------------------------------------------------------------------------------------------- defined values


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
@pytest.mark.parametrize("scaling", ["minmax", "clip"])
def test_a_constant_map_scores_the_area(value: float, scaling: str) -> None:
    maps = torch.full((1, 4, 4), value)
    assert ebpg(maps, MASK, scaling).item() == pytest.approx(4 / 16)
    assert bbox(maps, MASK).item() == pytest.approx(4 / 16)
    # 3 places, a quarter of each in the mask
    assert miou(maps, MASK).item() == pytest.approx(0.75 / (3 + 4 - 0.75))


def test_an_empty_mask_scores_zero() -> None:
    empty = torch.zeros_like(MASK)
    for metric in (ebpg, bbox, miou):
        assert metric(MAP, empty).tolist() == [0]


def test_a_full_mask_scores_everything() -> None:
    full = torch.ones_like(MASK)
    assert ebpg(MAP, full).item() == 1
    assert bbox(MAP, full).item() == 1
    assert miou(MAP, full).item() == pytest.approx(3 / 16)


def test_the_mask_itself_scores_one() -> None:
    _, masks = random_case(6, None)
    assert ebpg(masks.float(), masks).eq(1).all()
    assert bbox(masks.float(), masks).eq(1).all()
    area = masks.sum((1, 2))
    count = int(0.2 * masks[0].numel())
    best = torch.minimum(area, torch.tensor(count)) / torch.maximum(area, torch.tensor(count))
    assert miou(masks.float(), masks).allclose(best.double())


def test_uniform_and_random_maps_score_the_area_share() -> None:
    _, masks = random_case(7, None, 60, 80)
    area = masks.double().mean((1, 2))
    assert ebpg(torch.ones(masks.shape), masks).allclose(area)
    noise = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0))
    assert ebpg(noise, masks).allclose(area, atol=0.02)
    assert bbox(noise, masks).allclose(area, atol=0.03)


@pytest.mark.parametrize("metric", [ebpg, bbox, miou])
def test_x_and_y_are_not_swapped(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    # energy in the upper right, the object a bar along the top: transposed it would be a bar along the left
    maps = torch.zeros(1, 4, 6)
    maps[0, :2, 3:] = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[0, :2, 2:] = True
    square, bar = maps[:, :, 2:], mask[:, :, 2:]
    assert metric(maps, mask) > 0.4
    assert metric(square, bar) > metric(square, bar.mT) > 0
    # both transposed is the same question
    assert metric(maps.mT, mask.mT).allclose(metric(maps, mask))


@with_and_without_ties
def test_pairs_together_equal_one_by_one(levels: int | None) -> None:
    maps, masks = random_case(8, levels)
    for metric in (ebpg, bbox, miou):
        alone = torch.cat([metric(maps[p : p + 1], masks[p : p + 1]) for p in range(len(maps))])
        assert torch.equal(metric(maps, masks), alone)


def test_ranking_metrics_depend_only_on_the_ranking() -> None:
    maps, masks = random_case(9, None)
    for metric in (bbox, miou):
        assert torch.equal(metric(maps, masks), metric(maps.exp() * 3 - 7, masks))


@pytest.mark.parametrize("levels", [None, 40, 4, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_metrics_are_bit_for_bit_those_of_the_whole_ranking(levels: int | None, dtype: torch.dtype) -> None:
    maps, masks = random_case(12, levels, 42, 57)
    maps = maps.to(dtype)
    masks[0], masks[1] = False, True
    sizes, counts = masks.sum((1, 2)), torch.full((5,), int(0.2 * 42 * 57))
    for ties in ("expected", "stable"):
        assert torch.equal(top_hits(maps, masks, sizes, ties), sorted_hits(maps, masks, sizes, ties))
        assert torch.equal(bbox(maps, masks, ties), sorted_hits(maps, masks, sizes, ties) / sizes.clamp(min=1))
        hits = sorted_hits(maps, masks, counts, ties)
        assert torch.equal(miou(maps, masks, 0.2, ties), hits / (counts + sizes - hits))
    for rule in ("strict", "exact"):
        for share in (0.0001, 0.15, 0.9999):
            assert torch.equal(top_pixels(maps, share, rule), sorted_top(maps, share, rule))
    for scaling in ("minmax", "clip"):
        energy = scale(maps, scaling).double()
        assert torch.equal(ebpg(maps, masks, scaling), (energy * masks).sum((1, 2)) / energy.sum((1, 2)))


def test_no_pairs_give_no_values() -> None:
    for metric in (ebpg, bbox, miou):
        assert metric(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool)).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ebpg(MAP, MASK, "softmax"), "scaling must be minmax or clip, not 'softmax'"),
        (lambda: bbox(MAP, MASK, "first"), "ties must be expected or stable, not 'first'"),
        (lambda: top_hits(MAP, MASK, torch.tensor([1]), "first"), "ties must be"),
        (lambda: top_pixels(MAP, 0.15, "loose"), "rule must be strict or exact, not 'loose'"),
        (lambda: pointing(MAP, MASK, torch.ones(1, 2), 15.0, "last"), "ties must be expected or first, not 'last'"),
    ],
)
def test_unknown_options_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------------------- as components


def bright_network() -> nn.Module:
    """Softmax confidence of class 0 = sigmoid(sum of the red channel - 1)."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[0, :16] = 1.0
        network[1].bias.copy_(torch.tensor([-1.0, 0.0]))
    return network


def hand_explained(image: Tensor, fill: Tensor | None = None, sizes: Tensor | None = None) -> Explained:
    """MAP as the explanation of class 0 in an image of one red channel (4,4)."""
    classifier = make_classifier(bright_network(), layers={"cam": "0"}, fill=fill)
    images = torch.stack([image, torch.zeros(4, 4), torch.zeros(4, 4)])[None]
    pairs = Pairs(torch.tensor([0]), torch.tensor([0]), ("image0",), MASK)
    return Explained(classifier, images, pairs, MAP, classifier.scores(images)[:, 0], sizes)


def sigmoid(x: float) -> float:
    return 1 / (1 + float(np.exp(-x)))


def test_drop_component_by_hand() -> None:
    # every pixel 0.25: the sum is 4 before; the two top pixels are kept: 0.5 after
    explained = hand_explained(torch.full((4, 4), 0.25))
    before, after = sigmoid(3), sigmoid(-0.5)
    assert explained.confidence.item() == pytest.approx(before)
    assert Drop()(explained).item() == pytest.approx((before - after) / before)
    assert Increase()(explained).item() == 0


def test_increase_component_by_hand() -> None:
    # negative everywhere but at the top pixels: masking raises the sum from 2 - 14 * 0.25 to 2
    image = torch.full((4, 4), -0.25)
    image[0, :2] = 1
    explained = hand_explained(image)
    assert Increase()(explained).item() == 1
    assert Drop()(explained).item() == 0


def test_masked_out_pixels_take_the_fill() -> None:
    # the 14 other pixels become 0.1: 2 * 0.25 + 14 * 0.1
    explained = hand_explained(torch.full((4, 4), 0.25), fill=torch.full((3, 1, 1), 0.1))
    assert explained.confidence_after(0.15, "strict").item() == pytest.approx(sigmoid(0.5 + 1.4 - 1))


@pytest.mark.parametrize("rule", ["strict", "exact"])
@pytest.mark.parametrize("forward_batch", [1, 2, 32])
def test_confidence_after_equals_naive_reference(rule: str, forward_batch: int) -> None:
    images, pairs = make_batch(height=12, width=20)
    classifier = make_classifier(forward_batch=forward_batch)
    maps = torch.randn(len(pairs), 12, 20, generator=torch.Generator().manual_seed(5))
    explained = Explained(classifier, images, pairs, maps, torch.zeros(len(pairs)))
    expected = []
    for p, (image, _, target) in enumerate(pairs):
        kept = torch.from_numpy(naive_top(maps[p].numpy(), 0.15, rule))
        expected.append(classifier.network((images[image] * kept)[None]).softmax(1)[0, target])
    assert torch.allclose(explained.confidence_after(0.15, rule), torch.stack(expected), atol=1e-6)


def test_drop_and_increase_share_one_masked_pass() -> None:
    explained = hand_explained(torch.full((4, 4), 0.25))
    runs: list[int] = []
    explained.classifier.network.register_forward_hook(lambda *_: runs.append(1))
    for metric in (Drop(), Increase(), Drop()):
        metric(explained)
    assert len(runs) == 1
    Drop(share=0.3)(explained)
    assert len(runs) == 2


def test_components_pass_their_parameters_on() -> None:
    explained = hand_explained(torch.full((4, 4), 0.25))
    assert EBPG("clip")(explained).equal(ebpg(MAP, MASK, "clip"))
    assert Bbox("stable")(explained).equal(bbox(MAP, MASK, "stable"))
    assert MIoU(0.3, "stable")(explained).equal(miou(MAP, MASK, 0.3, "stable"))
    # rank int(0.2 * 16) = 3: strict keeps two pixels of 0.25, exact three
    assert explained.confidence_after(0.2, "strict").item() == pytest.approx(sigmoid(-0.5))
    assert explained.confidence_after(0.2, "exact").item() == pytest.approx(sigmoid(-0.25))
    assert Drop(0.2, "exact")(explained) < Drop(0.2, "strict")(explained)


def test_ground_truth_metrics_need_masks() -> None:
    explained = hand_explained(torch.ones(4, 4))
    explained.pairs = Pairs(explained.pairs.image, explained.pairs.target, explained.pairs.image_ids)
    with pytest.raises(ValueError, match="need pairs with masks"):
        EBPG()(explained)


def test_average_gain_component_by_hand() -> None:
    image = torch.full((4, 4), -0.25)
    image[0, :2] = 1
    before, after = sigmoid(2 - 14 * 0.25 - 1), sigmoid(2 - 1)
    assert AverageGain()(hand_explained(image)).item() == pytest.approx((after - before) / (1 - before))
    assert AverageGain()(hand_explained(torch.full((4, 4), 0.25))).item() == 0


def test_directions() -> None:
    assert [name for name, metric in METRICS.items() if not metric.higher_is_better] == ["drop"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EBPG("softmax"), "metrics.ebpg.scaling must be minmax or clip, not 'softmax'"),
        (lambda: Bbox("first"), "metrics.bbox.ties must be expected or stable, not 'first'"),
        (lambda: MIoU(ties="first"), "metrics.miou.ties must be expected or stable, not 'first'"),
        (lambda: MIoU(20), r"metrics.miou.share must be in \(0, 1\), not 20"),
        (lambda: Drop(rule="loose"), "metrics.drop.rule must be strict or exact, not 'loose'"),
        (lambda: Increase(0.0), r"metrics.increase.share must be in \(0, 1\), not 0.0"),
        (lambda: AverageGain(1.5), r"metrics.average_gain.share must be in \(0, 1\), not 1.5"),
        (lambda: Pointing(-1), "metrics.pointing.tolerance must be a number of pixels, 0 or more, not -1"),
        (lambda: Pointing(math.nan), "metrics.pointing.tolerance must be a number of pixels, 0 or more, not nan"),
        (lambda: Pointing(ties="stable"), "metrics.pointing.ties must be expected or first, not 'stable'"),
    ],
)
def test_components_refuse_bad_parameters(make: Callable[[], object], message: str) -> None:
    with pytest.raises(CamexpError, match=message):
        make()


# ------------------------------------------------------------------------------------------------ average gain


def test_average_gain_by_hand() -> None:
    before = torch.tensor([0.2, 0.5, 0.9, 0.0, 1.0])
    after = torch.tensor([0.6, 0.4, 1.0, 0.3, 1.0])
    assert average_gain(before, after).tolist() == pytest.approx([0.5, 0, 1, 0.3, 0])


def test_average_gain_stays_a_fraction_next_to_one() -> None:
    before = torch.tensor([1 - 2**-24, 1 - 2**-24])
    assert average_gain(before, torch.tensor([1.0, 0.5])).tolist() == [1, 0]


def test_a_score_that_is_not_positive_has_no_drop() -> None:
    # logits: a share of a negative score means nothing
    assert drop(torch.tensor([-1.0, 0.0]), torch.tensor([-3.0, -2.0])).tolist() == [0, 0]


# --------------------------------------------------------------------------------------------------- pointing game


def naive_pointing(values: np.ndarray, mask: np.ndarray, pixel: tuple[int, int], tolerance: float) -> float:
    """Expected hit of a random one of the equal maxima: every pixel of the mask, enlarged to the original, is tried."""
    width, height = pixel
    original = np.argwhere(mask.repeat(height, 0).repeat(width, 1))
    hits = []
    for y, x in np.argwhere(values == values.max()):
        place = ((y + 0.5) * height, (x + 0.5) * width)
        hits.append(any(math.hypot(v + 0.5 - place[0], u + 0.5 - place[1]) <= tolerance for v, u in original))
    return sum(hits) / len(hits)


def point(tolerance: float, y: int, x: int, pixel: tuple[float, float] = (1.0, 1.0)) -> float:
    """The pointing game of a map of 4x4 with its maximum at (y,x), on an object that is the upper left pixel."""
    maps, masks = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    maps[0, y, x], masks[0, 0, 0] = 1, True
    return pointing(maps, masks, torch.tensor([pixel]).double(), tolerance).item()


def test_pointing_by_hand() -> None:
    # the maximum of MAP lies on a pixel of MASK
    assert pointing(MAP, MASK, torch.ones(1, 2), 0).item() == 1
    # that of its mirror image, at (0, 3), lies one column beside the pixel (0, 2)
    assert pointing(MAP.flip(2), MASK, torch.ones(1, 2), 0).item() == 0
    assert pointing(MAP.flip(2), MASK, torch.ones(1, 2), 1).item() == 1


def test_pointing_measures_euclidean_distance() -> None:
    # three columns and three rows away: 4.24, inside a square of 4, outside of a disc of 4
    assert point(4, 3, 3) == 0
    assert point(4.3, 3, 3) == 1
    assert point(3, 3, 0) == point(3, 0, 3) == 1
    assert point(2.9, 3, 0) == point(2.9, 0, 3) == 0


def test_exactly_the_tolerance_is_a_hit() -> None:
    # a pixel of 3x4 covers columns 0..2 and rows 0..3; the maximum's centre is at 3.5 * (3, 4) = (10.5, 14): 8 and 10.5
    assert point(math.sqrt(8**2 + 10.5**2), 3, 3, (3, 4)) == 1
    assert point(13.2, 3, 3, (3, 4)) == 0
    # 3.5 * 5 = 17.5, and the object's last pixel has its centre at 4.5
    assert point(13, 0, 3, (5, 1)) == point(13, 3, 0, (1, 5)) == 1
    assert point(12.999, 0, 3, (5, 1)) == point(12.999, 3, 0, (1, 5)) == 0
    maps, masks = torch.zeros(2, 16, 16), torch.zeros(2, 16, 16, dtype=torch.bool)
    maps[0, 12, 9] = maps[1, 0, 15] = masks[:, 0, 0] = 1  # 9, 12, 15; and 15 to the side
    assert pointing(maps, masks, torch.ones(2, 2), 15).tolist() == [1, 1]
    assert pointing(maps, masks, torch.ones(2, 2), 14.999).tolist() == [0, 0]


def test_pointing_in_a_squashed_image() -> None:
    # the original is wide: a pixel covers ten of its columns and two of its rows
    assert point(15, 3, 0, (10, 2)) == 1  # 6 - 0.5 down
    assert point(15, 0, 3, (10, 2)) == 0  # 30 - 4.5 to the side
    assert point(15, 0, 3, (2, 10)) == 1
    assert point(15, 3, 0, (2, 10)) == 0
    # in an enlarged one a pixel is less than one of the original's
    assert point(1.5, 0, 3, (0.5, 0.5)) == 1
    assert point(1.4, 0, 3, (0.5, 0.5)) == 0


def test_equal_maxima_share_the_hit() -> None:
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, 3] = maps[0, 0, 0] = maps[0, 3, 0] = maps[0, 3, 3] = 1
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 3, 3] = True
    assert pointing(maps, mask, torch.ones(1, 2), 0).item() == 1 / 4
    assert pointing(maps, mask, torch.ones(1, 2), 3).item() == 3 / 4  # all but the opposite corner
    assert pointing(maps, mask, torch.ones(1, 2), 3, "first").item() == 0
    assert maxima(maps, "first").nonzero().tolist() == [[0, 0, 0]]
    assert maxima(maps).sum() == 4


def test_a_constant_map_scores_the_pixels_that_would_hit() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = True
    # within 2: (0,0) (0,1) (0,2) (1,0) (1,1) (2,0)
    assert pointing(torch.full((1, 4, 4), 0.3), mask, torch.ones(1, 2), 2).item() == 6 / 16


def test_an_empty_mask_is_never_hit_and_a_full_one_always() -> None:
    empty = torch.zeros_like(MASK)
    for ties in ("expected", "first"):
        assert pointing(MAP, empty, torch.ones(1, 2), 100, ties).tolist() == [0]
        assert pointing(torch.ones_like(MAP), empty, torch.ones(1, 2), 100, ties).tolist() == [0]
        assert pointing(MAP, ~empty, torch.ones(1, 2), 0, ties).tolist() == [1]


@with_and_without_ties
@pytest.mark.parametrize("tolerance", [0.0, 2.5, 6.0])
def test_pointing_equals_naive_reference(levels: int | None, tolerance: float) -> None:
    maps, _ = random_case(10, levels, 12, 17)
    # single pixels, so that hits and misses both occur
    masks = torch.rand(maps.shape, generator=torch.Generator().manual_seed(1)) < 0.05
    masks[0] = False
    pixel = torch.tensor([[1, 1], [3, 1], [1, 5], [3, 3], [5, 3]], dtype=torch.float64)  # odd: centres on pixels
    arrays = zip(maps.numpy(), masks.numpy(), pixel.int().tolist(), strict=True)
    expected = [naive_pointing(values, mask, (w, h), tolerance) for values, mask, (w, h) in arrays]
    assert sum(expected) > 0 or tolerance < 6
    assert pointing(maps, masks, pixel, tolerance).tolist() == pytest.approx(expected)
    alone = [pointing(maps[p : p + 1], masks[p : p + 1], pixel[p : p + 1], tolerance).item() for p in range(5)]
    assert alone == pytest.approx(expected)


def test_more_equal_maxima_than_are_looked_at_together() -> None:
    side = math.isqrt(2 * POINTS) + 7
    masks = torch.zeros(2, side, side, dtype=torch.bool)
    masks[0, -1, -1] = masks[1, :, 0] = True
    found = pointing(torch.ones(2, side, side), masks, torch.tensor([[1.0, 1.0], [2.0, 3.0]]), 5.0)
    quarter = sum(u * u + v * v <= 25 for u in range(6) for v in range(6))
    assert found.tolist() == pytest.approx([quarter / side**2, 3 / side])  # columns at 0, 1.5 and 3.5; then 5.5


def test_gap_in_a_row_by_hand() -> None:
    mask = torch.tensor([[[0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]]).bool()
    assert row_gap(mask).tolist() == [[[1, 0, 1, 2, 1, 0], [math.inf] * 6]]


def test_pointing_component_uses_the_original_size() -> None:
    def value(sizes: Any, tolerance: float) -> float:
        explained = hand_explained(torch.zeros(4, 4), sizes=sizes)
        explained.maps = MAP.flip(2)  # its maximum is one column beside the nearest pixel
        return Pointing(tolerance)(explained).item()

    assert value(None, 1) == 1
    # pixels of 20x10 and of 10x20: 20 - 9.5 and 10 - 4.5 to the side
    assert value(torch.tensor([[80, 40]]), 10.4) == 0
    assert value(torch.tensor([[80, 40]]), 10.5) == 1
    assert value(torch.tensor([[40, 80]]), 5.4) == 0
    assert value(torch.tensor([[40, 80]]), 5.5) == 1


def test_pixels_of_pairs_in_images_of_different_sizes() -> None:
    images, pairs = make_batch(images=3, height=16, width=32)
    sizes = torch.tensor([[64, 32], [32, 16], [16, 64]])
    explained = Explained(make_classifier(), images, pairs, torch.zeros(6, 16, 32), torch.zeros(6), sizes)
    expected = [[2.0, 2.0], [1.0, 1.0], [0.5, 4.0]]
    assert explained.pixel.tolist() == [expected[i] for i in pairs.image.tolist()]


# ------------------------------------------------------------------------------------------------ difficult subset


def test_difficult_subset_by_hand() -> None:
    rows = pd.DataFrame(
        [
            ("a", 0, 0.10),  # small, beside another class
            ("a", 3, 0.60),  # large
            ("b", 0, 0.10),  # small, alone
            ("c", 1, 0.25),  # exactly a quarter is not below it
            ("c", 2, 0.2499),
        ],
        columns=["image_id", "class_id", "area"],
    )
    assert difficult_subset(rows).tolist() == [True, False, False, False, True]
    twice = pd.concat([rows.assign(run=0), rows.assign(run=1)], ignore_index=True)  # seeds are no classes
    assert difficult_subset(twice).tolist() == 2 * difficult_subset(rows).tolist()
    assert select(rows, "difficult subset").index.tolist() == [0, 4]
    assert select(rows).equals(rows)
    assert select(rows, "all").equals(rows)
    with pytest.raises(CamexpError, match="unknown subset 'easy'; one of all, difficult subset"):
        select(rows, "easy")
