"""Tables of the comparison pages: cells that are not run say so; tests are those of the statistics module."""

import numpy as np
import pandas as pd
import pytest

from iumad.config.schema import StudyConfig
from iumad.report import comparisons
from iumad.report import figures as figures_study
from iumad.report import text as conclusions
from iumad.study import load as finished
from iumad.study.load import no_rows
from iumad.study.results import ROW_SCHEMA
from iumad.study.statistics import paired_tests


@pytest.fixture
def study() -> StudyConfig:
    grid = {"settings": ["10-0", "6-1"], "modalities": ["rgb", "rgb+depth"], "seeds": [0, 1, 2]}
    return StudyConfig.model_validate({"methods": {"iuf": {}, "ib-iumad": {}}} | grid)


def rows(study: StudyConfig, method: str, setting: str = "6-1", gain: float = 0.0) -> pd.DataFrame:
    """Two categories, the first one learnt a step earlier; values of a method are `gain` higher."""
    records = []
    for run in study.select(methods=[method], settings=[setting], modalities=["rgb"]).runs():
        for step, category in ((0, "cookie"), (1, "cookie"), (1, "donut")):
            for metric in ("i_auroc", "p_auroc", "aupro"):
                value = 0.8 - 0.05 * step + 0.01 * run.seed + gain * (1 + run.seed)
                record = [run.run_id, "default", "minicandies", method, "rgb", setting, run.seed]
                records.append([*record, step, category, metric, value, 4, 6])
    return ROW_SCHEMA.validate(pd.DataFrame(records, columns=list(ROW_SCHEMA.columns)))


def test_cells_that_are_not_run_say_so_beside_the_paper(study):
    table = comparisons.result_table(study, rows(study, "iuf"), ["i_auroc", "fm_i_auroc"])
    assert len(table) == 2 * 2 * 2
    cells = table.set_index(comparisons.CELL)
    done = cells.loc[("rgb", "6-1", "iuf")]
    # 0.75 + 0.01 * seed after the last step: mean 0.76, sd 0.01, n 3
    assert done["image AUROC"] == "76.0 [73.5, 78.5]"
    assert done["FM image AUROC"] == "5.0 (every seed)"
    assert done["n"] == 3
    missing = cells.drop(index=[("rgb", "6-1", "iuf")])
    assert (missing["image AUROC"] == "not run").all()
    assert (missing["n"] == 0).all()
    assert cells.loc[("rgb+depth", "10-0", "iuf"), "paper image AUROC"] == pytest.approx(88.7)


def test_an_empty_study_is_a_whole_table(study):
    table = comparisons.result_table(study, no_rows(), ["i_auroc"])
    assert (table["image AUROC"] == "not run").all()
    assert comparisons.category_table(study, no_rows(), "i_auroc")["n"].tolist() == [0] * 8
    assert comparisons.paired_table(no_rows(), "iuf").empty
    assert comparisons.ranks(no_rows()).empty
    assert "not run" in conclusions.told(comparisons.paired_table(no_rows(), "iuf"), "iuf")


def test_one_step_has_nothing_to_forget(study):
    single = rows(study, "iuf", "10-0").query("step == 1").assign(step=0)
    cells = comparisons.result_table(study, single, ["fm_i_auroc"]).set_index(comparisons.CELL)
    assert cells.loc[("rgb", "10-0", "iuf"), "FM image AUROC"] == "-"
    assert comparisons.incremental(single).empty


def test_a_category_without_defects_is_undefined_and_hides_nothing(study):
    table = rows(study, "iuf")
    table.loc[table["category"] == "donut", "value"] = float("nan")
    shown = comparisons.category_table(study, table, "i_auroc")
    (line,) = shown[shown["n"] > 0].to_dict("records")
    assert line["cookie"] == pytest.approx(76) and pd.isna(line["donut"]) and pd.isna(line["mean"])
    cells = comparisons.result_table(study, table, ["i_auroc", "fm_i_auroc"]).set_index(
        comparisons.CELL
    )
    assert cells.loc[("rgb", "6-1", "iuf"), "image AUROC"] == "undefined"
    assert comparisons.paired_table(table, "iuf").empty


def test_differences_are_those_of_the_paired_test_in_points(study):
    both = pd.concat([rows(study, "iuf"), rows(study, "ib-iumad", gain=0.01)])
    table = comparisons.paired_table(both, "iuf").set_index("metric")
    last = both.query("step == 1 and metric == 'i_auroc'")
    (expected,) = paired_tests(last, "iuf").to_dict("records")
    found = table.loc["image AUROC"]
    assert found["n"] == 6  # 2 categories x 3 seeds
    assert found["difference"] == pytest.approx(100 * expected["difference"]) == pytest.approx(2)
    assert found["p"] == pytest.approx(expected["p"])
    assert table.loc["FM AUPRO", "n"] == 3
    assert table.loc["FM AUPRO", "difference"] == pytest.approx(0)
    assert "ib-iumad" in conclusions.told(table.reset_index(), "iuf")


