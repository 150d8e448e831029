"""What changed between two runs, or between all runs that two results folders have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from camexp.errors import CamexpError
from camexp.records import differing
from camexp.report.collect import read_results
from camexp.report.comparisons import images_of, pair_values
from camexp.report.layout import text_of
from camexp.report.markdown import grid
from camexp.report.runs import Run, combine, read_run
from camexp.report.statistics import interval, resampled_means
from camexp.report.table import quantity

LISTED = 5
"""Pairs shown of those that changed most, or are in one run only."""


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes
    ----------
    fields: identity fields that differ, "field: a -> b".
    only_a, only_b: (image, class) of the rows that one run alone has.
    metrics: per metric mean_a, mean_b, difference (b - a), low, high (bootstrap over images), over the common pairs,
        and `largest`, the largest change of a pair; fractions.
    values: per common pair the change b - a of each metric.
    tolerance: the largest change of a mean that counts as equal; 0 allows no pair to change.
    """

    name: str
    fields: list[str]
    only_a: list[Any]
    only_b: list[Any]
    metrics: pd.DataFrame
    values: pd.DataFrame
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether both have the same pairs and no mean changed by more than the tolerance (0: no value at all)."""
        same_rows = not self.only_a and not self.only_b and bool(len(self.values))
        change = self.metrics["difference"].abs() if self.tolerance else self.metrics["largest"]
        return same_rows and bool((change <= self.tolerance).all())


def compare_folders(a: Path, b: Path, tolerance: float = 0.0) -> tuple[list[Comparison], list[str]]:
    """Compare two folders of one run, or every run that two results folders share, and what could not be compared.

    Raises
    ------
    CamexpError: when a folder is missing or cannot be read, or when there is nothing that both have.
    """
    for folder in (a, b):
        if not folder.is_dir():
            raise CamexpError(f"{folder} is not a folder; give the folders of two runs, or two results folders")
    if (a / "records.csv").is_file() and (b / "records.csv").is_file():
        first, second = (combine([read_run(folder)]) for folder in (a, b))
        return [compare_runs(f"{a} -> {b}", first, second, tolerance)], [*first.remarks, *second.remarks]
    one, other = read_results(a), read_results(b)
    shared = [key for key in one.runs if key in other.runs]
    if not shared:
        raise CamexpError(f"{a} and {b} have no run in common (same data set, model, method and parameters)")
    compared = [compare_runs("/".join(key), one.runs[key], other.runs[key], tolerance) for key in shared]
    alone = [f"only in {folder}: {'/'.join(key)}" for folder, key in _alone(a, one.runs, b, other.runs)]
    return compared, [*one.problems, *other.problems, *alone]


def _alone(a: Path, first: dict[Any, Run], b: Path, second: dict[Any, Run]) -> list[tuple[Path, Any]]:
    return [(a, key) for key in first if key not in second] + [(b, key) for key in second if key not in first]


def compare_runs(name: str, a: Run, b: Run, tolerance: float = 0.0) -> Comparison:
    """Compare two runs over the pairs that both have.

    Raises
    ------
    CamexpError: when they share no metric.
    """
    metrics = [metric for metric in a.metrics if metric in b.metrics]
    if not metrics:
        raise CamexpError(f"{a.path} and {b.path} have no metric in common")
    first, second = pair_values(a)[metrics], pair_values(b)[metrics]
    common = first.index.intersection(second.index, sort=False)
    change = second.loc[common] - first.loc[common]
    table = pd.DataFrame({"mean_a": first.loc[common].mean(), "mean_b": second.loc[common].mean()}, index=metrics)
    table["difference"], table["largest"] = table["mean_b"] - table["mean_a"], change.abs().max()
    low, high = interval(resampled_means(change.to_numpy(), images_of(common))) if len(common) else (np.nan, np.nan)
    table["low"], table["high"] = low, high
    only_a, only_b = list(first.index.difference(common, sort=False)), list(second.index.difference(common, sort=False))
    fields = differing(a.identity, b.identity)
    fields += [f"metrics: {sorted(a.metrics)} -> {sorted(b.metrics)}"] if set(a.metrics) != set(b.metrics) else []
    return Comparison(name, fields, only_a, only_b, table, change, tolerance)


def render(found: Comparison) -> str:
    """A comparison as text: verdict, fields, rows, means with intervals, largest changes."""
    parts = [f"{found.name}: {'equal' if found.equal else 'DIFFERENT'} ({len(found.values)} common pairs)"]
    parts += [f"  identity: {field}" for field in found.fields]
    for side, rows in (("first", found.only_a), ("second", found.only_b)):
        if rows:
            named = ", ".join(f"image {image} class {target}" for image, target in rows[:LISTED])
            parts.append(f"  only in the {side}: {len(rows)} rows ({named}{', ...' if len(rows) > LISTED else ''})")
    if len(found.values) and found.metrics["largest"].gt(0).any():
        parts += [grid(_rows(found)), *_largest(found)]
    return "\n".join(parts) + "\n"


def _rows(found: Comparison) -> list[list[str]]:
    rows = [["metric", "first", "second", "difference", "95 % interval", "largest change of a pair"]]
    for metric, line in found.metrics.iterrows():
        shown = quantity(str(metric))
        scaled = line * shown.scale
        interval_text = f"{scaled['low']:+.4f} to {scaled['high']:+.4f}"
        means = [text_of(scaled["mean_a"], shown), text_of(scaled["mean_b"], shown)]
        rows.append([shown.heading, *means, f"{scaled['difference']:+.4f}", interval_text, f"{scaled['largest']:.4f}"])
    return rows


def _largest(found: Comparison) -> list[str]:
    """The pairs whose values changed most, per metric."""
    lines = []
    for metric in found.values.columns:
        changes = found.values[metric]
        order = changes.abs().sort_values(ascending=False).index[:LISTED]
        told = [(key, changes[key]) for key in order if changes[key]]
        if told:
            scale = quantity(str(metric)).scale
            named = "; ".join(f"image {image} class {target} {scale * change:+.3f}" for (image, target), change in told)
            lines.append(f"  {quantity(str(metric)).label}: {named}")
    return lines
