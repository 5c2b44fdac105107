"""A whole grid of runs: what is done, how long the rest may take, and several runs at the same time."""

import multiprocessing
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partialmethod
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from iumad.config.schema import RunConfig, StudyConfig
from iumad.data import categories_of
from iumad.machine import usable_cores
from iumad.models.device import pick_device
from iumad.study.provenance import read_provenance
from iumad.study.runner import run_one
from iumad.study.steps import CHECKPOINT, is_trained, step_folder, steps_of


def plan(study: StudyConfig, folder: Path) -> tuple[pd.DataFrame, float | None]:
    """The grid's runs and an estimate of the time that is left; reads no image.

    Returns
    -------
    DataFrame
        run_id, method, modality, setting, seed, steps, done (steps finished), minutes (left, where known).
    float or None
        Seconds left in all. A step that other runs share counts once; a step's time is taken from finished steps
        of the same method and modality with as many categories (else any number); None where there is none.
    """
    finished, rows = [], []
    missing: dict[str, tuple] = {}
    names = categories_of(study.data)
    for run in study.runs():
        steps = steps_of(run, names)
        keys = []
        for step, categories in enumerate(steps):
            path = step_folder(folder, run, steps[: step + 1])
            what = (run.method, run.modality, step > 0, len(categories))
            if (path / CHECKPOINT).exists():
                finished.append((*what, read_provenance(path / "provenance.json").duration_s))
            else:
                missing.setdefault(path.name, what)
                keys.append(what)
        rows.append((run, len(steps), keys))
    times = pd.DataFrame(
        finished, columns=["method", "modality", "increment", "categories", "seconds"]
    )
    table = pd.DataFrame([_plan_row(run, n_steps, keys, times) for run, n_steps, keys in rows])
    left = [_expected(what, times) for what in missing.values()]
    known = [seconds for seconds in left if seconds is not None]
    return table, float(sum(known)) if len(known) == len(left) else None


def default_jobs(device: str) -> int:
    """Runs at the same time that suit a machine: one per core on CPU, one on an accelerator.

    Several runs of one thread each get more out of the cores than one run of several threads, because the layers
    are small (`benchmarks/bench_training.py`).
    """
    if pick_device(device).type != "cpu":
        return 1
    return usable_cores()


def run_parallel(study: StudyConfig, folder: Path, device: str, jobs: int) -> None:
    """Finish all runs with `jobs` processes; locks in the results folder keep them out of each other's way.

    The first run that fails stops those that have not begun; its error is raised. What one process is left to do
    is not done here.
    """
    runs = [run for run in study.runs() if not is_trained(run, folder)]
    jobs = min(jobs, len(runs))
    if jobs < 2:
        return
    context = multiprocessing.get_context("spawn")
    begin = (max(1, usable_cores() // jobs), context.Value("i", 0), context.RLock())
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin_worker, initargs=begin
    ) as pool:
        tasks = [pool.submit(run_one, run, folder, device) for run in runs]
        try:
            for task in tqdm(as_completed(tasks), total=len(tasks), desc="runs", unit="run"):
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_worker(threads: int, counter: Any, lock: Any) -> None:
    """Share the cores, give the worker's progress bars a line of their own, and end with the parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with counter.get_lock():
        counter.value += 1
        line = counter.value
    tqdm.set_lock(lock)
    interval = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file needs no more
    tqdm.__init__ = partialmethod(tqdm.__init__, position=line, leave=False, mininterval=interval)


def _end_with_parent() -> None:
    """Leave at once when the parent was killed: what is half done lies beside, and is resumed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _plan_row(run: RunConfig, steps: int, missing: list[tuple], times: pd.DataFrame) -> dict:
    left = [_expected(what, times) for what in missing]
    known = [seconds for seconds in left if seconds is not None]
    return {
        "run_id": run.run_id,
        "method": run.method,
        "modality": run.modality,
        "setting": run.setting,
        "seed": run.seed,
        "steps": steps,
        "done": steps - len(missing),
        "minutes": sum(known) / 60 if len(known) == len(left) else float("nan"),
    }


def _expected(what: tuple, times: pd.DataFrame) -> float | None:
    """Seconds for a step like `what`, scaled by its number of categories."""
    method, modality, increment, categories = what
    alike = times[
        (times["method"] == method)
        & (times["modality"] == modality)
        & (times["increment"] == increment)
    ]
    if alike.empty:
        return None
    return float((alike["seconds"] / alike["categories"]).median() * categories)
