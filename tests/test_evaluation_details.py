"""Details of evaluation: values by hand, what must not change, and the published numbers found again."""

import numpy as np
import pandas as pd
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from iumad.config.sections import EvaluationConfig
from iumad.evaluation import evaluate as details
from iumad.evaluation.metrics import aupro


def scored(
    scores: dict[str, float], category: str = "bagel", geometric: dict | None = None
) -> details.Scored:
    """A category whose images are given as defect/number: score; maps are constant, masks half of each defect."""
    names, values = list(scores), np.array(list(scores.values()))
    kinds = [name.split("/")[0] for name in names]
    labels = [int(kind != "good") for kind in kinds]
    masks = np.zeros((len(names), 4, 4), dtype=bool)
    masks[np.array(labels, dtype=bool), :2] = True
    maps = (values[:, None, None] + np.arange(16).reshape(4, 4) / 100).astype(np.float32)
    test = pd.DataFrame(
        {
            "sample_id": [f"{category}/test/{name}" for name in names],
            "defect": kinds,
            "label": labels,
            "masked": True,
            "geometric": pd.array([(geometric or {}).get(kind) for kind in kinds], dtype="boolean"),
        }
    )
    return details.Scored(category, test, maps, masks, values)


def compared(one: details.Scored) -> dict[tuple[str, str], tuple[float, float]]:
    config = EvaluationConfig(pool=1)
    return {
        (name, metric): (here, there)
        for name, metric, here, there in details.compare_details(one, config)
    }


def test_overwriting_by_hand():
    # name 000: good 0.1 or defect 0.9; name 001: good 0.8 or defect 0.2. Both classes remain in two of four
    # cases, (good 0.1, defect 0.2) and (defect 0.9, good 0.8): AUROC 1. Of all images, 3 of 4 pairs are right.
    one = scored({"good/000": 0.1, "good/001": 0.8, "hole/000": 0.9, "hole/001": 0.2})
    table = details.overwritten([one], np.random.default_rng(0), n=400)
    assert table["here"].unique() == pytest.approx(0.75)
    assert (table["images"].iloc[0], table["files"].iloc[0]) == (4, 2)
    assert set(table["value"].dropna()) == {1.0}
    assert table["value"].isna().mean() == pytest.approx(0.5, abs=0.1)  # standard error 0.025


def test_without_equal_names_nothing_is_overwritten():
    one = scored({"good/000": 0.1, "good/001": 0.8, "hole/002": 0.9, "hole/003": 0.2})
    table = details.overwritten([one], np.random.default_rng(0), n=5)
    assert (table["value"] == table["here"]).all()


def test_an_auroc_below_one_half_is_mirrored():
    bad = scored({"good/000": 0.9, "good/001": 0.3, "hole/000": 0.1, "hole/001": 0.4})
    here, there = compared(bad)["below 0.5 becomes 1 - AUROC", "i_auroc"]
    assert here == pytest.approx(1 / 4)  # only 0.4 > 0.3 is right
    assert there == pytest.approx(3 / 4)
    good = scored({"good/000": 0.1, "hole/000": 0.9})
    assert compared(good)["below 0.5 becomes 1 - AUROC", "i_auroc"] == (1.0, 1.0)


def test_leaving_out_photometric_defects_by_hand():
    # stain 0.2 lies below one good image, hole 0.9 above both: 3 of 4 pairs, then 2 of 2
    one = scored(
        {"good/000": 0.1, "good/001": 0.5, "stain/000": 0.2, "hole/000": 0.9},
        geometric={"stain": False, "hole": True},
    )
    assert compared(one)["only geometric defects", "i_auroc"] == (0.75, 1.0)


def test_a_defect_without_a_mask_counts_for_its_image_alone():
    one = scored({"good/0": 1.0, "good/1": 2.0, "hole/0": 3.0, "hole/1": 0.5})
    one.test.loc[3, "masked"], one.masks[3] = False, False
    found = compared(one)
    assert found["below 0.5 becomes 1 - AUROC", "i_auroc"][0] == 0.5
    assert found["below 0.5 becomes 1 - AUROC", "p_auroc"][0] == pytest.approx(
        32 / 40
    )  # of its half
    assert ("image score: mean", "i_auroc") in found


