"""What lies finished in a results folder, read without torch: nothing here trains.

results/steps/<step key>/rows-<hash of the evaluation>.csv
"""

from pathlib import Path

import pandas as pd

from iumad.config.hashing import stable_hash
from iumad.config.setting import parse_setting
from iumad.config.study import RunConfig, StudyConfig
from iumad.data import categories_of
from iumad.study import results

RUN_LABELS = ["method", "modality", "setting", "seed"]


def steps_of(run: RunConfig, categories: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Categories that each step of a run learns; joint training has one step, whatever the setting."""
    steps = parse_setting(run.setting, categories)
    return (categories,) if run.increment.strategy == "joint" else steps


def step_folder(folder: Path, run: RunConfig, steps: tuple[tuple[str, ...], ...]) -> Path:
    """Where the files of the last of these steps lie in a results folder."""
    return folder / "steps" / run.step_key(steps)


def rows_file(step: Path, run: RunConfig) -> Path:
    """The table of metrics in the folder of a step, as this run evaluates."""
    return step / f"rows-{stable_hash(run.evaluation.model_dump(mode='json'))}.csv"


def row_files(run: RunConfig, folder: Path, categories: tuple[str, ...]) -> list[Path]:
    """Tables of metrics of a run's steps, finished or not; the last one is written last."""
    steps = steps_of(run, categories)
    ends = range(1, len(steps) + 1)
    return [rows_file(step_folder(folder, run, steps[:end]), run) for end in ends]


def finished_rows(study: StudyConfig, folder: str | Path) -> pd.DataFrame:
    """Rows of the runs of a study that are finished, of all their steps (`iumad.study.results.ROW_SCHEMA`)."""
    categories = categories_of(study.data)
    tables = []
    for run in study.runs():
        files = row_files(run, Path(folder), categories)
        if all(file.exists() for file in files):
            steps = [read_rows(file).assign(step=step) for step, file in enumerate(files)]
            tables.append(with_run_columns(pd.concat(steps, ignore_index=True), run))
    if not tables:
        return no_rows()
    return results.validate_rows(pd.concat(tables, ignore_index=True)[list(no_rows().columns)])


def training_log(study: StudyConfig, folder: str | Path) -> pd.DataFrame:
    """Loss terms per epoch of the finished steps of a study, as `iumad.study.results.LOG_SCHEMA`."""
    categories = categories_of(study.data)
    tables = []
    for run in study.runs():
        steps = steps_of(run, categories)
        for step in range(len(steps)):
            path = step_folder(Path(folder), run, steps[: step + 1]) / "log.csv"
            log = read_rows(path) if path.exists() else pd.DataFrame()
            if not log.empty:  # methods without epochs have none
                tables.append(with_run_columns(log.assign(step=step), run))
    columns = list(results.LOG_SCHEMA.columns)
    return (
        pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
    )


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


def progress(study: StudyConfig, folder: str | Path) -> pd.DataFrame:
    """All runs of a study: method, modality, setting, seed, and whether the run is finished."""
    categories = categories_of(study.data)
    records = []
    for run in study.runs():
        done = all(file.exists() for file in row_files(run, Path(folder), categories))
        records.append((run.method, run.modality, run.setting, run.seed, done))
    return pd.DataFrame(records, columns=[*RUN_LABELS, "finished"])


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
    columns = results.ROW_SCHEMA.columns
    return pd.DataFrame({name: pd.Series(dtype=str(c.dtype)) for name, c in columns.items()})


def read_rows(path: Path) -> pd.DataFrame:
    """A table of a step; the parser of pandas >= 3.1 reads every float's digits as written."""
    return pd.read_csv(path)
