"""The accuracy guard: what it compares, what passes, and what it keeps."""

import csv
import platform
import re
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import nn

from camexp.bench import guard, main, paths
from camexp.bench.paths import PATHS, ROUNDED, Path, possible_paths
from camexp.errors import CamexpError
from camexp.provenance import processor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data_dir={tmp_path_factory.mktemp('data')}"


def guarded(scenes: str, output: File, *more: str) -> int:
    given = ["--guard", *more, "--device", "cpu", "--output", str(output), scenes, "dataset.images=4", "limit=2"]
    return main.main(given)


def test_guard_passes_exact_paths(scenes: str, tmp_path: File, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "PATHS", [path for path in PATHS if "=true" in path.name or not path.over][:6])
    assert guarded(scenes, tmp_path, "--methods", "gradcam") == 0
    out = capsys.readouterr().out
    assert out.count("| yes") + out.count("| same bits") == 6
    assert out.count("| same bits") >= 1  # inference_mode: the same products in the same order
    assert "every path keeps the tolerances" in out
    lines = (tmp_path / "bench_guard_cpu.csv").read_text().splitlines()
    assert len(lines) == 7
    measured_on = f"2 images of minivoc, {re.escape(processor())}"
    assert re.search(rf',yes,"resnet50, weights [0-9a-f]{{8}}, {measured_on}",[0-9a-f]{{40}}', lines[1])
    page = (tmp_path / "bench.md").read_text()
    assert re.search(r"^\| path +\| yes +\| same bits +\| as rounding \| MISSES \|$", page, re.MULTILINE)
    assert "by rounding alone" in page


def test_guard_sums_up_by_path() -> None:
    def line(path: str, method: str, verdict: str, network: str = "vgg16") -> list[str]:
        return [path, method, *["0"] * (len(guard.HEAD) - 5), verdict, network, "commit"]

    lines = [line("b", "cam", "yes"), line("a", "cam", "MISSES"), line("b", "igcam", "as rounding")]
    lines += [line("b", "rise", "yes"), line("b", "cam", "yes", "resnet50"), line("b", "cam", "same bits", "resnet101")]
    assert all(len(each) == len(guard.HEAD) for each in lines)
    assert guard.overview(lines) == [
        ["path", "yes", "same bits", "as rounding", "MISSES"],
        ["b", "cam, rise", "cam", "igcam", ""],
        ["a", "", "", "", "cam"],
    ]


