import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from iumad.config.files import load_params
from iumad.config.schema import RunConfig
from iumad.errors import CheckpointError, ConfigError
from iumad.study import results
from iumad.study import runner as study
from iumad.study import runner as workplace
from iumad.study.load import load_rows, progress
from iumad.study.load import training_log as finished_log
from iumad.study.parallel import plan
from iumad.study.provenance import read_provenance
from iumad.study.runner import Workplace
from iumad.study.steps import CHECKPOINT, is_trained, row_files
from iumad.training import loop as train
from iumad.training.checkpoint import load_checkpoint

STEPS = [tiny.CATEGORIES[:2], tiny.CATEGORIES]  # seen after each step


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A results folder with the finished study, free to be changed."""
    return Path(shutil.copytree(finished.results, tmp_path / "results"))


@pytest.fixture
def trained_steps(monkeypatch) -> list[int]:
    """Numbers of the steps that are trained from here on."""
    steps: list[int] = []
    fit_step = train.fit_step

    def counted(*arguments):
        steps.append(arguments[4])
        return fit_step(*arguments)

    monkeypatch.setattr(train, "fit_step", counted)
    return steps


def one(finished: tiny.Finished, method: str) -> RunConfig:
    (run,) = finished.study.select(methods=[method]).runs()
    return run


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# --- what a study gives -------------------------------------------------------------------------


def test_rows_are_valid_and_complete(finished):
    rows = results.validate_rows(finished.rows)
    assert rows["method"].unique().tolist() == list(finished.study.methods)
    for method, run in rows.groupby("method"):
        told = ["accuracy"] if method != "memory-bank" else []
        for step, seen in enumerate(STEPS):
            found = run[run["step"] == step]
            assert found["category"].unique().tolist() == list(seen)
            assert found.groupby("category")["metric"].apply(sorted).tolist() == [
                [*told, "aupro", "i_auroc", "p_auroc", *["validation_error"] * bool(told)]
            ] * len(seen)
    assert (rows["n_good"] == 1).all()
    assert (rows["n_defect"] == 2).all()
    assert set(rows["run_id"]) == {run.run_id for run in finished.study.runs()}
    assert rows["value"].notna().all()


def test_banks_forget_nothing(finished):
    bank = finished.rows[finished.rows["method"] == "memory-bank"]
    values = bank.pivot_table(index=["category", "metric"], columns="step", values="value")
    earlier = values.loc[list(STEPS[0])]
    assert (earlier[0] == earlier[1]).all()


def test_the_log_has_every_epoch_of_every_step(finished):
    log = finished_log(finished.study, finished.results)
    results.validate(log.drop(columns="source"), results.LOG_SCHEMA)
    assert set(log["method"]) == {"iuf", "ib-iumad"}
    for _, term in log.groupby(["method", "step", "term"]):
        assert term["epoch"].tolist() == [0, 1]
        assert np.isfinite(term["value"]).all()
    assert finished_log(finished.study, finished.results / "nowhere").empty


def test_every_step_tells_where_it_comes_from(finished):
    run = one(finished, "iuf")
    place = Workplace(run, finished.results, "cpu")
    for step in range(2):
        record = read_provenance(place.folder(step) / "provenance.json")
        assert record.run_id == run.run_id
        assert RunConfig.model_validate(record.params) == run
        assert record.duration_s > 0


def test_maps_of_samples_by_the_model_after_a_step(finished):
    run = one(finished, "ib-iumad")
    ids = ["chocolate/test/good/000", "madeleine/test/good/000"]
    maps = study.score_samples(run, ids, finished.results)
    assert maps.shape == (2, tiny.SIZE, tiny.SIZE)
    alone = study.score_samples(run, ids[1:], finished.results, step=1)
    np.testing.assert_allclose(alone[0], maps[1], rtol=1e-5)  # other batch sizes round differently
    base = study.score_samples(run, ids, finished.results, step=0)
    assert not np.allclose(base, maps, rtol=1e-3)


# --- what is done is not done again -------------------------------------------------------------


def test_a_second_call_trains_and_writes_nothing(finished, monkeypatch):
    def refuse(*_args, **_kwargs):
        pytest.fail("was finished")

    monkeypatch.setattr(train, "fit_step", refuse)
    monkeypatch.setattr(workplace, "FeatureStore", refuse)
    monkeypatch.setattr(workplace, "evaluate", refuse)
    before = files(finished.results)
    again = study.run_study(finished.study, finished.results)
    pd.testing.assert_frame_equal(again, finished.rows, check_exact=True)
    assert files(finished.results) == before


def test_other_metrics_need_no_training(finished, copied, trained_steps):
    changed = tiny.study(**tiny.FINISHED, evaluation={"fpr_limit": 0.05})
    rows = study.run_study(changed, copied)
    assert trained_steps == []
    assert len(rows) == len(finished.rows)
    same = rows["metric"] != "aupro"
    assert rows["value"][same].tolist() == finished.rows["value"][same].tolist()
    assert set(rows["run_id"]).isdisjoint(finished.rows["run_id"])


def test_other_increments_start_from_the_same_base(copied, trained_steps):
    for strategy in ("none", "replay"):
        study.run_study(tiny.study(increment={"strategy": strategy}), copied)
    study.run_study(tiny.study(settings=["2-1"], profile="renamed"), copied)
    assert trained_steps == [1, 1]


def test_a_lost_step_is_made_again_with_the_same_rows(finished, copied, trained_steps):
    run = one(finished, "iuf")
    place = Workplace(run, copied, "cpu")
    shutil.rmtree(place.folder(1))
    rows = study.run_one(run, copied)
    assert trained_steps == [1]
    expected = finished.rows[finished.rows["method"] == "iuf"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected, check_exact=True)


def test_same_params_same_bits(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("IUMAD_CACHE", str(tmp_path / "other cache"))
    torch.manual_seed(99)
    run = one(finished, "ib-iumad")
    rows = study.run_one(run, tmp_path / "results")
    expected = finished.rows[finished.rows["method"] == "ib-iumad"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected, check_exact=True)
    ours, theirs = (Workplace(run, f, "cpu") for f in (tmp_path / "results", finished.results))
    for step in range(2):
        first, second = ours.folder(step), theirs.folder(step)
        assert first.name == second.name
        assert (first / "log.csv").read_bytes() == (second / "log.csv").read_bytes()
        states = [load_checkpoint(f / CHECKPOINT, ours._key(step)) for f in (first, second)]
        assert tiny.same_tensors(*(state["detector"] for state in states))


def test_another_seed_is_another_model(finished, copied):
    changed = one(finished, "ib-iumad").model_copy(update={"seed": 1})
    rows = study.run_one(changed, copied)
    expected = finished.rows[finished.rows["method"] == "ib-iumad"]
    assert rows["value"].tolist() != expected["value"].tolist()


# --- errors -------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_named(finished, copied):
    run = one(finished, "iuf")
    path = Workplace(run, copied, "cpu").folder(1) / CHECKPOINT
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError) as caught:
        study.score_samples(run, ["chocolate/test/good/000"], copied)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_checkpoint_of_another_run_is_refused(finished, copied):
    first, second = (Workplace(one(finished, m), copied, "cpu") for m in ("iuf", "ib-iumad"))
    shutil.copy(first.folder(1) / CHECKPOINT, second.folder(1) / CHECKPOINT)
    with pytest.raises(CheckpointError, match="checkpoint of another configuration"):
        second.detector(1)


def test_a_setting_that_does_not_fit_the_categories(tmp_path):
    with pytest.raises(ConfigError, match="setting 6-1 does not fit 3 categories"):
        study.run_study(tiny.study(settings=["6-1"]), tmp_path)
    assert not list(tmp_path.iterdir())


# --- planning -----------------------------------------------------------------------------------


def test_a_plan_counts_what_is_done_and_estimates_the_rest(finished):
    table, seconds = plan(finished.study, finished.results)
    assert table["done"].tolist() == table["steps"].tolist() == [2, 2, 2]
    assert seconds == 0
    more = tiny.study(**tiny.FINISHED, settings=["2-1", "3-0"], seeds=[0, 1])
    table, seconds = plan(more, finished.results)
    assert len(table) == 12
    assert table["done"].sum() == 6
    assert seconds is not None
    assert seconds > 0
    assert math.isclose(seconds / 60, table["minutes"].sum(), rel_tol=1e-9)


def test_nothing_is_known_before_the_first_run(finished, tmp_path):
    table, seconds = plan(finished.study, tmp_path)
    assert seconds is None
    assert table["done"].tolist() == [0, 0, 0]
    assert table["minutes"].isna().all()
    assert not is_trained(one(finished, "iuf"), tmp_path)


# --- several processes, and sudden death --------------------------------------------------------

OTHER_PROCESS = """
import os, signal, sys, time
from pathlib import Path

