"""What a run's rows say of each metric, and of the run time: means, intervals and counts, computed once per run."""

from typing import Any

import numpy as np
import pandas as pd

from camexp.report.runs import Run
from camexp.report.statistics import (
    bootstrap_mean,
    interval,
    macro_mean,
    resampled_macro_means,
    resampled_means,
)
from camexp.report.subsets import select

Values = dict[str, Any]


def estimates(run: Run, average: str = "micro", subset: str = "") -> dict[str, Values]:
    """For each metric, and for "runtime" where trials were made, a dict (fractions, seconds) of

    value, low, high: the mean and its interval (NaN of a single image or trial); `macro`: the mean over classes of
    the means within them, which is the value where `average` is "macro"; `runs`, `se_runs`: seeds, and the standard
    error over them; `pairs`, `images`, `degenerate`: counts.
    """
    key = ("estimates", average, subset)
    if key not in run.known:
        rows = select(run.rows, subset) if subset else run.rows
        found = _of_rows(rows, run.metrics, average) if len(rows) else {}
        run.known[key] = found | ({"runtime": _of_trials(run.trials)} if len(run.trials) else {})
    return run.known[key]


def _of_rows(rows: pd.DataFrame, metrics: list[str], average: str) -> dict[str, Values]:
    values, images = rows[metrics].to_numpy(float), rows["image_id"]
    classes = rows["class_id"].to_numpy()
    runs = rows["run"].nunique()
    counts = {
        "runs": runs,
        "pairs": len(rows) // runs,
        "images": rows["image_id"].nunique(),
        "degenerate": int(rows["degenerate"].sum()),
    }
    if average == "macro":
        resampled = np.stack([resampled_macro_means(column, classes, images) for column in values.T], 1)
    else:
        resampled = resampled_means(values, images)
    lows, highs = interval(resampled) if counts["images"] > 1 else np.full((2, len(metrics)), np.nan)
    means, macros = values.mean(0), [macro_mean(column, classes) for column in values.T]
    centres = macros if average == "macro" else means
    errors = _errors_over_runs(rows, metrics, runs)
    return {
        name: {"value": v, "low": low, "high": high, "macro": macro, "se_runs": error, **counts}
        for name, v, low, high, macro, error in zip(metrics, centres, lows, highs, macros, errors, strict=True)
    }


def _errors_over_runs(rows: pd.DataFrame, metrics: list[str], runs: int) -> np.ndarray:
    """Standard error (K,) of the mean over runs with other seeds; NaN for one run."""
    if runs == 1:
        return np.full(len(metrics), np.nan)
    return rows.groupby("run")[metrics].mean().std(ddof=1).to_numpy() / np.sqrt(runs)


def _of_trials(trials: np.ndarray) -> Values:
    found = bootstrap_mean(trials, np.arange(len(trials)))
    low, high = (found.low, found.high) if len(trials) > 1 else (np.nan, np.nan)
    values = {"value": found.mean, "low": low, "high": high, "macro": np.nan, "se_runs": np.nan}
    return values | {"runs": 1, "pairs": len(trials), "images": len(trials), "degenerate": 0}
