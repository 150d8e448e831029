"""The page's charts as figures for papers: PNG and SVG by matplotlib."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from camexp.experiment import label_of
from camexp.files import make_folder
from camexp.report.layout import model_name
from camexp.report.page.series import (
    Ablation,
    Distribution,
    Runs,
    Tables,
    ablations,
    against_time,
    controls,
    distributions,
    groups,
    measured,
    metrics_of,
    rows_of,
    select,
)
from camexp.report.table import Quantity, quantity

BLUE, GREY, ORANGE = "#2f7fc4", "#6b747d", "#c0661a"

LINES = ("--", ":", "-.", (0, (8, 3)), (0, (3, 1, 1, 1)))
"""Controls are told apart by their dashes and names."""

POINTS: dict[str, Any] = {"ms": 4.5, "elinewidth": 0.7, "capsize": 1.5}
MEAN = {"marker": "D", "markersize": 3, "markerfacecolor": BLUE, "markeredgecolor": BLUE}

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "camexp",
}


def write_figures(tables: Tables, runs: Runs, folder: Path) -> list[dict[str, Any]]:
    """Write every figure as PNG and SVG; returns their titles and files, relative to the folder's parent."""
    cells, written = measured(tables), []
    with matplotlib.style.context(STYLE):
        for dataset, model in groups(cells):
            group, name = select(cells, dataset, model), f"{model_name(model)} on {dataset}"
            for kind, draw in (("time", _time_panels), ("distribution", _distribution_panels)):
                figure = draw(group, runs)
                if figure is not None:
                    written.append(_write(figure, folder, f"{kind}_{dataset}_{model}", f"{TITLES[kind]}, {name}"))
        for ablation in ablations(tables, runs):
            title = (
                f"{label_of(ablation.method)} with other values of {ablation.parameter}, {model_name(ablation.model)}"
            )
            stem = f"ablation_{ablation.experiment.name}_{ablation.model}_{ablation.method}"
            written.append(_write(_ablation_panels(ablation), folder, stem, title))
    return written


TITLES = {"time": "Metrics against run time", "distribution": "Distribution over pairs"}


def _write(figure: Figure, folder: Path, stem: str, title: str) -> dict[str, Any]:
    make_folder(folder)
    files = []
    formats: dict[str, dict[str, Any]] = {"png": {"dpi": 200}, "svg": {"metadata": {"Date": None}}}
    for ending, options in formats.items():
        path = folder / f"{stem}.{ending}"
        figure.savefig(path, **options)
        figure.set_layout_engine("none")  # what was laid out once need not be again
        files.append({"kind": ending.upper(), "href": f"{folder.name}/{path.name}"})
    return {"title": title, "files": files}


