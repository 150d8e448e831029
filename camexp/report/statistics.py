"""Averages over pairs, their bootstrap over images, and what rests on it: intervals, differences, orderings.

The pairs of one image are not independent, so whole images (clusters) are drawn with replacement (Davison and Hinkley,
Bootstrap Methods, 1997, section 3.8). A resampled mean is a ratio of two sums over the drawn images, and all ratios
come from one product: (how often each image was drawn) times (sums and counts of each image).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from camexp.seeding import numpy_generator

RESAMPLES = 2000
LEVEL = 0.95

CHUNK = 4_000_000
"""Draws that are in memory at a time."""

Labels = np.ndarray | pd.Series

REMEMBERED = 100_000_000
"""Draws that are kept for the next call with as many clusters, one byte each."""


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: np.ndarray, clusters: Labels, resamples: int = RESAMPLES) -> Estimate:
    """Mean of `values` (N,) and its percentile interval when whole clusters (N,) are drawn with replacement.

    The draws are the same for every call with the same number of clusters: intervals do not change from report to
    report.
    """
    low, high = interval(resampled_means(values[:, None], clusters, resamples))
    return Estimate(float(values.mean()), float(low[0]), float(high[0]))


def resampled_means(values: np.ndarray, clusters: Labels, resamples: int = RESAMPLES) -> np.ndarray:
    """Means (resamples, K) of the K columns of `values` (N, K) when whole clusters (N,) are drawn."""
    index = codes(clusters)
    columns = [*values.T, np.ones(len(values))]
    sums = resampled_sums(np.stack([np.bincount(index, column) for column in columns], 1), resamples)
    return sums[:, :-1] / sums[:, -1:]


def resampled_macro_means(
    values: np.ndarray, classes: Labels, clusters: Labels, resamples: int = RESAMPLES
) -> np.ndarray:
    """Mean over classes of the mean within each class (resamples,); a class that was not drawn is left out."""
    index, group = codes(clusters), codes(classes)
    n, groups = index.max() + 1, group.max() + 1
    cell = index * groups + group
    totals = [np.bincount(cell, weights, n * groups).reshape(n, groups) for weights in (values, np.ones(len(values)))]
    sums, counts = np.split(resampled_sums(np.hstack(totals), resamples), 2, 1)
    drawn = counts > 0
    return (sums / np.where(drawn, counts, 1)).sum(1) / drawn.sum(1)


def resampled_sums(totals: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """Sums (resamples, K) of the clusters' totals (n, K) over the clusters drawn."""
    return np.concatenate([drawn.astype(float) @ totals for drawn in _draws(len(totals), resamples)])


def interval(distribution: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the central 95 % of resampled values (resamples, ...), each (...)."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(distribution, [tail, 1 - tail], axis=0)
    return low, high


def codes(labels: Labels) -> np.ndarray:
    """Labels (N,) of any kind as numbers 0..n-1 in the order in which they appear."""
    if isinstance(labels, pd.Series):  # categories have numbers already, which are faster than strings
        labels = (labels.cat.codes if isinstance(labels.dtype, pd.CategoricalDtype) else labels).to_numpy()
    return pd.factorize(labels)[0]


def _draws(n: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each of n clusters is drawn, (resamples, n) in chunks of rows."""
    return iter(_remembered(n, resamples)) if n * resamples <= REMEMBERED else _draw(n, resamples)


@lru_cache(maxsize=4)
def _remembered(n: int, resamples: int) -> list[np.ndarray]:
    return list(_draw(n, resamples))


def _draw(n: int, resamples: int) -> Iterator[np.ndarray]:
    rng = numpy_generator("bootstrap", n)
    rows = max(1, CHUNK // n)
    for start in range(0, resamples, rows):
        height = min(rows, resamples - start)
        drawn = rng.integers(n, size=(height, n), dtype=np.int32) + np.arange(height, dtype=np.int32)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=height * n).reshape(height, n)
        yield counts.astype(np.uint8 if n < 256 or counts.max() < 256 else np.uint32)


def macro_mean(values: np.ndarray, classes: Labels) -> float:
    """Mean over classes of the mean within each class."""
    index = codes(classes)
    return float((np.bincount(index, values) / np.bincount(index)).mean())


# ------------------------------------------------------------------------------------------- differences


def two_sided_p(distribution: np.ndarray) -> np.ndarray:
    """p-values (...) of "the difference is 0" from resampled differences (resamples, ...).

    Twice the share of resamples on the far side of 0, the observed sample counted as one of them, at most 1
    (Davison and Hinkley, section 4.4). The smallest p that R resamples can give is 2 / (R + 1).
    """
    below, above = (distribution <= 0).sum(0), (distribution >= 0).sum(0)
    return np.minimum(1.0, 2 * (np.minimum(below, above) + 1) / (len(distribution) + 1))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (M,): the chance of any false finding among the M stays below the level (Holm, 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)) if len(p) else p
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


# --------------------------------------------------------------------------------------------- orderings


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b of two orderings (M,) of the same methods: 1 the same, -1 reversed; NaN where one is constant."""
    upper = np.triu_indices(len(a), 1)
    first, second = (np.sign(np.subtract.outer(x, x))[upper] for x in (np.asarray(a), np.asarray(b)))
    scale = np.sqrt((first != 0).sum() * (second != 0).sum())
    return float((first * second).sum() / scale) if scale else float("nan")


def ranks(values: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """Ranks (M,) from 1 for the best; equal values share the mean of their ranks."""
    return pd.Series(values).rank(ascending=not higher_is_better).to_numpy()
