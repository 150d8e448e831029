"""The papers' tables as the page shows them: every cell with its texts, its rank and the value it sorts by."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from camexp.experiment import Experiment
from camexp.report.layout import Entry, by_metric, lines, model_name, row_of
from camexp.report.notes import notes
from camexp.report.page.series import Tables
from camexp.report.table import quantity
from camexp.report.verdicts import Tolerance

VERDICTS = {"inside": "inside the interval", "within": "near the published", "outside": "unlike the published"}
"""How verdicts are put into words; others (not run, other data) stand in the notes."""

RANKS = ("", "best", "second")


@dataclass(frozen=True)
class Cell:
    """One value with what stands below it; texts are empty where there is nothing to say.

    Attributes
    ----------
    item: place of its method in the table.
    sort: the value in full precision, "" when it was not run.
    rank: "best" or "second" among the methods of its row, or "".
    detail: what the value rests on, for the pointer.
    """

    item: int
    method: str
    control: bool
    text: str
    sort: str
    rank: str
    marks: str
    interval: str
    published: str
    difference: str
    verdict: str
    detail: str


@dataclass(frozen=True)
class Line:
    """One metric of one model, across the methods; `number` is its place in the table."""

    number: int
    model: str
    heading: str
    higher_is_better: bool
    cells: list[Cell]


@dataclass(frozen=True)
class Model:
    """The lines of one model."""

    name: str
    label: str
    lines: list[Line]


@dataclass(frozen=True)
class TableView:
    """A table; `columns` are its methods (item, label, method, control), `notes` stand below it."""

    name: str
    title: str
    dataset: str
    columns: list[dict[str, Any]]
    models: list[Model]
    notes: list[str]

    @property
    def lines(self) -> list[Line]:
        return [line for model in self.models for line in model.lines]


def table_views(tables: Tables, tolerance: Tolerance | None = None) -> list[TableView]:
    """The views of all tables."""
    return [_view(experiment, cells, notes(experiment, cells, tolerance)) for experiment, cells in tables]


def _view(experiment: Experiment, cells: pd.DataFrame, told: list[str]) -> TableView:
    texts = by_metric(lines(experiment, cells))
    found = [
        _line(number, experiment, cells, model, metric, texts[model, metric])
        for number, (model, metric) in enumerate((m, q) for m in experiment.models for q in experiment.metrics)
    ]
    models = [Model(m, model_name(m), [line for line in found if line.model == m]) for m in experiment.models]
    columns = [
        {"item": item, "label": column.label, "method": column.method, "control": column.control}
        for item, column in enumerate(experiment.columns)
    ]
    return TableView(experiment.name, experiment.title, experiment.dataset, columns, models, told)


def _line(
    number: int, experiment: Experiment, cells: pd.DataFrame, model: str, metric: str, texts: dict[str, Any]
) -> Line:
    row, shown = row_of(experiment, cells, model, metric), quantity(metric)
    entries = [{kind: line.entries[item] for kind, line in texts.items()} for item in range(len(experiment.columns))]
    found = [_cell(item, cell, entries[item]) for item, (_, cell) in enumerate(row.iterrows())]
    return Line(number, model, shown.heading, shown.higher_is_better, found)


def _cell(item: int, cell: pd.Series, texts: dict[str, Entry]) -> Cell:
    nothing = Entry("")
    ours, published = texts["ours"], texts.get("published", nothing)
    return Cell(
        item=item,
        method=str(cell["method"]),
        control=bool(cell["control"]),
        text=ours.text,
        sort="" if pd.isna(cell["value"]) else repr(float(cell["value"])),
        rank=RANKS[ours.rank],
        marks=ours.marks,
        interval=texts.get("interval", nothing).text,
        published=published.text + published.marks,
        difference=texts.get("difference", nothing).text,
        verdict=VERDICTS.get(str(cell["verdict"]), ""),
        detail=_detail(cell),
    )


def _detail(cell: pd.Series) -> str:
    if pd.isna(cell["value"]):
        return "not run"
    counts = f"{int(cell['pairs'])} pairs of {int(cell['images'])} images"
    if cell["metric"] == "runtime":
        counts = f"{int(cell['pairs'])} single-image trials"
    return ", ".join(filter(None, [counts, str(cell["variant"])]))