def test_where_it_is_not_known_which_defects_are_geometric_nothing_is_left_out():
    one = scored({"good/000": 0.1, "hole/000": 0.9})
    assert not [name for name, _ in compared(one) if name == "only geometric defects"]


def test_regions_that_touch_at_a_corner():
    # two pixels that touch at a corner, one found: 8-connected one region, half covered; 4-connected two
    # regions, one of them covered: the same mean. A third pixel beside the first one makes the difference:
    # 8-connected 2 of 3 covered; 4-connected (1 + 0) / 2.
    maps = np.zeros((1, 3, 3), dtype=np.float32)
    masks = np.zeros((1, 3, 3), dtype=bool)
    masks[0, 0, 0] = masks[0, 0, 1] = masks[0, 1, 2] = True
    maps[0, 0, :2] = 1
    limit = 1e-9  # so that the area is the overlap at FPR 0
    eight, four = aupro(maps, masks, limit), aupro(maps, masks, limit, details.FOUR_CONNECTED)
    assert (eight, four) == (pytest.approx(2 / 3), pytest.approx(1 / 2))


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 12, 12)) < 0.2
    return (rng.random(masks.shape) + 0.5 * masks).astype(np.float32), masks


@given(st.integers(0, 2**32 - 1))
def test_many_thresholds_come_near_the_exact_area(seed):
    maps, masks = random_case(seed)
    exact = aupro(maps, masks, 0.3)
    n_good = int((~masks).sum())
    # with a threshold per good pixel the curve lacks only the first, vertical piece of the exact one
    assert details.aupro_from_thresholds(maps, masks, n_good, 0.3) == pytest.approx(exact, abs=0.02)


def test_thresholds_by_hand():
    # good scores 0..9, one region of one pixel with score 6.5. Two thresholds, the ranks 0 and 9: above 9 there
    # is nothing (FPR 0, PRO 0), above 0 there are 9 of 10 good ones and the region (0.9, 1).
    maps = np.append(np.arange(10), 6.5).reshape(1, 1, 11)
    masks = np.zeros((1, 1, 11), dtype=bool)
    masks[0, 0, 10] = True
    # the line from (0, 0) to (0.9, 1) at 0.45 is 1/2: area 0.45 * 0.5 / 2, divided by 0.45
    assert details.aupro_from_thresholds(maps, masks, 2, 0.45) == pytest.approx(0.25)
    assert aupro(maps, masks, 0.45) == pytest.approx(1 / 3)  # found at FPR 0.3: 0.15 of 0.45 remain


def test_accuracy_is_of_good_images_and_aupro_ends_at_the_limit(monkeypatch):
    run = tiny.run(data={"n_test_good": 2})
    store = tiny.open_store(run)
    test = store.dataset.index.query("category == 'pretzel' and split == 'test'")
    maps = np.random.default_rng(0).random((len(test), tiny.SIZE, tiny.SIZE), dtype=np.float32)
    pretzel = store.dataset.categories.index("pretzel")
    said = np.where(test["label"] == 1, pretzel - 1, pretzel)  # every defect is named wrongly
    said[np.flatnonzero(test["label"] == 0)[0]] = pretzel - 1  # and one of two good images
    monkeypatch.setattr(details, "_score", lambda *_: (maps, said))
    detector = tiny.trainable(store, run)
    narrow, wide = (
        details.evaluate(
            detector, store, ["pretzel"], run.evaluation.model_copy(update={"fpr_limit": limit})
        ).set_index("metric")["value"]
        for limit in (0.05, 0.3)
    )
    assert narrow["accuracy"] == 0.5
    masks = store.masks(test["sample_id"].tolist())
    assert narrow["aupro"] == aupro(maps, masks, 0.05)
    assert wide["aupro"] == aupro(maps, masks, 0.3)


def test_the_validation_error_is_a_mean_over_images():
    run = tiny.run()
    store = tiny.open_store(run)
    detector, ids = tiny.trainable(store, run), tiny.train_ids(store, *tiny.CATEGORIES)
    each = [details.validation_error(detector, store, [name]) for name in ids]
    together = details.validation_error(detector, store, ids, batch_size=4)
    assert together == pytest.approx(np.mean(each), rel=1e-5)
