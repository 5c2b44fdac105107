"""Figures show the numbers of their tables, and their files are reproducible."""

import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from scipy import stats

from iumad.config.files import load_params
from iumad.errors import DataError
from iumad.report import text
from iumad.report.figures import (
    anomaly_grid,
    budget_lines,
    category_heatmap,
    dose_lines,
    dots,
    fronts,
    information_plot,
    lines,
    profile_plot,
    search_fronts,
    training_curves,
)
from iumad.report.style import COLOURS, PALETTE, colours_of, in_style, keep_table, legend
from iumad.study.results import LOG_SCHEMA, ROW_SCHEMA, final_table, step_means, validate
from iumad.study.statistics import summarise

PARAMS = Path(__file__).resolve().parents[1] / "params"
PROFILE, INPUT = ("smoke", "minicandies"), ("rgb", "2-1")
SCORES = {  # method: seed: step: categories
    "iuf": [[[0.9, 0.7], [0.8, 0.6, 0.7]], [[0.8, 0.8], [0.7, 0.7, 0.6]]],
    "ib-iumad": [[[0.9, 0.8], [0.9, 0.7, 0.8]], [[0.9, 0.9], [0.8, 0.9, 0.8]]],
}


@pytest.fixture
def rows():
    records = [
        (
            f"{method}{seed}",
            *PROFILE,
            method,
            *INPUT,
            seed,
            step,
            "abc"[place],
            "i_auroc",
            value,
            4,
            6,
        )
        for method, seeds in SCORES.items()
        for seed, steps in enumerate(seeds)
        for step, values in enumerate(steps)
        for place, value in enumerate(values)
    ]
    return validate(pd.DataFrame(records, columns=list(ROW_SCHEMA.columns)), ROW_SCHEMA)


@pytest.fixture
def log():
    records = [
        (method, method, "rgb", "2-1", 0, step, epoch, term, value)
        for method in SCORES
        for step, n_epochs in enumerate([3, 2])
        for epoch in range(n_epochs)
        for term, value in (("total", 2.0 + epoch), ("kl", float(epoch)))
    ]
    return validate(pd.DataFrame(records, columns=list(LOG_SCHEMA.columns)), LOG_SCHEMA)


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@in_style
def steps_figure(rows):
    """One panel of the figure that the page on learning in steps draws."""
    figure, axis = plt.subplots()
    means = step_means(rows)
    lines(axis, summarise(means, ["method", "step"]), "step", "i_auroc")
    legend(figure, means, "method")
    return keep_table(figure, summarise(means, ["method", "step"]))


def bundle(figure) -> dict[str, str]:
    """What a notebook keeps of a figure besides the picture."""
    return figure._repr_mimebundle_()


def test_training_curves_count_epochs_over_all_steps(log):
    total, kl = training_curves(log).axes
    lines = [line for line in total.get_lines() if line.get_linestyle() == "-"]
    # Two methods, each a line of epochs 1 to 3 in the first step and 4 to 5 in the second.
    assert sorted(line.get_xdata().tolist() for line in lines) == [[1, 2, 3]] * 2 + [[4, 5]] * 2
    # The end of the first step is marked, half-way between epochs 3 and 4.
    assert [line.get_xdata()[0] for line in total.get_lines() if line.get_linestyle() == ":"] == [
        3.5
    ]
    # The second term reaches 0 and cannot be logarithmic.
    assert (total.get_yscale(), kl.get_yscale()) == ("log", "linear")


def test_lines_show_means_in_percent(rows):
    figure = steps_figure(rows)
    (axis,) = figure.axes
    iuf, ib_iumad = axis.containers
    # Seeds 0 and 1 of iuf have means 0.8, 0.8 in step 0 and 0.7, 2 / 3 in step 1.
    np.testing.assert_allclose(iuf[0].get_ydata(), [80, (70 + 200 / 3) / 2], rtol=1e-12)
    assert iuf.has_yerr
    assert [to_hex(c[0].get_color()).upper() for c in (iuf, ib_iumad)] == [
        COLOURS["iuf"],
        COLOURS["ib-iumad"],
    ]
    assert axis.get_ylabel() == "Image AUROC (%)"
    assert legend_texts(figure) == ["iuf", "ib-iumad"]
    assert figure.legends[0].get_title().get_text() == "mean of 2 seeds"


