"""The report: statistics against naive references, cells against hand-made runs, and one path from run to table."""

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from camexp.config import compose_config
from camexp.errors import CamexpError
from camexp.experiment import Column, Experiment, load_experiment, run_name
from camexp.places import CONFIGS
from camexp.plan import plan
from camexp.records import PAIR_COLUMNS
from camexp.report import latex
from camexp.report.build import PUBLISHED, build_tables
from camexp.report.collect import read_results
from camexp.report.main import FORMATS, print_report
from camexp.report.markdown import render
from camexp.report.runs import read_run
from camexp.report.table import build_cells, read_published
from camexp.report.verdicts import Tolerance, verdict
from camexp.runner import execute

HEADER = ",".join([*PAIR_COLUMNS, "ebpg"]) + "\n"
GOOD = "a,0,x,0.5,1,0,0.2,0,0.5\n"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def write_run(
    results: Path, dataset: str, method: str, rows: list[tuple[str, int, float]], /, variant: dict | None = None, **info
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
    return build_cells(experiment, read_results(results).runs, read_published(PUBLISHED, experiment.published))


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


def test_a_method_of_ones_own_stands_beside_gradcam(tmp_path):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5), ("b", 0, 0.6)])
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.1)], {"layer": "layer3"})
    write_run(tmp_path, "ministeel", "gradcam", [("a", 0, 0.2)])
    write_run(tmp_path, "minivoc", "mine", [("a", 0, 0.7), ("b", 0, 0.8)])
    (table,) = [t for t in build_tables(read_results(tmp_path)) if t.experiment.name == "runs_minivoc"]
    assert [column.label for column in table.experiment.columns] == ["Grad-CAM", "Grad-CAM, layer=layer3", "mine"]
    ours = next(line for line in render(table.experiment, table.cells).splitlines() if "EBPG" in line)
    assert [cell.strip() for cell in ours.split("|")[3:6]] == ["<u>55.0</u>", "10.0", "**75.0**"]


def test_other_protocols_have_no_yardstick_of_this_one(tmp_path):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5)])
    identity = {"protocol.name": "torchray"}
    write_run(tmp_path, "minivoc", "mine", [("a", 0, 0.7)], identity=identity)
    (table,) = [t for t in build_tables(read_results(tmp_path)) if t.experiment.name == "runs_minivoc"]
    assert [column.label for column in table.experiment.columns] == ["mine, torchray"]


def test_a_cell_without_a_run_is_empty_and_named(tmp_path):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5)])
    experiment = experiment_of("minivoc", Column("gradcam", "Grad-CAM"), Column("sise", "SISE"))
    text = render(experiment, cells_of(tmp_path, experiment))
    ours = next(line for line in text.splitlines() if "EBPG" in line)
    assert [cell.strip() for cell in ours.split("|")[3:5]] == ["50.0", ""]
    assert "Empty cells were not run: ResNet-50 SISE" in text


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
    if listed["dataset"].nunique() > 1:  # the pointing game's file holds four tables
        variant = {column.published for column in experiment.columns}
        listed = listed[listed["dataset"].str.startswith(experiment.dataset.removeprefix("mini"))]
        listed = listed[listed["variant"].isin(variant)]
    assert len(listed) > 0
    assert sorted(cells["published"].dropna()) == sorted(listed["value"])


def test_runs_with_other_seeds_are_one_column_with_a_standard_error(tmp_path):
    values = [0.5, 0.6, 0.7]
    for seed, value in enumerate(values):
        identity = {"seed": seed, "method.seed": seed}
        write_run(tmp_path / str(seed), "minivoc", "rise", [("a", 0, value), ("b", 0, value)], identity=identity)
    experiment = experiment_of("minivoc", Column("rise", "RISE", seeds=(0, 1, 2)))
    cells = cells_of(tmp_path, experiment)
    cell = cells.iloc[0]
    assert cell["value"] == pytest.approx(60.0)
    assert cell["se_runs"] == pytest.approx(10.0 / 3**0.5)
    assert (cell["runs"], cell["pairs"], cell["images"]) == (3, 2, 2)
    assert "standard errors over runs: ResNet-50 RISE EBPG 5.77" in render(experiment, cells)
    planned = plan([experiment])
    assert [run.name for run in planned] == [f"minivoc/resnet50/rise{suffix}" for suffix in ("", "-seed1", "-seed2")]
    assert "seed=2" in planned[2].overrides


