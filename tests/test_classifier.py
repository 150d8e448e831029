"""Classifier: passes, cut graphs, hooks, memory; and the pairs it is asked about."""

import copy
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import make_batch, make_classifier, tiny_network
from torch import Tensor, nn

from camexp.errors import CamexpError
from camexp.methods.ablationcam import AblationCAM
from camexp.methods.gradcam import GradCAM
from camexp.methods.guided_gradcam import GuidedGradCAM
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

CONV, CAM, HEAD = "0", "4", "7"
"""Paths in the tiny network: the first convolution, the second ReLU, the linear layer."""


def watch(classifier: Classifier, path: str) -> list[int]:
    """Batch sizes of the passes through a layer, from now on."""
    sizes: list[int] = []
    classifier.network.get_submodule(path).register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def plain_network() -> nn.Sequential:
    """The tiny network, never touched by a classifier and without in-place activations."""
    network = tiny_network().eval()
    network[1], network[4] = nn.ReLU(), nn.ReLU()
    return network


def plain_gradient(image: Tensor, target: int, cut: int) -> tuple[Tensor, Tensor]:
    """Activation and gradient of one image after `cut` modules, by plain autograd."""
    network = plain_network()
    activation = network[:cut](image[None]).detach().requires_grad_()
    network[cut:](activation)[0, target].backward()
    assert activation.grad is not None
    return activation.detach()[0], activation.grad[0]


# ----------------------------------------------------------------------------------------------- construction


def test_network_is_taken_over() -> None:
    network = tiny_network().train()
    classifier = make_classifier(network)
    assert not any(module.training for module in classifier.network.modules())
    assert not any(parameter.requires_grad for parameter in classifier.network.parameters())
    assert not any(getattr(module, "inplace", False) for module in classifier.network.modules())
    assert torch.equal(classifier.fill, torch.zeros(3, 1, 1))


def test_layers_are_found_by_role_and_by_path() -> None:
    classifier = make_classifier()
    assert classifier.cam_layer == "4"
    assert classifier.layer_names("sise") == ("1", "4")
    assert classifier.layer_names(["0", "3"]) == ("0", "3")


def test_unknown_layer_names_those_that_exist() -> None:
    with pytest.raises(CamexpError, match=r"no layer 'layer9'; it has 0, 1, 2, 3, 4, 5, 6, 7"):
        make_classifier(layers={"cam": "layer9"})
    with pytest.raises(CamexpError, match=r"no layer 'layer9'"):
        make_classifier(layers={"cam": "4", "sise": ["1", "layer9"]})
    images, pairs = make_batch()
    classifier = make_classifier()
    for call in (
        lambda: classifier.activations(images, ["layer9"]),
        lambda: classifier.capture(images, ["layer9"]),
        lambda: classifier.activations_and_gradients(images, pairs, "layer9"),
    ):
        with pytest.raises(CamexpError, match=r"no layer 'layer9'; it has 0, 1"):
            call()


def test_unknown_role_names_those_of_the_config() -> None:
    with pytest.raises(CamexpError, match=r"no layers 'ise'; model.layers has cam, sise"):
        make_classifier().layer_names("ise")


def test_unknown_confidence_is_refused() -> None:
    with pytest.raises(CamexpError, match=r"protocol.score must be one of softmax, sigmoid, logit, not 'prob'"):
        make_classifier(confidence="prob")


@pytest.mark.parametrize("forward_batch", [0, -1])
def test_forward_batch_must_be_positive(forward_batch: int) -> None:
    with pytest.raises(CamexpError, match=f"forward_batch must be at least 1, not {forward_batch}"):
        make_classifier(forward_batch=forward_batch)


# ------------------------------------------------------------------------------------------------- confidence


def test_confidence_is_over_the_classes() -> None:
    images, _ = make_batch()
    logits = plain_network()(images)
    exponents = logits.exp()
    expected = {
        "softmax": exponents / exponents.sum(1, keepdim=True),
        "sigmoid": 1 / (1 + (-logits).exp()),
        "logit": logits,
    }
    for name, values in expected.items():
        assert torch.allclose(make_classifier(confidence=name).scores(images), values, atol=1e-5)


