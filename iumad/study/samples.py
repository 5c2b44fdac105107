"""Data of the explorers that need a model: anomaly maps, and what perturbed images do to finished models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig
from iumad.config.sections import PerturbConfig
from iumad.data import open_dataset
from iumad.data.perturb import PerturbedDataset
from iumad.data.sample import Dataset
from iumad.errors import DataError
from iumad.evaluation.details import Scored
from iumad.evaluation.evaluate import evaluate
from iumad.features.cache import FeatureStore
from iumad.report.explorers import (
    KINDS_SHOWN,
    MAP,
    SHOWN_METRICS,
    map_colours,
    picture_data,
    png,
    prepared_sample,
    quantised,
)
from iumad.report.style import METRICS
from iumad.study.runner import RunWork, load_detector, score_categories
from iumad.study.steps import is_trained, steps_of

STRENGTHS = {"redundant noise": (0.0, 0.1, 0.2, 0.4), "spurious background": (0.0, 0.25, 0.5, 1.0)}
FIELDS = {"redundant noise": "redundant", "spurious background": "spurious"}
CATEGORIES_PERTURBED = 2  # the first ones; each strength has to go through the backbone again


def finished_runs(study: StudyConfig, folder: str | Path) -> list[RunConfig]:
    """Runs of the first seed whose last model exists."""
    return [run for run in study.select(seeds=study.seeds[:1]).runs() if is_trained(run, folder)]


def run_name(run: RunConfig) -> str:
    """Short name of a run among others of one setting and seed."""
    return f"{run.method}, {run.modality}"


def pick_samples(index: pd.DataFrame, category: str, n: int = KINDS_SHOWN) -> pd.DataFrame:
    """The first good test image of a category, then the first of n - 1 defects, others for each category."""
    test = index[(index["category"] == category) & (index["split"] == "test")]
    good, defects = test[test["label"] == 0], test[test["label"] == 1].drop_duplicates("defect")
    start = list(index["category"].unique()).index(category)
    turns = [(start + i) % len(defects) for i in range(min(n - 1, len(defects)))]
    return pd.concat([good.head(1), defects.iloc[turns]])


def maps_data(study: StudyConfig, folder: str | Path) -> dict[str, Any] | None:
    """Data of the explorer of anomaly maps, from the finished runs of one setting; None without any."""
    finished = finished_runs(study, folder)
    if not finished:
        return None
    dataset = open_dataset(study.data)
    picked = {name: pick_samples(dataset.index, name) for name in dataset.categories}
    categories = [
        {
            "name": name,
            "samples": [
                picture_data(prepared_sample(dataset, study.data, row.sample_id), row.defect)
                | {"label": int(row.label)}
                for row in rows.itertuples()
            ],
        }
        for name, rows in picked.items()
    ]
    runs = [
        {
            "name": run_name(run),
            "categories": [
                _scored(found, picked[found.category]) for found in score_categories(run, folder)
            ],
        }
        for run in finished
    ]
    return {"colours": map_colours(), "categories": categories, "runs": runs}


def _scored(found: Scored, picked: pd.DataFrame) -> dict[str, Any]:
    """Scores of all test images of a category, and the maps of the picked ones."""
    test, maps, scores = found.test, found.maps, found.scores
    low, high = (float(value) for value in np.percentile(maps, [1, 99.9]))
    ids = test["sample_id"].tolist()
    places = [ids.index(sample_id) for sample_id in picked["sample_id"]]
    defective = test["label"].to_numpy() == 1
    return {
        "low": low,
        "high": high,
        "good": _short(scores[~defective]),
        "defect": _short(scores[defective]),
        "samples": [
            {
                "map": png(quantised(maps[place], low, high), MAP),
                "score": _short(scores[place : place + 1])[0],
            }
            for place in places
        ],
    }


def perturbation_data(study: StudyConfig, folder: str | Path) -> dict[str, Any] | None:
    """Data of the explorer of perturbations: test images perturbed, models as they were trained.

    A perturbation that the data set does not allow, such as another background where no object can be told from
    its own, is left out. None without any finished run.
    """
    finished = finished_runs(study, folder)
    if not finished:
        return None
    dataset = open_dataset(study.data)
    categories = dataset.categories[:CATEGORIES_PERTURBED]
    kinds = []
    for kind, strengths in STRENGTHS.items():
        datasets = [perturbed(dataset, kind, strength) for strength in strengths]
        try:
            samples = [_stronger(study, datasets, category) for category in categories]
        except DataError:
            continue
        runs = [
            {"name": run.method, "values": _effects(run, folder, datasets, categories)}
            for run in finished
        ]
        kinds.append({"name": kind, "strengths": list(strengths), "samples": samples, "runs": runs})
    metrics = [{"key": metric, "label": METRICS[metric]} for metric in SHOWN_METRICS]
    return {"kinds": kinds, "metrics": metrics}


def _stronger(study: StudyConfig, datasets: Sequence[Dataset], category: str) -> dict[str, Any]:
    """One defective sample of a category at each strength."""
    row = pick_samples(datasets[0].index, category, 2).iloc[-1]
    pictures = [
        picture_data(prepared_sample(each, study.data, row["sample_id"]), category)
        for each in datasets
    ]
    return {
        "title": f"{category}, {row['defect']}",
        "rgb": [each["rgb"] for each in pictures],
        "depth": [each["depth"] for each in pictures] if pictures[0]["depth"] else None,
    }


def perturbed(dataset: Dataset, kind: str, strength: float) -> Dataset:
    """The data set with a perturbation of its images; itself at strength 0."""
    if strength == 0:
        return dataset
    config = PerturbConfig.model_validate({FIELDS[kind]: strength})
    return PerturbedDataset(dataset, config, dataset.categories)


def _effects(
    run: RunConfig, folder: str | Path, datasets: Sequence[Dataset], categories: Sequence[str]
) -> dict[str, list[float | None]]:
    work = RunWork(run)
    detector = load_detector(work, steps_of(run, folder, work.dataset.categories)[-1])
    found: dict[str, list[float | None]] = {metric: [] for metric in SHOWN_METRICS}
    for dataset in datasets:
        store = FeatureStore(dataset, run, device=work.device)
        rows = evaluate(detector, store, categories, run.evaluation)
        for metric, value in rows.groupby("metric")["value"].mean().items():
            found[str(metric)].append(None if np.isnan(value) else round(100 * float(value), 2))
    return found


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
