"""What pages show: the paper's units and values, samples chosen by a rule, where numbers come from."""

import numpy as np
import pandas as pd
import pytest

from iumad.config.schema import StudyConfig
from iumad.data import open_dataset
from iumad.report import tables as pages
from iumad.study.results import ROW_SCHEMA


@pytest.fixture
def study() -> StudyConfig:
    data = {"name": "minicandies", "categories": ["cookie", "donut", "gummy"], "image_size": 64}
    counts = {"n_train": 1, "n_validation": 1, "n_test_good": 4, "n_test_defect": 6}
    return StudyConfig.model_validate(
        {
            "profile": "page",
            "data": data | counts,
            "modalities": ["rgb", "rgb+depth"],
            "settings": ["3-0", "2-1"],
            "seeds": [0, 1],
        }
    )


def rows_of(values: dict[int, float], setting: str = "10-0") -> pd.DataFrame:
    """Image AUROC of one category of IUF on MVTec 3D-AD, one row a seed."""
    table = pd.DataFrame({"seed": list(values), "value": list(values.values())}).assign(
        run_id=[f"r{seed}" for seed in values],
        profile="page",
        dataset="minicandies",
        method="iuf",
        modality="rgb+depth",
        setting=setting,
        step=0,
        category="cookie",
        metric="i_auroc",
        n_good=4,
        n_defect=6,
    )
    return ROW_SCHEMA.validate(table[list(ROW_SCHEMA.columns)])


def test_table_is_in_percent_beside_the_value_of_the_paper():
    (row,) = pages.table_beside_paper(rows_of({0: 0.8, 1: 0.9})).to_dict("records")
    assert row["mean"] == pytest.approx(85.0)
    assert row["sd"] == pytest.approx(100 * 0.1 / np.sqrt(2))  # of 0.8 and 0.9, n - 1
    assert row["n"] == 2
    assert row["paper (mvtec3d)"] == pytest.approx(88.7)  # Table 1, IUF, RGB+3D, 10-0


def test_a_setting_that_the_paper_lacks_has_no_value_of_it():
    table = pages.table_beside_paper(rows_of({0: 0.8}, setting="5-5"))
    assert table["paper (mvtec3d)"].isna().all()
    assert table["sd"].isna().all()


def test_detail_is_the_last_setting_and_modality_with_all_methods(study):
    detail = pages.detail(study)
    assert (detail.settings, detail.modalities) == (("2-1",), ("rgb+depth",))
    assert list(detail.methods) == list(study.methods)


def test_headline_names_profile_and_grid(study):
    headline = pages.headline(pages.detail(study))
    assert headline == "profile page on minicandies: iuf, ib-iumad; 2-1; rgb+depth; 2 seed(s)"


def test_defects_take_turns_over_categories(study):
    picked = pages.pick_defects(open_dataset(study.data), 3)
    categories, _, defects, _ = zip(*(sample_id.split("/") for sample_id in picked), strict=True)
    assert categories == ("cookie", "donut", "gummy")
    assert len(set(defects)) == 3


def test_missed_defects_by_hand(study, monkeypatch):
    def scored(_run, sample_ids, _folder):
        """Good samples of cookie and gummy score 0, 1, 2, 3 and those of donut 10; defects score 1.5 and 5."""
        score = {"good": {"donut": [10] * 4}, "hole": 5}
        maps = []
        for sample_id in sample_ids:
            category, _, defect, number = sample_id.split("/")
            good = score["good"].get(category, [0, 1, 2, 3])
            value = good[int(number)] if defect == "good" else score.get(defect, 1.5)
            maps.append(np.full((64, 64), value, dtype=np.float32))
        return np.stack(maps)

    monkeypatch.setattr(pages, "score_samples", scored)
    table = pages.missed_defects(study, "unused").set_index("sample_id")["beaten_by"]
    assert table["cookie/test/hole/000"] == 0.0  # 5 is above all good ones
    assert table["cookie/test/bump/000"] == 0.5  # 1.5 is below 2 and 3
    assert table["donut/test/hole/000"] == 1.0
    assert table.is_monotonic_decreasing
    assert len(table) == 18


def test_stains_do_not_change_depth_and_dents_do(study):
    strength = pages.defect_strength(open_dataset(study.data)).set_index("defect")
    assert strength.loc["stain", "depth_mm"] == 0
    assert strength.loc["dent", "depth_mm"] > 0.1
    assert (strength["colour"] > 0).all()
    assert (strength["images"] == 3).all()


def test_shown_tables_have_no_negative_zero_and_mark_what_is_missing():
    html = pages.shown(pd.DataFrame({"a": [-0.001, np.nan], "n": [1, 2]})).to_html()
    assert "-0.0" not in html
    assert ">-<" in html
    assert ">1<" in html


def test_provenance_of_nothing_is_empty_not_an_error(study, tmp_path):
    table = pages.provenance_table(pages.detail(study), tmp_path)
    assert (table["steps"] == 0).all()
    assert pages.environment_table(study, tmp_path)["value"].eq("").all()


def test_the_time_of_a_study_counts_shared_steps_once(finished):
    both = finished.study.model_copy(update={"methods": dict(finished.study.methods)})
    both.methods["again"] = both.methods["ib-iumad"].model_copy(update={"preset": "ib-iumad"})
    for study in (finished.study, both):
        facts = pages.environment_table(study, finished.results).set_index("what")["value"]
        steps = len(list(finished.results.glob("steps/*/provenance.json")))
        assert facts["time"].endswith(f"h for {steps} steps")
