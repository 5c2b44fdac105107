"""What numbers say, in sentences: for the boxes that open pages. Every word that could be wrong is computed.

Sentences are `Markup`, so names in them are escaped (`iumad.report.style`).
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from iumad.data.sample import Dataset
from iumad.report.style import code, fill, verdict_word
from iumad.report.tables import (
    BETTER_OR_WORSE,
    MAIN,
    Attempts,
    below_joint,
    interval_text,
    missed_gates,
    paired,
    paper_lies,
)
from iumad.study.results import LABELS, final_table
from iumad.study.statistics import (
    CONTRADICTED,
    ERROR,
    MARGIN,
    NO_DIFFERENCE,
    SUPPORTED,
    UNDECIDED,
    UNTRAINED,
    judge,
    summarise,
)
from iumad.study.verdicts import ABOVE_FLOORS, COLUMNS, FLOOR, MET, NOT_RUN, RIGHT

OURS, BASELINE, MARK = "ib-iumad", "iuf", "bank"
ORDERED = ("plain", BASELINE, OURS)
WORDS = {"rgb": "colour alone", "depth": "depth alone", "rgb+depth": "colour and depth"}
PLATEAU = 0.02  # share of its validation error that a model trained to the end may still lose with more images
DECIDED = (SUPPORTED, CONTRADICTED, NO_DIFFERENCE)
UNMEASURED = (
    Markup("Not measured on these runs; <code>iumad measure</code> does it where they were made."),
)
WHO = {  # in words that need no other page
    OURS: "IB-IUMAD",
    BASELINE: "IUF",
    "finetune": "IB-IUMAD without any protection",
    "bank-unified": "one memory bank for all categories, which trains nothing,",
}
FORGETS = {
    SUPPORTED: "<b>IB-IUMAD forgets less than IUF</b>, on which it builds",
    CONTRADICTED: "<b>IB-IUMAD forgets more than IUF</b>, on which it builds",
    NO_DIFFERENCE: "<b>IB-IUMAD forgets as much as IUF</b>, on which it builds",
    UNDECIDED: "<b>IB-IUMAD is not shown to forget less than IUF</b>, on which it builds",
}
CHANGES = {
    "i_auroc": "image AUROC",
    "new_i_auroc": "new categories right after their step",
    "fm_i_auroc": "forgetting",
}
READ = {  # what linear probes read
    "redundant": Markup("noise (<i>redundant</i>)"),
    "spurious": Markup("background (<i>spurious</i>)"),
}
PARTS = {
    "backbone": "the frozen backbone",
    "networks": "the reconstruction networks",
    "conditions": "the condition networks",
    "fusion": "the fusion",
    "bottleneck": "the bottleneck",
}
COSTS = {
    "latency p50 (ms)": "Milliseconds an image",
    "model (MB)": "Megabytes of the model's file",
    "added memory (MB)": "Megabytes of memory while it scores",
}
NOT_ANSWERED = Markup("Not answered yet: no run that it needs is finished.")


def in_words(modality: str) -> str:
    """A modality as a sentence has it: "colour and depth"."""
    return WORDS.get(modality, modality)


def standing(rows: pd.DataFrame, methods: Sequence[str], metrics: Sequence[str] = MAIN) -> Markup:
    """Means after the last step: "image AUROC is 67.5 % for `ib-iumad` and 56.2 % for `iuf`; AUPRO is ..."."""
    means = _means(rows)
    said = []
    for metric in metrics:
        values = [
            fill("{} for {}", _quantity(100 * means[method, metric], metric), code(method))
            for method in methods
            if (method, metric) in means.index
        ]
        if values:
            said.append(fill("{} is {}", LABELS[metric], _and(values)))
    return Markup("; ").join(said)


def _quantity(value: float, metric: str) -> str:
    """A value with its unit: forgetting is in points, all else in percent."""
    return f"{round(value, 1) + 0.0:.1f} {'points' if metric.startswith('fm_') else '%'}"


def _means(rows: pd.DataFrame) -> pd.Series:
    """Mean over seeds after the last step of the rows of one setting and modality, by method and metric."""
    return final_table(rows).groupby(["method", "metric"], sort=False)["value"].mean()


def _and(parts: Sequence[Markup]) -> Markup:
    if len(parts) < 2:
        return Markup("").join(parts)
    return fill("{} and {}", Markup(", ").join(parts[:-1]), parts[-1])


def circumstances(rows: pd.DataFrame) -> Markup:
    """What the rows of one setting and modality were measured on."""
    first = rows.iloc[0]
    seeds = rows.groupby("method")["seed"].nunique()
    few, many = seeds.min(), seeds.max()
    steps, categories = int(rows["step"].max()) + 1, rows["category"].nunique()
    return fill(
        "{}, {}, {} categories {}, {} seed{}",
        first["dataset"],
        in_words(first["modality"]),
        categories,
        f"in {steps} steps ({first['setting']})" if steps > 1 else "at once",
        many if few == many else f"{few} to {many}",
        "s" * int(many > 1),
    )


def verdict(compared: pd.DataFrame, ours: str = OURS) -> list[Markup]:
    """How one method compares with the reference in each metric, one sentence a metric.

    Parameters
    ----------
    compared : DataFrame
        Of one setting and modality (`iumad.report.page.Page.compared`).
    ours : str
        The method.
    """
    said = []
    for row in compared[compared["method"] == ours].itertuples():
        if row.verdict == NOT_RUN:
            continue
        said.append(
            fill(
                "{} {} {} points {} {} than {} ({}): {}.",
                code(ours),
                "forgets" if row.metric.startswith("fm_") else "has",
                f"{abs(row.estimate):.1f}",
                _direction(row, row.estimate),
                LABELS[row.metric].removeprefix("FM "),
                code(row.reference),
                _interval(row),
                _outcome(BETTER_OR_WORSE.get(row.verdict, row.verdict)),
            )
        )
    return said


def _outcome(word: str) -> Markup:
    """A verdict on a difference in points, with what counts as none."""
    shown = verdict_word(word)
    return fill("{} of more than a point", shown) if word == NO_DIFFERENCE else shown


def _direction(row: Any, value: float) -> str:
    better, worse = ("less", "more") if row.metric.startswith("fm_") else ("more", "less")
    return better if value >= 0 else worse


def _interval(row: Any) -> str:
    """How sure a difference is, in its direction, and the paper's."""
    low, high = (row.low, row.high) if row.estimate >= 0 else (-row.high, -row.low)
    said = "one seed" if np.isnan(low) else f"95 % interval {low:.1f} to {high:.1f}"
    if not np.isnan(row.paper):
        said += f"; the paper: {abs(row.paper):.1f} {_direction(row, row.paper)}"
    return said


