"""Explorers: compact data and a plain script in one piece of html, without network, library or kernel.

The page's script (`explorers.js`) draws; here are the data that it draws. The same html works in a static page and
in JupyterLab, with own results as with published ones.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt8
from markupsafe import Markup
from matplotlib import colormaps
from PIL import Image

from iumad.config.schema import RunConfig, StudyConfig
from iumad.data import open_dataset
from iumad.data.prepare import for_the_eye
from iumad.data.sample import GOOD, Dataset
from iumad.errors import DataError
from iumad.report.figures import MAP_COLOURS
from iumad.report.style import METRICS, Html, colours_of, fill
from iumad.study.measured import perturbed
from iumad.study.results import continual_table

Kind = Literal["maps", "scores", "forgetting", "perturbation", "samples"]
TITLES: dict[Kind, str] = {
    "maps": "Explorer of anomaly maps",
    "scores": "Explorer of image scores",
    "forgetting": "Explorer of forgetting",
    "perturbation": "Explorer of perturbations",
    "samples": "Explorer of the data",
}
PICTURE = 128  # pixels, largest side of an embedded picture
QUALITY = 82  # of JPEG
SHOWN_METRICS = ("i_auroc", "p_auroc", "aupro")
KINDS_SHOWN = 3  # samples of a category in the explorer of maps, one of them good
OURS = ("ib-iumad", "joint")  # seen first; the second where the first is not run
BESIDE = ("iuf", "bank-unified")


def explorer(kind: Kind, data: dict[str, Any] | None) -> Html:
    """Return the html of an explorer; on a page, one of each kind.

    Parameters
    ----------
    kind : str
        Which one; the element's id is ``iumad-<kind>``.
    data : dict or None
        Its data, of JSON types; None where there is nothing to show yet, which the html then says.
    """
    if data is None:
        return Html(
            fill('<p class="iumad-explorer">{}: nothing has been measured yet.</p>', TITLES[kind])
        )
    script, look = (
        resources.files("iumad.report").joinpath(f"explorers.{suffix}").read_text("utf-8")
        for suffix in ("js", "css")
    )
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    name = f"iumad-{kind}"
    source = (
        f"<style>{look}</style>"
        f'<div class="iumad-explorer" id="{name}" role="group" aria-label="{TITLES[kind]}">'
        "<noscript>This explorer needs JavaScript.</noscript></div>"
        f'<script type="application/json" id="{name}-data">{embedded}</script>'
        f"<script>{script}\n"
        f'iumadExplorers.{kind}(document.getElementById("{name}"), '
        f'JSON.parse(document.getElementById("{name}-data").textContent));</script>'
    )
    return Html(Markup(source))


def samples_data(run: RunConfig) -> dict[str, Any]:
    """Data of the explorer of samples: of each category a good test image and one of each defect."""
    dataset = open_dataset(run.data)
    categories = []
    for category in dataset.categories:
        rows = _first_of_each_kind(dataset.index, category)
        samples = [
            _picture_data(dataset, run, row.sample_id, row.defect) | {"note": _note(row)}
            for row in rows.itertuples()
        ]
        categories.append({"name": category, "samples": samples})
    return {"categories": categories}


def maps_data(study: StudyConfig, samples: pd.DataFrame) -> dict[str, Any] | None:
    """Data of the explorer of anomaly maps; None without any.

    Parameters
    ----------
    study : StudyConfig
        Its first run's data are shown.
    samples : DataFrame
        Measurements of the kind "samples" of runs of one setting and seed.
    """
    if samples.empty:
        return None
    run = study.runs()[0]
    dataset = open_dataset(run.data)
    drawn = samples[samples["map"] != ""]
    picked = {name: _pick(drawn, name, place) for place, name in enumerate(dataset.categories)}
    categories = [
        {
            "name": name,
            "samples": [
                _picture_data(dataset, run, row.sample_id, row.defect)
                | {"label": int(row.defect != GOOD)}
                for row in rows.itertuples()
            ],
        }
        for name, rows in picked.items()
    ]
    runs = []
    for (method, modality), of_run in samples.groupby(["method", "modality"], sort=False):
        parts = [
            _scored(of_run[of_run["category"] == name], rows["sample_id"].tolist())
            for name, rows in picked.items()
        ]
        runs.append({"name": f"{method}, {modality}", "method": method, "categories": parts})
    return {
        "colours": _map_colours(),
        "categories": categories,
        "runs": runs,
        "start": _start(categories, runs),
    }


def scores_data(samples: Mapping[str, pd.DataFrame]) -> dict[str, Any] | None:
    """Data of the explorer of image scores; None without any.

    Parameters
    ----------
    samples : name of a data set -> DataFrame
        Measurements of the kind "samples" of runs of one setting, modality and seed.
    """
    groups = []
    for name, table in samples.items():
        table = table.assign(label=table["defect"] != GOOD).sort_values("label", kind="stable")
        methods = []
        for method, of_run in table.groupby("method", sort=False):
            categories = [
                {
                    "name": category,
                    "kinds": [
                        {"name": kind, "scores": [_short(score) for score in of_kind["score"]]}
                        for kind, of_kind in part.groupby("defect", sort=False)
                    ],
                }
                for category, part in of_run.groupby("category", sort=False)
                if not part["label"].all()  # a threshold needs good images
            ]
            methods.append({"name": method, "categories": categories})
        names = [method["name"] for method in methods]
        if names:
            start = [_first(names, OURS, 0), _first(names, BESIDE, len(names) - 1)]
            groups.append({"name": name, "methods": methods, "start": start})
    return {"groups": groups} if groups else None


def forgetting_data(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Data of the explorer of forgetting; None without any.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows (`iumad.study.results.ROW_SCHEMA`) of one profile or more, each of one data set; values are
        means over seeds, in percent.
    """
    if rows.empty:
        return None
    several = len(set(rows["profile"])) > 1
    metrics = [metric for metric in SHOWN_METRICS if metric in set(rows["metric"])]
    groups = []
    for (profile, setting, modality), group in rows.groupby(
        ["profile", "setting", "modality"], sort=False
    ):
        steps = group.groupby("method")["step"].transform("max")
        group = group[steps == steps.max()]  # not those that learn all at once
        learnt = group.groupby("step")["category"].nunique()
        categories = list(group["category"].unique())
        here = continual_table(group)
        methods = []
        for method, part in group.groupby("method", sort=False):
            values = {
                m: _curves(part[part["metric"] == m], categories, learnt.index) for m in metrics
            }
            of = here[here["method"] == method].groupby("metric")["value"].mean()
            told = {
                kind: {m: _percent(of.get(f"{kind}_{m}", np.nan)) for m in metrics}
                for kind in ("fm", "new")
            }
            methods.append(
                {"name": method, "values": values, "forgetting": told["fm"], "new": told["new"]}
            )
        name = f"{profile}: {setting}, {modality}" if several else f"{setting}, {modality}"
        names = [method["name"] for method in methods]
        start = [_first(names, OURS, 0), _first(names, BESIDE, len(names) - 1)]
        seen = {"name": name, "categories": categories, "learnt": learnt.tolist()}
        groups.append(seen | {"methods": methods, "start": start})
    labels = [{"key": metric, "label": METRICS[metric]} for metric in metrics]
    return {"metrics": labels, "groups": groups}