def test_what_learns_all_at_once_is_a_level_line(rows):
    once = rows[(rows["method"] == "iuf") & (rows["step"] == 0)].assign(method="joint")
    level = [line for line in steps_figure(pd.concat([rows, once])).axes[0].lines
             if line.get_linestyle() == "--"]  # fmt: skip
    assert [line.get_ydata()[0] for line in level] == [pytest.approx(80)]


def test_one_seed_is_drawn_without_interval(rows):
    figure = steps_figure(rows[rows["seed"] == 0])
    segments = figure.axes[0].containers[0][2][0].get_segments()
    assert not np.isfinite([segment[:, 1] for segment in segments if len(segment)]).any()
    assert figure.legends[0].get_title().get_text() == "mean of 1 seed"


def test_legend_says_when_cells_have_different_numbers_of_seeds(rows):
    late = (rows["method"] == "iuf") & (rows["seed"] == 1) & (rows["step"] == 1)
    assert legend_texts(steps_figure(rows[~late])) == ["iuf (1 to 2 seeds)", "ib-iumad (2 seeds)"]


def test_dots_have_a_row_for_each_method(rows):
    _, axis = plt.subplots()
    table = final_table(rows).query("metric == 'fm_i_auroc'")
    dots(axis, summarise(table, ["method"]), "fm_i_auroc", ["ib-iumad", "plain", "iuf"])
    plt.close()
    # iuf: ((0.9 - 0.8) + (0.7 - 0.6)) / 2 = 0.1 in both seeds; ib-iumad: 0.05 in both; plain is not run.
    places = sorted((c[0].get_ydata()[0], c[0].get_xdata()[0]) for c in axis.containers)
    np.testing.assert_allclose(places, [(0, 5), (2, 10)], rtol=1e-9)
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["ib-iumad", "plain", "iuf"]
    assert axis.get_xlabel() == "FM of image AUROC (points)"


def test_category_heatmap_leaves_unseen_categories_empty(rows):
    figure = category_heatmap(rows)
    texts = [text.get_text() for text in figure.axes[0].texts]
    # Means over the seeds: a 85, 75; b 75, 65; c only in step 1: 65.
    assert texts == ["85", "75", "75", "65", "65"]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["iuf", "ib-iumad"]


def test_information_around_the_bottleneck_is_drawn_and_told():
    bits = {"category": (3.0, 2.8), "redundant": (1.0, 0.25)}
    records = [
        (
            "ib-iumad",
            seed,
            name,
            target,
            value + 0.1 * seed,
            3.3 if target == "category" else np.nan,
        )
        for target, values in bits.items()
        for name, value in zip(("before", "after"), values, strict=True)
        for seed in (0, 1)
    ]
    columns = ["method", "seed", "representation", "target", "bits", "possible"]
    table = pd.DataFrame(records, columns=columns)
    figure = information_plot(table)
    assert [axis.get_title() for axis in figure.axes] == ["category", "redundant"]
    drawn = figure.axes[1].lines[0].get_ydata()
    assert drawn.tolist() == pytest.approx([1.05, 0.3])
    first, second = text.kept_by_the_bottleneck(table)
    assert "reads 3.05 bits before the bottleneck and 2.85 after it (-0.20 [-0.20, -0.20])" in first
    assert "-0.75" in second
    assert text.kept_by_the_bottleneck(table[:0]) == ["No trained model was probed."]
    half = table.assign(method="without-kl", bits=table["bits"] / 2)
    beside, more = text.dropped(
        pd.concat([table, half]).assign(setting="6-1"), "redundant", ["ib-iumad", "without-kl"]
    )
    assert "without-kl</code> +0.38 [" in more  # half as much is dropped
    assert "-0.75 [-0.75, -0.75]" in beside and "-0.38 [-0.38, -0.37]" in beside
    assert text.dropped(table.assign(setting="6-1"), "redundant", ["ib-iumad"]) == []
    assert text.dropped(table[:0].assign(setting=""), "redundant", ["ib-iumad", "narrow"]) == []


