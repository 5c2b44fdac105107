"""What details of evaluation do to the runs of a study: measured, summarised, drawn."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from iumad.config.schema import RunConfig, StudyConfig
from iumad.evaluation.details import compare, overwritten
from iumad.evaluation.evaluate import anomaly_maps
from iumad.evaluation.metrics import image_auroc, image_scores, or_missing
from iumad.models.base import Detector
from iumad.models.registry import method_class
from iumad.report.style import MARKERS, colours_of, in_style
from iumad.study.runner import RunWork, score_categories, trained_detector, watch_training
from iumad.study.statistics import summarise
from iumad.study.steps import steps_of

RUN = ["method", "modality", "setting", "seed"]
EPOCHS = [*RUN, "epoch", "category", "metric", "value"]
BEST_EPOCH = "best epoch on test images"


def measure(study: StudyConfig, folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure all details on all runs of a study.

    Returns
    -------
    DataFrame
        `RUN`, category, detail, metric, here and there: the value as this study computes it and the value with
        the detail. A category in which one of them is undefined has no row.
    DataFrame
        `RUN` and the columns of `iumad.evaluation.details.overwritten`.
    """
    details, lotteries = [], []
    for run in study.runs():
        keys = _keys(run)
        categories = list(score_categories(run, folder))
        for one in categories:
            for detail, metric, here, there in compare(one, run.evaluation):
                row = {"category": one.category, "detail": detail, "metric": metric}
                details.append({**keys, **row, "here": here, "there": there})
        lotteries.append(overwritten(categories, np.random.default_rng(run.seed)).assign(**keys))
    return pd.DataFrame(details), pd.concat(lotteries, ignore_index=True)


def watch_epochs(run: RunConfig, folder: str | Path) -> pd.DataFrame:
    """Train a run's last step once more and take the image AUROC on the test images after each epoch.

    Returns
    -------
    DataFrame
        `RUN`, epoch (from 1), category, metric, value; the last epoch's are the published ones.
    """
    work, config = RunWork(run), run.evaluation
    last = steps_of(run, folder, work.dataset.categories)[-1]
    trained_detector(work, last)
    ids, index = work.ids(last.categories, "train"), work.dataset.index
    records = []

    def look(detector: Detector, epoch: int) -> None:
        seen = copy.deepcopy(detector).eval()
        seen.calibrate(work.training_store(last), ids)
        for category, test in index[index["split"] == "test"].groupby("category", sort=False):
            maps = anomaly_maps(seen, work.store, test["sample_id"].tolist())
            scores = image_scores(maps, config.image_score, config.pool)
            value = or_missing(image_auroc, scores, test["label"].to_numpy(dtype=int))
            records.append(
                {"epoch": epoch + 1, "category": category, "metric": "i_auroc", "value": value}
            )

    watch_training(work, last, look)
    return pd.DataFrame(records).assign(**_keys(run))[EPOCHS]


def each_epoch(study: StudyConfig, folder: str | Path) -> pd.DataFrame:
    """`watch_epochs` of every run of a study that has epochs."""
    runs = [run for run in study.runs() if method_class(run.model).trained]
    tables = [watch_epochs(run, folder) for run in runs]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=EPOCHS)


def best_epoch(epochs: pd.DataFrame) -> pd.DataFrame:
    """The last epoch beside the one that is best on the test images, in the columns of `measure`'s details."""
    tables = []
    for _, run in epochs.groupby(RUN, sort=False):
        table = run.pivot(index="category", columns="epoch", values="value")  # noqa: PD010
        best = table[table.mean().idxmax()]
        pair = pd.DataFrame({"here": table[table.columns[-1]], "there": best}).reset_index()
        tables.append(pair.assign(**run[RUN].iloc[0], detail=BEST_EPOCH, metric="i_auroc"))
    columns = [*RUN, "category", "detail", "metric", "here", "there"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def shifts(details: pd.DataFrame) -> pd.DataFrame:
    """Mean shift of each detail over categories, with its 95 % t interval.

    Categories are the unit: each counts with its mean over seeds.

    Returns
    -------
    DataFrame
        method, modality, detail, metric, here, there (percent), shift, low, high (points), n (categories).
    """
    by = ["method", "modality", "detail", "metric"]
    means = details.groupby([*by, "category"], sort=False)[["here", "there"]].mean().reset_index()
    unit = means.rename(columns={"category": "seed"}).assign(value=means["there"] - means["here"])
    table = summarise(unit, by).drop(columns="sd").rename(columns={"mean": "shift"})
    values = means.groupby(by, sort=False)[["here", "there"]].mean().reset_index()
    table = values.merge(table, on=by)
    table[["here", "there", "shift", "low", "high"]] *= 100
    return table


def luck(lotteries: pd.DataFrame) -> pd.DataFrame:
    """What one evaluation with overwritten images may give, and the best of all of them; by run.

    Returns
    -------
    DataFrame
        `RUN`, images, files (that remain), here, there (percent; mean over evaluations), shift, low, high (points;
        mean and the middle 95 % of evaluations), best (points above here), evaluations, undefined (share).
    """
    records = []
    for _, run in lotteries.groupby(RUN, sort=False):
        here = run["here"].iloc[0]
        shift = 100 * (run["value"] - here)
        low, high = shift.quantile([0.025, 0.975])
        records.append(
            {
                **run[[*RUN, "images", "files"]].iloc[0],
                "here": 100 * here,
                "there": 100 * run["value"].mean(),
                "shift": shift.mean(),
                "low": low,
                "high": high,
                "best": shift.max(),
                "evaluations": len(run),
                "undefined": run["value"].isna().mean(),
            }
        )
    return pd.DataFrame(records)


@in_style
def shift_plot(table: pd.DataFrame) -> Figure:
    """Draw the shift of each detail with its interval, a row per detail and metric, a colour per method.

    Parameters
    ----------
    table : DataFrame
        What `shifts` returns, of one modality.
    """
    rows = (table["detail"] + ", " + table["metric"]).drop_duplicates().tolist()
    levels = table["method"].unique().tolist()
    figure, axis = plt.subplots(figsize=(6.6, 0.7 + 0.36 * len(rows)))
    for place, level in enumerate(levels):
        part = table[table["method"] == level]
        names = part["detail"] + ", " + part["metric"]
        y = [rows.index(name) + 0.2 * (place - (len(levels) - 1) / 2) for name in names]
        error = [part["shift"] - part["low"], part["high"] - part["shift"]]
        look: dict[str, Any] = {
            "linestyle": "none",
            "elinewidth": 1,
            "color": colours_of(levels)[level],
            "marker": MARKERS[place % len(MARKERS)],
        }
        axis.errorbar(part["shift"], y, xerr=error, label=level, **look)
    axis.axvline(0, color="#222222", linewidth=0.8)
    axis.set_yticks(range(len(rows)), rows)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel="shift of the metric (points)")
    axis.grid(visible=True, axis="x")
    figure.legend(loc="outside upper center", ncols=min(len(levels), 4))
    return figure


def _keys(run: RunConfig) -> dict[str, object]:
    return {name: getattr(run, name) for name in RUN}
