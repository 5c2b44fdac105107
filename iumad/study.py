"""Run or load runs: the rows and anomaly maps of a study.

What is finished lies in the results folder by the hash of what made it (`iumad.workplace`) and is loaded; what is
missing is trained.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32

from iumad import results
from iumad.config import RunConfig, StudyConfig
from iumad.data import categories_of
from iumad.evaluate import anomaly_maps
from iumad.evaluation_details import Scored
from iumad.finished import step_folder, steps_of, with_run_columns
from iumad.metrics import image_scores
from iumad.workplace import CHECKPOINT, Workplace

RESULTS = Path("results")


def run_study(
    study: StudyConfig, folder: str | Path = RESULTS, device: str = "auto"
) -> pd.DataFrame:
    """Rows of all runs of a study; what is not finished yet is trained.

    Parameters
    ----------
    study : StudyConfig
    folder : path
        Results folder.
    device : "auto", "cpu", "cuda", "cuda:1", ...

    Returns
    -------
    DataFrame
        One row per number, as `iumad.results.ROW_SCHEMA`.
    """
    runs = study.runs()
    tables = [
        run_one(run, folder, device, f"run {i + 1}/{len(runs)} ") for i, run in enumerate(runs)
    ]
    return results.validate_rows(pd.concat(tables, ignore_index=True))


def run_one(
    run: RunConfig, folder: str | Path = RESULTS, device: str = "auto", label: str = ""
) -> pd.DataFrame:
    """Rows of one run, all steps; see `run_study`."""
    workplace = Workplace(run, Path(folder), device)
    tables = []
    for step in range(len(workplace.steps)):
        rows = workplace.rows(step, label)
        tables.append(rows.assign(step=step))
    rows = pd.concat(tables, ignore_index=True)
    return with_run_columns(rows, run)[list(results.ROW_SCHEMA.columns)]


def score_samples(
    run: RunConfig, sample_ids: Sequence[str], folder: str | Path = RESULTS, step: int = -1
) -> Float32[np.ndarray, "n size size"]:
    """Anomaly maps of samples by the model of a run after a step (default: the last), trained if need be."""
    workplace = Workplace(run, Path(folder), "auto")
    step = range(len(workplace.steps))[step]
    workplace.rows(step, "")
    return anomaly_maps(workplace.detector(step), workplace.store, sample_ids)


def score_categories(run: RunConfig, folder: str | Path = RESULTS) -> Iterator[Scored]:
    """Yield the test images of each category scored by a run's last model, trained if need be."""
    workplace = Workplace(run, Path(folder), "auto")
    last, index = len(workplace.steps) - 1, workplace.dataset.index
    workplace.rows(last, "")
    detector = workplace.detector(last)
    for category in workplace.dataset.categories:
        chosen = (index["category"] == category) & (index["split"] == "test")
        test = index[chosen].reset_index(drop=True)
        ids = test["sample_id"].tolist()
        maps = anomaly_maps(detector, workplace.store, ids)
        scores = image_scores(maps, run.evaluation.image_score, run.evaluation.pool)
        yield Scored(category, test, maps, workplace.store.masks(ids), scores)


def is_trained(run: RunConfig, folder: str | Path = RESULTS) -> bool:
    """Whether the model after the run's last step exists."""
    steps = steps_of(run, categories_of(run.data))
    return (step_folder(Path(folder), run, steps) / CHECKPOINT).exists()
