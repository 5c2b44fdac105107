"""The smallest study that trains: three MiniCandies categories of 32 pixels and random backbone weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from iumad.config.schema import RunConfig, StudyConfig
from iumad.data import open_dataset
from iumad.evaluation.evaluate import anomaly_maps
from iumad.features.cache import Batch, FeatureStore
from iumad.models.base import InputSpec
from iumad.models.detector import ReconstructionDetector
from iumad.study.runner import RunWork, computing_threads, trained_detector
from iumad.study.steps import steps_of

CATEGORIES = ("chocolate", "pretzel", "madeleine")
CHANNELS, GRID, SIZE = 6, 4, 32  # of the batches and detectors below, which need no backbone
MODEL = {"dim": 16, "heads": 2, "layers": 2, "d_state": 4}
FINISHED = {"methods": {"iuf": {}, "ib-iumad": {}, "bank": {}}}


@dataclass(frozen=True)
class Finished:
    """A study that has been run (fixture `finished`); its files are not to be changed."""

    params: Path
    study: StudyConfig
    results: Path
    rows: pd.DataFrame


def params(**changes) -> dict:
    """Content of a params file; each keyword replaces or, for a section, changes a top-level key."""
    content = {
        "profile": "tiny",
        "data": {
            "name": "minicandies",
            "categories": list(CATEGORIES),
            "image_size": SIZE,
            "n_train": 3,
            "n_validation": 1,
            "n_test_good": 1,
            "n_test_defect": 2,
        },
        "features": {"weights": "random", "grid": GRID, "levels": [1, 2]},
        "model": MODEL,
        "training": {"epochs": 2, "batch_size": 2},
        "increment": {"epochs": 2},
        "evaluation": {"pool": 4},
        "methods": {"ib-iumad": {}},
        "settings": ["2-1"],
    }
    for key, value in changes.items():
        old = content.get(key)
        content[key] = old | value if isinstance(old, dict) and key != "methods" else value
    return content


def study(**changes) -> StudyConfig:
    """The study of `params`."""
    return StudyConfig.model_validate(params(**changes))


def run(method: str = "ib-iumad", modality: str = "rgb+depth", **changes) -> RunConfig:
    """The one run of a study with this method and modality."""
    (only,) = study(methods={method: {}}, modalities=[modality], **changes).runs()
    return only


def batch(modality: str = "rgb+depth", size: int = 3, seed: int = 0) -> Batch:
    """Random features and images of `size` samples; sample i is of category i modulo 3."""
    generator = torch.Generator().manual_seed(seed)
    modalities = modality.split("+")
    return Batch(
        {m: torch.randn(size, CHANNELS, GRID, GRID, generator=generator) for m in modalities},
        {m: torch.rand(size, 3, SIZE, SIZE, generator=generator) for m in modalities},
        torch.arange(size) % len(CATEGORIES),
    )


def spec(modality: str = "rgb+depth", **sizes: int) -> InputSpec:
    """Sizes of `batch`; each keyword replaces one."""
    usual = {"channels": CHANNELS, "grid": GRID, "image_size": SIZE}
    return InputSpec(tuple(modality.split("+")), **usual | sizes)


def detector(
    method: str = "ib-iumad", modality: str = "rgb+depth", seed: int = 0, **model
) -> ReconstructionDetector:
    """A new detector for batches as `batch` makes them, in evaluation mode."""
    config = run(method, modality, model=model)
    torch.manual_seed(seed)
    return ReconstructionDetector(config.model, spec(modality), len(CATEGORIES)).eval()


class Given(FeatureStore):
    """A store of the samples "0", "1", ... of one batch."""

    def __init__(self, samples: Batch) -> None:
        self.samples, self.device = samples, torch.device("cpu")

    def batch(self, sample_ids: Sequence[str]) -> Batch:
        """These samples of the batch."""
        rows = torch.tensor([int(each) for each in sample_ids])
        features = {m: x[rows] for m, x in self.samples.features.items()}
        images = {m: x[rows] for m, x in self.samples.images.items()}
        return Batch(features, images, self.samples.category[rows])

    @property
    def ids(self) -> list[str]:
        """All of them."""
        return [str(i) for i in range(len(self.samples))]


def open_store(config: RunConfig) -> FeatureStore:
    """Cached inputs of a run, in the cache of the test session."""
    return FeatureStore(open_dataset(config.data), config)


def train_ids(store: FeatureStore, *categories: str) -> list[str]:
    """Training samples of these categories."""
    index = store.dataset.index
    chosen = index[index["category"].isin(categories) & (index["split"] == "train")]
    return chosen["sample_id"].tolist()


def trainable(store: FeatureStore, config: RunConfig, seed: int = 0) -> ReconstructionDetector:
    """A new detector for batches of a store."""
    torch.manual_seed(seed)
    sizes = spec(config.modality, channels=store.backbone.channels)
    return ReconstructionDetector(config.model, sizes, len(CATEGORIES))


def same_tensors(first: dict, second: dict) -> bool:
    """Whether two state dicts hold the same keys and, bit for bit, the same tensors."""
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


def image(seed: int = 0, size: int = SIZE) -> np.ndarray:
    """A random uint8 image."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def score_samples(run: RunConfig, ids: Sequence[str], results: Path, step: int = -1) -> np.ndarray:
    """Anomaly maps of samples by the model of a run after a step."""
    work = RunWork(run)
    detector = trained_detector(work, steps_of(run, results, work.dataset)[step])
    with computing_threads(work.threads):
        return anomaly_maps(detector, work.store, ids)
