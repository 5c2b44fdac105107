"""Costs: what is measured, how it is summarised, and that a bank grows with categories and one model does not."""

import itertools
import multiprocessing
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache

import numpy as np
import pandas as pd
import pytest
import tiny

from iumad.config.files import load_params
from iumad.errors import ConfigError
from iumad.report import text
from iumad.study import costs, counting, efficiency
from iumad.study.efficiency import (
    Point,
    measure_learning,
    measure_point,
    measure_speeds,
    measure_study,
    points_of,
)
from iumad.study.load import Speed, needs, plan
from iumad.study.results import write_table

KEYS = ["categories", "image_size", "batch"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """All points of a network and a bank (measured in this process)."""
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        backbone = cache(efficiency.Backbone)  # making it takes most of the time
        for module in (counting, efficiency):
            patch.setattr(module, "Backbone", backbone)
        for method in ("ib-iumad", "bank"):
            run = tiny.run(method, settings=["3-0"])
            for point in points_of(run):
                rows += measure_point(run, point, "cpu")
    return pd.DataFrame(rows)[costs.COST_COLUMNS]


def test_time_of_absent_data_is_worked_out_from_the_published_numbers_of_images(
    tmp_path, repository
):
    study = load_params(repository / "params/mvtec3d.yaml")
    chosen = {"methods": ["iuf"], "modalities": ["rgb"], "settings": ["9-1"], "seeds": [0]}
    speeds = {("iuf", "rgb"): Speed(training=0.5, test=2.0)}
    _, seconds = plan(study.select(**chosen), tmp_path, speeds)
    # 2,446 images of nine categories for 1,000 epochs and 210 of tire for 800; tests of 1,085 and all 1,197
    assert seconds == 0.5 * (2446 * 1000 + 210 * 800) + 2.0 * (1085 + 1197)
    sizes = {("iuf", "rgb"): Speed(1.0, 1.0, 900.0), ("ib-iumad", "rgb"): Speed(1.0, 1.0, 2340.0)}
    text, memory = needs(study, 0.5, 10**6, sizes | {("bank", "rgb"): Speed(0.0, 1.0)})
    assert (
        memory == "memory: 2.3 GB for ib-iumad (rgb), the largest, beside the inputs that it keeps"
    )
    # 2,656 + 294 + 1,197 samples of two modalities
    assert text.startswith("features: 4147 samples of 2 modalities, 1.15 h")
    assert text.endswith("8.3 GB in the cache")


def test_speeds_are_measured_of_every_method():
    speeds, features, size = measure_speeds(tiny.study(methods={"ib-iumad": {}, "bank": {}}), "cpu")
    assert {method for method, _ in speeds} == {"ib-iumad", "bank"}
    assert all(speed.test > 0 for speed in speeds.values())
    assert {m for (m, _), speed in speeds.items() if speed.training > 0} == {"ib-iumad"}
    assert features > 0
    assert size > 0
    if sys.platform == "linux":
        assert speeds["ib-iumad", "rgb+depth"].memory > 100  # the process itself


def test_every_size_is_measured(table):
    assert set(table["metric"]) == {
        *("latency (ms)", "frames/s", "model (MB)", "added memory (MB)"),
        *("parameters (M)", "operations (10^9)"),
    }
    positive = table[table["metric"] != "added memory (MB)"]  # freed memory may be used again here
    assert (positive["value"] > 0).all()
    points = set(table[KEYS].itertuples(index=False, name=None))
    own = tiny.SIZE
    one = {(n, own, 1) for n in (3, 1, 30, 100)}
    assert points == {*one, (3, own, 32), (3, 16, 1), (3, 64, 1)}
    timed = table[(table["metric"] == "latency (ms)") & (table["batch"] == 1)]
    at_own = timed.groupby(["method", *KEYS]).size()[:, 3, own]
    assert (at_own == efficiency.PROCESSES * costs.COST_REPEATS).all()


def test_only_the_bank_grows_with_categories(table):
    grown = costs.cost_growth(table, "categories", "rgb+depth").query("metric == 'model (MB)'")
    sizes = {name: part.set_index("categories")["value"] for name, part in grown.groupby("method")}
    bank, one = sizes["bank"], sizes["ib-iumad"]
    assert bank.index.tolist() == [1, 3, 30, 100]
    # 3 training images of 4 x 4 patches of float32 for each of two modalities; C: levels 1 and 2
    each = 2 * 3 * tiny.GRID**2 * (24 + 40) * 4 / 1e6
    assert np.diff(bank) == pytest.approx(each * np.array([2, 27, 70]))
    logits = np.diff(one)
    assert (logits > 0).all()
    assert (logits < np.diff(bank) / 10).all()


@pytest.mark.slow
def test_a_process_is_charged_for_what_the_model_adds():
    """In a process of its own a bank of 100 categories adds its bytes, and is not charged for libraries."""
    (run,) = tiny.study(methods={"bank": {}}, settings=["3-0"], data={"n_train": 400}).runs()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = pd.DataFrame(
            pool.submit(measure_point, run, Point(100, tiny.SIZE, 1, 0), "cpu").result()
        )
    values = rows.groupby("metric")["value"].median()
    size, added = values["model (MB)"], values["added memory (MB)"]
    assert (
        size > 300
    )  # 100 categories x 400 images x 16 patches x 64 channels x 2 modalities x 4 bytes
    assert size - 10 < added < size + 150


@pytest.mark.parametrize("method", ["uniad", "mambaad-lite", "bank-unified"])
def test_other_methods_are_measured(method):
    point = Point(3, tiny.SIZE, 1, 0)
    rows = measure_point(tiny.run(method, settings=["3-0"]), point, "cpu")
    assert "latency (ms)" in {row["metric"] for row in rows}


def test_a_model_that_is_too_large_has_its_size_only(monkeypatch):
    monkeypatch.setattr(efficiency, "LIMIT", 0)
    (row,) = measure_point(tiny.run("bank", settings=["3-0"]), Point(100, tiny.SIZE, 1, 0), "cpu")
    assert row["metric"] == "model (MB)"


def test_a_summary_by_hand():
    rows = [
        ("iuf", "rgb", 3, 32, 1, "here", i, "latency (ms)", value)
        for i, value in enumerate([1.0, 2.0, 3.0, 4.0, 10.0])
    ]
    rows += [("iuf", "rgb", 3, 32, 1, "here", i, "frames/s", 100.0 * (i + 1)) for i in range(5)]
    (row,) = costs.cost_summary(pd.DataFrame(rows, columns=costs.COST_COLUMNS), 3, 32).to_dict(
        "records"
    )
    assert row["latency p50 (ms)"] == 3.0
    assert row["latency p95 (ms)"] == pytest.approx(8.8)  # 4 + 0.8 * (10 - 4)
    assert row["frames/s"] == 300.0


def test_claims_get_one_value_a_process_as_a_logarithm(table):
    values = costs.cost_claims(table, 3, tiny.SIZE)
    assert set(values["setting"]) == {"3-0"}
    assert (
        values.groupby(["method", "metric"])["seed"].apply(list).tolist() == [[0, 1, 2, 3, 4]] * 4
    )
    frames = table.query("metric == 'frames/s' and batch == 1 and 10 <= repeat < 15")
    expected = np.log2(frames[frames["method"] == "ib-iumad"]["value"]).mean()
    found = values.query("method == 'ib-iumad' and metric == 'log2 frames/s' and seed == 2")
    assert found["value"].item() == pytest.approx(expected)


def test_costs_are_found_again_whatever_the_seed(table, tmp_path):
    study = tiny.study(seeds=[0, 1])
    assert costs.read_costs(study, tmp_path).empty
    write_table(table, costs.costs_file(study, tmp_path))
    assert len(costs.read_costs(tiny.study(seeds=[3]), tmp_path)) == len(table)
    assert costs.read_costs(tiny.study(methods={"iuf": {}}), tmp_path).empty


def test_costs_are_found_wherever_the_data_lie(repository):
    first, second = (
        load_params(
            repository / "params/mvtec3d/efficiency.yaml", assignments=[f"data.root={root}"]
        )
        for root in ("here", "there")
    )
    assert costs.costs_id(first) == costs.costs_id(second)


def test_fpfh_is_not_measured_rather_than_measured_wrongly():
    with pytest.raises(ConfigError, match="FPFH"):
        measure_point(tiny.run("btf"), Point(3, tiny.SIZE, 1, 0), "cpu")


def test_a_model_without_times_has_its_size_in_the_summary():
    row = ("bank", "rgb", 3, 32, 1, "here", 0, "model (MB)", 5000.0)
    (found,) = costs.cost_summary(pd.DataFrame([row], columns=costs.COST_COLUMNS), 3, 32).to_dict(
        "records"
    )
    assert found["model (MB)"] == 5000.0
    assert np.isnan(found["latency p50 (ms)"])


@pytest.mark.parametrize(
    ("method", "learnt", "remembered"),
    [
        ("ib-iumad", {"madeleine"}, set()),
        ("ib-iumad+replay", {"madeleine"}, {"chocolate", "pretzel"}),
        ("joint", set(tiny.CATEGORIES), set()),
    ],
)
def test_learning_is_the_training_of_the_last_step(monkeypatch, method, learnt, remembered):
    seen = {}

    def fit_step(_detector, _store, sample_ids, plan, memory, **_):
        seen.update(ids=sample_ids, step=plan.step, memory=memory)

    monkeypatch.setattr(efficiency, "fit_step", fit_step)
    (row,) = measure_learning(tiny.run(method, settings=["1-1"]), 0, "cpu")
    assert row["metric"] == costs.LEARNING
    assert row["categories"] == 3
    assert {name.split("/")[0] for name in seen["ids"]} == learnt
    assert {name.split("/")[0] for name in seen["memory"].get("replay", [])} == remembered
    assert seen["step"] == (0 if method == "joint" else 2)


def test_a_long_training_is_timed_in_part(monkeypatch):
    """Every epoch is as long as those that are run: 3 images in 700 epochs, 334 of which are 1,000 images."""
    now = itertools.count()
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: float(next(now)))
    monkeypatch.setattr(efficiency, "_seconds", lambda *_: 0.0)

    def fit_step(detector, _store, _ids, plan, _memory, watch):
        assert plan.epochs == 334
        for epoch in range(plan.epochs):
            watch.epoch(detector, epoch)  # a second each

    monkeypatch.setattr(efficiency, "fit_step", fit_step)
    run = tiny.run("ib-iumad", settings=["2-1"], increment={"epochs": 700})
    (row,) = measure_learning(run, 0, "cpu")
    assert row["value"] == 701  # and one for what follows


