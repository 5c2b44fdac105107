"""What a method costs: time and memory of inference, size of the model, and how they grow (paper Table 7).

Costs do not depend on what a model has learnt, so detectors here have random weights, and banks hold random
patches in the number that training would give. Methods are measured in processes of their own: only so is the
largest memory that of one method. Time includes the backbone, from images in memory to anomaly maps; methods that
encode the images themselves have none.
"""

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from iumad import results
from iumad.config import RunConfig, StudyConfig
from iumad.config_sections import MemoryBankConfig, ReconstructionConfig
from iumad.costs import COLUMNS, REPEATS, costs_file, runs_to_measure
from iumad.devices import device_name, pick_device
from iumad.errors import ConfigError
from iumad.features import Backbone
from iumad.model_card import model_card
from iumad.models.memory_bank import MemoryBank
from iumad.models.registry import (
    Detector,
    make_detector,
    reads_features,
    with_random_weights,
)
from iumad.store import Batch

PROCESSES = 3  # for each method and modality
BATCH = 32  # beside batches of one image
N_TRAIN = 250  # images a category that a bank keeps where the configuration does not say; MVTec 3D-AD: 210 to 361


def measure_study(study: StudyConfig, folder: str | Path, device: str = "auto") -> pd.DataFrame:
    """Costs of every method and modality of a study, written for `iumad.costs.read_costs`; made anew each time."""
    runs = runs_to_measure(study)
    with tqdm(total=PROCESSES * len(runs), desc="costs", unit="process") as bar:
        tables = [_one_run(run, device, bar) for run in runs]
    table = pd.concat(tables, ignore_index=True)[COLUMNS]
    results.write_table(table, costs_file(study, folder))
    return table


def _one_run(run: RunConfig, device: str, bar: tqdm) -> pd.DataFrame:
    tables = []
    bar.set_postfix_str(f"{run.method} {run.modality}")
    for process in range(PROCESSES):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            rows = pool.submit(measure, run, process, device).result()
        tables.append(pd.DataFrame(rows))
        bar.update()
    return pd.concat(tables, ignore_index=True)


def measure(run: RunConfig, process: int, device: str) -> list[dict[str, Any]]:
    """Rows of one process: the run's own size first, so that peak memory is its own; process 0 has the rest."""
    own, many = run.data.image_size, sum(int(part) for part in run.setting.split("-"))
    points = [(many, own, 1)]
    if process == 0:
        points += [(many, own, BATCH)]
        points += [(n, own, 1) for n in (1, -(-many // 2)) if n != many]
        points += [(many, size, 1) for size in (own // 2, 2 * own)]
    where = pick_device(device)
    state = f"{device_name(where)}, {torch.get_num_threads()} torch threads"
    rows = []
    for categories, size, batch in points:
        what = {"method": run.method, "modality": run.modality, "categories": categories}
        what |= {"image_size": size, "batch": batch, "machine": state}
        try:
            seconds, megabytes = _time(run, categories, size, batch, where)
        except ConfigError:
            if size == own:
                raise
            continue  # a size that the method refuses, such as a grid too small to halve, costs nothing
        for i, each in enumerate(seconds):
            repeat = {"repeat": process * REPEATS + i}
            rows.append(what | repeat | {"metric": "latency (ms)", "value": 1000 * each})
            rows.append(what | repeat | {"metric": "frames/s", "value": batch / each})
        repeat = {"repeat": process}
        rows.append(what | repeat | {"metric": "model (MB)", "value": megabytes})
        if (categories, size, batch) == (many, own, 1):
            rows += [what | repeat | each for each in _counted(run, many)]
        if (categories, size) == (many, own):
            peak = _peak_bytes(where) / 1e6
            rows.append(what | repeat | {"metric": "peak memory (MB)", "value": peak})
    return rows


def _counted(run: RunConfig, categories: int) -> list[dict[str, Any]]:
    """Parameters and operations of a network; a bank has nothing to count but its backbone."""
    if isinstance(run.model, MemoryBankConfig):
        return []
    total = model_card(run, categories).iloc[-1]
    counts = {"parameters (M)": total["parameters"] / 1e6, "operations (10^9)": total["gflops"]}
    return [{"metric": metric, "value": value} for metric, value in counts.items()]


@torch.no_grad()
def _time(
    run: RunConfig, categories: int, size: int, batch: int, where: torch.device
) -> tuple[list[float], float]:
    """Seconds of each repeat, and the megabytes of backbone and detector."""
    grid = run.features.grid * size // run.data.image_size
    torch.manual_seed(0)
    backbone = None
    if reads_features(run.model):
        random = run.features.model_copy(update={"weights": "random", "grid": grid})
        backbone = Backbone(random).to(where)
    channels = backbone.channels if backbone else 0
    detector = _detector(run, channels, categories, size, grid, where)
    images = torch.rand(batch, 3, size, size, device=where)
    labels = torch.arange(batch, device=where) % categories
    seconds = []
    for _ in range(1 + (REPEATS if batch == 1 else 2)):
        start = time.perf_counter()
        features = {modality: backbone(images) for modality in run.modalities} if backbone else {}
        batch_of = Batch(features, dict.fromkeys(run.modalities, images), labels)
        detector.anomaly_maps(batch_of).cpu()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return seconds[1:], sum(_bytes(part) for part in (backbone, detector) if part is not None) / 1e6


def _detector(
    run: RunConfig, channels: int, categories: int, size: int, grid: int, where: torch.device
) -> Detector:
    model = with_random_weights(run.model)
    if isinstance(model, MemoryBankConfig) and model.depth_features == "fpfh":
        raise ConfigError(f"method {run.method!r}: the time of FPFH is not measured")
    if isinstance(model, ReconstructionConfig) and model.neighbour_mask is not None:
        model = model.model_copy(update={"neighbour_mask": 1})  # fits every grid and costs the same
    detector = make_detector(model, run.modalities, channels, grid, size, categories)
    if isinstance(detector, MemoryBank):
        patches = round(detector.config.coreset * getattr(run.data, "n_train", N_TRAIN) * grid**2)
        for key in [f"{n}:{modality}" for n in range(categories) for modality in run.modalities]:
            detector.banks[key] = torch.randn(patches, channels, device=where)
            detector.scales[key] = 1.0
    return detector.to(where).eval()


def _bytes(module: torch.nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers(), *getattr(module, "banks", {}).values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak_bytes(where: torch.device) -> int:
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
