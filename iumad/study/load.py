"""What is finished, here or in the published tables, and how long the rest may take; needs no torch and no image.

What was made in this results folder comes first, else the published numbers of the same run; the column `source`
says which: "own" or "published". The published numbers are committed tables under ``results/<profile>/``;
``results/README.md`` has their columns.

    runs.csv      one line a run: its labels and the keys of its steps
    rows.csv.gz   one line a category after a step of a run, with a column for each metric
    steps.csv     one line a trained step: what it took, and where it came from
    log.csv.gz    one line a term of the loss in an epoch of a step
    costs.csv     what `iumad efficiency` measured

Everything is found by the `run_id` or the step's key, so a study sees what another one has made.
"""

import gzip
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig
from iumad.data import AbsentData, Dataset, data_of
from iumad.data.public import published_counts
from iumad.machine import read_table, replacing
from iumad.study.results import LOG_SCHEMA, ROW_SCHEMA, read_step_table, validate_rows
from iumad.study.steps import Provenance, Step, read_provenance, steps_of

RUNS, ROWS, STEPS, LOG, COSTS = "runs.csv", "rows.csv.gz", "steps.csv", "log.csv.gz", "costs.csv"
UNDEFINED = "undefined"  # a metric without a value; an empty cell is a metric that was not measured
STEP_COLUMNS = [
    "step_key",
    "seconds",
    "peak_memory_mb",
    "threads",
    "device",
    "cpu",
    "cores",
    "system",
    "python",
    "torch",
    "timm",
    "numpy",
    "commit",
    "modified",
]
"""What is known of a trained step: seconds of training with all resumed parts and evaluation; 10^6 bytes."""

_ROW_KEYS = ["run_id", "step", "category", "n_good", "n_defect"]
NUMBERS: dict[str, dict[str, type]] = {
    RUNS: {"seed": int},
    ROWS: {"step": int, "n_good": int, "n_defect": int},
    STEPS: dict.fromkeys(["seconds", "peak_memory_mb", "threads", "cores"], float),
    LOG: {"epoch": int, "value": float},
    COSTS: dict.fromkeys(["categories", "image_size", "batch", "repeat", "value"], float),
}
_COLUMNS = {
    RUNS: ["run_id", "dataset", "method", "modality", "setting", "seed", "steps"],
    ROWS: _ROW_KEYS,
    STEPS: STEP_COLUMNS,
    LOG: ["step_key", "epoch", "term", "value"],
    COSTS: ["costs_id", "method", "modality", "metric", "value"],
}


@dataclass(frozen=True)
class Published:
    """All published tables below a results folder; without rows where nothing is published.

    Attributes
    ----------
    runs : indexed by run_id; `steps` is a tuple of step keys
    rows : run_id, step, category, metric, value, n_good, n_defect
    steps : `STEP_COLUMNS`, indexed by step_key
    log : step_key, epoch, term, value
    costs : costs_id and the columns of `iumad.study.costs`
    """

    runs: pd.DataFrame
    rows: pd.DataFrame
    steps: pd.DataFrame
    log: pd.DataFrame
    costs: pd.DataFrame


def read_published(results: str | Path) -> Published:
    """Read the published tables of all profiles below a results folder; what two have is taken from the first.

    Raises
    ------
    DataError
        A table cannot be read or lacks a column.
    """
    files = [path for name in _COLUMNS for path in sorted(Path(results).glob(f"*/{name}"))]
    return _read_all(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))


def write_published(
    folder: Path,
    runs: pd.DataFrame,
    rows: pd.DataFrame,
    steps: pd.DataFrame,
    log: pd.DataFrame,
    costs: pd.DataFrame,
) -> None:
    """Write the tables of one profile; the arguments are as in `Published`, but with plain indices."""
    metrics = list(dict.fromkeys(rows["metric"]))
    values = rows.assign(value=rows["value"].map(_digits))
    wide = values.pivot(index=_ROW_KEYS, columns="metric", values="value")[metrics]  # noqa: PD010
    runs = runs.assign(steps=runs["steps"].map(" ".join))
    log = log.assign(value=log["value"].map("{:.4g}".format))
    tables = {RUNS: runs, ROWS: wide.reset_index(), STEPS: steps, LOG: log, COSTS: costs}
    for name, table in tables.items():
        content = table.to_csv(index=False, lineterminator="\n").encode()
        with replacing(folder / name) as file:
            file.write(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)


