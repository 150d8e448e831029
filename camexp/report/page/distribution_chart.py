"""How a metric is distributed over pairs, one shape per method, with the means of controls as reference lines."""

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from camexp.report.layout import model_name
from camexp.report.page.chart import BLUE, Chart, axis_title, number, plain, reference_lines, safe
from camexp.report.page.series import Distribution, Runs, distributions
from camexp.report.table import quantity


def distribution_chart(group: pd.DataFrame, dataset: str, model: str, metric: str, runs: Runs) -> Chart | None:
    """The chart of one metric for one network on one data set; None without rows.

    A metric that is 0 or 1 for each pair has no shape to show: its share is a bar.
    """
    shown = quantity(metric)
    found = distributions(group, metric, runs)
    if not found:
        return None
    binary = all(one.binary for one in found)
    figure = _figure(found, _bar if binary else _violin, axis_title(shown))
    shape = (
        "Each bar is the share of pairs for which it is 1."
        if binary
        else "Each shape is drawn from 201 quantiles; the box holds the middle half of the pairs, its line is the "
        "median, the dashed line the mean."
    )
    return Chart(
        kind="distribution",
        dataset=dataset,
        model=model,
        metric=metric,
        method="",
        title=f"{shown.label} over {found[0].pairs} pairs: {model_name(model)} on {dataset}",
        text=f"{shape} Vertical lines are the means of controls.",
        header=["Method", "Mean", "Lowest", "Lower quartile", "Median", "Upper quartile", "Highest"],
        rows=[
            [one.label, number(one.mean, shown), *(number(one.quantiles[i], shown) for i in (0, 50, 100, 150, 200))]
            for one in found
        ],
        figure=plain(figure),
    )


def _figure(found: list[Distribution], trace: Callable[[Distribution], go.Violin | go.Bar], title: str) -> go.Figure:
    methods = [one for one in found if not one.control]
    figure = go.Figure([trace(one) for one in reversed(methods)])
    reference_lines(figure, [(one.label, one.mean) for one in found if one.control], vertical=True)
    figure.update_layout(showlegend=False, height=150 + 46 * len(methods), margin={"l": 10, "r": 24, "t": 64, "b": 52})
    figure.update_xaxes(title=title)
    figure.update_yaxes(automargin=True)
    return figure


def _violin(one: Distribution) -> go.Violin:
    return go.Violin(
        x=one.quantiles.round(2).tolist(),
        y0=safe(one.label),
        orientation="h",
        points=False,
        spanmode="hard",
        width=0.9,
        box={"visible": True, "width": 0.25},
        meanline={"visible": True},
        line={"color": BLUE, "width": 1.2},
        name=safe(one.label),
        hoveron="violins",
        hoverinfo="x+name",
        meta={"method": one.method},
    )


def _bar(one: Distribution) -> go.Bar:
    return go.Bar(
        x=[one.mean],
        y=[safe(one.label)],
        orientation="h",
        width=0.5,
        marker={"color": BLUE},
        text=[f"{one.mean:.1f} %"],
        hoverinfo="x+y",
        meta={"method": one.method},
    )
