"""The first page's answer: numbers by hand, and no claim without an interval."""

import pandas as pd

from iumad.report.text import answer, as_html
from iumad.study.results import ROW_SCHEMA

KEYS = ["method", "seed", "step", "category"]


def rows_of(values: dict[tuple[str, int, int, str], float], setting: str = "6-1") -> pd.DataFrame:
    """Image AUROC, and the same as AUPRO, by method, seed, step and category."""
    table = pd.DataFrame(list(values), columns=KEYS).assign(value=list(values.values()))
    table = table.assign(
        profile="p",
        dataset="minicandies",
        modality="rgb+depth",
        setting=setting,
        n_good=1,
        n_defect=1,
    )
    table["run_id"] = table["method"] + table["seed"].astype(str)
    both = pd.concat([table.assign(metric=metric) for metric in ("i_auroc", "aupro")])
    return both[list(ROW_SCHEMA.columns)].reset_index(drop=True)


TWO_SEEDS = {
    # category a: 0.9 after its own step, then 0.8 (ours) or 0.6 (iuf); b at the end
    **{("ib-iumad", s, 0, "a"): 0.9 for s in (0, 1)},
    **{("iuf", s, 0, "a"): 0.9 for s in (0, 1)},
    ("ib-iumad", 0, 1, "a"): 0.80, ("ib-iumad", 0, 1, "b"): 0.90,
    ("ib-iumad", 1, 1, "a"): 0.80, ("ib-iumad", 1, 1, "b"): 0.90,
    ("iuf", 0, 1, "a"): 0.60, ("iuf", 0, 1, "b"): 0.90,
    ("iuf", 1, 1, "a"): 0.60, ("iuf", 1, 1, "b"): 0.92,
}  # fmt: skip


def test_five_lines_by_hand():
    asked, values, accuracy, forgetting, paper = answer(rows_of(TWO_SEEDS))
    assert "profile p: minicandies, setting 6-1 (2 steps), rgb+depth, 2 seeds" in asked
    # ours (80 + 90) / 2 = 85 twice; iuf 75 and 76: mean 75.5, sd 0.707
    assert "ib-iumad 85.0 ± 0.0" in values
    assert "iuf 75.5 ± 0.7" in values
    # differences 10 and 9: mean 9.5, half width t(1) * sd / sqrt(2) = 12.706 * 0.5 = 6.35
    assert "image AUROC +9.5 points [+3.1, +15.9] (a difference)" in accuracy
    # forgetting 10 against 30 in both seeds
    assert "forgetting of image AUROC -20.0 points [-20.0, -20.0] (a difference)" in forgetting
    # Table 1, RGB+3D, 6-1: 78.6 - 75.1 and 9.3 - 15.1
    assert "image AUROC +3.5 points, forgetting of image AUROC -5.8 points" in paper


def test_one_seed_claims_nothing():
    one = {key: value for key, value in TWO_SEEDS.items() if key[1] == 0}
    lines = answer(rows_of(one))
    assert "no interval, no claim" in lines[2]
    assert "±" not in lines[1]


def test_an_interval_over_zero_is_not_a_difference():
    values = TWO_SEEDS | {("iuf", 1, 1, "a"): 0.9}  # differences of 10 and -6 points
    assert "(not told apart)" in answer(rows_of(values))[2]


def test_missing_runs_and_cells_are_said():
    rows = rows_of(TWO_SEEDS)
    assert answer(rows[rows["method"] == "iuf"]) == [
        "Not answered yet: no finished run of ib-iumad."
    ]
    assert answer(rows.head(0)) == ["Not answered yet: no finished run of ib-iumad and iuf."]
    assert answer(rows_of(TWO_SEEDS, setting="1-1"))[4].startswith(
        "The paper has no such comparison"
    )


def test_html_is_a_list_of_escaped_lines():
    assert as_html(["a < b", "c"]) == '<ol class="answer"><li>a &lt; b</li><li>c</li></ol>'
