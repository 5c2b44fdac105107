"""Run or load runs: the rows and anomaly maps of a study.

What is finished lies in the results folder by the hash of what made it and is loaded; what is missing is trained.

One run's place on disk: its data, its features, and the folders of its steps.

    results/steps/<step key>/   checkpoint.pt  log.csv  memory-<hash>.pt  rows-<hash>.csv  provenance.json

A step key covers all that decides the model after that step, so runs share what they have in common: settings
6-4 and 6-1 their base, all increment strategies theirs. A step that is finished is not run again; an interrupted
one goes on from its last saved epoch. A lock per step keeps two processes from doing the same work twice.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from jaxtyping import Float32
from tqdm import tqdm

from iumad.config.schema import RunConfig, StudyConfig, stable_hash
from iumad.data import open_dataset
from iumad.data.perturb import PerturbedDataset
from iumad.errors import ConfigError
from iumad.evaluation.details import Scored
from iumad.evaluation.evaluate import anomaly_maps, evaluate
from iumad.evaluation.metrics import image_scores
from iumad.features.cache import FeatureStore
from iumad.features.fpfh import open_store
from iumad.models.base import Detector, InputSpec
from iumad.models.device import device_name, pick_device
from iumad.models.registry import make_detector
from iumad.study import results
from iumad.study.load import read_rows, with_run_columns
from iumad.study.provenance import record_provenance, write_provenance
from iumad.study.steps import CHECKPOINT, LOG, PROVENANCE, rows_file, step_folder, steps_of
from iumad.training import increments
from iumad.training import loop as train
from iumad.training.checkpoint import load_checkpoint, load_grown, save_checkpoint
from iumad.training.loop import StepPlan


class Workplace:
    """One run's data, features and step folders.

    Parameters
    ----------
    run : RunConfig
    folder : Path
        Results folder.
    device : str
        See `iumad.models.device.pick_device`.
    """

    def __init__(self, run: RunConfig, folder: Path, device: str) -> None:
        self.run, self.results, self.device = run, folder, pick_device(device)
        self.dataset = open_dataset(run.data)
        self.steps = steps_of(run, self.dataset.categories)
        self._store: FeatureStore | None = None

    @property
    def store(self) -> FeatureStore:
        """The cached inputs; the backbone is loaded when they are first asked for."""
        if self._store is None:
            self._store = open_store(self.dataset, self.run, self.device)
        return self._store

    def training_store(self, step: int) -> FeatureStore:
        """The inputs that a step trains on: the cached ones, or perturbed ones where the run asks for them."""
        if not self.run.perturb.reaches(step):
            return self.store
        dataset = PerturbedDataset(self.dataset, self.run.perturb, self._seen(step))
        return open_store(dataset, self.run, self.device)

    def folder(self, step: int) -> Path:
        """Where this step's files lie."""
        return step_folder(self.results, self.run, self.steps[: step + 1])

    def rows(self, step: int, label: str) -> pd.DataFrame:
        """Metrics of all categories seen after a step, from file or made now."""
        path = rows_file(self.folder(step), self.run)
        if not path.exists():
            detector = self.trained(step, label)
            seen = self._seen(step)
            ids = self._ids(seen, "test")
            with _bar(len(ids), f"{label}{self._name} step {step} test") as bar:
                self._fill(self.store, ids)
                rows = evaluate(detector, self.store, seen, self.run.evaluation, bar.update)
                results.write_table(rows, path)
        return read_rows(path)

    def trained(self, step: int, label: str) -> Detector:
        """The model after a step, loaded or trained (the steps before it too)."""
        checkpoint = self.folder(step) / CHECKPOINT
        if checkpoint.exists():
            return self.detector(step)
        previous = self.trained(step - 1, label) if step else None
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(checkpoint.with_name("lock")):
            if not checkpoint.exists():
                self._train(step, previous, label)
        return self.detector(step)

    def training_ids(self, step: int) -> list[str]:
        """The samples that a step is trained on."""
        return self._ids(self.steps[step], "train")

    def retrain(self, step: int, after_epoch: Callable[[Detector, int], object]) -> None:
        """Train a step once more to watch it: the same numbers come out, and nothing is written.

        Parameters
        ----------
        step : int
        after_epoch : callable
            See `iumad.training.loop.fit_step`.
        """
        detector = self._new_detector(step).to(self.device)
        if not detector.trained:
            raise ConfigError(f"{self._name}: this method has no epochs that could be watched")
        if step:
            load_grown(detector, self.trained(step - 1, "").state_dict())
        store, ids = self.training_store(step), self.training_ids(step)
        memory = self.memory(step - 1) if step else {}
        nowhere = self.folder(step) / "watched.pt"  # never written: the interval is infinite
        train.fit_step(
            detector, store, ids, self.run, step, memory, nowhere, None, math.inf, after_epoch
        )

    def detector(self, step: int) -> Detector:
        """The finished model after a step."""
        detector = self._new_detector(step)
        path = self.folder(step) / CHECKPOINT
        detector.load_state_dict(load_checkpoint(path, self._key(step))["detector"])
        return detector.to(self.device).eval()

    def _train(self, step: int, previous: Detector | None, label: str) -> None:
        folder, started, clock = self.folder(step), datetime.now(UTC), time.monotonic()
        ids = self._ids(self.steps[step], "train")
        title = f"{label}{self._name} step {step} "
        detector = self._new_detector(step).to(self.device)  # first: a wrong size shows here
        store = self.training_store(step)
        with _bar(len(ids), title + "features") as bar:
            self._fill(store, ids, bar.update)
        if previous is not None:
            load_grown(detector, previous.state_dict())
        log: list[train.LogRow] = []
        if not detector.trained:
            detector.fit(store, ids, torch.Generator().manual_seed(self.run.seed))
        else:
            memory = self.memory(step - 1) if step else {}
            partial, epochs = folder / "partial.pt", StepPlan.of(self.run, step).epochs
            total = epochs * (len(ids) + len(memory.get("replay", [])))
            with _bar(total, title + "training") as bar:
                log = train.fit_step(
                    detector, store, ids, self.run, step, memory, partial, bar.update
                )
        results.write_table(pd.DataFrame(log, columns=["epoch", "term", "value"]), folder / LOG)
        seconds = time.monotonic() - clock
        key = self._key(step)
        record = record_provenance(
            self.run.run_id,
            self.run.model_dump(mode="json"),
            started,
            seconds,
            device_name(self.device),
            torch.get_num_threads(),
        )
        write_provenance(record, folder / PROVENANCE)
        save_checkpoint(folder / CHECKPOINT, {"key": key, "detector": detector.state_dict()})

    def memory(self, step: int) -> increments.Memory:
        """What is remembered after a step; gathered once from that step's model and data."""
        config = self.run.increment
        content = config.model_dump(mode="json")
        path = self.folder(step) / f"memory-{stable_hash([content, self.run.seed])}.pt"
        key = self._key(step)
        if not path.exists():
            detector = self.detector(step)
            earlier = self.memory(step - 1) if step else {}
            ids = self._ids(self.steps[step], "train")
            epochs = StepPlan.of(self.run, step).epochs
            detector.begin_epoch(epochs - 1, epochs)  # what is remembered is that of the last loss
            memory = increments.remember(
                detector, self.training_store(step), ids, config, earlier, self.run.seed
            )
            save_checkpoint(path, {"key": key, "memory": memory})
        return load_checkpoint(path, key)["memory"]

    def _new_detector(self, step: int) -> Detector:
        torch.manual_seed(train.epoch_seed(self.run.seed, step, -1))
        run, channels = self.run, self.store.backbone.channels
        spec = InputSpec(run.modalities, channels, run.features.grid, run.data.image_size)
        return make_detector(run.model, spec, len(self._seen(step)))

    def _fill(
        self,
        store: FeatureStore,
        ids: Sequence[str],
        advance: Callable[[int], object] | None = None,
    ) -> None:
        """Compute missing inputs."""
        store.fill(ids, advance)

    def _seen(self, step: int) -> list[str]:
        return [category for categories in self.steps[: step + 1] for category in categories]

    def _ids(self, categories: Sequence[str], split: str) -> list[str]:
        index = self.dataset.index
        chosen = index[index["category"].isin(list(categories)) & (index["split"] == split)]
        return chosen["sample_id"].tolist()

    def _key(self, step: int) -> dict[str, str]:
        return {"step": self.run.step_key(self.steps[: step + 1])}

    @property
    def _name(self) -> str:
        return f"{self.run.method} {self.run.modality} {self.run.setting} seed {self.run.seed}"


def _bar(total: int, title: str) -> tqdm:
    return tqdm(total=total, desc=title, unit="img")


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
        One row per number, as `iumad.study.results.ROW_SCHEMA`.
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
