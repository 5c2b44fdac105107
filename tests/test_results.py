"""Schemas, files, means, forgetting, the paper's numbers and provenance."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from iumad.errors import DamagedFileError, DataError, MetricError
from iumad.study.results import (
    LOG_SCHEMA,
    ROW_SCHEMA,
    as_learnt,
    beside_paper,
    continual_table,
    final_table,
    last_step,
    paper_results,
    read_step_table,
    step_means,
    validate,
    validate_rows,
    write_step_table,
)
from iumad.study.steps import (
    Effort,
    add_evaluation,
    read_provenance,
    record_provenance,
    write_provenance,
)

RUN = ("012345678901", "smoke", "minicandies", "iuf", "rgb+depth", "2-1", 0)


def make_rows(values, run=RUN):
    """Rows of i_auroc from {step: {category: value}}."""
    records = [
        (*run, step, category, "i_auroc", value, 4, 6)
        for step, categories in values.items()
        for category, value in categories.items()
    ]
    return validate_rows(pd.DataFrame(records, columns=list(ROW_SCHEMA.columns)))


@pytest.fixture
def rows():
    return make_rows({0: {"a": 0.9, "b": 0.7}, 1: {"a": 0.8, "b": 0.75, "c": 0.55}})


@pytest.fixture
def log():
    records = [
        ("0123", "iuf", "rgb", "2-1", 0, 0, epoch, "total", 1 / 3 + epoch) for epoch in (1, 2)
    ]
    return validate(pd.DataFrame(records, columns=list(LOG_SCHEMA.columns)), LOG_SCHEMA)


def test_step_means_by_hand(rows):
    means = step_means(rows).set_index("step")
    # Step 0: (0.9 + 0.7) / 2. Step 1: (0.8 + 0.75 + 0.55) / 3.
    assert means["value"].tolist() == pytest.approx([0.8, 0.7], abs=1e-12)
    assert means["n_categories"].tolist() == [2, 3]
    assert set(means["category"]) == {"mean"}


def test_mean_with_a_missing_category_is_missing():
    rows = make_rows({0: {"a": 0.9, "b": np.nan}})
    assert step_means(rows)["value"].isna().all()


def test_forgetting_by_hand(rows):
    table = continual_table(rows)
    table = table[table["metric"] == "fm_i_auroc"].reset_index(drop=True)
    # a fell by 0.9 - 0.8, b by 0.7 - 0.75; half of their sum.
    assert table["value"].tolist() == pytest.approx([0.025], abs=1e-12)
    assert tuple(table.loc[0, list(ROW_SCHEMA.columns)[:7]]) == RUN


def test_plasticity_and_transfer_by_hand(rows):
    table = continual_table(rows).set_index("metric")["value"]
    assert table["new_i_auroc"] == pytest.approx(0.55)  # c, right after its step
    # Before the last step were learnt a, 0.8 - 0.9, and b, 0.75 - 0.7; half of their sum.
    assert table["bwt_i_auroc"] == pytest.approx(-0.025)
    assert table["kept_i_auroc"] == pytest.approx((0.8 + 0.75) / 2)
    assert as_learnt(rows).set_index("category")["value"].to_dict() == {
        "a": 0.9,
        "b": 0.7,
        "c": 0.55,
    }
    # b is learnt in step 1 at 0.6, and is better after step 2: transfer 0.1, forgetting -0.1.
    longer = make_rows({0: {"a": 0.9}, 1: {"a": 0.9, "b": 0.6}, 2: {"a": 0.9, "b": 0.7, "c": 0.8}})
    table = continual_table(longer).set_index("metric")["value"]
    assert table["new_i_auroc"] == pytest.approx(0.7)
    assert table["bwt_i_auroc"] == pytest.approx(0.05)
    assert table["fm_i_auroc"] == pytest.approx(-0.05)


def test_one_step_has_no_forgetting():
    assert continual_table(make_rows({0: {"a": 0.9}})).empty


@pytest.mark.parametrize(
    "values",
    [
        {0: {"a": 0.9, "b": 0.8}, 1: {"b": 0.8}},
        {0: {"a": 0.9, "b": 0.8}, 1: {"b": 0.8}, 2: {"a": 0.9, "b": 0.8}},
    ],
)
def test_forgetting_of_a_missing_row_raises(values):
    with pytest.raises(MetricError, match="every step"):
        continual_table(make_rows(values))


@settings(max_examples=20)
@given(scores=hnp.arrays(np.float64, (4, 3), elements=st.floats(0, 1)))
def test_learning_in_steps_is_what_its_definitions_say(scores):
    """Category c comes in step c; a second run is there to be kept apart."""
    run = {step: {f"c{c}": scores[step, c] for c in range(3) if c <= step} for step in range(4)}
    rows = pd.concat([make_rows(run), make_rows({0: {"c0": 0.1}, 1: {"c0": 0.2}}, (*RUN[:6], 1))])
    table = continual_table(rows)
    found = table[table["seed"] == 0].set_index("metric")["value"]
    lost = [max(scores[c:3, c]) - scores[3, c] for c in range(3)]
    assert found["fm_i_auroc"] == pytest.approx(np.mean(lost), abs=1e-12)
    assert found["new_i_auroc"] == pytest.approx((scores[1, 1] + scores[2, 2]) / 2, abs=1e-12)
    change = [scores[3, c] - scores[c, c] for c in range(3)]
    assert found["bwt_i_auroc"] == pytest.approx(np.mean(change), abs=1e-12)


def test_forgetting_of_an_undefined_metric_is_undefined():
    rows = make_rows({0: {"a": 0.9, "b": np.nan}, 1: {"a": 0.8, "b": np.nan}})
    assert continual_table(rows)["value"].isna().all()
    assert final_table(rows)["value"].isna().all()


def test_runs_are_kept_apart(rows):
    other = make_rows({0: {"a": 0.5}}, run=(*RUN[:6], 1))
    both = pd.concat([rows, other], ignore_index=True)
    assert last_step(both).groupby("seed")["step"].unique().map(list).to_dict() == {0: [1], 1: [0]}
    final = final_table(both)
    assert final.groupby("seed")["metric"].agg(list).to_dict() == {
        0: ["i_auroc", "fm_i_auroc", "new_i_auroc", "bwt_i_auroc", "kept_i_auroc"],
        1: ["i_auroc"],
    }


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"value": 1.2}, "fraction in"),
        ({"step": -1}, "step: .*greater_than_or_equal_to.*-1"),
        ({"method": ""}, "method: str_length"),
        ({"n_good": 1.5}, "n_good: dtype"),
        ({"colour": "red"}, "colour"),
        ({"category": "a"}, "unique"),
    ],
)
def test_wrong_rows_are_refused(rows, change, text):
    with pytest.raises(DataError, match=text):
        validate_rows(rows.assign(**change))


def test_missing_column_is_refused(rows):
    with pytest.raises(DataError, match=r"column_in_dataframe.*seed"):
        validate_rows(rows.drop(columns="seed"))


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
LIKE_VALUES = st.sampled_from(
    ["001", "1", "NA", "nan", "true", "None", "1e5", "-", "", " x", "#", '"', ","]
)


@given(names=st.lists(LIKE_VALUES | NAMES, min_size=1, unique=True), data=st.data())
def test_step_tables_survive_a_file_exactly(tmp_path_factory, names, data):
    path = tmp_path_factory.mktemp("step") / "key" / "rows.csv"
    values = data.draw(
        st.lists(st.floats(0, 1) | st.just(np.nan), min_size=len(names), max_size=len(names))
    )
    table = pd.DataFrame(
        {"category": names, "metric": "aupro", "value": values, "n_good": 1, "n_defect": 2}
    )
    write_step_table(table, path)
    back = read_step_table(path)
    pd.testing.assert_frame_equal(back, table, check_exact=True)


def test_paper_results_are_complete():
    paper = paper_results()
    assert len(paper) == 1206
    assert not paper.isna().any(axis=None)
    main = paper.query("source == 'Table 1' and method == 'IB-IUMAD' and modality == 'rgb+depth'")
    value = main.query("setting == '10-0' and metric == 'i_auroc'")["value"].item()
    assert (
        value
        == paper.query("source == 'Table 7' and method == 'IB-IUMAD' and metric == 'i_auroc'")[
            "value"
        ].item()
    )


def test_paper_stands_only_beside_its_own_data_sets():
    columns = ["dataset", "modality", "method", "setting", "category", "metric", "mean"]
    ours = pd.DataFrame(
        [
            ("mvtec3d", "rgb", "iuf", "10-0", "mean", "i_auroc", 0.8),
            ("minicandies", "rgb", "iuf", "10-0", "mean", "i_auroc", 0.8),
            ("eyecandies", "depth", "iuf", "10-0", "mean", "i_auroc", 0.8),
        ],
        columns=columns,
    )
    table = beside_paper(ours)
    # 87.1 in Table 1; Table 2 (57.2) goes before Table 4 (57.5).
    np.testing.assert_allclose(table["paper"], [0.871, np.nan, 0.572], rtol=1e-12)
    assert table["source"].fillna("").tolist() == ["Table 1", "", "Table 2"]
    pd.testing.assert_frame_equal(table[columns], ours)


def test_beside_paper_names_a_missing_column():
    with pytest.raises(DataError, match="lacks setting"):
        beside_paper(pd.DataFrame(columns=["dataset", "modality", "method", "category", "metric"]))


def test_provenance_survives_a_file(tmp_path):
    effort = Effort(tmp_path / "unfinished.json", threads=1)
    record = record_provenance("0123", {"seed": 0}, "cpu", effort.finish())
    path = tmp_path / "new" / "provenance.json"
    write_provenance(record, path)
    assert read_provenance(path) == record
    assert record.threads == 1
    add_evaluation(path, 2.5, peak_mb=1e9)
    evaluated = read_provenance(path)
    assert evaluated.duration_s == record.training_s + 2.5
    assert evaluated.peak_memory_mb == 1e9
    add_evaluation(path, 99.0, peak_mb=None)  # with other settings: the first counts
    assert read_provenance(path) == evaluated


def test_interrupted_parts_of_a_step_add_up_and_keep_their_threads(tmp_path):
    path = tmp_path / "unfinished.json"
    Effort(path, threads=2)
    kept = json.loads(path.read_text())
    path.write_text(
        json.dumps(kept | {"seconds": 100.0, "peak_memory_mb": 1e6, "commit": "c0ffee"})
    )
    again = Effort(path, threads=1)
    assert again.threads == 2
    told = again.finish()
    assert 100 < told["seconds"] < 110
    assert told["peak_memory_mb"] == 1e6
    assert told["started"] == kept["started"]
    assert told["commit"].startswith("c0ffee")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"run_id": 3}', "\x00"])
def test_broken_provenance_names_the_file(tmp_path, content):
    path = tmp_path / "provenance.json"
    path.write_text(content)
    with pytest.raises(DamagedFileError, match=r"provenance\.json: damaged"):
        read_provenance(path)