@pytest.mark.parametrize("confidence", ["softmax", "sigmoid", "logit"])
def test_log_odds_have_the_direction_of_the_confidence(confidence: str) -> None:
    classifier = make_classifier(confidence=confidence)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 4, dtype=torch.float64, generator=generator).mul(3).requires_grad_()
    target = torch.randint(4, (20,), generator=generator)
    psi = classifier.confidence(logits).gather(1, target[:, None])[:, 0]
    (wanted,) = torch.autograd.grad(psi.sum(), logits)
    (given,) = torch.autograd.grad(classifier.log_odds(logits, target).sum(), logits)
    # d Psi = Psi (1 - Psi) d log-odds; the logit is its own
    factor = torch.ones_like(psi) if confidence == "logit" else psi * (1 - psi)
    assert torch.allclose(wanted, factor.detach()[:, None] * given, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("confidence", ["softmax", "sigmoid"])
def test_log_odds_survive_saturation(confidence: str) -> None:
    classifier = make_classifier(confidence=confidence)
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]], requires_grad=True)
    target = torch.tensor([0, 1])
    psi = classifier.confidence(logits).gather(1, target[:, None]).sum()
    assert not torch.autograd.grad(psi, logits)[0].any()  # what the log-odds are for
    (gradient,) = torch.autograd.grad(classifier.log_odds(logits, target).sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[[0, 1], target].tolist() == [1, 1]


def test_log_odds_of_a_single_class_is_its_logit() -> None:
    logits = torch.tensor([[2.0], [-3.0]])
    assert make_classifier().log_odds(logits, torch.tensor([0, 0])).tolist() == [2, -3]


# ---------------------------------------------------------------------------------------------- forward passes


@pytest.mark.parametrize("forward_batch", [1, 2, 32])
def test_forward_batch_changes_nothing(forward_batch: int) -> None:
    images, pairs = make_batch(images=5)
    one, other = make_classifier(forward_batch=forward_batch), make_classifier(forward_batch=3)
    sizes = watch(one, CONV)
    for first, second in (
        [c.logits(images) for c in (one, other)],
        [c.scores(images) for c in (one, other)],
        [torch.cat([a.flatten() for a in c.activations(images, ["1", "4"])]) for c in (one, other)],
        [torch.cat(c.activations_and_gradients(images, pairs, CAM)) for c in (one, other)],
        [c.input_gradients(images, pairs) for c in (one, other)],
    ):
        assert torch.allclose(first, second, rtol=1e-5, atol=1e-6)
    assert max(sizes) == min(forward_batch, len(images))


def test_logits_carry_no_graph() -> None:
    images, _ = make_batch()
    logits = make_classifier().logits(images.requires_grad_())
    assert not logits.requires_grad
    assert torch.allclose(logits, plain_network()(images), atol=1e-5)


def test_activations_are_the_outputs_of_the_layers_in_the_order_asked() -> None:
    images, _ = make_batch(height=12, width=20)
    network = plain_network()
    deep, shallow = make_classifier().activations(images, ["4", "1"])
    assert torch.allclose(shallow, network[:2](images), atol=1e-6)
    assert torch.allclose(deep, network[:5](images), atol=1e-6)
    assert not deep.requires_grad


# ------------------------------------------------------------------------------------------------ cutting graphs


def test_capture_cuts_the_graph_at_the_layer() -> None:
    images, _ = make_batch()
    classifier = make_classifier()
    classifier.network.requires_grad_(True)  # so that a graph before the layer would reach these
    ran: list[str] = []
    for path in (CONV, "2", "5", HEAD):
        classifier.network.get_submodule(path).register_full_backward_hook(lambda *_, path=path: ran.append(path))
    (activation,), logits = classifier.capture(images, [CAM])
    assert activation.is_leaf
    logits.sum().backward()
    assert ran == [HEAD, "5"]
    with_gradient = {name for name, p in classifier.network.named_parameters() if p.grad is not None}
    assert with_gradient == {"7.weight", "7.bias"}
    assert activation.grad is not None


def test_one_forward_per_image_and_one_backward_through_the_tail_per_pair() -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    head, tail = watch(classifier, CONV), watch(classifier, "5")
    backward: list[int] = []
    classifier.network.get_submodule("5").register_full_backward_hook(lambda m, g, out: backward.append(len(out[0])))
    activation, _ = classifier.activations_and_gradients(images, pairs, CAM)
    assert (sum(head), sum(tail), sum(backward)) == (3, 3, len(pairs))
    assert torch.allclose(activation, plain_network()[:5](images)[pairs.image], atol=1e-6)


def test_images_without_pairs_are_not_run() -> None:
    images, _ = make_batch()
    pairs = Pairs(torch.tensor([2, 0]), torch.tensor([1, 3]), ("a", "b", "c"))
    classifier = make_classifier()
    head = watch(classifier, CONV)
    (feature,), (gradient,) = classifier.features_and_gradients(images, pairs, [CAM])
    assert sum(head) == 2
    assert not feature[1].any()
    for p, (image, _, target) in enumerate(pairs):
        expected = plain_gradient(images[image], target, int(CAM) + 1)
        assert torch.allclose(feature[image], expected[0], atol=1e-6)
        assert torch.allclose(gradient[p], expected[1], atol=1e-6)


@pytest.mark.parametrize("layers", [["1", "4"], ["4", "1"]])
def test_capture_of_several_layers_begins_at_the_first_to_run(layers: list[str]) -> None:
    images, pairs = make_batch()
    pairs = Pairs(torch.arange(3), pairs.target[:3], pairs.image_ids)
    activations, logits = make_classifier().capture(images, layers)
    gradients = torch.autograd.grad(logits.gather(1, pairs.target[:, None]).sum(), activations)
    for layer, activation, gradient in zip(layers, activations, gradients, strict=True):
        assert activation.is_leaf == (layer == "1")
        for p, (image, _, target) in enumerate(pairs):
            expected = plain_gradient(images[image], target, int(layer) + 1)
            assert torch.allclose(activation[p], expected[0], atol=1e-6)
            assert torch.allclose(gradient[p], expected[1], atol=1e-6)


@pytest.mark.parametrize("layer", ["0", "1", "4", "5"])
def test_activations_and_gradients_equal_plain_autograd(layer: str) -> None:
    images, pairs = make_batch(height=12, width=20)
    activation, gradient = make_classifier().activations_and_gradients(images, pairs, layer)
    assert not activation.requires_grad
    for p, (image, _, target) in enumerate(pairs):
        expected = plain_gradient(images[image], target, int(layer) + 1)
        assert torch.allclose(activation[p], expected[0], atol=1e-6)
        assert torch.allclose(gradient[p], expected[1], atol=1e-6)


def test_input_gradients_equal_plain_autograd() -> None:
    images, pairs = make_batch(height=12, width=20)
    gradients = make_classifier().input_gradients(images, pairs)
    assert not images.requires_grad
    for p, (image, _, target) in enumerate(pairs):
        assert torch.allclose(gradients[p], plain_gradient(images[image], target, 0)[1], atol=1e-6)


def test_graphs_are_recorded_even_where_the_caller_records_none() -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    with torch.no_grad():
        (activation,), logits = classifier.capture(images, [CAM])
        inputs = classifier.input_gradients(images, pairs)
    assert torch.autograd.grad(logits.sum(), activation)[0].any()
    assert inputs.any()


@pytest.mark.parametrize("module", ["gradcam.GradCAM", "sise.SISE", "igcam.IntegratedGradCAM"])
def test_methods_work_where_the_caller_records_no_gradients(module: str) -> None:
    name, class_name = module.split(".")
    method = getattr(importlib.import_module(f"camexp.methods.{name}"), class_name)()
    images, pairs = make_batch()
    expected = method(make_classifier(), images, pairs)
    with torch.no_grad():
        torch.testing.assert_close(method(make_classifier(), images, pairs), expected)


class Bypassed(nn.Module):
    """A layer in a branch beside a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branch, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head((self.branch(images).relu() + images).mean((2, 3)))


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 1, 2], [0, 0]])
def test_layers_beside_a_skip_connection_are_captured_for_the_right_image(order: list[int]) -> None:
    classifier = make_classifier(Bypassed(), layers={"cam": "branch"})
    images, _ = make_batch()
    pairs = Pairs(torch.tensor(order), torch.arange(len(order)), ("a", "b", "c"))
    activation, gradient = classifier.activations_and_gradients(images, pairs, "branch")
    output = classifier.network.branch(images)
    torch.testing.assert_close(activation, output[pairs.image])
    pixels = output[0, 0].numel()
    expected = (output[pairs.image] > 0) * classifier.network.head.weight[pairs.target][:, :, None, None] / pixels
    torch.testing.assert_close(gradient, expected)


class FunctionalInPlace(nn.Module):
    """Changes the output of its layer in place by a function, as DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Conv2d(3, 5, 1), nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.relu(self.layer(images), inplace=True).mean((2, 3)))


