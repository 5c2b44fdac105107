"""Tables of a study's pages: every cell of its grid, run or not, with intervals, tests and the paper's values.

Detection metrics and forgetting are shown in percent and percentage points. Nothing here trains or needs torch.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from iumad.config.schema import StudyConfig
from iumad.study.results import (
    FRACTIONS,
    MEAN,
    RUN_COLUMNS,
    beside_paper,
    final_table,
    forgetting_table,
    last_step,
    paper_results,
)
from iumad.study.statistics import mean_ranks, paired_tests, summarise

NOT_RUN = "not run"
CELL = ["modality", "setting", "method"]
PAIR = ("seed", "category")
BY = ("modality", "setting", "metric")
SHORT = {"i_auroc": "image AUROC", "p_auroc": "pixel AUROC", "aupro": "AUPRO"}
SHORT |= {f"fm_{name}": f"FM {label}" for name, label in SHORT.items()}
"""Metric -> name in tables; FM is the forgetting measure."""


def status_text(progress: pd.DataFrame, profile: str) -> str:
    """Markdown that says how much of a grid is finished, and what is not run.

    Parameters
    ----------
    progress : DataFrame
        method, modality, setting, seed, finished (`iumad.study.load.progress`).
    profile : str
        Name of the study and of its params file.
    """
    done = int(progress["finished"].sum())
    text = f"**{done} of {len(progress)} runs of this grid are finished.**"
    if done == len(progress):
        return text
    left = progress[~progress["finished"]]
    lines = []
    for (modality, setting), part in left.groupby(["modality", "setting"], sort=False):
        methods = [
            f"`{method}` ({', '.join(str(seed) for seed in runs['seed'])})"
            for method, runs in part.groupby("method", sort=False)
        ]
        lines.append(f"- {modality}, {setting}: {', '.join(methods)}")
    title = f"{text} Not run, with their seeds (`iumad run params/{profile}.yaml` runs them):"
    return "\n".join([title, "", *lines])


def result_table(
    study: StudyConfig, rows: pd.DataFrame, metrics: Sequence[str], paper_dataset: str = "mvtec3d"
) -> pd.DataFrame:
    """Means over categories after the last step for every cell of the grid, beside the paper's.

    Parameters
    ----------
    study : StudyConfig
        Its modalities, settings and methods are the rows, run or not.
    rows : DataFrame
        Rows of the finished runs; may be empty.
    metrics : sequence of str
        Two columns each: ours with its interval, the paper's for `paper_dataset` (left out where it has none).

    Returns
    -------
    DataFrame
        modality, setting, method, n (seeds), and for each metric a text such as "87.1 [85.0, 89.2]", "not run",
        or "-" where there is nothing to forget.
    """
    cells = dict.fromkeys((run.modality, run.setting, run.method) for run in study.runs())
    table = pd.DataFrame(list(cells), columns=CELL).sort_values(
        CELL[:2], key=_study_order(study), kind="stable", ignore_index=True
    )
    summary = _summary(rows)
    seeds = summary.groupby(CELL)["n"].max()
    keys = list(table.itertuples(index=False, name=None))
    table["n"] = [int(seeds.get(key, 0)) for key in keys]
    for metric in metrics:
        ours = summary[summary["metric"] == metric].set_index(CELL)
        texts = [_cell_text(ours, key, n) for key, n in zip(keys, table["n"], strict=True)]
        table[SHORT[metric]] = texts
        asked = table[CELL].assign(dataset=paper_dataset, category=MEAN, metric=metric)
        paper = 100 * beside_paper(asked)["paper"]
        if paper.notna().any():
            table[f"paper {SHORT[metric]}"] = paper.to_numpy()
    return table


def category_table(study: StudyConfig, rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric after the last step per category, mean over seeds in percent; the last column is the mean.

    Returns
    -------
    DataFrame
        modality, setting, method, n (seeds), one column a category, "mean"; methods that are not run have n = 0.
    """
    grid = result_table(study, rows, ())
    if rows.empty:
        return grid
    last = last_step(rows[rows["metric"] == metric])
    order = list(dict.fromkeys(last["category"]))
    wide = last.pivot_table("value", CELL, "category", observed=True).reindex(columns=order)
    wide = 100 * wide.assign(mean=wide.mean(axis=1, skipna=False))
    return grid.merge(wide.reset_index(), "left", on=CELL)


