"""Figures of result tables, and pictures of samples with their anomaly maps. Nothing here trains anything.

Intervals are 95 % t intervals over seeds; one seed has none, and legends say how many there are. Detection metrics
are drawn in percent, forgetting in points. A table without rows gives a strip that says so. A figure of a
table keeps what it draws (`iumad.report.style.keep_table`).
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from jaxtyping import Bool, Float, UInt8
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from iumad.config.schema import RunConfig
from iumad.data import open_dataset
from iumad.data.prepare import for_the_eye
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
def dose_lines(table: pd.DataFrame) -> Figure:
    """Draw what each dose of noise and of backgrounds changes, a panel for each measure, bands for intervals.

    Parameters
    ----------
    table : pandas.DataFrame
        `iumad.report.tables.doses`.
    """
    titles = {
        "i_auroc": "Image AUROC",
        "fm_i_auroc": "FM",
        "new_i_auroc": "Image AUROC of new categories",
    }
    drawn = table[table["metric"].isin(titles)]
    kinds = ["noise", "backgrounds", "both"]
    colours = dict(zip(kinds, OKABE_ITO.values(), strict=False))
    markers = markers_of(kinds)
    figure, axes = panels(len(titles))
    for axis, (metric, title) in zip(axes, titles.items(), strict=True):
        for kind in kinds:
            line = drawn[(drawn["metric"] == metric) & (drawn["kind"] == kind)]
            colour, doses = colours[kind], line["dose"]
            axis.plot(doses, line["mean"], color=colour, marker=markers[kind], label=kind)
            axis.fill_between(doses, line["low"], line["high"], color=colour, alpha=0.15, lw=0)
        axis.axhline(0, color=OKABE_ITO["grey"], linewidth=0.8)
        axis.set(title=title, xlabel="strength", ylabel="change (points)")
        axis.set_xticks(sorted(table["dose"].unique()))
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(kinds)
    )
    return keep_table(figure, drawn)


@in_style
def fronts(table: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> Figure:
    """Draw methods as points between two quantities, one panel for each pair of columns.

    Parameters
    ----------
    table : pandas.DataFrame
        method and the columns named in `pairs`, as they are to be drawn; one row a method.
    pairs : sequence of (str, str)
        Columns of the horizontal and the vertical axis; their names are the labels.
    """
    levels = list(table["method"])
    colours, markers = colours_of(levels), markers_of(levels)
    figure, axes = panels(len(pairs))
    for axis, (x, y) in zip(axes, pairs, strict=True):
        for row in table.to_dict("records"):
            name = row["method"]
            axis.plot(
                *(row[x], row[y], markers[name]), color=colours[name], linestyle="none", label=name
            )
        axis.set(xlabel=x, ylabel=y)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    figure.set_figwidth(figure.get_figwidth() + 2.2)
    return keep_table(figure, table)


@in_style
def search_fronts(rows: pd.DataFrame) -> Figure:
    """Draw what each choice of a search gives for learning and costs in forgetting, a panel for each search.

    Parameters
    ----------
    rows : DataFrame
        Rows of runs in steps, with the column `search`, a panel's title; all panels have the same scales.
        Choices of one method, ``method[choice]``, are joined by a line in their order, with larger markers for
        later ones.
    """
    final = final_table(rows).merge(rows[["run_id", "search"]].drop_duplicates(), on="run_id")
    named = final["method"].str.extract(r"^(?P<method>.+)\[(?P<choice>.+)\]$")
    keys = ["search", "method", "choice"]
    means = final.assign(**named).pivot_table("value", keys, "metric", sort=False).reset_index()
    levels = list(means["method"].unique())
    colours, markers = colours_of(levels), markers_of(levels)
    searches = means["search"].unique()
    figure, axes = panels(len(searches), 3.2)
    for axis, search in zip(axes, searches, strict=True):
        if axis is not axes[0]:
            axis.sharex(axes[0])
            axis.sharey(axes[0])
        for method, line in means[means["search"] == search].groupby("method", sort=False):
            x, y = 100 * line["fm_i_auroc"], 100 * line["new_i_auroc"]
            axis.plot(x, y, color=colours[method], linewidth=1)
            look: dict[str, Any] = {
                "color": colours[method],
                "marker": markers[method],
                "zorder": 2,
            }
            axis.scatter(x, y, 12 * np.arange(1, len(line) + 1), label=method, **look)
        axis.set(title=search, xlabel=label_of("fm_i_auroc"), ylabel=label_of("new_i_auroc"))
    figure.set_figwidth(max(figure.get_figwidth(), 7))  # room for the legend above one panel
    legend(figure, final.assign(method=named["method"]), "method")
    return keep_table(figure, means)


@in_style
def budget_lines(rows: pd.DataFrame, images_an_epoch: int | float, budget: int | float) -> Figure:
    """Draw validation error and metrics over the number of training images, a line for each method.

    Parameters
    ----------
    rows : DataFrame
        Rows of one setting. Methods are named like ``iuf[epochs=15]``; those that are not have no budget, and are
        level lines.
    images_an_epoch, budget : int
        Training images in an epoch, and those of the recipe, at which an upright line stands; NaN without data.
    """
    means = step_means(rows)
    name = means["method"].str.extract(r"(.+)\[epochs=(.+)\]")
    images = (name[1].astype(float) * images_an_epoch).fillna(budget)
    means = means.assign(method=name[0].fillna(means["method"]), images=images)
    errors = means["metric"] == "validation_error"  # whose units differ between methods
    least = means["method"].map(means[errors].groupby("method")["value"].min())
    means["value"] = means["value"].where(~errors, means["value"] / least)
    means = means[~errors | (least > 0)]  # a score with a sign is no error
    summary = summarise(means, ["method", "images", "metric"])
    seen, (figure, axes) = sorted(set(images.dropna())), panels(3)
    for axis, metric in zip(axes, ("validation_error", "i_auroc", "aupro"), strict=True):
        lines(axis, summary[summary["metric"] == metric], "images", metric)
        axis.axvline(budget, color="0.5", linestyle="--")
        axis.set(xscale="log", xlabel="training images seen, thousands")
        axis.set_xticks(seen, [f"{count / 1000:.1f}" for count in seen])
        axis.minorticks_off()
    axes[0].set(ylabel="validation error (lowest: 1)")
    legend(figure, means, "method")
    return keep_table(figure, summary)


def lines(axis: Axes, summary: pd.DataFrame, x: str, metric: str, factor: str = "method") -> None:
    """Draw means with their intervals over `x`, a line for each level; a level with one place is a level line.

    Levels stand slightly apart so that their intervals do not hide each other.

    Parameters
    ----------
    axis : Axes
    summary : DataFrame
        `factor`, `x`, mean, high (`iumad.study.statistics.summarise`) of one metric.
    x, metric : str
    factor : str
        Column that tells the lines apart.
    """
    levels = list(summary[factor].unique())
    colours, markers = colours_of(levels), markers_of(levels)
    scale, places = scale_of(metric), summary[x].nunique()
    for place, level in enumerate(levels):
        line, shift = summary[summary[factor] == level], 0.08 * (place - (len(levels) - 1) / 2)
        mean = scale * line["mean"].to_numpy()
        half = scale * line["high"].to_numpy() - mean
        look = ERRORBAR | {"color": colours[level], "marker": markers[level]}
        axis.errorbar(line[x] + shift, mean, half, **look)
        if len(line) == 1 < places:
            axis.axhline(mean[0], color=colours[level], linestyle="--", linewidth=1)
    axis.set(ylabel=label_of(metric))


def dots(
    axis: Axes, summary: pd.DataFrame, metric: str, levels: Sequence[str], factor: str = "method"
) -> None:
    """Draw means with their intervals, a row for each of some levels, which the first panel names.

    Parameters
    ----------
    axis : Axes
    summary : DataFrame
        `factor`, mean, high of one metric; a level may have none.
    metric : str
    levels : sequence of str
        From top to bottom.
    factor : str
        Column that tells the rows apart.
    """
    colours, markers, scale = colours_of(levels), markers_of(levels), scale_of(metric)
    for row in summary[summary[factor].isin(levels)].to_dict("records"):
        level, mean = row[factor], scale * row["mean"]
        look = ERRORBAR | {"color": colours[level], "marker": markers[level]}
        axis.errorbar(mean, levels.index(level), xerr=scale * row["high"] - mean, **look)
    axis.set_yticks(range(len(levels)), levels)
    axis.set(ylim=(len(levels) - 0.5, -0.5), xlabel=label_of(metric))
    axis.grid(visible=True, axis="both")


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


CELL = 1.15  # inches
MAP_COLOURS = "inferno"  # ordered in lightness, also for colour-blind readers and in grey print
OUTLINE = "#00E5FF"

# A leading underscore: sizes may differ between the samples of one figure.
Image = UInt8[np.ndarray, "_h _w 3"]
Depth = Float[np.ndarray, "_h _w"]
Mask = Bool[np.ndarray, "_h _w"]
Map = Float[np.ndarray, "_h _w"]


def draw_maps(run: RunConfig, samples: pd.DataFrame, sample_ids: Sequence[str]) -> Figure:
    """Image, depth, ground truth and the anomaly maps of some methods, as `anomaly_grid` draws them.

    Parameters
    ----------
    run : RunConfig
        Of the data that are shown.
    samples : DataFrame
        Measurements of the kind "samples" (`iumad.study.measured`) of runs that differ in their method.
    sample_ids : sequence of str
        The columns; those without a map are left out.
    """
    drawn = samples[(samples["map"] != "") & samples["sample_id"].isin(list(sample_ids))]
    ids = [name for name in sample_ids if name in set(drawn["sample_id"])]
    if not ids:
        return nothing_to_draw()
    dataset = open_dataset(run.data)
    prepared = [for_the_eye(dataset.load(name), run.data, dataset.modalities) for name in ids]
    of_method = {
        str(method): part.set_index("sample_id").loc[ids]
        for method, part in drawn.groupby("method", sort=False)
    }
    size = run.data.image_size
    return anomaly_grid(
        [each.rgb for each in prepared if each.rgb is not None],
        [None if each.depth is None else each.depth[..., 0] for each in prepared],
        [each.outline for each in prepared],
        {
            name: [map_of(row, size) for row in part.itertuples()]
            for name, part in of_method.items()
        },
        {name: part["score"].tolist() for name, part in of_method.items()},
        ["\n".join(name.split("/")[::2]) for name in ids],
    )


def map_of(row: Any, size: int) -> np.ndarray:
    """The stored map of a sample (a row of the kind "samples") at the size of its image."""
    grey = PIL.Image.open(io.BytesIO(base64.b64decode(row.map)))
    level = np.asarray(grey.resize((size, size), PIL.Image.Resampling.BILINEAR), dtype=float) / 255
    return row.low + (row.high - row.low) * level


@in_style
def anomaly_grid(
    images: Sequence[np.ndarray],
    depths: Sequence[np.ndarray | None],
    masks: Sequence[np.ndarray],
    maps: Mapping[str, Sequence[np.ndarray]],
    scores: Mapping[str, Sequence[float]],
    titles: Sequence[str],
) -> Figure:
    r"""Draw samples as columns; rows are image, depth, ground truth and one row of maps per method.

    Parameters
    ----------
    images : sequence of uint8 array (h, w, 3)
        RGB images.
    depths : sequence of array (h, w) or None
        Depth in any unit, grey from near (bright) to far within each sample; 0 and NaN are invalid
        and drawn in blue. The row is left out if all are None.
    masks : sequence of bool array (h, w)
        Ground truth; its outline is also drawn over the maps.
    maps : mapping of str to sequence of array (h, w)
        Per method, the anomaly map of each sample. A row has one colour scale.
    scores : mapping of str to sequence of float
        Per method, the image score of each sample, printed in its map.
    titles : sequence of str
        Heading of each column, e.g. "bagel\nhole".

    Raises
    ------
    DataError
        If the sequences differ in length, the methods differ, or a map has not its image's size.
    """
    _require_fitting(images, depths, masks, maps, scores, titles)
    names = ["image", "depth", "ground truth", *maps]
    if all(depth is None for depth in depths):
        names.remove("depth")

    n_columns = len(images)
    figure, axes = plt.subplots(
        len(names),
        n_columns + 1,  # the last column is for colour bars
        figsize=(CELL * n_columns + 1.1, CELL * len(names) + 0.5),
        width_ratios=[1] * n_columns + [0.08],
        squeeze=False,
    )
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    for axis in axes[:, :-1].flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color="#BBBBBB", linewidth=0.5)
    for name, axis in zip(names, axes[:, -1], strict=True):
        if name not in maps:
            axis.remove()
    row_of = dict(zip(names, axes, strict=True))
    for name, row in row_of.items():
        row[0].set_ylabel(name)

    for column, (image, depth, mask, title) in enumerate(
        zip(images, depths, masks, titles, strict=True)
    ):
        row_of["image"][column].imshow(image)
        row_of["image"][column].set_title(title, fontsize=8.5)
        row_of["ground truth"][column].imshow(image)
        _outline(row_of["ground truth"][column], mask)
        if depth is not None:
            _draw_depth(row_of["depth"][column], depth)
    for name in maps:
        _draw_maps(row_of[name], images, masks, maps[name], scores[name])
    return figure


def _draw_depth(axis: Axes, depth: Depth) -> None:
    valid = np.isfinite(depth) & (depth != 0)
    low, high = np.percentile(depth[valid], [1, 99]) if valid.any() else (0, 1)
    colours = plt.get_cmap("gray_r").with_extremes(bad="#9EC9E8")
    axis.imshow(np.ma.masked_array(depth, ~valid), cmap=colours, vmin=low, vmax=high)


def _draw_maps(
    axes: np.ndarray,
    images: Sequence[Image],
    masks: Sequence[Mask],
    maps: Sequence[Map],
    scores: Sequence[float],
) -> None:
    low, high = np.percentile(np.concatenate([each.ravel() for each in maps]), [1, 99.8])
    scale = Normalize(low, high, clip=True)
    for axis, image, mask, anomaly_map, score in zip(
        axes[:-1], images, masks, maps, scores, strict=True
    ):
        axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        opacity = 0.25 + 0.65 * scale(
            anomaly_map
        )  # the object stays visible where nothing is found
        axis.imshow(anomaly_map, cmap=MAP_COLOURS, norm=scale, alpha=opacity)
        _outline(axis, mask)
        axis.text(
            0.04,
            0.04,
            f"{score:.3g}",
            transform=axis.transAxes,
            color="white",
            fontsize=7.5,
            bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5},
        )
    colours = ScalarMappable(scale, MAP_COLOURS)
    axes[0].figure.colorbar(colours, cax=axes[-1], label="anomaly score")
    axes[-1].tick_params(labelsize=7)


def _outline(axis: Axes, mask: Mask) -> None:
    if mask.any():
        axis.contour(mask, levels=[0.5], colors=OUTLINE, linewidths=1.1)


def _require_fitting(
    images: Sequence[np.ndarray],
    depths: Sequence[np.ndarray | None],
    masks: Sequence[np.ndarray],
    maps: Mapping[str, Sequence[np.ndarray]],
    scores: Mapping[str, Sequence[float]],
    titles: Sequence[str],
) -> None:
    if not images or not maps or list(maps) != list(scores):
        raise DataError(
            f"anomaly_grid needs images, and scores for the methods with maps, got {len(images)} "
            f"images, maps of {', '.join(maps)} and scores of {', '.join(scores)}"
        )
    lengths = {len(each) for each in (depths, masks, titles, *maps.values(), *scores.values())}
    if lengths != {len(images)}:
        raise DataError(f"{len(images)} images need as many of all else, got {sorted(lengths)}")
    for column, image in enumerate(images):
        for each in (depths[column], masks[column], *(maps[name][column] for name in maps)):
            if each is not None and each.shape != image.shape[:2]:
                raise DataError(
                    f"sample {column}: depth, mask and maps need the image's size "
                    f"{image.shape[:2]}, got {each.shape}"
                )
