"""The bench: what it counts, how it divides time, extrapolates, resumes and reports; nothing here measures time."""

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_classifier, tiny_network
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from camexp import config
from camexp.bench import main, scaling, table
from camexp.bench.cells import COLUMNS, METHODS, Budget, Found, all_cells, cell_row, compete, weight
from camexp.bench.floor import Rates, Stopwatch
from camexp.bench.guard import cosine
from camexp.bench.libraries import separate_relus
from camexp.bench.page import headline, page, write_page
from camexp.bench.peer import Asked, Case, Networks, Peer
from camexp.bench.peers import PEERS
from camexp.bench.subject import BEFORE, Cell, Subject
from camexp.bench.targets import TARGETS, Target, judge
from camexp.bench.watch import (
    Contender,
    Course,
    Enough,
    PeakMemory,
    Trial,
    Watch,
    allocated,
    rehearse,
    rows_of,
    timed,
)
from camexp.bench.work import MASKS, NEEDED, Shape, Work, needed
from camexp.errors import CamexpError
from camexp.methods.base import scale_to_unit
from camexp.methods.rise import RISE
from camexp.pairs import Pairs
from camexp.records import read_csv, to_csv

SMALL = {"masks": 10, "m": 3, "steps": 3, "samples": 3, "iterations": 2, "size": 8}
CPU = torch.device("cpu")
TINY = ("model.width=0.0625", "protocol.size=64", "device=cpu")


def small_method(name: str, **more: Any) -> Any:
    """The method as configured, with cheap parameters."""
    method: Any = config.make_method(config.compose_config([f"method={name}"]))
    names = {field.name for field in dataclasses.fields(method)}
    changes = {key: value for key, value in {**SMALL, "stride": 4, **more}.items() if key in names}
    return dataclasses.replace(method, **changes)


def uniform_batch(images: int = 2, classes: int = 3) -> tuple[Tensor, Pairs]:
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(images, 3, 16, 16, generator=generator)
    target = torch.stack([torch.randperm(4, generator=generator)[:classes] for _ in range(images)])
    ids = tuple(f"image{i}" for i in range(images))
    return batch, Pairs(torch.arange(images).repeat_interleave(classes), target.flatten(), ids)


# ------------------------------------------------------------------------------------- passes that are made


class Rows(TorchDispatchMode):
    """Rows through the first convolution and the linear layer of a network, forth and back, as they are computed."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.first, self.linear = (network.get_submodule(name).weight.data_ptr() for name in ("0", "7"))
        self.forward = self.backward = self.linear_forward = self.linear_backward = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if name.startswith(("aten.convolution.", "aten.conv2d.")) and args[1].data_ptr() == self.first:
            self.forward += len(args[0])
        if name.startswith("aten.convolution_backward.") and args[2].data_ptr() == self.first:
            self.backward += len(args[0])
        if name.startswith("aten.addmm.") and args[2].data_ptr() == self.linear:
            self.linear_forward += len(args[1])
        if name.startswith("aten.linear.") and args[1].data_ptr() == self.linear:  # in inference mode
            self.linear_forward += len(args[0])
        if name.startswith("aten.mm.") and args[1].data_ptr() == self.linear and len(args[1]) == 4:  # (C, K), as it is
            self.linear_backward += len(args[0])
        return function(*args, **(kwargs or {}))


def counted(name: str, images: int, classes: int) -> tuple[Rows, Any, Shape]:
    """What a call of the method computes, the method and the call's shape."""
    method, classifier = small_method(name), make_classifier(packed_weights=False)  # the watch knows plain ones
    batch, pairs = uniform_batch(images, classes)
    masks = MASKS[name](method, classifier, batch, pairs) if name in MASKS else 0
    classifier.logits(batch[:1])  # which begins with a look at the network, with one image
    with Rows(classifier.network) as rows:
        method(classifier, batch, pairs)
    return rows, method, Shape(images, classes, 16, 16, masks)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_no_pass_is_made_that_the_mathematics_does_not_need(name: str, classes: int) -> None:
    """Not one more than the floor counts."""
    rows, method, shape = counted(name, 2, classes)
    work = needed(name, method, shape)
    assert rows.forward == work.forward
    assert rows.backward == work.backward
    assert rows.linear_backward == work.backward + work.layers_backward + work.tail_backward


