"""Statistics of the report against naive references, SciPy and statsmodels, and by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from camexp.report import statistics
from camexp.report.breakdowns import by_group
from camexp.report.comparisons import average_ranks, compare_methods, orderings
from camexp.report.statistics import (
    bootstrap_mean,
    holm,
    interval,
    kendall_tau,
    macro_mean,
    ranks,
    resampled_macro_means,
    resampled_means,
    resampled_sums,
    two_sided_p,
)


def clustered(rng: np.random.Generator, images: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Values and images of one to three pairs per image that share the image's own effect; their mean is 0."""
    clusters = np.repeat(np.arange(images), rng.integers(1, 4, images))
    return rng.normal(0, spread, images)[clusters] + rng.normal(0, 0.5, len(clusters)), clusters


def frame(values: np.ndarray, images: np.ndarray, metric: str = "ebpg") -> pd.DataFrame:
    index = pd.MultiIndex.from_arrays([images.astype(str), np.arange(len(images))], names=["image_id", "class_id"])
    return pd.DataFrame({metric: values}, index=index)


# ------------------------------------------------------------------------------------------------- intervals


def test_bootstrap_draws_images_not_pairs():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), rng.integers(1, 4, 30))
    values = rng.random(30)[clusters]  # the pairs of an image agree completely
    estimate = bootstrap_mean(values, clusters)
    naive = []
    for _ in range(4000):
        drawn = rng.integers(30, size=30)
        naive.append(np.concatenate([values[clusters == image] for image in drawn]).mean())
    assert estimate.mean == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=0.015)
    independent = bootstrap_mean(values, np.arange(len(values)))
    assert estimate.high - estimate.low > 1.15 * (independent.high - independent.low)


def test_interval_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(3).exponential(1.0, 200)
    ours = bootstrap_mean(values, np.arange(200), resamples=5000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(4))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.012)


def test_standard_error_agrees_with_statsmodels_cluster_robust_one():
    regression = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed (pip install .[dev])")
    values, clusters = clustered(np.random.default_rng(5), 400)
    fitted = regression.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert resampled_means(values[:, None], clusters).std() == pytest.approx(fitted.bse[0], rel=0.06)


def test_interval_of_clustered_data_covers_the_truth_as_often_as_it_says():
    rng, covered, naive, times = np.random.default_rng(1), 0, 0, 500
    for _ in range(times):
        values, clusters = clustered(rng, 80)
        found = bootstrap_mean(values, clusters, resamples=400)
        covered += found.low <= 0 <= found.high
        pairs = bootstrap_mean(values, np.arange(len(values)), resamples=400)
        naive += pairs.low <= 0 <= pairs.high
    error = 3 * np.sqrt(0.95 * 0.05 / times)
    assert covered / times == pytest.approx(0.95, abs=error + 0.01)  # 80 images lose up to a percent
    assert naive / times < 0.95 - error  # pairs as if independent: too narrow


def test_interval_is_the_same_from_report_to_report():
    values, clusters = np.arange(10.0), np.arange(10)
    assert bootstrap_mean(values, clusters) == bootstrap_mean(values, clusters)


def test_labels_of_any_kind_and_columns_together_give_the_same_as_alone():
    values, clusters = clustered(np.random.default_rng(6), 25)
    both = resampled_means(np.stack([values, values**2], 1), clusters.astype(str))
    alone = resampled_means(values[:, None], clusters)
    categories = pd.Series(clusters.astype(str)).astype("category")
    np.testing.assert_allclose(both[:, 0], alone[:, 0], rtol=1e-9)
    np.testing.assert_allclose(resampled_means(values[:, None], categories), alone, rtol=1e-9)


def test_draws_that_are_not_kept_are_the_same(monkeypatch):
    values = np.random.default_rng(2).random(30_000)
    kept = bootstrap_mean(values, np.arange(30_000), resamples=300)
    monkeypatch.setattr(statistics, "REMEMBERED", 0)
    assert bootstrap_mean(values, np.arange(30_000), resamples=300) == kept
    standard_error = values.std() / np.sqrt(len(values))
    assert kept.high - kept.low == pytest.approx(2 * 1.96 * standard_error, rel=0.2)