def in_short(
    rows: pd.DataFrame, compared: pd.DataFrame, floors: pd.DataFrame, at_once: pd.DataFrame
) -> list[Markup]:
    """Whether the paper's method forgets less than the one that it builds on, for a reader who knows no name.

    Parameters
    ----------
    rows : DataFrame
        Rows of one setting and modality.
    compared : DataFrame
        Their comparison with `BASELINE` (`iumad.report.page.Page.compared`).
    floors : DataFrame
        Rows of floors in the same setting and modality.
    at_once : DataFrame
        Rows of all categories at once, in the same modality.
    """
    shown = [name for name in WHO if name in set(rows["method"])]
    missing = [name for name in (OURS, BASELINE) if name not in shown]
    if missing:
        return [NOT_ANSWERED if rows.empty else _not_run(missing)]
    found = compared[(compared["method"] == OURS) & (compared["metric"] == "fm_i_auroc")]
    if found.empty:  # a single step
        return [NOT_ANSWERED]
    means, (row, *_) = 100 * _means(rows[rows["method"].isin(shown)]), found.itertuples()
    open_question = "Whether IB-IUMAD forgets less than IUF, on which it builds, is open"
    of = {name: means.xs(name, level="metric") for name in ("fm_i_auroc", "i_auroc")}
    others = [
        fill("{} {}", WHO[name], f"{round(of['fm_i_auroc'][name], 1) + 0.0:.1f}")
        for name in shown
        if name in of["fm_i_auroc"] and name not in (OURS, BASELINE)
    ]
    said = [
        fill(
            "{}: it loses {} points of the image AUROC of categories learnt earlier, IUF {} ({} {}, {}): {}.",
            Markup(FORGETS.get(row.verdict, open_question)),
            *(f"{of['fm_i_auroc'][name]:.1f}" for name in (OURS, BASELINE)),
            *(f"{abs(row.estimate):.1f}", _direction(row, row.estimate), _interval(row)),
            _outcome(row.verdict),
        )
    ]
    if others:
        said.append(fill("For comparison: {} points.", _and(others)))
    if row.paper > row.high:
        said.append(Markup("A gain as large as the paper's lies outside the interval."))
    ends = [fill("{} {} %", WHO[name], f"{of['i_auroc'][name]:.1f}") for name in shown]
    said.append(fill("Image AUROC of all categories at the end: {}.", _and(ends)))
    said += without_training(floors)
    best = 100 * _means(at_once).xs("i_auroc", level="metric") if len(at_once) else {}
    known = [name for name in (OURS, BASELINE, "bank-unified") if name in best]
    if known:
        values = [fill("{} {} %", WHO[name], f"{best[name]:.1f}") for name in known]
        said.append(fill("Trained on all categories at once: {}.", _and(values)))
    where = circumstances(rows[rows["method"].isin([OURS, BASELINE])])
    return [*said, fill("Measured on {}.", where)]


def learning_in_steps(rows: pd.DataFrame, compared: pd.DataFrame) -> list[Markup]:
    """Answer the book's question from the rows of one setting and modality, in a few sentences.

    Parameters
    ----------
    rows : DataFrame
    compared : DataFrame
        Their comparison with `BASELINE` (`iumad.report.page.Page.compared`).
    """
    if rows.empty:
        return [NOT_ANSWERED]
    have = set(rows["method"])
    trained = [name for name in (OURS, BASELINE) if name in have]
    shown = [*trained, *(name for name in (MARK, "bank-unified") if name in have)]
    rows = rows[rows["method"].isin(shown)]
    if not shown:
        return [NOT_ANSWERED]
    said = [fill("At the end, {} ({}).", standing(rows, shown, ["i_auroc"]), circumstances(rows))]
    means = _means(rows)
    forgotten = [
        fill("{} {}", code(name), f"{round(100 * means[name, 'fm_i_auroc'], 1) + 0.0:.1f}")
        for name in shown
        if (name, "fm_i_auroc") in means.index
    ]
    if forgotten:
        said.append(
            fill("Points forgotten on categories learnt earlier: {}.", Markup(", ").join(forgotten))
        )
    if len(trained) < 2:
        said.append(_not_run([n for n in (OURS, BASELINE) if n not in have]))
    return [*said, *verdict(compared[compared["metric"].isin(["i_auroc", "fm_i_auroc"])])]


def without_training(rows: pd.DataFrame) -> list[Markup]:
    """Image AUROC of the best floor among the rows of one setting and modality."""
    floors = rows[rows["method"].str.startswith(FLOOR)]
    if floors.empty:
        return []
    means = _means(floors).xs("i_auroc", level="metric")
    best = f"{100 * means.max():.1f}"
    rule = "A rule that trains nothing and is told the category, {}, has {} % image AUROC."
    return [fill(rule, code(means.idxmax()), best)]


def _not_run(methods: Sequence[str]) -> Markup:
    return fill("Not run yet: {}.", _names(methods))


