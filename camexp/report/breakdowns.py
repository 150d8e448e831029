"""Results by class, object size, probability of the class, and whether the class is the network's first choice."""

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import pandas as pd

from camexp.report.runs import Run
from camexp.report.statistics import interval, resampled_means
from camexp.report.table import quantity

AREA_EDGES = (0.0, 0.05, 0.15, 0.4, 1.0)
PROBABILITY_EDGES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
RESAMPLES = 1000

DESCRIBING = ["image_id", "class_id", "class_name", "area", "prob", "argmax", "run"]
"""The columns that say to which groups a pair belongs."""

BREAKDOWN_COLUMNS = ["by", "group", "metric", "value", "low", "high", "pairs", "images"]


def _bins(values: pd.Series, edges: tuple[float, ...]) -> pd.Series:
    """Bins [low, high) in percent, the last one with its upper end."""
    labels = [f"{100 * low:g}–{100 * high:g} %" for low, high in pairwise(edges)]
    return pd.cut(values, [*edges[:-1], np.inf], right=False, labels=labels)


GROUPS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "class": lambda rows: rows["class_name"].astype("category"),
    "area": lambda rows: _bins(rows["area"], AREA_EDGES),
    "probability": lambda rows: _bins(rows["prob"], PROBABILITY_EDGES),
    "argmax": lambda rows: rows["argmax"].map({1: "first choice", 0: "not first"}).astype("category"),
}
"""How rows are grouped: for each way a function from rows to their groups."""


def breakdowns(run: Run, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Means in each group of `GROUPS`, with 95 % intervals (bootstrap over images), in the tables' units.

    Columns: by, group, metric, value, low, high, pairs, images. Groups without pairs are left out.
    """
    return breakdowns_of({"": run}, resamples).drop(columns="column")


def breakdowns_of(runs: Mapping[str, Run], resamples: int = RESAMPLES) -> pd.DataFrame:
    """`breakdowns` of several runs, with their labels in `column`; runs of the same pairs share the resampling."""
    parts = []
    for labels in _alike(runs):
        rows = runs[labels[0]].rows
        values = pd.concat([runs[label].rows[runs[label].metrics] for label in labels], axis=1, keys=labels)
        for by, group in GROUPS.items():
            parts.append(by_group(rows["image_id"], group(rows), values, resamples).assign(by=by))
    columns = ["column", *BREAKDOWN_COLUMNS]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _alike(runs: Mapping[str, Run]) -> list[list[str]]:
    """The labels of the runs, those together whose rows are of the same pairs and fall into the same groups."""
    described = {label: run.rows[DESCRIBING] for label, run in runs.items()}
    groups: list[list[str]] = []
    for label, rows in described.items():
        same = next((group for group in groups if described[group[0]].equals(rows)), None)
        if same is None:
            groups.append([label])
        else:
            same.append(label)
    return groups


def by_group(images: pd.Series, groups: pd.Series, values: pd.DataFrame, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Means of the columns (run, metric) of `values` within each category of `groups`, with intervals and counts.

    `images`, `groups` and `values` have one entry per pair.
    """
    labels, metrics = (values.columns.get_level_values(level) for level in (0, 1))
    scale = np.array([quantity(metric).scale for metric in metrics])
    scaled = np.ascontiguousarray(values.to_numpy(float) * scale)
    found = []
    for group, members in groups.groupby(groups, observed=True).indices.items():
        if not len(members):
            continue
        inside, of = scaled[members], images.iloc[members]
        low, high = interval(resampled_means(inside, of, resamples))
        table = pd.DataFrame({"column": labels, "metric": metrics, "value": inside.mean(0), "low": low, "high": high})
        found.append(table.assign(group=str(group), pairs=len(members), images=of.nunique()))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def ebpg_minus_area(run: Run, resamples: int = RESAMPLES) -> dict[str, float]:
    """Mean of EBPG minus the area share of the object, in percentage points, with its interval.

    A map without any information has an EBPG of the object's area share, so 0 is what a uniform map reaches.
    """
    excess = 100 * (run.rows["ebpg"] - run.rows["area"]).to_numpy()
    low, high = interval(resampled_means(excess[:, None], run.rows["image_id"], resamples))
    return {"value": float(excess.mean()), "low": float(low[0]), "high": float(high[0])}