# -------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 0.7], "inside"),  # 50 to 70 around the published 60.08
        ([0.595, 0.595], "within"),
        ([0.575, 0.575], "outside"),
    ],
)
def test_verdict_of_a_cell(tmp_path, values, expected):
    write_run(tmp_path, "voc2007", "gradcam", [(str(i), 0, value) for i, value in enumerate(values)])
    experiment = experiment_of("voc2007", Column("gradcam", "Grad-CAM"), Column("sise", "SISE"))
    cells = cells_of(tmp_path, experiment)
    assert cells["verdict"].tolist() == [expected, "not run"]
    sign = {"inside": "=", "within": "≈", "outside": "≠"}[expected]
    assert f"{cells['difference'].iloc[0]:+.1f} {sign}" in render(experiment, cells)


def test_tolerance_of_times_is_a_factor_and_a_wider_one_changes_the_verdict():
    assert verdict(0.02, 0.019, 0.021, 0.0113, "s", True, Tolerance()) == "within"
    assert verdict(0.03, 0.029, 0.031, 0.0113, "s", True, Tolerance()) == "outside"
    assert verdict(0.03, 0.029, 0.031, 0.0113, "s", True, Tolerance(factor=3)) == "within"
    assert verdict(50, 49, 51, 55, "%", True, Tolerance(points=5)) == "within"
    assert verdict(50, 49, 51, np.nan, "%", True, Tolerance()) == "not published"


@pytest.mark.parametrize(
    ("dataset", "info"),
    [
        ("minivoc", {}),
        ("voc2007", {"complete": False}),
        ("voc2007", {"identity": {"limit": 10}}),
        ("voc2007", {"identity": {"dataset.split": "val"}}),
        ("voc2007", {"identity": {"weights_sha256": "random:0"}}),
    ],
)
def test_other_data_are_never_compared(tmp_path, dataset, info):
    write_run(tmp_path, dataset, "gradcam", [("a", 0, 0.6)], **info)
    cell = cells_of(tmp_path, experiment_of(dataset, Column("gradcam", "Grad-CAM"))).iloc[0]
    assert cell["verdict"] == "other data"
    assert np.isnan(cell["difference"])
    assert cell["value"] == 60.0


def test_suspicious_published_cells_are_marked_and_every_entry_has_its_cell():
    entries = OmegaConf.to_container(OmegaConf.load(PUBLISHED / "suspicious.yaml"))
    assert len(entries) >= 4
    for entry in entries:
        listed = read_published(PUBLISHED, entry["table"])
        for field in ("model", "method", "metric"):
            listed = listed[listed[field] == entry.get(field, listed[field])]
        assert len(listed) > 0, entry
    ablation = load_experiment("mini_sise_coco2014")
    cells = build_cells(ablation, {}, read_published(PUBLISHED, ablation.published))
    doubtful = cells[cells["suspicious"] != ""]
    assert sorted(zip(doubtful["model"], doubtful["method"], strict=True)) == [
        ("resnet50", "integrated_gradients"),
        ("vgg16", "gradcam_pp"),
        ("vgg16", "integrated_gradients"),
    ]
    for form in ("terminal", "markdown", "latex"):
        assert "Doubtful as published" in " ".join(FORMATS[form](ablation, cells, None).split())


def test_means_over_classes_where_the_table_says_so(tmp_path):
    write_run(tmp_path, "voc2007", "gradcam", [("a", 0, 1.0), ("b", 0, 1.0), ("c", 0, 1.0), ("d", 7, 0.0)])
    experiment = replace(experiment_of("voc2007", Column("gradcam", "Grad-CAM")), average="macro")
    cell = cells_of(tmp_path, experiment).iloc[0]
    assert cell["value"] == 50.0
    assert 50.0 <= cell["high"] <= 100.0
    assert cell["verdict"] in ("inside", "outside", "within")


def test_fewer_masks_than_in_the_paper_are_said(tmp_path):
    write_run(tmp_path, "minivoc", "rise", [("a", 0, 0.5)], variant={"masks": 100})
    experiment = experiment_of("minivoc", Column("rise", "RISE", (("masks", 100),)))
    assert "Fewer than in the papers: RISE masks 100 of 8000" in render(experiment, cells_of(tmp_path, experiment))


