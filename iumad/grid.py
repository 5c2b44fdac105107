"""A whole grid of runs: what is done, how long the rest may take, and several runs at the same time."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from iumad.config import RunConfig, StudyConfig
from iumad.provenance import read_provenance
from iumad.study import run_one
from iumad.workplace import CHECKPOINT, Workplace


def plan(study: StudyConfig, folder: Path) -> tuple[pd.DataFrame, float | None]:
    """The grid's runs and an estimate of the time that is left.

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
    for run in study.runs():
        workplace = Workplace(run, folder, "cpu")
        keys = []
        for step, categories in enumerate(workplace.steps):
            path = workplace.folder(step)
            what = (run.method, run.modality, step > 0, len(categories))
            if (path / CHECKPOINT).exists():
                finished.append((*what, read_provenance(path / "provenance.json").duration_s))
            else:
                missing.setdefault(path.name, what)
                keys.append(what)
        rows.append((run, len(workplace.steps), keys))
    times = pd.DataFrame(
        finished, columns=["method", "modality", "increment", "categories", "seconds"]
    )
    table = pd.DataFrame([_plan_row(run, steps, keys, times) for run, steps, keys in rows])
    left = [_expected(what, times) for what in missing.values()]
    known = [seconds for seconds in left if seconds is not None]
    return table, float(sum(known)) if len(known) == len(left) else None


def run_parallel(study: StudyConfig, folder: Path, device: str, jobs: int) -> None:
    """Finish all runs with `jobs` processes; locks in the results folder keep them out of each other's way."""
    threads = (
        max(1, len(os.sched_getaffinity(0)) // jobs) if hasattr(os, "sched_getaffinity") else 1
    )
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_quiet, initargs=(threads,)
    ) as pool:
        tasks = [pool.submit(run_one, run, folder, device) for run in study.runs()]
        for task in tqdm(as_completed(tasks), total=len(tasks), desc="runs", unit="run"):
            task.result()


def _quiet(threads: int) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # the bars of several processes would overwrite each other
    torch.set_num_threads(threads)


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
