"""What numbers say, in sentences: for the boxes that open pages. Every word that could be wrong is computed.

Sentences are `Markup`, so names in them are escaped (`iumad.report.style`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup

from iumad.data.sample import Dataset
from iumad.report.style import code, fill, verdict_word
from iumad.report.tables import BETTER_OR_WORSE
from iumad.study.results import LABELS, final_table, last_step
from iumad.study.statistics import summarise
from iumad.study.verdicts import ABOVE_FLOORS, FLOOR, NOT_RUN

OURS, BASELINE, MARK = "ib-iumad", "iuf", "bank"
MAIN = ("i_auroc", "aupro")
FEW = 6  # claims that are said one by one
UNMEASURED = (
    Markup("Not measured on these runs; <code>iumad measure</code> does it where they were made."),
)
KEEPING = {
    "fm_i_auroc": "It forgets {} points of image AUROC.",
    "new_i_auroc": "New categories reach {} % image AUROC right after their step.",
    "accuracy": "It recognises the category of {} % of the good images.",
}
NOT_ANSWERED = Markup("Not answered yet: no run is finished.")


def standing(rows: pd.DataFrame, methods: Sequence[str], metrics: Sequence[str] = MAIN) -> Markup:
    """Means after the last step of some methods: "`ib-iumad` reaches 67.5 % image AUROC and 41.0 % AUPRO, ..."."""
    summary = summarise(final_table(rows), ["method", "metric"]).set_index(["method", "metric"])
    said = []
    for method in methods:
        values = [
            fill("{} % {}", f"{100 * summary.loc[(method, m), 'mean']:.1f}", LABELS[m])
            for m in metrics
            if (method, m) in summary.index
        ]
        if values:
            said.append(fill("{} {}", code(method), Markup(" and ").join(values)))
    return Markup(", ").join(said)


def circumstances(rows: pd.DataFrame) -> Markup:
    """What the rows of one setting and modality were measured on."""
    first, seeds = rows.iloc[0], rows["seed"].nunique()
    steps, categories = int(rows["step"].max()) + 1, rows["category"].nunique()
    return fill(
        "{}, {}, setting {} ({} categories in {} step{}), {} seed{}",
        *(first["dataset"], first["modality"], first["setting"], categories, steps),
        *("s" if steps > 1 else "", seeds, "s" if seeds > 1 else ""),
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
        interval = "one seed" if np.isnan(row.low) else f"{row.low:+.1f} to {row.high:+.1f}"
        paper = "" if np.isnan(row.paper) else f"; the paper: {row.paper:+.1f}"
        words = {True: ("forgets", "less", "more"), False: ("has", "more", "less")}
        verb, better, worse = words[row.metric.startswith("fm_")]
        said.append(
            fill(
                "{} {} {} points {} {} than {} ({}{}): {}.",
                *(
                    code(ours),
                    verb,
                    f"{abs(row.estimate):.1f}",
                    better if row.estimate >= 0 else worse,
                ),
                *(LABELS[row.metric].removeprefix("FM "), code(row.reference), interval, paper),
                verdict_word(BETTER_OR_WORSE.get(row.verdict, row.verdict)),
            )
        )
    return said


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
    others = [name for name in (BASELINE, MARK) if name in have]
    shown = rows[rows["method"].isin([OURS, *others])]
    asked = compared[compared["metric"].isin(["i_auroc", "fm_i_auroc"])]
    return [
        fill("On {}: {}.", circumstances(shown), standing(shown, [OURS, *others])),
        *verdict(asked),
    ]


def against_the_mark(rows: pd.DataFrame, mark: str = MARK) -> list[Markup]:
    """How near the methods of one setting and modality come to the one that is told the category."""
    if rows.empty:
        return [NOT_ANSWERED]
    table = final_table(rows)
    means = table[table["metric"] == "i_auroc"].groupby("method")["value"].mean()
    trained = means.drop(mark, errors="ignore").sort_values(ascending=False)
    said = [fill("On {}: {}.", circumstances(rows), standing(rows, [OURS, mark]))]
    if mark in means and len(trained):
        gap = 100 * (trained - means[mark])
        said.append(
            fill(
                "Nearest to the bank comes {} ({} points of image AUROC from it), furthest away is {} ({}).",
                *(code(trained.index[0]), f"{gap.iloc[0]:+.1f}", code(trained.index[-1])),
                f"{gap.iloc[-1]:+.1f}",
            )
        )
    return said


def against_forgetting(rows: pd.DataFrame, ours: str, bound: str) -> list[Markup]:
    """What a method that learns in steps keeps, and how far it is from training on all categories at once."""
    if ours not in set(rows["method"]):
        return [NOT_ANSWERED]
    means = summarise(final_table(rows), ["method", "metric"]).set_index(["method", "metric"])
    value = (100 * means["mean"]).to_dict()
    said = [
        fill("On {}: {}.", circumstances(rows[rows["method"] == ours]), standing(rows, [ours])),
        *(
            fill(sentence, f"{value[ours, metric]:.1f}")
            for metric, sentence in KEEPING.items()
            if (ours, metric) in value
        ),
    ]
    if (bound, "i_auroc") in value:
        mine = rows[rows["method"] == ours]
        base = mine.loc[mine["step"] == 0, "category"].unique()
        theirs = last_step(rows[(rows["method"] == bound) & (rows["metric"] == "i_auroc")])
        theirs = theirs[~theirs["category"].isin(base)]
        gaps = (
            value[ours, "i_auroc"] - value[bound, "i_auroc"],
            (value[ours, "new_i_auroc"] - 100 * theirs["value"].mean()),
        )
        sentence = (
            "Against {}, trained on all at once: {} points of image AUROC, {} on new categories."
        )
        said.append(fill(sentence, code(bound), *(f"{gap:+.1f}" for gap in gaps)))
    return said


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
            "A model sees {} training images, the paper's about 2.9 million.",
            "some" if seen is None else f"{seen:,}",
        ),
        fill(
            "The best floor, {}, has {} % image AUROC; {} of {} trained methods are 10 points above it or more{}.",
            *(code(floors.idxmax()), f"{100 * floors.max():.1f}", int(enough.sum()), len(trained)),
            fill(", not {}", _names(trained[~enough].index)) if not enough.all() else "",
        ),
    ]
    if MARK in means:
        over = trained[trained >= means[MARK]]
        sentence = fill("{} reaches {} %", code(MARK), f"{100 * means[MARK]:.1f}")
        reached = (
            fill("{} as much or more", _names(over.index))
            if len(over)
            else "no trained method as much"
        )
        said.append(fill("{}, {}.", sentence, reached))
    return said


def _names(methods: Sequence[str]) -> Markup:
    return Markup(", ").join(code(name) for name in methods)


def place_among(rows: pd.DataFrame, ours: str = OURS) -> list[Markup]:
    """Where one method stands among the others of one setting and modality, by mean image AUROC over seeds."""
    table = final_table(rows) if len(rows) else rows
    means = table[table["metric"] == "i_auroc"].groupby("method")["value"].mean()
    if ours not in means:
        return [Markup("Not answered yet: runs are missing.")]
    order = means[[not name.startswith(FLOOR) for name in means.index]].sort_values(ascending=False)
    place, best = order.index.get_loc(ours) + 1, order.index[0]
    return [
        fill("On {}: {}.", circumstances(rows), standing(rows, list(dict.fromkeys([ours, best])))),
        fill("{} is number {} of {} by mean image AUROC.", code(ours), place, len(order)),
    ]


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
        change = (part["after"] - part["before"]).rename("value").reset_index()
        (row,) = summarise(change.assign(all="all"), ["all"]).to_dict("records")
        interval = f" [{row['low']:+.2f}, {row['high']:+.2f}]" if row["n"] > 1 else ""
        said.append(
            fill(
                "Of <b>{}</b>, a linear probe reads {} bits before the bottleneck and {} after it: {}{}.",
                *(target, f"{part['before'].mean():.2f}", f"{part['after'].mean():.2f}"),
                *(f"{row['mean']:+.2f}", interval),
            )
        )
    return said


def verdict_counts(answers: pd.DataFrame) -> list[Markup]:
    """How many claims got which verdict, and each claim behind its verdict if there are few.

    Parameters
    ----------
    answers : DataFrame
        statement, verdict (`iumad.study.claims.verdicts`).
    """
    if len(answers) <= FEW:
        return [
            fill("{} {}", verdict_word(row.verdict), row.statement) for row in answers.itertuples()
        ]
    counts = answers["verdict"].value_counts()
    said = [fill("{} {}", number, verdict_word(str(word))) for word, number in counts.items()]
    return [fill("Of {} claims: {}.", len(answers), Markup(", ").join(said))]


def what_is_missed(missed: pd.DataFrame, method: str) -> list[Markup]:
    """Which kind of defect looks least normal to a method, and which most (`missed_defects`)."""
    if missed.empty:
        return list(UNMEASURED)
    share = 100 * missed.groupby("defect")["beaten_by"].mean().sort_values()
    least, most = share.index[0], share.index[-1]
    return [
        fill(
            "With {}, a good object scores higher than one with a <b>{}</b> in {} % of the pairs, and higher than "
            "one with a <b>{}</b> in {} %; 50 % would be chance.",
            *(code(method), least, f"{share.iloc[0]:.0f}", most, f"{share.iloc[-1]:.0f}"),
        )
    ]


def largest_shift(shifts: pd.DataFrame) -> list[Markup]:
    """The detail of evaluation that moves a number most, and how many do so beyond chance."""
    if shifts.empty:
        return list(UNMEASURED)
    worst = shifts.loc[shifts["shift"].abs().idxmax()]
    clear = shifts[(shifts["low"] > 0) | (shifts["high"] < 0)]
    return [
        fill(
            "The same anomaly maps give up to <b>{} points</b> another {}: {} ({}).",
            *(
                f"{worst['shift']:+.1f}",
                LABELS[worst["metric"]],
                worst["detail"],
                code(worst["method"]),
            ),
        ),
        fill("{} of {} shifts have an interval without zero.", len(clear), len(shifts)),
    ]


def cost_against(summary: pd.DataFrame, ours: str = OURS, mark: str = MARK) -> list[Markup]:
    """Time and size of two methods for one image (`iumad.study.measured.summary`)."""
    one = (
        summary[summary["batch"] == 1].drop_duplicates("method").set_index("method")
        if len(summary)
        else summary
    )
    if not {ours, mark} <= set(one.index):
        return list(UNMEASURED)
    said = []
    for column, unit in (("latency p50 (ms)", "ms an image"), ("model (MB)", "MB of model")):
        if column in one and not np.isnan(one.loc[ours, column]):
            ratio = one.loc[ours, column] / one.loc[mark, column]
            values = (f"{one.loc[name, column]:.3g}" for name in (ours, mark))
            said.append(
                fill(
                    "{} needs {} {}, {} {}: {} times as much.",
                    code(ours),
                    next(values),
                    unit,
                    code(mark),
                    next(values),
                    f"{ratio:.2g}",
                )
            )
    return said


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
                "The classifier of {} knows {} % of the good images after the base step; after the last step "
                "{} % of the earlier categories' and {} % of the newest one's.",
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
                "The projection keeps updates away from {} % of what earlier features span.", share
            )
        )
    return said


def over_settings(rows: pd.DataFrame, compared: pd.DataFrame) -> list[Markup]:
    """How often a method is told apart from the reference over a grid, and values of one cell of it.

    Parameters
    ----------
    rows : DataFrame
        Rows of one setting and modality, for the values.
    compared : DataFrame
        The whole grid (`iumad.report.page.Page.compared`).
    """
    if compared.empty or rows.empty:
        return [NOT_ANSWERED]
    said = []
    for metric in ("i_auroc", "fm_i_auroc"):
        part = compared[(compared["method"] == OURS) & (compared["metric"] == metric)]
        words = part["verdict"].map(lambda word: BETTER_OR_WORSE.get(word, word)).value_counts()
        found = [fill("{} {}", number, verdict_word(str(word))) for word, number in words.items()]
        if found:
            said.append(
                fill(
                    "{} against {} in {}, over {} combinations of modality and setting: {}.",
                    *(code(OURS), code(part["reference"].iloc[0]), LABELS[metric], len(part)),
                    Markup(", ").join(found),
                )
            )
    values = standing(rows, list(dict.fromkeys(rows["method"])), ["i_auroc"])
    return [*said, fill("On {}: {}.", circumstances(rows), values)]


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
            Markup("It has no undamaged twins, so the strength of its defects cannot be measured."),
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
    largest, busiest = (parts.loc[parts[column].idxmax()] for column in ("parameters", "gflops"))
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
            "The most parameters lie in {} ({} %), the most operations in {} ({} %).",
            *(code(largest["part"]), f"{100 * largest['parameters'] / total['parameters']:.0f}"),
            *(code(busiest["part"]), f"{100 * busiest['gflops'] / total['gflops']:.0f}"),
        ),
    ]