def test_one_seed_gets_no_verdict(study):
    both = pd.concat([rows(study, "iuf"), rows(study, "ib-iumad", gain=0.01)])
    table = comparisons.paired_table(both, "iuf")
    assert set(table["seeds"]) == {3}
    assert "no claim" not in conclusions.told(table, "iuf")
    alone = comparisons.paired_table(both.query("seed == 0"), "iuf")
    assert set(alone["seeds"]) == {1}
    lines = conclusions.told(alone, "iuf").splitlines()
    assert lines and all(line.endswith("**one seed, no claim**") for line in lines)


def test_many_methods_are_sorted_by_what_can_be_told(study):
    both = pd.concat([rows(study, "iuf"), rows(study, "ib-iumad", gain=0.01)])
    (test,) = (
        comparisons.paired_table(both, "iuf").query("metric == 'image AUROC'").to_dict("records")
    )
    up = test | {"p_holm": 0.01, "difference": 2.0, "low": 1.0, "high": 3.0}
    down = up | {"method": "uniad", "difference": -2.0, "low": -3.0, "high": -1.0}
    chance = down | {"method": "simplenet", "p_holm": 0.5}
    tests = pd.DataFrame([up, down, chance])
    line = "- rgb, 6-1, {}, against `iuf`: better: `{}`; worse: `{}`; not told apart from it: `simplenet`"
    text = conclusions.sorted_out(tests, "iuf")
    assert text == line.format("image AUROC", "ib-iumad", "uniad")
    text = conclusions.sorted_out(tests.assign(metric="FM AUPRO"), "iuf")
    assert text == line.format("FM AUPRO", "uniad", "ib-iumad")
    assert "not run" in conclusions.sorted_out(comparisons.paired_table(no_rows(), "iuf"), "iuf")


def test_a_method_without_common_pairs_is_left_out(study):
    other = rows(study, "ib-iumad").query("seed == 0 and category == 'donut'")
    assert comparisons.paired_table(pd.concat([rows(study, "iuf"), other]), "iuf").empty


def test_ranks_put_the_better_method_first(study):
    both = pd.concat([rows(study, "iuf"), rows(study, "ib-iumad", gain=0.01)])
    assert comparisons.ranks(both)["method"].tolist() == ["ib-iumad", "iuf"]
    assert comparisons.ranks(both)["rank"].tolist() == [1, 2]


def test_status_counts_and_names_what_is_missing():
    progress = pd.DataFrame(
        [("iuf", "rgb", "6-1", 0, True), ("iuf", "rgb", "6-1", 1, False)],
        columns=["method", "modality", "setting", "seed", "finished"],
    )
    text = comparisons.status_text(progress, "settings")
    assert "1 of 2 runs" in text
    assert "- rgb, 6-1: `iuf` (1)" in text
    assert "params/settings.yaml" in text
    whole = comparisons.status_text(progress.assign(finished=True), "settings")
    assert whole == "**2 of 2 runs of this grid are finished.**"


def test_paper_values_per_category():
    table = comparisons.paper_category_table("mvtec3d", "i_auroc").set_index(["modality", "method"])
    assert table.loc[("rgb+depth", "IB-IUMAD"), "potato"] == 100.0  # Table 3
    assert comparisons.paper_category_table("minicandies", "i_auroc").empty


def test_figures_of_missing_runs_say_so(study):
    figure = figures_study.if_run(no_rows(), figures_study.setting_dots)
    assert figure.axes[0].texts[0].get_text() == "not run"
    drawn = figures_study.if_run(rows(study, "iuf"), figures_study.setting_dots)
    assert [axis.get_ylabel() for axis in drawn.axes] == [
        "Image AUROC (%)",
        "Pixel AUROC (%)",
        "AUPRO (%)",
    ]
    assert np.isclose(drawn.axes[0].lines[0].get_ydata()[0], 76.0)


def test_one_step_is_compared_without_forgetting(study):
    both = [rows(study, "iuf", "10-0"), rows(study, "ib-iumad", "10-0", gain=0.01)]
    single = pd.concat(both, ignore_index=True).query("step == 1").assign(step=0)
    table = comparisons.paired_table(single, "iuf")
    assert table["metric"].tolist() == ["image AUROC", "pixel AUROC", "AUPRO"]
    assert (table["difference"] > 0).all()


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((87.06, 85.0, 89.2), "87.1 [85.0, 89.2]"),
        ((87.06, np.nan, np.nan), "87.1"),
        ((87.06, 87.06, 87.06), "87.1 (every seed)"),
        ((np.nan, np.nan, np.nan), "undefined"),
    ],
)
def test_text_of_a_number_with_its_interval(numbers, text):
    assert comparisons.interval_text(*numbers) == text


def test_remaining_error_by_hand():
    epochs = [(0, 0, 4.0), (0, 1, 1.0), (1, 0, 2.0), (1, 1, 2.0)]  # seed, epoch, value
    log = pd.DataFrame(epochs, columns=["seed", "epoch", "value"])
    log = log.assign(
        run_id="r", method="iuf", modality="rgb", setting="10-0", step=0, term="fusion"
    )
    other = pd.concat([log, log.assign(step=1, value=9.0), log.assign(term="ib", value=9.0)])
    (row,) = finished.remaining_error(other).to_dict("records")
    # means over seeds: 3 in the first epoch, 1.5 in the last
    assert (row["seeds"], row["first epoch"], row["last epoch"]) == (2, 3.0, 1.5)
    assert row["remains (%)"] == 50
    assert finished.remaining_error(other[:0]).empty
