"""A grid on several processes: the rows of one process, files of a finished run, a clear first error."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import tiny
import trees
import yaml

from iumad.config.files import load_params
from iumad.config.sections import EyecandiesConfig, FolderConfig
from iumad.data import data_of, open_dataset
from iumad.data.public import EYECANDIES, MVTEC_3D_AD
from iumad.errors import ConfigError, DataError
from iumad.study.load import plan
from iumad.study.parallel import default_jobs, run_parallel
from iumad.study.runner import run_study
from iumad.study.steps import is_evaluated


@pytest.fixture(scope="module")
def grid():
    """Two runs that share their base, and one of another seed."""
    methods = {"ib-iumad": {}, "finetune": {}}
    return tiny.study(methods=methods, seeds=[0, 1]), tiny.study(methods=methods, seeds=[0])


@pytest.mark.slow
def test_two_processes_make_the_rows_of_one(grid, tmp_path):
    study, _ = grid
    run_parallel(study, tmp_path / "two", "cpu", jobs=2)
    assert all(is_evaluated(run, tmp_path / "two") for run in study.runs())
    together = run_study(study, tmp_path / "two", "cpu")
    pd.testing.assert_frame_equal(together, run_study(study, tmp_path / "one", "cpu"))
    records = [json.loads(p.read_text()) for p in (tmp_path / "two").rglob("provenance.json")]
    assert len(records) == 6  # two seeds, a base and two increments each
    assert not [p for p in (tmp_path / "two").rglob("*") if p.suffix == ".tmp"]


def test_one_unfinished_run_starts_no_process(tmp_path):
    run_parallel(tiny.study(), tmp_path, "cpu", jobs=2)
    assert not list(tmp_path.iterdir())


def test_the_first_error_is_raised(tmp_path):
    study = tiny.study(seeds=[0, 1], features={"levels": [9]})
    with pytest.raises(ConfigError, match=r"features\.levels"):
        run_parallel(study, tmp_path, "cpu", jobs=2)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["worker", "parent"])
def test_killed_processes(grid, tmp_path, target):
    """A killed worker is told with its run; a killed parent takes its workers with it; both go on later."""
    study, _ = grid
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump(study.model_dump(mode="json", exclude={"assigned"}))
    )
    results = tmp_path / "results"
    command = [sys.executable, "-m", "iumad", "run", str(tmp_path / "params.yaml")]
    command += ["--results", str(results), "-j", "2", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        worker = wait_for(lambda: writers(results), parent)[0]
        os.kill(worker if target == "worker" else parent.pid, signal.SIGKILL)
        _, told = parent.communicate(timeout=60)  # ends when nobody holds the output any more
    assert parent.returncode == (2 if target == "worker" else -signal.SIGKILL)
    if target == "worker":
        lines = [line for line in told.decode().splitlines() if "error:" in line]
        assert "killed by SIGKILL" in lines[-1]
        assert "rgb+depth 2-1 seed" in lines[-1]
    assert not writers(results)


def writers(results: Path) -> list[int]:
    """Processes that hold the lock of a step."""
    locks = {path.stat().st_ino for path in results.glob("steps/*/lock")}
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(part[4]) for part in held if int(part[5].split(":")[2]) in locks]


def wait_for(found, process):
    """What a function returns once it is not empty, while a process lives."""
    while not (result := found()):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    return result


@pytest.mark.parametrize("name", ["mvtec3d", "eyecandies"])
def test_the_papers_grids_are_planned_without_their_data(repository, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # the data set's root is relative
    study = load_params(repository / f"params/{name}.yaml")
    table, seconds = plan(study, tmp_path / "results")
    assert len(table) == len(study.runs())
    assert table.groupby("setting")["steps"].unique().map(list).to_dict() == {
        "10-0": [1],
        "9-1": [2],
        "6-4": [2],
        "6-1": [5],
    }
    assert seconds is None
    with pytest.raises(DataError, match=f"data/{name}: there is no such folder"):
        run_study(study, tmp_path / "results", "cpu")
    assert not list(tmp_path.iterdir())


PARTS = (("train", ()), ("val", ()), ("test_public", ()), ("test_public", ("bumps",)))


def test_names_without_the_data_are_those_of_the_data(tmp_path):
    folder = FolderConfig(name="mvtec3d", root=tmp_path / "mvtec3d")
    candies = EyecandiesConfig(name="eyecandies", root=tmp_path / "eyecandies")
    before = [(config, data_of(config).categories) for config in (folder, candies)]
    trees.small_mvtec3d(folder.root, reversed(MVTEC_3D_AD))
    tree = trees.EyecandiesTree(candies.root, tmp_path / "store")
    for category in EYECANDIES:
        for split, kinds in PARTS:
            tree.add(category, split, f"{len(kinds):03d}", kinds)
    for config, names in before:
        assert len(names) == 10
        assert data_of(config).categories == open_dataset(config).categories == names


def test_chosen_names_need_no_data_and_other_data_sets_do(tmp_path):
    root = tmp_path / "nowhere"
    chosen = FolderConfig(name="mvtec3d", root=root, categories=("foam", "rope"))
    assert data_of(chosen).categories == ("foam", "rope")
    with pytest.raises(DataError, match="there is no such folder"):
        data_of(FolderConfig(name="mvtec", root=root))


def test_jobs_suit_the_device():
    assert default_jobs("cpu") >= 1
