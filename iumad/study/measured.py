"""Measurements on finished models, as tables that pages show.

    results/steps/<key of the last step>/<kind>-<hash of the rows>.csv          made here (`iumad.study.measure`)
    results/<profile>/<kind>.csv.gz                                             published, with the run_id

As for results, what was made here comes first; the column `source` says which: "own" or "published". Nothing here
needs torch.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig
from iumad.config.sections import MiniCandiesConfig, PerturbConfig
from iumad.data import data_of
from iumad.data.perturb import PerturbedDataset
from iumad.data.sample import Dataset
from iumad.machine import read_table, replacing
from iumad.study.load import (
    OWN,
    PUBLISHED,
    RUN_LABELS,
    is_same_data,
    read_published,
)
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
    # every defective image: the share of it that is marked (missing without a mask), of good images with a lower
    # score; pixel AUROC and AUPRO inside it
    "defects": {
        "sample_id": str,
        "category": str,
        "defect": str,
        "share": float,
        "found": float,
        "inside": float,
        "aupro": float,
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
    # the test images after each epoch of the last step; gates belong to no category
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
