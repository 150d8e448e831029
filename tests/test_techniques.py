"""Techniques that a run switches on and off: the numbers stay, and each does what it is named for."""

import gc
import subprocess
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Operations, make_batch, make_classifier
from torch import Tensor, nn

from camexp import config, runner
from camexp.bench import guard, paths, scenes, techniques
from camexp.bench.comparison import Technique, line, measure
from camexp.bench.scenes import Scenes
from camexp.bench.subject import Cell
from camexp.bench.techniques import MEMORY, TECHNIQUES, Workbench, batches
from camexp.bench.watch import Trial
from camexp.errors import CamexpError
from camexp.explain import Explainer, classes_apart
from camexp.identity import identify
from camexp.methods.base import Method
from camexp.methods.gradcam import GradCAM
from camexp.methods.oracle import Oracle
from camexp.methods.rise import RISE
from camexp.methods.scorecam import ScoreCAM
from camexp.methods.sise import SISE
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

CPU = torch.device("cpu")
TINY = ("model.width=0.0625", "protocol.size=64", "device=cpu")
SWITCHES = (
    "fold_batch_norms",
    "channels_last",
    "packed_weights",
    "winograd",
    "fused_activations",
    "onednn_linear",
    "inference_mode",
    "tail_backward",
    "share_classes",
    "keep_freed_memory",
)
OF_CLASSIFIER = SWITCHES[1:8]
METHODS = (GradCAM(), GradCAM("1"), SISE(), RISE(masks=20), ScoreCAM())


# ------------------------------------------------------------------------------------------- the classifier's


@pytest.mark.parametrize("switch", OF_CLASSIFIER)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_maps_stay(method: Method, switch: str) -> None:
    images, pairs = make_batch(height=12, width=20)
    expected = method(make_classifier(), images, pairs)
    found = method(make_classifier(**{switch: False}), images, pairs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_network_is_as_it_was_for_the_next_classifier() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12 * 20, 2048), nn.Linear(2048, 4)
    )
    own = nn.ReLU()
    own.forward = torch.relu  # type: ignore[method-assign, assignment]
    network.append(own)
    images, _ = make_batch(height=12, width=20)
    logits = []
    for wanted in (True, False, True):
        switches = dict.fromkeys(("packed_weights", "winograd", "fused_activations", "onednn_linear"), wanted)
        classifier = Classifier(network, {"cam": "1"}, **switches)  # type: ignore[arg-type]
        classifier.logits(images[:1])  # which begins with a look at the network
        with Operations() as operations:
            logits.append(classifier.logits(images))
        assert (operations.count("mkldnn::_") + operations.count("mkldnn._") > 0) == wanted
        assert operations.count("relu") == 1 + (not wanted)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(logits[0], logits[2])


def test_what_is_not_a_number_stays_so_for_every_classifier_of_a_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12 * 20, 4))
    images, _ = make_batch(height=12, width=20)
    wrong = images.clone()
    wrong[0, 0, 3] = torch.nan
    first, second = (Classifier(network, {"cam": "1"}) for _ in range(2))
    for classifier in (first, second, first):
        assert classifier.logits(wrong)[0].isnan().all()
        assert classifier.logits(images).isfinite().all()


@contextmanager
def backward_rows(classifier: Classifier, path: str) -> Iterator[list[int]]:
    """Rows of every gradient at the output of a layer while the context lasts."""
    rows: list[int] = []

    def attach(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: rows.append(len(gradient)))

    handle = classifier.network.get_submodule(path).register_forward_hook(attach)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize(("tail_backward", "at_the_start"), [(True, 0), (False, 6)])
def test_backward_pass_ends_at_the_layer_or_at_the_image(tail_backward: bool, at_the_start: int) -> None:
    images, pairs = make_batch()
    classifier = make_classifier(tail_backward=tail_backward)
    with backward_rows(classifier, "0") as start, backward_rows(classifier, "5") as tail:
        classifier.activations_and_gradients(images, pairs, "4")
    assert (sum(start), sum(tail)) == (at_the_start, len(pairs))
    assert not images.requires_grad


def test_a_graph_from_the_image_serves_several_backward_passes() -> None:
    images, _ = make_batch()
    classifier = make_classifier(tail_backward=False)
    with backward_rows(classifier, "0") as start:
        activations, logits = classifier.capture(images, ["1", "4"])
        for c in range(3):
            torch.autograd.grad(logits[:, c].sum(), activations, retain_graph=True)
    assert start == [3, 3, 3]


