"""Several runs at the same time, each in a process of its own with one thread.

The parent hands out runs and shows the progress; a worker makes one run (`iumad.study.runner.run_one`), tells how
far it is, and ends. So the memory of a run is its own, and a worker that is killed takes no other run with it.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from iumad.config.schema import RunConfig, StudyConfig
from iumad.errors import Interrupted, IumadError
from iumad.machine import usable_cores
from iumad.models.build import pick_device
from iumad.study.runner import InUseError, run_one, saved_text
from iumad.study.steps import is_evaluated, run_name


class WorkerError(IumadError):
    """A worker was killed, or failed for a reason that is not the user's."""


@dataclass
class _Worker:
    """A process that makes one run."""

    run: RunConfig
    process: Any
    messages: Connection
    line: int  # of its progress bar
    bar: tqdm | None = None


def default_jobs(device: str) -> int:
    """Runs at the same time that suit a machine: one per core on CPU, one on an accelerator.

    Several runs of one thread each get more out of the cores than one run of several threads, because the layers
    are small (`benchmarks/bench_training.py`).
    """
    if pick_device(device).type != "cpu":
        return 1
    return usable_cores()


def run_parallel(
    study: StudyConfig, results: Path, device: str, jobs: int, threads: int = 1
) -> None:
    """Finish all runs of a study, `jobs` at a time; with one job, or one run left, nothing is done here.

    A run of which a step is being made elsewhere is begun later. The first run that fails stops the others; its
    error is raised.

    Raises
    ------
    WorkerError
        A worker was killed, as by a machine without memory; the text names the run.
    Interrupted
        Ctrl-C; the text says what is saved.
    """
    waiting = [run for run in study.runs() if not is_evaluated(run, results)]
    jobs = min(jobs, len(waiting))  # who shares a card shares it with no more than there are
    if jobs < 2:
        return
    context = _context(device)
    how = (str(results), device, threads, jobs)
    working: list[_Worker] = []
    held_up: list[RunConfig] = []  # by another worker or another process
    begun, quiet = time.monotonic(), not sys.stderr.isatty()  # a log file gets a line for each run
    try:
        count, made = len(waiting), 0
        with tqdm(total=count, desc="runs", unit="run", disable=quiet) as finished:
            while waiting or working or held_up:
                if held_up and not waiting and not working:
                    waiting, held_up = held_up, []
                    patient = True  # nobody here holds them up: wait for the other process
                else:
                    patient = False
                while waiting and len(working) < jobs:
                    line = min(set(range(1, jobs + 1)) - {worker.line for worker in working})
                    working.append(_start(context, waiting.pop(0), how, patient, line))
                for worker in _ready(working):
                    ended = _listen(worker, quiet)
                    if ended is None:
                        continue
                    working.remove(worker)
                    if ended == "in use":
                        held_up.append(worker.run)
                        continue
                    finished.update()
                    made += 1
                    if quiet:
                        left = (time.monotonic() - begun) / made * (count - made) / 60
                        text = f"{made} of {count} runs: {run_name(worker.run)}"
                        print(f"{text}; {left:.0f} min left", file=sys.stderr, flush=True)
                    waiting, held_up = waiting + held_up, []
    except (KeyboardInterrupt, Interrupted) as stop:
        number = getattr(stop, "signal", int(signal.SIGINT))
        raise Interrupted(saved_text(study, results), number) from stop
    finally:
        for worker in working:
            worker.process.terminate()
        for worker in working:
            worker.process.join()
            if worker.bar:
                worker.bar.close()


def _context(device: str) -> Any:
    """How processes are started: copies of one that has imported everything, where the system can do that.

    A copy could not use a card that the copied process has touched, so there every process begins anew.
    """
    if sys.platform != "linux" or pick_device(device).type == "cuda":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["iumad.study.runner", "timm"])  # timm is imported late
    return context


def _start(
    context: Any, run: RunConfig, how: tuple[str, str, int, int], patient: bool, line: int
) -> _Worker:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, run, how, patient), daemon=True)
    process.start()
    theirs.close()  # so that the end of the worker is the end of the pipe
    return _Worker(run, process, ours, line)


def _ready(working: list[_Worker]) -> list[_Worker]:
    """Workers that have said something, or ended."""
    ready = wait([worker.messages for worker in working])
    return [worker for worker in working if worker.messages in ready]


def _listen(worker: _Worker, quiet: bool) -> str | None:
    """Take one message of a worker; returns "done" or "in use" once it has ended, raises its error."""
    try:
        what, value = worker.messages.recv()
    except EOFError:
        what, value = "killed", None
    if what == "bar":
        title, total = value
        if worker.bar:
            worker.bar.close()
        worker.bar = tqdm(
            desc=title,
            total=total,
            unit="img",
            position=worker.line,
            leave=False,
            disable=quiet,
        )
        return None
    if what == "advance" and worker.bar:
        worker.bar.update(value)
        return None
    worker.process.join()
    if worker.bar:
        worker.bar.close()
        worker.bar = None
    if what == "error":
        raise value
    if what == "killed":
        code = worker.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        hint = "; if memory ran out, use fewer jobs (-j)" if code == -signal.SIGKILL else ""
        raise WorkerError(
            f"the process of {run_name(worker.run)} {how}{hint}; what it saved is kept, and the same command "
            "goes on"
        )
    return what


def _work(
    messages: Connection, run: RunConfig, how: tuple[str, str, int, int], patient: bool
) -> None:
    """Make one run and tell the parent; what is told are pairs of a word and a value."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    results, device, threads, jobs = how

    @contextmanager
    def tell_bar(title: str, total: int) -> Iterator[Callable[[int], object]]:
        messages.send(("bar", (title, total)))
        yield lambda images: messages.send(("advance", images))

    try:
        share_card(device, jobs)
        run_one(run, results, device, threads=threads, show=tell_bar, wait=patient)
        messages.send(("done", None))
    except InUseError:
        messages.send(("in use", None))
    except (IumadError, OSError) as error:
        messages.send(("error", error))
    except Exception as error:  # tell it, then end with the traceback
        reason = f"{run_name(run)}: {type(error).__name__}: {error}"
        messages.send(("error", WorkerError(reason)))
        raise


def share_card(device: str, jobs: int) -> None:
    """Leave other processes their part of a card's memory: who needs more fails alone, and does not take theirs.

    A tenth is left for what CUDA itself keeps for each process. Kernels that Triton and torch.compile have made
    are shared through their folders on disk.
    """
    card = pick_device(device)
    if card.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(0.9 / jobs, card)


def _end_with_parent() -> None:
    """Leave at once when the parent was killed: what is half done lies beside, and is resumed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
