"""One look for all figures: fonts, colours and labels of methods, modalities and metrics.

Colours are those of Okabe and Ito, which readers with any common colour blindness can tell apart; the field's
other systems, too many for these, have some of Tol's muted scheme. Each method keeps its colour in every figure,
and lines also differ in their marker.
"""

import io
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any, ParamSpec

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from iumad.study.results import write_table

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "savefig.dpi": 200,
    "svg.hashsalt": "iumad",  # the same figure gives the same file
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}

COLOURS = {
    "ib-iumad": "#0072B2",
    "iuf": "#D55E00",
    "uniad": "#009E73",
    "memory-bank": "#555555",
    "joint": "#CC79A7",
    "finetune": "#E69F00",
    "ib-iumad-plus": "#56B4E9",
    "mambaad": "#332288",
    "simplenet": "#882255",
    "cdad-feat": "#999933",
    "unimmad-lite": "#661100",
    "unimmad-lite-replay": "#AA4499",
    "plain": "#44AA99",
    "iuf+redundant-0.5": "#56B4E9",
    "iuf+redundant-1": "#CC79A7",
    "iuf+both-0.5": "#E69F00",
    "iuf+both-1": "#009E73",
    "iuf-ib": "#555555",
    "iuf-ib+both-1": "#0072B2",
    "iuf-attention": "#332288",
    "iuf-attention+both-1": "#999933",
    "rgb": "#D55E00",
    "depth": "#009E73",
    "rgb+depth": "#0072B2",
}
SPARE_COLOURS = (
    *("#56B4E9", "#CC79A7", "#E69F00", "#009E73", "#D55E00", "#555555", "#0072B2"),
    *("#332288", "#882255", "#999933"),
)
PANEL_WIDTH, PANEL_HEIGHT = 3.0, 2.6  # inches
MAX_COLUMNS = 3
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")

METRICS = {
    "i_auroc": "Image AUROC (%)",
    "p_auroc": "Pixel AUROC (%)",
    "aupro": "AUPRO (%)",
    "fm_i_auroc": "FM of image AUROC (points)",
    "fm_p_auroc": "FM of pixel AUROC (points)",
    "fm_aupro": "FM of AUPRO (points)",
}
"""Axis labels (FM: forgetting measure) of the metrics that are stored as fractions."""


def colours_of(levels: Sequence[str]) -> dict[str, str]:
    """Colour of each level: its own where it has one, else a spare one; spare ones may repeat."""
    own = {level: COLOURS[level] for level in levels if level in COLOURS}
    spare = [colour for colour in SPARE_COLOURS if colour not in own.values()]
    others = [level for level in levels if level not in own]
    return own | dict(zip(others, cycle(spare), strict=False))


def label_of(metric: str) -> str:
    """Axis label with unit; the metric's own name if it has no label here."""
    return METRICS.get(metric, metric)


def scale_of(metric: str) -> int:
    """Factor from the stored value to the drawn one: 100 for the metrics drawn in percent."""
    return 100 if metric in METRICS else 1


Arguments = ParamSpec("Arguments")


def in_style(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Decorate a function that returns a figure: drawn in `STYLE`, then closed.

    A closed figure is still whole; only pyplot forgets it, so that a notebook shows it once and a
    long study does not collect open figures. If it is drawn from a table (its first argument), a
    notebook keeps it as SVG too, with the table as CSV; `iumad.report.book` writes these to files.
    """

    @wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            plt.close(figure)
        if args and isinstance(args[0], pd.DataFrame):
            table = args[0]
            vars(figure)["_repr_mimebundle_"] = lambda **_wanted: _mimebundle(figure, table)
        return figure

    return styled


def _mimebundle(figure: Figure, table: pd.DataFrame) -> dict[str, str]:
    drawn = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return {
        "image/svg+xml": drawn.getvalue(),
        "text/csv": table.to_csv(index=False, lineterminator="\n"),
    }


def panels(n: int, height: float = PANEL_HEIGHT) -> tuple[Figure, list[Axes]]:
    """Grid of n panels, at most `MAX_COLUMNS` beside each other."""
    n_columns = min(n, MAX_COLUMNS)
    n_rows = -(-n // n_columns)
    size = (PANEL_WIDTH * n_columns, height * n_rows + 0.3)  # the legend takes 0.3
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False)
    for unused in axes.flat[n:]:
        unused.remove()
    return figure, list(axes.flat[:n])


def legend(figure: Figure, table: pd.DataFrame, factor: str, kind: str) -> None:
    """Put one entry per level of the factor above the panels, each with its number of seeds.

    The kind is "line", "marker" (a line with the level's marker) or "bar".
    """
    levels = list(table[factor].unique())
    colours, markers = colours_of(levels), cycle(MARKERS)
    look: dict[str, Any] = {"linewidth": 6, "solid_capstyle": "butt"} if kind == "bar" else {}
    handles = [
        Line2D([], [], color=colours[level], marker=marker if kind == "marker" else "", **look)
        for level, marker in zip(levels, markers, strict=False)
    ]
    labels = [name_with_n(table, factor, level) for level in levels]
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(levels), 4))


def name_with_n(table: pd.DataFrame, factor: str, level: str) -> str:
    """Name of a level with the number of seeds behind it; "1 to 3" if that differs between the cells of a grid."""
    part = table[table[factor] == level]
    cells = [column for column in ("modality", "setting", "step") if column in table]
    counts = part.groupby(cells)["seed"].nunique() if cells else pd.Series([part["seed"].nunique()])
    few, many = counts.min(), counts.max()
    return f"{level} (n = {many if few == many else f'{few} to {many}'})"


def save_figure(figure: Figure, folder: Path, name: str, data: pd.DataFrame) -> list[Path]:
    """Write a figure as PNG and SVG, and what it shows as CSV; return the three paths.

    The same figure gives the same bytes: no dates are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    png, svg, csv = (folder / f"{name}.{suffix}" for suffix in ("png", "svg", "csv"))
    with plt.rc_context(STYLE):
        figure.savefig(png, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})
    write_table(data, csv)
    return [png, svg, csv]