def perturbation_data(study: StudyConfig, measured: pd.DataFrame) -> dict[str, Any] | None:
    """Data of the explorer of perturbations: test images perturbed, models as they were trained; None without any.

    Parameters
    ----------
    study : StudyConfig
        Its first run's data are shown.
    measured : DataFrame
        Measurements of the kind "perturbed" of runs of one setting and seed.
    """
    if measured.empty:
        return None
    run = study.runs()[0]
    dataset = open_dataset(run.data)
    colours = colours_of(list(measured["method"].unique()))
    kinds = []
    for kind, part in measured.groupby("perturbation", sort=False):
        strengths = sorted(part["strength"].unique())
        datasets = [perturbed(dataset, str(kind), strength) for strength in strengths]
        samples = [_stronger(run, datasets, category) for category in dataset.categories[:2]]
        runs = []
        for method, of_run in part.groupby("method", sort=False):
            curves = of_run.pivot_table("value", "metric", "strength").reindex(SHOWN_METRICS)
            values = {m: [_percent(v) for v in curves.loc[m]] for m in SHOWN_METRICS}
            runs.append({"name": method, "colour": colours[str(method)], "values": values})
        kinds.append({"name": kind, "strengths": strengths, "samples": samples, "runs": runs})
    metrics = [{"key": metric, "label": METRICS[metric]} for metric in SHOWN_METRICS]
    return {"kinds": kinds, "metrics": metrics}


