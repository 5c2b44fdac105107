"""Run or load runs: the rows and anomaly maps of a study.

`check_study` finds what can be known to fail before anything is computed. A run goes through its steps one after
the other (`run_one`): what is finished is read from the results folder (`iumad.study.steps` says where), what is
missing is trained and evaluated. An interrupted step goes on from its last saved epoch. A lock on each step's
folder keeps two processes from doing the same work twice.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from iumad.config.schema import RunConfig, StudyConfig
from iumad.data import data_of, open_dataset
from iumad.data.check import data_problems
from iumad.data.perturb import PerturbedDataset
from iumad.errors import ConfigError, DataError, Interrupted
from iumad.evaluation.evaluate import Scored, anomaly_maps, evaluate
from iumad.evaluation.metrics import image_scores
from iumad.features import open_store
from iumad.features.backbone import Backbone
from iumad.features.cache import FeatureStore
from iumad.machine import forget_peak_memory, peak_memory_mb, remove_stale
from iumad.models.base import Detector, InputSpec
from iumad.models.build import device_name, make_detector, pick_device, with_random_weights
from iumad.study.load import with_run_columns
from iumad.study.results import ROW_SCHEMA, read_step_table, validate_rows, write_step_table
from iumad.study.steps import (
    Effort,
    Step,
    add_evaluation,
    is_evaluated,
    record_provenance,
    run_name,
    steps_of,
    write_provenance,
)
from iumad.training import increments
from iumad.training import loop as train
from iumad.training.checkpoint import load_checkpoint, load_grown, save_checkpoint
from iumad.training.loop import StepPlan, Watch

RESULTS = Path("results")

ShowBar = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Shows a progress bar of so many images; what it yields is called with the number just done."""


class InUseError(Exception):
    """Another process works on a step of the run."""


