"""The same questions on several data sets; what images without any detail give away; where defects are found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from markupsafe import Markup

from iumad.report.style import ABSENT, code, fill, label_of, verdict_word
from iumad.report.tables import BETTER_OR_WORSE, interval_text, mean_and_sd
from iumad.study.results import continual_table, final_table, last_step
from iumad.study.statistics import CONTRADICTED, MARGIN, SUPPORTED, UNTRAINED, judge
from iumad.study.verdicts import FLOOR, MISSED, UNMEASURED, measure_gates

GIVEN_AWAY = 0.8  # image AUROC of a floor above which image scores say nothing of a method
GIVEN = "given away"  # a column
_KEYS = ["metric", "method", "modality", "seed"]
ALL = "all"  # the modality of a run that sees all images of a data set
SIZES = (0.0, 0.25, 1.0, 4.0, np.inf)  # of defects, in cells of the grid
DRAWS = 2000
DECIDED = (SUPPORTED, CONTRADICTED)
NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class Question:
    """A difference of two methods that can be asked of any data set; positive speaks for the statement.

    Attributes
    ----------
    statement : str
    metric : str
        Mean over categories after the last step (`iumad.study.results.final_table`); of ``fm_`` less is better.
    first, second : (method, modality)
        ``all`` is the modality with all images of the data set.
    rival : str
        Whom the page's answer sets beside IB-IUMAD; "" where it leaves the question out.
    """

    statement: str
    metric: str
    first: tuple[str, str]
    second: tuple[str, str]
    rival: str = ""

    @property
    def of_banks(self) -> bool:
        """Whether nothing is trained on either side."""
        return self.first[0].startswith("bank") and self.second[0].startswith("bank")


QUESTIONS = (
    Question("IB-IUMAD localises better than IUF", "aupro", ("ib-iumad", ALL), ("iuf", ALL), "IUF"),
    Question("IB-IUMAD forgets less AUPRO than IUF", "fm_aupro", ("ib-iumad", ALL), ("iuf", ALL)),
    Question(
        "IB-IUMAD localises better than the bare network",
        "aupro",
        ("ib-iumad", ALL),
        ("plain", ALL),
        "the network without IB-IUMAD's parts",
    ),
    Question(
        "ib-iumad-plus, which reconstructs all modalities, localises better than IB-IUMAD",
        "aupro",
        ("ib-iumad-plus", ALL),
        ("ib-iumad", ALL),
    ),
    Question(
        "IB-IUMAD localises better with a second modality",
        "aupro",
        ("ib-iumad", ALL),
        ("ib-iumad", "rgb"),
    ),
    Question(
        "one bank for all localises better with a second modality",
        "aupro",
        ("bank-unified", ALL),
        ("bank-unified", "rgb"),
    ),
    Question(
        "IB-IUMAD localises better than one bank for all",
        "aupro",
        ("ib-iumad", ALL),
        ("bank-unified", ALL),
        "one bank for all categories",
    ),
    Question(
        "IB-IUMAD detects defective images better than IUF",
        "i_auroc",
        ("ib-iumad", ALL),
        ("iuf", ALL),
    ),
    Question(
        "IB-IUMAD detects defective images better than one bank for all",
        "i_auroc",
        ("ib-iumad", ALL),
        ("bank-unified", ALL),
    ),
)


def answers(
    rows_of: Mapping[str, pd.DataFrame], references: Mapping[str, pd.DataFrame] | None = None
) -> pd.DataFrame:
    """Every question on every data set.

    Parameters
    ----------
    rows_of : name of a data set -> rows of its runs in one setting
    references : name of a data set -> rows of its other settings, optional
        Against which gates are measured too, see `missed_gates`.

    Returns
    -------
    DataFrame
        data, statement and the columns of `iumad.study.statistics.judge`, values in points; the questions of a
        data set are one family. Those about whole images are asked of the categories that no floor gives away
        (`GIVEN_AWAY`). A question is missing where a data set has no second image, no such category or no such
        runs. Where a method misses a gate (`missed_gates`), the verdict is "not trained enough".
    """
    found, untrained, fixed = [], set(), set()
    for name, rows in rows_of.items():
        whole = max(rows["modality"].unique(), key=lambda each: (each.count("+"), each), default="")
        asked = clean(rows)
        table = final_table(asked) if len(asked) else pd.DataFrame(columns=[*_KEYS, "value"])
        values = table.set_index(_KEYS)["value"].sort_index()
        missed = missed_gates(rows, (references or {}).get(name))
        for question in QUESTIONS:
            keys = [
                (question.metric, method, whole if modality == ALL else modality)
                for method, modality in (question.first, question.second)
            ]
            if any(key[1:] in missed.index for key in keys):
                untrained.add((name, question.statement))
            if question.of_banks and "minicandies" not in set(rows["dataset"]):
                fixed.add((name, question.statement))  # of the same photographs for each seed
            if keys[0] == keys[1] or not all(key in values.index for key in keys):
                continue
            difference = (values.loc[keys[0]] - values.loc[keys[1]]).dropna()
            sign = -1 if question.metric.startswith("fm_") else 1
            table = pd.DataFrame({"value": 100 * sign * difference}).reset_index()
            labels = {"data": name, "statement": question.statement, "margin": 100 * MARGIN}
            found.append(table.assign(**labels))
    if not found:
        return pd.DataFrame(columns=["data", "statement", "n", "mean", "low", "high", "verdict"])
    judged = judge(pd.concat(found, ignore_index=True), ["data", "statement"], ["data"])
    asked_of = list(zip(judged["data"], judged["statement"], strict=True))
    words = judged["verdict"].mask(judged["n"] < 2, NO_VERDICT)
    words = words.mask([key in fixed for key in asked_of], NO_VERDICT)
    return judged.assign(verdict=words.mask([key in untrained for key in asked_of], UNTRAINED))


def clean(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without scores of whole images of the categories that a floor gives away (`GIVEN_AWAY`)."""
    return rows[(rows["metric"] != "i_auroc") | ~rows["category"].isin(_given_away(rows))]