def paper_category_table(dataset: str, metric: str, setting: str = "10-0") -> pd.DataFrame:
    """The paper's values of a metric of the methods that have them per category; without rows where none has."""
    table = paper_results()
    chosen = (table["dataset"] == dataset) & (table["metric"] == metric)
    table = table[chosen & (table["setting"] == setting)]
    table = table.drop_duplicates(["modality", "method", "category"])
    each = table[table["category"] != MEAN][["modality", "method"]].drop_duplicates()
    table = table.merge(each, on=["modality", "method"])
    order = [*dict.fromkeys(table["category"])]
    return table.pivot_table("value", ["modality", "method"], "category")[order].reset_index()


def incremental(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs of two or more steps, in which something can be forgotten."""
    if rows.empty:
        return rows
    return rows[rows.groupby(RUN_COLUMNS)["step"].transform("max") > 0]


def ranks(rows: pd.DataFrame, metric: str = "i_auroc") -> pd.DataFrame:
    """Mean ranks of the methods after the last step over seeds and categories; empty if there are not two."""
    part = last_step(rows[rows["metric"] == metric]) if len(rows) else rows
    part = part.dropna(subset=["value"])
    methods = set(part["method"])
    complete = part.groupby(list(PAIR))["method"].nunique() == len(methods)
    return mean_ranks(part) if len(methods) > 1 and complete.any() else part[:0]


def paired_table(rows: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Paired differences of all methods from a reference: last step per category, and forgetting per seed.

    Returns
    -------
    DataFrame
        modality, setting, metric, method, seeds, n (pairs), difference, low, high (points), effect size, p,
        p_holm. What has fewer than two pairs is left out; the table is empty where nothing can be compared.
    """
    numbers = ["n", "difference", "low", "high", "effect_size", "p", "p_holm"]
    columns = [*BY, "method", "seeds", *numbers]
    table = _comparable(_values(rows), reference) if not rows.empty else rows
    if table.empty:
        return pd.DataFrame(columns=columns)
    tests = paired_tests(table, reference, by=BY, pair=PAIR)
    seeds = table.groupby([*BY, "method"])["seed"].nunique().rename("seeds")
    tests = tests.merge(seeds.reset_index(), on=[*BY, "method"])[columns]
    tests[["difference", "low", "high"]] *= 100
    return tests.assign(metric=tests["metric"].map(SHORT))


def interval_text(mean: float, low: float, high: float) -> str:
    """A number with its interval, both already in the unit shown; without one for a single seed."""
    if np.isnan(mean):
        return "undefined"
    if np.isnan(low):
        return f"{mean:.1f}"
    if high - low < 1e-9:  # a method without randomness
        return f"{mean:.1f} (every seed)"
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _cell_text(ours: pd.DataFrame, key: tuple, n: int) -> str:
    if n == 0:
        return NOT_RUN
    if key not in ours.index:
        return "-"
    row = 100 * ours.loc[key, ["mean", "low", "high"]].astype(float)
    return interval_text(row["mean"], row["low"], row["high"])


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    if rows.empty:
        return pd.DataFrame(columns=[*CELL, "metric", "mean", "n", "low", "high"])
    return summarise(final_table(rows), [*CELL, "metric"])


def _values(rows: pd.DataFrame) -> pd.DataFrame:
    """Last step per category, and forgetting, whose category is "mean"."""
    columns = [*CELL, "seed", "category", "metric", "value"]
    last = last_step(rows[rows["metric"].isin(FRACTIONS)])
    return pd.concat([last[columns], forgetting_table(rows)[columns]]).dropna(subset=["value"])


def _comparable(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The part in which every method has two pairs or more with the reference, which is there too."""
    keys = [*BY, *PAIR]
    common = table.merge(table[table["method"] == reference][keys], on=keys)
    common = common[common.groupby([*BY, "method"])["seed"].transform("size") > 1]
    return common[common.groupby(list(BY))["method"].transform("nunique") > 1]


def _study_order(study: StudyConfig) -> Callable[[pd.Series], pd.Series]:
    order = {name: place for place, name in enumerate([*study.modalities, *study.settings])}
    return lambda column: column.map(order)
