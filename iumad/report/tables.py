"""What notebook pages show besides curves: tables in the paper's units, samples to look at, provenance.

Tables at the end of notebook pages, read without torch: what the runs cost, and where they ran.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from iumad.config.schema import StudyConfig
from iumad.data import Dataset, open_dataset
from iumad.data.minicandies import MiniCandies
from iumad.data.prepare import prepare
from iumad.evaluation.metrics import image_scores
from iumad.report.pictures import anomaly_grid
from iumad.study.load import load_provenance
from iumad.study.results import beside_paper, final_table
from iumad.study.runner import score_samples
from iumad.study.statistics import summarise


def provenance_table(study: StudyConfig, folder: str | Path) -> pd.DataFrame:
    """What each run of a study cost: finished steps, minutes and the largest memory of them, code."""
    steps = load_provenance(study, folder)
    records = []
    for run in study.runs():
        own = steps[(steps["run_id"] == run.run_id) & (steps["method"] == run.method)]
        records.append(
            {
                "method": run.method,
                "modality": run.modality,
                "setting": run.setting,
                "seed": run.seed,
                "run": run.run_id,
                "steps": len(own),
                "minutes": own["seconds"].sum() / 60,
                "memory (MB)": own["peak_memory_mb"].max(),
                "code": _distinct(_code(own)),
            }
        )
    return pd.DataFrame(records)


def environment_table(study: StudyConfig, folder: str | Path) -> pd.DataFrame:
    """Time that a study's steps took together, a step that runs share counted once, and where they ran.

    More than one machine or version is named where they differ.
    """
    steps = load_provenance(study, folder).drop_duplicates("step_key")
    hours = steps["seconds"].sum() / 3600
    facts = {
        "time": f"{hours:.1f} h for {len(steps)} steps" if len(steps) else "",
        "machine": _distinct(
            steps["cpu"].astype(str) + ", " + steps["cores"].astype(str) + " cores"
        ),
        "device": _distinct(steps["device"]),
        "system": _distinct(steps["system"]),
        "python": _distinct(steps["python"]),
    }
    for package in ("torch", "timm", "numpy"):
        facts[package] = _distinct(steps[package])
    return pd.DataFrame(facts.items(), columns=["what", "value"])


def shown(table: pd.DataFrame, precision: int = 1) -> Styler:
    """Dress a table for a page: no index, so many decimals, "-" where a value is missing."""
    floats = table.select_dtypes("float").round(precision) + 0.0  # so that -0.0 becomes 0.0
    style = table.assign(**floats).style.format(precision=precision, na_rep="-").hide(axis="index")
    return style.set_table_attributes('class="dataframe"')


def linked(table: pd.DataFrame, column: str) -> Styler:
    """Dress a table whose column names notebooks, "" for none: each becomes a link to its page."""
    anchors = [f'<a href="{name}.html">{name}</a>' if name else "" for name in table[column]]
    return shown(table.assign(**{column: anchors}))


def _code(steps: pd.DataFrame) -> list[str]:
    changed = steps["modified"].map({"True": " (modified)"}).fillna("")
    return (steps["commit"].replace("", "no checkout").str[:10] + changed).tolist()


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


GROUP = ["setting", "modality", "method", "metric"]


def detail(study: StudyConfig) -> StudyConfig:
    """The part of a grid that a page looks at closely: all methods, last setting, last modality."""
    return study.select(settings=study.settings[-1:], modalities=study.modalities[-1:])


def headline(study: StudyConfig) -> str:
    """What a page shows, in one line: profile, data set, methods, settings, modalities, seeds."""
    parts = (study.methods, study.settings, study.modalities)
    grid = "; ".join(", ".join(part) for part in parts)
    return f"profile {study.profile} on {study.data.name}: {grid}; {len(study.seeds)} seed(s)"


def table_beside_paper(rows: pd.DataFrame, paper_dataset: str = "mvtec3d") -> pd.DataFrame:
    """Means after the last step and forgetting, in percent, with the paper's value for another data set.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of one data set (`iumad.study.results.ROW_SCHEMA`).
    paper_dataset : str
        The data set of the paper's value; ours need not be the same, so the column is named after it.

    Returns
    -------
    pandas.DataFrame
        setting, modality, method, metric, mean, sd (missing for one seed), n (seeds), paper (...).
    """
    final = final_table(rows)
    summary = summarise(final, [*GROUP, "category"]).assign(dataset=paper_dataset)
    table = beside_paper(summary)
    table[["mean", "sd", "paper"]] *= 100
    return table[[*GROUP, "mean", "sd", "n", "paper"]].rename(
        columns={"paper": f"paper ({paper_dataset})"}
    )


def pick_defects(dataset: Dataset, n: int) -> list[str]:
    """One defective test sample of each of the first n categories, with defect types taking turns."""
    picked = []
    for place, category in enumerate(dataset.categories[:n]):
        rows = dataset.index[
            (dataset.index["category"] == category) & (dataset.index["label"] == 1)
        ]
        kinds = rows.drop_duplicates("defect")["sample_id"].tolist()
        if kinds:
            picked.append(kinds[place % len(kinds)])
    return picked


def draw_maps(study: StudyConfig, sample_ids: Sequence[str], folder: str | Path) -> Figure:
    """Image, depth, truth and the last step's anomaly map of every run of a study; one seed each.

    Parameters
    ----------
    study : StudyConfig
        One modality, one setting, one seed; the rows of maps are its methods.
    sample_ids : sequence of str
        The columns.
    folder : path
        Results folder.
    """
    dataset = open_dataset(study.data)
    samples = [
        prepare(dataset.load(sample_id), study.data, dataset.modalities) for sample_id in sample_ids
    ]
    maps = {run.method: score_samples(run, sample_ids, folder) for run in study.runs()}
    scoring = study.evaluation
    return anomaly_grid(
        [sample.rgb for sample in samples if sample.rgb is not None],
        [None if sample.depth is None else sample.depth[..., 0] for sample in samples],
        [sample.mask for sample in samples],
        {name: list(each) for name, each in maps.items()},
        {
            name: image_scores(each, scoring.image_score, scoring.pool).tolist()
            for name, each in maps.items()
        },
        ["\n".join(sample_id.split("/")[::2]) for sample_id in sample_ids],
    )


def missed_defects(study: StudyConfig, folder: str | Path) -> pd.DataFrame:
    """Defective test samples of a study's first run, those that look most normal first.

    Returns
    -------
    pandas.DataFrame
        sample_id, category, defect, score, beaten_by (share of the category's good test images that
        have a higher score).
    """
    run = study.runs()[0]
    index = open_dataset(study.data).index
    test = index[index["split"] == "test"]
    maps = score_samples(run, test["sample_id"].tolist(), folder)
    scores = image_scores(maps, study.evaluation.image_score, study.evaluation.pool)
    table = test[["sample_id", "category", "defect", "label"]].assign(score=scores)
    good = {name: rows["score"] for name, rows in table[table["label"] == 0].groupby("category")}
    defects = table[(table["label"] == 1) & table["category"].isin(good)]
    beaten = [
        float((good[category] > score).mean())
        for category, score in zip(defects["category"], defects["score"], strict=True)
    ]
    ranked = defects.drop(columns="label").assign(beaten_by=beaten)
    return ranked.sort_values(["beaten_by", "score"], ascending=[False, True], ignore_index=True)


def defect_strength(dataset: MiniCandies) -> pd.DataFrame:
    """How much each kind of defect changes colour and depth inside its mask, against the undamaged object.

    Returns
    -------
    pandas.DataFrame
        defect, images, area (mean share of the image), colour (mean absolute change, 0 to 255), depth_mm (mean
        absolute change of z in millimetres).
    """
    records = []
    for row in dataset.index[dataset.index["label"] == 1].itertuples():
        damaged = dataset.load(row.sample_id)
        whole = dataset.load_without_defect(row.sample_id)
        inside = damaged.mask
        colour = np.abs(damaged.rgb.astype(float) - whole.rgb)[inside].mean()
        z_damaged, z_whole = (s.xyz[..., 2] for s in (damaged, whole) if s.xyz is not None)
        depth = 1000 * np.abs(z_damaged - z_whole)[inside].mean()
        records.append((row.defect, inside.mean(), colour, depth))
    table = pd.DataFrame(records, columns=["defect", "area", "colour", "depth_mm"])
    groups = table.groupby("defect", sort=False)
    return groups.mean().assign(images=groups.size()).reset_index()
