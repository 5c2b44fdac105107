"""Figures of the theory page: what Eq. 8 measures, and what it leaves in place."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from iumad.style import MARKERS, SPARE_COLOURS, in_style, panels


@in_style
def eq7_against_eq8(drawn: pd.DataFrame) -> Figure:
    """Draw I(F;Y) - I(G;Y) over the KL, a dot per distribution of `iumad.theory.draw`."""
    figure, axes = panels(2)
    for place, (axis, (kind, part)) in enumerate(
        zip(axes, drawn.groupby("kind", sort=False), strict=True)
    ):
        gap = part["I(F;Y)"] - part["I(G;Y)"]
        axis.axline((0, 0), slope=1, color="#888888", linewidth=0.8, linestyle=":")
        axis.axhline(0, color="#222222", linewidth=0.8)
        colour, marker = SPARE_COLOURS[-1 - place], MARKERS[place]
        axis.scatter(part["KL"], gap, 10, color=colour, marker=marker, linewidths=0)
        title = {"chain": "G made from F (chain)", "any joint": "any F, G and Y"}[str(kind)]
        axis.set(title=title, xlabel="KL, Eq. 8 (bits)", ylabel="I(F;Y) - I(G;Y), Eq. 7 (bits)")
    return figure


@in_style
def redundancy_on_the_way_to_zero(paths: pd.DataFrame) -> Figure:
    """Draw what is kept besides the category while the KL goes to zero (`iumad.theory_checks.paths_to_zero`)."""
    figure, axes = panels(2)
    names = {"I(G;Y)": "I(G;Y), about the category", "I(F;G|Y)": "I(F;G|Y), redundant"}
    for axis, (column, label) in zip(axes, names.items(), strict=True):
        for place, (keeps, path) in enumerate(paths.groupby("keeps", sort=False)):
            look: dict[str, Any] = {
                "color": SPARE_COLOURS[-1 - place],
                "marker": MARKERS[place],
                "markevery": 4,
            }
            axis.plot(path["KL"], path[column], label=f"G keeps {keeps}", **look)
        axis.set(xlabel="KL, Eq. 8 (bits)", ylabel=f"{label} (bits)")
        axis.invert_xaxis()  # to the right, the loss falls
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
