"""Measured costs as tables: what `iumad.study.efficiency` wrote, read without torch."""

from pathlib import Path

import numpy as np
import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig, stable_hash
from iumad.machine import read_table
from iumad.study.published import COSTS, NUMBERS, read_published

REPEATS = 5  # batches of one image timed in a process, after one that is not
COLUMNS = [
    "method",
    "modality",
    "categories",
    "image_size",
    "batch",
    "machine",
    "repeat",
    "metric",
    "value",
]


def costs_id(study: StudyConfig) -> str:
    """Twelve hex digits: the hash of all that decides what a study's methods cost."""
    left_out = {"profile", "seed"}
    return stable_hash(
        [run.model_dump(mode="json", exclude=left_out) for run in runs_to_measure(study)]
    )


def costs_file(study: StudyConfig, folder: str | Path) -> Path:
    """Where the costs of a study's methods lie in a results folder."""
    return Path(folder) / "efficiency" / f"{costs_id(study)}.csv"


def runs_to_measure(study: StudyConfig) -> list[RunConfig]:
    """One run for each method and modality: costs depend neither on the setting nor on the seed."""
    one_seed = study.model_copy(update={"seeds": (0,)})
    return list({(run.method, run.modality): run for run in one_seed.runs()}.values())


def read_costs(study: StudyConfig, folder: str | Path) -> pd.DataFrame:
    """What `iumad.study.efficiency.measure_study` wrote, else the published costs; without rows if there are none.

    Returns
    -------
    DataFrame
        method, modality, categories, image_size, batch, machine, repeat, metric, value. Metrics: "latency (ms)" of
        a batch, "frames/s", "model (MB)" (parameters, buffers and banks, backbone included), "peak memory (MB)" of
        the process with all libraries, or on a GPU of torch's allocations there; of networks "parameters (M)" and
        "operations (10^9)" for one image.
    """
    path = costs_file(study, folder)
    if path.exists():
        return read_table(path, NUMBERS[COSTS])
    published = read_published(folder).costs
    return published[published["costs_id"] == costs_id(study)].reindex(columns=COLUMNS)


def summary(table: pd.DataFrame, categories: int, image_size: int) -> pd.DataFrame:
    """Median and 95th percentile of latency, median frames a second, sizes: one row a method and batch size."""
    chosen = (table["categories"] == categories) & (table["image_size"] == image_size)
    records = []
    for keys, part in table[chosen].groupby(["modality", "method", "batch"], sort=False):
        of = {metric: values["value"] for metric, values in part.groupby("metric", sort=False)}
        latency = of.pop("latency (ms)")
        tails = {f"latency p{q} (ms)": latency.quantile(q / 100) for q in (50, 95)}
        medians = {metric: values.median() for metric, values in of.items()}
        names = dict(zip(["modality", "method", "batch"], keys, strict=True))
        records.append(names | tails | medians)
    return pd.DataFrame(records)


def growth(table: pd.DataFrame, factor: str, modality: str) -> pd.DataFrame:
    """Medians over repeats at batch 1 while one factor of two grows and the other stays.

    The factor is "categories" or "image_size".
    """
    other = {"categories": "image_size", "image_size": "categories"}[factor]
    part = table[(table["modality"] == modality) & (table["batch"] == 1)]
    if part.empty:
        return part
    stays = part.groupby(other)[factor].nunique().idxmax()
    part = part[part[other] == stays].sort_values(factor, kind="stable")
    return part.groupby(["method", factor, "metric"], sort=False)["value"].median().reset_index()


def claim_values(table: pd.DataFrame, categories: int, image_size: int) -> pd.DataFrame:
    """Costs at batch 1 as `iumad.study.claims` reads them: logarithms to base 2, so that differences are ratios.

    Each process is a "seed": repeats within one are averaged, because they are not independent.
    """
    names = {"frames/s": "log2 frames/s", "model (MB)": "log2 size"}
    chosen = (table["categories"] == categories) & (table["image_size"] == image_size)
    part = table[chosen & (table["batch"] == 1) & table["metric"].isin(names)]
    process = np.where(part["metric"] == "frames/s", part["repeat"] // REPEATS, part["repeat"])
    values = part.assign(
        setting=f"{categories}-0",
        seed=process,
        metric=part["metric"].map(names),
        value=np.log2(part["value"]),
    )
    keys = ["method", "modality", "setting", "seed", "metric"]
    return values.groupby(keys, sort=False)["value"].mean().reset_index()
