"""Publishing: numbers of finished runs, their measurements and costs become the committed tables of a profile."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig, require_name
from iumad.data import AbsentData, data_of
from iumad.data.sample import Dataset
from iumad.errors import DataError
from iumad.study.costs import costs_id, read_costs
from iumad.study.load import (
    OWN,
    RUN_LABELS,
    STEP_COLUMNS,
    load_provenance,
    load_rows,
    read_published,
    training_log,
    write_published,
)
from iumad.study.measured import publish_measured
from iumad.study.steps import steps_of


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
