"""What is measured of finished models: their rows' numbers again, read from where they lie."""

import base64
import io
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image

from iumad.config.schema import StudyConfig
from iumad.data.minicandies import MiniCandies
from iumad.errors import DataError
from iumad.evaluation.evaluate import Scored
from iumad.evaluation.metrics import image_scores
from iumad.report import tables
from iumad.study import load
from iumad.study.measure import defects, lottery, measure
from iumad.study.measured import (
    KINDS,
    load_measured,
    measured_file,
    measured_part,
    publish_measured,
)
from iumad.study.publish import publish
from iumad.study.runner import run_study


def test_scores_and_maps_are_those_of_the_model(measured):
    study, results = measured
    run = study.select(methods=["ib-iumad"]).runs()[0]
    samples = load_measured(study, "samples", results).query("method == 'ib-iumad'")
    maps = tiny.score_samples(run, samples["sample_id"].tolist(), results)
    scores = image_scores(maps, run.evaluation.image_score, run.evaluation.pool)
    np.testing.assert_allclose(samples["score"], scores, rtol=1e-5)
    drawn = [row for row in samples.reset_index().itertuples() if row.map]
    assert len(drawn) >= 2 * len(samples["category"].unique())
    for row in drawn:
        level = np.asarray(Image.open(io.BytesIO(base64.b64decode(row.map)))) / 255
        kept = np.clip(maps[row.Index], row.low, row.high)
        assert (
            np.abs(row.low + (row.high - row.low) * level - kept).max()
            <= (row.high - row.low) / 255
        )


def test_details_epochs_and_strength_zero_begin_at_the_rows(measured, finished):
    study, results = measured
    last = finished.rows[finished.rows["step"] == finished.rows["step"].max()]
    last = last.set_index(["method", "category", "metric"])["value"]

    details = load_measured(study, "details", results)
    ours = details.drop_duplicates(["method", "category", "metric"])
    keys = ours.set_index(["method", "category", "metric"])["here"]
    np.testing.assert_allclose(keys, last[keys.index], rtol=1e-5)

    epochs = load_measured(study, "epochs", results)
    assert set(epochs["method"]) == {"iuf", "ib-iumad"}  # a bank has none
    opening = epochs[epochs["category"] == ""]
    assert set(opening["metric"]) == {
        f"{name} {m}" for name in ("attention", "gate size") for m in ("rgb", "depth")
    }
    assert opening[opening["metric"].str.startswith("attention")]["value"].between(0, 1).all()
    end = epochs[(epochs["epoch"] == epochs["epoch"].max()) & (epochs["category"] != "")]
    keys = end.set_index(["method", "category", "metric"])["value"]
    np.testing.assert_allclose(keys, last[keys.index], rtol=1e-5)
    best = tables.best_epoch(epochs)
    assert best["there"].mean() >= best["here"].mean()

    perturbed = load_measured(study, "perturbed", results).query("strength == 0")
    first = last.reset_index().query("category in @study.data.categories[:2]")
    means = first.groupby(["method", "metric"])["value"].mean()
    keys = perturbed.drop_duplicates(["method", "metric"]).set_index(["method", "metric"])["value"]
    np.testing.assert_allclose(keys, means[keys.index], rtol=1e-5)


def test_what_is_published_is_what_was_measured(measured, tmp_path):
    study, results = measured
    counts = publish_measured([study, study], results, "elsewhere")
    assert set(counts) == set(KINDS) - {"information"}  # there are too few test images for probes
    (tmp_path / "results").mkdir()
    (results / "elsewhere").rename(tmp_path / "results" / "elsewhere")
    for kind in counts:
        own, read = (load_measured(study, kind, where) for where in (results, tmp_path / "results"))
        assert set(own["source"]) == {"own"}
        assert set(read["source"]) == {"published"}
        pd.testing.assert_frame_equal(own.drop(columns="source"), read.drop(columns="source"))


def test_measurements_of_other_images_are_not_shown(measured, tmp_path, monkeypatch):
    study, results = measured
    facts, clean = load.step_facts, {"commit": "c0ffee", "modified": "False"}
    monkeypatch.setattr(load, "step_facts", lambda key, record: facts(key, record) | clean)
    shutil.copytree(results, tmp_path / "results")
    publish([study], tmp_path / "results", "elsewhere")
    shutil.rmtree(tmp_path / "results" / "steps")
    assert set(load_measured(study, "samples", tmp_path / "results")["source"]) == {"published"}
    monkeypatch.setattr(MiniCandies, "digest", lambda *_: "other images")
    assert load_measured(study, "samples", tmp_path / "results").empty