def _digits(value: float) -> str:
    return UNDEFINED if pd.isna(value) else f"{value:.6g}"


@lru_cache(maxsize=4)
def _read_all(files: tuple[tuple[Path, int, int], ...]) -> Published:
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in _COLUMNS}
    for path, *_ in files:
        needed = _COLUMNS[path.name]
        table = read_table(path, NUMBERS[path.name], "", needed, "; get it again with git")
        found[path.name].append(table)

    def joined(name: str, unique: str | list[str]) -> pd.DataFrame:
        tables = [table for table in found[name] if len(table)]
        if not tables:
            return pd.DataFrame(columns=_COLUMNS[name])
        return pd.concat(tables, ignore_index=True).drop_duplicates(unique, ignore_index=True)

    runs = joined(RUNS, "run_id")
    return Published(
        runs=runs.assign(steps=[tuple(keys.split()) for keys in runs["steps"]]).set_index("run_id"),
        rows=_long(joined(ROWS, _ROW_KEYS[:3])),
        steps=joined(STEPS, "step_key").set_index("step_key", drop=False),
        log=joined(LOG, ["step_key", "epoch", "term"]),
        costs=pd.concat(found[COSTS], ignore_index=True)
        if found[COSTS]
        else pd.DataFrame(columns=_COLUMNS[COSTS]),
    )


def _long(wide: pd.DataFrame) -> pd.DataFrame:
    """One line for each metric that was measured, the lines of a category together."""
    metrics = [name for name in wide if name not in _ROW_KEYS]
    long = wide.melt(_ROW_KEYS, metrics, "metric", "text", ignore_index=False)
    long = long[long["text"] != ""].sort_index(kind="stable")
    undefined = long["text"] == UNDEFINED
    values = long["text"].mask(undefined, "nan").astype(float)
    columns = ["run_id", "step", "category", "metric", "value", "n_good", "n_defect"]
    return long.assign(value=values)[columns].reset_index(drop=True)


RUN_LABELS = ["method", "modality", "setting", "seed"]
OWN, PUBLISHED = "own", "published"


def load_rows(study: StudyConfig, results: str | Path) -> pd.DataFrame:
    """Rows of the runs of a study that are finished, of all their steps.

    Parameters
    ----------
    study : StudyConfig
    results : path
        Results folder; the published tables lie in it too.

    Returns
    -------
    DataFrame
        `iumad.study.results.ROW_SCHEMA` and source.
    """
    data, published = data_of(study.data), read_published(results)
    published_rows = dict(iter(published.rows.groupby("run_id", sort=False)))
    found = []
    for run in study.runs():
        steps = steps_of(run, results, data)
        source = _source_of_rows(run, steps, data, published)
        if source == OWN:
            tables = [read_step_table(step.rows).assign(step=step.number) for step in steps]
            rows = pd.concat(tables, ignore_index=True)
        elif source == PUBLISHED:
            rows = published_rows[run.run_id]
        else:
            continue
        found.append(with_run_columns(rows, run).assign(source=source))
    if not found:
        return no_rows()
    rows = pd.concat(found, ignore_index=True)
    valid = validate_rows(rows[list(ROW_SCHEMA.columns)])
    return valid.assign(source=rows["source"])