def against_the_mark(rows: pd.DataFrame, mark: str = MARK) -> list[Markup]:
    """How near the methods of one setting and modality come to the one that is told the category."""
    if rows.empty:
        return [NOT_ANSWERED]
    means = _means(rows).xs("i_auroc", level="metric")
    mark = mark if mark in means else ""
    shown = [name for name in (OURS, BASELINE, mark) if name in means]
    where = circumstances(rows[rows["method"].isin(shown)]) if shown else ""
    said = [fill("{} ({}).", _start(standing(rows, shown)), where)] if shown else []
    if "bank-unified" in means:
        one = f"{100 * means['bank-unified']:.1f} %"
        said.append(fill("One memory bank for all, not told the category, has {}.", one))
    gaps = _gaps(rows, mark)
    if gaps.empty:
        return said + without_training(rows)
    gap, alike = gaps.mean().sort_values(ascending=False), _like_the_best(gaps)
    first, last = gap.index[0], gap.index[-1]
    relative = "{} ({} points relative to one bank for each category)"
    highest = [fill(relative, code(first), f"{gap[first]:+.1f}")]
    highest += [
        fill("{} ({})", code(name), f"{gap[name]:+.1f}") for name in gap.index if name in alike
    ]
    said.append(
        fill(
            "Of the trained single models, on the {} that all of them share, {} {} the highest image AUROC{}{}.",
            f"{len(gaps)} seeds" if len(gaps) > 1 else "one seed",
            _and(highest),
            "have" if alike else "has",
            " and are not told apart" if alike else "",
            fill("; {} has the lowest ({})", code(last), f"{gap[last]:+.1f}")
            if last not in (first, *alike)
            else "",
        )
    )
    return said + without_training(rows)


def _gaps(rows: pd.DataFrame, mark: str) -> pd.DataFrame:
    """Points of trained methods (columns) beside a mark, on the seeds (rows) that all of several seeds share."""
    table = final_table(rows)
    wide = table[table["metric"] == "i_auroc"].pivot_table("value", "seed", "method")
    trained = [name for name in wide if not name.startswith((FLOOR, MARK))]
    if mark not in wide or not trained:
        return pd.DataFrame()
    several = [name for name in trained if wide[name].count() > 1] or trained
    wide = wide[[mark, *several]].dropna()
    return 100 * wide[several].sub(wide[mark], axis=0)


def _like_the_best(values: pd.DataFrame) -> list[str]:
    """The columns next to the one with the highest mean, down to the first that a paired test tells from it.

    Holm's correction goes over all comparisons with it. A column below that first one is not among the highest,
    even where its values differ so much that no test tells it apart.
    """
    best = values.mean().idxmax()
    behind = values.drop(columns=best).rsub(values[best], axis=0)
    if behind.empty:
        return []
    long = behind.rename_axis("seed").reset_index().melt("seed", var_name="method")
    judged = judge(long.assign(family="best", margin=MARGIN), ["method"], ["family"])
    apart = set(judged.loc[told_apart(judged), "method"])
    return list(takewhile(lambda name: name not in apart, behind.mean().sort_values().index))


def against_forgetting(rows: pd.DataFrame, ours: str, bound: str, kilobytes: float) -> list[Markup]:
    """What a method that learns in steps keeps, and how far it is from training on all categories at once.

    Parameters
    ----------
    rows : DataFrame
        Rows of one setting and modality.
    ours, bound : str
        The method, and the one that is trained on all categories.
    kilobytes : float
        What a category adds to the method's model; NaN where that is not known.
    """
    if ours not in set(rows["method"]):
        return [NOT_ANSWERED]
    mine = rows[rows["method"] == ours]
    means = summarise(final_table(rows), ["method", "metric"]).set_index(["method", "metric"])
    value = (100 * means["mean"]).to_dict()
    size = "" if np.isnan(kilobytes) else fill(", and adds {} kB a category", f"{kilobytes:.0f}")
    said = [
        fill(
            "{} forgets {} of image AUROC, stores no image{}; at the end image AUROC is {} % and "
            "AUPRO {} % ({}).",
            *(code(ours), _quantity(value[ours, "fm_i_auroc"], "fm_i_auroc"), size),
            *(f"{value[ours, metric]:.1f}" for metric in MAIN),
            circumstances(mine),
        )
    ]
    gaps = below_joint(rows, ours, bound).groupby("metric")["value"].mean()
    if len(gaps):
        said.append(
            fill(
                "New categories reach {} % right after their step. Compared with {}, trained on "
                "all at once: {} points of image AUROC, {} on new categories.",
                *(f"{value[ours, 'new_i_auroc']:.1f}", code(bound)),
                *(f"{-gaps[metric]:+.1f}" for metric in ("i_auroc", "new_i_auroc")),
            )
        )
    return said


def _start(sentence: Markup) -> Markup:
    return Markup(sentence[:1].upper() + sentence[1:])


def how_trained(seen: int | None, rows: pd.DataFrame, log: pd.DataFrame) -> list[Markup]:
    """How far training brought the methods of one setting and modality, beside the best floor and a bank.

    Parameters
    ----------
    seen : int or None
        Images that a model is trained on, repetitions counted.
    rows, log : DataFrame
        Result rows, and the training log, whose methods are those that are trained.
    """
    table = final_table(rows) if len(rows) else rows
    means = table[table["metric"] == "i_auroc"].groupby("method")["value"].mean()
    floors = means[[name.startswith(FLOOR) for name in means.index]]
    trained = means[[name in set(log["method"]) for name in means.index]]
    if floors.empty or trained.empty:
        return [Markup("Not answered yet: runs are missing.")]
    enough = trained >= floors.max() + ABOVE_FLOORS
    said = [
        fill(
            "A model sees {} training images in its base step, the paper's about 2.7 million.",
            "some" if seen is None else f"{seen:,}",
        ),
        fill(
            "The best floor, {}, has {} % image AUROC; {} of {} trained methods are 10 points above it or more{}.",
            *(code(floors.idxmax()), f"{100 * floors.max():.1f}", int(enough.sum()), len(trained)),
            fill(", but not {}", _names(trained[~enough].index)) if not enough.all() else "",
        ),
    ]
    if MARK in means:
        over = trained[trained >= means[MARK]]
        sentence = fill("{} reaches {} %", code(MARK), f"{100 * means[MARK]:.1f}")
        reached = (
            fill("as much or more: {}", Markup(", ").join(_with_one_seed(table, over.index)))
            if len(over)
            else "no trained method does"
        )
        said.append(fill("{}; {}.", sentence, reached))
    return said


