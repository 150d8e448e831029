"""The page without a browser: its structure, what it embeds, what it refuses, and the numbers behind its charts."""

import base64
import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from camexp.errors import CamexpError
from camexp.experiment import Column, Experiment, run_name
from camexp.maps import INDEX_COLUMNS
from camexp.records import PAIR_COLUMNS
from camexp.report.build import build_tables
from camexp.report.collect import read_results
from camexp.report.page import build
from camexp.report.page import gallery as gallery_module
from camexp.report.page.chart import merged
from camexp.report.page.charts import build_charts
from camexp.report.page.gallery import build_gallery, outline
from camexp.report.page.series import ablations, measured, pareto_front
from camexp.report.page.write import write_page

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"

VALUES = {"gradcam": 0.5, "sise": 0.7, "rise": 0.4, "uniform": 0.3}
SECONDS = {"gradcam": 0.01, "sise": 0.5, "rise": 0.2, "uniform": 0.001}


def write_run(
    results: Path, dataset: str, method: str, variant: dict | None = None, value: float = 0.5, maps: int = 0
) -> Path:
    """A finished run of resnet50 on six images of two classes each, with trials and, on request, saved maps."""
    folder = results / dataset / "resnet50" / run_name(method, variant or {})
    folder.mkdir(parents=True)
    rows = [(f"{1 + i // 2:06}", i % 2, ("cat", EVIL)[i % 2], value + 0.01 * (i - 5.5)) for i in range(12)]
    table = pd.DataFrame(rows, columns=["image_id", "class_id", "class_name", "ebpg"])
    table["drop"] = 1 - table["ebpg"]
    for column in PAIR_COLUMNS:
        if column not in table:
            table[column] = 0
    table.to_csv(folder / "records.csv", index=False)
    seconds = SECONDS.get(method, 0.1)
    (folder / "timing.csv").write_text(
        "kind,batch,image_id,images,pairs,load_s,explain_s,metrics_s\n" + f"trial,,a,1,1,,{seconds},\n" * 3
    )
    with (folder / "failures.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_id", "class_id", "reason"), ("000009", "0", f"image: {EVIL}")])
    parameters = {"mu": 0.0} | (variant or {}) if method == "sise" else variant or {}
    info = {
        "dataset": dataset,
        "model": "resnet50",
        "method": method,
        "variant": variant or {},
        "metrics": ["ebpg", "drop"],
        "complete": True,
        "identity": {f"method.{name}": value for name, value in parameters.items()},
        "environment": {"device": "a processor", "device_type": "cpu", "threads": 2, "torch": "9.9"},
    }
    (folder / "run.json").write_text(json.dumps(info))
    if maps:
        write_maps(folder, rows[:maps])
    return folder


def write_maps(run: Path, rows: list[tuple]) -> None:
    """The saved maps of some pairs: a bright corner, a grey image and a square as ground truth."""
    folder = run / "maps"
    folder.mkdir()
    mask = np.zeros((64, 48), bool)
    mask[10:30, 20:40] = True
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(INDEX_COLUMNS)
        for image_id, class_id, class_name, value in rows:
            stem = f"{image_id}-{class_id}"
            heat = np.linspace(0, 255 * value, 64 * 48).reshape(64, 48).astype(np.uint8)
            Image.fromarray(heat).save(folder / f"{stem}-map.png")
            Image.fromarray(np.full((64, 48, 3), 120, np.uint8)).save(folder / f"{image_id}.jpg")
            Image.fromarray(mask).save(folder / f"{stem}-mask.png")
            files = f"{stem}-map.png", f"{image_id}.jpg", f"{stem}-mask.png"
            writer.writerow([image_id, class_id, class_name, *files, 0, 1])


def table_of(
    dataset: str, name: str, *columns: Column, metrics: tuple[str, ...] = ("ebpg", "drop", "runtime")
) -> Experiment:
    return Experiment(name, f"A table of {dataset}", "sise_voc2007", dataset, ("resnet50",), metrics, columns)


def some_results(results: Path, maps: int = 0) -> list[Experiment]:
    """Runs of two data sets and an ablation, and their tables."""
    for dataset in ("minivoc", "minicoco"):
        for method, value in VALUES.items():
            write_run(results, dataset, method, value=value, maps=maps)
    for mu in (0.3, 0.5):
        write_run(results, "minivoc", "sise", {"mu": mu}, value=0.6, maps=maps)
    columns = [
        Column(method, label) for method, label in zip(VALUES, ("Grad-CAM", "SISE", "RISE", "uniform"), strict=True)
    ]
    ablation = [Column("sise", f"mu = {mu}", (("mu", mu),) if mu else ()) for mu in (0, 0.3, 0.5)]
    tables = [table_of(dataset, f"test_{dataset}", *columns) for dataset in ("minivoc", "minicoco")]
    return [*tables, table_of("minivoc", "test_ablation", *ablation)]