def test_functional_in_place_operations_do_not_overwrite_captured_activations() -> None:
    classifier = make_classifier(FunctionalInPlace(), layers={"cam": "layer"})
    images, pairs = make_batch()
    activation, gradient = classifier.activations_and_gradients(images, pairs, "layer")
    expected = classifier.network.layer(images)
    assert (expected < 0).any()
    torch.testing.assert_close(activation, expected[pairs.image])
    torch.testing.assert_close(classifier.activations(images, ["layer"])[0], expected)
    assert gradient[expected[pairs.image] < 0].eq(0).all()


def test_in_place_activations_do_not_overwrite_captured_ones() -> None:
    images, pairs = make_batch()
    network = tiny_network()  # its ReLUs are in place
    before = copy.deepcopy(network[0]).eval()(images)
    assert (before < 0).any()
    classifier = make_classifier(network)
    (activation,) = classifier.activations(images, [CONV])
    assert torch.allclose(activation, before, atol=1e-6)
    activation, gradient = classifier.activations_and_gradients(images, pairs, CONV)
    without = make_classifier(plain_network()).activations_and_gradients(images, pairs, CONV)
    assert torch.equal(activation, without[0])
    assert torch.equal(gradient, without[1])
    assert torch.allclose(activation, before[pairs.image], atol=1e-6)


