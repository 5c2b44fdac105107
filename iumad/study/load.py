"""Finished results, read without torch: nothing here trains.

What was made in this results folder comes first, else the published numbers (`iumad.study.published`) of the same
run; the column `source` says which: "own" or "published".
"""

from pathlib import Path

import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig
from iumad.data import categories_of
from iumad.study.provenance import Provenance, read_provenance
from iumad.study.published import STEP_COLUMNS, read_published
from iumad.study.results import LOG_SCHEMA, ROW_SCHEMA, read_step_table, validate_rows
from iumad.study.steps import steps_of

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
    categories = categories_of(study.data)
    published = dict(iter(read_published(results).rows.groupby("run_id", sort=False)))
    found = []
    for run in study.runs():
        steps = steps_of(run, results, categories)
        if all(step.rows.exists() for step in steps):
            tables = [read_step_table(step.rows).assign(step=step.number) for step in steps]
            rows, source = pd.concat(tables, ignore_index=True), OWN
        elif run.run_id in published:
            rows, source = published[run.run_id], PUBLISHED
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
    categories = categories_of(study.data)
    published = set(read_published(results).runs.index)
    records = []
    for run in study.runs():
        own = all(step.rows.exists() for step in steps_of(run, results, categories))
        source = OWN if own else PUBLISHED if run.run_id in published else ""
        records.append((run.method, run.modality, run.setting, run.seed, source != "", source))
    return pd.DataFrame(records, columns=[*RUN_LABELS, "finished", "source"])


def training_log(study: StudyConfig, results: str | Path) -> pd.DataFrame:
    """Loss terms per epoch of the finished steps of a study: `iumad.study.results.LOG_SCHEMA` and source."""
    categories = categories_of(study.data)
    published = dict(iter(read_published(results).log.groupby("step_key", sort=False)))
    found = []
    for run in study.runs():
        for step in steps_of(run, results, categories):
            if step.checkpoint.exists():
                log, source = read_step_table(step.log), OWN
            elif step.key in published:
                log, source = published[step.key], PUBLISHED
            else:
                continue
            if not log.empty:  # methods without epochs have none
                found.append(
                    with_run_columns(log.assign(step=step.number), run).assign(source=source)
                )
    columns = [*LOG_SCHEMA.columns, "source"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def load_provenance(study: StudyConfig, results: str | Path) -> pd.DataFrame:
    """Where the finished steps of a study come from, and what each took.

    Returns
    -------
    DataFrame
        run_id, method, modality, setting, seed, step, the columns of `iumad.study.published.STEP_COLUMNS`, source.
        A step that several runs share has a line for each of them, with one `step_key`.
    """
    categories = categories_of(study.data)
    published = read_published(results).steps
    records = []
    for run in study.runs():
        labels = {"run_id": run.run_id} | {name: getattr(run, name) for name in RUN_LABELS}
        for step in steps_of(run, results, categories):
            if step.checkpoint.exists():
                facts, source = step_facts(step.key, read_provenance(step.provenance)), OWN
            elif step.key in published.index:
                facts, source = dict(published.loc[step.key]), PUBLISHED
            else:
                continue
            records.append({**labels, "step": step.number, **facts, "source": source})
    columns = ["run_id", *RUN_LABELS, "step", *STEP_COLUMNS, "source"]
    return pd.DataFrame(records, columns=columns)


def step_facts(key: str, record: Provenance) -> dict[str, object]:
    """A step's provenance as one line of `iumad.study.published.STEP_COLUMNS`."""
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


def remaining_error(log: pd.DataFrame, term: str = "fusion") -> pd.DataFrame:
    """What is left of one loss term at the end of the base step, beside its first epoch.

    A share has no unit, so terms that are summed and terms that are averaged over channels compare.

    Parameters
    ----------
    log : DataFrame
        `iumad.study.results.LOG_SCHEMA`; may be empty.
    term : str
        "fusion" is the reconstruction error of Eq. 9.

    Returns
    -------
    DataFrame
        method, seeds, first, last (means over seeds), "remains (%)".
    """
    base = log[(log["step"] == 0) & (log["term"] == term)].sort_values("epoch")
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
        dataset=run.data.name,
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
