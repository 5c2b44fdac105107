"""Explorers that work in a static page: compact data and a plain script in one piece of html, no network.

The page's script (`explorers.js`) draws; here are the data that it draws, small enough for a page of 3 MB. The
same html works in JupyterLab; `iumad.report.widgets` has the live versions with any run and continuous strengths.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from PIL import Image

from iumad.config.sections import EyecandiesConfig, FolderConfig, MiniCandiesConfig
from iumad.data.prepare import Prepared, prepare
from iumad.data.sample import GOOD, Dataset
from iumad.errors import DataError
from iumad.report.pictures import MAP_COLOURS
from iumad.report.style import METRICS
from iumad.study.results import forgetting_table

Kind = Literal["maps", "forgetting", "perturbation", "samples"]
TITLES: dict[Kind, str] = {
    "maps": "Explorer of anomaly maps",
    "forgetting": "Explorer of forgetting",
    "perturbation": "Explorer of perturbations",
    "samples": "Explorer of the data",
}
PICTURE = 128  # pixels, largest side of an embedded picture
MAP = 64  # of an embedded anomaly map, which is smooth
QUALITY = 82  # of JPEG
SHOWN_METRICS = ("i_auroc", "p_auroc", "aupro")
KINDS_SHOWN = 3  # samples of a category in the explorer of maps, one of them good


@dataclass(frozen=True)
class Html:
    """A piece of html that a notebook shows as such."""

    source: str

    def _repr_html_(self) -> str:
        return self.source


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
        return Html(f'<p class="iumad-explorer">{TITLES[kind]}: no finished run to show.</p>')
    script, look = (
        resources.files("iumad.report").joinpath(f"explorers.{suffix}").read_text("utf-8")
        for suffix in ("js", "css")
    )
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    name = f"iumad-{kind}"
    return Html(
        f"<style>{look}</style>"
        f'<div class="iumad-explorer" id="{name}" role="group" aria-label="{TITLES[kind]}">'
        "<noscript>This explorer needs JavaScript.</noscript></div>"
        f'<script type="application/json" id="{name}-data">{embedded}</script>'
        f"<script>{script}\n"
        f'iumadExplorers.{kind}(document.getElementById("{name}"), '
        f'JSON.parse(document.getElementById("{name}-data").textContent));</script>'
    )


def samples_data(
    dataset: Dataset, config: MiniCandiesConfig | FolderConfig | EyecandiesConfig
) -> dict[str, Any]:
    """Data of the explorer of samples: of each category a good test image and one of each defect."""
    categories = []
    for category in dataset.categories:
        rows = dataset.index[
            (dataset.index["category"] == category) & (dataset.index["split"] == "test")
        ].drop_duplicates("defect")
        rows = rows.sort_values("label", kind="stable")  # the good one first
        samples = [
            picture_data(prepared_sample(dataset, config, row.sample_id), row.defect)
            | {"note": _note(row)}
            for row in rows.itertuples()
        ]
        categories.append({"name": category, "samples": samples})
    return {"categories": categories}


def prepared_sample(
    dataset: Dataset, config: MiniCandiesConfig | FolderConfig | EyecandiesConfig, sample_id: str
) -> Prepared:
    """One sample at the size that models see."""
    return prepare(dataset.load(sample_id), config, dataset.modalities)


def picture_data(prepared: Prepared, title: str) -> dict[str, Any]:
    """Pictures of one sample as data addresses: title, rgb, depth (or None) and mask."""
    if prepared.rgb is None:
        raise DataError(f"{title}: an explorer shows colour images, and this sample has none")
    depth = None if prepared.depth is None else (255 * prepared.depth).round().astype(np.uint8)
    return {
        "title": title,
        "rgb": jpeg(prepared.rgb),
        "depth": None if depth is None else jpeg(depth),
        "mask": png(prepared.mask, PICTURE),
    }


def forgetting_data(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Data of the explorer of forgetting.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows of one data set (`iumad.study.results.ROW_SCHEMA`); values are means over seeds, in percent.
    """
    if rows.empty:
        return None
    categories = list(rows["category"].unique())
    metrics = [metric for metric in SHOWN_METRICS if metric in set(rows["metric"])]
    fm = forgetting_table(rows)
    groups = []
    for (setting, modality), group in rows.groupby(["setting", "modality"], sort=False):
        learnt = group.groupby("step")["category"].nunique()
        methods = []
        for method, part in group.groupby("method", sort=False):
            lost = fm[
                (fm["setting"] == setting) & (fm["modality"] == modality) & (fm["method"] == method)
            ]
            methods.append(
                {
                    "name": method,
                    "values": {
                        m: _curves(part[part["metric"] == m], categories, learnt.index)
                        for m in metrics
                    },
                    "forgetting": {
                        m: _mean(lost.loc[lost["metric"] == f"fm_{m}", "value"]) for m in metrics
                    },
                }
            )
        name = f"{setting}, {modality}"
        groups.append({"name": name, "learnt": learnt.tolist(), "methods": methods})
    return {
        "categories": categories,
        "metrics": [{"key": metric, "label": METRICS[metric]} for metric in metrics],
        "groups": groups,
    }


def map_colours() -> str:
    """The 256 colours of anomaly maps, from low to high, six hex digits each."""
    table = (255 * colormaps[MAP_COLOURS](np.arange(256))[:, :3]).round().astype(np.uint8)
    return table.tobytes().hex()


def quantised(
    anomaly_map: Float[np.ndarray, "h w"], low: float, high: float
) -> UInt8[np.ndarray, "h w"]:
    """Map in 256 levels from low to high."""
    spread = max(high - low, 1e-12)
    return (255 * np.clip((anomaly_map - low) / spread, 0, 1)).round().astype(np.uint8)


def jpeg(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Data address of a picture of at most `PICTURE` pixels."""
    return picture_address(_reduced(Image.fromarray(image), PICTURE), "JPEG", quality=QUALITY)


def png(image: UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "h w"], side: int) -> str:
    """Data address of a grey or black and white picture of at most `side` pixels."""
    if image.dtype == bool:
        size = (min(side, image.shape[1]), min(side, image.shape[0]))
        return picture_address(
            Image.fromarray(image).resize(size, Image.Resampling.NEAREST), "PNG", optimize=True
        )
    return picture_address(_reduced(Image.fromarray(image), side), "PNG", optimize=True)


def _reduced(image: Image.Image, side: int) -> Image.Image:
    factor = max(1.0, max(image.size) / side)
    width, height = (round(length / factor) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX) if factor > 1 else image


def picture_address(image: Image.Image, form: str = "PNG", **options: Any) -> str:
    """The picture as a data address, which needs no file beside the page."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


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


def _mean(values: pd.Series) -> float | None:
    return None if values.empty else _percent(values.mean())