@pytest.mark.parametrize("label", ["Integrated Grad-CAM", "Integrated Grad-CAM, m = 50"])
def test_parameters_are_noted_where_the_label_does_not_say_them(tmp_path, label):
    write_run(tmp_path, "minivoc", "igcam", [("a", 0, 0.5)], variant={"m": 50})
    experiment = experiment_of("minivoc", Column("igcam", label, (("m", 50),)))
    noted = "Other than the default parameters: ResNet-50 Integrated Grad-CAM (m=50)."
    assert (noted in render(experiment, cells_of(tmp_path, experiment))) == ("50" not in label)


# --------------------------------------------------------------------------------------------------- formats


@pytest.fixture
def many(tmp_path) -> tuple[Experiment, pd.DataFrame]:
    experiment = replace(load_experiment("mini_sise_voc2007"), metrics=("ebpg", "runtime"), models=("resnet50",))
    for number, column in enumerate(experiment.columns[:-1]):
        rows = [(str(i), 0, 0.05 * number + 0.1 * (i % 2)) for i in range(6)]
        write_run(tmp_path, "minivoc", column.method, rows, variant=dict(column.overrides))
    return experiment, cells_of(tmp_path, experiment)


def test_terminal_keeps_to_a_hundred_columns_and_shows_every_value(many):
    experiment, cells = many
    text = FORMATS["terminal"](experiment, cells, None)
    assert max(map(len, text.splitlines())) <= 100
    for value in cells.loc[cells["metric"] == "ebpg", "value"].dropna():
        assert f"{value:.1f}" in text
    for column in experiment.columns:
        assert column.label.split()[0] in text


def test_latex_is_ascii_with_balanced_braces_and_even_rows(many):
    experiment, cells = many
    text = FORMATS["latex"](experiment, cells, None)
    assert text.isascii()
    depth = 0
    for character in text.replace("\\{", "").replace("\\}", ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    ampersands = {len(re.findall(r"(?<!\\)&", row)) for row in rows}
    assert ampersands == {len(experiment.columns) + 1}
    assert text.count("\\begin{") == text.count("\\end{")
    assert text.count("\\textbf{") >= 1
    assert text.count("\\underline{") >= 1
    for rule in ("\\toprule", "\\midrule", "\\bottomrule"):
        assert rule in text


def test_latex_escapes_what_tex_would_misread():
    escaped = latex.escape("50 % of a_b & c#d ~ ^ {x} < 1 – µ \\ é")
    assert escaped.isascii()
    assert "50 \\% of a\\_b \\& c\\#d \\textasciitilde{}" in escaped
    assert "$<$ 1 -- $\\mu$" in escaped


def test_latex_compiles(many, tmp_path):
    compiler = shutil.which("tectonic") or shutil.which("pdflatex")
    if compiler is None:
        pytest.skip("neither tectonic nor pdflatex is installed; the structure is checked in other tests")
    document = "\\documentclass{article}\\usepackage{booktabs}\\usepackage{graphicx}\\begin{document}\n"
    (tmp_path / "a.tex").write_text(document + FORMATS["latex"](*many, None) + "\\end{document}\n")
    quiet = ["-interaction=nonstopmode", "-halt-on-error"] if compiler.endswith("pdflatex") else []
    done = subprocess.run([compiler, *quiet, "a.tex"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "a.pdf").stat().st_size > 1000


def test_csv_holds_every_cell(many):
    _, cells = many
    read = pd.read_csv(io.StringIO(FORMATS["csv"](*many, None)))
    np.testing.assert_allclose(read["value"], cells["value"], rtol=1e-5)
    assert {"verdict", "conflict", "suspicious", "low", "high", "published", "difference"} <= set(read)


def test_every_format_is_written_whatever_is_printed(tmp_path, capsys):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5)])
    for form in FORMATS:
        print_report(tmp_path, [load_experiment("mini_igcam_voc2007")], form)
        assert "50" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == [
        f"mini_igcam_voc2007.{ending}" for ending in ("csv", "md", "tex")
    ]


