import copy
import json
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
from filelock import FileLock

from iumad.config.files import load_params
from iumad.config.schema import RunConfig
from iumad.errors import ConfigError, Interrupted, IumadError
from iumad.study import load, results
from iumad.study import runner as study
from iumad.study.load import load_rows, plan, progress
from iumad.study.runner import RunWork, load_detector
from iumad.study.steps import Effort, is_trained, read_provenance, steps_of
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
        steps.append(arguments[3].step)
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
        told = ["accuracy"] if method != "bank" else []
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
    bank = finished.rows[finished.rows["method"] == "bank"]
    values = bank.pivot_table(index=["category", "metric"], columns="step", values="value")
    earlier = values.loc[list(STEPS[0])]
    assert (earlier[0] == earlier[1]).all()


def test_the_log_has_every_epoch_of_every_step(finished):
    log = load.training_log(finished.study, finished.results)
    results.validate(log.drop(columns="source"), results.LOG_SCHEMA)
    assert set(log["method"]) == {"iuf", "ib-iumad"}
    for _, term in log.groupby(["method", "step", "term"]):
        assert term["epoch"].tolist() == [0, 1]
        assert np.isfinite(term["value"]).all()
    assert load.training_log(finished.study, finished.results / "nowhere").empty


def test_every_step_tells_where_it_comes_from(finished):
    run = one(finished, "iuf")
    for step in steps_of(run, finished.results):
        record = read_provenance(step.provenance)
        assert record.run_id == run.run_id
        params = {k: v for k, v in record.params.items() if k != "preparation"}
        assert RunConfig.model_validate(params) == run
        assert record.params["preparation"]["scaling"]["depth"]  # the range that was measured
        assert record.training_s > 0
        assert record.evaluation_s > 0
        assert record.threads == 1
        assert not step.unfinished.exists()


def test_maps_of_samples_by_the_model_after_a_step(finished):
    run = one(finished, "ib-iumad")
    ids = ["chocolate/test/good/000", "madeleine/test/good/000"]
    maps = tiny.score_samples(run, ids, finished.results)
    assert maps.shape == (2, tiny.SIZE, tiny.SIZE)
    alone = tiny.score_samples(run, ids[1:], finished.results, step=1)
    np.testing.assert_allclose(alone[0], maps[1], rtol=1e-5)  # other batch sizes round differently
    base = tiny.score_samples(run, ids, finished.results, step=0)
    assert not np.allclose(base, maps, rtol=1e-3)


# --- what is done is not done again -------------------------------------------------------------


def test_a_second_call_trains_and_writes_nothing(finished, monkeypatch):
    def refuse(*_args, **_kwargs):
        pytest.fail("was finished")

    monkeypatch.setattr(train, "fit_step", refuse)
    monkeypatch.setattr(study, "open_store", refuse)
    monkeypatch.setattr(study, "evaluate", refuse)
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
    shutil.rmtree(steps_of(run, copied)[1].folder)
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
    ours, theirs = (steps_of(run, folder) for folder in (tmp_path / "results", finished.results))
    for first, second in zip(ours, theirs, strict=True):
        assert first.key == second.key
        assert first.log.read_bytes() == second.log.read_bytes()
        states = [load_checkpoint(f.checkpoint, {"step": f.key}) for f in (first, second)]
        assert tiny.same_tensors(*(state["detector"] for state in states))


def test_another_seed_is_another_model(finished, copied):
    changed = one(finished, "ib-iumad").model_copy(update={"seed": 1})
    rows = study.run_one(changed, copied)
    expected = finished.rows[finished.rows["method"] == "ib-iumad"]
    assert rows["value"].tolist() != expected["value"].tolist()


# --- errors -------------------------------------------------------------------------------------