def test_ablations_run_through_the_tail_alone() -> None:
    rows, method, shape = counted("ablationcam", 2, 3)
    assert shape.masks > 0
    assert rows.forward == 2
    assert rows.linear_forward == 2 + needed("ablationcam", method, shape).tail + 1  # to see what the tail reads


@pytest.mark.parametrize("name", METHODS)
def test_course_is_that_of_the_call_and_its_uniform_part_begins_with_a_full_pass(name: str) -> None:
    """A call is timed by a part of it: a smaller first pass would speak for all the others."""
    subject = Subject("resnet50", (*TINY, "forward_batch=4"))
    cell, method = Cell(name, "resnet50", 2, 3), small_method(name, size=32, stride=16)
    contender = subject.ours(cell, method, subject.shape(cell, method))
    passes: list[int] = []
    with contender.listening(passes.append):
        contender.call()
    assert sum(passes) == contender.course.rows
    begun = [0, *accumulate(passes)].index(contender.course.before)
    assert passes[begun] > max(passes[begun:]) / 2  # SISE's layers have few maps here


def test_every_method_but_the_controls_has_its_work() -> None:
    assert set(NEEDED) == set(METHODS)
    assert set(MASKS) <= set(METHODS)
    assert set(BEFORE) <= set(METHODS)
    assert set(PEERS) <= set(METHODS)


def test_work_by_hand() -> None:
    shape = Shape(images=16, classes=3, masks=100)
    assert needed("gradcam", None, shape) == Work(forward=16, tail_backward=48)
    assert needed("scorecam", None, shape) == Work(forward=116)
    assert needed("rise", RISE(masks=50), shape) == Work(forward=800)
    occlusion = config.make_method(config.compose_config(["method=occlusion"]))
    assert needed("occlusion", occlusion, shape) == Work(forward=16 * (1 + 13 * 13))  # 169 windows, as it says itself


def test_floor_by_hand() -> None:
    rates = Rates(forward=0.1, backward=0.2, layers_backward=0.15, tail=0.01, tail_backward=0.02)
    work = Work(forward=10, backward=3, layers_backward=2, tail=100, tail_backward=5)
    assert rates.floor(work) == pytest.approx(1.0 + 0.6 + 0.3 + 1.0 + 0.1)
    assert rates.scaled(2).floor(work) == pytest.approx(6.0)


def test_stopwatch_finds_only_the_rates_that_are_asked_for() -> None:
    subject = Subject("resnet50", TINY)
    rates = subject.stopwatch.rates([Work(forward=1), Work(tail_backward=1)])
    assert rates.forward > 0
    assert (rates.backward, rates.layers_backward) == (0, 0)
    assert {"_forward", "_tail"} <= vars(subject.stopwatch).keys()
    assert not {"_gradient", "_layers"} & vars(subject.stopwatch).keys()
    assert subject.stopwatch.rates([Work(layers_backward=1)]).layers_backward >= 0


def test_times_are_related_to_the_pulses_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is three times as slow for a while changes nothing."""
    stopwatch = Stopwatch(tiny_network(), {"cam": ("4",), "sise": ("1", "4")}, 16, CPU)
    pulses, others = iter([1.0, 1.0, 3.0, 3.0]), iter([2.0, 4.0, 6.0])

    def seconds(one_pass: Any, rows: Tensor) -> float:
        return next(pulses if one_pass == stopwatch.forward_pass else others)

    monkeypatch.setattr(stopwatch, "seconds", seconds)
    stopwatch._few = stopwatch.images(1)
    assert stopwatch.in_pulses(stopwatch.gradient_pass, stopwatch.images(1), 3) == 2.0


def test_stopwatch_does_not_touch_the_network() -> None:
    network = tiny_network()
    before = [parameter.clone() for parameter in network.parameters()]
    stopwatch = Stopwatch(network, {"cam": ("4",), "sise": ("1", "4")}, 16, CPU)
    stopwatch.forward_pass(stopwatch.images(2))
    assert stopwatch.layers_pass(stopwatch.images(2)).shape == (2, 4, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in network.parameters())


# ---------------------------------------------------------------------------------------------- the watch


def played(course: Course, steps: list[tuple[int, float]], limit: float, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A watch that is told of passes (rows, seconds at which they begin)."""
    now = [0.0]
    monkeypatch.setattr("camexp.explain.time.perf_counter", lambda: now[0])
    watch = Watch(course, CPU, limit)

    def play() -> None:
        for rows, at in steps:
            now[0] = at
            watch(rows)

    with pytest.raises(Enough):
        play()
    return watch