def progress(study: StudyConfig, results: str | Path) -> pd.DataFrame:
    """All runs of a study: method, modality, setting, seed, finished (own or published), source ("" if not)."""
    data, published = data_of(study.data), read_published(results)
    records = []
    for run in study.runs():
        source = _source_of_rows(run, steps_of(run, results, data), data, published)
        records.append((run.method, run.modality, run.setting, run.seed, source != "", source))
    return pd.DataFrame(records, columns=[*RUN_LABELS, "finished", "source"])


def training_log(study: StudyConfig, results: str | Path) -> pd.DataFrame:
    """Loss terms per epoch of the finished steps of a study: `iumad.study.results.LOG_SCHEMA` and source."""
    published = read_published(results)
    logs = dict(iter(published.log.groupby("step_key", sort=False)))
    found = []
    for run, step, key, source in _finished_steps(study, results, published, logs):
        log = read_step_table(step.log) if source == OWN else logs[key]
        if not log.empty:  # methods without epochs have none
            found.append(with_run_columns(log.assign(step=step.number), run).assign(source=source))
    columns = [*LOG_SCHEMA.columns, "source"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def load_provenance(study: StudyConfig, results: str | Path) -> pd.DataFrame:
    """Where the finished steps of a study come from, and what each took.

    Returns
    -------
    DataFrame
        run_id, method, modality, setting, seed, step, the columns of `iumad.study.load.STEP_COLUMNS`, source.
        A step that several runs share has a line for each of them, with one `step_key`.
    """
    published, records = read_published(results), []
    for run, step, key, source in _finished_steps(study, results, published, published.steps.index):
        labels = {"run_id": run.run_id} | {name: getattr(run, name) for name in RUN_LABELS}
        record = read_provenance(step.provenance) if source == OWN else None
        facts = step_facts(key, record) if record else dict(published.steps.loc[key])
        records.append({**labels, "step": step.number, **facts, "source": source})
    columns = ["run_id", *RUN_LABELS, "step", *STEP_COLUMNS, "source"]
    return pd.DataFrame(records, columns=columns)


def _source_of_rows(
    run: RunConfig, steps: list[Step], data: Dataset | AbsentData, published: Published
) -> str:
    """Where a run's numbers are: made here, published of the same data as far as that can be told, or ""."""
    if all(step.rows.exists() for step in steps):
        return OWN
    if run.run_id not in published.runs.index:
        return ""
    keys = published.runs.loc[run.run_id, "steps"]
    return PUBLISHED if is_same_data(steps, data, keys) else ""


def is_same_data(
    steps: Sequence[Step], data: Dataset | AbsentData, keys: Sequence[str] | None
) -> bool:
    """Whether published steps, by their keys, are of the data that lie here, as far as that can be told."""
    return (
        keys is None or isinstance(data, AbsentData) or list(keys) == [step.key for step in steps]
    )


def _finished_steps(
    study: StudyConfig, results: str | Path, published: Published, keys: Collection[str]
) -> Iterator[tuple[RunConfig, Step, str, str]]:
    """Run, step, key and source of the steps that were trained here or have one of the published keys.

    Without the data only the published tables know the keys.
    """
    data = data_of(study.data)
    for run in study.runs():
        steps = steps_of(run, results, data)
        names = [step.key for step in steps]
        if isinstance(data, AbsentData) and run.run_id in published.runs.index:
            names = list(published.runs.loc[run.run_id, "steps"])
        for step, key in zip(steps, names, strict=True):
            if step.checkpoint.exists():
                yield run, step, step.key, OWN
            elif key in keys:
                yield run, step, key, PUBLISHED


def step_facts(key: str, record: Provenance) -> dict[str, object]:
    """A step's provenance as one line of `iumad.study.load.STEP_COLUMNS`."""
    return {
        "step_key": key,
        "seconds": record.duration_s,
        "peak_memory_mb": record.peak_memory_mb,
        "threads": record.threads,
        "device": record.device,
        "cpu": record.cpu,
        "cores": record.cores,
        "system": record.system,
        "python": record.python,
        **{name: record.packages.get(name, "") for name in ("torch", "timm", "numpy")},
        "commit": record.commit or "",
        "modified": str(record.modified),
    }


def remaining_error(log: pd.DataFrame) -> pd.DataFrame:
    """What is left of the reconstruction error (Eq. 9) at the end of the base step, beside its first epoch.

    A share has no unit, so terms that are summed and terms that are averaged over channels compare.

    Parameters
    ----------
    log : DataFrame
        `iumad.study.results.LOG_SCHEMA`; may be empty.

    Returns
    -------
    DataFrame
        method, seeds, first, last (means over seeds), "remains (%)".
    """
    base = log[(log["step"] == 0) & (log["term"] == "fusion")].sort_values("epoch")
    records = []
    for method, part in base.groupby("method", sort=False):
        runs = part.groupby("seed")["value"]
        first, last = runs.first().mean(), runs.last().mean()
        records.append((method, part["seed"].nunique(), first, last, 100 * last / first))
    columns = ["method", "seeds", "first epoch", "last epoch", "remains (%)"]
    return pd.DataFrame(records, columns=columns)


def with_run_columns(table: pd.DataFrame, run: RunConfig) -> pd.DataFrame:
    """The table with the columns that say which run its rows belong to."""
    return table.assign(
        run_id=run.run_id,
        profile=run.profile,
        dataset=run.data.shown_name,
        method=run.method,
        modality=run.modality,
        setting=run.setting,
        seed=run.seed,
    )


def no_rows() -> pd.DataFrame:
    """A table of results without rows."""
    columns = ROW_SCHEMA.columns
    return pd.DataFrame(
        {name: pd.Series(dtype=str(c.dtype)) for name, c in columns.items()}
    ).assign(source="")


@dataclass(frozen=True)
class Speed:
    """Seconds an image, in training and in test (`iumad.study.efficiency.measure_speeds`).

    `memory` is the process's peak while it trains with the batches of the params file, in 10^6 bytes, where known.
    """

    training: float
    test: float
    memory: float | None = None


Speeds = Mapping[tuple[str, str], Speed]  # by method and modality
Like = tuple[str, str, bool]
"""What the time of a step depends on, beside its categories: method, modality, whether it is an increment."""


def plan(
    study: StudyConfig, results: Path, speeds: Speeds | None = None
) -> tuple[pd.DataFrame, float | None]:
    """The runs of a study, what of each is done, and an estimate of the time that is left.

    Parameters
    ----------
    study, results : StudyConfig, Path
    speeds : Speeds, optional
        From which the time of steps is worked out where none of their like was made here or published.

    Returns
    -------
    DataFrame
        run_id, method, modality, setting, seed, steps, done (steps finished here), published (minutes that the
        published run took, where there is one), left (minutes, where known).
    float or None
        Seconds left in all, a step that several runs share counted once; None where one is not known. A step's
        time is what the same step took where it was published, else that of finished steps of the same method and
        modality for as many categories, made here or published.
    """
    published = read_published(results)
    data = data_of(study.data)
    steps = [(run, steps_of(run, results, data)) for run in study.runs()]
    known = _times(steps, published)
    images = image_counts(study, data)
    records: list[dict[str, object]] = []
    missing: dict[str, float] = {}
    for run, run_steps in steps:
        todo = [step for step in run_steps if not step.checkpoint.exists()]
        speed = (speeds or {}).get((run.method, run.modality))
        expected = {}
        for step in todo:
            seconds = _expected(run, step, published, known)
            if pd.isna(seconds) and speed is not None:
                seconds = _worked_out(run, step, images, speed)
            expected[step.key] = seconds
        missing |= expected
        records.append(
            {
                "run_id": run.run_id,
                "method": run.method,
                "modality": run.modality,
                "setting": run.setting,
                "seed": run.seed,
                "steps": len(run_steps),
                "done": len(run_steps) - len(todo),
                "published": _published_minutes(run, published),
                "left": _sum(expected) / 60,
            }
        )
    left = _sum(missing)
    return pd.DataFrame(records), None if pd.isna(left) else left


def needs(study: StudyConfig, seconds: float, size: int, speeds: Speeds | None = None) -> list[str]:
    """What the features and inputs of all images take, and training at most, in words.

    Parameters
    ----------
    study : StudyConfig
    seconds, size : float, int
        For one image of one modality: seconds for its features, bytes of features and image.
    speeds : Speeds, optional
    """
    memory = {key: speed.memory for key, speed in (speeds or {}).items() if speed.memory}
    training = []
    if memory:
        most = max(memory, key=lambda key: memory[key])
        amount = f"{memory[most] / 1000:.1f} GB for {most[0]} ({most[1]}), the largest"
        training = [f"memory: {amount}, beside the inputs that it keeps"]
    data = data_of(study.data)
    counts = image_counts(study, data).sum(axis=1, skipna=False)
    names = {name for modality in study.modalities for name in modality.split("+")}
    images = len(names) * counts.sum(skipna=False)
    if pd.isna(images):
        unknown = f"features: {seconds:.2g} s an image; how many there are is known with the data"
        return [unknown, *training]
    return [
        f"features: {images / len(names):.0f} samples of {len(names)} modalities, "
        f"{images * seconds / 3600:.2f} h, once for all runs; {images * size / 1e9:.1f} GB in the cache",
        *training,
    ]


def image_counts(study: StudyConfig, data: Dataset | AbsentData) -> pd.DataFrame:
    """Images of each category (index) for training, validation and test: as on disk, else as published."""
    if isinstance(data, AbsentData):
        rows = published_counts(study.data.name).rename(columns={"published": "images"})
    else:
        rows = data.index.assign(images=1)
    table = rows.pivot_table("images", "category", "split", "sum")
    return table.reindex(index=data.categories, columns=["train", "validation", "test"])


def _worked_out(run: RunConfig, step: Step, images: pd.DataFrame, speed: Speed) -> float:
    """Seconds of a step; NaN where the number of images is not known."""
    epochs = run.increment.epochs if step.number else run.training.epochs
    train = images.loc[list(step.categories), "train"].sum(skipna=False)
    test = images.loc[list(step.seen), "test"].sum(skipna=False)
    return float(epochs * train * speed.training + test * speed.test)


def _times(
    steps: list[tuple[RunConfig, list[Step]]], published: Published
) -> dict[Like, list[float]]:
    """Seconds a category of all steps that were made here, or else published."""
    here: dict[Like, list[float]] = {}
    elsewhere: dict[Like, list[float]] = {}
    for run, run_steps in steps:
        for step in run_steps:
            if step.checkpoint.exists():
                seconds = read_provenance(step.provenance).duration_s
                here.setdefault(_like(run, step), []).append(seconds / len(step.categories))
            elif step.key in published.steps.index:
                seconds = published.steps.loc[step.key, "seconds"]
                elsewhere.setdefault(_like(run, step), []).append(seconds / len(step.categories))
    return elsewhere | here


def _like(run: RunConfig, step: Step) -> Like:
    return (run.method, run.modality, step.number > 0)


def _expected(
    run: RunConfig, step: Step, published: Published, known: dict[Like, list[float]]
) -> float:
    """Seconds for a step; NaN where nothing is known of it."""
    alike = known.get(_like(run, step))
    if step.key in published.steps.index and pd.notna(published.steps.loc[step.key, "seconds"]):
        return float(published.steps.loc[step.key, "seconds"])
    return float(pd.Series(alike).median() * len(step.categories)) if alike else float("nan")


def _published_minutes(run: RunConfig, published: Published) -> float:
    if run.run_id not in published.runs.index:
        return float("nan")
    keys = [key for key in published.runs.loc[run.run_id, "steps"] if key in published.steps.index]
    return float(published.steps.loc[keys, "seconds"].sum(skipna=False)) / 60


def _sum(seconds: dict[str, float]) -> float:
    return float(pd.Series(seconds, dtype=float).sum(skipna=False))
