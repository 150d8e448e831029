"""Averages over pairs and their bootstrap intervals over images."""

from dataclasses import dataclass

import numpy as np

from camexp.seeding import numpy_generator

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: np.ndarray, clusters: np.ndarray, resamples: int = RESAMPLES) -> Estimate:
    """Mean of `values` (N,) and its percentile interval when whole clusters (N,) are drawn with replacement.

    The pairs of one image are not independent, so images are drawn, not pairs. The draws are the same for every
    call with the same number of clusters: intervals do not change from report to report.
    """
    _, index = np.unique(clusters, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    n = len(counts)
    rng = numpy_generator("bootstrap", n)
    means = np.empty(resamples)
    chunk = max(1, 4_000_000 // n)
    for start in range(0, resamples, chunk):
        drawn = rng.integers(n, size=(min(chunk, resamples - start), n), dtype=np.int32)
        means[start : start + len(drawn)] = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(values.mean()), float(low), float(high))


def macro_mean(values: np.ndarray, classes: np.ndarray) -> float:
    """Mean over classes of the mean within each class."""
    _, index = np.unique(classes, return_inverse=True)
    return float((np.bincount(index, values) / np.bincount(index)).mean())