def test_watch_extrapolates_the_uniform_part(monkeypatch: pytest.MonkeyPatch) -> None:
    # a plain pass of 1 row takes 5 s, then 32 rows take 8 s: 0.25 s per row, 5 + 100 * 0.25
    steps = [(1, 0.0), (32, 5.0), (32, 13.0)]
    assert played(Course(101, 1), steps, 10.0, monkeypatch).seconds() == pytest.approx(30.0)
    assert played(Course(101, 1, repeats=3), steps, 10.0, monkeypatch).seconds() == pytest.approx(90.0)


def test_watch_sees_at_least_one_pass_of_the_uniform_part(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = played(Course(100), [(10, 0.0), (10, 4.0)], 0.0, monkeypatch)
    assert watch.seconds() == pytest.approx(40.0)
    watch = played(Course(100, least=20), [(10, 0.0), (10, 4.0), (10, 6.0)], 0.0, monkeypatch)
    assert watch.seconds() == pytest.approx(30.0)


def test_watch_of_whole_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    # twelve rows, two repetitions of six, took 6 s: ten repetitions take 30 s
    watch = played(Course(6, 1, repeats=10), [(6, 0.0), (6, 3.0), (1, 6.0)], 5.0, monkeypatch)
    assert watch.seconds() == pytest.approx(30.0)


def test_a_call_without_a_course_is_never_ended() -> None:
    watch = Watch(Course(), CPU, 0.0)
    for _ in range(5):
        watch(100)
    assert watch.rows == 500


def test_a_call_that_is_ended_leaves_nothing_behind() -> None:
    subject = Subject("resnet50", TINY)
    cell = Cell("scorecam", "resnet50", 2, 1)
    method = subject.method("scorecam")
    for contender in subject.contenders(cell, method, subject.shape(cell, method)):
        trial = timed(contender, CPU, 0.0)
        assert trial.extrapolated
        assert trial.seconds > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.network.modules())
    assert not any(module._forward_hooks for module in subject.classifier.network.modules())
    assert subject.classifier.on_forward(1) is None


@pytest.mark.skipif(allocated() is None, reason="needs the GNU C library >= 2.33")
def test_peak_memory_is_what_is_in_use() -> None:
    with PeakMemory(CPU) as memory:
        torch.ones(16 << 20)  # 64 MiB, freed at once
        kept = [torch.ones(8 << 20) for _ in range(3)]
        time.sleep(5 * PeakMemory.interval)
    assert len(kept) == 3
    assert 90 <= memory.peak() <= 200


@pytest.mark.skipif(allocated() is None, reason="needs the GNU C library >= 2.33")
def test_rehearsal_tells_the_peak_memory_of_as_much_of_a_call_as_is_asked_for() -> None:
    def call() -> None:
        kept = []
        for _ in range(3):
            kept.append(torch.ones(16 << 20))  # 64 MiB
            time.sleep(5 * PeakMemory.interval)
            heard[-1](1)

    heard: list[Callable[[int], None]] = []

    @contextmanager
    def listening(watch: Callable[[int], None]) -> Iterator[None]:
        heard.append(watch)
        yield

    contender = Contender("camexp", call, listening, Course(rows=3))
    assert 120 <= rehearse(contender, CPU) <= 170  # the first and the second
    assert 180 <= rehearse(contender, CPU, float("inf")) <= 300


def test_peak_memory_is_unknown_on_other_c_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camexp.bench.watch.ctypes.CDLL", lambda name: object())
    with PeakMemory(CPU) as memory:
        pass
    assert memory.peak() != memory.peak()


# ------------------------------------------------------------------------------------------------- peers

FREE = {  # methods whose parameters or noise differ, and what makes them the same
    "hirescam": {"relu": True},
    "fullgrad": {"scaling": "channel"},
    "scorecam": {"normalise": "softmax"},
}

DIFFERENT = {
    ("gradcam_pp", "torchcam"): 0.9,  # it never divides by its denominator
    ("smooth_gradcam_pp", "torchcam"): 0.9,  # its noise, and the gradient of the last copy alone
    ("smoothgrad", "captum"): 0.5,  # its noise
    ("scorecam", "grad-cam"): 0.98,  # it enlarges with aligned corners
    ("scorecam", "torchcam"): 0.98,  # it scales masks before it enlarges them
}

