"""Methods against each other on the same pairs, and orderings of methods over tables."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from camexp.experiment import Experiment
from camexp.report.agreement import conflicts
from camexp.report.runs import Run
from camexp.report.statistics import holm, interval, kendall_tau, ranks, resampled_means, two_sided_p
from camexp.report.table import quantity

RESAMPLES = 5000
"""More than for intervals: Holm's correction multiplies the smallest p by the number of comparisons."""

COMPARISON_COLUMNS = (
    "table", "dataset", "model", "metric", "a", "b", "pairs", "images",
    "mean_a", "mean_b", "difference", "low", "high", "p", "p_holm",
)  # fmt: skip


def comparisons(
    experiment: Experiment, runs: Mapping[tuple[str, str, str], Run], resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Every two methods of each row (model, metric) of a table, on the pairs that both explained.

    `difference` is a - b in the table's unit, with its 95 % interval and two-sided p-value, both from a bootstrap
    over images; `p_holm` is corrected over the row. Two controls are not compared, and runs that differ from the
    table's others take no part.
    """
    found = []
    for model in experiment.models:
        agreeing = agreeing_runs(experiment, runs, model)
        controls = {column.label for column in experiment.columns if column.control}
        metrics = [metric for metric in experiment.metrics if metric != "runtime"]
        compared = compare_methods({n: pair_values(r) for n, r in agreeing.items()}, metrics, controls, resamples)
        found.append(compared.assign(table=experiment.name, dataset=experiment.dataset, model=model))
    table = pd.concat(found, ignore_index=True)
    scale = table["metric"].map(lambda metric: quantity(metric).scale).astype(float)
    for name in ("mean_a", "mean_b", "difference", "low", "high"):
        table[name] *= scale
    return table[list(COMPARISON_COLUMNS)]


def agreeing_runs(experiment: Experiment, runs: Mapping[tuple[str, str, str], Run], model: str) -> dict[str, Run]:
    """The runs of a table with one model that have rows and do not differ from most of them, by label."""
    chosen = {
        column.label: runs[experiment.dataset, model, column.run_name]
        for column in experiment.columns
        if (experiment.dataset, model, column.run_name) in runs
    }
    differing = conflicts(chosen)
    return {label: run for label, run in chosen.items() if label not in differing and len(run.rows)}


def pair_values(run: Run) -> pd.DataFrame:
    """The metrics of each pair by (image_id, class_id), averaged over runs with other seeds."""
    keys = ["image_id", "class_id"]
    if run.rows["run"].nunique() > 1:
        return run.rows.groupby(keys, sort=False, observed=True)[run.metrics].mean()
    return run.rows.set_index(keys)[run.metrics]


def compare_methods(
    values: Mapping[str, pd.DataFrame], metrics: list[str], controls: set[str], resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Differences between every two methods' values by pair, as `comparisons` says, in the metrics' own scale."""
    resampled = _Resampled(values, resamples)
    found = []
    for a, b in combinations(values, 2):
        shared = [m for m in metrics if m in values[a] and m in values[b]]
        if shared and not {a, b} <= controls:
            found.append(resampled.compare(a, b, shared))
    if not any(map(len, found)):
        return pd.DataFrame({name: pd.Series(dtype=float) for name in COMPARISON_COLUMNS})
    table = pd.concat(found, ignore_index=True)
    table["p_holm"] = table.groupby("metric")["p"].transform(lambda p: holm(p.to_numpy()))
    return table


class _Resampled:
    """Resampled means of methods; those with the same pairs share one pass over the draws."""

    def __init__(self, values: Mapping[str, pd.DataFrame], resamples: int):
        self.values, self.resamples = values, resamples
        self.groups: list[list[str]] = []
        for name, frame in values.items():
            same = next((group for group in self.groups if values[group[0]].index.equals(frame.index)), None)
            if same is None:
                self.groups.append([name])
            else:
                same.append(name)
        self.known: dict[str, np.ndarray] = {}

    def compare(self, a: str, b: str, metrics: list[str]) -> pd.DataFrame:
        first, second = self.values[a], self.values[b]
        together = next(group for group in self.groups if a in group)
        if b in together:
            self._resample(together)
            one, other = self._of(a, metrics), self._of(b, metrics)
        else:
            common = first.index.intersection(second.index, sort=False)
            first, second = first.loc[common], second.loc[common]
            both = np.hstack([first[metrics].to_numpy(), second[metrics].to_numpy()])
            if not len(common):
                return pd.DataFrame()
            one, other = np.split(resampled_means(both, images_of(common), self.resamples), 2, 1)
        # methods that agree must differ by exactly 0, whatever the order of the sums
        return _described(a, b, metrics, first, second, np.round(one - other, 12))

    def _resample(self, group: list[str]) -> None:
        if group[0] in self.known:
            return
        frames = [self.values[name] for name in group]
        means = resampled_means(
            np.hstack([frame.to_numpy() for frame in frames]), images_of(frames[0].index), self.resamples
        )
        ends = np.cumsum([frame.shape[1] for frame in frames])[:-1]
        self.known |= dict(zip(group, np.split(means, ends, 1), strict=True))

    def _of(self, name: str, metrics: list[str]) -> np.ndarray:
        positions = [list(self.values[name].columns).index(metric) for metric in metrics]
        return np.take(self.known[name], positions, axis=1)


def images_of(index: pd.Index) -> np.ndarray:
    """The image (N,) of each of N pairs."""
    return index.get_level_values("image_id").to_numpy()


def _described(
    a: str, b: str, metrics: list[str], first: pd.DataFrame, second: pd.DataFrame, resampled: np.ndarray
) -> pd.DataFrame:
    low, high = interval(resampled)
    mean_a, mean_b = first[metrics].mean().to_numpy(), second[metrics].mean().to_numpy()
    columns: dict[str, Any] = {"metric": metrics, "a": a, "b": b, "mean_a": mean_a, "mean_b": mean_b}
    columns |= {"pairs": len(first), "images": len(np.unique(images_of(first.index)))}
    columns |= {"difference": mean_a - mean_b, "low": low, "high": high, "p": two_sided_p(resampled)}
    return pd.DataFrame(columns)


# --------------------------------------------------------------------------------------------- orderings


def rankable(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that take part in a ranking: finished runs of methods, not of controls, that agree with the table."""
    return cells[~cells["control"].astype(bool) & cells["complete"].astype(bool) & (cells["conflict"] == "")]


def average_ranks(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean rank of each method over the rows (table, model, metric) of all tables; 1 is the best.

    Columns: method, rows, rank, of (mean number of methods in those rows), and the published ranks of the same rows.
    Rows that compare one method with itself, as an ablation does, rank no methods and are left out.
    """
    ranked = []
    for (_, _, metric), row in rankable(cells).groupby(["table", "model", "metric"], sort=False):
        if row["method"].nunique() < 2:
            continue
        shown = quantity(str(metric))
        ours = ranks(row["value"].to_numpy(), shown.higher_is_better)
        theirs = ranks(row["published"].to_numpy(), shown.higher_is_better)
        ranked.append(row.assign(rank=ours, published_rank=theirs, of=len(row)))
    if not ranked:
        return pd.DataFrame(columns=["method", "rows", "rank", "of", "published_rows", "published_rank"])
    grouped = pd.concat(ranked).groupby("column", sort=False)
    table = grouped.agg(
        rows=("rank", "count"),
        rank=("rank", "mean"),
        of=("of", "mean"),
        published_rows=("published_rank", "count"),
        published_rank=("published_rank", "mean"),
    )
    return table.rename_axis("method").reset_index().sort_values("rank", ignore_index=True)


def orderings(cells: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau-b between our and the published ordering of the methods, per row (table, model, metric).

    Only rows with at least three methods that have both values; `same_data` is false where the published values are
    of other data.
    """
    found = []
    both = rankable(cells).dropna(subset=["value", "published"])
    for (table, model, metric), row in both.groupby(["table", "model", "metric"], sort=False):
        if len(row) >= 3:
            tau = kendall_tau(row["value"].to_numpy(), row["published"].to_numpy())
            same = bool((row["verdict"] != "other data").all())
            found.append((table, model, metric, len(row), tau, same))
    return pd.DataFrame(found, columns=["table", "model", "metric", "methods", "tau", "same_data"])
