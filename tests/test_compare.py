"""scripts/compare.py: what changed between two runs, and what it cannot compare."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from camexp.records import PAIR_COLUMNS
from camexp.report.compare import compare_folders, render

SCRIPT = Path(__file__).parent.parent / "scripts" / "compare.py"


def load_script():
    spec = importlib.util.spec_from_file_location("compare_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_run(folder: Path, rows: pd.DataFrame, **identity) -> Path:
    folder.mkdir(parents=True)
    table = rows.copy()
    for column in PAIR_COLUMNS:
        if column not in table:
            table[column] = 0
    table.to_csv(folder / "records.csv", index=False)
    header = "kind,batch,image_id,images,pairs,load_s,explain_s,metrics_s\n"
    (folder / "timing.csv").write_text(header)
    (folder / "failures.csv").write_text("image_id,class_id,reason\n")
    info = {"dataset": "minivoc", "model": "vgg16", "method": "gradcam", "variant": {}, "complete": True}
    metrics = [name for name in ("ebpg", "drop") if name in rows]
    (folder / "run.json").write_text(json.dumps(info | {"metrics": metrics, "identity": identity}))
    return folder


@pytest.fixture
def rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(20), 2)
    return pd.DataFrame({"image_id": images, "class_id": [0, 1] * 20, "ebpg": rng.random(40), "drop": rng.random(40)})


def status_of(*arguments) -> int:
    return load_script().main([str(argument) for argument in arguments])


def test_a_run_equals_itself(tmp_path, rows, capsys):
    a, b = make_run(tmp_path / "a", rows, seed=0), make_run(tmp_path / "b", rows.iloc[::-1], seed=0)
    assert status_of(a, b) == 0
    assert "equal (40 common pairs)" in capsys.readouterr().out


def test_changes_are_shown_with_intervals_and_the_pairs_that_changed_most(tmp_path, rows, capsys):
    changed = rows.assign(ebpg=(rows["ebpg"] * 0.5))
    changed.loc[7, "drop"] = 0.0
    a, b = make_run(tmp_path / "a", rows, seed=0), make_run(tmp_path / "b", changed, seed=1)
    assert status_of(a, b) == 1
    printed = capsys.readouterr().out
    assert "identity: seed: 0 -> 1" in printed
    assert f"{-50 * rows['ebpg'].mean():+.4f}" in printed
    assert f"Drop: image 3 class 1 {-100 * rows['drop'][7]:+.3f}" in printed
    (found,), _ = compare_folders(a, b)
    line = found.metrics.loc["ebpg"]
    assert line["low"] < line["difference"] < line["high"] < 0
    assert line["difference"] == pytest.approx(-rows["ebpg"].mean() / 2)


def test_tolerance_is_on_the_means(tmp_path, rows):
    changed = rows.copy()
    changed.loc[0, "ebpg"] += 0.04 if changed.loc[0, "ebpg"] < 0.5 else -0.04  # the mean moves by 0.001
    a, b = make_run(tmp_path / "a", rows), make_run(tmp_path / "b", changed)
    assert status_of(a, b) == 1
    assert status_of(a, b, "--tolerance", "0.0005") == 1
    assert status_of(a, b, "--tolerance", "0.002") == 0


def test_rows_of_one_run_only_are_named_and_the_common_ones_compared(tmp_path, rows, capsys):
    a, b = make_run(tmp_path / "a", rows), make_run(tmp_path / "b", rows.iloc[3:])
    assert status_of(a, b, "--tolerance", "1") == 1
    assert "only in the first: 3 rows (image 0 class 0, image 0 class 1, image 1 class 0)" in capsys.readouterr().out
    (found,), _ = compare_folders(a, b)
    assert (found.metrics["largest"] == 0).all()
    assert len(found.values) == 37


def test_runs_without_a_common_pair_are_different_and_need_no_interval(tmp_path, rows):
    a, b = make_run(tmp_path / "a", rows.iloc[:4]), make_run(tmp_path / "b", rows.iloc[4:])
    (found,), _ = compare_folders(a, b)
    assert not found.equal
    assert "only in the second: 36 rows" in render(found)


def test_results_trees_are_compared_run_by_run(tmp_path, rows, capsys):
    for tree in ("one", "two"):
        make_run(tmp_path / tree / "minivoc" / "vgg16" / "gradcam", rows)
    extra = make_run(tmp_path / "two" / "minivoc" / "vgg16" / "igcam", rows)
    info = json.loads((extra / "run.json").read_text()) | {"method": "igcam"}
    (extra / "run.json").write_text(json.dumps(info))
    assert status_of(tmp_path / "one", tmp_path / "two") == 0
    captured = capsys.readouterr()
    assert "minivoc/vgg16/gradcam: equal" in captured.out
    assert "minivoc/vgg16/igcam" in captured.err


@pytest.mark.parametrize("mistake", ["missing", "empty", "no metric", "torn"])
def test_mistakes_exit_with_two_and_a_message(tmp_path, rows, capsys, mistake):
    a = make_run(tmp_path / "a", rows)
    b = tmp_path / "b"
    if mistake == "empty":
        b.mkdir()
    if mistake == "no metric":
        make_run(b, rows.drop(columns=["ebpg", "drop"]))
    if mistake == "torn":
        make_run(b, rows)
        (b / "run.json").write_text("{")
    assert status_of(a, b) == 2
    expected = {"missing": "is not a folder", "empty": "no run in common", "no metric": "no metric in common"}
    assert expected.get(mistake, "cannot read") in capsys.readouterr().err
