"""What a method costs, measured as time and memory (paper Table 7).

Nothing here depends on what a model has learnt, so weights are random, and banks that are tested hold random
patches in the number that training would give. Parameters and operations are counted in `iumad.study.counting`.

`measure_study` times inference, each size in a process of its own, from images in memory to anomaly maps, the
backbone included. Memory is what making the model and scoring add to the process, libraries not included.
Where the study has a setting in which categories come one by one, it times how long the last takes to learn too.
`measure_speeds` times training too, roughly, for `iumad plan --measure`.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from iumad.config.schema import RunConfig, StudyConfig, stable_hash
from iumad.data import AbsentData, data_of
from iumad.errors import ConfigError
from iumad.features.backbone import Backbone
from iumad.features.cache import Batch
from iumad.machine import forget_peak_memory, peak_memory_mb
from iumad.models.base import Detector, InputSpec
from iumad.models.build import (
    device_name,
    make_detector,
    method_class,
    pick_device,
    with_random_weights,
)
from iumad.study import results
from iumad.study.costs import (
    COST_COLUMNS,
    COST_REPEATS,
    LEARNING,
    costs_file,
    read_costs_file,
    runs_to_learn,
    runs_to_measure,
)
from iumad.study.counting import model_card
from iumad.study.load import Speed, Speeds
from iumad.study.runner import RunWork
from iumad.study.steps import Step, cpu_model, steps_of
from iumad.training.checkpoint import load_grown
from iumad.training.increments import Memory, remember
from iumad.training.loop import StepPlan, Updates, Watch, fit_step

PROCESSES = 5  # for each method and modality at the study's own size; all other points have one
TIMES_LEARNT = 2  # each in a process; they differ little
LEARNT_IMAGES = 1000  # of a training that are timed; what a study trains beyond is worked out
CPU_BATCH = 4  # of a training step whose time is measured on a CPU, where it hardly matters
BATCH = 32  # beside batches of one image
CATEGORIES = (1, 30, 100)  # beside the study's own number; what a bank would hold is made up
LIMIT = 4e9  # bytes of a model above which only its size is stated
N_TRAIN = 250  # images a category that a bank keeps where the configuration does not say; MVTec 3D-AD: 210 to 361


@dataclass(frozen=True)
class Point:
    """What is measured in one process."""

    categories: int
    image_size: int
    batch: int
    process: int


def points_of(run: RunConfig) -> list[Point]:
    """All points at which a method is measured: its own size several times, then one factor changed at a time."""
    own, many = run.data.image_size, len(data_of(run.data).categories)
    points = [Point(many, own, 1, process) for process in range(PROCESSES)]
    points.append(Point(many, own, BATCH, 0))
    points += [Point(number, own, 1, 0) for number in CATEGORIES if number != many]
    return points + [Point(many, size, 1, 0) for size in (own // 2, 2 * own)]


Measure = Callable[..., list[dict[str, Any]]]


def measure_study(study: StudyConfig, folder: str | Path, device: str = "auto") -> pd.DataFrame:
    """Costs of every method and modality of a study; `read_costs` reads them.

    Written after every process: what an earlier call has measured on such a machine is kept, so that it goes on
    where it was cut off. Methods take turns, so that a slow minute of the machine does not fall on one of them.
    Those that differ in their training alone have one model, which is measured once, as the first of them.
    Learning needs the images of the study; without them it is left out.
    """
    models: dict[tuple[str, str], RunConfig] = {}
    for run in runs_to_measure(study):
        models.setdefault((stable_hash(run.model.model_dump(mode="json")), str(run.modality)), run)
    turns = zip(
        *([(run, point) for point in points_of(run)] for run in models.values()), strict=True
    )
    todo: list[tuple[Measure, RunConfig, Any]] = [
        (measure_point, run, point) for turn in turns for run, point in turn
    ]
    if not isinstance(data_of(study.data), AbsentData):
        for repeat in range(TIMES_LEARNT):
            todo += [(measure_learning, run, repeat) for run in runs_to_learn(study)]
    file, here = costs_file(study, folder), _machine(pick_device(device))
    table = read_costs_file(file) if file.exists() else pd.DataFrame(columns=COST_COLUMNS)
    table = table[table["machine"] == here]
    with tqdm(todo, desc="costs", unit="process") as bar:
        for measure, run, what in bar:
            bar.set_postfix_str(f"{run.method} {run.modality}")
            if _is_measured(table, run, what):
                continue
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                rows = pool.submit(measure, run, what, device).result()
            table = pd.DataFrame([*table.to_dict("records"), *rows], columns=COST_COLUMNS)
            results.write_table(table, file)
    return table


def _is_measured(table: pd.DataFrame, run: RunConfig, what: Point | int) -> bool:
    """Whether a table has the rows of a point, or of a timing of learning by its number."""
    here = table[(table["method"] == run.method) & (table["modality"] == str(run.modality))]
    if isinstance(what, int):
        return bool(((here["metric"] == LEARNING) & (here["repeat"] == what)).any())
    point = here["metric"] == "model (MB)"
    for column in ("categories", "image_size", "batch"):
        point &= here[column] == getattr(what, column)
    return bool((point & (here["repeat"] == what.process)).any())


def measure_learning(run: RunConfig, repeat: int, device: str) -> list[dict[str, Any]]:
    """The row of one timing of a run's last step; joint training, which has no other, learns all anew.

    Timed is what a user waits for: the features of the new images, which are in memory, the training of the step
    as a study does it, and what is gathered to protect the new category in its turn. The model comes to the step
    with random weights, and with a real memory of the earlier categories.
    """
    work = RunWork(run, device)
    *before, last = steps_of(run, "", work.dataset)
    ids = {step.number: work.dataset.ids("train", step.categories) for step in (*before, last)}
    for step_ids in ids.values():
        work.store.fill(step_ids)
    memory: Memory = {}
    detector: Detector | None = None
    for step in before:
        detector = _grown(work, step, detector)
        detector.fit(work.store, ids[step.number], torch.Generator().manual_seed(run.seed))
        detector.eval().calibrate(work.store, ids[step.number])
        if detector.trained:
            step_ids = ids[step.number]
            memory = remember(detector, work.store, step_ids, run.increment, memory, run.seed)
    new, plan, ends = ids[last.number], StepPlan.of(run, last.number), list[float]()
    count = -(-LEARNT_IMAGES // (len(new) + len(memory.get("replay", []))))
    timed = replace(plan, epochs=min(plan.epochs, max(2, count)))
    watch = Watch(epoch=lambda _detector, _epoch: ends.append(time.perf_counter()))
    started = time.perf_counter()
    detector = _grown(work, last, detector)
    if detector.trained:
        fit_step(detector, work.store, new, timed, memory, watch=watch)
        remember(detector, work.store, new, run.increment, memory, run.seed)
    else:
        detector.fit(work.store, new, torch.Generator().manual_seed(run.seed))
    seconds = time.perf_counter() - started
    if plan.epochs > timed.epochs and len(ends) > 1:
        seconds += (plan.epochs - len(ends)) * (ends[-1] - ends[0]) / (len(ends) - 1)
    if detector.reads_features:
        image = torch.rand(1, 3, *(run.data.image_size,) * 2, device=work.device)
        seconds += _seconds(work.store.backbone, image) * len(new) * len(run.modalities)
    return [
        {
            "method": run.method,
            "modality": run.modality,
            "categories": len(last.seen),
            "image_size": run.data.image_size,
            "batch": run.training.batch_size,
            "machine": _machine(work.device),
            "repeat": repeat,
            "metric": LEARNING,
            "value": seconds,
        }
    ]


def _grown(work: RunWork, step: Step, earlier: Detector | None) -> Detector:
    """The model with which a step begins."""
    detector = work.new_detector(step)
    if earlier is not None:
        load_grown(detector, earlier.state_dict())
    return detector


def _machine(where: torch.device) -> str:
    name = cpu_model() or "cpu" if where.type == "cpu" else device_name(where)
    return f"{name}, {torch.get_num_threads()} torch threads"


def measure_point(run: RunConfig, point: Point, device: str) -> list[dict[str, Any]]:
    """Rows of one point, in a process of its own: else memory that other models gave back would be used again."""
    where = pick_device(device)
    what = {"method": run.method, "modality": run.modality, "categories": point.categories}
    what |= {"image_size": point.image_size, "batch": point.batch, "machine": _machine(where)}

    def row(metric: str, value: float, repeat: int = point.process) -> dict[str, Any]:
        return what | {"repeat": repeat, "metric": metric, "value": value}

    own = points_of(run)[0]
    try:
        seconds, size, added = _time(run, point, where)
    except ConfigError:
        if point.image_size == own.image_size:
            raise
        return []  # a size that the method refuses, such as a grid too small to halve, costs nothing
    rows = []
    for i, each in enumerate(seconds):
        repeat = point.process * COST_REPEATS + i
        rows.append(row("latency (ms)", 1000 * each, repeat))
        rows.append(row("frames/s", point.batch / each, repeat))
    rows.append(row("model (MB)", size / 1e6))
    if added is not None:
        rows.append(row("added memory (MB)", added))
    if replace(point, process=0) == own:
        rows += [row(metric, value) for metric, value in _counted(run, point.categories).items()]
    return rows


def _counted(run: RunConfig, categories: int) -> dict[str, float]:
    """Parameters and operations of a network; a bank has nothing to count but its backbone."""
    if not method_class(run.model).trained:
        return {}
    total = model_card(run, categories).iloc[-1]
    return {"parameters (M)": total["parameters"] / 1e6, "operations (10^9)": total["gflops"]}


@torch.no_grad()
def _time(
    run: RunConfig, point: Point, where: torch.device
) -> tuple[list[float], int, float | None]:
    """Seconds of each repeat, bytes of the model, and the memory that it added; of a too large one its bytes."""
    size, batch = point.image_size, point.batch
    grid = run.features.grid * size // run.data.image_size
    images = torch.rand(batch, 3, size, size, device=where)
    labels = torch.arange(batch, device=where) % point.categories
    # let libraries load what they need
    functional.conv2d(images[:1], torch.rand(8, 3, 3, 3, device=where))
    before = _memory_mb(where)
    torch.manual_seed(0)
    backbone = None
    if method_class(run.model).reads_features:
        random = run.features.model_copy(update={"weights": "random", "grid": grid})
        backbone = Backbone(random).to(where)
    spec = InputSpec(run.modalities, backbone.channels if backbone else 0, grid, size)
    with torch.device("meta"):  # no memory is taken
        total = _bytes(backbone, _detector(run, spec, point.categories))
    if total > LIMIT:
        return [], total, None
    detector = _detector(run, spec, point.categories).to(where)
    seconds = []
    for _ in range(1 + (COST_REPEATS if batch == 1 else 2)):
        start = time.perf_counter()
        features = {modality: backbone(images) for modality in run.modalities} if backbone else {}
        batch_of = Batch(features, dict.fromkeys(run.modalities, images), labels)
        detector.anomaly_maps(batch_of).cpu()  # waits for the device
        seconds.append(time.perf_counter() - start)
    peak = _peak_mb(where)
    return seconds[1:], total, None if before is None or peak is None else peak - before


def _detector(run: RunConfig, spec: InputSpec, categories: int) -> Detector:
    """The method with random weights and patches."""
    model = with_random_weights(run.model)
    if getattr(model, "depth_features", "backbone") == "fpfh":
        raise ConfigError(f"method {run.method!r}: the time of FPFH is not measured")
    if getattr(model, "neighbour_mask", None) is not None:
        model = model.model_copy(update={"neighbour_mask": 1})  # fits every grid and costs the same
    detector = make_detector(model, spec, categories)
    detector.pretend_fitted(getattr(run.data, "n_train", N_TRAIN))
    return detector.eval()


def _bytes(backbone: Backbone | None, detector: Detector) -> int:
    weights = [*backbone.parameters(), *backbone.buffers()] if backbone else []
    return detector.size_bytes() + sum(x.numel() * x.element_size() for x in weights)


def _memory_mb(where: torch.device) -> float | None:
    """Memory in use now; the peak starts anew."""
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        return torch.cuda.memory_allocated(where) / 1e6
    forget_peak_memory()
    return peak_memory_mb() if sys.platform == "linux" else None


def _peak_mb(where: torch.device) -> float | None:
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 1e6
    return peak_memory_mb()


def measure_speeds(study: StudyConfig, device: str = "auto") -> tuple[Speeds, float, int]:
    """Seconds an image of every method and modality of a study, on random images, for `iumad.study.load.plan`.

    Returns
    -------
    speeds : Speeds
        The time in which a bank picks its patches is not in them.
    features : float
        Seconds for the features of one image of one modality.
    size : int
        Bytes of the features and the 8-bit image of one modality.
    """
    where = pick_device(device)
    backbone = Backbone(study.features.model_copy(update={"weights": "random"})).to(where)
    side, grid = study.data.image_size, study.features.grid
    image = torch.rand(1, 3, side, side, device=where)
    speeds = {}
    for run in runs_to_measure(study):
        categories = len(data_of(run.data).categories)
        spec = InputSpec(run.modalities, backbone.channels, grid, side)
        count = run.training.batch_size if where.type == "cuda" else CPU_BATCH
        batch = _random_batch(run, backbone.channels, count, categories).to(where)
        training, memory = 0.0, None
        if method_class(run.model).trained:
            model = make_detector(with_random_weights(run.model), spec, categories).to(where)
            updates = Updates(model.train(), StepPlan.of(run, 0), count)
            before = _memory_mb(where)
            training = _seconds(_update, updates, batch) / count
            peak = _peak_mb(where)
            if before is not None and peak is not None:  # activations grow with the batch
                memory = before + (peak - before) * run.training.batch_size / count
        model = _detector(run, spec, categories).to(where)
        with torch.no_grad():
            test = _seconds(model.anomaly_maps, batch) / count
        speeds[run.method, str(run.modality)] = Speed(training, test, memory)
    size = 4 * backbone.channels * grid**2 + 3 * side**2
    return speeds, _seconds(backbone, image), size


def _random_batch(run: RunConfig, channels: int, count: int, categories: int) -> Batch:
    side, grid = run.data.image_size, run.features.grid
    return Batch(
        {name: torch.randn(count, channels, grid, grid) for name in run.modalities},
        {name: torch.rand(count, 3, side, side) for name in run.modalities},
        torch.arange(count) % categories,
    )


def _update(updates: Updates, batch: Batch) -> Tensor:
    with updates.forward_pass():
        terms = updates.detector.losses(batch, None, True)
    loss = torch.stack(list(terms.values())).sum()
    updates.descend(loss)
    return loss.detach()


def _seconds(call: Callable[..., Tensor], *arguments: Any) -> float:
    """The shorter time of two calls, after one that is not timed."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call(*arguments).cpu()  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])
