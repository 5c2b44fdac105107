"""Run or load runs; everything that is finished lies under `results/` by the hash of what made it.

    results/steps/<step key>/   checkpoint.pt  log.csv  memory-<hash>.pt  rows-<hash>.csv  provenance.json

A step key covers all that decides the model after that step, so runs share what they have in common: settings
6-4 and 6-1 their base, all increment strategies theirs. A step that is finished is not run again; an interrupted
one goes on from its last saved epoch. A lock per step keeps two processes from doing the same work twice.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from jaxtyping import Float32
from tqdm import tqdm

from iumad import increments, results, train
from iumad.checkpoint import load_checkpoint, save_checkpoint
from iumad.config import RunConfig, StudyConfig, stable_hash
from iumad.config_sections import MemoryBankConfig
from iumad.data import open_dataset
from iumad.evaluate import Detector, anomaly_maps, evaluate
from iumad.models.detector import ReconstructionDetector
from iumad.models.memory_bank import MemoryBank
from iumad.provenance import record_provenance, write_provenance
from iumad.scenario import parse_setting
from iumad.store import FeatureStore

RESULTS = Path("results")


def run_study(study: StudyConfig, folder: str | Path = RESULTS, device: str = "auto") -> pd.DataFrame:
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
    tables = [run_one(run, folder, device, f"run {i + 1}/{len(runs)} ") for i, run in enumerate(runs)]
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
    return _with_run_columns(rows, run)[list(results.ROW_SCHEMA.columns)]


def training_log(study: StudyConfig, folder: str | Path = RESULTS) -> pd.DataFrame:
    """Loss terms per epoch of the finished runs of a study, as `iumad.results.LOG_SCHEMA`."""
    tables = []
    for run in study.runs():
        workplace = Workplace(run, Path(folder), "cpu")
        for step in range(len(workplace.steps)):
            path = workplace.folder(step) / "log.csv"
            if path.exists():
                tables.append(_with_run_columns(_read(path).assign(step=step), run))
    columns = list(results.LOG_SCHEMA.columns)
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def score_samples(
    run: RunConfig, sample_ids: Sequence[str], folder: str | Path = RESULTS, step: int = -1
) -> Float32[np.ndarray, "n size size"]:
    """Anomaly maps of samples by the model of a run after a step (default: the last), trained if need be."""
    workplace = Workplace(run, Path(folder), "auto")
    step = range(len(workplace.steps))[step]
    workplace.rows(step, "")
    return anomaly_maps(workplace.detector(step), workplace.store, sample_ids)


def pick_device(device: str) -> torch.device:
    """'auto' is CUDA where there is a device, else CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def device_name(device: torch.device) -> str:
    """'cpu' or the accelerator's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class Workplace:
    """One run's data, features and step folders.

    Parameters
    ----------
    run : RunConfig
    folder : Path
        Results folder.
    device : str
        See `pick_device`.
    """

    def __init__(self, run: RunConfig, folder: Path, device: str) -> None:
        self.run, self.results, self.device = run, folder, pick_device(device)
        self.dataset = open_dataset(run.data)
        self.steps = parse_setting(run.setting, self.dataset.categories)
        self._store: FeatureStore | None = None

    @property
    def store(self) -> FeatureStore:
        """The cached inputs; the backbone is loaded when they are first asked for."""
        if self._store is None:
            self._store = FeatureStore(self.dataset, self.run, device=self.device)
        return self._store

    def folder(self, step: int) -> Path:
        """Where this step's files lie."""
        return self.results / "steps" / self.run.step_key(self.steps[: step + 1])

    def rows(self, step: int, label: str) -> pd.DataFrame:
        """Metrics of all categories seen after a step, from file or made now."""
        evaluation = stable_hash(self.run.evaluation.model_dump(mode="json"))
        path = self.folder(step) / f"rows-{evaluation}.csv"
        if not path.exists():
            detector = self.trained(step, label)
            seen = [category for categories in self.steps[: step + 1] for category in categories]
            n_test = len(self._ids(seen, "test"))
            with tqdm(total=n_test, desc=f"{label}{self._name} step {step} test", unit="img") as bar:
                self.store.fill(self._ids(seen, "test"))
                rows = evaluate(detector, self.store, seen, self.run.evaluation, bar.update)
            results.write_table(rows, path)
        return _read(path)

    def trained(self, step: int, label: str) -> Detector:
        """The model after a step, loaded or trained (the steps before it too)."""
        if (self.folder(step) / "checkpoint.pt").exists():
            return self.detector(step)
        previous = self.trained(step - 1, label) if step else None
        folder = self.folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / "checkpoint.pt").exists():
                self._train(step, previous, label)
        return self.detector(step)

    def detector(self, step: int) -> Detector:
        """The finished model after a step."""
        detector = self._new_detector(step)
        path = self.folder(step) / "checkpoint.pt"
        detector.load_state_dict(load_checkpoint(path, self._key(step))["detector"])
        return detector.to(self.device).eval()

    def _train(self, step: int, previous: Detector | None, label: str) -> None:
        folder, started, clock = self.folder(step), datetime.now(UTC), time.monotonic()
        ids = self._ids(self.steps[step], "train")
        title = f"{label}{self._name} step {step} "
        with tqdm(total=len(ids), desc=title + "features", unit="img") as bar:
            self.store.fill(ids, bar.update)
        detector = self._new_detector(step).to(self.device)
        if previous is not None:
            detector.load_state_dict(previous.state_dict())
        log: list[train.LogRow] = []
        if isinstance(detector, MemoryBank):
            generator = torch.Generator().manual_seed(self.run.seed)
            for category in tqdm(self.steps[step], desc=title + "bank", unit="category"):
                number = self.dataset.categories.index(category)
                detector.fit(number, self.store.batch(self._ids([category], "train")), generator)
        else:
            memory = self._memory(step - 1) if step else {}
            total = train.StepPlan.of(self.run, step).epochs * len(ids)
            with tqdm(total=total, desc=title + "training", unit="img") as bar:
                log = train.fit_step(
                    detector, self.store, ids, self.run, step, memory, folder / "partial.pt", bar.update
                )
        results.write_table(pd.DataFrame(log, columns=["epoch", "term", "value"]), folder / "log.csv")
        seconds = time.monotonic() - clock
        key = self._key(step)
        record = record_provenance(
            self.run.run_id, self.run.model_dump(mode="json"), started, seconds, device_name(self.device)
        )
        write_provenance(record, folder / "provenance.json")
        save_checkpoint(folder / "checkpoint.pt", {"key": key, "detector": detector.state_dict()})

    def _memory(self, step: int) -> increments.Memory:
        """What is remembered after a step; gathered once from that step's model and data."""
        config = self.run.increment
        path = self.folder(step) / f"memory-{stable_hash([config.model_dump(mode='json'), self.run.seed])}.pt"
        key = self._key(step)
        if not path.exists():
            detector = self.detector(step)
            if isinstance(detector, MemoryBank):
                return {}
            earlier = self._memory(step - 1) if step else {}
            ids = self._ids(self.steps[step], "train")
            memory = increments.remember(detector, self.store, ids, config, earlier, self.run.seed)
            save_checkpoint(path, {"key": key, "memory": memory})
        return load_checkpoint(path, key)["memory"]

    def _new_detector(self, step: int) -> Detector:
        torch.manual_seed(train.epoch_seed(self.run.seed, step, -1))
        model, data = self.run.model, self.run.data
        if isinstance(model, MemoryBankConfig):
            return MemoryBank(model, self.run.modalities, data.image_size)
        return ReconstructionDetector(
            model,
            self.run.modalities,
            self.store.backbone.channels,
            self.run.features.grid,
            data.image_size,
            len(self.dataset.categories),
        )

    def _ids(self, categories: Sequence[str], split: str) -> list[str]:
        index = self.dataset.index
        chosen = index[index["category"].isin(list(categories)) & (index["split"] == split)]
        return chosen["sample_id"].tolist()

    def _key(self, step: int) -> dict[str, str]:
        return {"step": self.run.step_key(self.steps[: step + 1])}

    @property
    def _name(self) -> str:
        return f"{self.run.method} {self.run.modality} {self.run.setting} seed {self.run.seed}"


def _with_run_columns(table: pd.DataFrame, run: RunConfig) -> pd.DataFrame:
    return table.assign(
        run_id=run.run_id,
        profile=run.profile,
        dataset=run.data.name,
        method=run.method,
        modality=run.modality,
        setting=run.setting,
        seed=run.seed,
    )


def _read(path: Path) -> pd.DataFrame:
    """A table of this folder, with every float's digits as written."""
    return pd.read_csv(path, float_precision="round_trip")