def damage(path: Path, how: str, other: Path) -> None:
    """Damage a file; `tests/test_machine.py` has all kinds."""
    whole = path.read_bytes()
    if how == "a lost line":
        lines = whole.splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:2] + lines[3:]))
    else:
        flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
        path.write_bytes({"a flipped bit": flipped, "of another step": other.read_bytes()}[how])


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("rows", "a lost line"),
        ("rows", "of another step"),
        ("checkpoint", "a flipped bit"),
        ("remembered", "a flipped bit"),
        ("log", "of another step"),
    ],
)
def test_damage_is_found_and_the_remedy_works(finished, copied, name, how):
    run = one(finished, "ib-iumad")
    first, second = steps_of(run, copied)
    path, other = (getattr(first, name), getattr(second, name))
    if name == "remembered":
        second.checkpoint.unlink()
        second.rows.unlink()
        other = first.checkpoint
    if name == "checkpoint":
        first.rows.unlink()
    damage(path, how, other)
    make = (
        (lambda: load.training_log(finished.study, copied))
        if name == "log"
        else (lambda: study.run_one(run, copied))
    )
    with pytest.raises(IumadError, match="damaged") as caught:
        make()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if name == "log":
        return
    path.unlink()
    pd.testing.assert_frame_equal(make(), rows_of_ib_iumad(finished), check_exact=True)


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
    assert math.isclose(seconds / 60, table["left"].sum(), rel_tol=1e-9)
    assert table["published"].isna().all()


def test_nothing_is_known_before_the_first_run(finished, tmp_path):
    table, seconds = plan(finished.study, tmp_path)
    assert seconds is None
    assert table["done"].tolist() == [0, 0, 0]
    assert table["left"].isna().all()
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
        file.write(f"{arguments[3].step}\\n")
    return fit_step(*arguments)


def dying(*arguments):
    *most, plan, memory, unfinished, _watch = arguments

    def last_breath(count):
        if plan.step == 1 and unfinished.exists():
            os.kill(os.getpid(), signal.SIGKILL)

    train.Unfinished.SECONDS = 0.0
    return fit_step(*most, plan, memory, unfinished, train.Watch(last_breath))


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
    params.write_text(finished.params.read_text().replace("iuf: {}", "").replace("bank: {}", ""))
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
                    file.write(f"{arguments[3].step}\n")
                return fit_step(*arguments)

            patch.setattr(train, "fit_step", counted)
            (folder / "go").touch()
            study.run_study(only, folder / "shared")
        output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output.decode()
    return folder


def rows_of_ib_iumad(finished: tiny.Finished) -> pd.DataFrame:
    return finished.rows[finished.rows["method"] == "ib-iumad"].reset_index(drop=True)


@pytest.mark.slow  # in test_grid.py they are workers of one command
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
    base, last = steps_of(run, other_process / "killed")
    assert base.checkpoint.exists()
    assert not last.checkpoint.exists()
    assert last.partial.exists()
    earlier = json.loads(last.unfinished.read_text())
    advanced: list[tuple[int, int]] = []
    fit_step = train.fit_step

    def watched(*arguments):
        step = arguments[3].step
        watch = train.Watch(lambda count: advanced.append((step, count)))
        return fit_step(*arguments[:6], watch)

    monkeypatch.setattr(train, "fit_step", watched)
    rows = study.run_study(only, other_process / "killed")
    assert advanced[0] == (1, 3)  # one epoch of three samples was saved
    assert sum(count for _, count in advanced) == 6
    pd.testing.assert_frame_equal(rows, rows_of_ib_iumad(finished), check_exact=True)
    assert not last.partial.exists()
    record = read_provenance(last.provenance)
    assert record.training_s > earlier["seconds"]
    assert record.started == earlier["started"]
    there = steps_of(run, finished.results)[1]
    work = RunWork(run, "cpu")
    states = [load_detector(work, step).state_dict() for step in (last, there)]
    assert tiny.same_tensors(*states)