EVERY_PEER = [(name, peer) for name, peers in PEERS.items() for peer in peers]


@contextmanager
def small_case(name: str, peer: Peer) -> Iterator[tuple[Case, Any, Callable[[], Tensor]]]:
    if not peer.installed:
        pytest.skip(f"{peer.library} is not installed")
    method = small_method(name, **FREE.get(name, {}))
    images, pairs = uniform_batch(3, 2)
    network = Networks(tiny_network().eval()).of(peer)
    classifier = make_classifier(confidence="logit" if name == "scorecam" else "softmax")
    case = Case(network, "4", method, images, pairs.target.view(3, 2), batch=4)
    yield case, method, lambda: method(classifier, images, pairs)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "peer"), EVERY_PEER, ids=[f"{n}-{p.library}" for n, p in EVERY_PEER])
def test_peers_make_the_same_maps_in_the_stated_passes(name: str, peer: Peer) -> None:
    with small_case(name, peer) as (case, method, ours):
        seen: list[int] = []
        with rows_of(case.network, seen.append):
            theirs = peer.explain(case)
        assert theirs.shape == (6, 16, 16)
        similar = cosine(scale_to_unit(ours()), scale_to_unit(theirs.detach().float()))
        assert similar.min() >= DIFFERENT.get((name, peer.library), 0.999)
        course = peer.course(Asked(method, Shape(3, 2, 16, 16), 6, case.batch))
        assert sum(seen) == course.rows * course.repeats


def test_libraries_have_networks_of_their_own() -> None:
    network = tiny_network().eval()
    networks = Networks(network)
    by_library = {peer.library: networks.of(peer) for peer in PEERS["gradcam"]}
    assert len({id(own) for own in by_library.values()} | {id(network)}) == 4
    assert all(torch.equal(own[0].weight, network[0].weight) for own in by_library.values())
    assert by_library["captum"] is networks.of(PEERS["gradcam"][2])


def test_separate_relus_keep_the_function() -> None:
    subject = Subject("resnet50", TINY)
    images, _ = subject.batch_of(2, 1)
    with torch.no_grad():
        expected = subject.network(images)
        found = separate_relus(subject.networks.of(PEERS["gradcam"][1]))(images)
    assert torch.allclose(expected, found, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------- cells and budget


def test_cells_are_ordered_from_cheap_to_dear() -> None:
    cells = all_cells(["gradcam", "rise"], ["resnet50"], [16, 1], [1, 3])
    assert [(c.images, c.classes) for c in cells] == [(1, 1)] * 2 + [(1, 3)] * 2 + [(16, 1)] * 2 + [(16, 3)] * 2
    with pytest.raises(CamexpError, match="oracle: no such method"):
        all_cells(["oracle"], ["resnet50"], [1], [1])


def test_budget_is_divided_by_weight_and_what_is_not_used_is_divided_again() -> None:
    now = [0.0]
    budget = Budget(100.0, lambda: now[0])
    cells = [Cell("rise", "resnet50", 1, 1), Cell("hirescam", "resnet50", 1, 1)]  # one contender, and two
    assert [weight(cell, {}) for cell in cells] == [1, 2]
    assert budget.share(cells[0], cells[1:], {}) == pytest.approx(100 / 3)
    now[0] = 10.0
    assert budget.share(cells[1], [], {}) == pytest.approx(90)
    now[0] = 200.0
    assert budget.share(cells[1], [], {}) == 0


def test_slow_networks_get_more_time() -> None:
    cells = [Cell("rise", model, 1, 1) for model in ("resnet50", "vgg16", "resnet101")]
    assert [weight(cell, {"resnet50": 0.1, "vgg16": 0.3}) for cell in cells] == pytest.approx([0.1, 0.3, 0.3])


def contender(name: str, call: Callable[[], object]) -> Contender:
    return Contender(name, call, lambda tell: rows_of(nn.Identity(), tell))


def test_rounds_alternate_and_a_peer_that_fails_is_left_out() -> None:
    calls: list[str] = []
    told: list[str] = []

    def fails() -> None:
        raise ValueError("no such layer")

    contenders = [contender(name, partial(calls.append, name)) for name in ("camexp", "b")]
    pulse = partial(calls.append, "-")
    found = compete([*contenders, contender("c", fails)], CPU, 100.0, 3, told.append, pulse)
    assert calls == ["camexp", "camexp", "b"] + ["-", "camexp", "-", "b"] * 3  # a rehearsal, and three rounds
    assert {name: len(one.trials) for name, one in found.items()} == {"camexp": 3, "b": 3}
    assert told == ["c left out: ValueError: no such layer"]
    known = allocated() is not None
    assert all(math.isnan(one.peak) != known for one in found.values())
    with pytest.raises(ValueError, match="no such layer"):
        compete([contender("camexp", fails)], CPU, 1.0, 1, told.append, pulse)


def test_peers_that_are_far_behind_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"camexp": 9.0, "a": 1.0, "b": 2.1, "c": 1.9}
    monkeypatch.setattr("camexp.bench.cells.timed", lambda c, device, limit: Trial(seconds[c.name], False))
    contenders = [contender(name, lambda: None) for name in seconds]
    found = compete(contenders, CPU, 100.0, 3, lambda text: None, lambda: None)
    assert {name: len(one.trials) for name, one in found.items()} == {"camexp": 3, "a": 3, "b": 1, "c": 3}


