"""A metric against the run time, with the Pareto front and controls as reference lines."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from camexp.report.layout import model_name
from camexp.report.page.chart import BLUE, GREY, Chart, axis_title, interval, number, plain, reference_lines, safe
from camexp.report.page.series import against_time, controls, rows_of
from camexp.report.table import Quantity, quantity


def time_chart(group: pd.DataFrame, dataset: str, model: str, metric: str) -> Chart | None:
    """The chart of one metric for one network on one data set; None when nothing was timed."""
    shown = quantity(metric)
    points = against_time(group, metric, shown.higher_is_better)
    if points.empty:
        return None
    best = ", ".join(points.loc[points["front"], "label"])
    return Chart(
        kind="time",
        dataset=dataset,
        model=model,
        metric=metric,
        method="",
        title=f"{shown.label} against run time: {model_name(model)} on {dataset}",
        text=f"No method is both faster and better than those on the Pareto front (filled diamonds): {best}. "
        "Bars are 95 % intervals; dashed lines are controls, whose run time means nothing.",
        header=["Method", "Seconds per map", shown.label, "95 % interval", "On the front"],
        rows=[
            [p.label, f"{p.time:.3g}", number(p.value, shown), interval(p.low, p.high, shown), _yes(p.front)]
            for p in rows_of(points)
        ],
        figure=plain(_figure(points, controls(group, metric), shown)),
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _figure(points: pd.DataFrame, lines: list[tuple[str, float]], shown: Quantity) -> go.Figure:
    figure = go.Figure()
    front = points[points["front"]]
    figure.add_scatter(
        x=front["time"].tolist(),
        y=front["value"].tolist(),
        mode="lines",
        line={"color": BLUE, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
    )
    for position, point in zip(_label_positions(points["time"]), rows_of(points), strict=True):
        figure.add_trace(_point(point, shown, position))
    reference_lines(figure, lines, vertical=False)
    figure.update_layout(showlegend=False, height=440, margin={"l": 60, "r": 110, "t": 24, "b": 52})
    figure.update_xaxes(type="log", title="Seconds per map (logarithmic)", dtick="D2")
    figure.update_yaxes(title=axis_title(shown))
    return figure


def _label_positions(times: pd.Series) -> list[str]:
    """Above and below by turns, so that neighbours do not cover each other; to the left near the right end."""
    near_end = np.log(times / times.min()) > 0.8 * np.log(times.max() / times.min())
    sides = ["left" if near else "right" for near in near_end]
    return [f"{'bottom' if place % 2 else 'top'} {side}" for place, side in enumerate(sides)]


def _point(point: Any, shown: Quantity, position: str) -> go.Scatter:
    colour = BLUE if point.front else GREY
    return go.Scatter(
        x=[point.time],
        y=[point.value],
        error_y={
            "array": [point.high - point.value],
            "arrayminus": [point.value - point.low],
            "thickness": 1,
            "width": 3,
            "color": colour,
        },
        mode="markers+text",
        text=[safe(point.label)],
        textposition=position,
        cliponaxis=False,
        marker={
            "symbol": "diamond" if point.front else "circle-open",
            "size": 11,
            "color": colour,
            "line": {"width": 2, "color": colour},
        },
        name=safe(point.label),
        hovertemplate=f"{safe(point.label)}<br>{number(point.value, shown)}<br>{point.time:.3g} s<extra></extra>",
        meta={"method": point.method, "front": bool(point.front)},
    )
