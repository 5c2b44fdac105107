"""Runs killed at random moments, again and again: the rows of an undisturbed run, and nothing is left over."""

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
from iumad.study.plan import plan

from attack.tally import Area, require_message
from iumad.study.load import load_rows, progress

AREA = Area("kills")
KILLS = int(os.environ.get("IUMAD_KILLS", "3"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CHANGES = {"methods": {"ib-iumad": {}, "simplenet": {}}, "training": {"epochs": 4}}


@pytest.fixture(scope="module")
def starter() -> Iterator[subprocess.Popen]:
    """The process that runs commands and kills them."""
    command = [sys.executable, str(Path(__file__).with_name("kills.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_kills_at_random_moments(starter, tmp_path, jobs):
    params = tmp_path / "tiny.yaml"
    params.write_text(yaml.safe_dump(tiny.params(**CHANGES)))
    study, chance, kills = tiny.study(**CHANGES), random.Random(jobs), 0

    def run(results: Path, which: int | None = None, moment: float = 0.0) -> dict:
        argv = ["iumad", "run", str(params), "--results", str(results), "--device", "cpu"]
        order = {"argv": [*argv, "-j", str(jobs)], "signal": which, "moment": moment}
        print(json.dumps(order), file=starter.stdin, flush=True)
        return json.loads(starter.stdout.readline())

    def finish(results: Path) -> None:
        with AREA.attempt(f"the end of a study that was killed with -j {jobs}"):
            assert run(results)["code"] == 0
            assert files(results) == undisturbed

    warm = run(tmp_path / "warm")  # fills the cache of features
    assert warm["code"] == 0, warm["told"]
    outcome = run(tmp_path / "undisturbed")
    assert outcome["code"] == 0, outcome["told"]
    undisturbed, results = files(tmp_path / "undisturbed"), tmp_path / "results"
    assert len(undisturbed) == 8  # rows and log of two steps of two methods
    while kills < KILLS:
        which, moment = chance.choice(SIGNALS), chance.uniform(0, outcome["seconds"])
        with AREA.attempt(f"{which.name} after {moment:.2f} s with -j {jobs}"):
            ended = run(results, which, moment)
            if not ended["killed"]:
                assert ended["code"] == 0, ended["told"]
            elif which == signal.SIGKILL:
                assert ended["code"] in (-which, 0)
            elif ended["code"] != 0:  # 0: it ended by itself just then
                assert ended["code"] == 128 + which, ended["told"]
                require_message(ended["told"], "go on with: iumad run")
            kills += ended["killed"]
            print(f"{kills} {which.name} after {moment:.1f} s of {outcome['seconds']:.1f}", ended)
            plan(study, results)
            load_rows(study, results)
        if progress(study, results)["finished"].all():  # from the start again
            finish(results)
            shutil.rmtree(results)
    finish(results)


def files(results: Path) -> dict[str, bytes]:
    """Rows and logs of all steps; there is nothing half done beside them."""
    left = [path for path in results.rglob("*") if path.name in ("partial.pt", "unfinished.json")]
    left += results.rglob(".*.tmp")
    assert not left
    tables = (*results.glob("steps/*/rows-*.csv"), *results.glob("steps/*/log.csv"))
    return {str(path.relative_to(results)): path.read_bytes() for path in tables}