def test_row_by_hand() -> None:
    found = {
        "camexp": Found([Trial(4.0, False), Trial(2.0, False), Trial(3.0, False)], 12.0),
        "slow": Found([Trial(9.0, False)], 5.0),
        "fast": Found([Trial(6.0, True)] * 3, 30.0),
    }
    row = cell_row(Cell("gradcam", "resnet50", 2, 3), found, floors=[2.5, 2.4, 1.5], forward=0.1)
    assert list(row) == list(COLUMNS)
    assert {key: float(row[key]) for key in ("seconds_per_map", "floor", "ours/floor", "low", "high")} == {
        "seconds_per_map": 0.5,
        "floor": 0.4,
        "ours/floor": 1.6,  # of 1.6, 0.8333 and 2
        "low": 0.3333,
        "high": 0.6667,
    }
    assert (row["fastest_peer"], row["peer_seconds"], row["peer/ours"]) == ("fast", "1", "2")
    assert (row["peak_mb"], row["peer_peak_mb"], row["extrapolated"]) == ("12", "30", "peer")
    assert row["peers"] == "slow=1.5 fast=1"
    assert row["rounds"] == "3"


# ------------------------------------------------------------------------------------ the table, resumable


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Cells that were measured; each takes no time, and cam of vgg16 is refused."""
    cells: list[Cell] = []

    def measure(cell: Cell, subject: Any, rates: Rates, seconds: float, rounds: int, say: Any) -> dict[str, str]:
        if (cell.method, cell.model) == ("cam", "vgg16"):
            raise CamexpError("cam needs global average pooling")
        cells.append(cell)
        trials = {"camexp": Found([Trial(1.0, False)], 10.0), "torchcam": Found([Trial(2.0, False)], 20.0)}
        return cell_row(cell, trials, floors=[0.8], forward=0.1)

    monkeypatch.setattr(table, "measure_cell", measure)
    monkeypatch.setattr(Stopwatch, "rates", lambda self, works: Rates(0.001, 0, 0, 0, 0))
    return cells


def bench(folder: Path, *more: str) -> int:
    return main.main(["--output", str(folder), *more, *TINY[:2], "--device", "cpu"])


def test_table_is_written_resumed_and_started_afresh(tmp_path: Path, measured: list[Cell], capsys: Any) -> None:
    some = ("--methods", "gradcam,cam", "--images", "1", "--classes", "1")
    assert bench(tmp_path, *some, "--models", "resnet50") == 0
    assert len(measured) == 2
    assert bench(tmp_path, *some) == 0  # vgg16 is added, what there is stays
    assert [str(cell) for cell in measured[2:]] == ["gradcam vgg16 1x1"]
    out = capsys.readouterr().out
    assert "cam vgg16 1x1: cam needs global average pooling" in out
    assert "above 1.15 x floor: gradcam resnet50 1x1" in out
    rows = read_csv(tmp_path / "bench_cpu.csv", COLUMNS)
    assert [(row["method"], row["model"]) for row in rows] == [
        ("gradcam", "resnet50"),
        ("cam", "resnet50"),
        ("gradcam", "vgg16"),
    ]
    text = (tmp_path / "bench.md").read_text()
    assert "| Grad-CAM" in text
    commands = re.findall(r"`(python scripts/bench\.py .*?)`", next(li for li in text.splitlines() if "Command:" in li))
    assert ["--models resnet50" in command for command in commands] == [True, False]  # each that measured something
    assert "cam vgg16 1x1: cam needs global average pooling" in text
    for again in (some, ("--methods", "gradcam", *some[2:])):  # the second does not ask for what was left out
        assert bench(tmp_path, *again) == 0
        assert (tmp_path / "bench.md").read_text() == text
    assert bench(tmp_path, *some, "--fresh") == 0
    assert len(measured) == 6
    assert len(read_csv(tmp_path / "bench_cpu_before.csv", COLUMNS)) == 3  # finished work is not lost
    assert (tmp_path / "bench.md").read_text().count("`python scripts/bench.py ") == 1


def test_cells_of_other_versions_are_not_mixed(
    tmp_path: Path, measured: list[Cell], monkeypatch: Any, capsys: Any
) -> None:
    some = ("--methods", "gradcam", "--models", "resnet50", "--images", "1")
    assert bench(tmp_path, *some) == 0
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert bench(tmp_path, *some, "--classes", "1") == 0
    assert "these differ: torch" in capsys.readouterr().err
    assert len(read_csv(tmp_path / "bench_cpu.csv", COLUMNS)) == 1
    assert len(read_csv(tmp_path / "bench_cpu_before.csv", COLUMNS)) == 2  # finished work is not lost
    assert (tmp_path / "bench_cpu_before.json").is_file()


def test_interrupt_keeps_what_is_finished(
    tmp_path: Path, measured: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = table.measure_cell

    def interrupted(cell: Cell, *args: Any) -> dict[str, str]:
        if cell.classes == 3:
            raise KeyboardInterrupt
        return measure(cell, *args)

    monkeypatch.setattr(table, "measure_cell", interrupted)
    assert bench(tmp_path, "--methods", "gradcam", "--models", "resnet50", "--images", "1") == 130
    assert len(read_csv(tmp_path / "bench_cpu.csv", COLUMNS)) == 1
    assert "Grad-CAM" in (tmp_path / "bench.md").read_text()


def test_what_a_network_does_not_allow_is_measured_in_no_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[Cell], capsys: Any
) -> None:
    """A long call would be ended before the method says so."""
    measure = table.measure_cell

    def refused(cell: Cell, *args: Any) -> dict[str, str]:
        if cell.images == 1 and cell.method == "cam":
            raise CamexpError("another network is needed")
        return measure(cell, *args)

    monkeypatch.setattr(table, "measure_cell", refused)
    assert bench(tmp_path, "--methods", "cam,gradcam", "--models", "resnet50", "--images", "1,2", "--classes", "1") == 0
    assert [(cell.method, cell.images) for cell in measured] == [("gradcam", 1), ("gradcam", 2)]
    assert "cam resnet50 2x1: another network is needed" in capsys.readouterr().out


def test_without_time_left_cells_are_named(tmp_path: Path, measured: list[Cell], capsys: Any) -> None:
    some = ("--methods", "gradcam", "--models", "resnet50", "--classes", "1")
    assert bench(tmp_path, *some, "--images", "1") == 0
    assert bench(tmp_path, *some, "--images", "2", "--budget", "1e-9") == 0
    assert len(measured) == 1
    assert "gradcam resnet50 2x1: no time left" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        *[("--methods", "oracle"), ("--models", "alexnet"), ("--budget", "0"), ("--classes", "21")],
        *[("gradcam",), ("precision=fp8",), ("--images", "0")],
    ],
)
def test_mistakes_are_explained(tmp_path: Path, wrong: tuple[str, ...], capsys: Any) -> None:
    assert bench(tmp_path, "--models", "resnet50", *wrong) == 2
    assert "\nerror: " in "\n" + capsys.readouterr().err


def test_a_small_table_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stopwatch, "pulse", lambda self: 0.01)  # the same floor in both rounds
    some = ("--methods", "gradcam,rise,ablationcam", "--models", "resnet50", "--images", "2", "--classes", "2")
    assert bench(tmp_path, *some, "--budget", "0.2", "--rounds", "2") == 0
    rows = {row["method"]: row for row in read_csv(tmp_path / "bench_cpu.csv", COLUMNS)}
    assert set(rows) == {"gradcam", "rise", "ablationcam"}
    assert rows["rise"]["extrapolated"] == "ours"
    assert rows["rise"]["fastest_peer"] == ""
    for row in rows.values():
        assert float(row["ours/floor"]) == pytest.approx(float(row["seconds_per_map"]) / float(row["floor"]), rel=1e-2)


# ------------------------------------------------------------------------------------- page and verdicts


def row_of(**values: str) -> dict[str, str]:
    plain = {"method": "gradcam", "model": "resnet50", "images": "16", "classes": "1", "seconds_per_map": "0.1"}
    plain |= {"floor": "0.1", "ours/floor": "1", "low": "0.09", "high": "0.2", "forward_seconds": "0.08"}
    return dict.fromkeys(COLUMNS, "") | plain | values


def test_page_from_csv(tmp_path: Path) -> None:
    rows = [
        row_of(**{"ours/floor": "1.1", "peer/ours": "2", "fastest_peer": "torchcam", "peer_seconds": "0.2"}),
        row_of(**{"model": "vgg16", "ours/floor": "4.4", "extrapolated": "ours"}),
    ]
    (tmp_path / "bench_cpu.csv").write_text(to_csv(rows, COLUMNS, header=True))
    (tmp_path / "bench_techniques_cpu.csv").write_text("technique,ratio\nfolded,1.5\n")
    info = {"made_with": {"device": "a machine"}, "commands": ["python scripts/bench.py --techniques"]}
    (tmp_path / "bench_techniques_cpu.json").write_text(json.dumps(info))
    text = write_page(tmp_path).read_text()
    assert text == page(tmp_path)
    assert "| Grad-CAM | 2.20 " in text  # the geometric mean of 1.1 and 4.4
    assert "**not met** in 1 of 2 cells: gradcam vgg16 16x1 4.4" in text
    assert "| folded " in text
    assert "device a machine.\n\nCommand: `python scripts/bench.py --techniques`" in text
    assert "The switch is an option of" in text
    assert "--device cuda" in text  # no GPU: the command that fills the section
    assert "2.00" in headline(rows)


def test_empty_folder_has_a_page_too(tmp_path: Path) -> None:
    assert "Not measured yet" in page(tmp_path)


def target(text: str) -> Target:
    (found,) = [target for target in TARGETS if text in target.text]
    return found


def test_verdicts_by_hand() -> None:
    slow, fast = row_of(**{"ours/floor": "1.2"}), row_of(**{"ours/floor": "1.15"})
    assert judge(target("1.15 x floor"), [slow, fast]).text.startswith("**not met** in 1 of 2 cells: gradcam resnet50")
    assert judge(target("1.15 x floor"), [fast]).text == "met (1 cells)"
    assert judge(target("1.15 x floor"), [row_of(images="1", **{"ours/floor": "9"})]).text == "not measured"
    near = {"method": "rise", "classes": "3", "peer/ours": "2.9", "floor": "0.1"}
    shared, hopeless = row_of(**near, peer_seconds="0.31"), row_of(**near, peer_seconds="0.29")
    assert judge(target("three classes"), [shared]).text.startswith("**not met** in 1 of 1 cells: rise")
    found = judge(target("three classes"), [shared, hopeless]).text
    assert found.startswith("**not met** in 2 of 2 cells (in 1 not even the floor would meet it): rise")
    heavy = row_of(peak_mb="30", peer_peak_mb="20")
    assert "1.5" in judge(target("peak memory"), [heavy]).text
    assert (
        judge(target("Ablation-CAM"), [row_of(method="ablationcam", model="vgg16", **{"peer/ours": "9"})]).measured == 0
    )


# -------------------------------------------------------------------------------------------- scaling


def test_fit_by_hand() -> None:
    line = scaling.fit([1, 2, 3], [3.0, 5.0, 7.0])
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2, 1, 1))
    # y = 1.5 x - 1/3 leaves 1/6, of a sum of squares of 14/3
    bent = scaling.fit([1, 2, 3], [1.0, 3.0, 4.0])
    assert (bent.slope, bent.intercept, bent.r2) == pytest.approx((1.5, -1 / 3, 1 - (1 / 6) / (14 / 3)))


def test_start_up_is_measured_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beyond, torch_import = scaling._first_batch(tmp_path / "run", tmp_path / "data", "dataset.images=4", "limit=2")
    assert beyond > 0
    assert torch_import > 0
    monkeypatch.setattr(scaling, "START", "raise SystemExit('no data')")
    with pytest.raises(CamexpError, match="did not come to its first batch:\nno data"):
        scaling._first_batch(tmp_path / "run", tmp_path / "data")
