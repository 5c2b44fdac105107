"""One look for pages and figures: boxes and tables in html; fonts, colours and labels of figures.

Names of categories, methods and profiles come from the reader's own files. Here is the one place where they become
html: `Markup` escapes all that is put into it, `Html` keeps MathJax out, and figures have formulas turned off.

Colours are those of Okabe and Ito, which readers with any common colour blindness can tell apart; the field's
other systems, too many for these, have some of Tol's muted scheme. Each method keeps its colour in every figure,
and lines also differ in their marker.
"""

import base64
import io
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import cycle
from typing import Any, ParamSpec

import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

ABSENT = "-"  # in the place of a number that does not exist
LONG = 40  # letters of a text that may be broken


@dataclass(frozen=True, repr=False)
class Html:
    """A piece of html that a notebook shows; MathJax leaves it alone, whatever names are in it."""

    source: Markup

    def __repr__(self) -> str:
        return "<html>"  # what a notebook keeps beside the html itself

    def _repr_html_(self) -> str:
        return f'<div class="iumad mathjax_ignore tex2jax_ignore">{self.source}</div>'


def fill(template: str, *values: Any, **named: Any) -> Markup:
    """A template of trusted html with values in its braces, which are escaped."""
    return Markup(template).format(*values, **named)


def code(name: Any) -> Markup:
    """A name as it is typed, such as a method's."""
    return fill("<code>{}</code>", name)


def listed(names: Sequence[Any], last: str = "and") -> Markup:
    """Names in a row: `a`, `b` and `c`."""
    parts = [code(name) for name in names]
    if len(parts) < 2:
        return Markup("").join(parts)
    return fill("{} {} {}", Markup(", ").join(parts[:-1]), last, parts[-1])


def verdict_word(word: str) -> Markup:
    """A verdict, coloured by what it says."""
    return fill('<span class="verdict {}">{}</span>', word.replace(" ", "-"), word)


def box(sentences: Sequence[str], kind: str = "answer") -> Html:
    """A framed paragraph for each sentence.

    Parameters
    ----------
    sentences : sequence of str or Markup
        Plain text is escaped.
    kind : str
        "answer" opens a page; "note" says where its numbers come from; "warning" what is missing.
    """
    paragraphs = Markup("").join(fill("<p>{}</p>", sentence) for sentence in sentences)
    return Html(fill('<div class="box {}">{}</div>', kind, paragraphs))


def fold(title: str, *parts: Html | Markup | str) -> Html:
    """Parts that a reader opens by a click on the title."""
    inner = Markup("").join(
        part.source if isinstance(part, Html) else fill("<p>{}</p>", part) for part in parts
    )
    return Html(fill('<details class="fold"><summary>{}</summary>{}</details>', title, inner))


def table(
    frame: pd.DataFrame, precision: int = 1, csv: str | None = None, note: Markup | str = ""
) -> Html:
    """A table without its index; text is escaped, `Markup` in a cell is not.

    Parameters
    ----------
    frame : DataFrame
        Columns of two levels get two rows of headings.
    precision : int
        Decimals of floating point numbers; a missing one becomes "–".
    csv : str, optional
        Name of a file, without its end, under which the reader may save the numbers.
    note : str
        How the table is read; stands beside the link to the file.
    """
    rows = [
        Markup("").join(
            fill("<td{}>{}</td>", _side(value), _cell(value, precision)) for value in row
        )
        for row in frame.itertuples(index=False, name=None)
    ]
    body = Markup("").join(fill("<tr>{}</tr>", row) for row in rows)
    source = fill("<table><thead>{}</thead><tbody>{}</tbody></table>", _head(frame), body)
    links = [*([note] if note else []), *([csv_link(frame, csv)] if csv else [])]
    below = fill('<p class="save">{}</p>', Markup(" ").join(links)) if links else Markup("")
    return Html(source + below)


