"""Summaries and verdicts: by hand, against scipy, and error rates by simulation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from iumad.errors import DataError
from iumad.study.statistics import (
    CONTRADICTED,
    MARGIN,
    NO_DIFFERENCE,
    SUPPORTED,
    UNDECIDED,
    bootstrap,
    holm,
    judge,
    performance_profile,
    smallest_detectable,
    summarise,
)

CATEGORIES = ["a", "b", "c", "d", "e", "f"]


def make_table(values):
    """One metric from {method: seeds x categories}."""
    records = [
        ("rgb", "6-1", "i_auroc", method, seed, category, value)
        for method, seeds in values.items()
        for seed, categories in enumerate(seeds)
        for category, value in zip(CATEGORIES, categories, strict=False)
    ]
    columns = ["modality", "setting", "metric", "method", "seed", "category", "value"]
    return pd.DataFrame(records, columns=columns)


def test_summary_by_hand():
    table = make_table({"iuf": [[0.7], [0.8], [0.9]], "uniad": [[0.5]]})
    summary = summarise(table, by=["method"]).set_index("method")
    # sd = sqrt((0.1^2 + 0 + 0.1^2) / 2) = 0.1; t quantile of 2 degrees of freedom 4.302653.
    assert summary.loc["iuf", "mean"] == pytest.approx(0.8)
    assert summary.loc["iuf", "sd"] == pytest.approx(0.1)
    assert summary.loc["iuf", "low"] == pytest.approx(0.8 - 4.302653 * 0.1 / np.sqrt(3), abs=1e-6)
    assert summary.loc["iuf", "high"] == pytest.approx(0.8 + 4.302653 * 0.1 / np.sqrt(3), abs=1e-6)
    assert summary["n"].tolist() == [3, 1]
    assert summary.loc["uniad", ["sd", "low", "high"]].isna().all()


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-6))
def test_interval_equals_scipy(values):
    summary = summarise(make_table({"iuf": [[value] for value in values]}), by=["method"]).iloc[0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (summary["low"], summary["high"]) == pytest.approx(tuple(expected), abs=1e-9)


def test_missing_value_makes_the_summary_missing():
    summary = summarise(make_table({"iuf": [[0.7], [np.nan]]}), by=["method"])
    assert summary[["mean", "sd", "low", "high"]].isna().all(axis=None)


def test_summary_refuses_values_that_by_does_not_tell_apart():
    with pytest.raises(
        DataError, match=r"1 values share all of method, seed, first method iuf, seed 0"
    ):
        summarise(make_table({"iuf": [[0.7, 0.8]]}), by=["method"])


# --- verdicts by simulation ---------------------------------------------------------------------

SPREAD = 0.02  # standard deviation of a difference over seeds: two points
FAMILIES = 3000


def simulated(effects, n_seeds, rng, families=FAMILIES):
    """Differences of many families of experiments, in each of which every effect is measured once."""
    shape = (families, len(effects), n_seeds)
    values = np.asarray(effects)[:, None] + SPREAD * rng.standard_normal(shape)
    index = pd.MultiIndex.from_product([range(size) for size in shape], names=["f", "c", "seed"])
    return pd.DataFrame({"value": values.reshape(-1), "margin": MARGIN}, index=index).reset_index()


def words(effects, n_seeds, seed, families=FAMILIES):
    """Verdicts, families by comparisons."""
    differences = simulated(effects, n_seeds, np.random.default_rng(seed), families)
    table = judge(differences, ["f", "c"], ["f"])
    return table["verdict"].to_numpy().reshape(families, len(effects))


def chance(rate, n=FAMILIES):
    """Three standard errors of a rate that is counted n times."""
    return 3 * np.sqrt(rate * (1 - rate) / n)


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("comparisons", [1, 4])
def test_five_percent_of_the_families_without_an_effect_have_a_wrong_word(n_seeds, comparisons):
    found = words([0.0] * comparisons, n_seeds, seed=0)
    wrong = np.isin(found, [SUPPORTED, CONTRADICTED]).any(axis=1).mean()
    assert wrong <= 0.05 + chance(0.05)
    assert comparisons > 1 or wrong >= 0.05 - chance(0.05)  # Holm's correction may be stricter


def test_an_effect_beside_does_not_raise_the_errors():
    found = words([0.0, 0.0, 0.2], 5, seed=1)
    assert np.isin(found[:, :2], [SUPPORTED, CONTRADICTED]).any(axis=1).mean() <= 0.05 + chance(
        0.05
    )
    assert (found[:, 2] == SUPPORTED).mean() > 0.99


def test_a_true_difference_of_a_point_is_rarely_called_none():
    narrow = words([MARGIN], 10, seed=2) == NO_DIFFERENCE
    assert narrow.mean() <= 0.025 + chance(0.025)
    exact = simulated([0.0], 5, np.random.default_rng(3))
    table = judge(exact.assign(value=exact["value"] / 20), ["f", "c"], ["f"])  # a tenth of a point
    assert (table["verdict"] == NO_DIFFERENCE).mean() > 0.9


@pytest.mark.parametrize(("n_seeds", "comparisons"), [(3, 1), (5, 1), (5, 3)])
def test_what_is_printed_as_detectable_is_found_four_times_of_five(n_seeds, comparisons):
    rng = np.random.default_rng(4)
    first = judge(simulated([0.0] * comparisons, n_seeds, rng), ["f", "c"], ["f"])
    printed = first["detectable"].to_numpy().reshape(FAMILIES, comparisons)
    second = simulated([0.0] * comparisons, n_seeds, rng)
    # The first comparison of every family now has the difference that the first experiment printed.
    is_first = second["c"] == 0
    second.loc[is_first, "value"] += np.repeat(printed[:, 0], n_seeds)
    found = judge(second, ["f", "c"], ["f"])
    rate = (found.loc[found["c"] == 0, "verdict"] == SUPPORTED).mean()
    assert rate >= 0.8 - chance(0.8)
    assert rate <= 0.85  # and not because a much larger one is printed


def test_categories_of_one_run_are_no_pairs_of_their_own():
    """Ten categories share the model of their seed: as fifty pairs they err often, averaged they do not."""
    rng = np.random.default_rng(5)
    shared = 0.01 * rng.standard_normal((FAMILIES, 5, 1))
    values = shared + 0.02 * rng.standard_normal((FAMILIES, 5, 10))
    pairs = stats.ttest_1samp(values.reshape(FAMILIES, 50), 0, axis=1).pvalue
    assert (pairs < 0.05).mean() > 0.2
    means = pd.DataFrame(values.mean(axis=2)).melt(var_name="seed", ignore_index=False)
    means = means.rename_axis("f").reset_index().assign(margin=MARGIN)
    table = judge(means, ["f"], ["f"])
    wrong = table["verdict"].isin([SUPPORTED, CONTRADICTED]).mean()
    assert abs(wrong - 0.05) <= chance(0.05)


# --- by hand ------------------------------------------------------------------------------------


def test_holm_by_hand():
    # Sorted 0.01 0.02 0.04: times 3, 2, 1, and never less than the one before.
    assert holm(np.array([0.04, 0.01, 0.02])).tolist() == pytest.approx([0.04, 0.03, 0.04])
    assert holm(np.array([0.4, np.nan])).tolist() == pytest.approx([0.8, 1.0])


def test_detectable_with_many_seeds_is_the_textbook_value():
    # With a known deviation: (1.960 + 0.842) / sqrt(n).
    assert smallest_detectable(1.0, 400) == pytest.approx(2.802 / 20, rel=0.01)
    assert smallest_detectable(0.5, 5) == pytest.approx(0.5 * smallest_detectable(1.0, 5))
    assert np.isnan(smallest_detectable(1.0, 1))


def test_missing_seeds_do_not_count_and_missing_comparisons_do():
    table = pd.DataFrame(
        {"c": [0, 0, 0, 1], "seed": [0, 1, 2, 0], "value": [0.02, 0.03, np.nan, np.nan]}
    ).assign(margin=MARGIN, family="all")
    first, second = judge(table, ["c"], ["family"]).to_dict("records")
    assert (first["n"], first["m"], second["n"]) == (2, 2, 0)
    assert first["p_holm"] == pytest.approx(min(1, 2 * first["p"]))
    assert second["verdict"] == UNDECIDED


def test_interquartile_mean_and_its_interval():
    table = make_table({"iuf": [[0.0, 0.2, 0.4, 0.9], [0.0, 0.2, 0.4, 0.9]]})
    (row,) = bootstrap(table, ["method"]).to_dict("records")
    assert row["value"] == pytest.approx(0.3)  # 0 0 .2 .2 .4 .4 .9 .9 without a quarter at each end
    assert (row["low"], row["high"]) == pytest.approx((0.3, 0.3))  # the seeds are equal
    with pytest.raises(DataError, match="8 pairs of seed and category are needed, got 7"):
        bootstrap(table.iloc[1:], ["method"])


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(200):
        table = make_table({"iuf": rng.normal(0.5, 0.1, (8, 6))})
        (row,) = bootstrap(table, ["method"], lambda x: x.mean(axis=-1), 300).to_dict("records")
        covered += row["low"] <= 0.5 <= row["high"]
    assert 0.85 <= covered / 200 <= 0.97  # somewhat narrow, as bootstrap intervals of few seeds are


def test_performance_profile_by_hand():
    table = make_table({"iuf": [[0.1, 0.5], [0.1, 0.7]]})
    profile = performance_profile(table, ["method"], np.array([0.0, 0.3, 0.6, 0.9]))
    assert profile["share"].tolist() == [1.0, 0.5, 0.25, 0.0]
    assert (profile["low"] <= profile["share"]).all() and (
        profile["share"] <= profile["high"]
    ).all()
    # The second category is above 0.6 for one of two seeds: 0, 1 or 2 of 4 pairs in a draw.
    assert profile.loc[2, ["low", "high"]].tolist() == [0.0, 0.5]


def test_missing_column_is_named():
    with pytest.raises(DataError, match="lacks method"):
        summarise(pd.DataFrame({"seed": [0], "value": [1.0]}), by=["method"])