# ------------------------------------------------------------------------------------------------------- hooks


class Broken(nn.Module):
    """Raises what it is given for batches larger than `limit`."""

    def __init__(self, error: Callable[[], Exception], limit: int = 0):
        super().__init__()
        self.error, self.limit = error, limit

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            raise self.error()
        return x


def broken_network(error: Callable[[], Exception], limit: int = 0) -> nn.Sequential:
    """The tiny network with a module that raises behind the CAM layer."""
    network = tiny_network()
    return nn.Sequential(*network[:5], Broken(error, limit), *network[5:])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_hooks_are_gone_after_an_exception(error: type[Exception]) -> None:
    images, pairs = make_batch()
    classifier = make_classifier(broken_network(error))
    for call in (
        lambda: classifier.activations(images, ["1", CAM]),
        lambda: classifier.capture(images, ["1", CAM]),
        lambda: classifier.activations_and_gradients(images, pairs, CAM),
    ):
        with pytest.raises(error):
            call()
        assert not any(module._forward_hooks for module in classifier.network.modules())
        assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------------------ memory


def cuda_error() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cpu_error() -> Exception:
    try:
        torch.empty(1 << 55, dtype=torch.uint8)  # in the words of this system
    except RuntimeError as error:
        return error
    raise AssertionError("it has so much")


@pytest.mark.parametrize("error", [cuda_error, cpu_error])
def test_forward_batch_is_halved_when_memory_runs_out(error: Callable[[], Exception]) -> None:
    images, pairs = make_batch(images=7)
    for call in (
        lambda c: c.scores(images),
        lambda c: torch.cat([a.flatten() for a in c.activations(images, ["1", CAM])]),
        lambda c: torch.cat(c.activations_and_gradients(images, pairs, CAM)),
        lambda c: c.input_gradients(images, pairs),
    ):
        classifier = make_classifier(broken_network(error, limit=2), forward_batch=9)
        assert torch.allclose(call(classifier), call(make_classifier()), rtol=1e-5, atol=1e-6)
        assert classifier.forward_batch == 2  # 9, 4, 2


def test_forward_batch_stays_halved() -> None:
    images, _ = make_batch(images=7)
    classifier = make_classifier(broken_network(cuda_error, limit=2), forward_batch=4)
    sizes = watch(classifier, CONV)
    classifier.scores(images)
    classifier.scores(images)
    assert sizes == [4, 2, 2, 2, 1, 2, 2, 2, 1]