def tables_of(results: Path, experiments: list[Experiment]) -> tuple[list, dict]:
    found = read_results(results)
    return [(t.experiment, t.cells) for t in build_tables(found, experiments)], found.runs


def page_of(results: Path, experiments: list[Experiment]) -> Path:
    """The page without figures for papers."""
    found = read_results(results)
    return write_page(found, build_tables(found, experiments), results / "report", figures=False)


class Parsed(HTMLParser):
    """The elements of a page: (tag, attributes), the texts of scripts, and which tables have a caption."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.captions = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        self.captions += tag == "caption"

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> tuple[str, Parsed]:
    results = tmp_path_factory.mktemp("results")
    path = page_of(results, some_results(results, maps=4))
    assert path == results / "report" / "index.html"
    text = path.read_text(encoding="utf-8")
    return text, Parsed(text)


def data_of(parsed: Parsed, name: str):
    return next(json.loads(text) for attributes, text in parsed.scripts if attributes.get("id") == name)


# ------------------------------------------------------------------------------------------------- structure


def test_every_table_has_a_caption_and_every_heading_a_scope(page):
    _, parsed = page
    assert len(parsed.all("table")) == parsed.captions > 6
    headings = parsed.all("th")
    assert {a.get("scope") for a in headings} <= {"row", "col", "rowgroup", "colgroup"}
    sortable = [a for a in headings if "sortable" in (a.get("class") or "")]
    assert len(sortable) == 2 * 9  # three tables of three metrics, in two layouts
    assert all(a["aria-sort"] == "none" for a in sortable)


def test_ids_are_unique_and_references_lead_somewhere(page):
    _, parsed = page
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in parsed.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(ids)
    assert {a["href"][1:] for a in parsed.all("a") if a["href"].startswith("#")} <= set(ids)


def test_scroll_boxes_can_be_reached_and_are_named(page):
    _, parsed = page
    boxes = [a for a in parsed.all("div") if "scroll" in (a.get("class") or "").split()]
    assert boxes
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in boxes)
    assert all("alt" in a for a in parsed.all("img"))
    assert parsed.all("html") == [{"lang": "en"}]


def test_nothing_is_loaded(page):
    _, parsed = page
    for tag, attributes in parsed.elements:
        assert "src" not in attributes, tag
        assert attributes.get("href", "#").startswith(("#", "data:")), tag
    style = (Path(gallery_module.__file__).parent / "assets" / "page.css").read_text()
    assert "@import" not in style
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", style))


def test_policy_admits_the_scripts_of_the_page_and_no_others(page):
    text, parsed = page
    policy = next(a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    allowed = re.search(r"script-src ([^;]*);", policy)[1].split()
    run = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in run]
    assert hashes == allowed
    assert "default-src 'none'" in policy
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)


def test_texts_from_records_are_escaped(page):
    text, parsed = page
    assert EVIL not in text
    assert "<img src=x" not in text
    assert len(parsed.scripts) == 4  # two of data, plotly.js and the page's own
    assert "&lt;img src=x onerror=alert(1)&gt;" in text  # in the list of failures
    pairs = data_of(parsed, "gallery-data")["groups"][0]["pairs"]
    assert {pair["class_name"] for pair in pairs} == {"cat", EVIL}


def test_size_stays_reasonable(page):
    text, parsed = page
    gallery = data_of(parsed, "gallery-data")
    assert len(text) < 6e6  # nearly all of it plotly.js
    assert max(map(len, gallery["pictures"].values())) < 4000
    # one image, one outline for all, and the maps of ten runs
    assert len(gallery["pictures"]) < 4 + 10 * 4


# ----------------------------------------------------------------------------------------------------- tables


def test_cells_sort_by_the_values_of_the_table(page):
    _, parsed = page
    first = [a for a in parsed.all("td") if a.get("data-line") == "0"][:4]
    assert [float(a["data-value"]) for a in first] == pytest.approx([50.0, 70.0, 40.0, 30.0])
    assert [a["data-method"] for a in first] == list(VALUES)


def test_best_and_second_are_words_not_only_looks(page):
    text, _ = page
    row = text[text.index('data-line="0"') :].split("</tr>")[0]
    assert re.findall(r'class="value (\w+)">([\d.]+)</span><span class="rank">(\w+)', row) == [
        ("second", "50.0", "2nd"),
        ("best", "70.0", "1st"),
    ]


def test_embedded_numbers_are_said_not_to_be_the_papers(page):
    text, _ = page
    assert "these numbers are not the papers’" in text
    assert "minivoc, minicoco" in text or "minicoco, minivoc" in text
    assert "a processor, 2 threads" in text
    assert "10 failed and are not counted" in text


# ----------------------------------------------------------------------------------------------------- charts


def test_pareto_front_by_hand():
    times, values = [1, 2, 3, 3, 4], [5, 4, 6, 7, 7]
    assert pareto_front(times, values, True).tolist() == [True, False, False, True, False]
    assert pareto_front(times, values, False).tolist() == [True, True, False, False, False]
    assert pareto_front([1, 1], [2, 2], True).tolist() == [True, True]  # neither beats the other


def test_lines_close_to_each_other_share_a_name():
    assert merged([("oracle", 100.0), ("random", 21.2), ("uniform", 21.0)]) == [
        ("uniform, random", pytest.approx(21.1)),
        ("oracle", 100.0),
    ]


def test_charts_show_the_cells(tmp_path):
    tables, runs = tables_of(tmp_path, some_results(tmp_path))
    charts = {(c.kind, c.dataset, c.metric): c for c in build_charts(tables, runs)}
    assert len(charts) == 2 * 2 * 2 + 1
    time = charts["time", "minivoc", "ebpg"]
    points = {t["text"][0]: t for t in time.figure["data"] if "text" in t}
    assert points["SISE"]["x"] == [pytest.approx(0.5)]
    assert points["SISE"]["y"] == [pytest.approx(70.0)]
    assert {name for name, t in points.items() if t["meta"]["front"]} == {"Grad-CAM", "SISE"}
    assert [s["y0"] for s in time.figure["layout"]["shapes"]] == [pytest.approx(30.0)]  # the control
    violins = charts["distribution", "minivoc", "ebpg"].figure["data"]
    sise = next(v for v in violins if v["name"] == "SISE")
    assert (min(sise["x"]), max(sise["x"])) == (pytest.approx(64.5), pytest.approx(75.5))
    assert len(sise["x"]) == 201


def test_a_metric_of_zeros_and_ones_is_drawn_as_shares(tmp_path):
    experiments = some_results(tmp_path)
    for path in tmp_path.glob("*/*/*/records.csv"):
        rows = pd.read_csv(path, dtype={"image_id": str})
        rows.assign(drop=[0, 1, 1] * 4).to_csv(path, index=False)
    tables, runs = tables_of(tmp_path, experiments)
    chart = next(c for c in build_charts(tables, runs) if (c.kind, c.metric) == ("distribution", "drop"))
    assert {t["type"] for t in chart.figure["data"]} == {"bar"}
    assert chart.figure["data"][0]["x"] == [pytest.approx(200 / 3)]


def test_ablation_takes_a_default_from_the_run(tmp_path):
    tables, runs = tables_of(tmp_path, some_results(tmp_path))
    (curve,) = ablations(tables, runs)
    ebpg = curve.cells[curve.cells["metric"] == "ebpg"]
    assert ebpg["x"].tolist() == [0.0, 0.3, 0.5]
    assert ebpg["value"].tolist() == pytest.approx([70.0, 60.0, 60.0])


def test_a_run_in_two_tables_is_one_point(tmp_path):
    tables, _ = tables_of(tmp_path, some_results(tmp_path))
    cells = measured(tables)
    assert not cells.duplicated(["dataset", "model", "run_name", "metric"]).any()
    assert cells.loc[cells["run_name"] == "sise", "label"].unique().tolist() == ["SISE"]
    assert cells.loc[cells["run_name"] == "sise-mu0.3", "label"].unique().tolist() == ["SISE, mu = 0.3"]


def test_labels_are_not_read_as_html(tmp_path):
    for method in ("gradcam", "sise", "rise"):
        write_run(tmp_path, "minivoc", method)
    experiment = table_of("minivoc", "test", *(Column(m, f"<b>{m}</b>") for m in ("gradcam", "sise", "rise")))
    tables, runs = tables_of(tmp_path, [experiment])
    tables[0][1]["method"] = "other"  # its label is then the column's
    names = json.dumps([chart.figure for chart in build_charts(tables, runs)])
    assert "&lt;b&gt;gradcam" in names
    assert "<b>gradcam" not in names


def test_figures_for_papers(tmp_path):
    experiments = [e for e in some_results(tmp_path) if e.dataset == "minivoc"]
    path = build(tmp_path, experiments, tmp_path / "report")
    figures = path.parent / "figures"
    names = sorted(file.name for file in figures.iterdir())
    assert "time_minivoc_resnet50.svg" in names
    assert "ablation_test_ablation_resnet50_sise.png" in names
    assert len(names) == 2 * 3
    for name in names:
        if name.endswith("png"):
            with Image.open(figures / name) as image:
                assert min(image.size) > 300
    texts = " ".join(ElementTree.parse(figures / "time_minivoc_resnet50.svg").getroot().itertext())
    assert "seconds per map" in texts
    assert "SISE" in texts
    linked = re.findall(r'href="(figures/[^"]*)"', path.read_text())
    assert sorted(link.removeprefix("figures/") for link in linked) == names


# ---------------------------------------------------------------------------------------------------- gallery


def test_gallery_has_the_values_of_each_pair(page):
    _, parsed = page
    group = data_of(parsed, "gallery-data")["groups"][0]
    assert (group["dataset"], group["saved"], len(group["pairs"])) == ("minivoc", 4, 4)
    pair = group["pairs"][0]
    assert (pair["image_id"], pair["class_id"], pair["width"], pair["height"]) == ("000001", 0, 48, 64)
    assert {m["label"]: m["values"]["ebpg"] for m in pair["maps"]} == pytest.approx(
        {"Grad-CAM": 44.5, "SISE": 64.5, "RISE": 34.5, "uniform": 24.5, "SISE, mu = 0.3": 54.5, "SISE, mu = 0.5": 54.5}
    )
    assert [m["label"] for m in pair["maps"] if m["control"]] == ["uniform"]


def test_more_pairs_than_fit_are_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_module, "PAIRS", 3)
    write_run(tmp_path, "minivoc", "sise", maps=12)
    tables, runs = tables_of(tmp_path, [table_of("minivoc", "test", Column("sise", "SISE"))])
    (group,) = build_gallery(tables, runs)["groups"]
    assert group["saved"] == 12
    assert [(p["image_id"], p["class_id"]) for p in group["pairs"]] == [("000001", 0), ("000004", 0), ("000006", 1)]


def test_outline_by_hand():
    mask = np.zeros((7, 7), bool)
    mask[2:5, 2:5] = True
    pixels = np.array(outline(mask))
    ring = np.zeros((7, 7), int)
    ring[2:5, 2:5] = 2
    ring[3, 3] = 1  # the rim is on both sides of the ring
    ring[1, 2:5] = ring[5, 2:5] = ring[2:5, 1] = ring[2:5, 5] = 1
    assert pixels.tolist() == ring.tolist()
    assert np.array(outline(np.ones((3, 3), bool))).tolist() == [[2, 2, 2], [2, 1, 2], [2, 2, 2]]


def test_broken_picture_is_named(tmp_path):
    folder = write_run(tmp_path, "minivoc", "sise", maps=1)
    broken = folder / "maps" / "000001-0-map.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(CamexpError, match=r"000001-0-map\.png"):
        build(tmp_path, [table_of("minivoc", "test", Column("sise", "SISE"))], tmp_path / "report")


def test_without_maps_the_page_says_how_to_save_some(tmp_path):
    text = page_of(tmp_path, some_results(tmp_path)).read_text()
    assert "save_maps=8" in text
    assert not any(attributes.get("id") == "gallery-cards" for _, attributes in Parsed(text).elements)


def test_without_runs_there_is_a_page_that_says_so(tmp_path):
    text = build(tmp_path, None, tmp_path / "report").read_text()
    assert "There are no runs yet" in text
    assert "make reproduce" in text


# ---------------------------------------------------------------------------------------------------- colours


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first: str, second: str) -> float:
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_texts_in_both_modes():
    style = (Path(gallery_module.__file__).parent / "assets" / "page.css").read_text()
    modes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(modes) == 2
    for mode in modes:
        for text in ("text", "muted", "accent"):
            for ground in ("page", "card", "head", "control", "soft"):
                assert contrast(mode[text], mode[ground]) >= 4.5, (text, ground)
        assert contrast(mode["text"], mode["warn"]) >= 4.5
        assert contrast(mode["reference"], mode["card"]) >= 4.5
        assert contrast(mode["focus"], mode["card"]) >= 3
        for line in ("#2f7fc4", "#7d8792"):  # the charts' blue and grey
            assert contrast(line, mode["card"]) >= 3


def test_colour_map_gets_lighter_with_the_value(page):
    text, _ = page
    channels = [re.search(rf'<feFunc{c} type="table" tableValues="([^"]*)"', text)[1].split() for c in "RGB"]
    levels = np.array(channels, float).T
    lights = [luminance("#" + "".join(f"{round(255 * v):02x}" for v in level)) for level in levels]
    assert (np.diff(lights) > 0).all()