def test_a_graph_from_the_image_is_freed_with_its_activations() -> None:
    images, _ = make_batch()
    gc.disable()
    try:
        (activation,), logits = make_classifier(tail_backward=False).capture(images, ["4"])
        assert activation._backward_hooks is not None
        (hook,) = activation._backward_hooks.values()
        alive = weakref.ref(hook)
        del activation, logits, hook
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format_of_images_and_weights(channels_last: bool) -> None:
    images, _ = make_batch()
    classifier = make_classifier(channels_last=channels_last)
    seen: list[Tensor] = []
    classifier.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    classifier.logits(images.contiguous(memory_format=torch.channels_last))
    for tensor in (seen[0], classifier.network[3].weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert tensor.is_contiguous() != channels_last


@pytest.mark.parametrize("inference_mode", [True, False])
def test_inference_mode_is_inside_and_callers_see_nothing_of_it(inference_mode: bool) -> None:
    images, _ = make_batch()
    classifier = make_classifier(inference_mode=inference_mode)
    seen: list[bool] = []
    classifier.network.register_forward_pre_hook(lambda module, args: seen.append(torch.is_inference_mode_enabled()))
    logits = classifier.logits(images.requires_grad_())
    assert seen == [inference_mode]
    assert not any((logits.is_inference(), logits.requires_grad, torch.is_inference_mode_enabled()))
    factor = torch.ones(4, requires_grad=True)
    (logits * factor).sum().backward()  # keeps the logits for the backward pass
    torch.testing.assert_close(factor.grad, logits.sum(0))
    logits += 1


# -------------------------------------------------------------------------------------------------- classes


def test_classes_apart_by_hand() -> None:
    pairs = Pairs(torch.tensor([2, 0, 2, 1, 2, 0]), torch.arange(6), ("a", "b", "c"))
    assert [some.tolist() for some in classes_apart(pairs)] == [[0, 1, 3], [2, 5], [4]]


@pytest.mark.parametrize("method", [*METHODS, Oracle()], ids=str)
def test_maps_of_classes_apart_come_in_the_order_of_the_pairs(method: Method) -> None:
    images, pairs = make_batch()
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    assert pairs.masks is not None
    mixed = Pairs(pairs.image[order], pairs.target[order], pairs.image_ids, pairs.masks[order])
    expected = Explainer(make_classifier(), method).maps(images, mixed)
    found = Explainer(make_classifier(), method, share_classes=False).maps(images, mixed)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("share", "calls"), [(True, [(3, 6)]), (False, [(3, 3), (2, 2), (1, 1)])])
