"""Tidy results: schemas, files, means over categories, forgetting and plasticity, and the paper's numbers.

One row is one number. Metrics of detection are fractions in [0, 1]; the paper prints percent.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaError, SchemaErrors

from iumad.errors import DataError, MetricError
from iumad.machine import read_sealed, read_table, replacing, write_sealed

RUN_COLUMNS = ["run_id", "profile", "dataset", "method", "modality", "setting", "seed"]
FRACTIONS = ("i_auroc", "p_auroc", "aupro")
CONTINUAL = ("fm_", "new_", "bwt_", "kept_")  # beginnings of metrics of learning in steps
MEAN = "mean"  # the category of a mean over categories, here and in the paper's tables
LABELS = {"i_auroc": "image AUROC", "p_auroc": "pixel AUROC", "aupro": "AUPRO"}
LABELS |= {
    f"{prefix}_{name}": f"{text} {label}"
    for prefix, text in {"fm": "FM", "new": "new", "bwt": "BWT", "kept": "kept"}.items()
    for name, label in LABELS.items()
}
"""Metric -> name in tables; FM is the forgetting measure, new the plasticity, BWT the backward transfer, kept
what is left of the earlier categories."""

_text = pa.Column(str, pa.Check.str_length(min_value=1))
_count = pa.Column("int64", pa.Check.ge(0))

ROW_SCHEMA = pa.DataFrameSchema(
    {
        **dict.fromkeys(RUN_COLUMNS[:-1], _text),
        "seed": _count,
        "step": _count,
        "category": _text,
        "metric": _text,
        "value": pa.Column("float64", nullable=True),  # missing where the metric is undefined
        "n_good": _count,
        "n_defect": _count,
    },
    checks=pa.Check(
        lambda rows: (
            rows["value"].between(0, 1) | rows["value"].isna() | ~rows["metric"].isin(FRACTIONS)
        ),
        error=f"the value of {', '.join(FRACTIONS)} is a fraction in [0, 1]",
    ),
    unique=["run_id", "profile", "method", "step", "category", "metric"],
    strict=True,
    ordered=True,
)
"""One metric of one category after one step; n_good and n_defect count its test images."""

LOG_SCHEMA = pa.DataFrameSchema(
    {
        **dict.fromkeys(["run_id", "method", "modality", "setting"], _text),
        "seed": _count,
        "step": _count,
        "epoch": _count,
        "term": _text,
        "value": pa.Column("float64", nullable=True),
    },
    unique=["run_id", "method", "step", "epoch", "term"],
    strict=True,
    ordered=True,
)
"""One term of the loss, mean over one epoch; epochs count from 0 within each step."""


def validate(table: pd.DataFrame, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """Return the table if it has the schema's columns, types and ranges.

    Raises
    ------
    DataError
        With every violation: the column, the check, and the first offending values.
    """
    try:
        return schema.validate(table, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.groupby(["column", "check"], sort=False, dropna=False)
        found = [
            f"{column}: {check}, got {', '.join(map(str, list(case.failure_case)[:3]))}"
            for (column, check), case in cases
        ]
        raise DataError("table does not fit its schema: " + "; ".join(found)) from error
    except SchemaError as error:
        raise DataError(f"table does not fit its schema: {error}") from error


def validate_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows if they satisfy `ROW_SCHEMA`, else raise `DataError`."""
    return validate(rows, ROW_SCHEMA)


def write_text(text: str, path: Path) -> None:
    """Write a file in one step (`iumad.machine`), UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV in one step, every float with all its digits."""
    write_text(table.to_csv(index=False, lineterminator="\n"), path)


def write_step_table(table: pd.DataFrame, path: Path) -> None:
    """Write the rows or the log of a step as a sealed CSV (`iumad.machine.write_sealed`), with all digits."""
    write_sealed(path, table.to_csv(index=False, lineterminator="\n").encode())


def read_step_table(path: Path) -> pd.DataFrame:
    """Read what `write_step_table` wrote; names stay text, whatever they look like.

    Raises
    ------
    DamagedFileError
        The file was changed since.
    """
    numbers = {"value": float, "step": int, "epoch": int, "n_good": int, "n_defect": int}
    return read_table(read_sealed(path), numbers, str(path))


def last_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the last step of each run."""
    last = rows.groupby(RUN_COLUMNS)["step"].transform("max")
    return rows[rows["step"] == last]


def step_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Unweighted mean over the categories seen at each step.

    Returns
    -------
    pandas.DataFrame
        `RUN_COLUMNS`, step, category ("mean"), metric, value, n_categories. The value is missing
        where that of one category is: a mean over fewer categories would be another number.
    """
    groups = rows.groupby([*RUN_COLUMNS, "step", "metric"], sort=False)["value"]
    means = groups.mean(skipna=False).to_frame().assign(n_categories=groups.size()).reset_index()
    means.insert(len(RUN_COLUMNS) + 1, "category", MEAN)
    return means


