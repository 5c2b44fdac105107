"""Figures of result tables: a table in, a matplotlib figure out. Nothing here trains anything.

Intervals are 95 % t intervals over seeds; one seed has none, and legends say how many there are. Detection metrics
are drawn in percent, forgetting in points. A table without rows gives a strip that says so. A figure of a
table keeps what it draws (`iumad.report.style.keep_table`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from iumad.errors import DataError
from iumad.report.style import (
    MAX_COLUMNS,
    OKABE_ITO,
    colours_of,
    in_style,
    keep_table,
    label_of,
    legend,
    markers_of,
    nothing_to_draw,
    panels,
    scale_of,
)
from iumad.study.results import final_table, last_step, step_means
from iumad.study.statistics import (
    CONTRADICTED,
    NO_DIFFERENCE,
    SUPPORTED,
    UNDECIDED,
    UNTRAINED,
    bootstrap,
    performance_profile,
    summarise,
)

MAIN_METRICS = ("i_auroc", "p_auroc", "aupro")
VERDICT_COLOURS = {
    SUPPORTED: OKABE_ITO["green"],
    CONTRADICTED: OKABE_ITO["vermilion"],
    NO_DIFFERENCE: OKABE_ITO["blue"],
    UNDECIDED: OKABE_ITO["grey"],
    UNTRAINED: OKABE_ITO["orange"],
}
ERRORBAR: dict[str, Any] = {"capsize": 2, "elinewidth": 1}


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
    legend(figure, log, factor, markers=False)
    means = log.groupby([factor, "term", "step", "total_epoch"], sort=False)["value"]
    return keep_table(figure, means.agg(["mean", "min", "max"]).reset_index())


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
    figure, axes = panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        _lines(axis, summary[summary["metric"] == metric], "step", factor, metric)
        axis.set(ylabel=label_of(metric), xlabel="categories learnt")
        axis.set_xticks(n_learnt.index, n_learnt.astype(str))
        if scale_of(metric) == 100:
            axis.set_ylim(top=min(axis.get_ylim()[1], 100.5))
    legend(figure, means, factor)
    return keep_table(figure, summary[summary["metric"].isin(metrics)])


@in_style
def setting_dots(
    rows: pd.DataFrame, metrics: Sequence[str] = MAIN_METRICS, factor: str = "method"
) -> Figure:
    """Draw the mean over categories after the last step in each setting; small dots are seeds.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows of one data set.
    metrics : sequence of str
        One panel each; "fm_..." is the forgetting, which a setting of one step does not have.
    factor : str
        Column that tells the dots apart, "method" or "modality"; the other must not vary.
    """
    _require_one(rows, {"dataset", "method", "modality"} - {factor})
    table = final_table(rows)
    table = table[table["metric"].isin(metrics)]
    settings = list(table["setting"].unique())
    table = table.assign(place=table["setting"].map(settings.index))
    summary = summarise(table, by=[factor, "setting", "place", "metric"])
    figure, axes = panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        part = table[table["metric"] == metric]
        _lines(axis, summary[summary["metric"] == metric], "place", factor, metric, part)
        axis.set(ylabel=label_of(metric), xlabel="setting", xlim=(-0.5, len(settings) - 0.5))
        axis.set_xticks(range(len(settings)), settings)
        if metric.startswith("fm_"):
            axis.axhline(0, color="#222222", linewidth=0.8)
    legend(figure, table, factor)
    return keep_table(figure, summary.drop(columns="place"))


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
    figure, axes = panels(len(levels), height=0.9 + 0.24 * len(categories))
    ends = {"vmin": summary["mean"].min(), "vmax": summary["mean"].max()}
    for place, (axis, level) in enumerate(zip(axes, levels, strict=True)):
        part = summary[summary[factor] == level]
        grid = part.pivot_table("mean", "category", "step").reindex(categories)
        _heat(axis, grid, metric, **ends)
        axis.set(title=level, xlabel="step", ylabel="")
        axis.tick_params(labelleft=place % MAX_COLUMNS == 0)
    figure.colorbar(axes[0].collections[0], ax=axes, label=label_of(metric), aspect=30, pad=0.01)
    return keep_table(figure, summary)


@in_style
def method_heatmap(rows: pd.DataFrame, metric: str = "i_auroc") -> Figure:
    """Draw one metric after the last step, methods by categories, mean over seeds.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows of one data set, modality and setting.
    metric : str
        Which metric.
    """
    _require_one(rows, {"dataset", "modality", "setting"})
    last = last_step(rows[rows["metric"] == metric])
    summary = summarise(last, by=["method", "category"])
    summary["mean"] *= scale_of(metric)
    categories, methods = list(last["category"].unique()), list(last["method"].unique())
    grid = summary.pivot_table("mean", "method", "category").reindex(methods)[categories]
    figure, axis = plt.subplots(figsize=(2.4 + 0.62 * len(categories), 1.3 + 0.28 * len(methods)))
    _heat(axis, grid, metric)
    axis.set(xlabel="", ylabel="")
    axis.tick_params(axis="x", rotation=40)
    for label in axis.get_xticklabels():
        label.set(horizontalalignment="right", rotation_mode="anchor")
    figure.colorbar(axis.collections[0], ax=axis, label=label_of(metric), pad=0.01)
    return keep_table(figure, summary)


@in_style
def profile_plot(rows: pd.DataFrame, metric: str = "i_auroc") -> Figure:
    """Draw the second view: interquartile means over seeds and categories, and performance profiles.

    Intervals and bands are stratified bootstrap ones (`iumad.study.statistics.bootstrap`); they decide nothing.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows of one data set, modality and setting. A category that a run has no value of is left out.
    metric : str
        Which metric, after the last step.
    """
    table = _complete(last_step(rows[rows["metric"] == metric])) if len(rows) else rows
    if table.empty:
        return nothing_to_draw()
    table = table.assign(value=scale_of(metric) * table["value"])
    means = bootstrap(table, ["method"]).sort_values("value", ignore_index=True)
    levels = means["method"].tolist()[::-1]
    thresholds = np.linspace(table["value"].min() - 1, table["value"].max(), 101)
    profiles = performance_profile(table, ["method"], thresholds)
    colours, markers = colours_of(levels), markers_of(levels)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, max(2.6, 1 + 0.26 * len(levels))))
    for place, row in enumerate(means.itertuples()):
        look = ERRORBAR | {"color": colours[row.method], "marker": markers[row.method]}
        reach = [[row.value - row.low], [row.high - row.value]]
        left.errorbar(row.value, place, xerr=reach, **look)
    left.set_yticks(range(len(means)), means["method"])
    left.set(xlabel=f"interquartile mean, {label_of(metric)}", ylim=(-0.6, len(means) - 0.4))
    left.grid(visible=True, axis="x")
    for level in levels:
        part = profiles[profiles["method"] == level]
        right.plot(part["threshold"], part["share"], color=colours[level])
        right.fill_between(
            part["threshold"], part["low"], part["high"], color=colours[level], alpha=0.15, lw=0
        )
    right.set(xlabel=label_of(metric), ylabel="share of seeds and categories above", ylim=(0, 1.02))
    return keep_table(figure, means)


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """Method, seed, category and value, without the categories that a run of a method has no value of."""
    keys = ["method", "seed"]
    # Unlike pivot_table, pivot averages nothing.
    wide = table.pivot(index=keys, columns="category", values="value").dropna(axis=1)  # noqa: PD010
    return wide.reset_index().melt(keys, var_name="category", value_name="value")


@in_style
def information_plot(table: pd.DataFrame) -> Figure:
    """Draw the bits that a linear probe reads before and after the bottleneck, a panel for each target.

    Parameters
    ----------
    table : pandas.DataFrame
        Measurements of the kind "information". The dotted line is all there is to know of the category.
    """
    if table.empty:
        return nothing_to_draw()
    keys = ["method", "target", "representation"]
    summary = summarise(table.assign(value=table["bits"]), keys)
    levels, targets = list(table["method"].unique()), list(table["target"].unique())
    colours, markers = colours_of(levels), markers_of(levels)
    figure, axes = panels(len(targets))
    for axis, target in zip(axes, targets, strict=True):
        for level in levels:
            part = summary[(summary["method"] == level) & (summary["target"] == target)]
            part = part.set_index("representation").loc[["before", "after"]]
            look = ERRORBAR | {"color": colours[level], "marker": markers[level], "label": level}
            half = (part["high"] - part["mean"]).to_numpy()
            axis.errorbar([0, 1], part["mean"], yerr=half, **look)
        axis.axhline(
            table.loc[table["target"] == target, "possible"].max(), color="#222222", linestyle=":"
        )
        axis.set(title=target, ylabel="bits that a linear probe reads", xlim=(-0.4, 1.4))
        axis.set_ylim(bottom=0)
        axis.set_xticks([0, 1], ["before", "after"])
    legend(figure, table, "method")
    return keep_table(figure, summary)


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
    colours, markers = colours_of(levels), markers_of(levels)
    figure, axes = panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        for level in levels:
            part = table[(table["metric"] == metric) & (table["method"] == level)]
            look = {"color": colours[level], "marker": markers[level], "label": level}
            axis.plot(part[factor], part["value"], **look)
        axis.set(xlabel=factor.replace("_", " "), ylabel=metric, ylim=(0, None))
        axis.set_xticks(sorted(table[factor].unique()))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    figure.set_figwidth(figure.get_figwidth() + 1.6)
    return keep_table(figure, table[table["metric"].isin(metrics)])


@in_style
def claim_forest(answers: pd.DataFrame) -> Figure:
    """Draw the main contrast of every claim, coloured by its verdict, and the paper's value as a cross.

    Parameters
    ----------
    answers : pandas.DataFrame
        claim, verdict, estimate, low, high, paper, unit (`iumad.study.claims.verdicts`). Claims without an
        estimate and those in another unit than points are left out.
    """
    drawn = answers.dropna(subset=["estimate"])
    drawn = drawn[drawn["unit"] == "points"]
    if drawn.empty:
        return nothing_to_draw()
    figure, axis = plt.subplots(figsize=(8, 1.1 + 0.24 * len(drawn)))
    axis.axvline(0, color="#222222", linewidth=0.8)
    axis.axvspan(-1, 1, color="#EEEEEE", zorder=0)
    places = dict(zip(drawn.index, range(len(drawn)), strict=True))
    for verdict, part in drawn.groupby("verdict", sort=False):
        place = [places[index] for index in part.index]
        half = (part["high"] - part["estimate"]).to_numpy()
        look = ERRORBAR | {"linestyle": "none", "marker": "o", "color": VERDICT_COLOURS[verdict]}
        axis.errorbar(part["estimate"], place, xerr=half, label=verdict, **look)
    axis.plot(drawn["paper"], list(places.values()), "kx", label="the paper")
    axis.set_yticks(range(len(drawn)), drawn["claim"])
    axis.set(ylim=(len(drawn) - 0.5, -0.5), xlabel="points in favour of the claim")
    axis.grid(visible=True, axis="x")
    figure.legend(loc="outside upper center", ncols=5)
    return keep_table(figure, drawn)


@in_style
def shift_plot(table: pd.DataFrame) -> Figure:
    """Draw the shift of each detail of evaluation with its interval, a row per detail and metric.

    Parameters
    ----------
    table : DataFrame
        method, detail, metric, shift, low, high (`iumad.report.tables.shifts`), of one modality.
    """
    rows = (table["detail"] + ", " + table["metric"]).drop_duplicates().tolist()
    levels = table["method"].unique().tolist()
    colours, markers = colours_of(levels), markers_of(levels)
    figure, axis = plt.subplots(figsize=(7.2, 0.7 + 0.36 * len(rows)))
    for place, level in enumerate(levels):
        part = table[table["method"] == level]
        names = part["detail"] + ", " + part["metric"]
        y = [rows.index(name) + 0.2 * (place - (len(levels) - 1) / 2) for name in names]
        error = [part["shift"] - part["low"], part["high"] - part["shift"]]
        look = ERRORBAR | {"color": colours[level], "marker": markers[level], "linestyle": "none"}
        axis.errorbar(part["shift"], y, xerr=error, label=level, **look)
    axis.axvline(0, color="#222222", linewidth=0.8)
    axis.set_yticks(range(len(rows)), rows)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel="shift of the metric (points)")
    axis.grid(visible=True, axis="x")
    figure.legend(loc="outside upper center", ncols=min(len(levels), 4))
    return keep_table(figure, table)


@in_style
def card_bars(card: pd.DataFrame) -> Figure:
    """Draw parameters and operations of each part of a model.

    Parameters
    ----------
    card : pandas.DataFrame
        part, parameters, gflops; the row "all", the sum, is not drawn.
    """
    parts = card[card["part"] != "all"].assign(millions=lambda table: table["parameters"] / 1e6)
    figure, axes = plt.subplots(1, 2, figsize=(8, 0.3 * len(parts) + 1), sharey=True)
    columns = {"millions": "parameters, millions", "gflops": "operations, 10⁹ for one image"}
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        sns.barplot(parts, x=column, y="part", color=OKABE_ITO["blue"], ax=axis)
        axis.bar_label(axis.containers[0], fmt="%.2f", padding=3, fontsize="small")
        axis.margins(x=0.15)
        axis.set(xlabel=label, ylabel="")
    return keep_table(figure, card)


def _lines(
    axis: Axes,
    summary: pd.DataFrame,
    x: str,
    factor: str,
    metric: str,
    seeds: pd.DataFrame | None = None,
) -> None:
    """Means with their intervals; with `seeds`, unconnected, and each seed as a small dot behind its mean.

    Levels stand slightly apart so that their intervals do not hide each other.
    """
    levels = list(summary[factor].unique())
    colours, markers = colours_of(levels), markers_of(levels)
    apart, scale = (0.08 if seeds is None else 0.8 / max(len(levels), 1)), scale_of(metric)
    for place, level in enumerate(levels):
        line, shift = summary[summary[factor] == level], apart * (place - (len(levels) - 1) / 2)
        mean = scale * line["mean"].to_numpy()
        half = scale * line["high"].to_numpy() - mean
        look = ERRORBAR | {"color": colours[level], "marker": markers[level]}
        if seeds is not None:
            look["linestyle"] = "none"
            dots = seeds[seeds[factor] == level]
            axis.scatter(dots[x] + shift, scale * dots["value"], 5, colours[level], alpha=0.4)
        axis.errorbar(line[x] + shift, mean, half, **look)


def _heat(axis: Axes, grid: pd.DataFrame, metric: str, **ends: float) -> None:
    """A grid of numbers as colours; equal colours are equal numbers where `ends` are."""
    form = ".0f" if scale_of(metric) == 100 else ".2g"
    look: dict[str, Any] = {"annot": True, "fmt": form, "annot_kws": {"size": 7.5}, "cbar": False}
    sns.heatmap(grid, cmap="cividis", linewidths=0.5, ax=axis, **look, **ends)
    axis.tick_params(length=0, rotation=0)
    axis.grid(visible=False)


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
            raise DataError(f"the figure needs one {column}, got {', '.join(values)}")
