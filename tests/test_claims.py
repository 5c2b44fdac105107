"""Verdicts on the paper's claims: by hand, and never from runs that do not exist."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iumad.config.files import load_params
from iumad.data import open_dataset
from iumad.study.claims import (
    CREDIT,
    FAILS,
    HOLDS,
    PAPER_CLAIMS,
    UNTESTABLE,
    Claim,
    Contrast,
    evaluate_claims,
    judge,
    values_of,
    verdicts,
)

BOTH = "rgb+depth"


def values(table: dict[str, list[float]], metric="i_auroc", setting="6-1") -> pd.DataFrame:
    """One value per method and seed."""
    return pd.DataFrame(
        [
            (method, BOTH, setting, seed, metric, value)
            for method, each in table.items()
            for seed, value in enumerate(each)
        ],
        columns=["method", "modality", "setting", "seed", "metric", "value"],
    )


def better(metric="i_auroc", setting="6-1") -> Contrast:
    return Contrast(((1, "ib-iumad", BOTH), (-1, "iuf", BOTH)), setting, metric)


def judged_rows(table: pd.DataFrame, *contrasts: Contrast) -> pd.DataFrame:
    claim = Claim("one", "Ours is better.", "Table 1", "settings", "05", contrasts)
    return evaluate_claims((claim,), {"settings": table})


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.05, HOLDS), (-0.01, 0.02, FAILS), (-0.01, 0.05, UNTESTABLE), (-0.05, -0.01, FAILS)],
)
def test_the_three_verdicts(low, high, verdict):
    assert judge(low, high, expected=0.03) == verdict


def test_a_difference_by_hand():
    table = values({"ib-iumad": [0.80, 0.83, 0.86], "iuf": [0.78, 0.80, 0.82]})
    (row,) = judged_rows(table, better()).to_dict("records")
    # differences 2, 3, 4 points: mean 3, sd 1, half width t(0.975, 2) / sqrt(3)
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert row["estimate"] == pytest.approx(3)
    assert row["low"] == pytest.approx(3 - half)
    assert row["high"] == pytest.approx(3 + half)
    assert row["paper"] == pytest.approx(78.6 - 75.1)  # Table 1, RGB+3D, 6-1
    assert (row["n"], row["verdict"]) == (3, HOLDS)


def test_less_forgetting_is_in_favour():
    table = values({"ib-iumad": [0.02, 0.03], "iuf": [0.06, 0.07]}, metric="fm_i_auroc")
    (row,) = judged_rows(table, better("fm_i_auroc")).to_dict("records")
    assert row["estimate"] == pytest.approx(4)
    assert row["paper"] == pytest.approx(15.1 - 9.3)


def test_only_seeds_that_have_all_terms_count():
    table = values({"ib-iumad": [0.8, 0.8, 0.9], "iuf": [0.7, 0.8]})
    (row,) = judged_rows(table, better()).to_dict("records")
    assert row["n"] == 2
    assert row["estimate"] == pytest.approx(5)


def test_one_seed_and_no_run_are_not_testable_and_say_so():
    (one,) = judged_rows(values({"ib-iumad": [0.9], "iuf": [0.5]}), better()).to_dict("records")
    assert (one["verdict"], one["reason"]) == (UNTESTABLE, "one seed has no interval")
    (none,) = judged_rows(values({"ib-iumad": [0.9, 0.8]}), better()).to_dict("records")
    assert (none["verdict"], none["reason"]) == (UNTESTABLE, "not run: params/settings.yaml")
    assert np.isnan(none["estimate"])


def test_a_difference_of_differences():
    terms = ((1, "a", BOTH), (-1, "b", BOTH), (-1, "c", BOTH), (1, "d", BOTH))
    table = values({"a": [0.9, 0.8], "b": [0.7, 0.6], "c": [0.9, 0.8], "d": [0.8, 0.7]})
    (row,) = judged_rows(table, Contrast(terms, "6-1", "i_auroc")).to_dict("records")
    assert row["estimate"] == pytest.approx(10)  # (20 points lost) - (10 points lost)
    assert np.isnan(row["paper"])


def test_what_the_paper_prints_is_expected_as_it_is_and_a_point_where_it_speaks_against_the_claim():
    at = {"first": [0.80, 0.82, 0.81], "second": [0.799, 0.813, 0.808]}  # -0.5 to 1.6 points
    table = values({"ib-iumad": at["first"], "iuf": at["second"]})
    terms = ((1, "ib-iumad", BOTH), (-1, "iuf", BOTH))
    for first, second, dataset, reason in (
        ("ib-iumad[mamba]", "ib-iumad[none]", "mvtec3d", "the paper says 0.7"),
        ("ib-iumad[none]", "ib-iumad[mamba]", "mvtec3d", "the margin is 1.0"),
        ("ib-iumad[mamba]", "ib-iumad[none]", "eyecandies", "the margin is 1.0"),
    ):
        contrast = Contrast(terms, "6-1", "i_auroc", {"ib-iumad": first, "iuf": second})
        claim = Claim("one", "s", "w", "settings", "05", (contrast,))
        (row,) = evaluate_claims((claim,), {"settings": table}, dataset).to_dict("records")
        assert row["verdict"] == UNTESTABLE and reason in row["reason"], row


def test_a_claim_holds_only_if_all_of_its_differences_do():
    good = {"ib-iumad": [0.80, 0.83, 0.86], "iuf": [0.78, 0.80, 0.82]}
    bad = {"ib-iumad": [0.70, 0.70, 0.70], "iuf": [0.78, 0.79, 0.80]}
    claim = Claim("one", "s", "w", "settings", "05", (better(), better("aupro")))
    for second, verdict in ((good, HOLDS), (bad, FAILS)):
        table = pd.concat([values(good), values(second, "aupro")])
        judged = evaluate_claims((claim,), {"settings": table})
        assert verdicts((claim,), judged)["verdict"].tolist() == [verdict]


def test_every_claim_asks_for_runs_that_its_study_has(repository):
    for claim in (*PAPER_CLAIMS, *CREDIT):
        assert bool(claim.contrasts) != bool(claim.why_not), claim.name
        if not claim.contrasts:
            continue
        study = load_params(repository / "params" / f"{claim.study}.yaml")
        cells = {(run.method, run.modality, run.setting) for run in study.runs()}
        assert (repository / "notebooks" / f"{claim.page}.ipynb").is_file()
        for contrast in claim.contrasts:
            for _, method, modality in contrast.terms:
                assert (method, modality, contrast.setting) in cells, claim.name
        assert len(open_dataset(study.data).categories) == 10


def test_claims_with_a_number_in_the_paper_find_it():
    judged = evaluate_claims(PAPER_CLAIMS, {})
    tables = {claim.name for claim in PAPER_CLAIMS if "Table" in claim.where and claim.contrasts}
    printed = judged[judged["claim"].isin(tables)]
    assert printed["paper"].notna().all()
    assert (judged["verdict"] == UNTESTABLE).all()
    assert values_of(pd.DataFrame()).empty
