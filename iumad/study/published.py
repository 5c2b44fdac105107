"""The published numbers: committed tables under ``results/<profile>/``; ``results/README.md`` has their columns.

    runs.csv      one line a run: its labels and the keys of its steps
    rows.csv.gz   one line a category after a step of a run, with a column for each metric
    steps.csv     one line a trained step: what it took, and where it came from
    log.csv.gz    one line a term of the loss in an epoch of a step
    costs.csv     what `iumad efficiency` measured

Everything is found by the `run_id` or the step's key, so a study sees what another one has made.
"""

import gzip
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from iumad.errors import DataError
from iumad.machine import read_table, replacing

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
        found[path.name].append(_read(path))

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


def _read(path: Path) -> pd.DataFrame:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        table = read_table(content, NUMBERS.get(path.name), str(path))
        lacks = [column for column in _COLUMNS[path.name] if column not in table]
        if lacks:
            raise ValueError(f"it lacks the column {lacks[0]}")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as a published table: {error}; get it again with git"
        ) from error
    return table


def _long(wide: pd.DataFrame) -> pd.DataFrame:
    """One line for each metric that was measured, the lines of a category together."""
    metrics = [name for name in wide if name not in _ROW_KEYS]
    long = wide.melt(_ROW_KEYS, metrics, "metric", "text", ignore_index=False)
    long = long[long["text"] != ""].sort_index(kind="stable")
    undefined = long["text"] == UNDEFINED
    values = long["text"].mask(undefined, "nan").astype(float)
    columns = ["run_id", "step", "category", "metric", "value", "n_good", "n_defect"]
    return long.assign(value=values)[columns].reset_index(drop=True)
