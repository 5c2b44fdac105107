"""Figures of the comparison pages: a table in, a figure out; see `iumad.figures` for the conventions."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from iumad.figures import MAIN_METRICS
from iumad.results import final_table, last_step
from iumad.statistics import summarise
from iumad.style import MARKERS, colours_of, in_style, label_of, legend, panels, scale_of


def if_run(rows: pd.DataFrame, draw: Callable[..., Figure], *arguments: Any, **more: Any) -> Figure:
    """`draw(rows, ...)`, or a picture that says "not run" where there are no rows."""
    return draw(rows, *arguments, **more) if len(rows) else not_run()


@in_style
def not_run() -> Figure:
    """Draw the words "not run", in the place of a figure whose runs are missing."""
    figure, axis = plt.subplots(figsize=(4, 0.8))
    axis.text(0.5, 0.5, "not run", ha="center", va="center", fontsize=14, color="#777777")
    axis.set_axis_off()
    return figure


@in_style
def setting_dots(rows: pd.DataFrame, metrics: Sequence[str] = MAIN_METRICS) -> Figure:
    """Draw the mean over categories after the last step in each setting, with its interval over seeds.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows of one data set and modality.
    metrics : sequence of str
        One panel each; "fm_..." is the forgetting, which a setting of one step does not have.
    """
    table = final_table(rows)
    summary = summarise(table, by=["method", "setting", "metric"])
    levels, settings = list(table["method"].unique()), list(table["setting"].unique())
    figure, axes = panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        for place, level in enumerate(levels):
            part = summary[(summary["metric"] == metric) & (summary["method"] == level)]
            x = part["setting"].map(settings.index) + 0.8 * (place - (len(levels) - 1) / 2) / len(
                levels
            )
            mean = scale_of(metric) * part["mean"]
            half = scale_of(metric) * (part["high"] - part["mean"])
            colour, marker = colours_of(levels)[level], MARKERS[place % len(MARKERS)]
            look: dict[str, Any] = {"linestyle": "none", "capsize": 2, "elinewidth": 1}
            axis.errorbar(x, mean, half, color=colour, marker=marker, **look)
        axis.set(ylabel=label_of(metric), xlabel="setting")
        axis.set_xticks(range(len(settings)), settings)
    legend(figure, table, "method", "marker")
    return figure


@in_style
def method_heatmap(rows: pd.DataFrame, metric: str = "i_auroc") -> Figure:
    """Draw one metric after the last step, categories by methods, mean over seeds.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows of one data set, modality and setting.
    metric : str
        Which metric.
    """
    last = last_step(rows[rows["metric"] == metric])
    summary = summarise(last, by=["method", "category"])
    summary["mean"] *= scale_of(metric)
    categories, methods = list(last["category"].unique()), list(last["method"].unique())
    grid = summary.pivot_table("mean", "category", "method").reindex(categories)[methods]
    figure, axis = plt.subplots(figsize=(2.2 + 0.9 * len(methods), 1.1 + 0.28 * len(categories)))
    bar = {"label": label_of(metric)}
    sns.heatmap(grid, cmap="cividis", annot=True, fmt=".0f", linewidths=0.5, cbar_kws=bar, ax=axis)
    axis.set(xlabel="", ylabel="")
    axis.tick_params(length=0, rotation=0)
    axis.grid(visible=False)
    return figure


@in_style
def growth_lines(table: pd.DataFrame, factor: str, metrics: Sequence[str]) -> Figure:
    """Draw how cost grows with a factor, one panel per metric and one line per method.

    Parameters
    ----------
    table : pandas.DataFrame
        method, `factor`, metric, value: medians over repeats.
    factor : str
        "categories" or "image_size".
    metrics : sequence of str
        One panel each; its name is the axis label.
    """
    levels = list(table["method"].unique())
    figure, axes = panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        for place, level in enumerate(levels):
            part = table[(table["metric"] == metric) & (table["method"] == level)]
            colour, marker = colours_of(levels)[level], MARKERS[place % len(MARKERS)]
            axis.plot(part[factor], part["value"], color=colour, marker=marker, label=level)
        axis.set(xlabel=factor.replace("_", " "), ylabel=metric, ylim=(0, None))
        axis.set_xticks(sorted(table[factor].unique()))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(levels), 4))
    return figure


@in_style
def claim_forest(claims: pd.DataFrame) -> Figure:
    """Draw the estimate of every claim with its interval, and the paper's value as a cross.

    Parameters
    ----------
    claims : pandas.DataFrame
        claim, test, estimate, low, high, paper (points, in the direction that favours the claim). Rows without
        an estimate are left out.
    """
    claims = claims.dropna(subset=["estimate"])
    labels: list[str] = []
    place: list[int] = []
    last = None
    for row in claims.itertuples():
        if row.claim != last:
            labels.append(f"{row.claim}:")  # a line of its own
        place.append(len(labels))
        labels.append(row.test)
        last = row.claim
    figure, axis = plt.subplots(figsize=(8, 1.1 + 0.2 * len(labels)))
    half = (claims["high"] - claims["estimate"]).to_numpy()
    axis.axvline(0, color="#222222", linewidth=0.8)
    look: dict[str, Any] = {"linestyle": "none", "capsize": 2, "elinewidth": 1}
    axis.errorbar(claims["estimate"], place, xerr=half, marker="o", color="#0072B2", **look)
    axis.plot(claims["paper"], place, "x", color="#D55E00")
    axis.set_yticks(range(len(labels)), labels)
    for number, label in enumerate(axis.get_yticklabels()):
        label.set_fontweight("normal" if number in place else "bold")
    axis.set(ylim=(len(labels) - 0.5, -0.5), xlabel="points in favour of the claim")
    axis.grid(visible=True, axis="x")
    return figure