def as_learnt(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of each category right after the step that learnt it, before anything of it could be forgotten."""
    first = rows.groupby([*RUN_COLUMNS, "category"])["step"].transform("min")
    return rows[rows["step"] == first]


def continual_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What learning in steps did in each run, per metric: forgetting, plasticity and backward transfer.

    A[s, o] is the metric of category o after step s, L(o) the step that learnt o, and N the last step.

    - ``fm_*``, forgetting (paper Eq. 1): mean of max over s < N of A[s, o] minus A[N, o], for o learnt before N;
    - ``new_*``, plasticity: mean of A[L(o), o] over the categories of the increments;
    - ``bwt_*``, backward transfer: mean of A[N, o] minus A[L(o), o] for o learnt before N;
    - ``kept_*``: mean of A[N, o] for o learnt before N.

    Returns
    -------
    pandas.DataFrame
        `RUN_COLUMNS`, category ("mean"), metric ("fm_i_auroc", "new_i_auroc", ...), value in the metric's unit.
        A run of a single step (10-0) has no row, because nothing can be forgotten in it. The value is missing
        where the metric is undefined for a category (a test set without defects).

    Raises
    ------
    MetricError
        If a category has no row at a step after it was first seen.
    """
    runs = rows.groupby([*RUN_COLUMNS, "metric"], sort=False)
    table = rows.assign(
        run=runs.ngroup(), first=runs["step"].transform("min"), last=runs["step"].transform("max")
    )
    table = table[table["first"] < table["last"]]
    columns = [*RUN_COLUMNS, "category", "metric", "value"]
    if table.empty:
        return pd.DataFrame(columns=columns).astype({"value": float})

    cell = ["run", "category"]
    is_last = table["step"] == table["last"]
    is_learnt = table["step"] == table.groupby(cell)["step"].transform("min")
    each = table[is_learnt].set_index(cell)[["value", "step", "first", "last"]]
    each = each.rename(columns={"value": "learnt"}).assign(
        final=table[is_last].set_index(cell)["value"],
        best=table[~is_last].groupby(cell)["value"].max(),
        steps=table.groupby(cell).size(),
    )
    if (each["steps"] < each["last"] - each["step"] + 1).any():
        raise MetricError("forgetting needs a score at every step after a category's first one")

    old = each["step"] < each["last"]
    values = pd.DataFrame(
        {
            "fm": (each["best"] - each["final"]).where(old),
            "new": each["learnt"].where(each["step"] > each["first"]),
            "bwt": (each["final"] - each["learnt"]).where(old),
            "kept": each["final"].where(old),
        }
    )
    undefined = table["value"].isna().groupby(table["run"]).any()
    means = values.groupby("run").mean().mask(undefined)
    long = means.melt(var_name="name", ignore_index=False).sort_index(kind="stable")
    long = long.join(table.drop_duplicates("run").set_index("run")[[*RUN_COLUMNS, "metric"]])
    long["metric"] = long.pop("name") + "_" + long["metric"]
    return long.assign(category=MEAN)[columns].reset_index(drop=True)


def final_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise each run: means after the last step as in the paper's tables, and what learning in steps did.

    Returns
    -------
    pandas.DataFrame
        `RUN_COLUMNS`, category ("mean"), metric, value.
    """
    means = step_means(last_step(rows))
    columns = [*RUN_COLUMNS, "category", "metric", "value"]
    return pd.concat([means[columns], continual_table(rows)[columns]], ignore_index=True)


def paper_results() -> pd.DataFrame:
    """All numbers that the paper and its supplement print.

    Returns
    -------
    pandas.DataFrame
        source (table), dataset, modality, method, setting, category (or "mean"), metric, value:
        percent for i_auroc, p_auroc, aupro and their fm_*; Hz for frame_rate_hz; MB for memory_mb.
    """
    content = resources.files("iumad").joinpath("reference/paper_results.csv").read_bytes()
    return read_table(content, {"value": float}, "the paper's numbers")


def beside_paper(summary: pd.DataFrame) -> pd.DataFrame:
    """Put the paper's value beside each of ours; missing where the paper has none for our data set.

    Parameters
    ----------
    summary : pandas.DataFrame
        dataset, modality, method, setting, category, metric and any numbers as fractions, e.g. the
        output of `iumad.study.statistics.summarise`. Methods match in any case: "ib-iumad", "IB-IUMAD".

    Returns
    -------
    pandas.DataFrame
        The summary with the columns ``paper`` (as a fraction, like ours) and ``source``. Where two
        tables of the paper print one quantity (Tables 2 and 4 differ once), the first is taken.
    """
    keys = ["dataset", "modality", "method", "setting", "category", "metric"]
    _require_columns(summary, keys)
    paper = paper_results()
    percent = paper["metric"].str.removeprefix("fm_").isin(FRACTIONS)
    paper["paper"] = np.where(percent, paper["value"] / 100, paper["value"])
    paper["method"] = paper["method"].str.lower()
    paper = paper.drop_duplicates(keys)[[*keys, "paper", "source"]]
    matched = summary.assign(method=summary["method"].str.lower()).merge(paper, "left", on=keys)
    return matched.assign(method=summary["method"].to_numpy())


def _require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DataError(f"the table lacks {', '.join(missing)}; it has {', '.join(table.columns)}")
