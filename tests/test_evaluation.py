"""Average precision, top-k and the mean probability of what is there, computed by hand and against scikit-learn."""

import numpy as np
import pytest

from camexp.errors import CamexpError
from camexp.evaluation import average_precision, average_precision_voc07, quality


def test_average_precision_by_hand() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.7])
    truth = np.array([1, 1, 0, 0])  # hits at ranks 1 and 4: precisions 1 and 2/4
    assert average_precision(scores, truth) == pytest.approx((1 + 0.5) / 2)


def test_voc07_by_hand() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.7])
    truth = np.array([1, 1, 0, 0])  # recall 0.5 from rank 1: precision 1 for 0..0.5, then 0.5 for 0.6..1
    assert average_precision_voc07(scores, truth) == pytest.approx((6 * 1 + 5 * 0.5) / 11)


def test_voc07_takes_the_highest_precision_at_a_recall_or_beyond() -> None:
    scores = np.array([4.0, 3.0, 2.0, 1.0])
    truth = np.array([False, True, True, True])  # precisions 1/2, 2/3, 3/4 at the hits: 3/4 everywhere
    assert average_precision_voc07(scores, truth) == pytest.approx(0.75)


def test_voc07_counts_a_recall_that_rounding_would_miss() -> None:
    truth = np.array([True] * 3 + [False] * 7 + [True] * 7)  # recall 0.3 exactly at rank 3: 1 for 0..0.3, then 10/17
    assert average_precision_voc07(-np.arange(17.0), truth) == pytest.approx((4 * 1 + 7 * 10 / 17) / 11)


def test_perfect_reversed_and_absent() -> None:
    scores, truth = np.array([3.0, 2.0, 1.0]), np.array([True, False, False])
    assert average_precision(scores, truth) == average_precision_voc07(scores, truth) == 1
    assert average_precision(-scores, truth) == pytest.approx(1 / 3)
    assert np.isnan(average_precision(scores, np.zeros(3, dtype=bool)))
    assert np.isnan(average_precision_voc07(scores, np.zeros(3, dtype=bool)))


def test_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    scores, truth = generator.permutation(200) / 200, generator.random(200) < 0.2
    assert average_precision(scores, truth) == pytest.approx(metrics.average_precision_score(truth, scores))


PROBABILITIES = np.array(
    [
        [0.50, 0.30, 0.10, 0.05, 0.03, 0.02],
        [0.02, 0.03, 0.05, 0.10, 0.30, 0.50],
        [0.40, 0.20, 0.15, 0.12, 0.08, 0.05],
        [0.90, 0.02, 0.02, 0.02, 0.02, 0.02],
    ]
)
TRUTH = np.array(
    [
        [1, 0, 0, 0, 0, 1],  # first and last of the ranking
        [1, 0, 0, 0, 0, 0],  # last
        [0, 1, 0, 0, 0, 0],  # second
        [0, 0, 0, 0, 0, 0],  # left out
    ],
    dtype=bool,
)


def test_quality_by_hand() -> None:
    found = quality(PROBABILITIES, TRUTH)
    assert list(found) == ["map", "map_voc07", "top1", "top5", "recall5", "true_probability"]
    # class 0: ranks 1 and 3 of (0.5, 0.4, 0.02); class 1: rank 2 of (0.3, 0.2, 0.03); class 5: rank 3
    assert found["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2 + 1 / 3) / 3)
    assert found["map_voc07"] == pytest.approx(((6 * 1 + 5 * 2 / 3) / 11 + 1 / 2 + 1 / 3) / 3)
    assert found["top1"] == pytest.approx(1 / 3)
    assert found["top5"] == pytest.approx(2 / 3)
    assert found["recall5"] == pytest.approx(2 / 4)
    assert found["true_probability"] == pytest.approx((0.5 + 0.02 + 0.02 + 0.2) / 4)


def test_images_without_a_true_class_change_nothing() -> None:
    assert quality(PROBABILITIES, TRUTH) == quality(PROBABILITIES[:3], TRUTH[:3])


def test_fewer_than_five_classes() -> None:
    found = quality(np.array([[0.3, 0.7]]), np.array([[True, False]]))
    assert (found["top1"], found["top5"], found["recall5"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("probabilities", "truth", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), dtype=bool), "no image has a true class"),
        (np.zeros((2, 3)), np.ones((3, 2), dtype=bool), r"\(2, 3\) and truth \(3, 2\)"),
        (np.full((1, 2), np.nan), np.array([[True, False]]), "not finite"),
    ],
)
def test_refuses_what_cannot_be_evaluated(probabilities: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(CamexpError, match=message):
        quality(probabilities, truth)
