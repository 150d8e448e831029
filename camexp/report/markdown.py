"""Tables in Markdown, in the papers' layout: columns for methods, lines for models and metrics."""

from collections.abc import Sequence

import pandas as pd

from camexp.experiment import Experiment
from camexp.report.layout import Entry, Line, lines, model_name
from camexp.report.notes import notes
from camexp.report.verdicts import Tolerance

STYLES = ("{}", "**{}**", "<u>{}</u>")
"""Of an entry without rank, the best and the second."""

KINDS = {"published": "*{}*"}


def render(experiment: Experiment, cells: pd.DataFrame, tolerance: Tolerance | None = None) -> str:
    """A table: per model and metric our value, its interval, the published value and the difference, then notes."""
    labels = [column.label for column in experiment.columns]
    rows = [["model", "", *labels]]
    for line in lines(experiment, cells):
        model = model_name(line.model) if line.first else ""
        rows.append([model, line.heading, *(_entry(entry, line) for entry in line.entries)])
    listed = "\n".join(f"- {note}" for note in notes(experiment, cells, tolerance))
    return f"## {experiment.title}\n\n{grid(rows)}\n\n{listed}\n"


def _entry(entry: Entry, line: Line) -> str:
    if not entry.text:
        return ""
    return KINDS.get(line.kind, "{}").format(STYLES[entry.rank].format(entry.text)) + entry.marks


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows of texts, the first one the head, as a Markdown table padded to even widths."""
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    widths = [max(len(row[i]) for row in escaped) for i in range(len(escaped[0]))]
    found = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in escaped]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([found[0], rule, *found[1:]])
