"""What the live explorers are made of: labelled controls that depend on each other, and pictures as html."""

import io
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from iumad.explorers import picture_address
from iumad.pictures import MAP_COLOURS
from iumad.style import MARKERS, colours_of, in_style

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
