"""How good a classifier is: average precision per class, top-k, and the probability of what is there.

The all-points average precision is the mean precision at each hit; VOC2007's own is the mean over the recalls 0, 0.1,
..., 1 of the highest precision at that recall or a higher one (Everingham et al., IJCV 2010, section 4.2).
"""

import numpy as np

from camexp.errors import CamexpError

QUALITIES = ("map", "map_voc07", "top1", "top5", "recall5", "true_probability")
"""The keys of `quality`."""


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the precision-recall curve (mean precision at each hit) of one class.

    Parameters
    ----------
    scores: (N,), higher for what is more likely of the class; equal ones keep their order.
    truth: (N,), true for the images that show the class.

    Returns
    -------
    In [0,1]; NaN when no image shows the class.
    """
    hits, precision = _precision(scores, truth)
    return float(precision[hits].mean()) if hits.any() else float("nan")


def average_precision_voc07(scores: np.ndarray, truth: np.ndarray) -> float:
    """VOC2007's 11-point interpolated average precision of one class; parameters as `average_precision`'s."""
    hits, precision = _precision(scores, truth)
    if not hits.any():
        return float("nan")
    found = np.cumsum(hits)
    # 10 * found >= k * total is recall >= k / 10 without rounding
    reached = 10 * found >= np.arange(11)[:, None] * found[-1]
    return float(np.where(reached, precision, 0).max(1).mean())


def _precision(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which images (N,) are hits, in order of falling score, and the precision (N,) down to each."""
    hits = np.asarray(truth)[np.argsort(-scores, kind="stable")] > 0
    return hits, np.cumsum(hits) / np.arange(1, len(hits) + 1)


def quality(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """What a classifier is worth on images with one or more true classes; images without any are left out.

    Parameters
    ----------
    probabilities: (N,C), the confidence for each class.
    truth: (N,C) bool.

    Returns
    -------
    All in [0,1]: `map` and `map_voc07` (means over the classes that occur), `top1` and `top5` (share of images with
    a true class among the first k), `recall5` (share of (image, true class) pairs among the first five),
    `true_probability` (mean over those pairs).

    Raises
    ------
    CamexpError: when the shapes differ, a probability is not finite, or no image has a true class.
    """
    probabilities, truth = np.asarray(probabilities), np.asarray(truth) > 0
    if probabilities.shape != truth.shape or truth.ndim != 2:
        raise CamexpError(f"probabilities {probabilities.shape} and truth {truth.shape} must both be (N,C)")
    labelled = truth.any(1)
    if not labelled.any():
        raise CamexpError("no image has a true class, so there is nothing to evaluate; check the data set's split")
    probabilities, truth = probabilities[labelled], truth[labelled]
    if not np.isfinite(probabilities).all():
        raise CamexpError("the network's output is not finite; check the checkpoint and model.preprocess")
    ranked = np.take_along_axis(truth, np.argsort(-probabilities, axis=1, kind="stable"), axis=1)
    classes = np.flatnonzero(truth.any(0))
    return {
        "map": float(np.mean([average_precision(probabilities[:, c], truth[:, c]) for c in classes])),
        "map_voc07": float(np.mean([average_precision_voc07(probabilities[:, c], truth[:, c]) for c in classes])),
        "top1": float(ranked[:, 0].mean()),
        "top5": float(ranked[:, :5].any(1).mean()),
        "recall5": float(ranked[:, :5].sum() / truth.sum()),
        "true_probability": float(probabilities[truth].mean()),
    }
