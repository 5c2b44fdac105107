"""Published tables: written from finished runs, found again by the identity of a run, own results first."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from pandas.testing import assert_frame_equal

from iumad.data import AbsentData
from iumad.errors import DataError
from iumad.study import load, measured
from iumad.study.load import RUNS, STEPS, read_published, write_published
from iumad.study.publish import publish
from iumad.study.steps import steps_of


@pytest.fixture
def clone(finished, tmp_path, monkeypatch):
    """A results folder with nothing but the published tables of the finished study."""
    facts, clean = load.step_facts, {"commit": "c0ffee", "modified": "False"}
    monkeypatch.setattr(load, "step_facts", lambda key, record: facts(key, record) | clean)
    shutil.copytree(finished.results, tmp_path / "made")
    publish([finished.study], tmp_path / "made", "tiny")
    shutil.copytree(tmp_path / "made" / "tiny", tmp_path / "clone" / "tiny")
    return tmp_path / "clone"


def test_a_clone_shows_what_was_published(finished, clone):
    rows = load.load_rows(finished.study, clone)
    assert set(rows["source"]) == {"published"}
    order = ["run_id", "step", "category", "metric"]
    ours, theirs = (table.sort_values(order, ignore_index=True) for table in (rows, finished.rows))
    assert_frame_equal(ours.drop(columns="source"), theirs, rtol=1e-5)
    log = load.training_log(finished.study, clone)
    own = load.training_log(finished.study, finished.results)
    assert np.allclose(log["value"], own["value"], rtol=1e-3)
    assert load.progress(finished.study, clone)["finished"].all()
    steps = load.load_provenance(finished.study, clone)
    assert (
        steps["seconds"].tolist()
        == load.load_provenance(finished.study, finished.results)["seconds"].tolist()
    )


def test_own_results_come_first(finished, clone):
    shutil.copytree(finished.results / "steps", clone / "steps")
    first = finished.study.runs()[0]
    steps_of(first, clone)[-1].rows.unlink()
    source = load.load_rows(finished.study, clone).groupby("method")["source"].first()
    assert source[first.method] == "published"
    assert (source.drop(first.method) == "own").all()


def test_a_run_is_found_by_what_it_is_not_by_its_name(clone):
    renamed = tiny.study(profile="other", methods={"another": {"preset": "iuf"}})
    assert set(load.load_rows(renamed, clone)["method"]) == {"another"}
    assert load.load_rows(tiny.study(seeds=[7]), clone).empty


def test_a_run_is_published_again_under_its_first_name_with_its_steps(finished, clone, monkeypatch):
    before = pd.read_csv(clone / "tiny" / RUNS, dtype=str).set_index("run_id")
    renamed = tiny.study(profile="other", methods={"another": {"preset": "iuf"}})
    absent = AbsentData(tiny.CATEGORIES)
    for module in (load, measured):
        monkeypatch.setattr(module, "data_of", lambda _config: absent)
    steps = (clone / "tiny" / STEPS).read_text()
    publish([renamed, finished.study], clone, "tiny")
    assert sorted((clone / "tiny" / STEPS).read_text().split()) == sorted(steps.split())
    after = pd.read_csv(clone / "tiny" / RUNS, dtype=str).set_index("run_id")
    assert after["steps"].to_dict() == before["steps"].to_dict()
    assert after["method"].replace("another", "iuf").to_dict() == before["method"].to_dict()
    assert (after["method"] == "another").any()


@pytest.mark.parametrize(
    ("what", "instead"),
    [('"modified": false', '"modified": true'), (r'"commit": "\w+"', '"commit": null')],
)
def test_uncommitted_code_is_not_published(finished, tmp_path, what, instead):
    results = tmp_path / "made"
    shutil.copytree(finished.results, results)
    for path in results.glob("steps/*/provenance.json"):
        path.write_text(re.sub(what, instead, path.read_text()))
    with pytest.raises(DataError, match="not committed"):
        publish([finished.study], results, "tiny")
    assert not (results / "tiny").exists()


def test_numbers_without_their_model_are_not_published(finished, tmp_path):
    results = Path(shutil.copytree(finished.results, tmp_path / "made"))
    steps_of(finished.study.runs()[0], results)[0].checkpoint.unlink()
    with pytest.raises(DataError, match=r"no model any more.*step 0"):
        publish([finished.study], results, "tiny")
    assert not (results / "tiny").exists()


def test_undefined_and_not_measured_are_told_apart(tmp_path):
    rows = pd.DataFrame(
        [
            ("0a", 0, "NA", "i_auroc", np.nan),
            ("0a", 0, "001", "i_auroc", 0.5),
            ("0a", 0, "001", "aupro", 0.25),
        ],
        columns=["run_id", "step", "category", "metric", "value"],
    ).assign(n_good=0, n_defect=3)
    runs = pd.DataFrame([("0a", "own", "m", "rgb", "2-0", 0, ("k",))], columns=[*"rdmasn", "steps"])
    runs.columns = ["run_id", "dataset", "method", "modality", "setting", "seed", "steps"]
    nothing = {
        name: pd.DataFrame(columns=columns)
        for name, columns in {
            "steps": ["step_key"],
            "log": ["step_key", "epoch", "term", "value"],
            "costs": ["costs_id"],
        }.items()
    }
    write_published(tmp_path / "p", runs, rows, **nothing)
    (tmp_path / "p" / STEPS).unlink()
    (tmp_path / "p" / "costs.csv").unlink()
    back = read_published(tmp_path).rows.sort_values(["category", "metric"], ignore_index=True)
    assert back["category"].tolist() == ["001", "001", "NA"]
    assert back["value"].fillna(-1).tolist() == [0.25, 0.5, -1]


def test_a_damaged_table_is_named(clone):
    (clone / "tiny" / "rows.csv.gz").write_bytes(b"not gz")
    with pytest.raises(DataError, match=r"rows\.csv\.gz.*get it again"):
        read_published(clone)
    (clone / "tiny" / "rows.csv.gz").unlink()
    (clone / "tiny" / RUNS).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="lacks the column run_id"):
        read_published(clone)
