"""Suites: the plan of runs, what it says before anything runs, and running them."""

from pathlib import Path

import pandas as pd
import pytest

from camexp import reproduce
from camexp.config import compose_config
from camexp.errors import CamexpError
from camexp.experiment import Column, Experiment, load_experiment, load_suite, probe_seconds
from camexp.methods import FAMILIES
from camexp.places import CONFIGS
from camexp.plan import overrides_of, plan
from camexp.runner import execute
from camexp.survey import Surveyor, describe, duration

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
SUITES = sorted(path.stem for path in (CONFIGS / "suite").glob("*.yaml"))
METHODS = {method for methods in FAMILIES.values() for method in methods}


def experiment(dataset: str = "minivoc", *columns: Column, **changed) -> Experiment:
    parts = {"metrics": ("ebpg",), "models": ("resnet50",), "columns": columns or (Column("gradcam", "Grad-CAM"),)}
    return Experiment(name="test", title="A table", published="sise_voc2007", dataset=dataset, **(parts | changed))


def small(tmp_path: Path, *options: str) -> list[str]:
    return [f"data_dir={tmp_path / 'data'}", f"results_dir={tmp_path / 'results'}", "dataset.images=3", *options]


# ------------------------------------------------------------------------------------------------------ plan


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_of_an_experiment_composes(name):
    loaded = load_experiment(name)
    for model, column in loaded.runs():
        cfg = compose_config(list(overrides_of(loaded, model, column)))
        assert cfg.output == f"results/{loaded.dataset}/{model}/{column.run_name}"
        assert cfg.protocol.name == loaded.protocol
        assert set(loaded.metrics) - {"runtime"} <= set(cfg.metrics)
        for parameter, value in column.overrides:
            assert cfg.method[parameter] == value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_methods_that_only_papers_have_are_marked(name):
    for column in load_experiment(name).columns:
        assert column.offered == (column.method in METHODS)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("experiment", "title: [", "cannot read .*broken.yaml: while parsing"),
        ("experiment", "title: a table", "broken.yaml: the key 'published' is missing"),
        ("experiment", "- a\n- b", "broken.yaml: a value is of the wrong kind"),
        (
            "experiment",
            "{title: t, published: p, dataset: d, models: 3}",
            "broken.yaml: a value is of the wrong kind: 'int'",
        ),
        ("suite", "options: []", "suite/broken.yaml: the key 'experiments' is missing"),
        ("suite", "3", "suite/broken.yaml"),
    ],
)
def test_broken_experiment_or_suite_says_where_and_what(tmp_path, monkeypatch, kind, text, said):
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "broken.yaml").write_text(text)
    monkeypatch.setattr("camexp.experiment.CONFIGS", tmp_path)
    with pytest.raises(CamexpError, match=said):
        {"experiment": load_experiment, "suite": load_suite}[kind]("broken")


@pytest.mark.parametrize("suite", SUITES)
def test_suite_runs_each_run_once(suite):
    runs = plan(load_suite(suite))
    assert len({run.name for run in runs}) == len(runs)
    outputs = {next(option for option in run.overrides if option.startswith("output=")) for run in runs}
    assert len(outputs) == len(runs)


def test_every_paper_table_has_an_experiment_and_a_mini_version():
    tables = {path.stem for path in (CONFIGS.parent / "results" / "published").glob("*.csv")}
    real = {load_experiment(name).published for name in EXPERIMENTS if not name.startswith("mini_")}
    mini = {load_experiment(name).published for name in EXPERIMENTS if name.startswith("mini_")}
    assert real == mini == tables
    assert {e.name for e in load_suite("paper")} == {name for name in EXPERIMENTS if not name.startswith("mini_")}
    assert {e.name for e in load_suite("mini")} == {name for name in EXPERIMENTS if name.startswith("mini_")}


def test_tables_share_runs():
    rows, times = experiment(), experiment(metrics=("runtime",), options=("runtime.trials=100",))
    (run,) = plan([rows, times], ["limit=2"])
    assert (run.timed, run.rows) == (True, True)
    assert run.overrides[-2:] == ("runtime.trials=100", "limit=2")
    (run,) = plan([times])
    assert (run.timed, run.rows) == (True, False)


def test_another_protocol_is_another_folder_with_its_metrics():
    (run,) = plan(
        [experiment(protocol="torchray", metrics=("pointing",), columns=(Column("rise", "RISE", protocol="torchray"),))]
    )
    assert run.name == "minivoc/resnet50/rise-torchray"
    assert {"protocol=torchray", "+metric@metrics.pointing=pointing"} <= set(run.overrides)


