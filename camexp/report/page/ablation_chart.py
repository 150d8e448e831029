"""One method under several values of one parameter: every metric against the parameter, ours and published."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from camexp.experiment import label_of
from camexp.report.layout import model_name
from camexp.report.page.chart import BLUE, GREY, Chart, interval, number, plain
from camexp.report.page.series import Ablation, rows_of
from camexp.report.table import quantity


def ablation_chart(ablation: Ablation) -> Chart:
    """The chart of one table's ablation for one network."""
    name, dataset = label_of(ablation.method), ablation.experiment.dataset
    return Chart(
        kind="ablation",
        dataset=dataset,
        model=ablation.model,
        metric="",
        method=ablation.method,
        title=f"{name} with other values of {ablation.parameter}: {model_name(ablation.model)} on {dataset}",
        text="Filled circles with a solid line are ours with 95 % intervals; open squares with a dotted line are the "
        f"published values ({ablation.experiment.published}).",
        header=[ablation.parameter, "Metric", "Ours", "95 % interval", "Published"],
        rows=_rows(ablation.cells),
        figure=plain(_figure(ablation)),
    )


def _rows(cells: pd.DataFrame) -> list[list[str]]:
    rows = []
    for cell in rows_of(cells):
        shown = quantity(str(cell.metric))
        ours, published = (number(value, shown) for value in (cell.value, cell.published))
        rows.append([f"{cell.x:g}", shown.label, ours, interval(cell.low, cell.high, shown), published])
    return rows


def _figure(ablation: Ablation) -> go.Figure:
    cells = ablation.cells
    metrics = list(dict.fromkeys(cells["metric"]))
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = make_subplots(lines, columns, subplot_titles=[quantity(metric).heading for metric in metrics])
    for place, metric in enumerate(metrics):
        row, column = place // columns + 1, place % columns + 1
        for trace in _curves(cells[cells["metric"] == metric], ablation.method, first=place == 0):
            figure.add_trace(trace, row=row, col=column)
        figure.update_xaxes(title=ablation.parameter, row=row, col=column)
    legend = {"orientation": "h", "y": 1 + 0.2 / lines, "yanchor": "bottom", "x": 0}
    figure.update_layout(height=110 + 240 * lines, legend=legend, margin={"l": 44, "r": 16, "t": 90, "b": 48})
    return figure


def _curves(curve: pd.DataFrame, method: str, first: bool) -> list[go.Scatter]:
    """Ours with intervals and, where a paper gives them, the published values."""
    above, below = curve["high"] - curve["value"], curve["value"] - curve["low"]
    bars = {"array": above.tolist(), "arrayminus": below.tolist(), "thickness": 1, "color": BLUE}
    style = {"mode": "lines+markers", "showlegend": first, "meta": {"method": method}}
    ours = go.Scatter(
        x=curve["x"].tolist(),
        y=curve["value"].tolist(),
        error_y=bars,
        line={"color": BLUE},
        marker={"size": 8},
        name="ours",
        legendgroup="ours",
        **style,
    )
    known = curve[pd.to_numeric(curve["published"]).notna()]
    published = go.Scatter(
        x=known["x"].tolist(),
        y=known["published"].tolist(),
        line={"color": GREY, "dash": "dot"},
        marker={"symbol": "square-open", "size": 8},
        name="published",
        legendgroup="published",
        **style,
    )
    return [ours, published] if len(known) else [ours]
