"""Controls: maps that explain nothing, or everything."""

import math

import pytest
import torch
from conftest import make_batch, make_classifier

from camexp.errors import CamexpError
from camexp.methods.blur import gaussian_blur
from camexp.methods.edges import Edges, sobel_magnitude
from camexp.methods.fake_cam import FakeCAM
from camexp.methods.oracle import Oracle
from camexp.metrics import localization
from camexp.pairs import Pairs

CONTROLS = [FakeCAM(), Edges(), Edges(sigma=1.5), Oracle()]


@pytest.mark.parametrize("method", CONTROLS, ids=repr)
def test_controls_do_not_depend_on_batch_or_chunks(method):
    images, pairs = make_batch(3, 12, 20)
    maps = method(make_classifier(), images, pairs)
    assert maps.shape == (len(pairs), 12, 20)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert torch.equal(method(make_classifier(forward_batch=1), images, pairs), maps)
    for p, (i, name, c) in enumerate(pairs):
        single = Pairs(torch.tensor([0]), torch.tensor([c]), (name,), pairs.masks[p : p + 1])
        assert torch.allclose(method(make_classifier(), images[i : i + 1], single)[0], maps[p], atol=1e-6)


# -------------------------------------------------------------------------------------------------- Fake-CAM


def test_fake_cam_is_one_but_in_the_top_left_cell(classifier):
    images, pairs = make_batch(1, 4, 6)
    expected = torch.tensor(
        [
            [0.0, 0.0, 0.0, 1.0, 1.0, 1.0],
            [0.0, 0.0, 0.0, 1.0, 1.0, 1.0],
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        ]
    )
    assert torch.equal(FakeCAM(cells=2)(classifier, images, pairs)[0], expected)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (224, 301), (16, 16)])
def test_fake_cam_has_exactly_one_zero_cell(classifier, height, width):
    images, pairs = make_batch(1, height, width)
    maps = FakeCAM()(classifier, images, pairs)
    zeros = torch.nonzero(maps[0] == 0)
    assert len(zeros) == math.ceil(height / 7) * math.ceil(width / 7)
    assert [(y * 7 // height, x * 7 // width) for y, x in zeros.tolist()] == [(0, 0)] * len(zeros)
    assert maps.unique().tolist() == [0, 1]


def test_fake_cam_keeps_the_score_of_a_soft_masked_image(classifier):
    images, pairs = make_batch(3, 32, 32)
    maps = FakeCAM()(classifier, images, pairs)
    before = classifier.logits(images)[pairs.image, pairs.target]
    after = classifier.logits(images[pairs.image] * maps[:, None]).gather(1, pairs.target[:, None])[:, 0]
    inverse = classifier.logits(images[pairs.image] * (1 - maps[:, None])).gather(1, pairs.target[:, None])[:, 0]
    assert ((after - before).abs() < (inverse - before).abs()).all()


@pytest.mark.parametrize("cells", [1, 0, -3])
def test_fake_cam_needs_two_cells(cells):
    with pytest.raises(CamexpError, match=rf"method\.cells of fake_cam must be at least 2, not {cells}"):
        FakeCAM(cells=cells)


# ----------------------------------------------------------------------------------------------------- edges


def test_edges_of_a_vertical_step_by_hand():
    grey = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 4, 4)
    assert torch.equal(sobel_magnitude(grey)[0], torch.tensor([0.0, 4.0, 4.0, 0.0]).expand(4, 4))
    assert torch.equal(sobel_magnitude(grey.mT)[0], torch.tensor([[0.0], [4.0], [4.0], [0.0]]).expand(4, 4))


def test_edges_are_the_naive_sobel_operator(classifier):
    images, pairs = make_batch(2, 7, 10)
    kernel = [[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]
    maps = Edges()(classifier, images, pairs)
    for p, (i, _, _) in enumerate(pairs):
        grey = images[i].sum(0) / 3
        for y in range(7):
            for x in range(10):
                horizontal = vertical = 0.0
                for v in range(3):
                    for u in range(3):
                        value = float(grey[min(max(y + v - 1, 0), 6), min(max(x + u - 1, 0), 9)])
                        horizontal += kernel[v][u] * value
                        vertical += kernel[u][v] * value
                assert float(maps[p, y, x]) == pytest.approx(math.hypot(horizontal, vertical), abs=1e-5)


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_edges_are_zero_on_a_constant_image(classifier, sigma):
    images = torch.tensor([0.1, -1.7, 2.3]).view(1, 3, 1, 1).expand(1, 3, 9, 13)
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), ("constant",))
    assert torch.equal(Edges(sigma)(classifier, images, pairs), torch.zeros(1, 9, 13))


def test_edges_are_smoothed_by_sigma_pixels(classifier, batch):
    images, pairs = batch
    assert torch.equal(Edges(1.5)(classifier, images, pairs), gaussian_blur(Edges()(classifier, images, pairs), 1.5))


def test_edges_need_a_sigma_that_is_not_negative():
    with pytest.raises(CamexpError, match=r"method\.sigma of edges must be at least 0, not -1"):
        Edges(sigma=-1)


# ---------------------------------------------------------------------------------------------------- oracle


def test_oracle_is_the_ground_truth_and_bounds_the_metrics(classifier, batch):
    images, pairs = batch
    maps = Oracle()(classifier, images, pairs)
    assert torch.equal(maps, pairs.masks.float())
    ones = torch.ones(len(pairs), dtype=torch.float64)
    assert torch.equal(localization.ebpg(maps, pairs.masks), ones)
    assert torch.equal(localization.bbox(maps, pairs.masks), ones)
    best = torch.rand(50, *maps.shape)
    assert all((localization.miou(m, pairs.masks) <= localization.miou(maps, pairs.masks)).all() for m in best)


def test_oracle_needs_masks(classifier):
    images, pairs = make_batch()
    with pytest.raises(CamexpError, match=r"oracle .* needs pairs\.masks"):
        Oracle()(classifier, images, Pairs(pairs.image, pairs.target, pairs.image_ids))
