"""The cells of a table: ours with interval and counts, the published value, their difference and a verdict."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from camexp.command import counted
from camexp.errors import CamexpError
from camexp.experiment import Column, Experiment
from camexp.metrics import METRICS
from camexp.report.agreement import conflicts
from camexp.report.estimates import estimates
from camexp.report.runs import Run
from camexp.report.verdicts import Tolerance, doubt, read_suspicious, same_data, verdict

PUBLISHED_COLUMNS = ["dataset", "model", "method", "variant", "metric", "value"]

EMPTY: dict[str, Any] = {
    **dict.fromkeys(("value", "low", "high", "macro", "runs", "se_runs", "pairs", "images"), np.nan),
    **dict.fromkeys(("degenerate", "failures"), np.nan),
    "complete": False,
}
"""What a cell without a run holds."""


@dataclass(frozen=True)
class Quantity:
    """What a row of a table shows: a metric, or the run time."""

    name: str
    label: str
    unit: str
    higher_is_better: bool
    scale: float

    @property
    def heading(self) -> str:
        return f"{self.label} {self.unit} {'↑' if self.higher_is_better else '↓'}"


LABELS = {
    "ebpg": "EBPG",
    "bbox": "Bbox",
    "miou": "mIoU",
    "drop": "Drop",
    "increase": "Increase",
    "pointing": "Pointing",
    "average_gain": "Average gain",
}
RUNTIME = Quantity("runtime", "Run time", "s", False, 1.0)


def quantity(name: str) -> Quantity:
    """The quantity of a metric's name, or of "runtime"."""
    if name == "runtime":
        return RUNTIME
    metric = METRICS[name]
    return Quantity(name, LABELS.get(name, name), metric.unit, metric.higher_is_better, 100.0)


def read_published(folder: Path, table: str) -> pd.DataFrame:
    """The published cells of a table: dataset, model, method, variant, metric, value (in the paper's unit).

    `attrs["suspicious"]` holds the entries of `suspicious.yaml` for the table.

    Raises
    ------
    CamexpError: when a column is missing or a value is not a number.
    """
    path = folder / f"{table}.csv"
    if not path.is_file():
        return pd.DataFrame(columns=PUBLISHED_COLUMNS)
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [name for name in PUBLISHED_COLUMNS if name not in cells]
    if missing:
        raise CamexpError(f"{path} lacks the columns {missing}")
    cells["value"] = pd.to_numeric(cells["value"], errors="coerce")
    if cells["value"].isna().any():
        line = int(np.flatnonzero(cells["value"].isna())[0]) + 2
        raise CamexpError(f"{path}, line {line}: the value is not a number")
    cells.attrs["suspicious"] = read_suspicious(folder / "suspicious.yaml", table)
    return cells


def build_cells(
    experiment: Experiment,
    runs: dict[tuple[str, str, str], Run],
    published: pd.DataFrame,
    tolerance: Tolerance | None = None,
) -> pd.DataFrame:
    """One row per (model, metric, column) of the table.

    `runs` are by (dataset, model, name of the run). Values are in the table's unit; a cell without a run has
    NaN, and so has a cell that no paper gives. `difference` is left empty where `verdict` is "other data".
    `conflict` says in which fields a run differs from most of the table's; `suspicious` why the published value is
    doubtful; `average` is "micro" or "macro"; `machine` says on what the run time was taken.
    """
    chosen = {
        (model, column.label): runs[experiment.dataset, model, column.run_name]
        for model, column in experiment.runs()
        if (experiment.dataset, model, column.run_name) in runs
    }
    apart = conflicts(chosen)
    papers = _of_dataset(published, experiment.dataset)
    cells = []
    for model in experiment.models:
        for metric in experiment.metrics:
            for column in experiment.columns:
                key = (model, column.label)
                cell = _cell(experiment, model, metric, column, chosen.get(key))
                cell["conflict"] = "; ".join(apart.get(key, ()))
                paper, dataset = _published_value(papers, model, column, metric)
                cells.append(cell | _judged(cell, chosen.get(key), paper, dataset, tolerance or Tolerance()))
    table = pd.DataFrame(cells)
    table["suspicious"] = [doubt(published.attrs.get("suspicious", []), cell) for _, cell in table.iterrows()]
    return table


def _of_dataset(published: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The cells for a data set, or for the one that embedded scenes stand for (minivoc: voc2007)."""
    if published["dataset"].nunique() < 2:
        return published
    return published[published["dataset"].str.startswith(dataset.removeprefix("mini"))]


def _published_value(published: pd.DataFrame, model: str, column: Column, metric: str) -> tuple[float, str]:
    """The published value of a cell and its data set; NaN when there is none."""
    found = published[
        (published["model"] == model) & (published["method"] == column.method) & (published["metric"] == metric)
    ]
    found = found[found["variant"] == column.published]
    return (float(found["value"].iloc[0]), str(found["dataset"].iloc[0])) if len(found) == 1 else (np.nan, "")


def _cell(experiment: Experiment, model: str, metric: str, column: Column, run: Run | None) -> dict[str, Any]:
    cell = {
        "table": experiment.name,
        "dataset": experiment.dataset,
        "model": model,
        "method": column.method,
        "column": column.label,
        "control": column.control,
        "variant": run.variant if run else "",
        "metric": metric,
        "unit": quantity(metric).unit,
        "average": experiment.average,
        "machine": _machine(run) if run and metric == "runtime" else "",
        **EMPTY,
    }
    found = estimates(run, experiment.average, experiment.subset).get(metric) if run else None
    if run is None or found is None:
        return cell
    scale = quantity(metric).scale
    scaled = {name: scale * found[name] for name in ("value", "low", "high", "macro", "se_runs")}
    counts = {name: found[name] for name in ("runs", "pairs", "images", "degenerate")}
    complete = metric == "runtime" or bool(run.info["complete"])  # times need no rows
    return cell | scaled | counts | {"failures": run.failures, "complete": complete}


def _machine(run: Run) -> str:
    environment = run.info.get("timed_on") or run.info.get("environment") or {}
    device, threads = str(environment.get("device", "")), environment.get("threads")
    if environment.get("device_type") != "cpu" or not threads:
        return device
    return f"{device}, {counted(threads, 'thread')}"


def _judged(cell: dict[str, Any], run: Run | None, paper: float, dataset: str, tolerance: Tolerance) -> dict[str, Any]:
    """The published value, the difference and the verdict of a cell."""
    same = run is not None and not cell["conflict"] and same_data(run, dataset)
    said = verdict(cell["value"], cell["low"], cell["high"], paper, cell["unit"], same, tolerance)
    return {"published": paper, "difference": cell["value"] - paper if same else np.nan, "verdict": said}
