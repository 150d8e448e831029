"""The cells of a table: ours with interval and counts, the published value, and their difference."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from camexp.experiment import Column, Experiment
from camexp.metrics import METRICS
from camexp.report.runs import Run
from camexp.report.statistics import bootstrap_mean, macro_mean


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


LABELS = {"ebpg": "EBPG", "bbox": "Bbox", "miou": "mIoU", "drop": "Drop", "increase": "Increase"}
RUNTIME = Quantity("runtime", "Run time", "s", False, 1.0)


def quantity(name: str) -> Quantity:
    """The quantity of a metric's name, or of "runtime"."""
    if name == "runtime":
        return RUNTIME
    metric = METRICS[name]
    return Quantity(name, LABELS.get(name, name), metric.unit, metric.higher_is_better, 100.0)


def read_published(folder: Path, table: str) -> pd.DataFrame:
    """The published cells of a table: dataset, model, method, variant, metric, value (in the paper's unit)."""
    path = folder / f"{table}.csv"
    if not path.is_file():
        return pd.DataFrame(columns=["dataset", "model", "method", "variant", "metric", "value"])
    return pd.read_csv(path, dtype={"variant": str}, keep_default_na=False)


def build_cells(experiment: Experiment, runs: dict[tuple[str, str, str], Run], published: pd.DataFrame) -> pd.DataFrame:
    """One row per (model, metric, column) of the table.

    `runs` are by (dataset, model, name of the run). Values are in the table's unit; a cell without a run has
    NaN, and so has a cell that no paper gives. `difference` is left empty on another data set than the paper's.
    """
    cells = []
    for model in experiment.models:
        for metric in experiment.metrics:
            for column in experiment.columns:
                run = runs.get((experiment.dataset, model, column.run_name))
                paper = _published_value(published, model, column, metric)
                cells.append(_cell(experiment, model, metric, column, run, paper))
    return pd.DataFrame(cells)


def _published_value(published: pd.DataFrame, model: str, column: Column, metric: str) -> float:
    found = published[
        (published["model"] == model)
        & (published["method"] == column.method)
        & (published["metric"] == metric)
        & (published["variant"] == column.published)
    ]
    return float(found["value"].iloc[0]) if len(found) == 1 else np.nan


def _cell(
    experiment: Experiment, model: str, metric: str, column: Column, run: Run | None, paper: float
) -> dict[str, object]:
    shown = quantity(metric)
    cell: dict[str, object] = {
        "table": experiment.name,
        "dataset": experiment.dataset,
        "model": model,
        "method": column.method,
        "column": column.label,
        "control": column.control,
        "variant": run.variant if run else "",
        "metric": metric,
        "unit": shown.unit,
        "published": paper,
    }
    values = _values(run, metric) if run else None
    if run is None or values is None or not len(values):
        return cell | dict.fromkeys(("value", "low", "high", "macro", "pairs", "images", "difference"), np.nan)
    clusters = run.rows["image_id"].to_numpy() if metric != "runtime" else np.arange(len(values))
    estimate = bootstrap_mean(values * shown.scale, clusters)
    macro = macro_mean(values * shown.scale, run.rows["class_id"].to_numpy()) if metric != "runtime" else np.nan
    runs = run.rows["run"].nunique()
    means = run.rows.groupby("run")[metric].mean() * shown.scale if runs > 1 and metric in run.rows else None
    same_data = run.info["dataset"] == experiment.published.split("_")[-1] and run.info["complete"]
    return cell | {
        "value": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "macro": macro,
        "runs": runs,
        "se_runs": means.std(ddof=1) / np.sqrt(runs) if means is not None else np.nan,
        "pairs": len(values) // runs,
        "images": len(np.unique(clusters)),
        "degenerate": int(run.rows["degenerate"].sum()),
        "failures": run.failures,
        "complete": bool(run.info["complete"]),
        "difference": estimate.mean - paper if same_data else np.nan,
    }


def _values(run: Run, metric: str) -> np.ndarray | None:
    if metric == "runtime":
        return run.trials
    return run.rows[metric].to_numpy(float) if metric in run.rows else None