from iumad.training import loop as train
from iumad.config.files import load_params
from iumad.study.runner import run_study

params, folder = sys.argv[1], Path(sys.argv[2])
study, fit_step = load_params(params), train.fit_step


def counted(*arguments):
    with (folder / "trained.txt").open("a") as file:
        file.write(f"{arguments[4]}\\n")
    return fit_step(*arguments)


def dying(*arguments):
    *most, step, memory, partial, advance = arguments

    def last_breath(count):
        if step == 1 and partial.exists():
            os.kill(os.getpid(), signal.SIGKILL)

    return fit_step(*most, step, memory, partial, last_breath, 0.0)


train.fit_step = counted
(folder / "ready").touch()
while not (folder / "go").exists():
    time.sleep(0.02)
run_study(study, folder / "shared")
train.fit_step = dying
run_study(study, folder / "killed")
"""


@pytest.fixture(scope="module")
def other_process(finished, tmp_path_factory) -> Path:
    """A folder where another process and this one did a study at once, and the other then died in a second one."""
    folder = tmp_path_factory.mktemp("processes")
    params = folder / "params.yaml"
    params.write_text(
        finished.params.read_text().replace("iuf: {}", "").replace("memory-bank: {}", "")
    )
    only = load_params(params)
    assert list(only.methods) == ["ib-iumad"]
    command = [sys.executable, "-c", OTHER_PROCESS, str(params), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not (folder / "ready").exists():
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.02)
        fit_step = train.fit_step
        with pytest.MonkeyPatch.context() as patch:

            def counted(*arguments):
                with (folder / "trained.txt").open("a") as file:
                    file.write(f"{arguments[4]}\n")
                return fit_step(*arguments)

            patch.setattr(train, "fit_step", counted)
            (folder / "go").touch()
            study.run_study(only, folder / "shared")
        output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output.decode()
    return folder


def rows_of_ib_iumad(finished: tiny.Finished) -> pd.DataFrame:
    return finished.rows[finished.rows["method"] == "ib-iumad"].reset_index(drop=True)


def test_two_processes_on_one_folder_share_the_work(finished, other_process):
    assert sorted((other_process / "trained.txt").read_text().split()) == ["0", "1"]
    only = load_params(other_process / "params.yaml")
    rows = study.run_study(only, other_process / "shared")
    pd.testing.assert_frame_equal(rows, rows_of_ib_iumad(finished), check_exact=True)
    left = [path for path in files(other_process / "shared") if path.suffix == ".tmp"]
    assert not left


def test_a_killed_process_is_resumed_to_the_same_bits(finished, other_process, monkeypatch):
    only = load_params(other_process / "params.yaml")
    (run,) = only.runs()
    place = Workplace(run, other_process / "killed", "cpu")
    assert (place.folder(0) / CHECKPOINT).exists()
    assert not (place.folder(1) / CHECKPOINT).exists()
    assert (place.folder(1) / "partial.pt").exists()
    advanced: list[tuple[int, int]] = []
    fit_step = train.fit_step

    def watched(*arguments):
        return fit_step(*arguments[:7], lambda count: advanced.append((arguments[4], count)))

    monkeypatch.setattr(train, "fit_step", watched)
    rows = study.run_study(only, other_process / "killed")
    assert advanced[0] == (1, 3)  # one epoch of three samples was saved
    assert sum(count for _, count in advanced) == 6
    pd.testing.assert_frame_equal(rows, rows_of_ib_iumad(finished), check_exact=True)
    assert not (place.folder(1) / "partial.pt").exists()
    again = Workplace(run, finished.results, "cpu")
    states = [each.detector(1).state_dict() for each in (place, again)]
    assert tiny.same_tensors(*states)


# --- bounds -------------------------------------------------------------------------------------


def test_joint_training_is_one_step_shared_by_all_settings(tmp_path, trained_steps):
    grid = tiny.study(methods={"joint": {}, "ib-iumad": {}}, settings=["3-0", "2-1"])
    rows = study.run_study(grid.select(methods=["joint"]), tmp_path)
    assert trained_steps == [0]  # of 3-0; 2-1 finds it
    assert (rows["step"] == 0).all()
    values = [part["value"].tolist() for _, part in rows.groupby("setting")]
    assert values[0] == values[1]
    study.run_study(grid.select(methods=["ib-iumad"], settings=["3-0"]), tmp_path)
    assert trained_steps == [0]


def test_load_rows_are_those_of_the_runs_and_need_all_steps(finished, copied):
    rows = load_rows(finished.study, copied)
    pd.testing.assert_frame_equal(rows.drop(columns="source"), finished.rows)
    assert progress(finished.study, copied)["finished"].all()
    (run,) = finished.study.select(methods=["iuf"]).runs()
    row_files(run, copied, tiny.CATEGORIES)[0].unlink()
    assert set(load_rows(finished.study, copied)["method"]) == {"ib-iumad", "memory-bank"}
    table = progress(finished.study, copied)
    assert table[~table["finished"]]["method"].tolist() == ["iuf"]


def test_nothing_finished_is_an_empty_table(finished, tmp_path):
    assert load_rows(finished.study, tmp_path).empty