def page_links(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """The table whose column names notebooks, "" for none, with a link to each instead, without its number."""
    link = '<a href="{}.html">{}</a>'
    names = [name.split("_", 1)[-1].replace("_", " ") for name in frame[column]]
    pairs = zip(frame[column], names, strict=True)
    links = [fill(link, page, name) if page else "" for page, name in pairs]
    return frame.assign(**{column: links})


def csv_link(frame: pd.DataFrame, name: str) -> Markup:
    """A link that saves a table as a file; the file is in the page."""
    plain = frame.map(
        lambda value: Markup(value).striptags() if isinstance(value, Markup) else value
    )
    plain.columns = [
        " ".join(map(str, c)).strip() if isinstance(c, tuple) else c for c in frame.columns
    ]
    text = plain.to_csv(index=False, lineterminator="\n")
    data = base64.b64encode(text.encode()).decode()
    return fill('<a download="{}.csv" href="data:text/csv;base64,{}">CSV</a>', name, data)


def _head(frame: pd.DataFrame) -> Markup:
    """Rows of headings; equal neighbours of the upper row share a cell."""
    if frame.columns.nlevels == 1:
        numbers = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
        cells = (
            fill('<th scope="col"{}>{}</th>', Markup(' class="number"') if number else "", name)
            for name, number in zip(frame.columns, numbers, strict=True)
        )
        return fill("<tr>{}</tr>", Markup("").join(cells))
    upper: list[list[Any]] = []
    for name, _ in frame.columns:
        if upper and upper[-1][0] == name and name:
            upper[-1][1] += 1
        else:
            upper.append([name, 1])
    first = Markup("").join(
        fill('<th scope="colgroup" colspan="{}">{}</th>', span, name)
        if name
        else Markup("<td></td>")
        for name, span in upper
    )
    second = Markup("").join(fill('<th scope="col">{}</th>', name) for _, name in frame.columns)
    return fill("<tr>{}</tr><tr>{}</tr>", first, second)


def _cell(value: Any, precision: int) -> Markup:
    if isinstance(value, Markup):
        return value
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return Markup(ABSENT)
    if isinstance(value, float | np.floating):
        return escape(
            f"{round(float(value), precision) + 0.0:.{precision}f}"
        )  # so that -0.0 becomes 0.0
    return escape(value)


def _side(value: Any) -> Markup:
    """Numbers stand at the right, and long texts in several lines."""
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return Markup(' class="number"')
    long = isinstance(value, str) and len(Markup(value).striptags()) > LONG
    return Markup(' class="text"') if long else Markup("")


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
    "text.parse_math": False,  # a dollar in a category's name is no formula
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}

OKABE_ITO = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "grey": "#555555",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
}
TOL = {
    "indigo": "#332288",
    "wine": "#882255",
    "olive": "#999933",
    "brown": "#661100",
    "magenta": "#AA4499",
    "teal": "#44AA99",
    "sand": "#B09A4E",
    "forest": "#117733",
    "rose": "#CC6677",
}
PALETTE = (*OKABE_ITO.values(), *TOL.values())
COLOURS = {
    "ib-iumad": OKABE_ITO["blue"],
    "iuf": OKABE_ITO["vermilion"],
    "uniad": OKABE_ITO["green"],
    "bank": OKABE_ITO["grey"],
    "joint": OKABE_ITO["purple"],
    "finetune": OKABE_ITO["orange"],
    "ib-iumad-plus": OKABE_ITO["sky"],
    "mambaad-lite": TOL["indigo"],
    "simplenet": TOL["wine"],
    "cdad-feat": TOL["olive"],
    "unimmad-lite": TOL["brown"],
    "unimmad-lite+replay": TOL["magenta"],
    "plain": TOL["teal"],
    "bank-unified": TOL["sand"],
    "plain-all": TOL["forest"],
    "iuf-all": TOL["rose"],
    "ib-iumad+replay": "#6699CC",  # with replay: the lighter colour
    "iuf+replay": "#E89B6B",
    "plain+replay": "#8ED1C6",
    "ib-iumad-keep": "#000000",
    "floor-laplacian": "#888888",
    "floor-depth-histogram": "#AAAAAA",
    "floor-rgb-histogram": "#C4C4C4",
    "ib-iumad[mamba+ibfm]": OKABE_ITO["blue"],
    "ib-iumad[cross_attention]": OKABE_ITO["blue"],
    "rgb": OKABE_ITO["vermilion"],
    "depth": OKABE_ITO["green"],
    "rgb+depth": OKABE_ITO["blue"],
}
"""Method or modality -> its colour on every page; other names get one of their own by `colours_of`."""
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
    "new_i_auroc": "New: image AUROC (%)",
    "new_p_auroc": "New: pixel AUROC (%)",
    "new_aupro": "New: AUPRO (%)",
}
"""Axis labels of metrics that are stored as fractions. FM: forgetting; new: a category as it was learnt."""


def colours_of(levels: Sequence[str]) -> dict[str, str]:
    """Colour of each level: its own in `COLOURS`, else one that depends on its name and is still free."""
    colours = {level: COLOURS[level] for level in levels if level in COLOURS}
    for level in levels:
        if level not in colours:
            start = zlib.crc32(level.encode()) % len(PALETTE)
            order = [*PALETTE[start:], *PALETTE[:start]]
            free = [colour for colour in order if colour not in colours.values()]
            colours[level] = (free or order)[0]
    return colours


