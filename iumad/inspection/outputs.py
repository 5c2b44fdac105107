"""What predictions become on disk: a table, overlays, maps, and a page to look at them offline."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy import ndimage

from iumad.inspection.predictor import Prediction
from iumad.machine import replacing

OUTLINE = (255, 255, 255)
SIDE = 160  # of the thumbnails of the page, pixels


@dataclass(frozen=True)
class Scored:
    """A prediction and the file that it was made for; `key` is unique among them and names its outputs."""

    path: Path
    key: str
    prediction: Prediction


def keys_of(paths: Sequence[Path]) -> list[str]:
    """A unique, readable name for every path: as many of its last folders as tell it from the others."""
    keys: list[str] = []
    parts = [path.resolve().with_suffix("").parts for path in paths]
    for own in parts:
        depth = 1
        alike = [other for other in parts if other != own]
        while depth < len(own) and any(other[-depth:] == own[-depth:] for other in alike):
            depth += 1
        keys.append("__".join(part.strip("/\\:") for part in own[-depth:]))
    seen: dict[str, int] = {}
    for i, key in enumerate(keys):  # equal but for their suffix
        folded = key.casefold()
        seen[folded] = seen.get(folded, 0) + 1
        if seen[folded] > 1:
            keys[i] = f"{key}__{seen[folded]}"
    return keys


def table_of(scored: Sequence[Scored]) -> pd.DataFrame:
    """One row a prediction: file, category, scores, decision, largest region, milliseconds."""
    rows = []
    for each in scored:
        p = each.prediction
        left, top, right, bottom = p.region.box if p.region else (None,) * 4
        rows.append(
            {
                "file": str(each.path),
                "category": p.category,
                "judged by": "+".join(p.modalities),
                "recognised": p.recognised,
                "confidence": round(p.confidence, 4),
                "score": p.score,
                "normalised": round(p.normalised, 4),
                "threshold": p.threshold,
                "anomalous": p.is_anomalous,
                "left": left,
                "top": top,
                "right": right,
                "bottom": bottom,
                "area": round(p.region.area, 5) if p.region else None,
                "ms": round(1000 * p.seconds, 1),
            }
        )
    table = pd.DataFrame(rows)
    box = ["left", "top", "right", "bottom"]
    return table.astype(dict.fromkeys(box, "Int64")) if rows else table


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write CSV, or JSON where the name ends so."""
    if path.suffix == ".json":
        text = json.dumps(json.loads(table.to_json(orient="records")), indent=1, ensure_ascii=False)
    else:
        text = table.to_csv(index=False)
    with replacing(path) as file:
        file.write(text.encode())


def overlay(prediction: Prediction) -> UInt8[np.ndarray, "size size 3"]:
    """The image under its anomaly map on a scale fixed by the threshold; parts of an anomalous one are outlined.

    Nothing is coloured below half the threshold; the colours end at twice the threshold.
    """
    from matplotlib import colormaps  # slow to import, and tables need none

    level = prediction.anomaly_map / max(prediction.threshold, 1e-12)
    heat = colormaps["inferno"](np.clip((level - 0.5) / 1.5, 0, 1))[..., :3] * 255
    weight = np.clip(level - 0.5, 0, 0.5)[..., None] * 1.2
    mixed = (1 - weight) * prediction.image + weight * heat
    picture = np.clip(mixed, 0, 255).astype(np.uint8)
    if prediction.is_anomalous:  # single pixels of a good one may lie above the threshold too
        picture[_outline(prediction.anomaly_map > prediction.threshold)] = OUTLINE
    return picture


def _outline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return mask & ~ndimage.binary_erosion(mask, border_value=1)


def write_png(array: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """Write an image in one step."""
    with replacing(path) as file:
        Image.fromarray(array).save(file, format="PNG")


def report_page(scored: Sequence[Scored], title: str) -> str:
    """A page that needs no network: a histogram of scores a category, and a table to sort and filter."""
    categories = list(dict.fromkeys(each.prediction.category for each in scored))
    histograms = "".join(_histogram(name, scored) for name in categories)
    rows = "".join(_row(each) for each in scored)
    bad = sum(each.prediction.is_anomalous for each in scored)
    page = resources.files("iumad.inspection").joinpath("report.html").read_text("utf-8")
    return Template(page).substitute(
        title=escape(title),
        summary=f"{bad} of {len(scored)} images are anomalous.",
        histograms=histograms,
        rows=rows,
    )


def _row(each: Scored) -> str:
    p = each.prediction
    doubt = " <b title='the category was hard to tell'>?</b>" if p.unsure else ""
    cells = [
        f"<td>{_thumbnail(p.image)}</td>",
        f"<td>{_thumbnail(overlay(p))}</td>",
        f"<td class='name'>{escape(str(each.path))}</td>",
        f"<td>{escape(p.category)}{doubt}</td>",
        f"<td data-value='{p.normalised:.6f}'>{p.normalised:.2f}</td>",
        f"<td data-value='{p.score:.6g}'>{p.score:.3g}</td>",
        f"<td>{'anomalous' if p.is_anomalous else 'good'}</td>",
        f"<td data-value='{p.region.area if p.region else 0:.6f}'>"
        f"{100 * p.region.area if p.region else 0:.1f}</td>",
    ]
    kind = "bad" if p.is_anomalous else "good"
    return f"<tr class='{kind}'>{''.join(cells)}</tr>\n"


def _thumbnail(array: UInt8[np.ndarray, "h w 3"]) -> str:
    picture = Image.fromarray(array)
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='' loading='lazy' src='data:image/jpeg;base64,{data}'>"


def _histogram(category: str, scored: Sequence[Scored]) -> str:
    """Bars of the normalised scores in 20 bins, as an SVG with the threshold in the middle."""
    values = [s.prediction.normalised for s in scored if s.prediction.category == category]
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    top = max(int(counts.max()), 1)
    bars = "".join(
        f"<rect x='{15 * i + 1}' y='{80 - 78 * count / top:.1f}' width='13' height='{78 * count / top:.1f}' "
        f"class='{'bad' if i >= 10 else 'good'}'><title>{count}</title></rect>"
        for i, count in enumerate(counts)
    )
    return (
        f"<figure><svg viewBox='0 0 300 92' role='img' aria-label='scores'>{bars}"
        "<line x1='150' x2='150' y1='0' y2='82'/><text x='2' y='91'>0</text><text x='136' y='91'>threshold</text>"
        "<text x='292' y='91'>1</text></svg>"
        f"<figcaption>{escape(category)}: {len(values)} images</figcaption></figure>"
    )