def test_a_step_without_its_model_trains_no_finished_epoch_again(finished, tmp_path, monkeypatch):
    run = one(finished, "iuf")
    base, _ = steps_of(run, tmp_path)
    monkeypatch.setattr(train.Unfinished, "SECONDS", 0.0)
    with monkeypatch.context() as patch, pytest.raises(NameError):
        patch.delattr(study, "save_checkpoint")
        study.run_one(run, tmp_path)
    assert base.partial.exists() and base.unfinished.exists()
    steps, end = [], train.LossLog.end
    monkeypatch.setattr(
        train.LossLog, "end", lambda log, *args: steps.append(log.step) or end(log, *args)
    )
    study.run_one(run, tmp_path)
    assert steps == [1, 1]  # no epoch of the base
    assert not base.partial.exists() and not base.unfinished.exists()
    there, work = steps_of(run, finished.results)[0], RunWork(run, "cpu")
    states = [load_detector(work, step).state_dict() for step in (base, there)]
    assert tiny.same_tensors(*states)
    assert base.log.read_bytes() == there.log.read_bytes()


def test_watching_trains_the_same_weights(finished):
    run = one(finished, "iuf")
    for step in steps_of(run, finished.results):
        work, last = RunWork(run, "cpu"), {}
        study.watch_training(
            work,
            step,
            lambda detector, _, last=last: last.update(copy.deepcopy(detector.state_dict())),
        )
        trained = load_detector(RunWork(run, "cpu"), step)
        weights = [name for name, _ in trained.named_parameters()]
        assert all(torch.equal(last[name], trained.state_dict()[name]) for name in weights)


def test_a_run_in_work_elsewhere_is_left_for_later(finished, copied, monkeypatch):
    """The base of both is locked at first: the bank, which does not need it, comes first."""
    both = finished.study.select(methods=["ib-iumad", "bank"])
    first, _ = both.runs()
    shutil.rmtree(copied)
    base = steps_of(first, copied)[0]
    base.folder.mkdir(parents=True)
    lock = FileLock(base.lock)
    lock.acquire()
    order = []
    evaluate = study.evaluate_step

    def seen(work, step, detector):
        order.append((work.run.method, step.number))
        if work.run.method == "bank" and step.number == 1:
            lock.release()
        return evaluate(work, step, detector)

    monkeypatch.setattr(study, "evaluate_step", seen)
    rows = study.run_study(both, copied)
    assert order == [("bank", 0), ("bank", 1), ("ib-iumad", 0), ("ib-iumad", 1)]
    expected = finished.rows[finished.rows["method"] != "iuf"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected, check_exact=True)


def test_an_interruption_says_what_is_saved(finished, tmp_path, monkeypatch):
    def stop(*_arguments, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit_step", stop)
    with pytest.raises(Interrupted, match="0 of 3 runs are finished"):
        study.run_study(finished.study, tmp_path)
    left = [path.name for path in tmp_path.rglob("*") if path.suffix == ".tmp"]
    assert not left


def test_a_resumed_step_keeps_its_threads(finished, tmp_path, monkeypatch):
    run, used = one(finished, "iuf"), []
    base = steps_of(run, tmp_path)[0]
    Effort(base.unfinished, threads=2)  # as a killed process left it
    fit_step = train.fit_step

    def watched(*arguments):
        used.append(torch.get_num_threads())
        return fit_step(*arguments)

    monkeypatch.setattr(train, "fit_step", watched)
    study.run_one(run, tmp_path)
    assert used == [2, 1]
    assert [read_provenance(step.provenance).threads for step in steps_of(run, tmp_path)] == [2, 1]


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
    steps_of(run, copied)[0].rows.unlink()
    assert set(load_rows(finished.study, copied)["method"]) == {"ib-iumad", "bank"}
    table = progress(finished.study, copied)
    assert table[~table["finished"]]["method"].tolist() == ["iuf"]


def test_nothing_finished_is_an_empty_table(finished, tmp_path):
    assert load_rows(finished.study, tmp_path).empty