def test_details_are_printed_and_written(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for method, gain in (("gradcam", 0.0), ("igcam", 0.2), ("uniform", -0.3)):
        rows = [(str(i), i % 3, 0.5 + gain + 0.02 * rng.random()) for i in range(12)]
        write_run(tmp_path, "minivoc", method, rows)
    experiment = replace(load_experiment("mini_igcam_voc2007"), models=("resnet50",))
    print_report(tmp_path, [experiment], with_details=True)
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("| Grad-CAM ") and "±" in line)
    assert re.search(r"-(19|20)\.\d ±\d\.\d\*", line)
    assert "EBPG beyond the object's share" in printed
    written = pd.read_csv(tmp_path / "tables" / "mini_igcam_voc2007_comparisons.csv")
    assert len(written) == 3
    assert (written["p_holm"] < 0.05).all()
    groups = pd.read_csv(tmp_path / "tables" / "mini_igcam_voc2007_breakdowns.csv")
    assert set(groups["by"]) == {"class", "area", "probability", "argmax"}
    ranked = pd.read_csv(tmp_path / "tables" / "ranks.csv").set_index("method")["rank"]
    assert ranked.to_dict() == {"Integrated Grad-CAM": 1.0, "Grad-CAM": 2.0}


def test_details_leave_out_runs_that_may_not_be_compared(tmp_path, capsys):
    rows = [(str(i), i % 3, 0.5 + 0.01 * i) for i in range(12)]
    write_run(tmp_path, "minivoc", "gradcam", rows[:2], identity={"limit": 2, "pairs_sha256": "b"})
    write_run(tmp_path, "minivoc", "uniform", rows[:6], identity={"limit": None, "pairs_sha256": "a"}, complete=False)
    for method in ("igcam", "gradcam_pp"):
        write_run(tmp_path, "minivoc", method, rows, identity={"limit": None, "pairs_sha256": "a"})
    experiment = replace(load_experiment("mini_igcam_voc2007"), models=("resnet50",))
    print_report(tmp_path, [experiment], with_details=True)
    groups = pd.read_csv(tmp_path / "tables" / "mini_igcam_voc2007_breakdowns.csv")
    assert set(groups["column"]) == {"Integrated Grad-CAM", "Grad-CAM++"}
    assert groups.loc[groups["by"] == "area", "pairs"].tolist() == [12, 12]


def test_details_without_content_have_no_heading(tmp_path, capsys):
    write_run(tmp_path, "minivoc", "igcam", [])
    print_report(tmp_path, [load_experiment("mini_igcam_voc2007")], with_details=True)
    printed = capsys.readouterr().out
    assert ": details" not in printed
    assert "Over all tables" not in printed


def test_a_single_image_or_trial_has_no_interval(tmp_path):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5), ("a", 1, 0.7)])
    timing = tmp_path / "minivoc" / "resnet50" / "gradcam" / "timing.csv"
    timing.write_text("".join(timing.read_text().splitlines(keepends=True)[:2]))
    experiment = replace(experiment_of("minivoc", Column("gradcam", "Grad-CAM")), metrics=("ebpg", "runtime"))
    cells = cells_of(tmp_path, experiment)
    assert cells["value"].tolist() == pytest.approx([60.0, 0.5])
    assert cells[["low", "high"]].isna().all(axis=None)
    text = render(experiment, cells)
    assert "interval |" not in text
    assert "2 pairs of 1 image;" in text
    assert "mean of 1 single-image trial on" in text


def test_details_leave_out_a_run_of_which_only_the_time_was_taken(tmp_path, capsys):
    write_run(tmp_path, "minivoc", "gradcam", [("1", 0, 0.5), ("2", 1, 0.6)])
    write_run(tmp_path, "minivoc", "igcam", [])
    experiment = replace(load_experiment("mini_igcam_voc2007"), models=("resnet50",))
    print_report(tmp_path, [experiment], with_details=True)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "| +" in line and "Grad-CAM" in line][:1]
    assert line.startswith("| Grad-CAM ")


# ------------------------------------------------------------------------------------------------- bad input