def test_profile_plot_shows_the_second_view(rows):
    figure = profile_plot(rows)
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    kept = pd.read_csv(io.StringIO(bundle(figure)["text/csv"])).set_index("method")["value"]
    assert labels[-1] == kept.idxmax() == "ib-iumad"  # the best is on top
    # Both seeds of iuf after the last step: a, b, c; the middle half of six values.
    last = rows[(rows["step"] == 1) & (rows["method"] == "iuf") & (rows["metric"] == "i_auroc")]
    assert kept["iuf"] == pytest.approx(100 * stats.trim_mean(last["value"], 0.25))
    without = rows[~((rows["method"] == "iuf") & (rows["category"] == "b") & (rows["seed"] == 0))]
    fewer = pd.read_csv(io.StringIO(bundle(profile_plot(without))["text/csv"])).set_index("method")
    last = last[last["category"] != "b"]
    assert fewer.loc["iuf", "value"] == pytest.approx(100 * stats.trim_mean(last["value"], 0.25))
    assert not profile_plot(rows[:0]).axes[0].lines


def test_figures_refuse_to_mix_what_they_do_not_show(rows):
    mixed = pd.concat([rows, rows.assign(modality="depth")])
    with pytest.raises(DataError, match="needs one modality, got rgb, depth"):
        category_heatmap(mixed)
    (axis,) = category_heatmap(rows.head(0)).axes
    assert axis.texts[0].get_text() == "no finished run to draw"


@pytest.mark.parametrize("path", sorted(PARAMS.glob("*.yaml")), ids=lambda path: path.stem)
def test_methods_keep_their_colour_and_each_has_one(path):
    methods = list(load_params(path).methods)
    colours = colours_of(methods)
    assert len(set(colours.values())) >= min(len(methods), len(PALETTE))
    assert all(colours[name] == COLOURS[name] for name in methods if name in COLOURS)


def test_names_are_no_formulas(rows):
    hostile = rows.assign(method=rows["method"].map({"iuf": "$\\frac", "ib-iumad": "_a<b>&"}))
    for draw in (steps_figure, category_heatmap):
        figure = draw(hostile)
        assert "<svg" in bundle(figure)["image/svg+xml"]
    assert legend_texts(steps_figure(hostile)) == ["$\\frac", "_a<b>&"]


def make_samples(sizes=((12, 16), (10, 10))):
    rng = np.random.default_rng(0)
    masks = [np.zeros(size, dtype=bool) for size in sizes]
    masks[1][2:5, 3:6] = True
    maps = [rng.random(size, dtype=np.float32) for size in sizes]
    return {
        "images": [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes],
        "depths": [np.where(rng.random(size) < 0.1, 0, 0.5) for size in sizes],
        "masks": masks,
        "maps": {"iuf": maps, "ib-iumad": maps},
        "scores": {"iuf": [0.1, 0.9], "ib-iumad": [0.2, 0.8]},
        "titles": ["good", "hole"],
    }


def test_anomaly_grid_has_a_row_per_modality_and_method():
    figure = anomaly_grid(**make_samples())
    pictures = [axis for axis in figure.axes if axis.get_images()]
    assert len(pictures) == 5 * 2
    rows = [axis.get_ylabel() for axis in pictures if axis.get_ylabel()]
    assert rows == ["image", "depth", "ground truth", "iuf", "ib-iumad"]
    assert [text.get_text() for axis in pictures for text in axis.texts] == [
        "0.1",
        "0.9",
        "0.2",
        "0.8",
    ]
    # One outline in the ground truth and in each method's row; the good sample has none.
    assert sum(len(axis.collections) for axis in pictures) == 3


