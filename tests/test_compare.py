"""Two studies side by side: by hand."""

import pandas as pd
import pytest

from iumad.config.schema import StudyConfig
from iumad.report import compare as compared
from iumad.report.compare import comparison_page
from iumad.study.results import ROW_SCHEMA


def study(**changes) -> StudyConfig:
    content = {"profile": "p", "methods": {"ib-iumad": {}, "iuf": {}}, "settings": ["9-1"]}
    return StudyConfig.model_validate(content | changes)


def rows(values: dict[tuple[str, int], float]) -> pd.DataFrame:
    """One step and category: image AUROC by method and seed."""
    table = pd.DataFrame(list(values), columns=["method", "seed"]).assign(
        value=list(values.values())
    )
    labels = {"profile": "p", "dataset": "minicandies", "modality": "rgb", "setting": "10-0"}
    table = table.assign(
        **labels, run_id="x", step=0, category="a", metric="i_auroc", n_good=1, n_defect=1
    )
    return table[list(ROW_SCHEMA.columns)]


def test_changed_keys_are_said_once_where_all_methods_change(tmp_path):
    second = study(
        training={"epochs": 7}, methods={"ib-iumad": {"model": {"dim": 32}}, "iuf": {}, "plain": {}}
    )
    found = compared.compare(study(training={"epochs": 5}), second, tmp_path, tmp_path)
    lines = found.keys.to_records(index=False).tolist()
    assert ("all", "training.epochs", "5", "7") in lines
    assert [line[:2] for line in lines if line[0] == "ib-iumad"] == [("ib-iumad", "model.dim")]
    assert not [line for line in lines if line[0] in ("iuf", "plain")]
    assert set(found.shared["shared"]) == {0}  # another budget, other models
    assert found.numbers.empty


def test_what_is_the_same_is_shared(tmp_path):
    found = compared.compare(study(), study(increment={"epochs": 3}), tmp_path, tmp_path)
    assert set(found.keys["key"]) == {"increment.epochs"}
    assert set(found.shared["shared"]) == {1}  # the base step does not depend on the increment


def test_differences_by_hand(monkeypatch, tmp_path):
    tables = {
        "a": rows({("iuf", 0): 0.80, ("iuf", 1): 0.70, ("iuf", 2): 0.1, ("plain", 0): 0.5}),
        "b": rows({("iuf", 0): 0.90, ("iuf", 1): 0.82}),
    }
    monkeypatch.setattr(compared, "load_rows", lambda _study, results: tables[results.name])
    (line,) = compared.compare(study(), study(), tmp_path / "a", tmp_path / "b").numbers.to_dict(
        "records"
    )
    # differences 10 and 12 points: mean 11, half width t(1) * sd / sqrt(2) = 12.706 * 1
    assert line["method"] == "iuf"
    assert (line["first"], line["second"], line["n"]) == (pytest.approx(75), pytest.approx(86), 2)
    assert line["difference"] == pytest.approx(11)
    assert (line["low"], line["high"]) == (
        pytest.approx(-1.706, abs=1e-3),
        pytest.approx(23.706, abs=1e-3),
    )


def test_the_page_escapes_names(tmp_path):
    found = compared.compare(study(), study(training={"epochs": 3}), tmp_path, tmp_path)
    page = comparison_page(found, "<b>a", "b")
    assert "&lt;b&gt;a (first) and b (second)" in page
    assert "training.epochs" in page
