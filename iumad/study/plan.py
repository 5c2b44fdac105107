"""What of a study is done, and how long the rest may take; reads no image and needs no torch."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig
from iumad.data import data_of
from iumad.study.provenance import read_provenance
from iumad.study.published import Published, read_published
from iumad.study.steps import Step, steps_of


@dataclass(frozen=True)
class _Like:
    """What the time of a step depends on, beside the number of categories that it learns."""

    method: str
    modality: str
    increment: bool


def plan(study: StudyConfig, results: Path) -> tuple[pd.DataFrame, float | None]:
    """The runs of a study, what of each is done, and an estimate of the time that is left.

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
    records: list[dict[str, object]] = []
    missing: dict[str, float] = {}
    for run, run_steps in steps:
        todo = [step for step in run_steps if not step.checkpoint.exists()]
        expected = {step.key: _expected(run, step, published, known) for step in todo}
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