def test_no_runs_is_said(tmp_path, capsys):
    print_report(tmp_path)
    assert "no runs in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,class_id\na,0\n", "lacks the columns"),
        ("", "lacks the columns"),
        (HEADER + GOOD + "b,0,x,0.5,1,0,0.2,0,\n", "line 3: ebpg is '', not a number"),
        (HEADER + "a,0,x,0.5,1,0,0.2,0,nan\n", "line 2: ebpg is 'nan', not a number"),
        (HEADER + GOOD + "b,0,x,0.5,1,0,0.2,0,50.0\n", "line 3: ebpg is 50, not a fraction"),
        (HEADER + GOOD + "b,0,x,oops,1,0,0.2,0,0.5\n", "line 3: prob is 'oops', not a number"),
        (HEADER + GOOD + "b,zero,x,0.5,1,0,0.2,0,0.5\n", "line 3: class_id is 'zero', not a whole number"),
        (HEADER + GOOD + "b,0,x,0.5\n" + GOOD, "line 3: 4 fields, expected 9"),
        (HEADER + GOOD + "b,0,x,0.5,1,0,0.2,0,0.5,7\n", "line 3: 10 fields, expected 9"),
        (HEADER + GOOD + "b,1,x,0.5,1,0,0.2,0,0.5\n" + GOOD, "line 4: image a, class 0 has a row already"),
        (HEADER + GOOD + "b,0,x,0.5,1,0,0.2,0,inf\n", "line 3: ebpg is"),
    ],
)
def test_damaged_records_are_named_with_their_line(tmp_path, text, message):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5)])
    folder = tmp_path / "minivoc" / "resnet50" / "gradcam"
    (folder / "records.csv").write_text(text)
    with pytest.raises(CamexpError, match=message):
        read_run(folder)


def test_commas_and_line_breaks_in_names_and_names_like_nan_are_names(tmp_path):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5)])
    folder = tmp_path / "minivoc" / "resnet50" / "gradcam"
    (folder / "records.csv").write_text(
        HEADER + '"a,b",0,"cup, or\nmug",0.5,1,0,0.2,0,0.5\nNA,0,nan,0.5,1,0,0.2,0,0.7\n001,0,x,0.5,1,0,0.2,0,0.7\n'
    )
    rows = read_run(folder).rows
    assert rows["image_id"].tolist() == ["a,b", "NA", "001"]
    assert rows["class_name"].tolist() == ["cup, or\nmug", "nan", "x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read .*run.json"),
        ("[]", "lacks or has of the wrong kind: dataset"),
        ('{"dataset": "minivoc"}', "lacks or has of the wrong kind: model, method"),
        (None, "run.json is missing"),
    ],
)
def test_a_torn_or_missing_run_json_does_not_stop_the_others(tmp_path, capsys, text, message):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5)])
    write_run(tmp_path, "minivoc", "igcam", [("a", 0, 0.75)])
    path = tmp_path / "minivoc" / "resnet50" / "gradcam" / "run.json"
    path.unlink() if text is None else path.write_text(text)
    print_report(tmp_path)
    printed = capsys.readouterr().out
    assert re.search("! not shown: .*" + message, printed)
    assert "75.0" in printed
    assert "50.0" not in printed


def test_a_torn_last_line_is_left_out_and_the_run_marked(tmp_path, capsys):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5), ("b", 0, 0.7)], rows=2)
    path = tmp_path / "minivoc" / "resnet50" / "gradcam" / "records.csv"
    path.write_text(path.read_text()[:-2])  # 0.7 would read as 0.
    experiment = experiment_of("minivoc", Column("gradcam", "Grad-CAM"))
    print_report(tmp_path, [experiment])
    printed = capsys.readouterr().out
    assert "50.0†" in printed
    assert "the last line of records.csv is torn" in printed
    assert "run.json counts 2 rows, records.csv has 1" in printed


def test_columns_and_metrics_of_a_newer_version_are_kept_out_and_said(tmp_path, capsys):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5)], metrics=["ebpg", "telepathy"])
    path = tmp_path / "minivoc" / "resnet50" / "gradcam" / "records.csv"
    pd.read_csv(path).assign(telepathy=0.3, colour="red").to_csv(path, index=False)
    print_report(tmp_path)
    printed = capsys.readouterr().out
    assert "the columns colour of records.csv are unknown and are left out" in printed
    assert "the metrics telepathy are not known to this version" in printed
    assert "50.0" in printed


def test_missing_times_leave_only_the_run_time_empty(tmp_path, capsys):
    write_run(tmp_path, "minivoc", "gradcam", [("a", 0, 0.5)])
    folder = tmp_path / "minivoc" / "resnet50" / "gradcam"
    (folder / "timing.csv").unlink()
    (folder / "failures.csv").unlink()
    run = read_run(folder)
    assert len(run.trials) == 0
    assert len(run.remarks) == 2
    cells = cells_of(tmp_path, replace(experiment_of("minivoc", Column("gradcam", "G")), metrics=("ebpg", "runtime")))
    assert cells.set_index("metric")["verdict"].to_dict()["runtime"] == "not run"