def markers_of(levels: Sequence[str]) -> dict[str, str]:
    """Marker of each level, in their order."""
    return dict(zip(levels, cycle(MARKERS), strict=False))


def label_of(metric: str) -> str:
    """Axis label with unit; the metric's own name, in words, if it has no label here."""
    return METRICS.get(metric, metric.replace("_", " "))


def scale_of(metric: str) -> int:
    """Factor from the stored value to the drawn one: 100 for the metrics drawn in percent."""
    return 100 if metric in METRICS else 1


Arguments = ParamSpec("Arguments")


def in_style(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Decorate a function that returns a figure: drawn in `STYLE`, then closed.

    A closed figure is still whole; only pyplot forgets it, so that a notebook shows it once and a long study does
    not collect open figures. If its first argument is a table without rows, a strip that says so takes its place.
    """

    @wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        first = args[0] if args else None
        empty = isinstance(first, pd.DataFrame) and first.empty
        if empty:
            return nothing_to_draw()
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            plt.close(figure)
        return figure

    return styled


def keep_table(figure: Figure, table: pd.DataFrame) -> Figure:
    """The figure, which a notebook keeps as SVG too, with its numbers as CSV (`iumad.report.book`)."""

    def mimebundle(**_wanted: Any) -> dict[str, str]:
        drawn = io.StringIO()
        with plt.rc_context(STYLE):
            figure.savefig(drawn, format="svg", metadata={"Date": None})
        text = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
        return {"image/svg+xml": drawn.getvalue(), "text/csv": text}

    vars(figure)["_repr_mimebundle_"] = mimebundle
    return figure


def nothing_to_draw() -> Figure:
    """The strip that takes the place of a figure whose runs are missing."""
    figure, axis = plt.subplots(figsize=(4, 0.6))
    axis.text(0.5, 0.5, "no finished run to draw", ha="center", va="center", color="#555555")
    axis.set_axis_off()
    plt.close(figure)
    return figure


def panels(n: int, height: float = PANEL_HEIGHT) -> tuple[Figure, list[Axes]]:
    """Grid of n panels, at most `MAX_COLUMNS` beside each other."""
    n_columns = min(n, MAX_COLUMNS)
    n_rows = -(-n // n_columns)
    size = (PANEL_WIDTH * n_columns, height * n_rows + 0.3)  # the legend takes 0.3
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False)
    for unused in axes.flat[n:]:
        unused.remove()
    return figure, list(axes.flat[:n])


def legend(figure: Figure, table: pd.DataFrame, factor: str, markers: bool = True) -> None:
    """Put the levels of a factor above the panels, and how many seeds are behind them.

    Parameters
    ----------
    figure : Figure
    table : DataFrame
        Columns `factor` and seed; with the columns modality, setting and step, seeds count in each of their cells.
    factor : str
        What colours stand for.
    markers : bool
        Whether lines have their level's marker.
    """
    levels = list(table[factor].unique())
    colours, shapes = colours_of(levels), markers_of(levels)
    seeds = {level: _seeds(table[table[factor] == level]) for level in levels}
    common = seeds[levels[0]] if len(set(seeds.values())) == 1 else None
    labels = [level if common else f"{level} ({seeds[level]})" for level in levels]
    handles = [
        Line2D([], [], color=colours[level], marker=shapes[level] if markers else "")
        for level in levels
    ]
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=_columns(figure, labels),
        title=f"mean of {common}" if common else None,
        title_fontsize=8.5,
    )


def _columns(figure: Figure, labels: Sequence[str]) -> int:
    """So many entries beside each other as the figure's width takes."""
    longest = 0.6 + 0.075 * max(
        len(label) for label in labels
    )  # inches: the line, and 8.5 points a letter
    return max(1, min(len(labels), int(figure.get_figwidth() / longest)))


def _seeds(table: pd.DataFrame) -> str:
    """Number of seeds: "3 seeds", or "1 to 3 seeds" where it differs between the cells of a grid."""
    cells = [column for column in ("modality", "setting", "step") if column in table]
    counts = table.groupby(cells)["seed"].nunique() if cells else table[["seed"]].nunique()
    few, many = counts.min(), counts.max()
    return f"{few if few == many else f'{few} to {many}'} seed{'s' * int(many > 1)}"
