"""Over all tables: average ranks, and how far our orderings agree with the published ones."""

from dataclasses import dataclass

import pandas as pd

from camexp.report.comparisons import average_ranks, orderings
from camexp.report.layout import model_name
from camexp.report.page.series import Tables, rows_of
from camexp.report.table import quantity


@dataclass(frozen=True)
class Plain:
    """A small table of texts; the first of a row is its heading."""

    title: str
    header: list[str]
    rows: list[list[str]]


def overall(tables: Tables) -> list[Plain]:
    """The tables over all tables; those without a row are left out."""
    if not tables:
        return []
    cells = pd.concat([cells for _, cells in tables], ignore_index=True)
    return [table for table in (_ranks(average_ranks(cells)), _orderings(orderings(cells))) if table.rows]


def _ranks(found: pd.DataFrame) -> Plain:
    rows = [
        [r.method, f"{r.rank:.2f}", f"{r.of:.1f}", f"{r.rows:g}", _number(r.published_rank, ".2f")]
        for r in rows_of(found)
    ]
    title = "Average rank over the rows of all tables (1 is the best)"
    return Plain(title, ["Method", "Mean rank", "of methods", "rows", "Published"], rows)


def _orderings(found: pd.DataFrame) -> Plain:
    rows = []
    for one in rows_of(found):
        names = [one.table, model_name(one.model), quantity(one.metric).label]
        data = "the papers’" if one.same_data else "other"
        rows.append([*names, f"{one.methods}", _number(one.tau, "+.2f"), data])
    title = "Kendall’s tau between our and the published ordering of methods (1 the same, −1 reversed)"
    return Plain(title, ["Table", "Network", "Metric", "Methods", "Tau", "Data"], rows)


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)