def test_guard_names_the_path_that_misses(
    scenes: str, tmp_path: File, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    crooked = Path("crooked", ("protocol.fill=black_pixel",))  # other maps, other metrics
    monkeypatch.setattr(paths, "PATHS", (PATHS[0], crooked))
    assert guarded(scenes, tmp_path, "--methods", "igcam") == 1
    out = capsys.readouterr().out
    assert "crooked misses: igcam; it must be off by default" in out
    assert "fold_batch_norms misses" not in out


def test_guard_holds_cosine_and_metrics_to_the_tolerances() -> None:
    exact, rounded = Path("a"), Path("b", cosine=ROUNDED)
    moved, turned = guard.Reach(1.0, {"drop": 0.5, "ebpg": 0.0}), guard.Reach(0.99, {"drop": 0.0, "ebpg": 0.0})

    def found(path: Path, cosine: float, drop: float, rounding: guard.Reach | None = None, ebpg: float = 0.0) -> Any:
        return guard.Finding(path, "m", 1, cosine, {"drop": drop, "ebpg": ebpg}, rounding)

    assert found(exact, 0.9999, 0.1).passes
    assert not found(exact, 0.99989, 0.0).passes
    assert not found(exact, 0.9998999, 0.0).passes
    assert not found(exact, 1.0, 0.11).passes
    assert found(rounded, 0.99989, 0.0).passes
    assert found(exact, 1.0, 0.5, moved).verdict == "as rounding"
    assert found(exact, 1.0, 0.5 + 1e-9, moved).verdict == "as rounding"
    assert found(exact, 1.0, 0.51, moved).verdict == "MISSES"
    assert found(exact, 1.0, 0.01, moved).verdict == "yes"
    assert found(exact, 0.99, 0.01, moved).verdict == "MISSES"
    assert found(exact, 0.99, 0.01, turned).verdict == "as rounding"
    assert found(exact, 0.99, 0.01, guard.Reach(0.991, turned.changes)).verdict == "MISSES"
    assert found(exact, 0.99995, 0.01, turned).verdict == "yes"
    assert found(exact, 0.99, 0.2, turned).verdict == "MISSES"
    assert guard.verdict([found(exact, 1.0, 0.01, moved)]) == "every path keeps the tolerances"
    both = guard.verdict([found(exact, 0.99, 0.01, turned), found(exact, 0.99, 0.2, turned)])
    assert re.fullmatch(r"\S+ misses: \S+; .*\n\S+ is beyond the tolerances in \S+, but no further than .*", both)
    other = found(exact, 1.0, 0.4, moved, ebpg=0.2)  # rounding moves drop as far, and ebpg not at all
    assert other.verdict == "MISSES"
    assert other.line()[6:8] == ["0.400 (drop), 0.200 (ebpg)", "0.500, 0.000"]
    assert found(exact, 1.0, 0.02, ebpg=0.03).line()[6:8] == ["0.030 (ebpg)", ""]


def test_guard_tells_a_path_that_changes_nothing() -> None:
    pair, ends = ("a", 0), torch.tensor([[0.0, 1.0]])
    plain = guard.Explained({pair: ends}, {"drop": torch.tensor([10.0])})
    found = {
        "same bits": guard.Explained({pair: ends.clone()}, {"drop": torch.tensor([10.0])}),
        "yes": guard.Explained({pair: torch.nextafter(ends, 2 * ends)}, {"drop": torch.tensor([10.0])}),
        "MISSES": guard.Explained({pair: ends}, {"drop": torch.tensor([11.0])}),
    }
    for verdict, fast in found.items():
        assert guard.finding(Path("a"), "m", plain, fast).verdict == verdict


def test_guard_keeps_what_earlier_checks_found_of_others(scenes: str, tmp_path: File) -> None:
    def table() -> list[list[str]]:
        with (tmp_path / "bench_guard_cpu.csv").open(newline="") as stream:
            head, *lines = csv.reader(stream)
        assert head == guard.HEAD
        return [[line[0], line[1], line[-3]] for line in lines]

    for asked in ("inference_mode=true", "tail_backward=true,inference_mode=true"):
        assert guarded(scenes, tmp_path, "--methods", "cam", "--paths", asked) == 0
    assert [line[0] for line in table()] == ["tail_backward=true", "inference_mode=true"]
    file = tmp_path / "bench_guard_cpu.csv"
    text = file.read_text()
    file.write_text(text.replace("resnet50,", "vgg16,").replace("same bits", "MISSES"))
    assert guarded(scenes, tmp_path, "--methods", "cam", "--paths", "inference_mode=true") == 0
    assert len(table()) == 3
    file.write_text(text.replace("same bits", "MISSES"))
    assert guarded(scenes, tmp_path, "--methods", "cam", "--paths", "inference_mode=true", "--fresh") == 0
    assert table() == [["inference_mode=true", "cam", "same bits"]]
    assert (tmp_path / "bench_guard_cpu_before.csv").read_text().count("MISSES") == 2  # finished work is not lost


def test_guard_says_when_no_method_is_left(scenes: str, tmp_path: File, capsys: Any) -> None:
    assert guarded(scenes, tmp_path, "--methods", "cam", "--paths", "default", "model=vgg16") == 2
    said = capsys.readouterr().err
    assert "cam: left out: " in said
    assert "--methods cam: none is left to compare" in said
    assert not (tmp_path / "bench_guard_cpu.csv").exists()


def test_guard_keeps_what_it_has_when_it_is_cut_off(
    scenes: str, tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any) -> Any:
        raise KeyboardInterrupt

    both = (PATHS[0], Path("cut off", possible=lambda device: True))
    real = guard.Guard.walk
    monkeypatch.setattr(paths, "PATHS", both)
    monkeypatch.setattr(guard.Guard, "walk", lambda self, path: (cut_off if path is both[1] else real)(self, path))
    assert guarded(scenes, tmp_path, "--methods", "cam") == 130
    assert len((tmp_path / "bench_guard_cpu.csv").read_text().splitlines()) == 2


def test_weights_are_moved_to_the_next_number() -> None:
    weights = [torch.tensor([1.0, -2.0, 0.0, 3e-3] * 50), torch.full((7,), 0.1)]
    network = nn.ParameterList([nn.Parameter(weight.clone()) for weight in weights])
    guard.nudge(network, draw=0)
    for before, after in zip(weights, network, strict=True):
        up, down = (torch.nextafter(before, torch.full_like(before, end)) for end in (torch.inf, -torch.inf))
        assert ((after == up) | (after == down)).all()
    assert 60 < int((network[0] > weights[0]).sum()) < 140
    first = [parameter.clone() for parameter in network]
    guard.nudge(network, draw=1)
    assert not torch.equal(network[0], first[0])


def test_guard_measures_how_far_rounding_goes(scenes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def shake(network: nn.Module, draw: int) -> None:
        drawn.append(draw)
        for parameter in network.parameters():
            parameter.data += 0.01 * draw  # far more than rounding

    monkeypatch.setattr(guard, "nudge", shake)
    checked = guard.Guard([scenes, "dataset.images=4", "limit=2", "device=cpu"])
    crooked = Path("crooked", ("protocol.fill=black_pixel",))
    same, first, second = checked.compare([Path("same"), crooked, crooked], ["gradcam"])
    assert (same.cosine, same.rounding) == (pytest.approx(1), None)  # it keeps the tolerances
    assert not any(same.changes.values())
    assert drawn == [*range(8)]  # once for both
    assert first.changes == second.changes
    assert max(first.changes.values()) > 0.1
    assert first.rounding == second.rounding
    assert max(first.rounding.changes.values()) > 1
    assert first.rounding.cosine < 0.99
    assert same.line()[-1] == "same bits"
    assert [same.line()[5], same.line()[7]] == ["", ""]
    assert first.line()[5] == f"{first.rounding.cosine:.7f}"


def test_guard_counts_pairs_that_a_path_cannot_measure_as_missed(scenes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = guard.Walk.rows

    def rows(self: guard.Walk, found: Any) -> Any:
        """Of a path that cannot measure one pair."""
        kept = real(self, found)
        if self.cfg.protocol.fill == "black_pixel":
            del kept[next(iter(kept))]
        return kept

    monkeypatch.setattr(guard.Walk, "rows", rows)
    monkeypatch.setattr(guard, "nudge", lambda network, draw: None)
    checked = guard.Guard([scenes, "dataset.images=4", "limit=1", "device=cpu"])
    (found,) = checked.compare([Path("lossy", ("protocol.fill=black_pixel",))], ["uniform"])
    assert found.verdict == "MISSES"
    assert "nan" in found.line()[3]
    assert "nan" in found.line()[6]
    everywhere = guard.Guard([scenes, "dataset.images=4", "limit=2", "device=cpu", "protocol.fill=black_pixel"])
    (found,) = everywhere.compare([Path("plain")], ["uniform"])  # what no path can measure is not compared
    assert found.verdict == "same bits"


def test_furthest_by_hand() -> None:
    plain = {"drop": torch.tensor([10.0, 20.0, 30.0, 40.0]), "bbox": torch.tensor([50.0, 50.0, 50.0, 50.0])}
    drawn = [
        {"drop": torch.tensor([16.0, 20.0, 29.0, 40.0]), "bbox": torch.tensor([50.0, 49.0, 50.0, 50.0])},
        {"drop": torch.tensor([9.0, 22.0, 30.0, 39.0]), "bbox": torch.tensor([50.0, 51.0, 50.0, 50.0])},
    ]
    expected = {"drop": (6 + 2) / 4, "bbox": 1 / 4}  # of drop up; down it would be (1 + 1) / 4
    assert guard.furthest(plain, drawn) == pytest.approx(expected)
    plain = {"drop": torch.tensor([16.0, 22.0, 30.0, 40.0])}
    falls = [{"drop": torch.tensor([10.0, 22.0, 30.0, 40.0])}, {"drop": torch.tensor([16.0, 20.0, 31.0, 40.0])}]
    assert guard.furthest(plain, falls) == pytest.approx({"drop": (6 + 2) / 4})
    assert guard.furthest(plain, [plain]) == {"drop": 0}


def test_cosine_by_hand() -> None:
    a = torch.tensor([[[1.0, 0], [0, 0]], [[0.0, 0], [0, 0]], [[1.0, 0], [0, 0]], [[1.0, 0], [0, 0]]])
    b = torch.tensor([[[2.0, 0], [0, 0]], [[0.0, 0], [0, 0]], [[0.0, 0], [0, 0]], [[1.0, 1], [0, 0]]])
    assert guard.cosine(a, b).tolist() == pytest.approx([1, 1, 0, 2**-0.5])


@pytest.mark.skipif(platform.system() != "Linux", reason="the message is Linux's")
def test_guard_leaves_out_what_the_machine_cannot(capsys: Any) -> None:
    said: list[str] = []
    names = [path.name for path in possible_paths(CPU, said.append)]
    assert "precision=tf32" not in names
    assert said[0].startswith("precision=tf32: left out")
    (path,) = possible_paths(CPU, said.append, ["batch_size=16"])
    assert path.name == "batch_size=16"
    with pytest.raises(CamexpError, match="--paths precision=tf32: cpu has none of them"):
        possible_paths(CPU, said.append, ["precision=tf32"])
    with pytest.raises(CamexpError, match="--paths fast: no such path; there are fold_batch_norms=true, "):
        possible_paths(CPU, said.append, ["fast", "default"])
