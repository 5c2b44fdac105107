"""Training by several processes: shares of a batch, and a run under torchrun beside a single process."""

import os
import subprocess
import sys

import pytest
import tiny
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from iumad import distributed
from iumad.config import StudyConfig
from iumad.models.reconstruction import jitter
from iumad.study import run_one
from iumad.workplace import Workplace


def shares(total: int, processes: int) -> list[distributed.Share]:
    """What each of so many processes takes of a batch."""
    ids = [str(i) for i in range(total)]
    taken = []
    for rank in range(processes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "world_size", lambda: processes)
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            taken.append(distributed.share(ids))
    return taken


@given(st.integers(1, 30), st.integers(1, 8))
def test_shares_partition_a_batch_and_weigh_it_right(total, processes):
    taken = shares(total, processes)
    assert sum(share.weight for share in taken) == pytest.approx(processes)
    if total < processes:
        assert all(len(share.ids) == total and share.weight == 1 for share in taken)
        return
    assert [sample for share in taken for sample in share.ids] == [str(i) for i in range(total)]
    assert max(len(share.ids) for share in taken) - min(len(share.ids) for share in taken) <= 1
    losses = torch.arange(float(total))  # loss of each sample
    parts = [
        share.weight * losses[share.first : share.first + len(share.ids)].mean() for share in taken
    ]
    assert float(torch.stack(parts).mean()) == pytest.approx(float(losses.mean()))


def test_alone_everything_is_as_without_processes():
    assert distributed.share(["a", "b"]) == distributed.Share(["a", "b"], 0, 2, 1.0)
    assert (distributed.world_size(), distributed.rank(), distributed.is_first()) == (1, 0, True)
    assert distributed.agree(True) and not distributed.agree(False)
    assert distributed.average({"a": 0.1}) == {"a": 0.1}
    distributed.wait()


def test_a_share_gets_the_noise_of_its_place():
    features = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1))
    whole = jitter(features, 20.0, 1.0, torch.Generator().manual_seed(2))
    part = jitter(features[2:4], 20.0, 1.0, torch.Generator().manual_seed(2), first=2, total=5)
    assert torch.equal(part, whole[2:4])


def test_without_torchrun_no_group_is_made(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # of some other program
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with distributed.process_group("cpu"):
        assert distributed.world_size() == 1


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(tmp_path, monkeypatch):
    """UniAD has no batch norm: only rounding differs, which AdamW scales up where a gradient is almost zero."""
    monkeypatch.setenv("IUMAD_CACHE", str(tmp_path / "cache"))
    content = tiny.params(
        methods={"uniad": {}},
        training={"epochs": 4, "batch_size": 3, "accumulation": 2},
    )
    params = tmp_path / "two.yaml"
    params.write_text(yaml.safe_dump(content))
    torchrun(tmp_path, params)
    (run,) = StudyConfig.model_validate(content).runs()
    run_one(run, tmp_path / "one", "cpu")
    one, two = (Workplace(run, tmp_path / name, "cpu") for name in ("one", "two"))
    for step in range(2):
        first, second = (place.detector(step).state_dict() for place in (one, two))
        for name, value in first.items():
            if not name.endswith("key.bias"):  # its true gradient is zero
                torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-3, msg=name)
    log = (two.folder(0) / "log.csv").read_text().splitlines()[1:]
    losses = [float(line.split(",")[2]) for line in log]
    assert losses[-1] < losses[0]
    single = (one.folder(0) / "log.csv").read_text().splitlines()[1:]
    assert losses == pytest.approx([float(line.split(",")[2]) for line in single], rel=1e-4)


@pytest.mark.slow
def test_all_processes_end_with_the_same_weights(tmp_path, monkeypatch):
    """With batch norm, IUF's compression, and a last batch of fewer samples than processes."""
    monkeypatch.setenv("IUMAD_CACHE", str(tmp_path / "cache"))
    params = tmp_path / "two.yaml"
    content = tiny.params(methods={"ib-iumad": {}, "iuf": {}}, training={"batch_size": 5})
    params.write_text(yaml.safe_dump(content))
    torchrun(tmp_path, params, WEIGHTS)
    one, two = ((tmp_path / f"weights-{rank}").read_text().split() for rank in range(2))
    assert one == two
    assert len(set(one)) == 4  # a hash for each method and step


WEIGHTS = """
import hashlib, sys
from pathlib import Path
from iumad import distributed, study, train
from iumad.config import load_params

fit_step, digests = train.fit_step, []


def observed(detector, *arguments):
    log = fit_step(detector, *arguments)
    weights = b"".join(p.detach().numpy().tobytes() for p in detector.parameters())
    digests.append(hashlib.sha256(weights).hexdigest())
    return log


train.fit_step = observed
with distributed.process_group("cpu"):
    study.run_study(load_params(sys.argv[1]), Path(sys.argv[2]), "cpu")
    assert distributed.world_size() == 2
    Path(sys.argv[2]).with_name(f"weights-{distributed.rank()}").write_text(" ".join(digests))
"""


START = ("--standalone", "--nproc-per-node", "2")


def torchrun(folder, params, program: str = "") -> None:
    """Run `iumad run`, or a program given as text, in two processes."""
    if program:
        script = folder / "program.py"
        script.write_text(program)
        what = [str(script), str(params), str(folder / "two")]
    else:
        what = ["-m", "iumad", "run", str(params), "--results", str(folder / "two")]
        what += ["--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *START, *what],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
