"""Figures of what a model is made of: a table in, a matplotlib figure out.

Figures of result tables: a table in, a matplotlib figure out. Nothing here trains anything.

Intervals are 95 % t intervals over seeds; one seed has none, and legends give n, how many seeds.
Detection metrics are drawn in percent, forgetting in percentage points.

Figures of the comparison pages: a table in, a figure out; see `iumad.report.figures` for the conventions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from iumad.errors import DataError
from iumad.report.pictures import anomaly_grid as anomaly_grid
from iumad.report.style import (
    MARKERS,
    MAX_COLUMNS,
    colours_of,
    in_style,
    label_of,
    legend,
    name_with_n,
    panels,
    scale_of,
)
from iumad.report.style import save_figure as save_figure
from iumad.study.results import final_table, forgetting_table, last_step, step_means
from iumad.study.statistics import summarise

MAIN_METRICS = ("i_auroc", "p_auroc", "aupro")


@in_style
def training_curves(log: pd.DataFrame, factor: str = "method") -> Figure:
    """Draw each loss term over the epochs of all steps, one panel per term.

    Lines are means over seeds, bands reach from the smallest to the largest seed, dotted lines
    mark the ends of steps. A term whose values are all positive has a logarithmic axis.

    Parameters
    ----------
    log : pandas.DataFrame
        Training log (`iumad.study.results.LOG_SCHEMA`) of one setting.
    factor : str
        Column that tells the lines apart, "method" or "modality"; the other must not vary.
    """
    _require_one(log, {"method", "modality", "setting"} - {factor})
    log, step_ends = _with_total_epoch(log)
    terms, levels = list(log["term"].unique()), list(log[factor].unique())
    look = {"hue": factor, "hue_order": levels, "palette": colours_of(levels), "legend": False}
    figure, axes = panels(len(terms))
    for axis, term in zip(axes, terms, strict=True):
        part = log[log["term"] == term]
        for _, step in part.groupby("step"):  # each step is its own line
            sns.lineplot(step, x="total_epoch", y="value", errorbar=("pi", 100), ax=axis, **look)
        for end in step_ends[:-1]:
            axis.axvline(end + 0.5, color="#888888", linewidth=0.8, linestyle=":")
        axis.set(title=term, xlabel="epoch (all steps)", ylabel="loss")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if (part["value"] > 0).all():
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
    legend(figure, log, factor, "line")
    return figure


@in_style
def metric_per_step(
    rows: pd.DataFrame, metrics: Sequence[str] = MAIN_METRICS, factor: str = "method"
) -> Figure:
    """Draw the mean over the categories learnt so far after each step, one panel per metric.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows (`iumad.study.results.ROW_SCHEMA`) of one data set and setting.
    metrics : sequence of str
        Which metrics, in this order.
    factor : str
        Column that tells the lines apart, "method" or "modality"; the other must not vary.
    """
    _require_one(rows, {"dataset", "method", "modality", "setting"} - {factor})
    means = step_means(rows)
    summary = summarise(means, by=[factor, "step", "metric"])
    n_learnt = means.groupby("step")["n_categories"].max()
    levels = list(means[factor].unique())
    figure, axes = panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        for place, level in enumerate(levels):
            line = summary[(summary["metric"] == metric) & (summary[factor] == level)]
            # Levels stand slightly apart so that their intervals do not hide each other.
            x = line["step"] + 0.08 * (place - (len(levels) - 1) / 2)
            mean, half = _drawn(line, metric)
            colour, marker = colours_of(levels)[level], MARKERS[place % len(MARKERS)]
            axis.errorbar(x, mean, half, color=colour, marker=marker, capsize=2, elinewidth=1)
        axis.set(ylabel=label_of(metric), xlabel="categories learnt")
        axis.set_xticks(n_learnt.index, n_learnt.astype(str))
        if scale_of(metric) == 100:
            axis.set_ylim(top=min(axis.get_ylim()[1], 100.5))
    legend(figure, means, factor, "marker")
    return figure


@in_style
def forgetting_bars(
    rows: pd.DataFrame, metrics: Sequence[str] = MAIN_METRICS, factor: str = "method"
) -> Figure:
    """Draw the forgetting measure per setting, one panel per metric; dots are seeds.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows of one data set. Runs of a single step have no forgetting and are left out.
    metrics : sequence of str
        Whose forgetting, in this order.
    factor : str
        Column that tells the bars apart, "method" or "modality"; the other must not vary.
    """
    _require_one(rows, {"dataset", "method", "modality"} - {factor})
    table = forgetting_table(rows)
    if table.empty:
        raise DataError("forgetting needs a run of two or more steps, got none")
    summary = summarise(table, by=[factor, "setting", "metric"])
    levels, settings = list(table[factor].unique()), list(table["setting"].unique())
    width = 0.8 / len(levels)
    figure, axes = panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        name = f"fm_{metric}"
        for place, level in enumerate(levels):
            offset = (place - (len(levels) - 1) / 2) * width
            bars, dots = (
                part[(part["metric"] == name) & (part[factor] == level)]
                for part in (summary, table)
            )
            height, error = _drawn(bars, name)
            x = bars["setting"].map(settings.index) + offset
            axis.bar(x, height, 0.9 * width, color=colours_of(levels)[level])
            axis.errorbar(x, height, error, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
            x = dots["setting"].map(settings.index) + offset
            axis.scatter(x, 100 * dots["value"], 9, "white", edgecolors="#222222", zorder=3)
        axis.axhline(0, color="#222222", linewidth=0.8)
        axis.set(ylabel=label_of(name), xlabel="setting")
        axis.set_xticks(range(len(settings)), settings)
    legend(figure, table, factor, "bar")
    return figure


@in_style
def category_heatmap(rows: pd.DataFrame, metric: str = "i_auroc", factor: str = "method") -> Figure:
    """Draw one metric of every category after every step, mean over seeds; one panel per level.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows of one data set and setting. Categories not learnt yet stay empty.
    metric : str
        Which metric.
    factor : str
        Column that tells the panels apart, "method" or "modality"; the other must not vary.
    """
    _require_one(rows, {"dataset", "method", "modality", "setting"} - {factor})
    rows = rows[rows["metric"] == metric]
    summary = summarise(rows, by=[factor, "category", "step"])
    summary["mean"] *= scale_of(metric)
    levels, categories = list(rows[factor].unique()), list(rows["category"].unique())
    height = 0.9 + 0.24 * len(categories)
    figure, axes = panels(len(levels), height=height)
    for place, (axis, level) in enumerate(zip(axes, levels, strict=True)):
        part = summary[summary[factor] == level]
        grid = part.pivot_table("mean", "category", "step").reindex(categories)
        sns.heatmap(
            grid,
            vmin=summary["mean"].min(),
            vmax=summary["mean"].max(),
            cmap="cividis",
            annot=True,
            fmt=".0f" if scale_of(metric) == 100 else ".2g",
            annot_kws={"size": 7.5},
            linewidths=0.5,
            cbar=False,
            ax=axis,
        )
        axis.set(title=name_with_n(rows, factor, level), xlabel="step", ylabel="")
        axis.tick_params(length=0, labelleft=place % MAX_COLUMNS == 0, rotation=0)
        axis.grid(visible=False)
    figure.colorbar(axes[0].collections[0], ax=axes, label=label_of(metric), aspect=30, pad=0.01)
    return figure


@in_style
def rank_plot(ranks: pd.DataFrame) -> Figure:
    """Draw mean ranks with the critical difference from the best level.

    Parameters
    ----------
    ranks : pandas.DataFrame
        What `iumad.study.statistics.mean_ranks` returns; its first column names the levels.
    """
    factor = ranks.columns[0]
    levels, best = list(ranks[factor]), ranks["rank"].min()
    reach = best + ranks["critical_difference"].iloc[0]
    figure, axis = plt.subplots(figsize=(4.6, 1.3 + 0.28 * len(levels)))
    axis.axvspan(
        best, reach, color="#E8E8E8", zorder=0, label="not told apart from the best at 5 %"
    )
    axis.scatter(ranks["rank"], range(len(levels)), 40, [colours_of(levels)[one] for one in levels])
    for place, rank in enumerate(ranks["rank"]):
        axis.annotate(f"{rank:.2f}", (rank, place), (6, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(levels)), levels)
    axis.set(xlim=(0.8, max(len(levels), reach) + 0.4), ylim=(len(levels) - 0.5, -0.5))
    axis.set(xlabel=f"mean rank over {ranks['n'].iloc[0]} blocks (1 = best)", ylabel="")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(visible=True, axis="x")
    figure.legend(loc="outside upper center")
    return figure


def _drawn(summary: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Means and the half widths of their intervals in the drawn unit."""
    mean = scale_of(metric) * summary["mean"].to_numpy()
    half = scale_of(metric) * (summary["high"] - summary["mean"]).to_numpy()
    return mean, half


