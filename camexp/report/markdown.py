"""Tables in Markdown, padded so that they read well in a terminal too."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from camexp.experiment import Experiment
from camexp.report.table import Quantity, quantity

MODELS = {"vgg16": "VGG16", "resnet50": "ResNet-50", "resnet101": "ResNet-101"}


def render(experiment: Experiment, cells: pd.DataFrame) -> str:
    """A table: three lines per model and metric (ours, interval, published), columns for methods, then notes."""
    labels = [column.label for column in experiment.columns]
    rows = [["model", "", *labels]]
    for model in experiment.models:
        for metric in experiment.metrics:
            shown = quantity(metric)
            found = cells[(cells["model"] == model) & (cells["metric"] == metric)].set_index("column").loc[labels]
            name = MODELS.get(model, model) if metric == experiment.metrics[0] else ""
            rows.append([name, shown.heading, *_emphasised(found, shown)])
            if found["value"].notna().any():
                rows.append(["", "95 % interval", *(_interval(cell, shown) for _, cell in found.iterrows())])
            if found["published"].notna().any():
                rows.append(["", "published", *(_published(value) for value in found["published"])])
    table = _grid(rows)
    return f"## {experiment.title}\n\n{table}\n\n{_notes(experiment, cells)}\n"


def _text(value: float, shown: Quantity) -> str:
    """Percent with one decimal, seconds with three significant digits; empty for NaN."""
    if pd.isna(value):
        return ""
    return f"{value:.1f}" if shown.unit == "%" else f"{value:#.3g}"


def _emphasised(found: pd.DataFrame, shown: Quantity) -> list[str]:
    """Our values: the best method bold, the second underlined; controls take no part."""
    texts = [_text(value, shown) for value in found["value"]]
    rivals = found[~found["control"].astype(bool) & found["value"].notna()]
    # values that read the same rank the same
    order = rivals["value"].sort_values(ascending=not shown.higher_is_better)
    levels = list(dict.fromkeys(_text(value, shown) for value in order))
    styles = dict(zip(levels, ("**{}**", "<u>{}</u>"), strict=False))
    if len(rivals) < 2:
        return texts
    return [
        styles.get(text, "{}").format(text) if label in rivals.index else text
        for label, text in zip(found.index, texts, strict=True)
    ]


def _interval(cell: pd.Series, shown: Quantity) -> str:
    return "" if pd.isna(cell["low"]) else f"{_text(cell['low'], shown)}–{_text(cell['high'], shown)}"


def _published(value: float) -> str:
    return "" if pd.isna(value) else f"*{value:g}*"


def _grid(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _notes(experiment: Experiment, cells: pd.DataFrame) -> str:
    """What the numbers rest on: data, counts, intervals, variants, degenerate maps, failures, missing runs."""
    run = cells.dropna(subset=["value"])
    notes = []
    if experiment.dataset.startswith("mini"):
        notes.append(
            f"{experiment.dataset} is procedural and its networks are small: **the numbers are not the papers'**; "
            f"the published values ({experiment.published}) stand there for orientation and are not compared."
        )
    measured = run[run["metric"] != "runtime"]
    if len(measured):
        counts = sorted({(int(p), int(i)) for p, i in zip(measured["pairs"], measured["images"], strict=True)})
        text = " or ".join(f"{pairs} pairs of {images} images" for pairs, images in counts)
        notes.append(f"Means over {text}; intervals: bootstrap over images.")
    timed = run[run["metric"] == "runtime"]
    if len(timed):
        notes.append(
            f"Run time: seconds per map, batch 1, mean of {int(timed['pairs'].min())} single-image trials on this "
            "machine; intervals: bootstrap over trials."
        )
    notes += _per_run(run, "variant", "Other than the default parameters: {}.", str)
    repeated = run[run["se_runs"].notna()] if len(run) else run
    if len(repeated):
        errors = [
            f"{MODELS.get(m, m)} {c} {quantity(q).label} {se:.2f}"
            for m, c, q, se in repeated[["model", "column", "metric", "se_runs"]].itertuples(index=False)
        ]
        notes.append(f"Means over runs with other seeds; standard errors over runs: {', '.join(errors)}.")
    notes += _per_run(run, "degenerate", "Constant maps (degenerate): {}.", lambda value: f"{value:g}")
    notes += _per_run(run, "failures", "Failed and not counted: {}.", lambda value: f"{value:g}")
    unfinished = sorted({f"{c.model} {c.column}" for c in run.itertuples() if not c.complete})
    if unfinished:
        notes.append(f"**Unfinished runs: {', '.join(unfinished)}.**")
    absent = cells[cells["value"].isna()]
    if len(absent):
        names = sorted({f"{c.model} {c.column}" for c in absent.itertuples()})
        notes.append(f"Empty cells were not run: {', '.join(names)}.")
    return "\n".join(f"- {note}" for note in notes)


def _per_run(run: pd.DataFrame, field: str, text: str, show: Callable[[Any], str]) -> list[str]:
    """One note that lists a field's value for the runs where it is not empty or zero."""
    if field not in run:
        return []
    told = run.dropna(subset=[field])
    told = told[told[field].astype(bool)].drop_duplicates(["model", "column"])
    names = told["model"].map(lambda model: MODELS.get(model, model)) + " " + told["column"]
    listed = ", ".join(f"{name} {show(value)}" for name, value in zip(names, told[field], strict=True))
    return [text.format(listed)] if listed else []
