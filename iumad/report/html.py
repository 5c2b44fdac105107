"""What pages show besides figures, as html: sentences, boxes, tables, and what is folded away.

Names of categories, methods and profiles come from the reader's own files. Here is the one place where they become
html: `Markup` escapes all that is put into it, and `Html` keeps MathJax out. For figures, `iumad.report.style`
turns formulas off.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

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


def table(frame: pd.DataFrame, precision: int = 1, csv: str | None = None) -> Html:
    """A table without its index; text is escaped, `Markup` in a cell is not.

    Parameters
    ----------
    frame : DataFrame
        Columns of two levels get two rows of headings.
    precision : int
        Decimals of floating point numbers; a missing one becomes "–".
    csv : str, optional
        Name of a file, without its end, under which the reader may save the numbers.
    """
    rows = [
        Markup("").join(
            fill("<td{}>{}</td>", _side(value), _cell(value, precision)) for value in row
        )
        for row in frame.itertuples(index=False, name=None)
    ]
    body = Markup("").join(fill("<tr>{}</tr>", row) for row in rows)
    source = fill("<table><thead>{}</thead><tbody>{}</tbody></table>", _head(frame), body)
    return Html(source + csv_link(frame, csv) if csv else source)


def page_links(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """The table whose column names notebooks, "" for none, with a link that says the number of each instead."""
    link = '<a href="{0}.html" title="{0}">{1}</a>'
    links = [fill(link, name, name[:2]) if name else "" for name in frame[column]]
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
    return fill(
        '<p class="save"><a download="{}.csv" href="data:text/csv;base64,{}">CSV</a></p>',
        name,
        data,
    )


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
