"""A grid on several processes: the rows of one process, files of a finished run, a clear first error."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
import tiny

from iumad.errors import ConfigError
from iumad.grid import default_jobs, run_parallel
from iumad.study import is_trained, run_study


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
from iumad import grid

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


def test_jobs_suit_the_device():
    assert default_jobs("cpu") >= 1