def _with_one_seed(table: pd.DataFrame, methods: Sequence[str]) -> list[Markup]:
    """Names, those of methods with a single seed with that remark."""
    seeds = table.groupby("method")["seed"].nunique()
    return [fill("{}{}", code(name), " (one seed)" if seeds[name] == 1 else "") for name in methods]


def with_more_training(rows: pd.DataFrame, epochs: int) -> list[Markup]:
    """What larger budgets than the recipe's give: validation error and image AUROC at the largest of each method.

    Parameters
    ----------
    rows : DataFrame
        Rows of one setting and modality, methods named like ``iuf[epochs=15]``.
    epochs : int
        Those of the recipe.
    """
    if rows.empty:
        return []
    means = _means(rows).reset_index().pivot_table("value", "method", "metric", sort=False)
    names = means.index.str.extract(r"(.+)\[epochs=(\d+)\]$")
    means.index = pd.MultiIndex.from_arrays([names[0], names[1].astype(int)])
    said: dict[float, list[Markup]] = {}
    falls = []
    for name in dict.fromkeys(names[0]):
        tried = means.loc[name]
        most = int(tried.index.max())
        if epochs not in tried.index or most == epochs:
            continue
        before, after = tried.loc[epochs], tried.loc[most]
        error = before["validation_error"]
        fall = after["validation_error"] / error - 1 if error > 0 else np.nan
        falls.append(fall)
        between = [count for count in tried.index if epochs < count < most]
        gains = 100 * (tried["i_auroc"] - before["i_auroc"])
        sentence = fill(
            "{} {} % image AUROC ({}{}){}",
            *(code(name), f"{100 * after['i_auroc']:.1f}", f"{gains[most]:+.1f}"),
            fill("; {} with {} times", f"{gains[max(between)]:+.1f}", f"{max(between) / epochs:g}")
            if between
            else "",
            "" if np.isnan(fall) else f", validation error {100 * fall:+.0f} %",
        )
        said.setdefault(most / epochs, []).append(sentence)
    if not said:
        return []
    ended = np.nanmin([*falls, 0.0]) > -PLATEAU
    return [
        Markup("Training has converged." if ended else "Training has not converged."),
        *(
            fill(
                "With {} times the images{}: {}.",
                *(f"{times:g}", " (one seed)" if len({*rows["seed"]}) == 1 else ""),
                Markup("; ").join(said[times]),
            )
            for times in sorted(said)
        ),
    ]


def _names(methods: Sequence[str]) -> Markup:
    return Markup(", ").join(code(name) for name in methods)


def learnt_and_kept(gates: pd.DataFrame, rows: pd.DataFrame) -> list[Markup]:
    """Which methods learn what is new, and which of these recognise all categories at the end.

    Parameters
    ----------
    gates : DataFrame
        `iumad.study.verdicts.measure_gates` of one setting with steps and one modality.
    rows : DataFrame
        Result rows of the same.
    """
    asked = gates[gates["gate"].isin(["classifier", "new categories"])]
    met = asked.assign(met=asked["state"] == MET).groupby("method", sort=False)["met"].all()
    accuracy = final_table(rows).query("metric == 'accuracy'").groupby("method")["value"].mean()
    learnt = [name for name in met.index[met] if name in accuracy.index]
    if not learnt:
        return []
    kept = [name for name in learnt if accuracy[name] >= RIGHT]
    return [
        fill(
            "Right after their step, new categories are within five points of joint training and 95 % of the "
            "good images are recognised with {}.",
            _and([code(name) for name in learnt]),
        ),
        fill(
            "After the last step 95 % of all good images are still recognised with {}.",
            _and([code(name) for name in kept]) if kept else "none of them",
        ),
    ]


def place_among(
    rows: pd.DataFrame, compared: pd.DataFrame, alike: Sequence[str], ours: str = OURS
) -> list[Markup]:
    """The places that one method may have among others of one setting and modality, by image AUROC.

    A method counts as ahead or behind where the two are told apart (`told_apart`), whatever gates say; those of
    which no second seed is shared have no place.

    Parameters
    ----------
    rows : DataFrame
    compared : DataFrame
        Their comparison with `ours` (`iumad.report.page.Page.compared`).
    alike : sequence of str
        Methods that score colour features alone, as it does.
    ours : str
    """
    if rows.empty or ours not in set(rows["method"]):
        where = f" in {rows['setting'].iloc[0]}" if len(rows) else ""
        return [fill("{} is not run{} yet.", code(ours), where)]
    rows = rows[~rows["method"].str.startswith(FLOOR)]
    means = _means(rows).xs("i_auroc", level="metric").sort_values(ascending=False)
    peers = [name for name in means.index if name in {*alike, ours}]
    setting, modality = rows[["setting", "modality"]].iloc[0]
    values = standing(rows, peers, ["i_auroc"])
    here = compared[(compared["setting"] == setting) & (compared["modality"] == modality)]
    here = here[(here["metric"] == "i_auroc") & here["method"].isin(means.index)]
    ranked = here[here["n"] > 1]
    if ranked.empty:
        return [fill("{}: {}. One seed gives no places.", setting, values)]
    of_peers = ranked[ranked["method"].isin(peers)]
    open_to = of_peers.loc[~told_apart(of_peers), "method"]
    single = here.loc[here["n"] == 1, "method"]
    return [
        fill(
            "{}: {} is {} of the {} that score colour alone ({}){}, and {} of {} together with those that score "
            "both images, are told the category or store images{}.",
            *(setting, code(ours), _places(of_peers), 1 + len(of_peers), values),
            fill(", not told apart from {}", _and([*map(code, open_to)])) if len(open_to) else "",
            *(_places(ranked), 1 + len(ranked)),
            fill(" (without {}: one seed)", _and([*map(code, single)])) if len(single) else "",
        )
    ]


