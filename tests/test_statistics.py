"""Summaries, paired tests and ranks against hand-worked cases and scipy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from iumad.errors import DataError
from iumad.study.statistics import mean_ranks, paired_tests, summarise

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


def test_paired_test_by_hand():
    table = make_table(
        {
            "iuf": [[0.5] * 6],
            "ib-iumad": [[0.51, 0.52, 0.53, 0.54, 0.55, 0.56]],
            "uniad": [[0.5] * 6],
        }
    )
    tests = paired_tests(table, reference="iuf").set_index("method")
    better = tests.loc["ib-iumad"]
    # Mean difference (1 + 2 + ... + 6) / 6 = 3.5 points, sd = sqrt(17.5 / 5) points.
    assert better["difference"] == pytest.approx(0.035)
    assert better["effect_size"] == pytest.approx(3.5 / np.sqrt(3.5))
    # All six signs agree: two-sided exact p = 2 / 2^6. Holm doubles the smaller of two p.
    assert better["p"] == pytest.approx(2 / 64)
    assert better["p_holm"] == pytest.approx(4 / 64)
    assert better["low"] < 0.035 < better["high"]
    assert better["n"] == 6
    assert tests.loc["uniad", "p"] == 1.0
    assert tests.loc["uniad", "difference"] == 0.0
    assert np.isnan(tests.loc["uniad", "effect_size"])


def test_few_pairs_are_compared_by_the_t_test_that_agrees_with_the_interval():
    for values, told_apart in (([0.51, 0.515, 0.52], True), ([0.50, 0.51, 0.55], False)):
        table = make_table({"iuf": [[0.5], [0.5], [0.5]], "ours": [[value] for value in values]})
        (row,) = paired_tests(table, reference="iuf").to_dict("records")
        t = row["difference"] / (np.std(np.array(values) - 0.5, ddof=1) / np.sqrt(3))
        assert row["p"] == pytest.approx(2 * stats.t.sf(t, 2))
        assert (row["p"] < 0.05) == (row["low"] > 0) == told_apart
    same = make_table({"iuf": [[0.5], [0.5]], "ours": [[0.75], [0.75]]})
    assert paired_tests(same, reference="iuf")["p"].tolist() == [0.0]


def test_only_common_pairs_count():
    table = make_table({"iuf": [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], "uniad": [[0.6, 0.7]]})
    assert paired_tests(table, reference="iuf")["n"].tolist() == [2]


def test_pairs_may_be_seeds_and_the_factor_another_column():
    table = make_table({"iuf": [[0.5], [0.6], [0.7]]})
    depth = table.assign(modality="depth", value=table["value"] - [0.1, 0.2, 0.3])
    tests = paired_tests(
        pd.concat([table, depth]),
        reference="rgb",
        factor="modality",
        by=["method", "metric"],
        pair=["seed"],
    )
    assert tests.loc[0, ["modality", "reference", "n"]].tolist() == ["depth", "rgb", 3]
    assert tests.loc[0, "difference"] == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"uniad": [[0.5, 0.5]]}, "method 'iuf' has no value for modality rgb"),
        ({"iuf": [[0.5, 0.5]]}, "nothing to compare"),
        ({"iuf": [[0.5]], "uniad": [[0.5]]}, "need 2 common pairs"),
    ],
)
def test_comparisons_that_cannot_be_made_raise(values, text):
    with pytest.raises(DataError, match=text):
        paired_tests(make_table(values), reference="iuf")


def test_paired_test_refuses_repeated_pairs():
    table = make_table({"iuf": [[0.5, 0.5]], "uniad": [[0.5, 0.6]]})
    with pytest.raises(DataError, match="4 values share all"):
        paired_tests(pd.concat([table, table]), reference="iuf")


def test_ranks_by_hand():
    table = make_table(
        {
            "iuf": [[0.5, 0.6, 0.7, 0.8]],
            "uniad": [[0.4, 0.6, 0.6, 0.7]],
            "ib-iumad": [[0.6, 0.7, 0.8, 0.9]],
        }
    )
    ranks = mean_ranks(table)
    # uniad ties with iuf in the second block: (3 + 2.5 + 3 + 3) / 4 and (2 + 2.5 + 2 + 2) / 4.
    assert ranks["method"].tolist() == ["ib-iumad", "iuf", "uniad"]
    assert ranks["rank"].tolist() == [1.0, 2.125, 2.875]
    # Nemenyi's q for three levels at 5 % is 2.343: 2.343 * sqrt(3 * 4 / (6 * 4)).
    assert ranks["critical_difference"].tolist() == pytest.approx(
        [2.343 * np.sqrt(0.5)] * 3, abs=1e-3
    )
    assert ranks["n"].tolist() == [4] * 3
    assert 0 < ranks.loc[0, "p_friedman"] < 0.05
    assert mean_ranks(table, less_is_better=True)["method"].tolist() == ["uniad", "iuf", "ib-iumad"]


def test_ranks_of_two_levels_and_of_ties():
    two = mean_ranks(make_table({"iuf": [[0.5, 0.6]], "uniad": [[0.4, 0.7]]}))
    assert two["rank"].tolist() == [1.5, 1.5]
    assert two["p_friedman"].isna().all()
    ties = mean_ranks(make_table({name: [[0.5, 0.6]] for name in ("iuf", "uniad", "ib-iumad")}))
    assert ties["p_friedman"].tolist() == [1.0] * 3


def test_ranks_need_two_levels():
    with pytest.raises(DataError, match="ranks need 2 levels"):
        mean_ranks(make_table({"iuf": [[0.5]]}))


def test_missing_column_is_named():
    with pytest.raises(DataError, match="lacks method"):
        summarise(pd.DataFrame({"seed": [0], "value": [1.0]}), by=["method"])
