"""A grid on several processes: the rows of one process, files of a finished run, a clear first error."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
import tiny
import trees

from iumad.config.files import load_params
from iumad.config.sections import EyecandiesConfig, FolderConfig
from iumad.data import categories_of, open_dataset
from iumad.data.published import EYECANDIES, MVTEC_3D_AD
from iumad.errors import ConfigError, DataError
from iumad.study.parallel import default_jobs, plan, run_parallel
from iumad.study.runner import run_study
from iumad.study.steps import is_trained


def test_two_processes_make_the_rows_of_one(tmp_path):
    study = tiny.study(seeds=[0, 1], settings=["2-1"])
    run_parallel(study, tmp_path / "two", "cpu", jobs=2)
    assert all(is_trained(run, tmp_path / "two") for run in study.runs())
    together = run_study(study, tmp_path / "two", "cpu")
    pd.testing.assert_frame_equal(together, run_study(study, tmp_path / "one", "cpu"))
    records = [json.loads(p.read_text()) for p in (tmp_path / "two").rglob("provenance.json")]
    assert len(records) == 4  # two seeds, two steps each


def test_one_unfinished_run_starts_no_process(tmp_path):
    run_parallel(tiny.study(), tmp_path, "cpu", jobs=2)
    assert not list(tmp_path.iterdir())


def test_the_first_error_is_raised(tmp_path):
    study = tiny.study(seeds=[0, 1], features={"levels": [9]})
    with pytest.raises(ConfigError, match=r"features\.levels"):
        run_parallel(study, tmp_path, "cpu", jobs=2)


PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from iumad.study import parallel as grid

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    begin = (1, context.Value("i", 0), context.RLock())
    with ProcessPoolExecutor(1, context, grid._begin_worker, begin) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_a_worker_ends_with_a_killed_parent(tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
        try:
            parent.communicate(timeout=20)  # ends when nobody holds the worker's output any more
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            pytest.fail("the worker outlived its parent")


@pytest.mark.parametrize("name", ["mvtec3d", "eyecandies"])
def test_the_papers_grids_are_planned_without_their_data(repository, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # the data set's root is relative
    study = load_params(repository / f"params/{name}.yaml")
    table, seconds = plan(study, tmp_path / "results")
    assert len(table) == 144
    assert table.groupby("setting")["steps"].unique().map(list).to_dict() == {
        "10-0": [1],
        "9-1": [2],
        "6-4": [2],
        "6-1": [5],
    }
    assert seconds is None
    with pytest.raises(DataError, match=f"data/{name}: does not exist"):
        run_study(study, tmp_path / "results", "cpu")
    assert not list(tmp_path.iterdir())


PARTS = (("train", ()), ("val", ()), ("test_public", ()), ("test_public", ("bumps",)))


def test_names_without_the_data_are_those_of_the_data(tmp_path):
    folder = FolderConfig(name="mvtec3d", root=tmp_path / "mvtec3d")
    candies = EyecandiesConfig(name="eyecandies", root=tmp_path / "eyecandies")
    before = {config: categories_of(config) for config in (folder, candies)}
    trees.small_mvtec3d(folder.root, reversed(MVTEC_3D_AD))
    tree = trees.EyecandiesTree(candies.root, tmp_path / "store")
    for category in EYECANDIES:
        for split, kinds in PARTS:
            tree.add(category, split, f"{len(kinds):03d}", kinds)
    for config, names in before.items():
        assert len(names) == 10
        assert categories_of(config) == open_dataset(config).categories == names


def test_chosen_names_need_no_data_and_other_data_sets_do(tmp_path):
    root = tmp_path / "nowhere"
    chosen = FolderConfig(name="mvtec3d", root=root, categories=("foam", "rope"))
    assert categories_of(chosen) == ("foam", "rope")
    with pytest.raises(DataError, match="does not exist"):
        categories_of(FolderConfig(name="mvtec", root=root))


def test_jobs_suit_the_device():
    assert default_jobs("cpu") >= 1