def test_learning_of_every_bank_is_timed():
    for method in ("bank", "bank-unified"):
        (row,) = measure_learning(tiny.run(method, settings=["2-1"]), 0, "cpu")
        assert row["value"] > 0


def test_methods_that_differ_in_training_alone_are_tested_once(monkeypatch, tmp_path, finished):
    study = tiny.study(
        methods={"ib-iumad": {}, "finetune": {"settings": ["2-1"]}, "bank": {"settings": ["3-0"]}},
        settings=["3-0", "2-1"],
    )
    monkeypatch.setattr(efficiency, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(efficiency, "points_of", lambda run: points_of(run)[:1])
    table = measure_study(study, tmp_path, "cpu")
    methods = table.groupby("metric")["method"].apply(lambda each: sorted(set(each)))
    assert methods["latency (ms)"] == ["bank", "ib-iumad"]
    assert methods[costs.LEARNING] == ["finetune", "ib-iumad"]  # no bank in the setting of steps
    pd.testing.assert_frame_equal(costs.read_costs(study, tmp_path), table, check_dtype=False)
    left_out = table[table["method"] != "bank"]  # as if it had been cut off before the bank
    write_table(left_out, costs.costs_file(study, tmp_path))
    asked = []
    monkeypatch.setattr(efficiency, "measure_point", lambda run, *_: asked.append(run.method) or [])
    measure_study(study, tmp_path, "cpu")
    assert asked == ["bank"]
    summary = costs.learning_summary(table, finished.rows)
    assert summary["method"].tolist() == ["ib-iumad", "finetune"]
    assert (summary["low"] <= summary["seconds"]).all()
    assert summary["i_auroc"].notna().tolist() == [True, False]  # the second is not trained
    assert set(costs.cost_summary(table, 3, tiny.SIZE)["batch"]) == {1}


def test_the_time_to_learn_in_words():
    rows = [("rgb", "ib-iumad", 31.4), ("rgb", "bank", 1.26), ("rgb", "joint", 204.0)]
    summary = pd.DataFrame(rows, columns=["modality", "method", "seconds"])
    (said,) = text.learning_takes(summary)
    assert "ib-iumad</code> 31, " in said
    assert "joint</code> 204 and <code" in said
    assert said.endswith("bank</code> 1.3.")
    assert text.learning_takes(summary[:1]) == []
    assert text.learning_takes(summary[:0]) == []


class InThisProcess:
    """Stands for `ProcessPoolExecutor`."""

    def __init__(self, *_, **__) -> None:
        pass

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_) -> None:
        pass

    def submit(self, call, *arguments):
        done = Future()
        done.set_result(call(*arguments))
        return done