def jpeg(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Data address of a picture of at most `PICTURE` pixels."""
    return picture_address(_reduced(Image.fromarray(image), PICTURE), "JPEG", quality=QUALITY)


def png(image: Bool[np.ndarray, "h w"]) -> str:
    """Data address of a black and white picture of at most `PICTURE` pixels."""
    size = (min(PICTURE, image.shape[1]), min(PICTURE, image.shape[0]))
    small = Image.fromarray(image).resize(size, Image.Resampling.NEAREST)
    return picture_address(small, "PNG", optimize=True)


def picture_address(image: Image.Image, form: str = "PNG", **options: Any) -> str:
    """The picture as a data address, which needs no file beside the page."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _first_of_each_kind(index: pd.DataFrame, category: str) -> pd.DataFrame:
    """A good test image of a category and the first of each kind of defect, the good one first."""
    rows = index[(index["category"] == category) & (index["split"] == "test")]
    return rows.drop_duplicates("defect").sort_values("label", kind="stable")


def _pick(drawn: pd.DataFrame, category: str, turn: int) -> pd.DataFrame:
    """The first good sample of a category with a map, then the first of some defects, others for each category."""
    rows = drawn[drawn["category"] == category].drop_duplicates("defect")
    good, defects = rows[rows["defect"] == GOOD], rows[rows["defect"] != GOOD]
    turns = [(turn + i) % len(defects) for i in range(min(KINDS_SHOWN - 1, len(defects)))]
    return pd.concat([good, defects.iloc[turns]])


def _scored(part: pd.DataFrame, picked: Sequence[str]) -> dict[str, Any]:
    """Scores of all test images of a category by one run, and the maps of the picked ones."""
    of = part.set_index("sample_id")
    good = part["defect"] == GOOD
    return {
        "low": _short(of.loc[picked[0], "low"]),
        "high": _short(of.loc[picked[0], "high"]),
        "good": [_short(score) for score in part.loc[good, "score"]],
        "defect": [_short(score) for score in part.loc[~good, "score"]],
        "samples": [
            {
                "map": "data:image/png;base64," + of.loc[name, "map"],
                "score": _short(of.loc[name, "score"]),
            }
            for name in picked
        ],
    }


def _start(categories: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, int]:
    """What is seen first: the defect that stands out most from its category's good images by `OURS`."""
    names = [one["method"] for one in runs]
    run = _first(names, OURS, len(runs) - 1)
    found = {}
    for place, (category, of) in enumerate(zip(categories, runs[run]["categories"], strict=True)):
        for number, (sample, scored) in enumerate(
            zip(category["samples"], of["samples"], strict=True)
        ):
            if sample["label"]:
                spread = np.std(of["good"]) or 1.0
                found[place, number] = (scored["score"] - max(of["good"])) / spread
    place, number = max(found, key=found.__getitem__)
    second = _first(names, BESIDE, 0 if run else len(runs) - 1)
    second = -1 if second == run else second
    return {"run": run, "second": second + 1, "category": place, "sample": number}


def _first(names: Sequence[str], wanted: Sequence[str], otherwise: int) -> int:
    """The place of the first of the wanted names that is there."""
    return next((names.index(name) for name in wanted if name in names), otherwise)


def _stronger(run: RunConfig, datasets: Sequence[Dataset], category: str) -> dict[str, Any]:
    """One defective sample of a category at each strength."""
    row = _first_of_each_kind(datasets[0].index, category).iloc[-1]
    pictures = [_picture_data(each, run, row["sample_id"], category) for each in datasets]
    return {
        "title": f"{category}, {row['defect']}",
        "rgb": [each["rgb"] for each in pictures],
        "depth": [each["depth"] for each in pictures] if pictures[0]["depth"] else None,
    }


def _picture_data(dataset: Dataset, run: RunConfig, sample_id: str, title: str) -> dict[str, Any]:
    """Pictures of one sample as data addresses: title, rgb, depth (or None) and mask."""
    prepared = for_the_eye(dataset.load(sample_id), run.data, dataset.modalities)
    if prepared.rgb is None:
        raise DataError(f"{title}: an explorer shows colour images, and this sample has none")
    depth = None if prepared.depth is None else (255 * prepared.depth).round().astype(np.uint8)
    return {
        "title": title,
        "rgb": jpeg(prepared.rgb),
        "depth": None if depth is None else jpeg(depth),
        "mask": png(prepared.outline),
    }


def _map_colours() -> str:
    """The 256 colours of anomaly maps, from low to high, six hex digits each."""
    table = (255 * colormaps[MAP_COLOURS](np.arange(256))[:, :3]).round().astype(np.uint8)
    return table.tobytes().hex()


def _reduced(image: Image.Image, side: int) -> Image.Image:
    factor = max(1.0, max(image.size) / side)
    width, height = (round(length / factor) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX) if factor > 1 else image


def _note(row: Any) -> str:
    if row.defect == GOOD:
        return "no defect."
    if pd.isna(row.geometric):
        return "it is not known whether this defect changes the shape."
    return "changes the shape." if row.geometric else "changes the colour only, not the shape."


def _curves(
    part: pd.DataFrame, categories: Sequence[str], steps: pd.Index
) -> list[list[float | None]]:
    means = part.groupby(["category", "step"])["value"].mean()
    return [[_percent(means.get((name, step), np.nan)) for step in steps] for name in categories]


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else round(100 * float(value), 2)


def _short(value: float) -> float:
    return float(f"{value:.5g}")