def told_apart(judged: pd.DataFrame) -> pd.Series:
    """Which differences (`iumad.study.statistics.judge`) are above or below 0 after Holm's correction."""
    return judged["p_holm"] < ERROR


def _places(compared: pd.DataFrame) -> str:
    """Places of a method that is compared with these: behind all that are surely ahead, before those behind."""
    sure = compared[told_apart(compared)]
    first = 1 + int((sure["estimate"] > 0).sum())
    last = 1 + len(compared) - int((sure["estimate"] < 0).sum())
    return f"number {first}" if first == last else f"number {first} to {last}"


def kept_by_the_bottleneck(table: pd.DataFrame) -> list[Markup]:
    """What the bottleneck keeps of the bits that a linear probe reads before it, per target.

    Parameters
    ----------
    table : DataFrame
        Measurements of the kind "information" of one method.
    """
    if table.empty:
        return [Markup("No trained model was probed.")]
    wide = table.pivot(index=["target", "seed"], columns="representation", values="bits")  # noqa: PD010
    said = []
    for target, part in wide.groupby("target", sort=False):
        said.append(
            fill(
                "About the <b>{}</b> a linear probe reads {} bits before the bottleneck and {} "
                "after it ({}).",
                *(READ.get(str(target), str(target)), f"{part['before'].mean():.2f}"),
                f"{part['after'].mean():.2f}",
                _bits(part["after"] - part["before"]),
            )
        )
    return said


def _bits(values: pd.Series) -> str:
    """The mean over seeds, with its 95 % interval."""
    change = values.rename("value").reset_index()
    (row,) = summarise(change.assign(all="all"), ["all"]).to_dict("records")
    interval = f" [{row['low']:+.2f}, {row['high']:+.2f}]" if row["n"] > 1 else ""
    return f"{row['mean']:+.2f}{interval}"


def dropped(table: pd.DataFrame, target: str, methods: Sequence[str]) -> list[Markup]:
    """How many bits of a target each method's bottleneck drops, and against the first, seed by seed.

    Parameters
    ----------
    table : DataFrame
        Measurements of the kind "information" of one setting.
    target : str
    methods : sequence of str
    """
    chosen = table[(table["target"] == target) & table["method"].isin(methods)]
    if chosen.empty:
        return []
    keys = ["method", "seed"]
    wide = chosen.pivot(index=keys, columns="representation", values="bits")  # noqa: PD010
    change = (wide["after"] - wide["before"]).rename("value")
    changes = {name: _bits(part) for name, part in change.groupby("method", sort=False)}
    shown = [fill("{} {}", code(name), changes[name]) for name in methods if name in changes]
    if len(shown) < 2:
        return []
    sentence = "Change across the bottleneck in bits about the <b>{}</b> ({}): {}."
    what, setting = READ.get(target, target), table["setting"].iloc[0]
    said = [fill(sentence, what, setting, Markup(", ").join(shown))]
    first, *rest = [name for name in methods if name in changes]
    further = {name: (change[name] - change[first]).dropna() for name in rest}
    shown = [fill("{} {}", code(n), _bits(part)) for n, part in further.items() if len(part) > 1]
    if shown:
        sentence = "How much more {} drops than the others, seed by seed: {}."
        said.append(fill(sentence, code(first), Markup(", ").join(shown)))
    return said


def verdict_counts(answers: pd.DataFrame, shown: Sequence[str] = DECIDED) -> list[Markup]:
    """The claims that have a verdict, with their difference, and why the others have none.

    Parameters
    ----------
    answers : DataFrame
        `iumad.study.claims.verdicts`.
    shown : sequence of str
        Verdicts whose claims are quoted.
    """
    said = []
    for word in shown:
        for row in answers[answers["verdict"] == word].itertuples():
            if pd.isna(row.estimate):
                said.append(
                    fill(
                        "{}: “{}” {}.",
                        verdict_word(word),
                        row.statement,
                        _start(escape(row.reason)),
                    )
                )
                continue
            here = interval_text(row.estimate, row.low, row.high)
            paper = "" if pd.isna(row.paper) else f"; the paper: {row.paper:.1f}"
            unit = row.unit if row.unit != "doublings" else "doublings, a factor of two each"
            said.append(
                fill("{}: “{}” Here {} {}{}.", verdict_word(word), row.statement, here, unit, paper)
            )
    left = answers[~answers["verdict"].isin(DECIDED)]["verdict"].value_counts()
    counts = [fill("{} {}", number, verdict_word(str(word))) for word, number in left.items()]
    if counts:
        decided = len(answers) - int(left.sum())
        what = fill("None of the {} claims is decided:", len(answers))
        if decided:
            verb = "is" if decided == 1 else "are"
            what = fill("{} of {} claims {} decided; the others:", decided, len(answers), verb)
        said.append(fill("{} {}.", what, Markup(", ").join(counts)))
    return said + _gains_excluded(answers[answers["verdict"] == UNDECIDED])


def _gains_excluded(undecided: pd.DataFrame) -> list[Markup]:
    """In how many undecided claims the interval lies below the paper's gain."""
    lies = [place for row in undecided.itertuples() if (place := paper_lies(row))]
    excluded = lies.count("above")
    if not lies:
        return []
    said = fill(
        "Of {} undecided claim{} with a number in the paper, {} interval{} (95 % each, not corrected) exclude{} a "
        "gain that large on our data",
        *(len(lies), "s" * (len(lies) > 1), excluded, "s" * (excluded != 1), "s" * (excluded == 1)),
    )
    left = len(lies) - excluded
    verb = "does" if left == 1 else "do"
    return [fill("{}, and {} {} not.", said, left, verb) if left else fill("{}.", said)]


