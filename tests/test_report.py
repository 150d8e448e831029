"""The report: statistics against naive references, cells against hand-made runs, and one path from run to table."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from camexp import reproduce
from camexp.config import CONFIGS, compose_config
from camexp.errors import CamexpError
from camexp.experiment import Column, Experiment, load_experiment, load_suite, run_name
from camexp.records import PAIR_COLUMNS
from camexp.report.main import PUBLISHED, print_report, runs_by_name
from camexp.report.markdown import render
from camexp.report.runs import find_runs
from camexp.report.statistics import bootstrap_mean, macro_mean
from camexp.report.table import build_cells, read_published
from camexp.runner import execute

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def write_run(
    results: Path, dataset: str, method: str, rows: list[tuple[str, int, float]], variant: dict | None = None, **info
) -> None:
    """A finished run of resnet50 with (image, class, ebpg) rows and two trials."""
    name = run_name(method, variant or {})
    folder = results / dataset / "resnet50" / name
    folder.mkdir(parents=True)
    table = pd.DataFrame(rows, columns=["image_id", "class_id", "ebpg"])
    for column in PAIR_COLUMNS:
        if column not in table:
            table[column] = 0
    table.to_csv(folder / "records.csv", index=False)
    (folder / "timing.csv").write_text(
        "kind,batch,image_id,images,pairs,load_s,explain_s,metrics_s\n" + "trial,,a,1,1,,0.5,\n" * 2
    )
    (folder / "failures.csv").write_text("image_id,class_id,reason\n")
    described = {"dataset": dataset, "model": "resnet50", "method": method, "variant": variant or {}}
    (folder / "run.json").write_text(json.dumps(described | {"metrics": ["ebpg"], "complete": True} | info))


def experiment_of(dataset: str, *columns: Column) -> Experiment:
    return Experiment("test", "A table", "sise_voc2007", dataset, ("resnet50",), ("ebpg",), columns)


def cells_of(results: Path, experiment: Experiment) -> pd.DataFrame:
    return build_cells(experiment, runs_by_name(results), read_published(PUBLISHED, experiment.published))


# ------------------------------------------------------------------------------------------------ statistics


def test_bootstrap_draws_images_not_pairs():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), rng.integers(1, 4, 30))
    values = rng.random(30)[clusters]  # the pairs of an image agree completely
    estimate = bootstrap_mean(values, clusters)
    naive = []
    for _ in range(4000):
        drawn = rng.integers(30, size=30)
        naive.append(np.concatenate([values[clusters == image] for image in drawn]).mean())
    assert estimate.mean == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=0.015)
    independent = bootstrap_mean(values, np.arange(len(values)))
    assert estimate.high - estimate.low > 1.15 * (independent.high - independent.low)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        values = rng.exponential(1.0, 60)
        estimate = bootstrap_mean(values, np.arange(60), resamples=400)
        covered += estimate.low <= 1.0 <= estimate.high
    assert 0.88 <= covered / 300 <= 0.98  # a skewed variable loses a little of 0.95


def test_interval_is_the_same_from_report_to_report():
    values, clusters = np.arange(10.0), np.arange(10)
    assert bootstrap_mean(values, clusters) == bootstrap_mean(values, clusters)


def test_chunks_do_not_change_the_shape_of_the_interval():
    values = np.random.default_rng(2).random(50_000)
    estimate = bootstrap_mean(values, np.arange(50_000), resamples=200)
    standard_error = values.std() / np.sqrt(len(values))
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * standard_error, rel=0.2)


def test_macro_mean_by_hand():
    assert macro_mean(np.array([1.0, 0.0, 0.0, 0.5]), np.array([3, 3, 3, 7])) == pytest.approx((1 / 3 + 0.5) / 2)


# ----------------------------------------------------------------------------------------------------- cells


def test_cells_by_hand(tmp_path):
    write_run(tmp_path, "voc2007", "gradcam", [("a", 0, 0.5), ("a", 1, 0.7), ("b", 0, 0.9)])
    cell = cells_of(tmp_path, experiment_of("voc2007", Column("gradcam", "Grad-CAM"))).iloc[0]
    assert cell["value"] == pytest.approx(70.0)
    assert cell["macro"] == pytest.approx(70.0)
    assert (cell["pairs"], cell["images"]) == (3, 2)
    assert cell["published"] == 60.08
    assert cell["difference"] == pytest.approx(70.0 - 60.08)
    assert cell["low"] == pytest.approx(60.0)  # image a twice
    assert cell["high"] == pytest.approx(90.0)  # image b twice


def test_other_data_and_unfinished_runs_are_shown_but_not_compared(tmp_path):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5)])
    write_run(tmp_path, "voc2007", "gradcam", [("a", 0, 0.5)], complete=False)
    for dataset in ("minivoc", "voc2007"):
        experiment = experiment_of(dataset, Column("gradcam", "Grad-CAM"))
        cells = cells_of(tmp_path, experiment)
        assert cells["value"].iloc[0] == 50.0
        assert np.isnan(cells["difference"].iloc[0])
        text = render(experiment, cells)
        assert ("not the papers'" in text) == (dataset == "minivoc")
        assert ("Unfinished" in text) == (dataset == "voc2007")


def test_a_cell_without_a_run_is_empty_and_named(tmp_path):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5)])
    experiment = experiment_of("minivoc", Column("gradcam", "Grad-CAM"), Column("sise", "SISE"))
    text = render(experiment, cells_of(tmp_path, experiment))
    ours = next(line for line in text.splitlines() if "EBPG" in line)
    assert [cell.strip() for cell in ours.split("|")[3:5]] == ["50.0", ""]
    assert "Empty cells were not run: resnet50 SISE" in text


def test_best_is_bold_second_underlined_ties_share_and_controls_take_no_part(tmp_path):
    values = {"gradcam": 0.6, "gradcam_pp": 0.7, "igcam": 0.7, "uniform": 0.99}
    for method, value in values.items():
        write_run(tmp_path, "minivoc", method, [("a", 0, value)])
    experiment = experiment_of("minivoc", *(Column(method, method) for method in values))
    ours = next(line for line in render(experiment, cells_of(tmp_path, experiment)).splitlines() if "EBPG" in line)
    assert [c.strip() for c in ours.split("|")[3:7]] == ["<u>60.0</u>", "**70.0**", "**70.0**", "99.0"]


def test_variant_finds_its_published_cell(tmp_path):
    ablation = load_experiment("mini_sise_mu_ablation")
    cells = build_cells(ablation, {}, read_published(PUBLISHED, ablation.published))
    found = cells[cells["metric"] == "ebpg"].set_index("column")["published"]
    assert found.to_dict() == {"mu = 0": 66.08, "mu = 0.3": 66.54, "mu = 0.5": 65.84, "mu = 0.75": 62.5}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_published_cell_of_a_listed_method_has_its_place(name):
    experiment = load_experiment(name)
    published = read_published(PUBLISHED, experiment.published)
    cells = build_cells(experiment, {}, published)
    listed = published[
        published["method"].isin({c.method for c in experiment.columns}) & published["model"].isin(experiment.models)
    ]
    assert len(listed) > 0
    assert sorted(cells["published"].dropna()) == sorted(listed["value"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_of_an_experiment_composes(name):
    experiment = load_experiment(name)
    for model, column in experiment.runs():
        cfg = compose_config(reproduce.overrides_of(experiment.dataset, model, column))
        assert cfg.output == f"results/{experiment.dataset}/{model}/{column.run_name}"
        for parameter, value in column.overrides:
            assert cfg.method[parameter] == value


def test_suite_runs_each_run_once():
    runs = reproduce.planned(load_suite("mini"))
    assert runs["minivoc/resnet50/sise-mu0.3"][-2:] == [
        "method.mu=0.3",
        "output=${results_dir}/minivoc/resnet50/sise-mu0.3",
    ]
    outputs = [overrides[-1] for overrides in runs.values()]
    assert len(outputs) == len(set(outputs))


def test_runs_with_other_seeds_are_one_column_with_a_standard_error(tmp_path):
    values = [0.5, 0.6, 0.7]
    for seed, value in enumerate(values):
        write_run(tmp_path / str(seed), "minivoc", "rise", [("a", 0, value), ("b", 0, value)])
    experiment = experiment_of("minivoc", Column("rise", "RISE", seeds=(0, 1, 2)))
    cells = cells_of(tmp_path, experiment)
    cell = cells.iloc[0]
    assert cell["value"] == pytest.approx(60.0)
    assert cell["se_runs"] == pytest.approx(10.0 / 3**0.5)
    assert (cell["runs"], cell["pairs"], cell["images"]) == (3, 2, 2)
    assert "standard errors over runs: ResNet-50 RISE EBPG 5.77" in render(experiment, cells)
    planned = reproduce.planned([experiment])
    assert list(planned) == [f"minivoc/resnet50/rise{suffix}" for suffix in ("", "-seed1", "-seed2")]
    assert "seed=2" in planned["minivoc/resnet50/rise-seed2"]


# ------------------------------------------------------------------------------------------------- bad input


def test_no_runs_is_said(tmp_path, capsys):
    print_report(tmp_path)
    assert "no runs in" in capsys.readouterr().out


def test_unknown_suite_names_the_choices():
    with pytest.raises(CamexpError, match=r"no suite or experiment 'maxi'; suites: mini; experiments: .*mini_igcam"):
        load_suite("maxi")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("records.csv", "image_id,class_id\na,0\n", "lacks the columns"),
        ("records.csv", ",".join([*PAIR_COLUMNS, "ebpg"]) + "\na,0,x,0,0,0,0,0,\n", "line 2: a metric is empty"),
        ("run.json", "{", "cannot read the run"),
    ],
)
def test_damaged_runs_are_named(tmp_path, name, text, message):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5)])
    (tmp_path / "minivoc" / "resnet50" / "gradcam" / name).write_text(text)
    with pytest.raises(CamexpError, match=message):
        find_runs(tmp_path)


# ------------------------------------------------------------------------------------------------ end to end


def test_from_run_to_table(tmp_path, capsys):
    options = [f"data_dir={tmp_path / 'data'}", f"results_dir={tmp_path / 'results'}", "dataset.images=4"]
    cheap = ["model.checkpoint=random", "batch_size=2", "runtime.trials=1", "runtime.warmup=0"]
    overrides = ["dataset=minivoc", "model=resnet50", "method=gradcam", *options, *cheap]
    outcome = execute(compose_config(overrides))
    assert outcome.path == tmp_path / "results" / "minivoc" / "resnet50" / "gradcam"
    print_report(tmp_path / "results")
    printed = capsys.readouterr().out
    rows = pd.read_csv(outcome.path / "records.csv")
    lines = [line for line in printed.splitlines() if "mIoU" in line]
    assert any(f" {100 * rows['miou'].mean():.1f} " in line for line in lines)
    written = pd.read_csv(tmp_path / "results" / "tables" / "mini_sise_voc2007.csv")
    ours = written[(written["model"] == "resnet50") & (written["method"] == "gradcam")].set_index("metric")["value"]
    for metric in ("ebpg", "miou", "bbox", "drop", "increase"):
        assert ours[metric] == pytest.approx(100 * rows[metric].mean(), rel=1e-4)


def test_own_method_gets_its_row(tmp_path, capsys):
    write_run(tmp_path, "minivoc", "mymethod", [("a", 0, 0.25)], variant={"power": 3})
    print_report(tmp_path)
    printed = capsys.readouterr().out
    assert "mymethod, power=3" in printed
    assert "25.0" in printed


def test_reproduce_skips_what_cannot_run_with_a_reason(tmp_path, capsys, monkeypatch):
    only = experiment_of("voc2007", Column("gradcam", "Grad-CAM"))
    monkeypatch.setattr(reproduce, "load_suite", lambda name: [only])
    status = reproduce.main(["any", "--jobs=1", f"data_dir={tmp_path}", f"results_dir={tmp_path / 'results'}"])
    assert status == 2
    assert "voc2007/resnet50/gradcam: skipped: VOC2007 not found" in capsys.readouterr().err


def test_reproduce_in_processes_makes_what_one_process_makes(tmp_path, capsys, monkeypatch):
    columns = (Column("gradcam", "Grad-CAM"), Column("random", "random"))
    only = Experiment("test", "A table", "sise_runtime", "minivoc", ("resnet50",), ("ebpg", "runtime"), columns)
    monkeypatch.setattr(reproduce, "load_suite", lambda name: [only])
    options = [f"data_dir={tmp_path / 'data'}", "dataset.images=3", "model.checkpoint=random", "runtime.trials=1"]
    for jobs in (1, 2):
        assert reproduce.main(["any", f"--jobs={jobs}", *options, f"results_dir={tmp_path / str(jobs)}"]) == 0
    assert "[2/2] minivoc/resnet50/" in capsys.readouterr().err
    for method in ("gradcam", "random"):
        one, two = (tmp_path / jobs / "minivoc" / "resnet50" / method for jobs in ("1", "2"))
        first, second = (pd.read_csv(folder / "records.csv") for folder in (one, two))
        pd.testing.assert_frame_equal(first, second, rtol=1e-3)
        assert (pd.read_csv(two / "timing.csv")["kind"] == "trial").sum() == 1
