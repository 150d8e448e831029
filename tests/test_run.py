"""One run from the command line: what it writes, how it resumes, and what it says when it cannot go on."""

import json
import linecache
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from camexp import runner
from camexp.config import compose_config
from camexp.datasets.mini import minivoc
from camexp.errors import CamexpError
from camexp.methods.uniform import Uniform
from camexp.models.build import build
from camexp.models.classifier import Classifier
from camexp.runner import execute

HEADER = "image_id,class_id,class_name,prob,argmax,difficult,area,degenerate,ebpg,bbox,miou,drop,increase"
METRICS = ["ebpg", "bbox", "miou", "drop", "increase"]
FILES = {"config.yaml", "failures.csv", "records.csv", "run.json", "timing.csv"}
TIMEOUT = 240  # seconds, for a machine that does other things too


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """`data_dir` with six scenes of minivoc."""
    folder = tmp_path_factory.mktemp("data")
    minivoc(str(folder / "minivoc"), images=6)
    return folder


@pytest.fixture
def own_data(data, tmp_path) -> Path:
    """A copy of the scenes that a test may damage."""
    return Path(shutil.copytree(data, tmp_path / "own_data"))


def options(data: Path, output: Path, *overrides: str) -> list[str]:
    """A quick run: untrained narrow network, small input, batches of two images.

    The CAM layer has 3x3 cells. (With 2x2, enlarged maps are flat over a quarter of the image, and the last bits
    decide which of these equal pixels are on top.)
    """
    quick = {
        "data_dir": data,
        "output": output,
        "device": "cpu",
        "model.checkpoint": "random",
        "model.width": 0.125,
        "protocol.size": 96,
        "batch_size": 2,
        "forward_batch": 4,
        "runtime.trials": 1,
        "runtime.warmup": 1,
    }
    given = {override.partition("=")[0] for override in overrides}
    if "dataset" not in given:
        quick["dataset.images"] = 6
    return [*(f"{key}={value}" for key, value in quick.items() if key not in given), *overrides]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Callable[[list[str]], Ended]:
    """`python -m camexp.run ARGUMENTS` in tmp_path, without the seconds of a new process."""

    def run(arguments: list[str]) -> Ended:
        monkeypatch.setattr(sys, "argv", ["camexp.run", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("camexp.run", run_name="__main__")
        text = capsys.readouterr()
        assert "Traceback" not in text.err, text.err
        return Ended(int(ended.value.code or 0), text.out, text.err)

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def camexp(data, tmp_path, command) -> Callable[..., Ended]:
    """The command with `options`; writes to tmp_path/run by default."""

    def run(*overrides: str, output: str = "run", data: Path = data) -> Ended:
        return command(options(data, tmp_path / output, *overrides))

    return run


def start(arguments: list[str], cwd: Path) -> subprocess.Popen:
    """The command in a process of its own."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would inherit an ignored Ctrl-C
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "camexp.run", *arguments],
            cwd=cwd,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, previous)


def wait_for_rows(path: Path, process: subprocess.Popen) -> None:
    """Return as soon as `path` holds a row."""
    deadline = time.monotonic() + TIMEOUT
    while not path.exists() or path.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "records.csv", dtype={"image_id": str})


def failures(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "failures.csv", dtype=str, keep_default_na=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def assert_close(ours: pd.DataFrame, theirs: pd.DataFrame, rtol: float) -> None:
    """Same pairs in the same order, same values within `rtol`."""
    assert ours.iloc[:, :3].to_numpy().tolist() == theirs.iloc[:, :3].to_numpy().tolist()
    np.testing.assert_allclose(ours.iloc[:, 3:].to_numpy(), theirs.iloc[:, 3:].to_numpy(), rtol, 1e-6)


# ------------------------------------------------------------------------------------------ end to end


def test_end_to_end_in_a_process_of_its_own(command, data, tmp_path):
    """At full size, with the default output folder; given again, the command changes nothing."""
    wanted = [o for o in options(data, tmp_path) if not o.startswith(("output=", "protocol.size="))]
    process = start(wanted, tmp_path)
    out, err = process.communicate(timeout=TIMEOUT)
    folder = tmp_path / "results" / "minivoc" / "resnet50" / "gradcam"
    assert process.returncode == 0, err
    assert "results/minivoc/resnet50/gradcam: 11 pairs computed; 11 rows" in out
    assert "embedded procedural scenes" in err
    assert {path.name for path in folder.iterdir()} - {".lock"} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["results"]

    assert (folder / "records.csv").read_text().splitlines()[0] == HEADER
    rows = table(folder)
    dataset = minivoc(str(data / "minivoc"), images=6)
    pairs = [(i, t.class_id) for i, targets in zip(dataset.image_ids, dataset.targets, strict=True) for t in targets]
    assert list(zip(rows.image_id, rows.class_id, strict=True)) == pairs
    assert list(rows.class_name) == [dataset.classes[c] for _, c in pairs]
    assert rows[[*METRICS, "prob", "area"]].stack().between(0, 1).all()
    assert rows[["argmax", "difficult", "degenerate", "increase"]].isin([0, 1]).all(axis=None)
    written = pd.read_csv(folder / "records.csv", dtype=str)[["prob", "area", *METRICS]]
    assert all(value == f"{float(value):.6g}" for value in written.to_numpy().ravel())

    assert (folder / "failures.csv").read_text() == "image_id,class_id,reason\n"
    timing = pd.read_csv(folder / "timing.csv")
    assert list(timing.kind) == ["batch"] * 3 + ["trial"]
    assert (timing.explain_s > 0).all()
    assert timing.pairs.sum() == 11 + 1

    stored = info(folder)
    assert stored["complete"] is True
    assert (stored["images"], stored["pairs"], stored["rows"], stored["failures"]) == (6, 11, 11, 0)
    assert shlex.split(stored["command"]) == ["python", "-m", "camexp.run", *wanted]
    assert stored["identity"]["weights_sha256"] == "random:0"
    assert stored["identity"]["batch_size"] == 2
    assert stored["environment"]["torch"] == torch.__version__
    resolved = OmegaConf.load(folder / "config.yaml")
    assert (resolved.method.name, resolved.protocol.size) == ("gradcam", 224)
    assert resolved.output == "results/minivoc/resnet50/gradcam"

    before = contents(folder)
    again = command(wanted)
    assert (again.status, "already finished, nothing to do; 11 rows" in again.out) == (0, True)
    assert contents(folder) == before


def test_area_is_that_of_the_boxes(camexp, data, tmp_path):
    """The XML's boxes, read by another route; resizing leaves a tolerance of a row and a column."""
    assert camexp("method=uniform").status == 0
    rows = table(tmp_path / "run")
    single = 0
    for image_id, group in rows.groupby("image_id"):
        root = ElementTree.parse(data / "minivoc" / "test-6" / "VOC2007" / "Annotations" / f"{image_id}.xml").getroot()
        width, height = (int(root.findtext(f"size/{side}") or "") for side in ("width", "height"))
        for row in group.itertuples():
            boxes = [o for o in root.iter("object") if o.findtext("name") == row.class_name]
            if len(boxes) == 1:
                corners = ("xmin", "ymin", "xmax", "ymax")
                x0, y0, x1, y1 = (int(boxes[0].findtext(f"bndbox/{c}") or "") for c in corners)
                share = (x1 - x0 + 1) * (y1 - y0 + 1) / (width * height)
                assert abs(row.area - share) < 2 / 96
                single += 1
    assert single >= 4
    assert (rows.degenerate == 1).all()
    np.testing.assert_allclose(rows.ebpg, rows.area, rtol=1e-5)
    np.testing.assert_allclose(rows.bbox, rows.area, rtol=1e-5)


def test_command_given_again_computes_nothing(camexp, tmp_path, monkeypatch):
    first = camexp("method=uniform")
    assert (first.status, "11 pairs computed; 11 rows" in first.out) == (0, True)
    before = contents(tmp_path / "run")
    monkeypatch.setattr(Uniform, "__call__", lambda *arguments: pytest.fail("computed again"))
    again = camexp("method=uniform")
    assert (again.status, "already finished, nothing to do; 11 rows" in again.out) == (0, True)
    assert contents(tmp_path / "run") == before


def test_more_trials_are_added_without_touching_the_rows(camexp, tmp_path):
    camexp("method=uniform")
    before = (tmp_path / "run" / "records.csv").read_bytes()
    assert camexp("method=uniform", "runtime.trials=3").status == 0
    assert list(pd.read_csv(tmp_path / "run" / "timing.csv").kind) == ["batch"] * 3 + ["trial"] * 3
    assert (tmp_path / "run" / "records.csv").read_bytes() == before


def test_trials_of_another_machine_are_taken_anew(camexp, tmp_path):
    camexp("method=uniform", "runtime.trials=3")
    rows, stored = (tmp_path / "run" / "records.csv").read_bytes(), info(tmp_path / "run")
    assert stored["timed_on"] == {name: stored["environment"][name] for name in ("device", "device_type", "threads")}
    stored["timed_on"] = stored["timed_on"] | {"device": "another processor"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(stored))
    before = pd.read_csv(tmp_path / "run" / "timing.csv")

    assert "nothing to do" in camexp("method=uniform", "runtime.trials=0").out  # none asked for: none are dropped
    assert info(tmp_path / "run")["timed_on"]["device"] == "another processor"

    ended = camexp("method=uniform", "runtime.trials=2")
    assert ended.status == 0
    assert "run times are taken anew: those at hand are of another processor, " in ended.err
    assert info(tmp_path / "run")["timed_on"]["device"] == stored["environment"]["device"]
    after = pd.read_csv(tmp_path / "run" / "timing.csv")
    assert list(after.kind) == ["batch"] * 3 + ["trial"] * 2
    assert list(after.explain_s[:3]) == list(before.explain_s[:3])
    assert (tmp_path / "run" / "records.csv").read_bytes() == rows
    assert camexp("method=uniform", "runtime.trials=3").status == 0  # one more
    assert list(pd.read_csv(tmp_path / "run" / "timing.csv").explain_s[:5]) == list(after.explain_s)


def test_trials_of_folders_that_do_not_tell_their_machine_are_of_the_run(camexp, tmp_path):
    camexp("method=uniform", "runtime.trials=2")
    stored, before = info(tmp_path / "run"), pd.read_csv(tmp_path / "run" / "timing.csv")
    del stored["timed_on"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(stored))
    assert camexp("method=uniform", "runtime.trials=3").status == 0
    after = pd.read_csv(tmp_path / "run" / "timing.csv")
    assert list(after.explain_s[:-1]) == list(before.explain_s)


def test_overwrite_computes_again(camexp, tmp_path):
    camexp("method=random")
    before = table(tmp_path / "run")
    ended = camexp("method=random", "seed=1", "overwrite=true")
    assert (ended.status, "11 pairs computed" in ended.out) == (0, True)
    assert not table(tmp_path / "run").equals(before)


# --------------------------------------------------------------------------------------------- resuming

SLOW = ("method=rise", "method.masks=250", "protocol.size=64", "batch_size=1", "runtime.trials=0")
"""Some tenths of a second for each of six batches."""


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> bytes:
    """records.csv of the slow run when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    execute(compose_config(options(data, folder / "run", *SLOW)))
    return (folder / "run" / "records.csv").read_bytes()


def test_killed_run_resumes_to_the_same_bytes(camexp, data, tmp_path, uninterrupted):
    """Held still after its first batch, it keeps others out; killed with -9, the same command ends it."""
    records = tmp_path / "run" / "records.csv"
    process = start(options(data, tmp_path / "run", *SLOW), tmp_path)
    try:
        wait_for_rows(records, process)
        process.send_signal(signal.SIGSTOP)
        second = camexp(*SLOW)
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT)
    assert second.status == 2
    assert "another run is writing to" in second.err
    assert process.returncode == -signal.SIGKILL
    partial = records.read_bytes()
    assert len(HEADER) + 1 < len(partial) < len(uninterrupted)
    assert uninterrupted.startswith(partial)
    assert info(tmp_path / "run")["complete"] is False
    resumed = camexp(*SLOW)
    assert (resumed.status, "pairs computed; 11 rows" in resumed.out) == (0, True)
    assert "11 pairs computed" not in resumed.out
    assert records.read_bytes() == uninterrupted
    assert info(tmp_path / "run")["complete"] is True


def test_interrupted_run_exits_with_130_and_resumes(camexp, data, tmp_path, uninterrupted):
    records = tmp_path / "run" / "records.csv"
    process = start(options(data, tmp_path / "run", *SLOW), tmp_path)
    try:
        wait_for_rows(records, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert f"finished batches are in {tmp_path / 'run'}; the same command goes on" in err
    assert "Traceback" not in err
    assert len(records.read_bytes()) < len(uninterrupted)
    assert camexp(*SLOW).status == 0
    assert records.read_bytes() == uninterrupted


@pytest.mark.parametrize("cut", [20, len(HEADER) + 1, 300, 700, -1])
def test_torn_records_resume_to_the_same_bytes(camexp, tmp_path, cut):
    camexp()
    records = tmp_path / "run" / "records.csv"
    whole = records.read_bytes()
    records.write_bytes(whole[:cut])
    ended = camexp()
    assert (ended.status, "pairs computed; 11 rows" in ended.out) == (0, True)
    assert records.read_bytes() == whole
    assert list(pd.read_csv(tmp_path / "run" / "timing.csv").kind).count("batch") == 3


# ------------------------------------------------------------------------------------------ independence


@pytest.mark.parametrize("method", [("gradcam",), ("igcam", "method.m=3"), ("rise", "method.masks=20")])
def test_values_do_not_depend_on_batches(camexp, tmp_path, method):
    """`batch_size` is refused in the same folder, as last bits differ; `forward_batch` is not."""
    name, *parameters = method
    chosen = (f"method={name}", *parameters, "limit=3", "runtime.trials=0")
    assert camexp(*chosen, output="two").status == 0
    assert camexp(*chosen, "batch_size=3", output="three").status == 0
    assert camexp(*chosen, "forward_batch=3", output="rows").status == 0
    two, three, rows = (table(tmp_path / name) for name in ("two", "three", "rows"))
    assert len(two) == 5
    assert_close(three, two, 1e-4)
    assert_close(rows, two, 1e-4)


PLAIN = [
    *("fold_batch_norms=false", "channels_last=false", "packed_weights=false", "winograd=false"),
    *("fused_activations=false", "onednn_linear=false", "inference_mode=false", "tail_backward=false"),
    *("share_classes=false", "keep_freed_memory=false"),
]


@pytest.mark.parametrize("switched", [["forward_batch=7"], PLAIN], ids=" ".join)
def test_other_techniques_go_on_in_the_same_folder(camexp, tmp_path, switched):
    camexp()
    records = tmp_path / "run" / "records.csv"
    whole = table(tmp_path / "run")
    records.write_bytes(records.read_bytes()[:300])
    ended = camexp(*switched)
    assert ended.status == 0
    assert "pairs computed; 11 rows" in ended.out
    assert "0 pairs computed" not in ended.out
    assert "11 pairs computed" not in ended.out
    assert_close(table(tmp_path / "run"), whole, 1e-4)


def test_limit_keeps_the_first_images(camexp, tmp_path):
    assert camexp("method=random", output="all").status == 0
    assert camexp("method=random", "limit=3", output="three").status == 0
    everything, three = table(tmp_path / "all"), table(tmp_path / "three")
    assert list(three.image_id.unique()) == ["000001", "000002", "000003"]
    assert_close(three, everything[everything.image_id.isin(three.image_id)], 1e-4)
    assert info(tmp_path / "three")["images"] == 3


def test_seed_changes_what_is_random(camexp, tmp_path):
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        assert camexp("method=random", f"seed={seed}", output=name).status == 0
    a, b, c = (table(tmp_path / name) for name in "abc")
    assert a.equals(c)
    assert (a.ebpg != b.ebpg).all()


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ("method.m=3", "method.m: 2 -> 3"),
        ("batch_size=3", "batch_size: 2 -> 3"),
        ("limit=2", "limit: None -> 2"),
        ("seed=1", "weights_sha256: 'random:0' -> 'random:1'"),
        ("protocol.score=sigmoid", "protocol.score: 'softmax' -> 'sigmoid'"),
        ("metrics.drop.share=0.2", "metrics.drop.share: 0.15 -> 0.2"),
        ("model=vgg16", "model.name: 'resnet50' -> 'vgg16'"),
    ],
)
def test_other_identity_is_refused(camexp, tmp_path, igcam_run, changed, field):
    shutil.copytree(igcam_run, tmp_path / "run")
    before = contents(tmp_path / "run")
    ended = camexp("method=igcam", "method.m=2", changed)
    assert ended.status == 2
    assert str(tmp_path / "run") in ended.err
    assert field in ended.err
    assert "overwrite=true" in ended.err
    assert contents(tmp_path / "run") == before


@pytest.fixture(scope="module")
def igcam_run(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("igcam") / "run"
    execute(compose_config(options(data, folder, "method=igcam", "method.m=2", "runtime.trials=0")))
    return folder


@pytest.mark.parametrize(
    ("override", "choices"),
    [
        ("method=nosuch", ["gradcam", "igcam", "rise", "sise"]),
        ("dataset=nosuch", ["minivoc", "voc2007", "coco2014", "severstal"]),
        ("model=nosuch", ["resnet50", "resnet101", "vgg16"]),
    ],
)
def test_unknown_name_lists_the_choices(camexp, override, choices):
    ended = camexp(override)
    assert ended.status != 0
    assert override.replace("=", "/") in ended.err
    assert set(choices) <= set(ended.err.split())


def test_unknown_option_is_refused(camexp):
    ended = camexp("method=igcam", "method.points=3")
    assert ended.status != 0
    assert "points" in ended.err


def test_missing_data_say_what_where_and_how(camexp, tmp_path):
    (tmp_path / "empty").mkdir()
    ended = camexp("dataset=voc2007", data=tmp_path / "empty")
    assert ended.status == 2
    assert "VOC2007 not found" in ended.err
    assert str(tmp_path / "empty" / "VOCdevkit" / "VOC2007") in ended.err
    assert "make data-voc2007" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.m=0", "method.m of igcam must be at least 1, not 0"),
        ("method.m=2.5", "method.m must be an integer, not 2.5"),
        ("method.m=true", "method.m must be an integer, not True"),
        ("method.m=many", "method.m must be an integer, not 'many'"),
        ("method.layer=fc", "layer 'fc' puts out 8 values per image, not channels of maps"),
        ("method._target_=gone.Method", "method: cannot import gone.Method: No module named 'gone'"),
        ("method._target_=camexp.methods.igcam.IGCAM", "module camexp.methods.igcam has no IGCAM"),
        ("limit=abc", "limit must be an integer, not 'abc'"),
        ("seed=1.5", "seed must be an integer, not 1.5"),
        ("runtime.trials=some", "runtime.trials must be an integer, not 'some'"),
        ("limit=0", "limit must be at least 1, not 0"),
        ("batch_size=0", "batch_size must be at least 1, not 0"),
        ("forward_batch=0", "forward_batch must be at least 1, not 0"),
        ("protocol.score=tanh", "protocol.score must be one of softmax, sigmoid, logit, not 'tanh'"),
        ("protocol.fill=white", "protocol.fill must be fed_zero or black_pixel, not 'white'"),
        ("overwrite=no", "overwrite must be true or false, not 'no'"),
        ("runtime.only=off", "runtime.only must be true or false, not 'off'"),
        ("share_classes=0", "share_classes must be true or false, not 0"),
        ("output=", "output must name a folder"),
        ("model.width=abc", "model.width must be a positive number, not 'abc'"),
        ("~method._target_", "the config of method lacks _target_"),
        ("~method.name", "the config of method lacks name"),
        ("save_maps=-1", "save_maps must be at least 0, not -1"),
        ("workers=all", "workers must be an integer, not 'all'"),
        ("protocol.size=0", "protocol.size must be a number of pixels from 1 on, not 0"),
        ("protocol.size=large", "protocol.size must be a number of pixels from 1 on, not 'large'"),
        ("protocol.resize=stretch", "protocol.resize must be squash or shorter_side, not 'stretch'"),
        ("model.preprocess=none", "unknown model.preprocess 'none'"),
        ("model.layers.cam=layer9", "the network has no layer 'layer9'"),
        ("device=warp", "device=warp cannot be used"),
        ("model.checkpoint=null", "no checkpoint for model=resnet50 on dataset=minivoc"),
        ("model.checkpoint=gone.pth", "checkpoint not found: looked for"),
    ],
)
def test_bad_value_is_named(camexp, override, message):
    ended = camexp("method=igcam", override)
    assert ended.status == 2, ended.err
    assert message in ended.err


def test_an_option_of_the_training_that_there_is_not_is_a_mistake(tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "train.py"
    process = subprocess.Popen(
        [sys.executable, script, "model=resnet5"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "resnet50" in err


@pytest.mark.parametrize("option", ["method=nosuch", "model=resnet5", "method.layr=x", "metrics.ebgp.scaling=clip"])
def test_an_option_that_there_is_not_is_a_mistake(tmp_path, option):
    """In a process of its own, because Hydra ends that."""
    process = start(options(tmp_path, tmp_path / "run", option), tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert option.partition("=")[0].rpartition(".")[2] in err or option.partition("=")[2] in err


def test_a_mistyped_run_does_not_block_its_folder(camexp):
    assert camexp("method=hirescam", "method.layer=layer9").status == 2
    assert camexp("method=hirescam").status == 0


@pytest.mark.parametrize(
    "mistake", ["protocol.resize=stretch", "save_maps=-1", "batch_size=0", "workers=-1", "retry=yes"]
)
def test_a_mistake_beside_overwrite_deletes_nothing(camexp, mistake):
    assert camexp("method=uniform", "limit=2").status == 0
    assert camexp("method=uniform", "limit=2", "overwrite=true", mistake).status == 2
    assert "already finished" in camexp("method=uniform", "limit=2").out


def test_a_run_that_ends_before_it_is_described_does_not_block_its_folder(camexp, monkeypatch):
    def end(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "environment", end)
        assert camexp("method=uniform", "limit=2").status == 130
    assert camexp("method=uniform", "limit=2").status == 0


def test_error_in_a_methods_own_code_is_not_taken_for_a_finished_run(tmp_path):
    (tmp_path / "broken_method.py").write_text(OWN.format("None"))
    given = options(tmp_path, tmp_path / "run", "method=uniform", "method._target_=broken_method.Own", "limit=2")
    process = start(given, tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "in __call__" in err  # where it is
    assert "TypeError" in err


OWN = """from dataclasses import dataclass

import torch

@dataclass(frozen=True)
class Own:
    def __call__(self, classifier, images, pairs):
        return torch.ones(len(pairs), *images.shape[2:]) * {}
"""


def test_rows_of_another_formula_are_never_mixed(camexp, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    given = ("method=uniform", "method._target_=mixed_method.Own", "limit=2")
    for text, status in ((OWN.format(1), 0), ("# a remark\n" + OWN.format(1), 0), (OWN.format(2), 2)):
        (tmp_path / "mixed_method.py").write_text(text)
        monkeypatch.delitem(sys.modules, "mixed_method", raising=False)
        linecache.clearcache()
        ended = camexp(*given)
        assert ended.status == status, ended.err
    assert "method_source: " in ended.err
    assert "overwrite=true" in ended.err


def test_run_times_alone_say_so(camexp):
    ended = camexp("method=uniform", "runtime.only=true")
    assert (ended.status, "1 run time taken; 0 rows" in ended.out) == (0, True)
    assert "run times already taken" in camexp("method=uniform", "runtime.only=true").out


def test_checkpoint_that_does_not_fit_names_its_keys(camexp, tmp_path):
    state = build("resnet50", 5, 0.125).state_dict()
    state["extra.weight"] = state.pop("conv1.weight")
    torch.save(state, tmp_path / "other.pth")
    ended = camexp(f"model.checkpoint={tmp_path / 'other.pth'}")
    assert ended.status == 2
    assert "does not fit the network" in ended.err
    assert "fc.weight: shape (5, 256) in the file, (8, 256) in the network" in ended.err
    assert "conv1.weight: missing in the file" in ended.err
    assert "extra.weight: not in the network" in ended.err
    (tmp_path / "torn.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:1000])
    ended = camexp(f"model.checkpoint={tmp_path / 'torn.pth'}")
    assert (ended.status, "cannot read the checkpoint" in ended.err) == (2, True)


def test_checkpoint_is_known_by_its_content_not_its_name(camexp, tmp_path):
    torch.manual_seed(3)
    torch.save(build("resnet50", 8, 0.125).state_dict(), tmp_path / "one.pth")
    shutil.copy(tmp_path / "one.pth", tmp_path / "two.pth")
    assert camexp("method=uniform", f"model.checkpoint={tmp_path / 'one.pth'}").status == 0
    ended = camexp("method=uniform", f"model.checkpoint={tmp_path / 'two.pth'}")
    assert (ended.status, "already finished" in ended.out) == (0, True)
    torch.save(build("resnet50", 8, 0.125).state_dict(), tmp_path / "two.pth")
    ended = camexp("method=uniform", f"model.checkpoint={tmp_path / 'two.pth'}")
    assert (ended.status, "weights_sha256" in ended.err) == (2, True)


# ---------------------------------------------------------------------------------------------- failures


def jpeg(data: Path, image_id: str) -> Path:
    return data / "minivoc" / "test-6" / "VOC2007" / "JPEGImages" / f"{image_id}.jpg"


def xml(data: Path, image_id: str) -> Path:
    return data / "minivoc" / "test-6" / "VOC2007" / "Annotations" / f"{image_id}.xml"


def test_corrupt_image_is_listed_and_retried(camexp, data, own_data, tmp_path):
    assert camexp(output="clean").status == 0
    clean = table(tmp_path / "clean")
    broken = jpeg(own_data, "000004")
    broken.write_bytes(broken.read_bytes()[:2000])
    ended = camexp(data=own_data)
    assert ended.status == 1
    assert "failures listed in" in ended.out
    listed = failures(tmp_path / "run")
    expected = clean[clean.image_id == "000004"]
    assert len(expected) >= 2
    assert list(listed.image_id) == ["000004"] * len(expected)
    assert list(listed.class_id.astype(int)) == list(expected.class_id)
    assert listed.reason.str.contains("truncated").all()
    assert_close(table(tmp_path / "run"), clean[clean.image_id != "000004"], 1e-4)
    assert info(tmp_path / "run")["failures"] == len(expected)

    before = contents(tmp_path / "run")
    ended = camexp(data=own_data)
    assert (ended.status, "already finished, nothing to do" in ended.out) == (1, True)
    assert contents(tmp_path / "run") == before

    shutil.copy(jpeg(data, "000004"), broken)
    ended = camexp(data=own_data)
    assert ended.status == 1  # only what is asked for is tried again
    ended = camexp("retry=true", data=own_data)
    assert (ended.status, f"{11 - 6} pairs computed; 11 rows" in ended.out) == (0, True)
    for name in ("records.csv", "failures.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()


def test_retry_of_run_times_alone_leaves_rows_and_failures(camexp, own_data, tmp_path):
    jpeg(own_data, "000004").unlink()
    assert camexp(data=own_data).status == 1
    before = contents(tmp_path / "run")
    camexp("retry=true", "runtime.only=true", "runtime.trials=2", data=own_data)
    after = contents(tmp_path / "run")
    for name in ("records.csv", "failures.csv"):
        assert after[name] == before[name]
    assert info(tmp_path / "run")["complete"]


def test_retry_of_what_is_still_broken_lists_it_again(camexp, own_data, tmp_path):
    jpeg(own_data, "000004").unlink()
    assert camexp(data=own_data).status == 1
    before = {name: content for name, content in contents(tmp_path / "run").items() if name.endswith("s.csv")}
    assert camexp("retry=true", data=own_data).status == 1
    after = contents(tmp_path / "run")
    assert {name: after[name] for name in before} == before


def test_pair_without_ground_truth_fails_alone(camexp, own_data, tmp_path):
    """Its image has another pair, which the runtime's trials may draw."""
    path = xml(own_data, "000005")
    tree = ElementTree.parse(path)
    for thing in tree.getroot().iter("object"):
        if thing.findtext("name") == "ball":
            for corner in ("xmin", "xmax"):
                thing.find(f"bndbox/{corner}").text = "5000"
    tree.write(path)
    ended = camexp("runtime.trials=20", "runtime.warmup=0", data=own_data)
    assert ended.status == 1, ended.err
    listed = failures(tmp_path / "run")
    assert list(zip(listed.image_id, listed.class_id, strict=True)) == [("000005", "0")]
    assert "ground truth: box (5000, " in listed.reason[0]
    assert len(table(tmp_path / "run")) == 10
    timing = pd.read_csv(tmp_path / "run" / "timing.csv", dtype={"image_id": str})
    assert "000005" in set(timing.image_id[timing.kind == "trial"])
    assert (timing.kind == "trial").sum() == 20


def test_unreadable_annotation_is_listed_on_every_run(camexp, own_data, tmp_path):
    xml(own_data, "000003").write_text("<annotation><object>")
    for _ in range(2):
        assert camexp("method=uniform", data=own_data).status == 1
        listed = failures(tmp_path / "run")
        assert list(zip(listed.image_id, listed.class_id, strict=True)) == [("000003", "")]
        assert "000003" not in set(table(tmp_path / "run").image_id)


def test_unreadable_image_without_pairs_ends_every_run_alike(camexp, own_data, tmp_path):
    xml(own_data, "000004").write_text("<annotation></annotation>")
    jpeg(own_data, "000004").unlink()
    first = camexp("method=uniform", data=own_data)
    listed = failures(tmp_path / "run")
    again = camexp("method=uniform", data=own_data)
    assert again.status == first.status
    assert failures(tmp_path / "run").equals(listed)


def test_batch_of_nothing_but_failures(camexp, own_data, tmp_path):
    for image_id in ("000003", "000004"):
        jpeg(own_data, image_id).unlink()
    assert camexp(data=own_data).status == 1
    assert set(failures(tmp_path / "run").image_id) == {"000003", "000004"}
    ended = camexp(data=own_data)
    assert (ended.status, "already finished" in ended.out) == (1, True)


def test_map_that_is_not_finite_is_a_failure(camexp, tmp_path, monkeypatch):
    original = Uniform.__call__

    def spoil(self, classifier, images, pairs):
        maps = original(self, classifier, images, pairs).clone()
        maps[[image_id == "000004" and c == 6 for _, image_id, c in pairs]] = torch.nan
        return maps

    camexp("method=uniform", output="clean")
    monkeypatch.setattr(Uniform, "__call__", spoil)
    assert camexp("method=uniform").status == 1
    listed = failures(tmp_path / "run")
    assert list(zip(listed.image_id, listed.class_id, listed.reason, strict=True)) == [
        ("000004", "6", "the method's map is not finite")
    ]
    monkeypatch.setattr(Uniform, "__call__", original)
    assert camexp("method=uniform", "retry=true").status == 0
    assert (tmp_path / "run" / "records.csv").read_bytes() == (tmp_path / "clean" / "records.csv").read_bytes()


def test_confidence_that_is_not_finite_is_a_failure(camexp, tmp_path, monkeypatch):
    scores = Classifier.scores

    def of_one_image_none(self, images):
        found = scores(self, images)
        found[0] = torch.nan
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "scores", of_one_image_none)
        assert camexp("method=uniform", "limit=2", "batch_size=2").status == 1
    listed = failures(tmp_path / "run")
    assert listed.reason.str.contains("confidence").all()
    assert 0 < len(listed) < 3
    assert len(table(tmp_path / "run")) == 3 - len(listed)
    assert camexp("method=uniform", "limit=2", "batch_size=2", "retry=true").status == 0
    assert len(table(tmp_path / "run")) == 3


def test_full_disk_exits_with_2_and_resumes(camexp, tmp_path, monkeypatch):
    camexp("method=uniform", output="clean")
    real, calls = os.fsync, []

    def fill_up(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 8:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    ended = camexp("method=uniform")
    monkeypatch.setattr(os, "fsync", real)
    assert ended.status == 2, ended.err
    assert "the disk is full" in ended.err
    assert camexp("method=uniform").status == 0
    assert (tmp_path / "run" / "records.csv").read_bytes() == (tmp_path / "clean" / "records.csv").read_bytes()


# --------------------------------------------------------------------------------------------- in process


def test_execute_tells_what_it_did(data, tmp_path):
    cfg = compose_config(options(data, tmp_path / "run", "method=uniform", "limit=2"))
    first = execute(cfg)
    assert (first.path, first.rows, first.failures) == (tmp_path / "run", 3, 0)
    assert (first.computed, execute(cfg).computed) == (3, 0)


def test_execute_raises_errors_for_people(data, tmp_path):
    with pytest.raises(CamexpError, match="rise needs"):
        execute(compose_config(options(data, tmp_path / "run", "method=rise", "method.masks=0")))