@pytest.mark.parametrize(
    "field", ["protocol.score", "weights_sha256", "annotations_sha256", "limit", "metrics.ebpg.source"]
)
def test_runs_that_disagree_are_marked_named_and_not_ranked(tmp_path, field):
    for method, value in {"gradcam": 0.5, "igcam": 0.6, "sise": 0.9}.items():
        identity = {"protocol.score": "softmax", "weights_sha256": "w", "annotations_sha256": "a", "limit": None}
        identity |= {"metrics.ebpg.source": "s"} | ({field: 7} if method == "sise" else {})
        write_run(tmp_path, "voc2007", method, [("a", 0, value)], identity=identity)
    experiment = experiment_of("voc2007", *(Column(m, m) for m in ("gradcam", "igcam", "sise")))
    cells = cells_of(tmp_path, experiment).set_index("column")
    assert cells["conflict"].astype(bool).to_dict() == {"gradcam": False, "igcam": False, "sise": True}
    assert cells.loc["sise", "verdict"] == "other data"
    text = render(experiment, cells.reset_index())
    ours = next(line for line in text.splitlines() if "EBPG" in line)
    assert [c.strip() for c in ours.split("|")[3:6]] == ["<u>50.0</u>", "**60.0**", "90.0‡"]
    assert f"‡ Unlike most runs of this table, not to be compared: ResNet-50 sise {field}" in text


def test_runs_of_before_the_hash_of_metrics_stand_in_the_table(tmp_path):
    for method, source in {"gradcam": {"metrics.ebpg.source": "s"}, "igcam": {}}.items():
        write_run(tmp_path, "voc2007", method, [("a", 0, 0.5)], identity={"metrics.ebpg._target_": "t"} | source)
    cells = cells_of(tmp_path, experiment_of("voc2007", Column("gradcam", "G"), Column("igcam", "I")))
    assert not cells["conflict"].astype(bool).any()


@pytest.mark.parametrize("others", [{}, {"weights_sha256": "old"}], ids=["same weights", "other weights"])
def test_runs_of_a_few_images_do_not_set_the_whole_run_apart(tmp_path, others):
    for method, limit in {"gradcam": 4, "igcam": 4, "sise": None}.items():
        identity = {"limit": limit, "weights_sha256": "w"} | (others if limit else {})
        write_run(tmp_path, "voc2007", method, [("a", 0, 0.5)], identity=identity)
    experiment = experiment_of("voc2007", *(Column(m, m) for m in ("gradcam", "igcam", "sise")))
    cells = cells_of(tmp_path, experiment).set_index("column")
    assert cells["conflict"].astype(bool).to_dict() == {"gradcam": True, "igcam": True, "sise": False}


def test_seeds_made_under_another_protocol_are_never_averaged(tmp_path):
    for seed, (value, score) in enumerate([(0.5, "softmax"), (0.7, "softmax"), (0.9, "sigmoid")]):
        identity = {"seed": seed, "protocol.score": score}
        write_run(tmp_path / str(seed), "minivoc", "rise", [("a", 0, value)], identity=identity)
    found = read_results(tmp_path)
    assert found.runs["minivoc", "resnet50", "rise"].rows["ebpg"].tolist() == [0.5, 0.7]
    assert "protocol.score: 'softmax' -> 'sigmoid'" in found.problems[0]


def test_a_copy_of_a_run_is_not_another_seed(tmp_path):
    for copy in ("one", "two"):
        write_run(tmp_path / copy, "minivoc", "rise", [("a", 0, 0.5)], identity={"seed": 0})
    found = read_results(tmp_path)
    assert len(found.runs["minivoc", "resnet50", "rise"].rows) == 1
    assert "with the same seed" in found.problems[0]


def test_published_numbers_that_are_none_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("dataset,model,method,variant,metric,value\nvoc2007,vgg16,gradcam,,ebpg,5o\n")
    with pytest.raises(CamexpError, match="line 2: the value is not a number"):
        read_published(tmp_path, "t")


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
    lines = [line for line in printed.splitlines() if line.startswith("Grad-CAM ")]
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
