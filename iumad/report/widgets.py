"""Live explorers for JupyterLab: any finished run of a results folder, thresholds and strengths without steps.

Each function returns a widget; `iumad.report.explorers` has the same for pages without a kernel. What can be
moved is a widget with a label, what is seen is html with a text alternative.

What the live explorers are made of: labelled controls that depend on each other, and pictures as html.
"""

import io
import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from pydantic import ValidationError
from scipy import ndimage

from iumad.config.schema import RunConfig, StudyConfig
from iumad.config.sections import PerturbConfig
from iumad.data import open_dataset
from iumad.data.perturb import PerturbedDataset
from iumad.data.sample import Dataset
from iumad.errors import DataError, IumadError
from iumad.evaluation.metrics import image_scores
from iumad.report.explorers import SHOWN_METRICS, picture_address, prepared_sample
from iumad.report.pictures import MAP_COLOURS
from iumad.report.style import MARKERS, METRICS, colours_of, in_style
from iumad.study.provenance import read_provenance
from iumad.study.runner import RunWork, load_detector, run_one, score_samples
from iumad.study.samples import FIELDS
from iumad.study.steps import is_trained, steps_of

OUTLINE = (0, 229, 255)
WHITE = (255, 255, 255)


def choice(
    label: str, options: Iterable[str] | Mapping[str, Any] | None = None
) -> ipywidgets.Dropdown:
    """A labelled list to choose from."""
    listed = dict(options) if isinstance(options, Mapping) else list(options or [])
    return ipywidgets.Dropdown(
        options=listed, description=label, style={"description_width": "initial"}
    )


def slider(label: str, start: float) -> ipywidgets.FloatSlider:
    """A labelled slider from 0 to 1 in thousandths."""
    return ipywidgets.FloatSlider(
        value=start, min=0, max=1, step=0.001, description=label, readout_format=".3f"
    )


def chain(
    first: ipywidgets.Dropdown,
    second: ipywidgets.Dropdown,
    options: Callable[[], Iterable[str] | Mapping[str, Any]],
) -> None:
    """Fill the second list now and whenever the first changes; its choice stays if it is still there."""

    def fill(_change: object = None) -> None:
        new, kept = options(), second.label
        new = dict(new) if isinstance(new, Mapping) else {name: name for name in new}
        if new != dict(zip(second._options_labels, second._options_values, strict=True)):
            second.options = new
            second.label = kept if kept in new else next(iter(new))

    fill()
    first.observe(fill, "value")


def assemble(
    controls: Sequence[ipywidgets.Widget],
    shown: Sequence[ipywidgets.Widget],
    draw: Callable[[], None],
) -> ipywidgets.Widget:
    """Controls above what they show, drawn now and after each change."""
    for control in controls:
        control.observe(lambda _change: draw(), "value")
    draw()
    row = ipywidgets.Box(list(controls), layout={"flex_flow": "row wrap"})
    return ipywidgets.VBox([row, *shown])