def test_seeds_are_runs_of_their_own():
    runs = plan([experiment("minivoc", Column("rise", "RISE", seeds=(0, 1, 2)))])
    assert [run.name for run in runs] == [f"minivoc/resnet50/rise{suffix}" for suffix in ("", "-seed1", "-seed2")]
    assert "seed=2" in runs[2].overrides


# ---------------------------------------------------------------------------------------------------- survey


def test_survey_says_what_is_left_and_how_long_it_takes(tmp_path):
    options = small(tmp_path, "model.checkpoint=random", "runtime.trials=0")
    runs = plan([experiment("minivoc", Column("gradcam", "Grad-CAM"), Column("random", "random"))], options)
    assert reproduce.run_one(runs[1])[1] == 0
    first, second = Surveyor(budget=20).survey(runs)
    assert (first.state, first.problem) == ("new", "")
    assert first.left == first.pairs > 0
    assert first.seconds is not None
    assert first.seconds > 0
    assert (second.state, second.left, second.seconds) == ("finished", 0, 0.0)
    text = describe([first, second], tmp_path / "results")
    assert "2 runs: 2 can run, 1 of them finished" in text
    assert "GB are free" in text


def test_survey_counts_what_an_interrupted_run_has_written(tmp_path):
    options = small(tmp_path, "model.checkpoint=random", "runtime.trials=0")
    (run,) = plan([experiment("minivoc", Column("random", "random"))], options)
    assert reproduce.run_one(run)[1] == 0
    folder = Path(compose_config(list(run.overrides)).output)
    header, *rows = (folder / "records.csv").read_text().splitlines(keepends=True)
    (folder / "records.csv").write_text("".join([header, *rows[:-2]]))
    image_id, class_id = rows[-1].split(",")[:2]
    (folder / "failures.csv").write_text(f"image_id,class_id,reason\n{image_id},{class_id},unreadable\n")
    (found,) = Surveyor(budget=0).survey([run])
    assert (found.left, found.state) == (1, f"{len(rows) - 1} of {len(rows)} pairs")


def test_a_method_that_breaks_does_not_end_the_suite(tmp_path, monkeypatch, capsys):
    def breaks(self, classifier, images, pairs):
        raise RuntimeError("a mistake in the method")

    monkeypatch.setattr("camexp.methods.gradcam.GradCAM.__call__", breaks)
    columns = Column("gradcam", "Grad-CAM"), Column("layercam", "LayerCAM")
    runs = plan([experiment("minivoc", *columns)], small(tmp_path, "model.checkpoint=random", "runtime.trials=0"))
    broken, works = Surveyor(budget=20).survey(runs)
    assert (broken.problem, broken.seconds) == ("", None)
    assert works.seconds > 0
    assert "gradcam: no estimate: RuntimeError: a mistake in the method" in capsys.readouterr().err
    assert reproduce.run_all(runs, jobs=1) == 2
    told = capsys.readouterr().err
    assert f"{runs[0].name}: failed: RuntimeError: a mistake in the method" in told
    assert "in breaks" in told  # where it is
    assert f"{runs[1].name}: " in told
    assert len(pd.read_csv(tmp_path / "results/minivoc/resnet50/layercam/records.csv")) > 0


def test_a_probe_ends_with_its_budget(tmp_path):
    options = small(tmp_path, "model.checkpoint=random", "forward_batch=1")
    (found,) = Surveyor(budget=1e-9).survey(plan([experiment("minivoc", Column("rise", "RISE"))], options))
    assert found.at_least
    assert "> " in describe([found], tmp_path)


def test_no_budget_is_no_probe(tmp_path):
    options = small(tmp_path, "model.checkpoint=random")
    (found,) = Surveyor(budget=0).survey(plan([experiment()], options))
    assert found.seconds is None
    assert "not probed" in describe([found], tmp_path)
    assert probe_seconds("mini") == 0
    assert probe_seconds("paper") > 0


def test_missing_data_and_checkpoints_are_said_once_with_the_command_that_gets_them(tmp_path):
    runs = plan(load_suite("paper"), [f"data_dir={tmp_path}"])
    prospects = Surveyor(budget=20).survey(runs)
    assert {p.state for p in prospects} == {"cannot run"}
    text = describe(prospects, tmp_path / "results")
    for command in (
        "make data-voc2007",
        "make data-coco2014",
        "make data-severstal",
        "make weights",
        "scripts/train.py",
    ):
        assert command in text
    assert text.count("VOC2007 not found") <= 2  # once for each network


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "< 1 s"), (59, "59 s"), (600, "10 min"), (7300, "2.0 h"), (2e5, "2.3 days")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