def _panels(count: int, width: float, height: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes, `columns` side by side, each of a size in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure((width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def _legend(figure: Figure, axes: list[Axes], columns: int) -> None:
    """One legend below the panels, each name once."""
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(
            named.values(), named.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=7
        )


def _lines(lines: list[tuple[str, float]], draw: Callable[..., Any]) -> None:
    for place, (label, value) in enumerate(lines):
        draw(value, color=ORANGE, linewidth=0.9, linestyle=LINES[place % len(LINES)], zorder=0, label=label)


# ------------------------------------------------------------------------------------------------ run time


def _time_panels(group: pd.DataFrame, runs: Runs) -> Figure | None:
    found = [(quantity(m), against_time(group, m, quantity(m).higher_is_better), m) for m in metrics_of(group)]
    timed = [(shown, points, metric) for shown, points, metric in found if len(points)]
    if not timed:
        return None
    figure, axes = _panels(len(timed), 2.4, 2.2)
    names = list(dict.fromkeys(label for _, points, _ in timed for label in points["label"]))
    for axis, (shown, points, metric) in zip(axes, timed, strict=True):
        _draw_times(axis, shown, points, names)
        _lines(controls(group, metric), axis.axhline)
    for number, name in enumerate(names, 1):  # the key of the numbers beside the points
        axes[0].plot([], [], marker=f"${number}$", ms=5, mew=0, linestyle="", color="black", label=name)
    _legend(figure, axes, columns=4)
    return figure


def _draw_times(axis: Axes, shown: Quantity, points: pd.DataFrame, names: list[str]) -> None:
    """Numbered points with intervals; the front as filled diamonds on a line, the others as open circles."""
    front, others = points[points["front"]], points[~points["front"]]
    axis.step(front["time"], front["value"], where="post", color=BLUE, linewidth=1)
    for chosen, marker, colour, face in ((front, "D", BLUE, BLUE), (others, "o", GREY, "white")):
        axis.errorbar(chosen["time"], chosen["value"], _bars(chosen), fmt=marker, color=colour, mfc=face, **POINTS)
    for point in rows_of(points):
        number = str(names.index(point.label) + 1)
        axis.annotate(number, (point.time, point.value), (4, 2), textcoords="offset points", fontsize=6.5)
    axis.set(xscale="log", xlabel="seconds per map", ylabel=shown.heading)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _bars(cells: pd.DataFrame) -> list[pd.Series]:
    """Lengths of the intervals below and above the values."""
    return [cells["value"] - cells["low"], cells["high"] - cells["value"]]


# -------------------------------------------------------------------------------------------- distributions


def _distribution_panels(group: pd.DataFrame, runs: Runs) -> Figure | None:
    found = [(quantity(m), distributions(group, m, runs)) for m in metrics_of(group)]
    shapes = [(shown, some) for shown, some in found if any(not one.control for one in some)]
    if not shapes:
        return None
    methods = max(sum(not one.control for one in some) for _, some in shapes)
    figure, axes = _panels(len(shapes), 3.4, 1.0 + 0.24 * methods)
    for axis, (shown, some) in zip(axes, shapes, strict=True):
        _draw_distributions(axis, [one for one in some if not one.control])
        axis.set(xlabel=shown.heading)
        _lines([(one.label, one.mean) for one in some if one.control], axis.axvline)
    _legend(figure, axes, columns=4)
    return figure


def _draw_distributions(axis: Axes, found: list[Distribution]) -> None:
    """Boxes from quantiles: whiskers to 5 and 95 %, a diamond for the mean; shares of a binary metric as bars."""
    boxes = [
        {"med": q[100], "q1": q[50], "q3": q[150], "whislo": q[10], "whishi": q[190], "mean": one.mean, "fliers": []}
        for one in found
        for q in (one.quantiles,)
    ]
    if all(one.binary for one in found):
        axis.barh(range(1, len(found) + 1), [one.mean for one in found], height=0.5, color=BLUE)
    else:
        axis.bxp(
            boxes,
            orientation="horizontal",
            showmeans=True,
            showfliers=False,
            meanprops=MEAN,
            medianprops={"color": BLUE},
        )
    axis.set_yticks(range(1, len(found) + 1), [one.label for one in found])
    axis.invert_yaxis()


# ------------------------------------------------------------------------------------------------ ablations


def _ablation_panels(ablation: Ablation) -> Figure:
    metrics = list(dict.fromkeys(ablation.cells["metric"]))
    figure, axes = _panels(len(metrics), 2.3, 2.0)
    for axis, metric in zip(axes, metrics, strict=True):
        curve = ablation.cells[ablation.cells["metric"] == metric]
        axis.errorbar(curve["x"], curve["value"], _bars(curve), fmt="o-", color=BLUE, ms=4, capsize=2, label="ours")
        if curve["published"].notna().any():
            axis.plot(curve["x"], curve["published"], "s:", color=GREY, mfc="white", ms=4, label="published")
        axis.set(xlabel=ablation.parameter, ylabel=quantity(str(metric)).heading)
    _legend(figure, axes, columns=2)
    return figure