def test_perturbed_test_images_are_those_that_are_measured(tmp_path):
    perturb = {"redundant": 0.9, "where": "none", "test": True}
    study = tiny.study(methods={"iuf[test]": {"preset": "iuf", "perturb": perturb}})
    rows = run_study(study, tmp_path, "cpu")
    measure(study, tmp_path, ["epochs", "details"])
    last = rows[rows["step"] == 1].set_index(["category", "metric"])["value"]
    epochs = load_measured(study, "epochs", tmp_path).query("epoch == 2 and category != ''")
    details = load_measured(study, "details", tmp_path).drop_duplicates(["category", "metric"])
    for table, column in ((epochs, "value"), (details, "here")):
        values = table.set_index(["category", "metric"])[column]
        np.testing.assert_allclose(values, last[values.index], rtol=1e-5)


def test_nothing_is_measured_twice_and_damage_is_named(measured):
    study, results = measured
    assert measure(study, results) == 0
    path = measured_file(measured_part(study).runs()[0], "samples", results)
    content = path.read_bytes()
    try:
        path.write_text("sample_id,score\na,high\n")
        with pytest.raises(DataError, match=r"samples.*delete it and measure again"):
            load_measured(study, "samples", results)
        path.unlink()
        assert measure(study, results, ["samples"]) == 1
        assert path.read_bytes() == content
    finally:
        path.write_bytes(content)


def test_a_run_outside_of_what_pages_look_at_is_not_measured(tmp_path):
    whole = tiny.study(methods={"ib-iumad": {}}, seeds=[0, 1])
    assert measure(whole.select(seeds=[1]), tmp_path, ["parts"], whole=whole) == 0
    assert measure(whole.select(seeds=[0]), tmp_path, ["parts"], whole=whole) == 1


def test_defects_by_hand():
    # good images score 1 and 2, the defective one 2: more than one and as much as the other; one of four pixels is
    # marked, and two of the other three are lower, one is equal
    test = pd.DataFrame(
        {"sample_id": ["g0", "g1", "d", "e"], "defect": ["good", "good", "hole", "crack"]}
    ).assign(label=[0, 0, 1, 1], category="c")
    maps = np.array([[[0, 0], [0, 0]]] * 2 + [[[3, 3], [1, 1]]] * 2, dtype=np.float32)
    masks = np.zeros((4, 2, 2), dtype=bool)
    masks[2, 0, 0] = True
    one = Scored("c", test, maps, masks, np.array([1.0, 2.0, 2.0, 3.0]))
    line, unmarked = defects(StudyConfig().runs()[0], [one]).to_dict("records")
    assert (line["sample_id"], line["share"], line["found"]) == ("d", 0.25, 0.75)
    assert line["inside"] == pytest.approx(2.5 / 3)
    # the overlap grows from 0 to 1 while the false positive rate does from 0 to 1/3; up to 0.3 its mean is 0.45
    assert line["aupro"] == pytest.approx(0.45)
    assert unmarked["found"] == 1
    assert np.isnan([unmarked[name] for name in ("share", "inside", "aupro")]).all()


def test_a_lottery_by_hand(finished):
    run = finished.study.runs()[0]
    # two images have one name: the good one of score 1 or the defect of score 3 remains beside good 4, defect 2:
    # one of two pairs is right, or none of two; of all images two of four
    test = pd.DataFrame(
        {"sample_id": ["c/good/0", "c/hole/0", "c/good/1", "c/hole/2"], "label": [0, 1, 0, 1]}
    )
    scores = np.array([1.0, 3.0, 4.0, 2.0])
    empty = np.zeros((4, 1, 1), dtype=np.float32)
    (line,) = lottery(run, [Scored("c", test, empty, empty > 0, scores)]).to_dict("records")
    assert (line["images"], line["files"], line["undefined"]) == (4, 3, 0)
    assert (line["here"], line["low"], line["high"], line["best"]) == (50, -50, 0, 0)
    assert line["there"] == pytest.approx(25, abs=5)  # of 1000 evaluations


def test_missed_defects_and_kinds_of_defects_by_hand():
    rows = [  # category, defect, geometric, score
        ("cookie", "good", "", 0.0),
        ("cookie", "good", "", 2.0),
        ("cookie", "hole", "True", 5.0),
        ("cookie", "stain", "False", 1.0),
        ("donut", "good", "", 10.0),
        ("donut", "hole", "True", 5.0),
    ]
    samples = pd.DataFrame(rows, columns=["category", "defect", "geometric", "score"])
    ids = [f"{row[0]}/{row[1]}/{place}" for place, row in enumerate(rows)]
    samples = samples.assign(sample_id=ids, method="iuf", seed=0)
    missed = tables.missed_defects(samples)
    assert missed["beaten_by"].tolist() == [1.0, 0.5, 0.0]
    assert missed["sample_id"].iloc[0] == "donut/hole/5"
    (kinds,) = tables.defect_table(samples).to_dict("records")
    # holes: AUROC 1 among the cookies, 0 among the donuts; the stain beats one of two
    assert kinds == {"method": "iuf", "hole *": 50.0, "stain": 50.0}
    assert list(kinds) == ["method", "hole *", "stain"]  # what changes the shape comes first
