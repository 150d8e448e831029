"""A table as lines of short texts with marks, for every format that people read."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from camexp.experiment import Experiment
from camexp.report.table import Quantity, quantity

MODELS = {"vgg16": "VGG16", "resnet50": "ResNet-50", "resnet101": "ResNet-101"}

SIGNS = {"inside": "=", "within": "≈", "outside": "≠"}
"""Behind a difference: the published value lies in our interval, within the tolerance, or outside of both."""

UNFINISHED, CONFLICT, DOUBTFUL = "†", "‡", "§"


@dataclass(frozen=True)
class Entry:
    """The text of one cell; `rank` is 1 for the best method, 2 for the second, else 0; `marks` lead to the notes."""

    text: str
    rank: int = 0
    marks: str = ""


@dataclass(frozen=True)
class Line:
    """One line of a table: of a model and a metric, one entry per column.

    `kind` is "ours", "interval", "published" or "difference"; `first` is true for a model's first line.
    """

    model: str
    metric: str
    kind: str
    heading: str
    entries: tuple[Entry, ...]
    first: bool = False


def model_name(model: str) -> str:
    """A model's name as the papers write it."""
    return MODELS.get(model, model)


def lines(experiment: Experiment, cells: pd.DataFrame) -> list[Line]:
    """The lines of a table in the papers' order; those in which every entry is empty are left out, save ours."""
    found = []
    for model in experiment.models:
        for metric in experiment.metrics:
            row = row_of(experiment, cells, model, metric)
            found += _lines_of_row(model, metric, row, first=metric == experiment.metrics[0])
    return found


def row_of(experiment: Experiment, cells: pd.DataFrame, model: str, metric: str) -> pd.DataFrame:
    """The cells of one model and metric, in the order of the columns."""
    chosen = cells[(cells["model"] == model) & (cells["metric"] == metric)]
    return chosen.set_index("column").loc[[column.label for column in experiment.columns]]


def _lines_of_row(model: str, metric: str, row: pd.DataFrame, first: bool) -> list[Line]:
    shown = quantity(metric)
    ranks = ranks_of(row, shown)
    cells = [cell for _, cell in row.iterrows()]
    ours = [Entry(text_of(c["value"], shown), rank, _marks(c)) for c, rank in zip(cells, ranks, strict=True)]
    others = {
        "interval": ("95 % interval", [Entry(_interval(cell, shown)) for cell in cells]),
        "published": ("published", [_published(cell) for cell in cells]),
        "difference": ("difference", [Entry(_difference(cell, shown)) for cell in cells]),
    }
    found = [Line(model, metric, "ours", shown.heading, tuple(ours), first)]
    return found + [
        Line(model, metric, kind, heading, tuple(entries))
        for kind, (heading, entries) in others.items()
        if any(entry.text for entry in entries)
    ]


def text_of(value: float, shown: Quantity) -> str:
    """Percent with one decimal, others with three significant digits; empty for NaN."""
    if pd.isna(value):
        return ""
    return f"{value:.1f}" if shown.unit == "%" else f"{value:#.3g}"


def ranks_of(row: pd.DataFrame, shown: Quantity) -> list[int]:
    """1 for the best and 2 for the second of a row's methods, 0 for others; values that read the same rank the same.

    Controls and runs that are unfinished or differ from the table's others take no part.
    """
    rivals = row[~row["control"].astype(bool) & row["value"].notna() & (row["conflict"] == "")]
    rivals = rivals[rivals["complete"].astype(bool)]
    if len(rivals) < 2:
        return [0] * len(row)
    order = rivals["value"].sort_values(ascending=not shown.higher_is_better)
    levels = list(dict.fromkeys(text_of(value, shown) for value in order))
    places = {text: place for place, text in enumerate(levels[:2], 1)}
    return [
        places.get(text_of(value, shown), 0) if label in rivals.index else 0
        for label, value in zip(row.index, row["value"], strict=True)
    ]


def _marks(cell: pd.Series) -> str:
    if pd.isna(cell["value"]):
        return ""
    return (UNFINISHED if not cell["complete"] else "") + (CONFLICT if cell["conflict"] else "")


def _interval(cell: pd.Series, shown: Quantity) -> str:
    return "" if pd.isna(cell["low"]) else f"{text_of(cell['low'], shown)}–{text_of(cell['high'], shown)}"


def _published(cell: pd.Series) -> Entry:
    if pd.isna(cell["published"]):
        return Entry("")
    return Entry(f"{cell['published']:g}", marks=DOUBTFUL if cell["suspicious"] else "")


def _difference(cell: pd.Series, shown: Quantity) -> str:
    if pd.isna(cell["difference"]):
        return ""
    size = f"{cell['difference']:+.1f}" if shown.unit == "%" else f"{cell['difference']:+#.3g}"
    return f"{size} {SIGNS.get(cell['verdict'], '')}".strip()


def by_metric(found: list[Line]) -> dict[tuple[str, str], dict[str, Any]]:
    """Lines by (model, metric) and kind."""
    grouped: dict[tuple[str, str], dict[str, Any]] = {}
    for line in found:
        grouped.setdefault((line.model, line.metric), {})[line.kind] = line
    return grouped