def overlay(
    rgb: UInt8[np.ndarray, "h w 3"],
    level: Float[np.ndarray, "h w"],
    threshold: float,
    opacity: float,
    truth: Bool[np.ndarray, "h w"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Map over the grey image; a white line around what reaches the threshold, a cyan one around the truth.

    The level is 0 at the low and 1 at the high end of the colours.
    """
    grey = np.repeat(rgb.mean(axis=2, keepdims=True), 3, axis=2)
    mixed = ((1 - opacity) * grey + opacity * heat(level)).round().astype(np.uint8)
    for area, colour in ((level >= threshold, WHITE), (truth, OUTLINE)):
        mixed[area & ~ndimage.binary_erosion(area, border_value=1)] = colour
    return mixed


def heat(level: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Levels from 0 to 1 in the colours of anomaly maps."""
    return (255 * colormaps[MAP_COLOURS](np.clip(level, 0, 1))[..., :3]).round().astype(np.uint8)


def as_bytes(depth: Float[np.ndarray, "h w 3"] | None) -> UInt8[np.ndarray, "h w 3"] | None:
    """Depth from 0 to 1 as a picture."""
    return None if depth is None else (255 * depth).round().astype(np.uint8)


def html_of_pictures(parts: Sequence[tuple[np.ndarray | None, str]], sample_id: str) -> str:
    """Pictures side by side, each with its title; those that are None are left out."""
    figures = []
    for image, title in parts:
        if image is not None:
            alt = escape(f"{title} of {sample_id}")
            source = picture_address(Image.fromarray(image))
            figures.append(
                f'<figure style="margin:0;flex:0 1 180px"><img style="width:100%" src="{source}" alt="{alt}">'
                f"<figcaption>{escape(title)}</figcaption></figure>"
            )
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(figures)}</div>'


@in_style
def category_curves(rows: pd.DataFrame, highlighted: str | None) -> Figure:
    """Draw one metric of each category over the steps of one run, in percent; one may stand out of grey others."""
    names = rows["category"].unique().tolist()
    figure, axis = plt.subplots(figsize=(6, 3.2))
    for place, name in enumerate(names):
        line = rows[rows["category"] == name]
        faint = highlighted not in (None, name)
        axis.plot(
            line["step"],
            100 * line["value"],
            color="#BBBBBB" if faint else colours_of(names)[name],
            marker=MARKERS[place % len(MARKERS)],
            label=name,
        )
    axis.set(xlabel="step", ylabel="%", xticks=sorted(rows["step"].unique()))
    figure.legend(loc="outside right center")
    return figure


def html_of_figure(figure: Figure, alt: str) -> str:
    """A figure as html with a text alternative."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    source = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
    return f'<img style="max-width:100%" src="{source}" alt="{escape(alt)}">'


STATES = ("clean", "perturbed")


def all_runs(folder: str | Path) -> dict[str, RunConfig]:
    """Every finished run in a results folder whose data can be opened here, by a readable name."""
    found = {}
    for path in sorted(Path(folder).glob("steps/*/provenance.json")):
        try:
            run = RunConfig.model_validate_json(json.dumps(read_provenance(path).params))
            finished = is_trained(run, folder)
        except (ValidationError, IumadError):
            continue  # made by another version, or with data of another machine
        if finished:
            name = f"{run.profile}: {run.method}, {run.modality}, {run.setting}, seed {run.seed}"
            found[f"{name} ({run.run_id[:6]})"] = run
    return found


def explore_maps(folder: str | Path) -> ipywidgets.Widget:
    """Anomaly maps of any sample by any finished run, with a continuous threshold."""
    runs = all_runs(folder)
    if not runs:
        return _nothing(folder)
    run, category, sample = choice("run", runs), choice("category"), choice("sample")
    threshold, opacity = slider("threshold", 0.6), slider("opacity", 0.6)
    outline = ipywidgets.Checkbox(True, description="outline the true defect")
    pictures, said = ipywidgets.HTML(), ipywidgets.HTML()

    @lru_cache(maxsize=8)
    def scored(name: str, of: str) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        test = _test_rows(open_dataset(runs[name].data), of)
        maps = score_samples(runs[name], test["sample_id"].tolist(), folder)
        scoring = runs[name].evaluation
        scores = image_scores(maps, scoring.image_score, scoring.pool)
        return test["sample_id"].tolist(), test["label"].to_numpy(), maps, scores

    def draw() -> None:
        config = runs[run.label]
        ids, labels, maps, scores = scored(run.label, category.value)
        place = ids.index(sample.value)
        low, high = np.percentile(maps, [1, 99.9])
        level = (maps[place] - low) / max(high - low, 1e-12)
        shown = prepared_sample(open_dataset(config.data), config.data, sample.value)
        truth = shown.mask if outline.value else np.zeros_like(shown.mask)
        assert shown.rgb is not None
        over = overlay(shown.rgb, level, threshold.value, opacity.value, truth)
        parts = [(shown.rgb, "image"), (as_bytes(shown.depth), "depth"), (over, "anomaly map")]
        pictures.value = html_of_pictures(parts, sample.value)
        good = scores[labels == 0]
        beaten = int((good < scores[place]).sum())
        said.value = (
            f"image score {scores[place]:.4g}, above {beaten} of {len(good)} good images of the category; "
            f"threshold {low + threshold.value * (high - low):.4g}, "
            f"{(level >= threshold.value).mean():.1%} of the pixels above it"
        )

    chain(run, category, lambda: open_dataset(runs[run.label].data).categories)
    for each in (run, category):
        chain(each, sample, lambda: _test_ids(runs[run.label], category.value))
    return assemble([run, category, sample, threshold, opacity, outline], [pictures, said], draw)


def explore_forgetting(folder: str | Path) -> ipywidgets.Widget:
    """Curve of each category over the steps of any finished run."""
    runs = all_runs(folder)
    if not runs:
        return _nothing(folder)
    run, metric = choice("run", runs), choice("metric", {METRICS[m]: m for m in SHOWN_METRICS})
    category = choice("category", {"all": None})
    picture, table = ipywidgets.HTML(), ipywidgets.HTML()

    def draw() -> None:
        rows = run_one(runs[run.label], folder)
        rows = rows[rows["metric"] == metric.value]
        figure = category_curves(rows, category.value)
        picture.value = html_of_figure(figure, f"{metric.label} of each category after each step")
        wide = (100 * rows.pivot(index="category", columns="step", values="value")).round(1)  # noqa: PD010
        table.value = wide.rename_axis(columns="step").to_html(na_rep="-")

    chain(run, category, lambda: {"all": None} | {n: n for n in _categories(runs[run.label])})
    return assemble([run, metric, category], [picture, table], draw)


def explore_perturbation(folder: str | Path) -> ipywidgets.Widget:
    """One sample under a perturbation of any strength, as any finished run scores it."""
    runs = all_runs(folder)
    if not runs:
        return _nothing(folder)
    run, category, sample = choice("run", runs), choice("category"), choice("sample")
    kind = choice("perturbation", FIELDS)
    strength = slider("strength", 0.2)
    strength.continuous_update = False  # each strength goes through the backbone
    pictures, said = ipywidgets.HTML(), ipywidgets.HTML()

    @lru_cache(maxsize=4)
    def trained(name: str) -> tuple[RunWork, Any]:
        work = RunWork(runs[name])
        step = steps_of(runs[name], folder, work.dataset.categories)[-1]
        return work, load_detector(work, step)

    def draw() -> None:
        config = runs[run.label]
        work, detector = trained(run.label)
        number = work.dataset.categories.index(category.value)
        change = PerturbConfig.model_validate({kind.value: strength.value})
        changed = PerturbedDataset(work.dataset, change, work.dataset.categories)
        maps, parts = [], []
        try:
            for dataset, state in zip((work.dataset, changed), STATES, strict=True):
                shown = prepared_sample(dataset, config.data, sample.value)
                with torch.no_grad():
                    batch = work.store.assemble([shown], [number]).to(work.device)
                    maps.append(detector.anomaly_maps(batch)[0].cpu().numpy())
                parts += [
                    (shown.rgb, f"{state}: image"),
                    (as_bytes(shown.depth), f"{state}: depth"),
                ]
        except DataError as error:
            pictures.value, said.value = "", escape(str(error))
            return
        low, high = np.percentile(maps[0], [1, 99.9])
        levels = [(each - low) / max(high - low, 1e-12) for each in maps]
        parts += [
            (heat(level), f"{state}: map") for level, state in zip(levels, STATES, strict=True)
        ]
        pictures.value = html_of_pictures(parts, sample.value)
        scoring = config.evaluation
        before, after = image_scores(np.stack(maps), scoring.image_score, scoring.pool)
        said.value = (
            f"image score {before:.4g} clean, {after:.4g} perturbed ({after / before - 1:+.1%})"
        )

    chain(run, category, lambda: _categories(runs[run.label]))
    for each in (run, category):
        chain(each, sample, lambda: _test_ids(runs[run.label], category.value))
    return assemble([run, category, sample, kind, strength], [pictures, said], draw)


def explore_data(study: StudyConfig) -> ipywidgets.Widget:
    """Any sample of a study's data set: colour, depth and mask."""
    dataset = open_dataset(study.data)
    category, split = choice("category", dataset.categories), choice("split", ("test", "train"))
    sample, pictures = choice("sample"), ipywidgets.HTML()

    def ids() -> list[str]:
        index = dataset.index
        chosen = (index["category"] == category.value) & (index["split"] == split.value)
        return index[chosen]["sample_id"].tolist()

    def draw() -> None:
        shown = prepared_sample(dataset, study.data, sample.value)
        mask = np.repeat(255 * shown.mask.astype(np.uint8)[..., None], 3, axis=2)
        parts = [(shown.rgb, "image"), (as_bytes(shown.depth), "depth"), (mask, "mask")]
        pictures.value = html_of_pictures(parts, sample.value)

    for each in (category, split):
        chain(each, sample, ids)
    return assemble([category, split, sample], [pictures], draw)


def _categories(run: RunConfig) -> tuple[str, ...]:
    return open_dataset(run.data).categories


def _test_rows(dataset: Dataset, category: str) -> pd.DataFrame:
    return dataset.index[
        (dataset.index["category"] == category) & (dataset.index["split"] == "test")
    ]


def _test_ids(run: RunConfig, category: str) -> list[str]:
    """Test samples of a category, defects first."""
    rows = _test_rows(open_dataset(run.data), category)
    return rows.sort_values("label", ascending=False, kind="stable")["sample_id"].tolist()


def _nothing(folder: str | Path) -> ipywidgets.Widget:
    return ipywidgets.HTML(f"no finished run in {escape(str(folder))}")
