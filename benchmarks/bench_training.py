"""Time of a training step and of inference: python benchmarks/bench_training.py [--profile].

Inputs are random (cached features stand for the frozen backbone, which training does not run). Repeats of all
cases are interleaved; shown are medians. Processor time, of all threads together, is less disturbed than elapsed
time by other programs on the machine: divided by the threads it bounds what an idle machine would need.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from iumad.config.files import load_params
from iumad.config.schema import RunConfig, StudyConfig
from iumad.features.cache import Batch
from iumad.models.base import InputSpec
from iumad.models.detector import ReconstructionDetector
from iumad.study.steps import peak_memory_mb
from iumad.training.loop import StepPlan, autocast, make_optimizer

PARAMS = Path(__file__).resolve().parents[1] / "params"
CHANNELS = {"tf_efficientnet_b4": 272, "tf_efficientnet_lite0": 192}  # of levels 0 ... 3


class Case:
    """A detector, its optimizer, and one random batch."""

    def __init__(self, run: RunConfig, batch_size: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.run, self.size = run, batch_size
        channels, grid = CHANNELS[run.features.backbone], run.features.grid
        side = run.data.image_size
        spec = InputSpec(run.modalities, channels, grid, side)
        self.detector = ReconstructionDetector(run.model, spec, 10).to(device)
        self.optimizer = make_optimizer(self.detector, StepPlan.of(run, 0))
        self.batch = Batch(
            {m: torch.randn(batch_size, channels, grid, grid) for m in run.modalities},
            {m: torch.rand(batch_size, 3, side, side) for m in run.modalities},
            torch.arange(batch_size) % 10,
        ).to(device)

    def train(self) -> None:
        self.detector.train()
        with autocast(self.batch.category.device, self.run.training.precision):
            terms = self.detector.losses(self.batch, base=True)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.detector.parameters(), self.run.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def infer(self) -> None:
        self.detector.eval().anomaly_maps(self.batch)


def full_size(method: str, changes: list[str]) -> RunConfig:
    study = load_params(PARAMS / "mvtec3d.yaml", assignments=changes)
    chosen = study.select(methods=[method], modalities=["rgb+depth"], settings=["10-0"], seeds=[0])
    return chosen.runs()[0]


def small(study: StudyConfig, method: str) -> RunConfig:
    chosen = study.select(methods=[method], modalities=["rgb+depth"], seeds=study.seeds[:1])
    return chosen.runs()[0]


def timed(call: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Elapsed and processor seconds."""
    start = time.perf_counter(), time.process_time()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def operators(case: Case, rows: int) -> str:
    """Where the processor time of a training step goes."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        case.train()
    return profiler.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=48
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--methods", nargs="+", default=["ib-iumad", "iuf", "plain"])
    parser.add_argument("--set", nargs="*", default=[], help="changes of the full size, KEY=VALUE")
    parser.add_argument(
        "--small", nargs="*", default=[], help="changes of mini.yaml, e.g. training.batch_size=16"
    )
    parser.add_argument("--no-full", action="store_true", help="leave the full size out")
    parser.add_argument("--profile", action="store_true", help="operators of the first case's step")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    cases = {
        f"full {name}": Case(full_size(name, arguments.set), arguments.batch, device)
        for name in arguments.methods
        if not arguments.no_full
    }
    study = load_params(PARAMS / "mini.yaml", assignments=arguments.small)
    for name in arguments.methods:
        if name in study.methods:
            run = small(study, name)
            cases[f"mini {name}"] = Case(run, run.training.batch_size, device)
    calls = {
        (name, kind): getattr(case, kind)
        for name, case in cases.items()
        for kind in ("train", "infer")
    }
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in calls}
    for repeat in range(arguments.repeats + 1):
        for key, call in calls.items():
            measured = timed(call, device)
            if repeat:  # the first call compiles the scan and fills caches
                times[key].append(measured)
    print(f"{arguments.threads} threads, load {os.getloadavg()[0]:.1f}, seconds per image")
    print("case".ljust(16), "pass".ljust(6), "batch", " elapsed", "processor", " / threads")
    for (name, kind), values in times.items():
        size = cases[name].size
        elapsed, busy = (statistics.median(column) / size for column in zip(*values, strict=True))
        print(
            f"{name:16} {kind:6} {size:5} {elapsed:8.4f} {busy:9.4f} {busy / arguments.threads:10.4f}"
        )
    print(f"peak memory {peak_memory_mb()} MB")
    if arguments.profile:
        print(operators(next(iter(cases.values())), rows=25))


if __name__ == "__main__":
    main()
