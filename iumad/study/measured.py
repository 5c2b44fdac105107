"""Measurements on finished models and costs of methods, as tables that pages show, and publishing of all tables.

    results/steps/<key of the last step>/<kind>-<hash of the rows>.csv          made here (`iumad.study.measure`)
    results/<profile>/<kind>.csv.gz                                             published, with the run_id
    results/efficiency/<hash of the methods>.csv                                costs (`iumad.study.efficiency`)

As for results, what was made here comes first; the column `source` says which: "own" or "published". `publish`
writes the numbers of finished runs into the committed tables (`iumad.study.load`). Nothing here needs torch.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig, require_name, stable_hash
from iumad.config.sections import MiniCandiesConfig, PerturbConfig
from iumad.data import AbsentData, data_of
from iumad.data.perturb import PerturbedDataset
from iumad.data.sample import Dataset
from iumad.errors import DataError
from iumad.machine import read_table, replacing
from iumad.study.load import (
    COSTS,
    NUMBERS,
    OWN,
    PUBLISHED,
    RUN_LABELS,
    STEP_COLUMNS,
    is_same_data,
    load_provenance,
    load_rows,
    read_published,
    training_log,
    write_published,
)
from iumad.study.results import LABELS, MEAN, final_table, last_step, step_means
from iumad.study.steps import Step, steps_of

KINDS: dict[str, dict[str, type]] = {
    # every test image: its score; of some also the anomaly map, a grey PNG in base64 (0 is `low`, 255 `high`)
    "samples": {
        "sample_id": str,
        "category": str,
        "defect": str,
        "geometric": str,  # "True", "False", or "" where it is not known
        "score": float,
        "map": str,
        "low": float,
        "high": float,
    },
    # every marked defect: the share of its image, of good images with a lower score; pixel AUROC inside its image
    "defects": {
        "sample_id": str,
        "category": str,
        "defect": str,
        "share": float,
        "found": float,
        "inside": float,
    },
    # test images of the first categories, perturbed: means over these categories
    "perturbed": {"perturbation": str, "strength": float, "metric": str, "value": float},
    # other ways to evaluate the same maps (`iumad.evaluation.evaluate`)
    "details": {"category": str, "detail": str, "metric": str, "here": float, "there": float},
    # evaluations in which images of one file name overwrite each other, summed up
    "lottery": {
        "images": int,
        "files": int,
        "here": float,
        "there": float,
        "low": float,
        "high": float,
        "best": float,
        "evaluations": int,
        "undefined": float,
    },
    # the test images after each epoch of the last step
    "epochs": {"epoch": int, "category": str, "metric": str, "value": float},
    # what the parts of a model know (`iumad.study.diagnosis`)
    "inside": {"step": int, "categories": str, "quantity": str, "value": float},
    # what probes read of category and doses before and after the bottleneck, of all seeds
    "information": {
        "representation": str,
        "target": str,
        "score": float,
        "chance": float,
        "bits": float,
        "possible": float,
        "n": int,
    },
    # parts of a model: parameters, those that are trained, 10^9 operations for one image
    "parts": {"part": str, "parameters": int, "trained": int, "gflops": float},
    # share of a part's tensors that the gradient of a term of the loss reaches
    "gradients": {"part": str, "term": str, "share": float},
}
"""Kind -> its columns; each kind's table also has the run's labels."""
OF_EVERY_SEED = ("information",)  # the others are measured for the first seed
STRENGTHS = {"redundant noise": (0.0, 0.1, 0.2, 0.4), "spurious background": (0.0, 0.25, 0.5, 1.0)}
FIELDS = {"redundant noise": "redundant", "spurious background": "spurious"}
"""Perturbation -> its strengths in the kind "perturbed", and its key in a params file."""


def measured_part(study: StudyConfig, kind: str = "") -> StudyConfig:
    """The part of a study that is measured: all methods in the last setting and modality, as a rule first seed."""
    seeds = study.seeds if kind in OF_EVERY_SEED else study.seeds[:1]
    return study.select(settings=study.settings[-1:], modalities=study.modalities[-1:], seeds=seeds)


def perturbed(dataset: Dataset, perturbation: str, strength: float) -> Dataset:
    """The data set with a perturbation of its images; itself at strength 0."""
    if strength == 0:
        return dataset
    config = PerturbConfig.model_validate({FIELDS[perturbation]: strength})
    return PerturbedDataset(dataset, config, dataset.categories)


def load_measured(study: StudyConfig, kind: str, results: str | Path) -> pd.DataFrame:
    """What was measured of one kind on the runs of a study.

    Parameters
    ----------
    study : StudyConfig
    kind : str
        One of `KINDS`.
    results : path
        Results folder; the published tables lie in it too.

    Returns
    -------
    DataFrame
        run_id, method, modality, setting, seed, the columns of the kind, source; runs that were not measured have
        no row.
    """
    published, data = _read_published(kind, Path(results)), data_of(study.data)
    steps_published = read_published(results).runs["steps"]
    found = []
    for run in study.runs():
        steps = steps_of(run, results, data)
        path = _file_of(steps[-1], kind)
        if path.exists():
            table, source = _read(path, kind), OWN
        elif run.run_id in published and is_same_data(steps, data, steps_published.get(run.run_id)):
            table, source = published[run.run_id], PUBLISHED
        else:
            continue
        labels = {"run_id": run.run_id} | {name: getattr(run, name) for name in RUN_LABELS}
        found.append(table.assign(**labels, source=source))
    columns = ["run_id", *RUN_LABELS, *KINDS[kind], "source"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def measured_file(run: RunConfig, kind: str, results: Path) -> Path:
    """Where the measurements of a run lie that were made in this folder: other test images, another file."""
    return _file_of(steps_of(run, results)[-1], kind)


def _file_of(last: Step, kind: str) -> Path:
    return last.rows.with_name(last.rows.name.replace("rows", kind, 1))


def publish_measured(studies: Sequence[StudyConfig], results: Path, profile: str) -> dict[str, int]:
    """Write what was measured on the runs of some studies to ``<results>/<profile>/``; rows of each kind.

    Maps of images on disk are left out: they are pictures of data whose licence may forbid to publish them.
    """
    counts = {}
    for kind, columns in KINDS.items():
        tables = [load_measured(study, kind, results) for study in studies]
        for study, each in zip(studies, tables, strict=True):
            if "map" in each and not isinstance(study.data, MiniCandiesConfig):
                each["map"] = ""
        table = pd.concat([each[["run_id", *columns]] for each in tables], ignore_index=True)
        if len(table := table.drop_duplicates()):
            write_measured(table, results / profile / f"{kind}.csv.gz")
            counts[kind] = len(table)
    return counts


def write_measured(table: pd.DataFrame, path: Path) -> None:
    """Write a table of measurements in one step, packed if its name says so."""
    content = table.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
    with replacing(path) as file:
        file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _read_published(kind: str, results: Path) -> dict[str, pd.DataFrame]:
    tables: dict[str, pd.DataFrame] = {}
    for path in sorted(results.glob(f"*/{kind}.csv.gz")):
        for run_id, table in _read(path, kind).groupby("run_id", sort=False):
            tables.setdefault(str(run_id), table.drop(columns="run_id"))
    return tables


def _read(path: Path, kind: str) -> pd.DataFrame:
    numbers = {name: type_ for name, type_ in KINDS[kind].items() if type_ is not str}
    return read_table(path, numbers, "", KINDS[kind], "; delete it and measure again")


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
    """Twelve hex digits: the hash of all that decides what a study's methods cost; learning rates do not."""
    left_out: Any = {"profile": True, "seed": True, "training": {"lr"}, "increment": {"lr"}}
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