def test_every_resample_draws_as_many_images_as_there_are():
    for n in (1, 3, 300):
        assert (resampled_sums(np.ones((n, 1)), resamples=50) == n).all()


def test_macro_mean_by_hand():
    assert macro_mean(np.array([1.0, 0.0, 0.0, 0.5]), np.array([3, 3, 3, 7])) == pytest.approx((1 / 3 + 0.5) / 2)


def test_resampled_macro_means_against_a_naive_loop():
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(40), 2)
    classes, values = rng.integers(0, 3, 80), rng.random(80)
    found = resampled_macro_means(values, classes, clusters)
    naive = []
    for _ in range(2000):
        members = np.concatenate([np.flatnonzero(clusters == image) for image in rng.integers(40, size=40)])
        present = np.unique(classes[members])
        naive.append(np.mean([values[members][classes[members] == c].mean() for c in present]))
    assert found.mean() == pytest.approx(np.mean(naive), abs=0.005)
    assert found.std() == pytest.approx(np.std(naive), rel=0.08)


# ----------------------------------------------------------------------------------------------- differences


def test_p_value_agrees_with_the_t_test_of_paired_differences():
    rng = np.random.default_rng(8)
    first = rng.normal(0, 1, 200)
    second = first + rng.normal(0.13, 1, 200)
    resampled = resampled_means((second - first)[:, None], np.arange(200), resamples=8000)
    assert two_sided_p(resampled)[0] == pytest.approx(stats.ttest_rel(second, first).pvalue, abs=0.02)


def test_p_values_without_a_difference_are_uniform():
    rng = np.random.default_rng(9)
    p = []
    for _ in range(200):
        values, clusters = clustered(rng, 60)
        p.append(two_sided_p(resampled_means(values[:, None], clusters, resamples=400))[0])
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert np.mean(np.array(p) < 0.05) < 0.11


def test_p_value_of_equal_methods_is_one_and_of_clear_ones_the_smallest():
    assert two_sided_p(np.zeros((100, 1)))[0] == 1
    assert two_sided_p(np.ones((99, 1)))[0] == pytest.approx(2 / 100)


def test_holm_agrees_with_statsmodels():
    multitest = pytest.importorskip(
        "statsmodels.stats.multitest", reason="statsmodels is not installed (pip install .[dev])"
    )
    p = np.random.default_rng(10).random(20) ** 3
    np.testing.assert_allclose(holm(p), multitest.multipletests(p, method="holm")[1])


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03, 0.005])), [0.06, 0.03, 0.06, 0.02])
    assert len(holm(np.array([]))) == 0


def test_methods_are_compared_on_the_pairs_that_both_explained():
    images = np.repeat(np.arange(20), 2)
    values = np.random.default_rng(11).random(40)
    one, other = frame(values, images), frame(values - 0.1, images)
    fewer = other.iloc[[*range(10), *range(14, 40)]].iloc[::-1]  # in another order too
    found = compare_methods({"a": one, "b": other, "c": fewer}, ["ebpg"], set()).set_index(["a", "b"])
    assert found.loc[("a", "b"), "difference"] == pytest.approx(0.1)
    assert found.loc[("a", "c"), "difference"] == pytest.approx(0.1)
    assert (found.loc[("a", "c"), "pairs"], found.loc[("a", "c"), "images"]) == (36, 18)
    assert found.loc[("b", "c"), "difference"] == 0
    assert found.loc[("b", "c"), "p"] == 1  # equal methods never differ, whatever the order of sums
    assert (found["p_holm"] >= found["p"]).all()