def clean_found(defects: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Measurements of the kind "defects", "found" missing in the categories that a floor gives away."""
    found = defects["found"].where(~defects["category"].isin(_given_away(rows)))
    return defects.assign(found=found)


def _given_away(rows: pd.DataFrame) -> set[str]:
    """Categories of which a floor tells defective images without seeing any detail."""
    floors_here = rows[rows["method"].str.startswith(FLOOR) & (rows["metric"] == "i_auroc")]
    return set(floors_here.loc[floors_here["value"] > GIVEN_AWAY, "category"])


def gates(rows: pd.DataFrame, references: pd.DataFrame | None = None) -> pd.DataFrame:
    """`iumad.study.verdicts.measure_gates` of one setting of a data set.

    The gate of the floors is measured on categories that no floor gives away (`GIVEN_AWAY`), where there are any.
    Floors of photographs, which are the same for every seed, count for all seeds.
    """
    whole = measure_gates(rows, references)
    asked = rows[~rows["category"].isin(_given_away(rows))]
    floor = asked["method"].str.startswith(FLOOR) & (asked["dataset"] != "minicandies")
    repeated = [asked[floor].assign(seed=seed) for seed in asked["seed"].unique()]
    above = measure_gates(pd.concat([asked[~floor], *repeated]))
    return pd.concat([whole[whole["gate"] != "floors"], above[above["gate"] == "floors"]])


def missed_gates(rows: pd.DataFrame, references: pd.DataFrame | None = None) -> pd.Series:
    """`gates` that trained methods miss, or whose runs are missing: texts by method and modality."""
    found = gates(rows, references)
    trained = ~found["method"].str.startswith("bank")
    missed = found[trained & found["state"].isin([MISSED, UNMEASURED])]
    return missed.groupby(["method", "modality"], sort=False)["text"].agg("; ".join)


def answer_table(judged: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """`answers` with a line for each question and a column for each data set."""
    cells = {
        (row.statement, row.data): fill(
            "{}<br>{}",
            verdict_word(row.verdict),
            interval_text(row.mean, row.low, row.high).partition(" (")[0],  # a narrow cell
        )
        for row in judged.itertuples()
    }
    lines = [question.statement for question in QUESTIONS]
    columns = {name: [cells.get((line, name), Markup(ABSENT)) for line in lines] for name in names}
    return pd.DataFrame({"statement": lines} | columns)


def floors(rows_of: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Image AUROC, in percent, of methods that see no detail, for each category and modality.

    Returns
    -------
    DataFrame
        data, category, modality, a column for each floor, and given away ("yes" where one is above
        `GIVEN_AWAY`: no claim about image scores uses that category).
    """
    tables = []
    for name, rows in rows_of.items():
        chosen = rows["method"].str.startswith(FLOOR) & (rows["metric"] == "i_auroc")
        part = last_step(rows[chosen]).assign(data=name)
        tables.append(part.assign(method=part["method"].str.removeprefix(FLOOR)))
    whole = pd.concat(tables, ignore_index=True)
    keys = ["data", "category", "modality"]
    if whole.empty:
        return pd.DataFrame(columns=[*keys, GIVEN])
    wide = whole.pivot_table("value", keys, "method", sort=False)
    given = (wide > GIVEN_AWAY).any(axis=1).map({True: "yes", False: ""})
    return (100 * wide).assign(**{GIVEN: given}).reset_index()


def summary(judged: pd.DataFrame, table: pd.DataFrame, known: str) -> list[Markup]:
    """Where IB-IUMAD ends beside others, what is decided on `known` and elsewhere, what is given away."""
    sentences, names = [], [*dict.fromkeys(judged["data"])]
    rows = {(row.data, row.statement): row for row in judged.itertuples()}
    for name in names:
        beside = [
            fill(
                "{} points {} that of {} ({}: {})",
                *(f"{abs(row.mean):.1f}", "above" if row.mean > 0 else "below", question.rival),
                interval_text(row.mean, row.low, row.high).partition(" ")[2].strip("()"),
                verdict_word(BETTER_OR_WORSE.get(row.verdict, row.verdict)),
            )
            for question in QUESTIONS
            if question.rival and (row := rows.get((name, question.statement)))
        ]
        if beside and name != known:
            seeds = int(judged.loc[judged["data"] == name, "n"].max())
            many = f"{seeds} seeds" if seeds > 1 else "one seed"
            ends = Markup(", ").join(beside)
            sentences.append(fill("{} ({}): AUPRO of IB-IUMAD ends {}.", name, many, ends))
    if known in names:
        sentences += _decided_on_both(judged, known) or [
            fill("No statement is decided on {} and on photographs.", known)
        ]
    given = table[table[GIVEN] == "yes"]
    if len(table):
        cells = table[["data", "category"]].drop_duplicates()
        lost = given[["data", "category"]].drop_duplicates()
        sentences.append(
            fill(
                "In {} of {} categories a floor, which sees no detail, has an image AUROC above {:.0f}: "
                "image scores prove nothing there; statements about whole images leave these categories out.",
                len(lost),
                len(cells),
                100 * GIVEN_AWAY,
            )
        )
    return sentences


def _decided_on_both(judged: pd.DataFrame, known: str) -> list[Markup]:
    """A sentence for each statement that is supported or contradicted on the data set `known` and on others."""
    said = []
    for statement, part in judged[judged["verdict"].isin(DECIDED)].groupby("statement", sort=False):
        words = dict(zip(part["data"], part["verdict"], strict=True))
        if known not in words or len(words) < 2:
            continue
        first = words.pop(known)
        alike = [name for name, word in words.items() if word == first]
        unlike = [name for name, word in words.items() if word != first]
        found, opposite = str(statement), _opposite(str(statement))
        if first == CONTRADICTED:
            found, opposite = opposite, found
        where = fill("On {} and on {} alike", known, " and on ".join(alike))
        sentence = fill("{}, {}", where if alike else fill("On {}", known), found)
        if unlike:
            sentence = fill("{}; on {}, {}", sentence, " and on ".join(unlike), opposite)
        said.append(fill("{}.", sentence))
    return said


def _opposite(statement: str) -> str:
    """What holds where a statement is contradicted: "IB-IUMAD localises worse than IUF"."""
    return statement.replace(" better ", " worse ").replace(" less ", " more ")


def over_images(values: pd.Series) -> tuple[float, float, float]:
    """Mean over categories of means over test images, with a 95 % bootstrap interval over the images.

    Parameters
    ----------
    values : Series
        One a test image, indexed by category and sample_id.
    """
    rng, drawn = np.random.default_rng(0), []
    groups = values.groupby("category")
    for _, part in groups:
        places = rng.integers(len(part), size=(DRAWS, len(part)))
        drawn.append(part.to_numpy()[places].mean(axis=1))
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return float(groups.mean().mean()), float(low), float(high)


def _with_bounds(values: pd.Series) -> str:
    mean, low, high = (round(bound, 1) + 0.0 for bound in over_images(values.dropna()))  # no -0.0
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def inside_table(defects: pd.DataFrame, value: str = "inside") -> pd.DataFrame:
    """What is measured of defective images: a line a method, a column a modality, and what a second image adds.

    Parameters
    ----------
    defects : DataFrame
        Measurements of the kind "defects" of one seed (`iumad.study.measured`).
    value : str
        "inside" (pixel AUROC), "aupro", both without floors, which have no map, or "found" (share of good images
        with a lower score).

    Returns
    -------
    DataFrame
        method, a column for each modality, "difference" (all images and colour alone, paired by image) where there
        are two or more; percent.
    """
    index = ["category", "sample_id"]
    defects = defects.dropna(subset=value)
    if value != "found":
        defects = defects[~defects["method"].str.startswith(FLOOR)]
    wide = 100 * defects.pivot_table(value, index, ["method", "modality"], sort=False)
    modalities = sorted(defects["modality"].unique(), key=lambda name: (name.count("+"), name))
    pair = [modalities[-1], "rgb"] if modalities and "+" in modalities[-1] else []
    lines = []
    for method in dict.fromkeys(defects["method"]):
        known = [name for name in modalities if (method, name) in wide]
        line = {name: _with_bounds(wide[method, name]) for name in known}
        if pair and {*pair} <= {*known}:
            line["difference"] = _with_bounds(wide[method, pair[0]] - wide[method, pair[1]])
        lines.append({"method": code(method)} | line)
    columns = ["method", *modalities, *(["difference"] if pair else [])]
    return pd.DataFrame(lines, columns=columns).fillna(Markup(ABSENT))


def size_table(defects: pd.DataFrame, grid: int) -> pd.DataFrame:
    """How often defects of some size are found and how well localised, of each method.

    Parameters
    ----------
    defects : DataFrame
        Measurements of the kind "defects" of one modality.
    grid : int
        Cells along a side of the image.

    Returns
    -------
    DataFrame
        Columns of two levels: method; of all size classes the share of good images with a lower score, and the
        pixel AUROC inside the image, both in percent. A class has its number of images in its name.
    """
    defects = defects.dropna(subset="share")
    names = [f"{low:g} to {high:g}" for low, high in pairwise(SIZES[:-1])]
    names.append(f"over {SIZES[-2]:g}")
    size = pd.cut(defects["share"] * grid**2, SIZES, labels=names)
    counts = size.groupby(size, observed=True).size() // max(1, defects["method"].nunique())
    table = defects.assign(size=[f"{each} ({counts[each]})" for each in size])
    order = [f"{each} ({counts[each]})" for each in names if each in counts.index]
    means = 100 * table.pivot_table(["found", "inside"], "method", "size", sort=False)
    columns = {("", "method"): [code(name) for name in means.index]}
    for metric, title in (
        ("found", "good images with a lower score"),
        ("inside", "pixel AUROC inside the image"),
    ):
        for each in order:
            columns[title, each] = means[metric, each].to_list()
    return pd.DataFrame(columns)


def size_ranks(defects: pd.DataFrame) -> pd.DataFrame:
    """Whether larger defects are better localised within a category: rank correlation of area and pixel AUROC.

    Parameters
    ----------
    defects : DataFrame
        Measurements of the kind "defects" of one modality.

    Returns
    -------
    DataFrame
        method, and a column for each category: Spearman's correlation over its marked images.
    """
    marked = defects.dropna(subset=["share", "inside"])
    lines = []
    for method, part in marked.groupby("method", sort=False):
        ranks = {
            name: each["share"].corr(each["inside"], method="spearman")
            for name, each in part.groupby("category", sort=False)
        }
        lines.append({"method": method} | ranks)
    return pd.DataFrame(lines, columns=["method", *dict.fromkeys(marked["category"])])


def size_text(ranks: pd.DataFrame) -> Markup:
    """In how many categories larger defects are better localised (`size_ranks`), of each method."""
    each = [
        fill(
            "{} in {} of {}",
            code(row["method"]),
            *(sum(value > 0 for value in row.iloc[1:]), len(row) - 1),
        )
        for _, row in ranks.iterrows()
    ]
    return fill(
        "Within a category larger defects are better localised: {}.", Markup(", ").join(each)
    )


def growth_text(growth: pd.DataFrame) -> Markup:
    """How forgetting grows from the first increment to the last (`forgetting_by_step`), of each method."""
    each = [
        fill(
            "{} from {} to {} points",
            code(method),
            *(f"{part['value'].iloc[place]:.1f}" for place in (0, -1)),
        )
        for method, part in growth.groupby("method", sort=False)
    ]
    counts = [int(growth["categories"].agg(name)) for name in ("min", "max")]
    return fill(
        "Forgetting of AUPRO with {} and with {} categories: {}.", *counts, Markup(", ").join(each)
    )


def kind_table(defects: pd.DataFrame, value: str) -> pd.DataFrame:
    """How well each kind of defect is found or localised: a line a kind, a column a method.

    Parameters
    ----------
    defects : DataFrame
        Measurements of the kind "defects" of one modality and seed.
    value : str
        "found" (share of good images with a lower score) or "inside" (pixel AUROC inside the image), in percent.
    """
    keys = ["category", "defect"]
    images = defects.drop_duplicates("sample_id").groupby(keys, sort=False)["share"]
    sizes = 100 * images.mean().rename("area (%)")
    wide = 100 * defects.dropna(subset=value).pivot_table(value, keys, "method", sort=False)
    counts = images.size().rename("images").to_frame().join(sizes)
    table = counts.join(wide.rename(columns=code), how="inner")  # kinds that have the value
    return table.reset_index()


def forgetting_by_step(rows: pd.DataFrame, metric: str = "aupro") -> pd.DataFrame:
    """Forgetting after each step, in points: `iumad.study.results.continual_table` of the steps up to there.

    Returns
    -------
    DataFrame
        method, categories (learnt so far), metric, value, averaged over seeds.
    """
    part, tables = rows[rows["metric"] == metric], []
    last = part.groupby("run_id")["step"].transform("max")
    for step in sorted(part["step"].unique())[1:]:
        so_far = part[(part["step"] <= step) & (last >= step)]
        table = continual_table(so_far)
        table = table[table["metric"] == f"fm_{metric}"]
        learnt = so_far.groupby("run_id")["category"].nunique()
        tables.append(table.assign(categories=table["run_id"].map(learnt)))
    if not tables:
        return pd.DataFrame(columns=["method", "categories", "metric", "value"])
    whole = pd.concat(tables).groupby(["method", "categories"], sort=False)["value"].mean()
    return whole.mul(100).reset_index().assign(metric="forgetting (AUPRO, points)")


def result_table(rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Means over categories after the last step, in percent: a line a method and modality, without floors.

    With several seeds a cell is their mean ± standard deviation. Image AUROC is that of categories which no floor
    gives away.
    """
    rows = clean(rows)
    table = final_table(rows[~rows["method"].str.startswith(FLOOR)])
    keys = ["modality", "method", "setting"]
    seeds = table.assign(value=100 * table["value"]).groupby([*keys, "metric"], sort=False)["value"]
    summary = seeds.agg(["mean", "std"]).reset_index()
    cells = [mean_and_sd(*both) for both in summary[["mean", "std"]].to_numpy()]
    summary = summary.assign(cell=cells)
    wide = summary.pivot_table("cell", keys, "metric", aggfunc="first", sort=False)
    wide = wide.fillna(Markup(ABSENT))
    known = [metric for metric in metrics if metric in wide]
    wide = wide[known].rename(columns=label_of).reset_index()
    wide = wide.rename(columns={"accuracy": "Category recognised (%)"})
    return wide.assign(method=wide["method"].map(code))


def convergence(logs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Reconstruction error of the base step on training images, in percent of its first epoch's.

    Parameters
    ----------
    logs : name of a data set -> `iumad.study.load.training_log` of runs with all its images
    """
    lines = []
    for name, log in logs.items():
        base = log[(log["step"] == 0) & (log["term"] == "fusion")]
        for (method, setting), part in base.groupby(["method", "setting"], sort=False):
            values = part.groupby("epoch")["value"].mean().to_numpy()
            share = 100 * values / values[0]
            half, fifths = share[len(share) // 2 - 1], share[len(share) * 4 // 5 - 1]
            lines.append((name, code(method), setting, len(share), half, fifths, share[-1]))
    columns = [
        "data",
        "method",
        "setting",
        "epochs",
        "after half",
        "after four fifths",
        "at the end",
    ]
    return pd.DataFrame(lines, columns=columns)
