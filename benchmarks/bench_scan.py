"""Time of the selective scan: the compiled CPU backend beside what plain torch can do.

    python benchmarks/bench_scan.py [--lengths 16 49] [--threads 1 2] [--repeats 15]

Candidates take turns within each repeat, so that other load on the machine hits all of them, and
the ratios of the medians say more than the milliseconds. Slow candidates get fewer repeats. "CPU ms"
is processor time, summed over threads; beside other load it is the fairer measure on one thread.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from iumad.models.scan import selective_scan

BATCH, DIM, STATE = 8, 256, 16
PLAIN_LOOPS = ("reference loop", "time-first loop", "loop as in mamba-ssm's reference")
SECONDS_PER_CANDIDATE = 6.0
Inputs = tuple[Tensor, ...]  # u, delta, A, B, C


def expand(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Decay exp(Δ A) and input Δ B u of every step, time × batch × dim × state."""
    delta, u, B = delta.permute(2, 0, 1), u.permute(2, 0, 1), B.permute(2, 0, 1)
    return torch.exp(delta[..., None] * A), (delta * u)[..., None] * B[:, :, None]


def read_out(h: Tensor, C: Tensor) -> Tensor:
    """y_t = <C_t, h_t> from h, time × batch × dim × state."""
    return torch.matmul(h, C.permute(2, 0, 1)[..., None])[..., 0].permute(1, 2, 0)


def time_first_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Best plain loop we know: all but the recurrence outside, one fused operation a step.

    `unbind` matters: its backward stacks once, that of indexing fills a whole tensor every step.
    """
    decays, inputs = expand(u, delta, A, B)
    h = torch.zeros_like(inputs[0])
    states = []
    for decay, x in zip(decays.unbind(), inputs.unbind(), strict=True):
        h = torch.addcmul(x, decay, h)
        states.append(h)
    return read_out(torch.stack(states), C)


def loop_as_in_mamba_ssm(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Own wording of the algorithm of `selective_scan_ref`: batch first, indexed by step."""
    decays = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    h = u.new_zeros(BATCH, DIM, STATE)
    y = []
    for t in range(u.shape[2]):
        h = decays[:, :, t] * h + inputs[:, :, t]
        y.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return torch.stack(y, dim=2)


def associative_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    from torch._higher_order_ops.associative_scan import associative_scan as scan

    def combine(early: Inputs, late: Inputs) -> Inputs:
        return early[0] * late[0], early[1] * late[0] + late[1]

    pairs = expand(u, delta, A, B)
    return read_out(scan(combine, pairs, dim=0, combine_mode="generic")[1], C)


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    from mambapy.pscan import pscan

    decays, inputs = (x.transpose(0, 1) for x in expand(u, delta, A, B))
    return read_out(pscan(decays, inputs).transpose(0, 1), C)


CANDIDATES: dict[str, Callable[..., Tensor]] = {
    "reference loop": lambda *x: selective_scan(*x, backend="reference"),
    "time-first loop": time_first_loop,
    "loop as in mamba-ssm's reference": loop_as_in_mamba_ssm,
    "torch associative_scan": associative_scan,
    "mambapy pscan": mambapy_scan,
    "vectorised": lambda *x: selective_scan(*x, backend="vectorised"),
    "cpu backend": lambda *x: selective_scan(*x, backend="cpu"),
}


def draw(length: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    delta = 10 ** (torch.rand(BATCH, DIM, length, generator=generator) * 2 - 3)  # 1e-3 to 1e-1
    A = -torch.arange(1.0, STATE + 1).repeat(DIM, 1)
    B, C = normal(BATCH, STATE, length), normal(BATCH, STATE, length)
    return normal(BATCH, DIM, length), delta, A, B, C


def run(scan: Callable[..., Tensor], inputs: Inputs, grad: Tensor | None) -> list[Tensor]:
    """Output and, if `grad` is given, the gradients of all inputs."""
    if grad is None:
        with torch.no_grad():
            return [scan(*inputs)]
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = scan(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def copy_of_the_traffic(inputs: Inputs, grad: Tensor | None) -> Callable[[], object]:
    """Move as many bytes as must be read and written at least: the bound by memory bandwidth."""
    u, delta, _, B, C = inputs
    read, written = [u, delta, B, C], [u]
    if grad is not None:
        read, written = [*read, *read, grad], [*written, *read]
    number = sum(x.numel() for x in (*read, *written)) // 2  # a copy reads and writes
    source, target = torch.ones(number), torch.empty(number)
    return lambda: target.copy_(source)


def measure(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each job, by the clock and of processor time; the jobs take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}

    def once(name: str) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        jobs[name]()
        times[name].append((time.perf_counter() - clock, time.process_time() - processor))

    for turn in range(repeats):
        for name in jobs:
            # the first turn warms up
            if turn < 2 or sum(t[0] for t in times[name]) < SECONDS_PER_CANDIDATE:
                once(name)
    return {
        name: (1e3 * statistics.median(c for c, _ in t), 1e3 * statistics.median(p for _, p in t))
        for name, t in ((name, t[1:]) for name, t in times.items())
    }


def worst_error(got: list[Tensor], want: list[Tensor]) -> float:
    pairs = zip(got, want, strict=True)
    return max(float((g - w).abs().max() / w.abs().max()) for g, w in pairs)


def compare(length: int, backward: bool, repeats: int) -> None:
    inputs = draw(length)
    grad = torch.ones_like(inputs[0]) if backward else None
    exact = run(
        CANDIDATES["reference loop"],
        tuple(x.double() for x in inputs),
        None if grad is None else grad.double(),
    )
    jobs: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    for name, scan in CANDIDATES.items():
        if name == "mambapy pscan" and importlib.util.find_spec("mambapy") is None:
            print("   (mambapy is not installed: left out)")
            continue
        errors[name] = worst_error(run(scan, inputs, grad), exact)
        jobs[name] = lambda scan=scan: run(scan, inputs, grad)
    jobs["copy of the least traffic"] = copy_of_the_traffic(inputs, grad)

    measured = measure(jobs, repeats)
    best = min(PLAIN_LOOPS, key=lambda name: measured[name][0])
    print(f"   {'candidate':34}{'ms':>9}{'CPU ms':>9}{'speed-up':>10}{'(CPU)':>8}{'error':>10}")
    for name, (clock, processor) in measured.items():
        speed_up, of_processor = measured[best][0] / clock, measured[best][1] / processor
        error = f"{errors[name]:10.1e}" if name in errors else ""
        numbers = f"{clock:9.2f}{processor:9.2f}{speed_up:10.2f}{of_processor:8.2f}"
        print(f"   {name:34}{numbers}{error}", flush=True)
    print(f"   speed-up over the best plain loop: {best}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 49])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    versions = f"torch {torch.__version__}, numpy {np.__version__}"
    print(f"batch {BATCH}, dim {DIM}, state {STATE}, float32; {versions}\n")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for length in arguments.lengths:
            for backward in (False, True):
                what = "forward + backward" if backward else "forward"
                print(f"{what}, length {length}, threads {threads}")
                compare(length, backward, arguments.repeats)


if __name__ == "__main__":
    main()
