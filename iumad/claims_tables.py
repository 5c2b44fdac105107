"""The values that the paper's claims are tested on, collected from the studies that lie finished."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from iumad.claims import values_of
from iumad.config import StudyConfig, load_params
from iumad.costs import claim_values, read_costs
from iumad.data import categories_of
from iumad.finished import finished_rows, progress

COSTS = "efficiency"  # the study that is measured, not trained


def studies_of(
    names: Iterable[str], params: Path, given: StudyConfig | None = None
) -> dict[str, StudyConfig]:
    """The studies that claims name, each from its params file in a folder, or one given study for all of them."""
    files = {name: params / f"{name}.yaml" for name in dict.fromkeys(names)}
    return {name: given or load_params(file) for name, file in files.items()}


def claim_tables(studies: dict[str, StudyConfig], results: str | Path) -> dict[str, pd.DataFrame]:
    """Values of every study for `iumad.claims.evaluate_claims`; without rows where nothing is finished."""
    tables = {}
    for name, study in studies.items():
        if name == COSTS:
            categories = len(categories_of(study.data))
            costs = read_costs(study, results)
            tables[name] = claim_values(costs, categories, study.data.image_size)
        else:
            tables[name] = values_of(finished_rows(study, results))
    return tables


def progress_table(studies: dict[str, StudyConfig], results: str | Path) -> pd.DataFrame:
    """How much of each study is finished: study, data set, runs, finished, seeds."""
    records = []
    for name, study in studies.items():
        if name != COSTS:
            runs = progress(study, results)
            seeds = runs[runs["finished"]]["seed"].nunique()
            records.append((name, study.data.name, len(runs), int(runs["finished"].sum()), seeds))
    return pd.DataFrame(records, columns=["study", "data set", "runs", "finished", "seeds"])