def test_pairing_makes_the_interval_narrow():
    rng = np.random.default_rng(12)
    values, images = clustered(rng, 100)
    found = compare_methods(
        {"a": frame(values, images), "b": frame(values + rng.normal(0, 0.01, len(values)), images)}, ["ebpg"], set()
    ).iloc[0]
    alone = bootstrap_mean(values, images)
    assert found["high"] - found["low"] < 0.05 * (alone.high - alone.low)


def test_controls_are_not_compared_with_each_other():
    values = frame(np.random.default_rng(13).random(10), np.arange(10))
    found = compare_methods({"a": values, "uniform": values, "random": values}, ["ebpg"], {"uniform", "random"})
    assert [tuple(pair) for pair in found[["a", "b"]].to_numpy()] == [("a", "uniform"), ("a", "random")]


# ----------------------------------------------------------------------------------------- orderings, groups


@pytest.mark.parametrize("ties", [False, True])
def test_kendall_tau_agrees_with_scipy(ties):
    rng = np.random.default_rng(14)
    for _ in range(20):
        a, b = rng.random(8), rng.random(8)
        a, b = (np.round(3 * a), np.round(3 * b)) if ties else (a, b)
        assert kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, nan_ok=True)


def test_ranks_agree_with_scipy():
    values = np.array([0.3, 0.1, 0.3, 0.7])
    np.testing.assert_array_equal(ranks(values, higher_is_better=False), stats.rankdata(values))
    np.testing.assert_array_equal(ranks(values, higher_is_better=True), stats.rankdata(-values))


def cells(values: dict[str, float], published: dict[str, float], metric: str = "ebpg", **fields) -> pd.DataFrame:
    base = {"table": "t", "model": "m", "metric": metric, "control": False, "complete": True, "conflict": ""}
    rows = [
        base
        | {"column": n, "method": n, "value": v, "published": published.get(n, np.nan), "verdict": "outside"}
        | fields
        for n, v in values.items()
    ]
    return pd.DataFrame(rows)


def test_average_rank_and_ordering_by_hand():
    up = cells({"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 1, "b": 2, "c": 3})
    down = cells({"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 3, "b": 2, "c": 1}, metric="drop")
    control = cells({"uniform": 9.0}, {}, control=True)
    both = pd.concat([up, down, control])
    table = average_ranks(both).set_index("method")
    assert table["rank"].to_dict() == {"a": 2.0, "b": 2.0, "c": 2.0}
    assert table.loc["a", "rows"] == 2
    assert orderings(both).set_index("metric")["tau"].to_dict() == {"ebpg": -1.0, "drop": 1.0}


def test_an_ablation_ranks_no_methods():
    ablation = cells({"mu = 0": 3.0, "mu = 0.3": 2.0}, {}).assign(method="sise", table="ablation")
    alone = cells({"sise": 3.0}, {}).assign(table="alone")
    assert average_ranks(pd.concat([ablation, alone])).empty


def test_an_unfinished_run_or_one_unlike_the_others_takes_no_part():
    all_three = cells({"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 1, "b": 2, "c": 3})
    for field, value in (("complete", False), ("conflict", "limit: None -> 3")):
        changed = all_three.assign(**{field: [value, *all_three[field].iloc[1:]]})
        assert "a" not in set(average_ranks(changed)["method"])
        assert orderings(changed).empty  # two methods have no ordering to speak of


def test_groups_by_hand():
    images, groups = pd.Series(["1", "1", "2", "3"]), pd.Series(["x", "y", "x", "x"], dtype="category")
    values = pd.DataFrame({("run", "ebpg"): [0.1, 0.9, 0.3, 0.5]})
    found = by_group(images, groups, values).set_index("group")
    assert found["value"].to_dict() == pytest.approx({"x": 30.0, "y": 90.0})
    assert found["pairs"].to_dict() == {"x": 3, "y": 1}
    assert found.loc["x", "low"] == pytest.approx(10.0)
    low, high = interval(np.array([[1.0], [2.0], [3.0]]))
    assert low[0] < 2 < high[0]
