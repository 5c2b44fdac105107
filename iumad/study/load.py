"""Finished results, read without torch: nothing here trains.

What was made in this results folder comes first, else the published numbers (`iumad.study.published`) of the same
run; the column `source` says which: "own" or "published".
"""

from pathlib import Path

import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig
from iumad.data import AbsentData, Dataset, data_of
from iumad.study.provenance import Provenance, read_provenance
from iumad.study.published import STEP_COLUMNS, Published, read_published
from iumad.study.results import LOG_SCHEMA, ROW_SCHEMA, read_step_table, validate_rows
from iumad.study.steps import Step, steps_of

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
        if all(step.rows.exists() for step in steps):
            tables = [read_step_table(step.rows).assign(step=step.number) for step in steps]
            rows, source = pd.concat(tables, ignore_index=True), OWN
        elif _is_published(run, steps, data, published):
            rows, source = published_rows[run.run_id], PUBLISHED
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
        steps = steps_of(run, results, data)
        source = OWN if all(step.rows.exists() for step in steps) else ""
        if not source and _is_published(run, steps, data, published):
            source = PUBLISHED
        records.append((run.method, run.modality, run.setting, run.seed, source != "", source))
    return pd.DataFrame(records, columns=[*RUN_LABELS, "finished", "source"])


def training_log(study: StudyConfig, results: str | Path) -> pd.DataFrame:
    """Loss terms per epoch of the finished steps of a study: `iumad.study.results.LOG_SCHEMA` and source."""
    data, published = data_of(study.data), read_published(results)
    logs = dict(iter(published.log.groupby("step_key", sort=False)))
    found = []
    for run in study.runs():
        for step, key in _with_published_keys(run, results, data, published):
            if step.checkpoint.exists():
                log, source = read_step_table(step.log), OWN
            elif key in logs:
                log, source = logs[key], PUBLISHED
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
    data, published = data_of(study.data), read_published(results)
    records = []
    for run in study.runs():
        labels = {"run_id": run.run_id} | {name: getattr(run, name) for name in RUN_LABELS}
        for step, key in _with_published_keys(run, results, data, published):
            if step.checkpoint.exists():
                facts, source = step_facts(step.key, read_provenance(step.provenance)), OWN
            elif key in published.steps.index:
                facts, source = dict(published.steps.loc[key]), PUBLISHED
            else:
                continue
            records.append({**labels, "step": step.number, **facts, "source": source})
    columns = ["run_id", *RUN_LABELS, "step", *STEP_COLUMNS, "source"]
    return pd.DataFrame(records, columns=columns)


def _is_published(
    run: RunConfig, steps: list[Step], data: Dataset | AbsentData, published: Published
) -> bool:
    """Whether there are published numbers of a run, made of the same data where these are on this machine."""
    if run.run_id not in published.runs.index:
        return False
    keys = published.runs.loc[run.run_id, "steps"]
    return isinstance(data, AbsentData) or list(keys) == [step.key for step in steps]


def _with_published_keys(
    run: RunConfig, results: str | Path, data: Dataset | AbsentData, published: Published
) -> list[tuple[Step, str]]:
    """Steps of a run and the keys under which they are published; without the data, only the tables know them."""
    steps = steps_of(run, results, data)
    keys = [step.key for step in steps]
    if isinstance(data, AbsentData) and run.run_id in published.runs.index:
        keys = list(published.runs.loc[run.run_id, "steps"])
    return list(zip(steps, keys, strict=True))


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
