"""A grid on several processes: the rows of one process, files of a finished run, a clear first error."""

import json

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


def test_jobs_suit_the_device():
    assert default_jobs("cpu") >= 1