def publish(studies: Sequence[StudyConfig], results: Path, profile: str) -> dict[str, int]:
    """Write all finished runs of some studies to ``<results>/<profile>/``, each once.

    The tables hold exactly the runs of these studies that are finished here, or else published already; what was
    published and is in none of them is dropped.

    Returns
    -------
    dict
        Number of runs, rows and steps that are published now.

    Raises
    ------
    ConfigError
        The profile is no name of a folder in `results`.
    DataError
        No run is finished, or a step was made by code that is not committed.
    """
    require_name(profile, "--profile")
    rows = pd.concat([load_rows(study, results) for study in studies], ignore_index=True)
    if rows.empty:
        raise DataError(
            f"{results}: no run of {_names(studies)} is finished; `iumad run` makes them"
        )
    steps = pd.concat([load_provenance(study, results) for study in studies], ignore_index=True)
    _require_committed(rows, steps)
    log = pd.concat([training_log(study, results) for study in studies], ignore_index=True)
    costs = [(costs_id(study), read_costs(study, results)) for study in studies]
    source = rows.drop_duplicates("run_id").set_index("run_id")["source"]
    published = read_published(results).runs["steps"]
    runs: dict[str, tuple[RunConfig, Dataset | AbsentData]] = {}
    for study in studies:
        data = data_of(study.data)
        for run in study.runs():
            runs.setdefault(run.run_id, (run, data))
    records = []
    for run_id in source.index:
        run, data = runs[run_id]
        keys = published.get(run_id)
        if source[run_id] == OWN:  # data of runs that were published before may be absent here
            keys = [step.key for step in steps_of(run, "", data)]
        labels = {name: getattr(run, name) for name in RUN_LABELS}
        records.append({"run_id": run_id, "dataset": run.data.shown_name, **labels, "steps": keys})
    table = pd.DataFrame(records)
    keys = steps.drop_duplicates(["run_id", "step"]).set_index(["run_id", "step"])["step_key"]
    log = log.join(keys, on=["run_id", "step"])
    row_columns = ["run_id", "step", "category", "metric", "value", "n_good", "n_defect"]
    unique_rows = rows[row_columns].drop_duplicates(["run_id", "step", "category", "metric"])
    unique_steps = steps[STEP_COLUMNS].drop_duplicates("step_key")
    unique_steps = unique_steps.astype({"threads": "Int64", "cores": "Int64"})
    unique_costs = dict(costs)
    write_published(
        results / profile,
        table,
        unique_rows,
        unique_steps,
        log[["step_key", "epoch", "term", "value"]].drop_duplicates(["step_key", "epoch", "term"]),
        pd.concat([part.assign(costs_id=key) for key, part in unique_costs.items()]),
    )
    counts = {"runs": len(table), "rows": len(unique_rows), "steps": len(unique_steps)}
    return counts | publish_measured(studies, results, profile)


def _require_committed(rows: pd.DataFrame, steps: pd.DataFrame) -> None:
    """Published numbers can be traced to a commit."""
    own = steps[steps["source"] == OWN]
    keys = ["run_id", "step"]
    made = rows[rows["source"] == OWN].drop_duplicates(keys)
    lost = made[~made.set_index(keys).index.isin(steps.set_index(keys).index)]
    if len(lost):
        first = lost.iloc[0]
        raise DataError(
            f"{len(lost)} steps have numbers, but no model any more that says where they come from, first "
            f"{first['method']} {first['modality']} {first['setting']} seed {first['seed']} step {first['step']}: "
            "delete these folders and run them again"
        )
    wrong = own[(own["modified"] != "False") | (own["commit"] == "")]
    if len(wrong):
        first = wrong.iloc[0]
        raise DataError(
            f"{len(wrong)} steps were made by code that is not committed, first {first['method']} "
            f"{first['modality']} {first['setting']} seed {first['seed']} step {first['step']} "
            f"(steps/{first['step_key']}): commit, delete these folders and run them again"
        )


def _names(studies: Sequence[StudyConfig]) -> str:
    return ", ".join(study.profile for study in studies)
