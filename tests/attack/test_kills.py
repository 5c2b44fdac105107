"""Runs killed at random moments, again and again: the rows of an undisturbed run, and nothing is left over."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import yaml
from filelock import FileLock

from attack.tally import Area, require_message
from iumad.study.load import load_rows, plan, progress
from iumad.study.steps import steps_of

AREA = Area("kills")
KILLS = int(os.environ.get("IUMAD_KILLS", "3"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CHANGES = {"methods": {"ib-iumad": {}, "simplenet": {}}, "training": {"epochs": 4}}
STUDY = tiny.study(**CHANGES)


class Runner:
    """Runs the study in copies of a process that has run it once."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self.process, self.params = process, folder / "tiny.yaml"
        self.params.write_text(yaml.safe_dump(tiny.params(**CHANGES)))
        assert self.run(folder / "results", 1)["code"] == 0
        self.undisturbed = files(folder / "results")
        assert len(self.undisturbed) == 8  # rows and log of two steps of two methods

    def run(self, results: Path, jobs: int, which: int | None = None, moment: float = 0.0) -> dict:
        """What came of `iumad run`, with a signal after a while."""
        argv = ["iumad", "run", str(self.params), "--results", str(results), "--device", "cpu"]
        order = {"argv": [*argv, "-j", str(jobs)], "signal": which, "moment": moment}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Iterator[Runner]:
    command = [sys.executable, str(Path(__file__).with_name("kills.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        yield Runner(process, tmp_path_factory.mktemp("undisturbed"))
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_kills_at_random_moments(runner, tmp_path, jobs):
    chance, kills, results = random.Random(jobs), 0, tmp_path / "results"

    def finish() -> float:
        with AREA.attempt(f"the end of a study that was killed with -j {jobs}"):
            outcome = runner.run(results, jobs)
            assert outcome["code"] == 0, outcome["told"]
            assert files(results) == runner.undisturbed
        shutil.rmtree(results)
        return outcome["seconds"]

    seconds = finish()
    while kills < KILLS:
        which, moment = chance.choice(SIGNALS), chance.uniform(0, seconds)
        with AREA.attempt(f"{which.name} after {moment:.2f} s with -j {jobs}"):
            ended = runner.run(results, jobs, which, moment)
            if not ended["killed"]:
                assert ended["code"] == 0, ended["told"]
            elif which == signal.SIGKILL:
                assert ended["code"] in (-which, 0)
            elif ended["code"] != 0:  # 0: it ended by itself just then
                assert ended["code"] == 128 + which, ended["told"]
                require_message(ended["told"], "go on with: iumad run")
            kills += ended["killed"]
            print(f"{kills}: {which.name} after {moment:.1f} of {seconds:.1f} s: {ended}")
            plan(STUDY, results)
            load_rows(STUDY, results)
        if progress(STUDY, results)["finished"].all():  # from the start again
            finish()
    finish()


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_waits_for_another_can_be_interrupted(runner, tmp_path, which):
    with contextlib.ExitStack() as locks, AREA.attempt(f"{which.name} while waiting"):
        for run in STUDY.runs():
            step = steps_of(run, tmp_path)[0]
            step.folder.mkdir(parents=True)
            locks.enter_context(FileLock(step.lock))
        ended = runner.run(tmp_path, 1, which, 10.0)
        assert ended["killed"] and ended["code"] == 128 + which
        require_message(ended["told"], "0 of 2 runs are finished", "go on with: iumad run")


def files(results: Path) -> dict[str, bytes]:
    """Rows and logs of all steps; there is nothing half done beside them."""
    left = [path for path in results.rglob("*") if path.name in ("partial.pt", "unfinished.json")]
    left += results.rglob(".*.tmp")
    assert not left
    tables = (*results.glob("steps/*/rows-*.csv"), *results.glob("steps/*/log.csv"))
    return {str(path.relative_to(results)): path.read_bytes() for path in tables}