def test_out_of_memory_with_a_single_image_is_raised() -> None:
    images, _ = make_batch()
    classifier = make_classifier(broken_network(cuda_error), forward_batch=8)
    sizes = watch(classifier, CONV)
    with pytest.raises(torch.OutOfMemoryError):
        classifier.scores(images)
    assert sizes == [3, 3, 2, 1]  # at forward_batch 8, 4, 2, 1


def test_other_errors_are_not_tried_again() -> None:
    images, _ = make_batch()
    classifier = make_classifier(broken_network(lambda: RuntimeError("mat1 and mat2")), forward_batch=8)
    sizes = watch(classifier, CONV)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        classifier.scores(images)
    assert sizes == [3]
    assert classifier.forward_batch == 8


def test_chunks_cover_all_rows_in_order() -> None:
    classifier = make_classifier(forward_batch=3)
    assert classifier.in_chunks(lambda rows: (rows.start, rows.stop), 7) == [(0, 3), (3, 6), (6, 7)]
    assert classifier.in_chunks(lambda rows: rows, 0) == []


# ------------------------------------------------------------------------------------------------------- pairs


def hand_pairs() -> Pairs:
    """Four pairs over three images."""
    masks = torch.arange(4)[:, None, None].expand(4, 2, 2) % 2 == 1
    return Pairs(torch.tensor([2, 0, 0, 2]), torch.tensor([5, 6, 7, 8]), ("a", "b", "c"), masks)


def test_pairs_are_counted_and_walked_over() -> None:
    assert len(hand_pairs()) == 4
    assert list(hand_pairs()) == [(2, "c", 5), (0, "a", 6), (0, "a", 7), (2, "c", 8)]


@pytest.mark.parametrize(("image", "target"), [([0, 1], [0]), ([[0]], [[0]])])
def test_pairs_must_be_two_lists_of_one_length(image: list, target: list) -> None:
    with pytest.raises(ValueError, match=r"must both be \(P,\)"):
        Pairs(torch.tensor(image), torch.tensor(target), ("a", "b"))


@pytest.mark.parametrize("image", [[2], [-1], [0, 5]])
def test_pairs_must_index_the_images(image: list[int]) -> None:
    with pytest.raises(ValueError, match="must index the 2 images"):
        Pairs(torch.tensor(image), torch.zeros(len(image), dtype=torch.long), ("a", "b"))


def test_no_pairs_are_allowed() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    assert list(Pairs(empty, empty, ())) == []


def test_chunk_takes_some_pairs_with_the_images_that_they_need() -> None:
    images, chunk = hand_pairs().chunk(slice(1, 4))
    assert images.tolist() == [0, 2]
    assert list(chunk) == [(0, "a", 6), (0, "a", 7), (1, "c", 8)]
    assert chunk.masks is not None
    assert chunk.masks[:, 0, 0].tolist() == [True, False, True]
    images, chunk = hand_pairs().chunk(slice(0, 1))
    assert images.tolist() == [2]
    assert list(chunk) == [(0, "c", 5)]


def test_tile_repeats_the_pairs_over_copies_of_the_batch() -> None:
    tiled = hand_pairs().tile(2)
    assert tiled.image.tolist() == [2, 0, 0, 2, 5, 3, 3, 5]
    assert tiled.target.tolist() == [5, 6, 7, 8] * 2
    assert tiled.image_ids == ("a", "b", "c", "a", "b", "c")
    assert [i for _, i, _ in tiled] == [i for _, i, _ in hand_pairs()] * 2
    assert list(hand_pairs().tile(1)) == list(hand_pairs())


def test_pairs_move_with_everything_they_hold() -> None:
    pairs = hand_pairs()
    moved = pairs.to(torch.device("cpu"))
    assert pairs.masks is not None
    assert moved.masks is not None
    assert list(moved) == list(pairs)
    assert torch.equal(moved.masks, pairs.masks)
    assert Pairs(pairs.image, pairs.target, pairs.image_ids).to(torch.device("cpu")).masks is None