def _with_total_epoch(log: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Add the column total_epoch, from 1 over all steps, and return the last one of each step."""
    epochs = log.groupby("step")["epoch"].agg(["min", "max"])
    step_ends = (epochs["max"] - epochs["min"] + 1).cumsum()
    before_step = step_ends.shift(fill_value=0) - epochs["min"] + 1
    total_epoch = log["epoch"] + log["step"].map(before_step)
    return log.assign(total_epoch=total_epoch), step_ends.to_numpy()


def _require_one(table: pd.DataFrame, columns: set[str]) -> None:
    for column in sorted(columns):
        values = list(table[column].unique())
        if len(values) != 1:
            raise DataError(f"the figure needs one {column}, got {', '.join(values) or 'no rows'}")


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


@in_style
def card_bars(card: pd.DataFrame) -> Figure:
    """Draw parameters and operations of each part of a model.

    Parameters
    ----------
    card : pandas.DataFrame
        Table of `iumad.study.efficiency.model_card`; its last row, the sum, is not drawn.
    """
    parts = card[card["part"] != "all"].assign(millions=lambda table: table["parameters"] / 1e6)
    figure, axes = plt.subplots(1, 2, figsize=(8, 0.3 * len(parts) + 1), sharey=True)
    columns = {"millions": "parameters, millions", "gflops": "operations, 10⁹ for one image"}
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        sns.barplot(parts, x=column, y="part", color="#4477aa", ax=axis)
        axis.bar_label(axis.containers[0], fmt="%.2f", padding=3, fontsize="small")
        axis.margins(x=0.15)
        axis.set(xlabel=label, ylabel="")
    return figure