def test_anomaly_grid_without_depth_leaves_the_row_out():
    figure = anomaly_grid(**make_samples() | {"depths": [None, None]})
    assert "depth" not in [axis.get_ylabel() for axis in figure.axes]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"titles": ["good"]}, r"2 images need as many of all else, got \[1, 2\]"),
        ({"scores": {"iuf": [0.1, 0.9]}}, "scores for the methods with maps"),
        ({"images": []}, "got 0 images"),
        ({"depths": [None, np.ones((3, 3))]}, r"sample 1: .*\(10, 10\), got \(3, 3\)"),
    ],
)
def test_anomaly_grid_names_what_does_not_fit(change, text):
    with pytest.raises(DataError, match=text):
        anomaly_grid(**make_samples() | change)


def test_kept_figures_are_reproducible_and_leave_nothing_open(rows):
    first, second = (bundle(steps_figure(rows)) for _ in range(2))
    assert first == second
    assert not plt.get_fignums()
    assert ElementTree.fromstring(first["image/svg+xml"]).tag.endswith("svg")
    # two methods, two steps, one metric, and a line of headings
    assert len(first["text/csv"].splitlines()) == 5


def test_error_over_budgets_is_relative_to_the_methods_lowest(rows):
    rows = rows[rows["step"] == 0]
    learnt = rows[rows["method"] == "iuf"].query("seed == 0")
    errors = learnt.query("metric == 'i_auroc'").assign(metric="validation_error")
    budgets = [
        pd.concat([learnt, errors.assign(value=error)]).assign(method=f"iuf[epochs={epochs}]")
        for epochs, error in ((5, 6.0), (15, 3.0))
    ]
    bank = rows[rows["method"] == "ib-iumad"].assign(method="bank")
    figure = budget_lines(pd.concat([*budgets, bank]), 100, 1500)
    assert figure.axes[0].lines[0].get_xydata() == pytest.approx(
        np.array([[460, 2], [1460, 1]]), abs=50
    )
    assert [line.get_linestyle() for line in figure.axes[1].lines].count(
        "--"
    ) == 2  # the bank, the budget


def test_each_kind_of_perturbation_is_a_line_over_its_doses():
    changes = {"metric": "i_auroc", "low": -6.0, "high": -2.0, "n": 3}
    table = pd.DataFrame({"kind": ["noise", "noise"], "dose": [0.0, 1.0], "mean": [0.0, -4.0]})
    figure = dose_lines(table.assign(**changes))
    noise, *others, zero = figure.axes[0].lines
    assert noise.get_xydata().tolist() == [[0.0, 0.0], [1.0, -4.0]]
    assert all(len(line.get_xydata()) == 0 for line in others)
    assert zero.get_ydata() == [0, 0]


def test_points_between_two_quantities_have_their_method_s_colour():
    table = pd.DataFrame({"method": ["iuf", "bank"], "FM": [10.0, 0.0], "new": [80.0, 95.0]})
    figure = fronts(table, [("new", "FM"), ("FM", "new")])
    assert [line.get_color() for line in figure.axes[0].lines] == [COLOURS["iuf"], COLOURS["bank"]]
    assert figure.axes[1].get_xlabel() == "FM"


def test_choices_of_a_search_are_joined_in_their_order(rows):
    choices = [
        rows.assign(method=rows["method"] + f"[lr={rate}]", run_id=rows["run_id"] + str(rate))
        for rate in (1, 3)
    ]
    figure = search_fronts(pd.concat(choices).assign(search="rates"))
    (axis,) = figure.axes
    final = final_table(rows[rows["method"] == "iuf"]).groupby("metric")["value"].mean() * 100
    at = [pytest.approx(final[name]) for name in ("fm_i_auroc", "new_i_auroc")]
    assert axis.lines[0].get_xydata().tolist() == [at, at]  # both rates have the same numbers
    assert axis.get_title() == "rates"
    assert legend_texts(figure) == ["iuf", "ib-iumad"]
    assert not search_fronts(rows[:0].assign(search="")).axes[0].lines