def minds(
    answers: pd.DataFrame,
    rows: pd.DataFrame,
    elsewhere: pd.DataFrame | None = None,
    missed: Sequence[str] = (),
) -> list[Markup]:
    """What came of the outcomes that the protocol says would change our mind.

    Parameters
    ----------
    answers : DataFrame
        `iumad.study.claims.verdicts`.
    rows : DataFrame
        Rows of one setting with steps, a bank for all and replay among them.
    elsewhere : DataFrame, optional
        Rows of another data set in a setting with steps and one modality, which `rows` have too.
    missed : sequence of str
        Methods that miss a gate there.
    """
    if rows.empty:
        return [NOT_ANSWERED]
    main = answers[answers["claim"].str.startswith(("better in steps", "forgets less"))]["verdict"]
    held, failed = (main == SUPPORTED).sum(), main.isin([CONTRADICTED, NO_DIFFERENCE]).sum()
    said = [
        fill(
            "<b>{}</b>: {}. Of the {} main contrasts <i>in steps</i>, {} {}.",
            *(what, "to be asked" if count else "not met", len(main), count, words),
        )
        for what, count, words in (
            ("For the paper", held, "are supported"),
            ("Against it", failed, "are contradicted or no difference"),
        )
    ]
    found, met = [], []
    for modality, part in rows.groupby("modality", sort=False):
        means = 100 * _means(part).xs("i_auroc", level="metric")
        ours = means.get(OURS, np.nan)
        others = means.reindex(["bank-unified", f"{OURS}+replay"]).dropna()
        if len(others) and not np.isnan(ours):
            shown = [fill("{} {} %", code(name), f"{value:.1f}") for name, value in others.items()]
            sentence = "{}: {}, {} {} %"
            found.append(
                fill(sentence, in_words(str(modality)), _and(shown), code(OURS), f"{ours:.1f}")
            )
            met.append((others >= ours).any())
    if found:
        said.append(
            fill(
                "<b>Against the question itself</b>: {}. Image AUROC after the last step, {}.",
                "met" if all(met) else "not met" if not any(met) else "met in part",
                Markup("; ").join(found),
            )
        )
    if elsewhere is not None and len(elsewhere):
        said += _order_elsewhere(rows, elsewhere, missed)
    return said


def _order_elsewhere(
    rows: pd.DataFrame, elsewhere: pd.DataFrame, missed: Sequence[str]
) -> list[Markup]:
    """Whether those of `ORDERED` that both have come in another order elsewhere."""
    modality = elsewhere["modality"].iloc[0]
    tables = (rows[rows["modality"] == modality], elsewhere)
    shared = {*ORDERED}.intersection(*(table["method"] for table in tables))
    if len(shared) < 2:
        return []
    orders = []
    for table in tables:
        means = _means(table[table["method"].isin(shared)]).xs("aupro", level="metric")
        orders.append(100 * means.sort_values(ascending=False))
    here, there = (
        _and([fill("{} {} %", code(str(name)), f"{value:.1f}") for name, value in order.items()])
        for order in orders
    )
    same = list(orders[0].index) == list(orders[1].index)
    answer = "not decided" if missed else "not met" if same else "met"
    why = fill("; {} miss a gate there", _and([code(name) for name in missed])) if missed else ""
    return [
        fill(
            "<b>Against this study</b>: {}. AUPRO after the last step, {}: here {}, on photographs {}{}.",
            *(answer, in_words(str(modality)), here, there, why),
        )
    ]


def as_ratios(answers: pd.DataFrame) -> list[Markup]:
    """Costs as ratios with their intervals, of claims whose unit is doublings (`iumad.study.claims.verdicts`)."""
    known = answers[(answers["unit"] == "doublings") & (answers["n"] > 1)]
    return [
        fill(
            "“{}” Here a factor of {}, {} to {} over {} processes (95 % interval): {}.",
            *(row.statement, *(f"{2**x:.2g}" for x in (row.estimate, row.low, row.high))),
            *(row.n, verdict_word(row.verdict)),
        )
        for row in known.itertuples()
        if row.high > row.low
    ]


def changed_by(
    rows: pd.DataFrame,
    changes: Sequence[tuple[str, str, str]],
    compared: Mapping[str, pd.DataFrame] | None = None,
) -> list[Markup]:
    """Image AUROC after the last step, and forgetting, from one method to another in each modality and setting.

    The difference stands beside, with a 95 % interval over seeds.

    Parameters
    ----------
    rows : DataFrame
        Result rows of one data set.
    changes : sequence of (what, before, after)
        What makes the difference, as the sentence begins; the two methods, on the seeds that both have. Those that
        are not run are left out.
    compared : mapping, optional
        Method of `before` -> every method against it (`iumad.report.page.Page.compared`), for verdicts.
    """
    several = [name for name in ("modality", "setting") if len(set(rows[name])) > 1]
    said = []
    for what, before, after in changes:
        judged = (compared or {}).get(before, pd.DataFrame(columns=COLUMNS))
        keys = ["method", "modality", "setting", "metric"]
        words = judged.reindex(columns=[*keys, "verdict"]).set_index(keys)["verdict"]
        cells = []
        for keys, part in rows.groupby(["modality", "setting"], sort=False):
            modality, setting = map(str, keys)
            names = {"modality": in_words(modality), "setting": setting}
            here = paired((part, after, before, setting))
            if "i_auroc" not in here.index:
                continue
            where = ", ".join(names[name] for name in several)
            n = int(here.loc["i_auroc", "n"])
            values = [
                _change(name, here.loc[name], words.get((after, modality, setting, name)))
                for name in CHANGES
                if name in here.index
            ]
            many = f"{n} seeds" if n > 1 else "one seed"
            start = f"{where}: " if where else ""
            cells.append(fill("{}{} ({})", start, Markup(", ").join(values), many))
        if cells:
            start = fill("{} ({} → {}): ", what, code(before), code(after))
            said.append(fill("{}{}.", start, Markup("; ").join(cells)))
    return said or [NOT_ANSWERED]