class ReadsAgain(nn.Module):
    """Needs what its first activation was given, and says so; its second one may work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.first, self.second = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer(images)
        return self.second(self.first(x) - x).mean((2, 3))


def test_only_activations_that_may_work_in_place_do() -> None:
    images, _ = make_batch()
    network = ReadsAgain()
    with torch.no_grad():
        expected = network(images)
    classifier = make_classifier(network, layers={"cam": "layer"})
    torch.testing.assert_close(classifier.logits(images), expected)


# -------------------------------------------------------------------------------- networks with habits of their own


class Centring(nn.Module):
    """Centres its images, in their own memory or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_place, self.layer = in_place, nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        centred = images.sub_(0.5).div_(0.2) if self.in_place else (images - 0.5) / 0.2
        return self.layer(centred).relu().mean((2, 3))


@pytest.mark.parametrize("call", ["scores", "input_gradients", "activations_and_gradients"])
def test_images_stay_what_they_are_in_networks_that_write_over_them(call: str) -> None:
    images, pairs = make_batch()
    images = images.contiguous(memory_format=torch.channels_last)
    before, found = images.clone(), []
    more = {"scores": (), "input_gradients": (pairs,), "activations_and_gradients": (pairs, "layer")}[call]
    for in_place in (False, True, True):
        classifier = make_classifier(Centring(in_place), layers={"cam": "layer"})
        found.append(getattr(classifier, call)(images, *more))
        assert torch.equal(images, before)
        found.append(getattr(classifier, call)(images, *more))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


class Preactivated(nn.Module):
    """A residual block whose activation overwrites what the shortcut reads, if it works in place."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.stem, self.relu, self.layer = nn.Conv2d(3, 4, 1), nn.ReLU(in_place), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return (x + self.layer(self.relu(x))).mean((2, 3))


@pytest.mark.parametrize("call", ["scores", "input_gradients", "capture"])
def test_networks_that_are_two_functions_are_refused(call: str) -> None:
    images, pairs = make_batch()
    more = {"scores": (), "input_gradients": (pairs,), "capture": (["layer"],)}[call]
    for in_place in (False, True):
        classifier = make_classifier(Preactivated(in_place), layers={"cam": "layer"})
        if not in_place:
            getattr(classifier, call)(images, *more)
            continue
        for _ in range(2):
            with pytest.raises(CamexpError, match="in-place activations has overwritten"):
                getattr(classifier, call)(images, *more)


def test_networks_that_draw_numbers_are_one_function() -> None:
    images, _ = make_batch()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), Drawing(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier, state = make_classifier(network, layers={"cam": "0"}), torch.get_rng_state()
    classifier._get_to_know(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(classifier.logits(images)) == len(images)


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, training=True)


class Viewing(nn.Module):
    """Flattens maps as only the usual order of memory allows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer(images)
        return maps.view(len(maps), -1)


def test_view_of_maps_is_told_from_other_errors() -> None:
    images, _ = make_batch()
    with pytest.raises(CamexpError, match="channels_last=false"):
        make_classifier(Viewing(), layers={"cam": "layer"}).logits(images)
    assert len(make_classifier(Viewing(), layers={"cam": "layer"}, channels_last=False).logits(images)) == len(images)


class Odd(nn.Module):
    """Layers that run twice, that do not run, and that put out several things."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 1)])
        self.relu, self.pair = nn.ReLU(), Pair()

    def forward(self, images: Tensor) -> Tensor:
        one, other = self.pair(self.relu(self.stages[0](self.relu(images))))
        return (one + other).mean((2, 3))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, 2 * x


@pytest.mark.parametrize(
    ("layer", "reason"),
    [("relu", "runs more than once"), ("stages", "does not run"), ("pair", "puts out a tuple, not a tensor")],
)
@pytest.mark.parametrize(
    "method", [GradCAM(), AblationCAM(), GuidedGradCAM()], ids=lambda method: type(method).__name__
)
def test_layers_without_one_output_are_refused(method: Any, layer: str, reason: str) -> None:
    images, pairs = make_batch()
    with pytest.raises(CamexpError, match=f"layer '{layer}' {reason}"):
        method(make_classifier(Odd(), layers={"cam": layer}), images, pairs)
    with pytest.raises(CamexpError, match=f"layer '{layer}' {reason}"):
        make_classifier(Odd(), layers={"cam": layer}).activations(images, [layer])