@contextmanager
def terminal_bar(title: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on the terminal; in a log file it is redrawn rarely and leaves no line."""
    live = sys.stderr.isatty()
    look = {"leave": live, "mininterval": 0.5 if live else 30.0}
    with tqdm(total=total, desc=title, unit="img", **look) as bar:
        yield bar.update


def run_study(
    study: StudyConfig, results: str | Path = RESULTS, device: str = "auto", threads: int = 1
) -> pd.DataFrame:
    """Rows of all runs of a study; what is not finished yet is trained.

    A run on which another process works is left for later, and waited for at the end.

    Parameters
    ----------
    study : StudyConfig
    results : path
        Results folder.
    device : "auto", "cpu", "cuda", "cuda:1", ...
    threads : int
        Of the libraries that compute. The last bits of results depend on it.

    Returns
    -------
    DataFrame
        One row per number, as `iumad.study.results.ROW_SCHEMA`.

    Raises
    ------
    Interrupted
        Ctrl-C; the text says what is saved.
    """
    runs, tables = study.runs(), {}
    left, wait = list(range(len(runs))), False
    try:
        while left:
            in_use = []
            for i in left:
                label = f"run {i + 1}/{len(runs)} "
                try:
                    tables[i] = run_one(runs[i], results, device, label, threads, wait=wait)
                except InUseError:
                    in_use.append(i)
            left, wait = in_use, len(in_use) == len(left)
    except (KeyboardInterrupt, Interrupted) as stop:
        number = getattr(stop, "signal", int(signal.SIGINT))
        raise Interrupted(saved_text(study, results), number) from stop
    return validate_rows(pd.concat([tables[i] for i in range(len(runs))], ignore_index=True))


def run_one(
    run: RunConfig,
    results: str | Path = RESULTS,
    device: str = "auto",
    label: str = "",
    threads: int = 1,
    show: ShowBar = terminal_bar,
    wait: bool = True,
) -> pd.DataFrame:
    """Rows of one run, all steps: what is finished is loaded, the rest trained and evaluated.

    Parameters
    ----------
    run, results, device, threads
        See `run_study`.
    label : str
        Before the run's name in progress bars.
    show : callable
        Shows the progress.
    wait : bool
        For another process that works on a step of the run; else `InUseError` is raised.
    """
    work = RunWork(run, device, label, threads, show, wait)
    tables = []
    for step in steps_of(run, results, work.dataset):
        if not step.rows.exists():
            detector = trained_detector(work, step)
            evaluate_step(work, step, detector)
        tables.append(read_step_table(step.rows).assign(step=step.number))
    rows = with_run_columns(pd.concat(tables, ignore_index=True), run)
    return rows[list(ROW_SCHEMA.columns)]


class RunWork:
    """What the steps of a run have in common: its data and features, and how it is executed; see `run_one`."""

    def __init__(
        self,
        run: RunConfig,
        device: str = "auto",
        label: str = "",
        threads: int = 1,
        show: ShowBar = terminal_bar,
        wait: bool = True,
    ) -> None:
        self.run, self.device, self.threads = run, pick_device(device), threads
        self.label, self.show, self.wait = label, show, wait
        self.dataset = open_dataset(run.data)

    @cached_property
    def store(self) -> FeatureStore:
        """Cached inputs of all samples; the backbone is loaded when they are first asked for."""
        return open_store(self.dataset, self.run, self.device)

    def training_store(self, step: Step) -> FeatureStore:
        """The inputs that a step trains on: the cached ones, or perturbed ones where the run asks for them."""
        if not self.run.perturb.reaches(step.number):
            return self.store
        dataset = PerturbedDataset(self.dataset, self.run.perturb, step.seen)
        return open_store(dataset, self.run, self.device, self.store)

    @cached_property
    def test_store(self) -> FeatureStore:
        """The inputs of test images: the cached ones, or perturbed ones where the run asks for them."""
        perturb = self.run.perturb
        if perturb.is_off or not perturb.test:
            return self.store
        base = self.run.steps_of(self.dataset.categories)[0]
        dataset = PerturbedDataset(self.dataset, perturb, base)
        return open_store(dataset, self.run, self.device, self.store)

    def new_detector(self, step: Step) -> Detector:
        """The method with the weights that a step begins with where there is no earlier one."""
        torch.manual_seed(train.epoch_seed(self.run.seed, step.number, -1))
        # the first time this makes the backbone, which draws random numbers: published models depend on that order
        spec = InputSpec.of(self.run, self.store.backbone.channels)
        return make_detector(self.run.model, spec, len(step.seen)).to(self.device)

    def title(self, step: Step, what: str) -> str:
        """Text of a progress bar."""
        return f"{self.label}{run_name(self.run)} step {step.number} {what}"


def trained_detector(work: RunWork, step: Step) -> Detector:
    """The model after a step, loaded or trained (the steps before it too)."""
    if not step.checkpoint.exists():
        earlier = trained_detector(work, step.previous) if step.previous else None
        with exclusive(work, step):
            if not step.checkpoint.exists():
                train_step(work, step, earlier)
    return load_detector(work, step)


def load_detector(work: RunWork, step: Step) -> Detector:
    """The finished model after a step."""
    detector = work.new_detector(step)
    detector.load_state_dict(load_checkpoint(step.checkpoint, {"step": step.key})["detector"])
    return detector.eval()


def train_step(work: RunWork, step: Step, earlier: Detector | None) -> None:
    """Train a step from the model of the one before, and write all that belongs to it; the checkpoint is last."""
    run, ids = work.run, work.dataset.ids("train", step.categories)
    detector = work.new_detector(step)  # first: a wrong size shows here
    trunk = trained_trunk(work, step) if earlier is None else None  # its time is counted as its own
    effort = Effort(step.unfinished, work.threads)
    log: list[train.LogRow] = []
    with computing_threads(effort.threads):
        store = work.training_store(step)
        with work.show(work.title(step, "images"), len(ids)) as advance:
            store.preparation(counted(advance, effort))
        with work.show(work.title(step, "features"), len(ids)) as advance:
            store.fill(ids, counted(advance, effort))
        if earlier is not None:
            load_grown(detector, earlier.state_dict())
        generator = torch.Generator().manual_seed(run.seed)
        if not detector.trained:
            detector.fit(store, ids, generator)
        elif trunk is not None:
            weights, log = trunk
            detector.load_state_dict(detector.state_dict() | weights)
            detector.fit(store, ids, generator)
            detector.eval().calibrate(store, ids)
        else:
            remembered = remembered_after(work, step.previous) if step.previous else {}
            total = len(ids) + len(remembered.get("replay", []))
            total *= StepPlan.of(run, step.number).epochs
            with work.show(work.title(step, "training"), total) as advance:
                plan, watch = StepPlan.of(run, step.number), Watch(counted(advance, effort))
                log = train.fit_step(detector, store, ids, plan, remembered, step.partial, watch)
    write_step_table(pd.DataFrame(log, columns=["epoch", "term", "value"]), step.log)
    prepared = work.store.preparation().model_dump(mode="json")
    params = run.model_dump(mode="json") | {"preparation": prepared}
    device = device_name(work.device)
    record = record_provenance(run.run_id, params, device, effort.finish())
    write_provenance(record, step.provenance)
    save_checkpoint(step.checkpoint, {"key": {"step": step.key}, "detector": detector.state_dict()})


def trained_trunk(
    work: RunWork, step: Step
) -> tuple[dict[str, torch.Tensor], list[train.LogRow]] | None:
    """Weights of the network that another run's base step has trained, and the log of its losses.

    None where the run takes no other's network.
    """
    if work.run.trunk is None:
        return None
    other = RunWork(work.run.trunk, str(work.device), work.label, work.threads, work.show)
    base = steps_of(work.run.trunk, step.folder.parent.parent, work.dataset)[0]
    weights = trained_detector(other, base).state_dict()
    return weights, read_step_table(base.log).to_dict("records")


def evaluate_step(work: RunWork, step: Step, detector: Detector) -> None:
    """Score the test images of all categories met so far and write the rows."""
    ids = work.dataset.ids("test", step.seen)
    with exclusive(work, step), computing_threads(work.threads):
        if step.rows.exists():
            return
        forget_peak_memory()
        began = time.monotonic()
        with work.show(work.title(step, "test"), len(ids)) as advance:
            work.test_store.fill(ids)
            rows = evaluate(detector, work.test_store, step.seen, work.run.evaluation, advance)
        add_evaluation(step.provenance, time.monotonic() - began, peak_memory_mb())
        write_step_table(rows, step.rows)


def remembered_after(work: RunWork, step: Step) -> increments.Memory:
    """What protects the categories of a step and the ones before it; gathered once, from its model and data."""
    if not step.remembered.exists():
        earlier = remembered_after(work, step.previous) if step.previous else {}
        with exclusive(work, step):
            detector, epochs = load_detector(work, step), StepPlan.of(work.run, step.number).epochs
            detector.begin_epoch(epochs - 1, epochs)  # what is remembered is that of the last loss
            store, ids = work.training_store(step), work.dataset.ids("train", step.categories)
            config, seed = work.run.increment, work.run.seed
            found = increments.remember(detector, store, ids, config, earlier, seed)
            save_checkpoint(step.remembered, {"key": {"step": step.key}, "memory": found})
    return load_checkpoint(step.remembered, {"step": step.key})["memory"]


def watch_training(
    work: RunWork, step: Step, after_epoch: Callable[[Detector, int], object]
) -> None:
    """Train a step once more to watch it: the same numbers come out, and nothing is written.

    Parameters
    ----------
    work, step : RunWork, Step
    after_epoch : callable
        See `iumad.training.loop.Watch`.
    """
    # first, as in the run: a backbone that is made after the seed is set draws the numbers of the new weights
    earlier = trained_detector(work, step.previous) if step.previous else None
    detector = work.new_detector(step)
    if not detector.trained:
        raise ConfigError(f"{run_name(work.run)}: this method has no epochs that could be watched")
    remembered: increments.Memory = {}
    if step.previous and earlier is not None:
        load_grown(detector, earlier.state_dict())
        remembered = remembered_after(work, step.previous)
    store, ids = work.training_store(step), work.dataset.ids("train", step.categories)
    plan = StepPlan.of(work.run, step.number)
    with computing_threads(work.threads):
        train.fit_step(detector, store, ids, plan, remembered, watch=Watch(epoch=after_epoch))


@contextmanager
def exclusive(work: RunWork, step: Step) -> Iterator[None]:
    """Work on the folder of a step that no other process has; what is not needed any more is removed."""
    step.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(step.lock)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        if not work.wait:
            raise InUseError(str(step.folder)) from error
        tqdm.write(f"waiting for another process: {work.title(step, 'is being made there')}")
        lock.acquire()
    try:
        remove_stale(step.folder, older_than=0.0)
        yield
        if step.checkpoint.exists():
            step.partial.unlink(missing_ok=True)
            step.unfinished.unlink(missing_ok=True)
    finally:
        lock.release()


@contextmanager
def computing_threads(threads: int) -> Iterator[None]:
    """Let torch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def counted(advance: Callable[[int], object], effort: Effort) -> Callable[[int], None]:
    """Advance a progress bar and keep the time that the step has taken."""

    def both(images: int) -> None:
        advance(images)
        effort.update()

    return both


def saved_text(study: StudyConfig, results: str | Path) -> str:
    """What an interrupted study has saved."""
    data = data_of(study.data)
    done = sum(is_evaluated(run, results, data) for run in study.runs())
    return (
        f"interrupted: {done} of {len(study.runs())} runs are finished in {results}; of the others the finished "
        "steps and the saved epochs are kept"
    )


def score_categories(
    run: RunConfig, results: str | Path = RESULTS, device: str = "auto"
) -> Iterator[Scored]:
    """Yield the test images of each category scored by a run's last model, trained if need be."""
    work = RunWork(run, device)
    index = work.dataset.index
    detector = trained_detector(work, steps_of(run, results, work.dataset)[-1])
    for category in work.dataset.categories:
        chosen = (index["category"] == category) & (index["split"] == "test")
        test = index[chosen].reset_index(drop=True)
        ids = test["sample_id"].tolist()
        with computing_threads(work.threads):
            maps = anomaly_maps(detector, work.test_store, ids)
        scores = image_scores(maps, run.evaluation.image_score, run.evaluation.pool)
        masks = np.zeros(maps.shape, dtype=bool)
        masked = test["masked"].to_numpy(dtype=bool)
        masks[masked] = work.test_store.masks(test.loc[masked, "sample_id"].tolist())
        yield Scored(category, test, maps, masks, scores)


def check_study(study: StudyConfig, device: str = "auto") -> list[str]:
    """Look the data over, split every setting, and make every model once without weights or data.

    Returns
    -------
    list of str
        What is odd about the data, but can be used.

    Raises
    ------
    IumadError
        Device or data are not there, the data cannot be meant as they are (`iumad.data.check.data_problems`), a
        setting does not use up the categories, the data lack a modality, or a model does not fit its sizes.
    """
    pick_device(device)
    dataset = open_dataset(study.data)
    errors, warnings = data_problems(dataset)
    if errors:
        more = f" (and {len(errors) - 1} more; `iumad data check` lists them)"
        raise DataError(errors[0] + (more if len(errors) > 1 else ""))
    channels = Backbone(study.features).channels
    made = set()
    for run in study.runs():
        absent = [name for name in run.modalities if name not in dataset.modalities]
        if absent:
            raise ConfigError(
                f"modalities: {run.modality} needs {', '.join(absent)}, which the data set {dataset.name!r} "
                f"does not have; it has {', '.join(dataset.modalities)}"
            )
        n_categories = len(run.steps_of(dataset.categories)[0])
        kind = (run.model.model_dump_json(), run.modalities)
        if kind not in made:
            spec = InputSpec.of(run, channels)
            try:
                with torch.random.fork_rng(devices=[]):
                    make_detector(with_random_weights(run.model), spec, n_categories)
            except (RuntimeError, MemoryError, OverflowError) as error:  # torch's, of its sizes
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(
                    f"method {run.method!r}: its model cannot be made with these sizes: {reason}"
                ) from error
            made.add(kind)
    return warnings