def _change(metric: str, row: pd.Series, word: str | None) -> Markup:
    """A result before and after, the difference with its interval, and a verdict if there is one."""
    sign = "+" if row["mean"] >= 0.05 else ""
    change = fill("{}{}", sign, interval_text(row["mean"], row["low"], row["high"]))
    if word and word != NOT_RUN:
        change = fill("{}: {}", change, _outcome(BETTER_OR_WORSE.get(word, word)))
    before, after = f"{row['second']:.1f}", _quantity(row["first"], metric)
    return fill("{} {} → {} ({})", CHANGES[metric], before, after, change)


def forgets_by_age(split: pd.DataFrame, clean: str) -> list[Markup]:
    """What a variant forgets more of the base step's categories, and of later ones (`forgetting_by_age`)."""
    return [
        fill(
            "{} against {}: FM of the categories of the base step changes by {} points, that of later ones by {} "
            "({}; looked at afterwards).",
            *(code(row["method"]), code(clean), row["base categories"], row["later categories"]),
            "one seed" if row["seeds"] == 1 else f"{row['seeds']} seeds",
        )
        for row in split.to_dict("records")
    ]


def what_is_missed(missed: pd.DataFrame, method: str) -> list[Markup]:
    """Which kind of defect looks least normal to a method, and which most (`missed_defects`)."""
    if missed.empty:
        return list(UNMEASURED)
    share = 100 * missed.groupby("defect")["beaten_by"].mean().sort_values()
    least, most = share.index[0], share.index[-1]
    found, beaten = (missed["beaten_by"] == 0).mean(), (missed["beaten_by"] >= 0.5).mean()
    return [
        fill(
            "After the last step {} scores {} % of the {} defects higher than every good object of their "
            "category, and {} % lower than at least half of these.",
            *(code(method), f"{100 * found:.0f}", len(missed), f"{100 * beaten:.0f}"),
        ),
        fill(
            "The easiest is a <b>{}</b>, which a good object outscores in {} % of the pairs, the "
            "hardest a <b>{}</b> ({} %; 50 % would be chance).",
            *(least, f"{share.iloc[0]:.0f}", most, f"{share.iloc[-1]:.0f}"),
        ),
    ]


def overwritten(luck: pd.DataFrame) -> list[Markup]:
    """How far one evaluation moves when test images overwrite each other (measurements of the kind "lottery")."""
    if luck.empty:
        return list(UNMEASURED)
    low, high = (luck["low"].min(), luck["high"].max())
    return [
        fill(
            "Where test images of the same name overwrite each other, as in the release, an "
            "evaluation of one model moves by <b>{} to {} points</b> of image AUROC (the middle "
            "95 % of {} evaluations, outermost ends among {} methods).",
            *(f"{low:+.1f}", f"{high:+.1f}", f"{luck['evaluations'].iloc[0]:.0f}", len(luck)),
        )
    ]


def largest_shift(shifts: pd.DataFrame) -> list[Markup]:
    """The detail of evaluation that moves a number most."""
    if shifts.empty:
        return list(UNMEASURED)
    worst = shifts.loc[shifts["shift"].abs().idxmax()]
    return [
        fill(
            "With the same anomaly maps of {}, <i>{}</i> shifts the result by {} points of {}, the "
            "most among choices in use.",
            *(code(worst["method"]), worst["detail"], f"{worst['shift']:+.1f}"),
            LABELS[worst["metric"]],
        )
    ]


def cost_against(
    summary: pd.DataFrame, ours: str = OURS, marks: Sequence[str] = (MARK, "bank-unified")
) -> list[Markup]:
    """Time, size and memory of a method and of others for one image (`iumad.study.costs.cost_summary`)."""
    one = (
        summary[summary["batch"] == 1].drop_duplicates("method").set_index("method")
        if len(summary)
        else summary
    )
    if not {ours, MARK} <= set(one.index):
        return list(UNMEASURED)
    said = []
    for column, what in COSTS.items():
        if column not in one or np.isnan(one.loc[ours, column]):
            continue
        value = one.loc[ours, column]
        beside = [
            fill("{} times that of {} ({})", f"{value / of:.2g}", code(mark), f"{of:.1f}")
            for mark, of in one[column].reindex([*marks]).dropna().items()
        ]
        said.append(fill("{}: {} {}, {}.", what, code(ours), f"{value:.1f}", _and(beside)))
    return said


def learning_takes(
    summary: pd.DataFrame,
    ours: str = OURS,
    beside: Sequence[str] = ("ib-iumad+replay", "joint", MARK),
) -> list[Markup]:
    """How long one more category takes to learn (`iumad.study.costs.learning_summary`), if it was measured."""
    seconds = summary.set_index("method")["seconds"] if len(summary) else pd.Series(dtype=float)
    others = seconds.reindex([*beside]).dropna()
    if ours not in seconds or others.empty:
        return []
    said = [fill("{} {}", code(name), _seconds(value)) for name, value in others.items()]
    learn = "Seconds to learn one more category: {} {}, {}."
    return [fill(learn, code(ours), _seconds(seconds[ours]), _and(said))]