# ------------------------------------------------------------------------------------------------ reproduce


def test_dry_run_prints_the_plan_only(tmp_path, capsys):
    assert reproduce.main(["paper", "--dry-run", f"data_dir={tmp_path}", f"results_dir={tmp_path / 'results'}"]) == 0
    printed = capsys.readouterr().out
    assert "cannot run: " in printed
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("option", ["method=igcam", "model=vgg16", "++seed=1", "output=elsewhere"])
def test_what_tables_choose_themselves_is_refused(option, tmp_path, capsys):
    assert reproduce.main(["mini", option, f"results_dir={tmp_path}"]) == 2
    name = option.strip("+").split("=")[0]
    assert f"error: {option}: tables choose the {name} of each run" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_plan_tells_of_folders_that_hold_other_runs(tmp_path):
    options = small(tmp_path, "model.checkpoint=random")
    columns = Column("gradcam", "Grad-CAM"), Column("igcam", "Integrated Grad-CAM")
    first, *others = plan([experiment("minivoc", *columns)], options)
    execute(compose_config([*first.overrides, "limit=1"]))
    found, *rest = Surveyor(budget=0).survey([first, *others])
    assert found.state == "cannot run"
    assert "holds another run" in found.problem
    assert "limit: 1 -> None" in found.problem
    assert {each.state for each in rest} == {"new"}
    (again,) = Surveyor(budget=0).survey(plan([experiment("minivoc", *columns)], [*options, "overwrite=true"])[:1])
    assert again.problem == ""


def test_reproduce_skips_what_cannot_run_with_a_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "load_suite", lambda name: [experiment("voc2007")])
    status = reproduce.main(["any", "--jobs=1", f"data_dir={tmp_path}", f"results_dir={tmp_path / 'results'}"])
    assert status == 2
    assert "VOC2007 not found" in capsys.readouterr().out


def test_reproduce_in_processes_makes_what_one_process_makes(tmp_path, capsys, monkeypatch):
    columns = (Column("gradcam", "Grad-CAM"), Column("random", "random"))
    both = experiment("minivoc", *columns, metrics=("ebpg", "runtime"))
    monkeypatch.setattr(reproduce, "load_suite", lambda name: [both])
    options = [*small(tmp_path)[::2], "dataset.images=3", "model.checkpoint=random", "runtime.trials=1"]
    for jobs in (1, 2):
        assert reproduce.main(["mini", f"--jobs={jobs}", *options, f"results_dir={tmp_path / str(jobs)}"]) == 0
    assert "[2/2] minivoc/resnet50/" in capsys.readouterr().err
    for method in ("gradcam", "random"):
        one, two = (tmp_path / jobs / "minivoc" / "resnet50" / method for jobs in ("1", "2"))
        first, second = (pd.read_csv(folder / "records.csv") for folder in (one, two))
        pd.testing.assert_frame_equal(first, second, rtol=1e-3)
        assert (pd.read_csv(two / "timing.csv")["kind"] == "trial").sum() == 1


def test_a_table_of_times_alone_computes_no_rows(tmp_path, capsys, monkeypatch):
    times = experiment(metrics=("runtime",))
    monkeypatch.setattr(reproduce, "load_suite", lambda name: [times])
    options = small(tmp_path, "model.checkpoint=random", "runtime.trials=2", "runtime.warmup=0")
    assert reproduce.main(["mini", "--jobs=1", *options]) == 0
    folder = tmp_path / "results" / "minivoc" / "resnet50" / "gradcam"
    assert len(pd.read_csv(folder / "records.csv")) == 0
    assert (pd.read_csv(folder / "timing.csv")["kind"] == "trial").sum() == 2
    assert "Run time" in capsys.readouterr().out
    # a later run of the rows goes on in the same folder
    (run,) = plan([experiment(metrics=("ebpg", "runtime"))], options)
    assert reproduce.run_one(run)[1] == 0
    assert len(pd.read_csv(folder / "records.csv")) > 0


def test_unknown_suite_names_the_choices():
    with pytest.raises(
        CamexpError, match=r"no suite or experiment 'maxi'; suites: .*paper.*; experiments: .*mini_igcam"
    ):
        load_suite("maxi")
