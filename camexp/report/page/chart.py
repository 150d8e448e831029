"""What every interactive chart consists of: a figure for plotly.js and its numbers as text."""

import html
import json
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from camexp.report.layout import model_name, text_of
from camexp.report.table import Quantity, quantity

BLUE, GREY, ORANGE = "#2f7fc4", "#7d8792", "#c0661a"
"""Each has a contrast of at least 3:1 on the light and on the dark page."""

DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Chart:
    """A figure with what a reader who does not see it needs.

    Attributes
    ----------
    kind: "time", "distribution" or "ablation".
    method: of an ablation; empty for a chart of several methods.
    text: the chart in one or two sentences.
    header, rows: the numbers behind it, as a table.
    figure: data and layout for plotly.js; `meta.method` of a trace is what the page filters by.
    """

    kind: str
    dataset: str
    model: str
    metric: str
    method: str
    title: str
    text: str
    header: list[str]
    rows: list[list[str]]
    figure: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """What the page's script reads."""
        names = {"group": f"{model_name(self.model)} on {self.dataset}"}
        return asdict(self) | names | {"metric_label": quantity(self.metric).heading if self.metric else ""}


def number(value: float, shown: Quantity) -> str:
    """A value with its unit; empty for NaN."""
    return "" if pd.isna(value) else f"{text_of(value, shown)} {shown.unit}".rstrip()


def safe(label: str) -> str:
    """A label for plotly.js, which reads some HTML in texts."""
    return html.escape(label, quote=False)


def interval(low: float, high: float, shown: Quantity) -> str:
    """Both ends of an interval; empty when there is none."""
    return "" if pd.isna(low) else f"{number(low, shown)} to {number(high, shown)}"


def axis_title(shown: Quantity) -> str:
    """Name and unit of a quantity, and which direction is better."""
    better = "higher is better" if shown.higher_is_better else "lower is better"
    return f"{shown.label} ({shown.unit}), {better}" if shown.unit else f"{shown.label}, {better}"


def plain(figure: go.Figure) -> dict[str, Any]:
    """A figure as JSON without plotly's theme: the page has its own."""
    content = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    return content


def reference_lines(figure: go.Figure, lines: list[tuple[str, float]], vertical: bool) -> None:
    """Controls as dashed lines with their names at the end; those close to each other share a line."""
    for place, (label, value) in enumerate(merged(lines)):
        style = {"color": ORANGE, "width": 1.5, "dash": DASHES[place % len(DASHES)]}
        note = {"text": safe(label), "showarrow": False, "font": {"size": 11, "color": ORANGE}}
        if vertical:
            figure.add_shape(type="line", x0=value, x1=value, y0=0, y1=1, yref="paper", line=style, layer="below")
            note |= {"x": value, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "left", "textangle": -35}
        else:
            figure.add_shape(type="line", y0=value, y1=value, x0=0, x1=1, xref="paper", line=style, layer="below")
            note |= {"x": 1, "y": value, "xref": "paper", "xanchor": "left", "yanchor": "middle"}
        figure.add_annotation(**note)


def merged(lines: list[tuple[str, float]], closer: float = 2.0) -> list[tuple[str, float]]:
    """Lines whose names would cover each other as one: "uniform, random" at their mean."""
    groups: list[list[tuple[str, float]]] = []
    for line in sorted(lines, key=lambda line: line[1]):
        if groups and line[1] - groups[-1][0][1] < closer:
            groups[-1].append(line)
        else:
            groups.append([line])
    return [(", ".join(label for label, _ in group), sum(v for _, v in group) / len(group)) for group in groups]