def _seconds(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def inside(table: pd.DataFrame) -> list[Markup]:
    """What `iumad.report.tables.inside_table` says of the parts that the paper's explanation rests on."""
    if table.empty:
        return list(UNMEASURED)
    base, last = table[table["step"] == 0].iloc[0], table[table["step"] == table["step"].max()]
    old, new = (last[last["categories"] == group] for group in ("earlier", "this step"))
    said = []
    for modality in [
        name.removeprefix("accuracy ") for name in table if name.startswith("accuracy ")
    ]:
        name = f"accuracy {modality}"
        if modality in ("before", "after") or not len(old):
            continue
        said.append(
            fill(
                "The classifier of {} recognises {} % of the good images after the base step; "
                "after the last step, {} % of those of earlier categories and {} % of the newest "
                "one's.",
                *(
                    modality,
                    *(
                        f"{value:.0f}"
                        for value in (base[name], old[name].iloc[0], new[name].iloc[0])
                    ),
                ),
            )
        )
    if "KL" in table:
        ends = (f"{value:.2f}" for value in (table["KL"].min(), table["KL"].max()))
        said.append(fill("The KL of the two predictions lies between {} and {} nats.", *ends))
    if "frozen" in table and len(old):
        share = f"{old['frozen'].iloc[0]:.0f}"
        said.append(
            fill(
                "In the layers on which it acts, the projection keeps updates away from {} % of what earlier "
                "features span.",
                share,
            )
        )
    return said


def attempted(attempts: Attempts, *metrics: str, gates: pd.DataFrame | None = None) -> list[Markup]:
    """A sentence for each attempt that was run, and whether its models miss a gate (`attempts_table`)."""
    said = []
    for tried, attempt in attempts.items():
        found = paired(attempt)
        parts = [
            fill(
                "{} {} for {} and {} for {}, difference {}",
                *(LABELS[metric], f"{row['first']:.1f}", code(attempt[1].partition("[")[0])),
                *(f"{row['second']:.1f}", code(attempt[2].partition("[")[0])),
                interval_text(*row[["mean", "low", "high"]]),
            )
            for metric in metrics
            if metric in found.index
            for row in [found.loc[metric]]
        ]
        if parts:
            seeds = int(found["n"].max())
            many = f"{seeds} seed" + "s" * (seeds > 1)
            said.append(fill("{} ({}, {}): {}.", tried, attempt[3], many, Markup("; ").join(parts)))
            missed = [] if gates is None else missed_gates(gates, attempt)
            if missed:
                said[-1] = fill(
                    "{} {}, gates missed: {}.", said[-1], _outcome(UNTRAINED), ", ".join(missed)
                )
    return said or [NOT_ANSWERED]


def over_settings(rows: pd.DataFrame, compared: pd.DataFrame) -> list[Markup]:
    """Values of two methods in each setting, and how often they are told apart over a grid.

    Parameters
    ----------
    rows : DataFrame
        Rows of one modality.
    compared : DataFrame
        The whole grid (`iumad.report.page.Page.compared`).
    """
    said = []
    for setting, part in rows.groupby("setting", sort=False):
        if {OURS, BASELINE} <= set(part["method"]):
            part = part[part["method"].isin([OURS, BASELINE])]
            values = standing(part, [OURS, BASELINE], ["i_auroc", "fm_i_auroc"])
            said.append(fill("{}: {} ({}).", setting, values, circumstances(part)))
    found = compared[(compared["method"] == OURS) & (compared["metric"] == "i_auroc")]
    words = found["verdict"].map(lambda word: BETTER_OR_WORSE.get(word, word))
    words = words[found["n"] > 1]
    counts = []
    for word, number in words.value_counts().items():
        places = found.loc[words.index[words == word], ["setting", "modality"]]
        where = "; ".join(f"{row.setting}, {in_words(row.modality)}" for row in places.itertuples())
        shown = f" ({where})" if number < 3 else ""
        counts.append(fill("{} {}{}", number, _outcome(str(word)), shown))
    single = int((found["n"] == 1).sum())
    counts += [fill("{} with one seed", single)] if single else []
    if said and counts:
        which = fill(
            "combinations of modality and setting, image AUROC of {} against {}",
            code(OURS),
            code(BASELINE),
        )
        said.append(fill("Of {} {}: {}.", len(found), which, Markup("; ").join(counts)))
    return said or [NOT_ANSWERED]


def data_answer(dataset: Dataset, strength: pd.DataFrame) -> list[Markup]:
    """What a data set holds, and which defects change depth least and most (`defect_strength`)."""
    test = dataset.index[dataset.index["split"] == "test"]
    said = [
        fill(
            "{}: {} categories, {} samples, {} of them test images, {} of these with a defect; {}.",
            *(code(dataset.name), len(dataset.categories), len(dataset.index), len(test)),
            *(int(test["label"].sum()), " and ".join(dataset.modalities)),
        )
    ]
    if strength.empty:
        return [
            *said,
            Markup("Its defects have no undamaged twins, so their strength cannot be measured."),
        ]
    depth = strength.set_index("defect")["depth_mm"]
    said.append(
        fill(
            "A <b>{}</b> changes depth by {} mm, a <b>{}</b> by {} mm. What does not change depth cannot be found "
            "from depth alone.",
            *(depth.idxmin(), f"{depth.min():.3f}", depth.idxmax(), f"{depth.max():.2f}"),
        )
    )
    return said


def model_card(card: pd.DataFrame) -> list[Markup]:
    """How large a model is and where its parameters and operations lie (measurements of the kind "parts")."""
    if card.empty:
        return list(UNMEASURED)
    total, parts = card[card["part"] == "all"].iloc[0], card[card["part"] != "all"]
    family = parts["part"].str.split(".").str[0].map(lambda name: PARTS.get(name, name))
    sums = parts.groupby(family)[["parameters", "gflops"]].sum()
    largest, busiest = sums["parameters"].idxmax(), sums["gflops"].idxmax()
    return [
        fill(
            "{} million parameters, {} million of them trained; {} GFLOP for one image.",
            *(
                f"{total['parameters'] / 1e6:.1f}",
                f"{total['trained'] / 1e6:.1f}",
                f"{total['gflops']:.1f}",
            ),
        ),
        fill(
            "The largest share of parameters lies in {} ({} %), of operations in {} ({} %).",
            *(largest, f"{100 * sums['parameters'].max() / total['parameters']:.0f}"),
            *(busiest, f"{100 * sums['gflops'].max() / total['gflops']:.0f}"),
        ),
    ]
