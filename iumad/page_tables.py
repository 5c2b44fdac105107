"""Tables at the end of notebook pages, read without torch: what the runs cost, and where they ran."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from iumad.config import RunConfig, StudyConfig
from iumad.costs import read_costs
from iumad.data import categories_of
from iumad.errors import DataError
from iumad.finished import finished_rows, step_folder, steps_of
from iumad.provenance import Provenance, read_provenance
from iumad.results import write_table


def provenance_table(study: StudyConfig, folder: str | Path) -> pd.DataFrame:
    """What each run of a study cost: finished steps, minutes and the largest memory of them, code."""
    records = []
    for run in study.runs():
        steps = list(_provenance(run, folder).values())
        records.append(
            {
                "method": run.method,
                "modality": run.modality,
                "setting": run.setting,
                "seed": run.seed,
                "run": run.run_id,
                "steps": len(steps),
                "minutes": sum(step.duration_s for step in steps) / 60,
                "memory (MB)": max((step.peak_memory_mb or 0 for step in steps), default=None),
                "code": _distinct(_code(step) for step in steps),
            }
        )
    return pd.DataFrame(records)


def environment_table(study: StudyConfig, folder: str | Path) -> pd.DataFrame:
    """Time that a study's steps took together, a step that runs share counted once, and where they ran.

    More than one machine or version is named where they differ.
    """
    found = {path: step for run in study.runs() for path, step in _provenance(run, folder).items()}
    steps = found.values()
    hours = sum(step.duration_s for step in steps) / 3600
    facts = {
        "time": f"{hours:.1f} h for {len(steps)} steps" if steps else "",
        "machine": _distinct(f"{step.cpu}, {step.cores} cores" for step in steps),
        "device": _distinct(step.device for step in steps),
        "system": _distinct(step.system for step in steps),
        "python": _distinct(step.python for step in steps),
    }
    for package in ("torch", "timm", "numpy"):
        facts[package] = _distinct(step.packages[package] for step in steps)
    return pd.DataFrame(facts.items(), columns=["what", "value"])


def write_tables(study: StudyConfig, folder: str | Path, out: Path) -> list[Path]:
    """Write the rows of a study's finished runs, and what each run cost, to ``<out>/<profile>*.csv``.

    What `iumad study efficiency` measured of its methods comes with them, where it has.

    Raises
    ------
    DataError
        No run of the study is finished.
    """
    rows = finished_rows(study, folder)
    if rows.empty:
        raise DataError(f"{folder}: no run of the study {study.profile!r} is finished")
    costs = provenance_table(study, folder)
    costs = costs[costs["run"].isin(rows["run_id"])]
    tables = {
        study.profile: rows.drop(columns=["profile", "run_id"]).round({"value": 6}),
        f"{study.profile}-runs": costs.round({"minutes": 2, "memory (MB)": 0}),
    }
    measured = read_costs(study, folder)
    if len(measured):
        tables[f"{study.profile}-costs"] = measured.round({"value": 4})
    paths = [out / f"{name}.csv" for name in tables]
    for path, table in zip(paths, tables.values(), strict=True):
        write_table(table, path)
    return paths


def shown(table: pd.DataFrame, precision: int = 1) -> Styler:
    """Dress a table for a page: no index, so many decimals, "-" where a value is missing."""
    floats = table.select_dtypes("float").round(precision) + 0.0  # so that -0.0 becomes 0.0
    style = table.assign(**floats).style.format(precision=precision, na_rep="-").hide(axis="index")
    return style.set_table_attributes('class="dataframe"')


def linked(table: pd.DataFrame, column: str) -> Styler:
    """Dress a table whose column names notebooks, "" for none: each becomes a link to its page."""
    anchors = [f'<a href="{name}.html">{name}</a>' if name else "" for name in table[column]]
    return shown(table.assign(**{column: anchors}))


def _provenance(run: RunConfig, folder: str | Path) -> dict[Path, Provenance]:
    steps = steps_of(run, categories_of(run.data))
    ends = range(1, len(steps) + 1)
    paths = [step_folder(Path(folder), run, steps[:end]) / "provenance.json" for end in ends]
    return {path: read_provenance(path) for path in paths if path.exists()}


def _code(step: Provenance) -> str:
    return (step.commit or "no checkout")[:10] + (" (modified)" if step.modified else "")


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))
