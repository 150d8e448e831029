"""What charts and figures show, from cells and rows: one estimate per run, quantiles, Pareto fronts, ablations."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from camexp.experiment import Experiment, label_of
from camexp.report.runs import Run
from camexp.report.table import quantity

Tables = list[tuple[Experiment, pd.DataFrame]]
"""Experiments with the cells of their tables."""

Runs = dict[tuple[str, str, str], Run]
"""Runs by (dataset, model, name of the run)."""

QUANTILES = np.linspace(0, 1, 201)
"""A distribution is drawn from its quantiles, so that a page does not grow with the number of pairs."""


def measured(tables: Tables) -> pd.DataFrame:
    """Every measured cell of all tables, once per (dataset, model, run, metric), with the columns `run_name`, `label`.

    `label` is the method's name, followed by what a table's column adds to it ("SISE, mu = 0.3").
    """
    named = [cells.assign(run_name=cells["column"].map(_run_names(e))).dropna(subset="value") for e, cells in tables]
    found = [cells for cells in named if len(cells)]
    if not found:
        return pd.DataFrame(columns=["dataset", "model", "run_name", "label", "metric", "value", "control"])
    cells = pd.concat(found, ignore_index=True)
    cells["label"] = [_label(*names) for names in zip(cells["method"], cells["column"], cells["run_name"], strict=True)]
    return cells.astype({"control": bool}).drop_duplicates(
        ["dataset", "model", "run_name", "metric"], ignore_index=True
    )


def _run_names(experiment: Experiment) -> dict[str, str]:
    return {column.label: column.run_name for column in experiment.columns}


def _label(method: str, column: str, run_name: str) -> str:
    name = label_of(method)
    if run_name == method:
        return name
    return column if column.startswith(name) or name == method else f"{name}, {column}"


def groups(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """(dataset, model) with measured cells, in the order of the tables."""
    return list(dict.fromkeys(zip(cells["dataset"], cells["model"], strict=True)))


def metrics_of(cells: pd.DataFrame) -> list[str]:
    """Metrics other than the run time, in the order of the tables."""
    return [str(metric) for metric in dict.fromkeys(cells["metric"]) if metric != "runtime"]


def rows_of(cells: pd.DataFrame) -> Iterator[Any]:
    """The rows, with columns as attributes."""
    yield from cells.itertuples()


def select(cells: pd.DataFrame, dataset: str, model: str) -> pd.DataFrame:
    """The cells of one network on one data set."""
    return cells[(cells["dataset"] == dataset) & (cells["model"] == model)]


# ------------------------------------------------------------------------------------------------ run time


def against_time(group: pd.DataFrame, metric: str, higher_is_better: bool) -> pd.DataFrame:
    """One row per timed method: label, value and time with the ends of their intervals, and `front`.

    `group`: cells of one network on one data set. Sorted by time.
    """
    columns = ["label", "method", "value", "low", "high"]
    rivals = group[~group["control"]]
    values = rivals[rivals["metric"] == metric].set_index("run_name")[columns]
    times = rivals[rivals["metric"] == "runtime"].set_index("run_name")[["value", "low", "high"]].add_prefix("time_")
    points = values.join(times, how="inner").rename(columns={"time_value": "time"}).sort_values("time")
    return points.assign(front=pareto_front(points["time"], points["value"], higher_is_better)).reset_index()


def pareto_front(times: Iterable[float], values: Iterable[float], higher_is_better: bool) -> np.ndarray:
    """Which points (N,) no other point beats: none is at least as fast and as good, and better in one of the two."""
    time = np.asarray(list(times), float)
    gain = np.asarray(list(values), float) * (1 if higher_is_better else -1)
    as_good = (time[None] <= time[:, None]) & (gain[None] >= gain[:, None])
    better = (time[None] < time[:, None]) | (gain[None] > gain[:, None])
    return ~np.logical_or.reduce(as_good & better, axis=1)


def controls(group: pd.DataFrame, metric: str) -> list[tuple[str, float]]:
    """(label, value) of the control rows: the reference lines of a chart."""
    found = group[group["control"] & (group["metric"] == metric)]
    return [(str(label), float(value)) for label, value in zip(found["label"], found["value"], strict=True)]


# -------------------------------------------------------------------------------------------- distributions


@dataclass(frozen=True)
class Distribution:
    """Quantiles (201,) of a metric over the pairs of one run, in the tables' unit, and their mean.

    `binary`: each pair's value is 0 or 1.
    """

    label: str
    method: str
    control: bool
    quantiles: np.ndarray
    mean: float
    pairs: int
    binary: bool


def distributions(group: pd.DataFrame, metric: str, runs: Runs) -> list[Distribution]:
    """The distribution of a metric over pairs for every run of one network on one data set, in their order."""
    order = {name: place for place, name in enumerate(dict.fromkeys(group["run_name"]))}
    cells = group[group["metric"] == metric].sort_values("run_name", key=lambda names: names.map(order))
    found = []
    for cell in rows_of(cells):
        run = runs.get((cell.dataset, cell.model, cell.run_name))
        if run is not None and metric in run.rows:
            values = quantity(metric).scale * run.rows[metric].to_numpy(float)
            quantiles = np.quantile(values, QUANTILES)
            mean = float(values.mean())
            binary = bool(np.isin(values, (0, quantity(metric).scale)).all())
            told = cell.label, cell.method, cell.control
            found.append(Distribution(*told, quantiles, mean, len(values), binary))
    return found


# ------------------------------------------------------------------------------------------------- ablations


@dataclass(frozen=True)
class Ablation:
    """One method under several values of one parameter.

    Attributes
    ----------
    cells: of its table, with the column `x` for the parameter's value.
    """

    experiment: Experiment
    model: str
    method: str
    parameter: str
    cells: pd.DataFrame


def ablations(tables: Tables, runs: Runs) -> list[Ablation]:
    """The curves of every table in which at least three columns are one method that differs in one number."""
    found = []
    for experiment, cells in tables:
        for method in dict.fromkeys(column.method for column in experiment.columns):
            columns = [column for column in experiment.columns if column.method == method]
            names = sorted({name for column in columns for name, _ in column.overrides})
            if len(columns) >= 3 and len(names) == 1:
                curves = (_ablation(experiment, cells, model, method, names[0], runs) for model in experiment.models)
                found += [curve for curve in curves if curve is not None]
    return found


def _ablation(
    experiment: Experiment, cells: pd.DataFrame, model: str, method: str, parameter: str, runs: Runs
) -> Ablation | None:
    places = {}
    for column in experiment.columns:
        run = runs.get((experiment.dataset, model, column.run_name))
        # a column without the parameter has its default, which only the run knows
        identity = run.identity if run else {}
        x = dict(column.overrides).get(parameter, identity.get(f"method.{parameter}"))
        if column.method == method and isinstance(x, int | float):
            places[column.label] = float(x)
    mine = cells[(cells["model"] == model) & cells["column"].isin(places) & pd.to_numeric(cells["value"]).notna()]
    if mine["column"].nunique() < 2:
        return None
    mine = mine.assign(x=mine["column"].map(places)).sort_values("x", kind="stable")
    return Ablation(experiment, model, method, parameter, mine)