def test_classes_apart_are_called_one_by_one_with_their_images(share: bool, calls: list[tuple[int, int]]) -> None:
    images, pairs = make_batch()  # one, two and three classes
    seen: list[tuple[int, int]] = []

    def method(classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        seen.append((len(images), len(pairs)))
        return images.new_zeros(len(pairs), *images.shape[2:])

    explanation = Explainer(make_classifier(), method, share).explain_stack([], images, pairs)
    assert explanation.maps.shape == (6, 16, 16)
    assert seen == calls


# --------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("switch", SWITCHES)
def test_techniques_are_on_by_default_and_no_part_of_the_identity(switch: str, data: str) -> None:
    assert config.compose_config([])[switch] is True
    assert identity(f"{switch}=false", data) == identity(f"{switch}=true", data)


def identity(*options: str) -> dict[str, Any]:
    cfg = config.compose_config([*options, "dataset.images=4"])
    return identify(cfg, config.make_dataset(cfg), "weights")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data_dir={tmp_path_factory.mktemp('data')}"


@pytest.mark.parametrize("on", [True, False])
def test_switches_reach_the_classifier(on: bool) -> None:
    options = [f"{switch}={on}" for switch in OF_CLASSIFIER]
    cfg = config.compose_config([*TINY, "dataset=voc", "model.checkpoint=random", *options])
    classifier, _ = config.make_classifier(cfg, 4)
    expected = torch.channels_last if on else torch.contiguous_format
    assert (classifier.memory_format, classifier.inference_mode, classifier.tail_backward) == (expected, on, on)


@pytest.mark.parametrize("on", [True, False])
def test_switches_reach_the_run(on: bool, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    shared: list[bool] = []

    def make(classifier: Classifier, method: Method, share_classes: bool) -> Explainer:
        shared.append(share_classes)
        return Explainer(classifier, method, share_classes)

    monkeypatch.setattr(runner, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(runner, "Explainer", make)
    options = [f"{switch}={on}" for switch in ("share_classes", "keep_freed_memory")]
    more = ["method=random", "dataset.images=4", "limit=2", "runtime.trials=1", f"output={tmp_path / 'run'}"]
    runner.execute(config.compose_config([data, *TINY, "model.checkpoint=random", *options, *more]))
    assert (bool(kept), shared) == (on, [on])


# ----------------------------------------------------------------------------------------------- the bench's


def keys(switches: Sequence[str]) -> set[str]:
    return {switch.partition("=")[0] for switch in switches}


MEASURED = (*TECHNIQUES, scenes.LOADING, scenes.METRICS, MEMORY)


def test_every_switch_is_measured_and_guarded() -> None:
    assert keys([technique.switch for technique in MEASURED]) >= set(SWITCHES)
    guarded = keys([option for path in paths.PATHS for option in path.options])
    no_arithmetic = keys([scenes.LOADING.switch, MEMORY.switch])
    assert guarded == keys([technique.switch for technique in MEASURED]) - no_arithmetic
    assert keys(paths.PLAIN) >= guarded


@pytest.mark.parametrize("technique", MEASURED, ids=lambda technique: technique.switch)
def test_switches_change_the_default(technique: Technique) -> None:
    key, _, value = technique.switch.partition("=")
    default = config.compose_config([])[key]
    assert str(default).lower() != value
    if value in ("true", "false"):
        assert (default is True) == technique.default


@pytest.mark.parametrize(
    ("name", "fewer"), [("gradcam", False), ("ada_sise", False), ("sise", True), ("occlusion", True)]
)
def test_methods_are_guarded_with_fewer_passes(name: str, fewer: bool, data: str) -> None:
    short, full = (guard.Guard([data, "dataset.images=4"], full).method(name) for full in (False, True))
    assert (short != full) == fewer


def test_line_by_hand() -> None:
    trials = [(Trial(4.0, False), Trial(2.0, False)), (Trial(6.0, False), Trial(2.0, True))]
    found = line(Technique("folded", "fold=false"), "rise resnet50 2x1", 2, trials)
    assert found == ["folded", "fold=false", "rise resnet50 2x1 (extrapolated)", "2500", "1000", "2.5", "2-3"]


def test_batches_of_a_call() -> None:
    images, pairs = make_batch()
    found = list(batches(images, pairs, 2))
    assert [(len(some), list(own)) for some, own in found] == [
        (2, [(i, name, target) for i, name, target in pairs if i < 2]),
        (1, [(0, name, target) for i, name, target in pairs if i == 2]),
    ]
    assert torch.equal(torch.cat([some for some, _ in found]), images)


@pytest.mark.parametrize(
    "switch", ["share_classes=false", "batch_size=1", "tail_backward=false", "channels_last=false"]
)
def test_ways_make_the_same_maps_in_the_stated_passes(switch: str) -> None:
    bench = Workbench("resnet50", TINY, images=2)
    cell = Cell("gradcam", "resnet50", 2, 3)
    usual, switched = bench.way(cell), bench.way(cell, switch)
    rows: list[int] = []
    with switched.listening(rows.append):
        found = switched.call()
    assert sum(rows) == switched.course.rows
    torch.testing.assert_close(torch.cat(found), torch.cat(usual.call()), rtol=1e-3, atol=1e-4)  # type: ignore[call-overload]


def test_comparisons_on_random_images(monkeypatch: pytest.MonkeyPatch) -> None:
    off, on = Technique("a", "inference_mode=false"), Technique("b", "precision=bf16", "gradcam", default=False)
    nowhere = Technique("c", "compile=true", possible=lambda device: False)
    monkeypatch.setattr("camexp.bench.techniques.TECHNIQUES", (off, on, nowhere))
    bench = Workbench("resnet50", TINY, images=2)
    first, second = bench.comparisons()
    assert (first.measured_with, first.maps) == ("rise resnet50 2x1", 2)
    with first.without.listening(lambda rows: None):  # another classifier than the usual one's
        assert bench.subject.classifier.on_forward.__module__ == "camexp.models.classifier"
    with second.without.listening(len):  # type: ignore[arg-type]
        assert bench.subject.classifier.on_forward is len
    found = measure(first, CPU, rounds=1, seconds=0)
    assert found[:3] == ["a", "inference_mode=false", "rise resnet50 2x1 (extrapolated)"]
    assert all(float(number) > 0 for number in found[3:6])


@pytest.mark.parametrize(("workers", "shown"), [("1", ["workers=0", "forward_batch=1"]), ("0", ["forward_batch=1"])])
def test_comparisons_on_scenes(data: str, workers: str, shown: list[str]) -> None:
    options = (data, *TINY[1:], "dataset.images=4", "limit=2", f"workers={workers}")
    found = [measure(comparison, CPU, rounds=1) for comparison in Scenes(options).comparisons()]
    assert [line[1] for line in found] == shown  # where nothing is loaded ahead, loading is not compared with itself
    assert all(float(number) > 0 for line in found for number in line[3:6])


@pytest.mark.parametrize("on", [True, False])
def test_the_process_that_times_passes(on: bool, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr("camexp.memory.keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr("sys.argv", ["-c", "resnet50", "1", *TINY, f"keep_freed_memory={on}"])
    exec(techniques.PASSES, {})
    assert float(capsys.readouterr().out) > 0
    assert bool(kept) == on


def test_kept_memory_is_timed_without_and_with(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess:
        commands.append(command[3:])
        return subprocess.CompletedProcess(command, 0, stdout="6.0" if len(commands) % 2 else "4.0")

    monkeypatch.setattr(techniques.subprocess, "run", run)
    found = techniques.kept_memory("vgg16", 2, ["device=cpu"], rounds=1)
    assert commands == [["vgg16", "2", "device=cpu", "keep_freed_memory=false"], ["vgg16", "2", "device=cpu"]]
    assert found[1:] == ["keep_freed_memory=false", "forward pass vgg16 2x1", "3000", "2000", "1.5", "1.5-1.5"]


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(techniques, "PASSES", "raise SystemExit('no network')")
    with pytest.raises(CamexpError, match="kept memory failed:\nno network"):
        techniques.kept_memory("vgg16", 1, (), rounds=1)
