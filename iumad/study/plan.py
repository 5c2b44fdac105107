"""What of a study is done, and how long the rest may take; reads no image and needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig
from iumad.data import AbsentData, Dataset, data_of
from iumad.data.published import published_counts
from iumad.study.provenance import read_provenance
from iumad.study.published import Published, read_published
from iumad.study.steps import Step, steps_of


@dataclass(frozen=True)
class Speed:
    """Seconds an image, in training and in test (`iumad.study.efficiency.measure_speeds`)."""

    training: float
    test: float


Speeds = Mapping[tuple[str, str], Speed]  # by method and modality


@dataclass(frozen=True)
class _Like:
    """What the time of a step depends on, beside the number of categories that it learns."""

    method: str
    modality: str
    increment: bool


def plan(
    study: StudyConfig, results: Path, speeds: Speeds | None = None
) -> tuple[pd.DataFrame, float | None]:
    """The runs of a study, what of each is done, and an estimate of the time that is left.

    Parameters
    ----------
    study, results : StudyConfig, Path
    speeds : Speeds, optional
        From which the time of steps is worked out where none of their like was made here or published.

    Returns
    -------
    DataFrame
        run_id, method, modality, setting, seed, steps, done (steps finished here), published (minutes that the
        published run took, where there is one), left (minutes, where known).
    float or None
        Seconds left in all, a step that several runs share counted once; None where one is not known. A step's
        time is what the same step took where it was published, else that of finished steps of the same method and
        modality for as many categories, made here or published.
    """
    published = read_published(results)
    data = data_of(study.data)
    steps = [(run, steps_of(run, results, data)) for run in study.runs()]
    known = _times(steps, published)
    images = image_counts(study, data)
    records: list[dict[str, object]] = []
    missing: dict[str, float] = {}
    for run, run_steps in steps:
        todo = [step for step in run_steps if not step.checkpoint.exists()]
        speed = (speeds or {}).get((run.method, run.modality))
        expected = {}
        for step in todo:
            seconds = _expected(run, step, published, known)
            if pd.isna(seconds) and speed is not None:
                seconds = _worked_out(run, step, images, speed)
            expected[step.key] = seconds
        missing |= expected
        records.append(
            {
                "run_id": run.run_id,
                "method": run.method,
                "modality": run.modality,
                "setting": run.setting,
                "seed": run.seed,
                "steps": len(run_steps),
                "done": len(run_steps) - len(todo),
                "published": _published_minutes(run, published),
                "left": _sum(expected) / 60,
            }
        )
    left = _sum(missing)
    return pd.DataFrame(records), None if pd.isna(left) else left


def needs(study: StudyConfig, seconds: float, size: int) -> list[str]:
    """What the features and inputs of all images take, in words.

    Parameters
    ----------
    study : StudyConfig
    seconds, size : float, int
        For one image of one modality: seconds for its features, bytes of features and image.
    """
    data = data_of(study.data)
    counts = image_counts(study, data).sum(axis=1, skipna=False)
    names = {name for modality in study.modalities for name in modality.split("+")}
    images = len(names) * counts.sum(skipna=False)
    if pd.isna(images):
        return [f"features: {seconds:.2g} s an image; how many there are is known with the data"]
    return [
        f"features: {images / len(names):.0f} samples of {len(names)} modalities, "
        f"{images * seconds / 3600:.2f} h, once for all runs; {images * size / 1e9:.1f} GB in the cache"
    ]


def image_counts(study: StudyConfig, data: Dataset | AbsentData) -> pd.DataFrame:
    """Images of each category (index) for training, validation and test: as on disk, else as published."""
    if isinstance(data, AbsentData):
        rows = published_counts(study.data.name).rename(columns={"published": "images"})
    else:
        rows = data.index.assign(images=1)
    table = rows.pivot_table("images", "category", "split", "sum")
    return table.reindex(index=data.categories, columns=["train", "validation", "test"])


def _worked_out(run: RunConfig, step: Step, images: pd.DataFrame, speed: Speed) -> float:
    """Seconds of a step; NaN where the number of images is not known."""
    epochs = run.increment.epochs if step.number else run.training.epochs
    train = images.loc[list(step.categories), "train"].sum(skipna=False)
    test = images.loc[list(step.seen), "test"].sum(skipna=False)
    return float(epochs * train * speed.training + test * speed.test)


def _times(
    steps: list[tuple[RunConfig, list[Step]]], published: Published
) -> dict[_Like, list[float]]:
    """Seconds a category of all steps that were made here, or else published."""
    here: dict[_Like, list[float]] = {}
    elsewhere: dict[_Like, list[float]] = {}
    for run, run_steps in steps:
        for step in run_steps:
            if step.checkpoint.exists():
                seconds = read_provenance(step.provenance).duration_s
                here.setdefault(_like(run, step), []).append(seconds / len(step.categories))
            elif step.key in published.steps.index:
                seconds = published.steps.loc[step.key, "seconds"]
                elsewhere.setdefault(_like(run, step), []).append(seconds / len(step.categories))
    return elsewhere | here


def _like(run: RunConfig, step: Step) -> _Like:
    return _Like(run.method, run.modality, step.number > 0)


def _expected(
    run: RunConfig, step: Step, published: Published, known: dict[_Like, list[float]]
) -> float:
    """Seconds for a step; NaN where nothing is known of it."""
    alike = known.get(_like(run, step))
    if step.key in published.steps.index and pd.notna(published.steps.loc[step.key, "seconds"]):
        return float(published.steps.loc[step.key, "seconds"])
    return float(pd.Series(alike).median() * len(step.categories)) if alike else float("nan")


def _published_minutes(run: RunConfig, published: Published) -> float:
    if run.run_id not in published.runs.index:
        return float("nan")
    keys = [key for key in published.runs.loc[run.run_id, "steps"] if key in published.steps.index]
    return float(published.steps.loc[keys, "seconds"].sum(skipna=False)) / 60


def _sum(seconds: dict[str, float]) -> float:
    return float(pd.Series(seconds, dtype=float).sum(skipna=False))
