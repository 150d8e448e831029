"""Tables for the terminal, 100 columns wide: a line per method, columns for metrics, in blocks where they must."""

import textwrap
from collections.abc import Sequence

import pandas as pd

from camexp.experiment import Experiment
from camexp.report.layout import Line, by_metric, lines, model_name
from camexp.report.notes import notes
from camexp.report.table import quantity
from camexp.report.verdicts import Tolerance

WIDTH = 100
LABEL_WIDTH = 24
GAP = 2
RANKS = ("", "*", "+")
"""Behind the best and the second value of a metric."""

SHOWN = ("ours", "interval", "published", "difference")
NAMES = {"interval": "95 % interval", "published": "published", "difference": "difference"}


def render(experiment: Experiment, cells: pd.DataFrame, tolerance: Tolerance | None = None) -> str:
    """A table as plain text: per model one block, per method its value, interval, published value and difference."""
    grouped = by_metric(lines(experiment, cells))
    parts = [experiment.title, "=" * min(WIDTH, len(experiment.title)), ""]
    labels = [column.label for column in experiment.columns]
    for model in experiment.models:
        columns = {metric: grouped[model, metric] for metric in experiment.metrics}
        parts += [block for metrics in _fitting(columns) for block in _block(model, labels, columns, metrics)]
    parts.append("* best, + second; arrows point to the better side; controls are not ranked.")
    for note in notes(experiment, cells, tolerance):
        parts += textwrap.wrap(f"- {note}", WIDTH, subsequent_indent="  ", break_long_words=False)
    return "\n".join(parts) + "\n"


def _cell(line: Line, position: int) -> str:
    entry = line.entries[position]
    return entry.text + (RANKS[entry.rank] + entry.marks if entry.text else "")


def _width(metric: str, kinds: dict[str, Line]) -> int:
    texts = [_cell(line, i) for line in kinds.values() for i in range(len(line.entries))]
    return max(len(quantity(metric).heading), *map(len, texts)) + GAP


def _fitting(columns: dict[str, dict[str, Line]]) -> list[list[str]]:
    """The metrics in groups that fit the width beside the methods' names."""
    groups: list[list[str]] = [[]]
    left = WIDTH - LABEL_WIDTH
    for metric, kinds in columns.items():
        width = _width(metric, kinds)
        if groups[-1] and width > left:
            groups.append([])
            left = WIDTH - LABEL_WIDTH
        groups[-1].append(metric)
        left -= width
    return groups


def _block(model: str, labels: list[str], columns: dict[str, dict[str, Line]], metrics: Sequence[str]) -> list[str]:
    widths = [_width(metric, columns[metric]) for metric in metrics]
    head = _join(model_name(model), [quantity(metric).heading for metric in metrics], widths)
    found = [head, "-" * len(head)]
    for position, label in enumerate(labels):
        texts = {kind: [_text(columns[metric], kind, position) for metric in metrics] for kind in SHOWN}
        told = [kind for kind in SHOWN if kind == "ours" or any(texts[kind])]
        names = textwrap.wrap(label, LABEL_WIDTH - 1)
        first, rest = names[0], " ".join(names[1:])
        found.append(_join(first, texts["ours"], widths))
        if rest:
            found.append(rest)
        found += [_join(f"  {NAMES[kind]}", texts[kind], widths) for kind in told[1:]]
    return [*found, ""]


def _text(kinds: dict[str, Line], kind: str, position: int) -> str:
    return _cell(kinds[kind], position) if kind in kinds else ""


def _join(label: str, texts: Sequence[str], widths: Sequence[int]) -> str:
    return (label.ljust(LABEL_WIDTH) + "".join(t.rjust(w) for t, w in zip(texts, widths, strict=True))).rstrip()
