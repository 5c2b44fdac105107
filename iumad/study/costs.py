"""Costs of methods that `iumad.study.efficiency` measured, read and summed up without torch.

results/efficiency/<hash of the methods>.csv                                measured here
results/<profile>/costs.csv                                                 published, with the hash
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig, stable_hash
from iumad.machine import read_table
from iumad.study.load import COSTS, NUMBERS, read_published
from iumad.study.results import LABELS, MEAN, final_table, last_step, step_means

COST_REPEATS = 5  # batches of one image timed in a process, after one that is not
COST_COLUMNS = [
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
LEARNING = "learning a category (s)"


def costs_id(study: StudyConfig) -> str:
    """Twelve hex digits: the hash of all that decides what a study's methods cost.

    Learning rates do not, nor where the data lie.
    """
    left_out: Any = {"profile": True, "seed": True, "training": {"lr"}, "increment": {"lr"}}
    left_out |= {"data": {"root", "source"}}
    runs = [*runs_to_measure(study), *runs_to_learn(study)]
    return stable_hash([run.model_dump(mode="json", exclude=left_out) for run in runs])


def costs_file(study: StudyConfig, folder: str | Path) -> Path:
    """Where the costs of a study's methods lie in a results folder."""
    return Path(folder) / "efficiency" / f"{costs_id(study)}.csv"


def runs_to_measure(study: StudyConfig) -> list[RunConfig]:
    """One run for each method and modality: costs of a test depend neither on the setting nor on the seed."""
    return _one_each(_of_one_seed(study))


def learning_setting(study: StudyConfig) -> str | None:
    """The last of a study's settings in which categories come one by one; its last step is timed."""
    one_by_one = [setting for setting in study.settings if setting.endswith("-1")]
    return one_by_one[-1] if one_by_one else None


def runs_to_learn(study: StudyConfig) -> list[RunConfig]:
    """One run for each method and modality in `learning_setting`."""
    setting = learning_setting(study)
    return _one_each([run for run in _of_one_seed(study) if run.setting == setting])


def _of_one_seed(study: StudyConfig) -> list[RunConfig]:
    return study.model_copy(update={"seeds": (0,)}).runs()


def _one_each(runs: Sequence[RunConfig]) -> list[RunConfig]:
    found: dict[tuple[str, str], RunConfig] = {}
    for run in runs:
        found.setdefault((run.method, str(run.modality)), run)
    return list(found.values())


def read_costs(study: StudyConfig, folder: str | Path) -> pd.DataFrame:
    """What `iumad.study.efficiency.measure_study` wrote, else the published costs; without rows if there are none.

    Returns
    -------
    DataFrame
        method, modality, categories, image_size, batch, machine, repeat, metric, value. Metrics: "latency (ms)" of
        a batch, "frames/s", "model (MB)" (parameters, buffers and banks, backbone included: what a file of the
        model holds), "added memory (MB)" (what making the model and scoring a batch add to the process, libraries
        not included; on a GPU what torch allocates there); of networks "parameters (M)" and "operations (10^9)"
        for one image. A model of more than 4 GB has its size only. `LEARNING`: seconds in which the last of the
        categories is learnt; batch is that of the training.
    """
    path = costs_file(study, folder)
    if path.exists():
        return read_costs_file(path)
    published = read_published(folder).costs
    return published[published["costs_id"] == costs_id(study)].reindex(columns=COST_COLUMNS)


def read_costs_file(path: Path) -> pd.DataFrame:
    """A table of costs that was measured in this folder."""
    return read_table(path, NUMBERS[COSTS], "", COST_COLUMNS, "; delete it and measure again")


def cost_summary(table: pd.DataFrame, categories: int, image_size: int) -> pd.DataFrame:
    """Median and 95th percentile of latency, median frames a second, sizes: one row a method and batch size."""
    chosen = (table["categories"] == categories) & (table["image_size"] == image_size)
    chosen &= table["metric"] != LEARNING
    records = []
    for keys, part in table[chosen].groupby(["modality", "method", "batch"], sort=False):
        of = {metric: values["value"] for metric, values in part.groupby("metric", sort=False)}
        latency = of.pop(
            "latency (ms)", pd.Series(dtype=float)
        )  # a model that is too large has none
        tails = {f"latency p{q} (ms)": latency.quantile(q / 100) for q in (50, 95)}
        medians = {metric: values.median() for metric, values in of.items()}
        names = dict(zip(["modality", "method", "batch"], keys, strict=True))
        records.append(names | tails | medians)
    return pd.DataFrame(records)


def with_accuracy(summary: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The costs with what the same configurations reach after their last step, in percent; missing where not run.

    Parameters
    ----------
    summary : DataFrame
        What `cost_summary` returns.
    rows : DataFrame
        `iumad.study.load.load_rows` of the measured study.
    """
    if summary.empty or rows.empty:
        return summary
    means = step_means(last_step(rows))
    shown = means[means["metric"].isin(["i_auroc", "aupro"])]
    wide = 100 * shown.pivot_table("value", ["modality", "method"], "metric")
    return summary.merge(
        wide.rename(columns=LABELS).reset_index(), "left", on=["modality", "method"]
    )


def learning_summary(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """What learning one more category takes, and what comes of it.

    Parameters
    ----------
    table : DataFrame
        What `read_costs` returns.
    rows : DataFrame
        `iumad.study.load.load_rows` of the measured study in `learning_setting`.

    Returns
    -------
    DataFrame
        modality, method, seconds (median), low, high (the fastest and the slowest of some processes), and, where
        the same configurations are trained, their seeds and in percent i_auroc after the last step, new_i_auroc,
        fm_i_auroc. Without rows where no learning was measured.
    """
    keys = ["modality", "method"]
    seconds = table[table["metric"] == LEARNING].groupby(keys, sort=False)["value"]
    summary = seconds.agg(seconds="median", low="min", high="max").reset_index()
    if summary.empty or rows.empty:
        return summary
    metrics = ["i_auroc", "new_i_auroc", "fm_i_auroc"]
    final = final_table(rows)
    final = final[final["metric"].isin(metrics) & (final["category"] == MEAN)]
    wide = 100 * final.pivot_table("value", keys, "metric").reindex(columns=metrics)
    seeds = final.groupby(keys)["seed"].nunique().rename("seeds")
    return summary.merge(wide.join(seeds).reset_index(), "left", on=keys)


def cost_growth(table: pd.DataFrame, factor: str, modality: str) -> pd.DataFrame:
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


def cost_claims(table: pd.DataFrame, categories: int, image_size: int) -> pd.DataFrame:
    """Costs at batch 1 as `iumad.study.claims` reads them: logarithms to base 2, so that differences are ratios.

    Each process is a "seed": repeats within one are averaged, because they are not independent.
    """
    names = {"frames/s": "log2 frames/s", "model (MB)": "log2 size"}
    chosen = (table["categories"] == categories) & (table["image_size"] == image_size)
    part = table[chosen & (table["batch"] == 1) & table["metric"].isin(names)]
    process = np.where(part["metric"] == "frames/s", part["repeat"] // COST_REPEATS, part["repeat"])
    values = part.assign(
        setting=f"{categories}-0",
        seed=process,
        metric=part["metric"].map(names),
        value=np.log2(part["value"]),
    )
    keys = ["method", "modality", "setting", "seed", "metric"]
    return values.groupby(keys, sort=False)["value"].mean().reset_index()
