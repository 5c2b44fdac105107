"""Tables of pages, from result rows and from what was measured; nothing here trains or needs torch.

Detection metrics are shown in percent, what learning in steps did in percentage points.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from iumad.config.methods import MethodConfig
from iumad.config.schema import RunConfig, StudyConfig
from iumad.data.minicandies import MiniCandies
from iumad.evaluation.metrics import image_auroc, or_missing
from iumad.report.style import ABSENT, fill, label_of, verdict_word
from iumad.study.load import RUN_LABELS, load_provenance
from iumad.study.results import (
    CONTINUAL,
    FRACTIONS,
    LABELS,
    MEAN,
    RUN_COLUMNS,
    beside_paper,
    continual_table,
    final_table,
    last_step,
    paper_results,
)
from iumad.study.statistics import CONTRADICTED, SUPPORTED, summarise
from iumad.study.verdicts import MET, MISSED, UNMEASURED

NOT_RUN = "not run"
MAIN = ("i_auroc", "aupro")
AIMS: dict[str, float | None] = {  # of a method that learns in steps, and how much it may be
    "image AUROC below training on all at once (points)": 3,
    "AUPRO below it (points)": 3,
    "new categories' image AUROC below it (points)": 3,
    "forgetting, image AUROC (points)": 2,
    "images whose category is not recognised (%)": 2,
    "kB that a category adds, as stored": 1000,
    "the same, every number of 32 bits": 1000,
    "file of the whole model (MB)": None,
    "time for an image, times that of ib-iumad": 1.3,
}
ONCE = (".0f", ".0f", ".1f", ".2f")  # formats of the last aims, which no seed decides
CELL = ["modality", "setting", "method"]
BETTER_OR_WORSE = {SUPPORTED: "better", CONTRADICTED: "worse"}  # of a method against a reference
LESS_IS_BETTER = "fm_"
COST_NAMES = {
    "latency p50 (ms)": "ms, median",
    "latency p95 (ms)": "ms, 95 %",
    "model (MB)": "file, MB",
    "added memory (MB)": "memory, MB",
    "parameters (M)": "parameters, 10⁶",
    "operations (10^9)": "GFLOP",
}
RECOGNISED = "category recognised"  # heading of `accuracy`
PAPER_DATA = ("mvtec3d", "eyecandies")


def paper_name(study: StudyConfig) -> str:
    """The data set whose values in the paper stand beside ours: the same, or MVTec 3D-AD if the paper lacks it."""
    return study.data.name if study.data.name in PAPER_DATA else PAPER_DATA[0]


def paper_table(study: StudyConfig, rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Methods by settings, as the paper prints its results: mean ± standard deviation over seeds.

    Parameters
    ----------
    study : StudyConfig
        Its modalities and methods are the rows, its settings the columns of each metric.
    rows : DataFrame
        Rows of the finished runs; may be empty.
    metrics : sequence of str
        Groups of columns.

    Returns
    -------
    DataFrame
        Columns of two levels, cells as html: the best of a modality and column is bold, the paper's value
        (`paper_name`) stands beside in grey, "not run" where a run of the grid is missing. Methods and settings of
        which nothing is run are left out, unless nothing is. Seeds are a column where their number differs, and so
        is what the anomaly map compares ("all" modalities, or one) where there are several. Of a run of one step,
        *new* is its value on the categories that others learn in increments.
    """
    summary = _summary(rows)
    asked = {(str(run.modality), run.method): run for run in study.runs()}
    grid = {(str(run.modality), run.setting, run.method) for run in study.runs()}
    order = {str(name): place for place, name in enumerate(study.modalities)}
    run = set(zip(summary["modality"], summary["method"], strict=True))
    lines = sorted(asked, key=lambda key: order[key[0]])
    lines = [line for line in lines if line in run] or lines
    settings = [name for name in study.settings if name in set(summary["setting"])]
    columns: dict[tuple[str, str], list[Any]] = {("", "modality"): [m for m, _ in lines]}
    columns["", "method"] = [fill("<code>{}</code>", method) for _, method in lines]
    if any("+" in modality for modality, _ in lines):
        columns["", "scored"] = [_scored(asked[key]) for key in lines]
    seeds = [_seeds_text(summary, key) for key in lines]
    if len(set(seeds)) > 1:
        columns["", "seeds"] = seeds
    for metric in metrics:
        for setting in settings or study.settings:
            if metric.startswith(CONTINUAL) and setting.endswith("-0"):
                continue  # one step: nothing can be forgotten
            cells = _column(summary, metric, setting, lines, grid, paper_name(study))
            if any(cells):
                columns[LABELS.get(metric, RECOGNISED), setting] = [
                    cell or Markup(ABSENT) for cell in cells
                ]
    table = pd.DataFrame(columns)
    one = len({modality for modality, _ in lines}) == 1
    return table.drop(columns=[("", "modality")]) if one else table


def _scored(run: RunConfig) -> str:
    if run.model.kind == "floor":
        return ABSENT
    scored = run.model.scored(run.modalities)
    return "all" if len(scored) > 1 else scored[0]


def category_table(study: StudyConfig, rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric after the last step per category, mean over seeds in percent; the last column is the mean.

    Returns
    -------
    DataFrame
        modality, setting, method, seeds, one column a category, "mean"; finished methods only.
    """
    last = last_step(rows[rows["metric"] == metric])
    if last.empty:
        return pd.DataFrame(columns=[*CELL, "seeds"])
    order = list(dict.fromkeys(last["category"]))
    wide = last.pivot_table("value", CELL, "category", observed=True, sort=False)
    wide = 100 * wide.reindex(columns=order).assign(
        **{MEAN: lambda t: t.mean(axis=1, skipna=False)}
    )
    seeds = last.groupby(CELL, sort=False)["seed"].nunique().rename("seeds")
    return _one_value(seeds.reset_index().merge(wide.reset_index(), on=CELL), study)


def paper_category_table(dataset: str, metric: str, setting: str = "10-0") -> pd.DataFrame:
    """The paper's values of a metric of the methods that have them per category; without rows where none has."""
    table = paper_results()
    chosen = (table["dataset"] == dataset) & (table["metric"] == metric)
    table = table[chosen & (table["setting"] == setting)]
    table = table.drop_duplicates(["modality", "method", "category"])
    each = table[table["category"] != MEAN][["modality", "method"]].drop_duplicates()
    table = table.merge(each, on=["modality", "method"])
    order = [*dict.fromkeys(table["category"])]
    return table.pivot_table("value", ["modality", "method"], "category")[order].reset_index()


def comparison(compared: pd.DataFrame) -> pd.DataFrame:
    """What `iumad.report.page.Page.compared` returns, for readers; positive is better than the reference.

    Returns
    -------
    DataFrame
        modality, setting, metric, method, seeds, better by (with FM: forgets less), low, high (points), p (Holm),
        of (comparisons that the correction goes over), detectable, paper, verdict.
    """
    words = [verdict_word(BETTER_OR_WORSE.get(word, word)) for word in compared["verdict"]]
    table = compared.assign(
        verdict=words,
        metric=compared["metric"].map(LABELS),
        detectable=compared["detectable"].map(_detectable),
    )
    names = {"n": "seeds", "estimate": "better by", "p_holm": "p (Holm)", "m": "of"}
    columns = ["modality", "setting", "metric", "method", "n", "estimate", "low", "high"]
    return table[[*columns, "p_holm", "m", "detectable", "paper", "verdict"]].rename(columns=names)


def claim_table(answers: pd.DataFrame) -> pd.DataFrame:
    """One row a claim (`iumad.study.claims.verdicts`): statement, verdict, difference, the paper's, reason.

    The paper's difference lies above, below or inside the interval of ours.
    """
    intervals = [
        interval_text(row.estimate, row.low, row.high) if row.n and row.n > 0 else ""
        for row in answers.itertuples()
    ]
    claims = [
        fill('{} <span class="paper">{}</span>', row.statement, row.where)
        for row in answers.itertuples()
    ]
    return pd.DataFrame(
        {
            "claim": claims,
            "verdict": [verdict_word(word) for word in answers["verdict"]],
            "difference": intervals,
            "paper": answers["paper"].astype(float),
            "paper lies": [paper_lies(row) for row in answers.itertuples()],
            "detectable": answers["detectable"].map(_detectable),
            "why": answers["reason"],
        }
    )


def _detectable(effect: float) -> str:
    """The smallest effect that the runs could show; half of the scale says as much as all of it."""
    return "" if pd.isna(effect) else "> 50" if effect > 50 else f"{effect:.1f}"


def paper_lies(row: Any) -> str:
    """Where the paper's difference is, seen from the interval of ours."""
    if pd.isna(row.paper) or pd.isna(row.low):
        return ""
    return "above" if row.paper > row.high else "below" if row.paper < row.low else "inside"


def cost_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Costs of methods side by side (`iumad.study.costs.cost_summary`): one line a method and modality."""
    if summary.empty:
        return summary
    keys = ["modality", "method"]
    one = summary[summary["batch"] == 1].drop(columns="batch")
    many = summary[summary["batch"] > 1]
    if len(many):
        name = f"frames/s, batch {many['batch'].iloc[0]:.0f}"
        one = one.merge(
            many[[*keys, "frames/s"]].rename(columns={"frames/s": name}), "left", on=keys
        )
    sizes = [n for n in one if n.startswith(("model", "added", "parameters", "operations"))]
    table = one[[*keys, *(n for n in one if n not in (*keys, *sizes)), *sizes]]
    table = table.drop(columns="modality") if len(set(table["modality"])) == 1 else table
    return table.rename(columns=COST_NAMES)


def learning_table(summary: pd.DataFrame) -> pd.DataFrame:
    """What one more category takes and gives (`iumad.study.costs.learning_summary`), the fastest first."""
    if summary.empty:
        return summary
    table = summary.sort_values(["modality", "seconds"], kind="stable")
    if len(set(table["modality"])) == 1:
        table = table.drop(columns="modality")
    names = {"seconds": "s, median", "low": "s, least", "high": "s, most"}
    return table.rename(columns=names | LABELS)


def contrast_table(judged: pd.DataFrame) -> pd.DataFrame:
    """Every contrast behind some claims (`iumad.study.claims.evaluate_claims`)."""
    columns = ["claim", "role", "test", "compared", "n", "estimate", "low", "high", "paper"]
    table = judged[[*columns, "detectable", "unit", "verdict", "gates"]]
    return table.rename(columns={"n": "seeds", "estimate": "difference"})


def incremental(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs of two or more steps, in which something can be forgotten."""
    if rows.empty:
        return rows
    return rows[rows.groupby(RUN_COLUMNS)["step"].transform("max") > 0]


def below_joint(rows: pd.DataFrame, method: str, bound: str) -> pd.DataFrame:
    """By how many points runs in steps end below training on all categories at once; negative: above.

    Parameters
    ----------
    rows : DataFrame
        Rows of one modality.
    method, bound : str
        What learns in steps, and what is trained on all categories at once; runs of one setting and seed are
        paired.

    Returns
    -------
    DataFrame
        setting, seed, metric, value: ``i_auroc`` and ``aupro``, means after the last step, and ``new_i_auroc``,
        the categories of the increments right after their step.
    """
    cell = ["setting", "seed", "metric"]
    of = {name: rows[rows["method"] == name] for name in (method, bound)}
    base = of[method].loc[of[method]["step"] == 0, ["setting", "seed", "category"]]
    learnt = last_step(of[bound]).merge(base.drop_duplicates(), how="left", indicator=True)
    later = learnt[learnt["_merge"] == "left_only"].groupby(cell)["value"].mean()
    new = later.rename(lambda metric: f"new_{metric}", level="metric")
    final = {name: final_table(part).set_index(cell)["value"] for name, part in of.items()}
    joint = pd.concat([final[bound].drop(new.index, errors="ignore"), new])
    gaps = 100 * (joint - final[method]).dropna().rename("value")
    return gaps[gaps.index.isin([*MAIN, "new_i_auroc"], level="metric")].reset_index()


def aims_table(
    rows: pd.DataFrame,
    methods: Sequence[str],
    bound: str,
    once: Mapping[str, Mapping[str, float]],
) -> pd.DataFrame:
    """What a method that learns in steps should reach, and what it reaches: mean ± standard deviation over seeds.

    Parameters
    ----------
    rows : DataFrame
        Rows of one modality.
    methods : sequence of str
    bound : str
        The method that is trained on all categories at once.
    once : mapping
        What no seed decides (the last of `AIMS`) -> method -> its value.
    """
    most = ["" if most is None else f"{most:g}" for most in AIMS.values()]
    table = pd.DataFrame({"aim": [*AIMS], "at most": most})
    for method in methods:
        part = rows[rows["method"] == method]
        named = last_step(part[part["metric"] == "accuracy"])
        named = named.groupby(["setting", "seed"])["value"].mean()
        forgotten = continual_table(part[part["metric"] == "i_auroc"])
        forgotten = forgotten[forgotten["metric"] == "fm_i_auroc"]
        each = {
            "fm_i_auroc": 100 * forgotten.set_index(["setting", "seed"])["value"],
            "not recognised": 100 * (1 - named),
        }
        values = pd.concat(each, names=["metric"]).rename("value").reset_index()
        values = pd.concat([below_joint(rows, method, bound), values]).dropna()
        summary = summarise(values, ["setting", "metric"]).set_index(["setting", "metric"])
        for setting in part["setting"].unique():
            cells = [
                mean_and_sd(*summary.loc[(setting, name), ["mean", "sd"]])
                if (setting, name) in summary.index
                else Markup(ABSENT)
                for name in ("i_auroc", "aupro", "new_i_auroc", "fm_i_auroc", "not recognised")
            ]
            cells += [
                Markup(format(once[aim][method], form))
                if method in once.get(aim, {})
                else Markup(ABSENT)
                for aim, form in zip([*AIMS][-len(ONCE) :], ONCE, strict=True)
            ]
            table[f"{method}, {setting}"] = cells
    return table


def runs_table(study: StudyConfig, results: str | Path) -> pd.DataFrame:
    """What each finished run cost: steps, minutes, the largest memory of them, code, and who made it."""
    steps = load_provenance(study, results)
    records = []
    for keys, run in steps.groupby(["run_id", *RUN_LABELS], sort=False):
        labels = dict(zip(["run", *RUN_LABELS], keys, strict=True))
        costs = {"steps": len(run), "minutes": run["seconds"].sum() / 60}
        costs |= {"memory (MB)": run["peak_memory_mb"].max(), "code": _distinct(_code(run))}
        records.append(labels | costs | {"made": _distinct(run["source"])})
    columns = ["run", *RUN_LABELS, "steps", "minutes", "memory (MB)", "code", "made"]
    return pd.DataFrame(records, columns=columns)


def environment_table(study: StudyConfig, results: str | Path) -> pd.DataFrame:
    """Time that a study's steps took together, a step that runs share counted once, and where they ran."""
    steps = load_provenance(study, results).drop_duplicates("step_key")
    facts = {
        "time": f"{steps['seconds'].sum() / 3600:.1f} h for {len(steps)} steps",
        "machine": _distinct(
            ", ".join([cpu] * bool(cpu) + [f"{cores:.0f} cores"] * (cores > 0))
            for cpu, cores in zip(steps["cpu"], steps["cores"], strict=True)
        ),
        "threads": _distinct(steps["threads"].dropna().map("{:.0f}".format)),
    }
    for name in ("device", "system", "python", "torch", "timm", "numpy"):
        facts[name] = _distinct(steps[name])
    known = [(what, value) for what, value in facts.items() if value]  # old steps know less
    return pd.DataFrame(known, columns=["what", "value"])


def defect_table(samples: pd.DataFrame) -> pd.DataFrame:
    """Image AUROC of each kind of defect against the good images of its category, mean over categories.

    Parameters
    ----------
    samples : DataFrame
        Measurements of the kind "samples" (`iumad.study.measured`).

    Returns
    -------
    DataFrame
        method, then a column for each kind of defect, in percent: first those that change the shape, marked "*".
    """
    records = []
    for (method, _, category), part in samples.groupby(["method", "seed", "category"], sort=False):
        good = part["defect"] == "good"
        for defect in part.loc[~good, "defect"].unique():
            kind = part["defect"] == defect
            shape = (part.loc[kind, "geometric"] == "True").all()
            chosen = part[good | kind]
            labels = (chosen["defect"] != "good").to_numpy(dtype=int)
            value = or_missing(image_auroc, chosen["score"].to_numpy(), labels)
            name = f"{defect} *" if shape else defect
            records.append((method, category, shape, name, 100 * value))
    table = pd.DataFrame(records, columns=["method", "category", "shape", "defect", "value"])
    order = table.sort_values("shape", ascending=False, kind="stable")["defect"].unique()
    wide = table.pivot_table("value", "method", "defect", sort=False)
    return wide[list(order)].reset_index() if len(table) else table[["method"]]


def missed_defects(samples: pd.DataFrame) -> pd.DataFrame:
    """Defective test samples of one run, those that look most normal first.

    Parameters
    ----------
    samples : DataFrame
        Measurements of the kind "samples" of one run.

    Returns
    -------
    DataFrame
        sample_id, category, defect, score, beaten_by (share of the category's good test images that have a higher
        score).
    """
    is_good = samples["defect"] == "good"
    good = {name: part["score"] for name, part in samples[is_good].groupby("category")}
    defects = samples[~is_good & samples["category"].isin(good)]
    beaten = [
        float((good[category] > score).mean())
        for category, score in zip(defects["category"], defects["score"], strict=True)
    ]
    table = defects[["sample_id", "category", "defect", "score"]].assign(beaten_by=beaten)
    return table.sort_values(["beaten_by", "score"], ascending=[False, True], ignore_index=True)


def defect_strength(dataset: MiniCandies, n: int = 12) -> pd.DataFrame:
    """How much each kind of defect changes colour and depth inside its mask, against the undamaged object.

    Parameters
    ----------
    dataset : MiniCandies
    n : int
        Images of each kind, from all categories in turn; each has to be drawn twice.

    Returns
    -------
    pandas.DataFrame
        defect, images, area (mean share of the image), colour (mean absolute change, 0 to 255), depth_mm (mean
        absolute change of z in millimetres).
    """
    records = []
    defects = dataset.index[dataset.index["label"] == 1]
    turn = defects.groupby(["defect", "category"]).cumcount()
    chosen = defects.assign(turn=turn).sort_values("turn", kind="stable").groupby("defect").head(n)
    for row in chosen.sort_index().itertuples():
        damaged = dataset.load(row.sample_id)
        whole = dataset.load_without_defect(row.sample_id)
        inside = np.asarray(damaged.mask)
        colour = np.abs(damaged.rgb.astype(float) - whole.rgb)[inside].mean()
        z_damaged, z_whole = (s.xyz[..., 2] for s in (damaged, whole) if s.xyz is not None)
        depth = 1000 * np.abs(z_damaged - z_whole)[inside].mean()
        records.append((row.defect, inside.mean(), colour, depth))
    table = pd.DataFrame(records, columns=["defect", "area", "colour", "depth_mm"])
    groups = table.groupby("defect", sort=False)
    return groups.mean().assign(images=groups.size()).reset_index()


def inside_table(inside: pd.DataFrame) -> pd.DataFrame:
    """Measurements of the kind "inside" of one run, a column for each quantity; shares in percent."""
    keys = ["step", "categories"]
    wide = inside.pivot_table("value", keys, "quantity", dropna=False).dropna(how="all")
    wide = wide[list(inside["quantity"].unique())]
    shares = [name for name in wide if name != "KL" and "size" not in name]
    wide[shares] *= 100
    return wide.reset_index()


def shifts(details: pd.DataFrame) -> pd.DataFrame:
    """Mean shift of each detail of evaluation over categories, with its 95 % t interval.

    Categories are the unit: each counts with its mean over seeds.

    Parameters
    ----------
    details : DataFrame
        Measurements of the kind "details".

    Returns
    -------
    DataFrame
        method, modality, detail, metric, here, there (percent), shift, low, high (points), n (categories).
    """
    by = ["method", "modality", "detail", "metric"]
    means = details.groupby([*by, "category"], sort=False)[["here", "there"]].mean().reset_index()
    unit = means.rename(columns={"category": "seed"}).assign(value=means["there"] - means["here"])
    table = summarise(unit, by).drop(columns="sd").rename(columns={"mean": "shift"})
    values = means.groupby(by, sort=False)[["here", "there"]].mean().reset_index()
    table = values.merge(table, on=by)
    table[["here", "there", "shift", "low", "high"]] *= 100
    return table


def best_epoch(epochs: pd.DataFrame) -> pd.DataFrame:
    """The last epoch beside the one that is best on the test images, in the columns of the kind "details".

    Parameters
    ----------
    epochs : DataFrame
        Measurements of the kind "epochs".
    """
    columns = [*RUN_LABELS, "category", "detail", "metric", "here", "there"]
    tables = []
    for keys, run in epochs[epochs["metric"] == "i_auroc"].groupby(RUN_LABELS, sort=False):
        table = run.pivot(index="category", columns="epoch", values="value")  # noqa: PD010
        best = table[table.mean().idxmax()]
        pair = pd.DataFrame({"here": table[table.columns[-1]], "there": best}).reset_index()
        labels = dict(zip(RUN_LABELS, keys, strict=True))
        tables.append(pair.assign(**labels, detail="best epoch on test images", metric="i_auroc"))
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


Attempts = Mapping[str, tuple[pd.DataFrame, str, str, str]]


def search_table(rows: pd.DataFrame, criterion: Sequence[str]) -> pd.DataFrame:
    """What decided a search, a line a method and a column a choice: mean ± standard deviation, the best bold.

    Parameters
    ----------
    rows : DataFrame
        Rows of variants that `vary` made, ``method[choice]``.
    criterion : sequence of str
        Metrics whose mean decides; of ``validation_error`` the least, else the most, in percent.

    Returns
    -------
    DataFrame
        method, seeds, one column a choice. Of a method those seeds count that all its choices have.
    """
    final = final_table(rows)
    named = final["method"].str.extract(r"^(?P<method>.+)\[(?P<choice>.+)\]$")
    values = final[final["metric"].isin(criterion)].assign(**named)
    cells = values.pivot_table("value", ["method", "seed"], "choice", sort=False)
    least = "validation_error" in criterion
    factor = 1 if least else 100
    records = []
    for method, part in cells.groupby(level="method", sort=False):
        part = factor * part.dropna(axis=1, how="all").dropna()
        digits = 1 if not least else 2 if part.min().min() >= 1 else 4
        means, sds = part.mean().round(digits), part.std()
        best = means.min() if least else means.max()
        found = {
            choice: mean_and_sd(mean, sds[choice], bool(mean == best), digits)
            for choice, mean in means.items()
        }
        records.append({"method": method, "seeds": len(part)} | found)
    return pd.DataFrame(records, columns=["method", "seeds", *cells.columns])


def attempts_table(
    attempts: Attempts, metrics: Sequence[str], gates: pd.DataFrame | None = None
) -> pd.DataFrame:
    """What becomes of two methods when something else is tried.

    Parameters
    ----------
    attempts : what is tried -> (rows of one modality, first method, second method, setting)
    metrics : names in `iumad.study.results.final_table`
    gates : DataFrame, optional
        `iumad.study.verdicts.measure_gates` of the modality.

    Returns
    -------
    DataFrame
        tried, setting, seeds, gates ("met", or which are missed) if they are given, and for each metric the first
        method's mean, the second's, and the first minus the second, in points, with its 95 % interval over seeds;
        an attempt that was not run has no line.
    """
    lines = []
    for tried, (*_, setting) in attempts.items():
        found = paired(attempts[tried])
        if found.empty:
            continue
        cells = {
            metric: fill(
                "{}, {}:<br>{}",
                *(f"{row[side]:.1f}" for side in ("first", "second")),
                interval_text(*row[["mean", "low", "high"]]),
            )
            for metric, row in found.iterrows()
        }
        line = {"tried": tried, "setting": setting, "seeds": int(found["n"].max())}
        if gates is not None:
            missed = missed_gates(gates, attempts[tried])
            names = [fill("{}", name) for name in missed]
            line["gates"] = fill("missed:<br>{}", Markup("<br>").join(names)) if missed else MET
        lines.append(line | {name: cells.get(name, ABSENT) for name in metrics})
    columns = ["tried", "setting", "seeds", *(["gates"] if gates is not None else []), *metrics]
    table = pd.DataFrame(lines, columns=columns)
    return table.rename(columns={name: label_of(name).split(" (")[0] for name in metrics})


def missed_gates(gates: pd.DataFrame, attempt: tuple[pd.DataFrame, str, str, str]) -> list[str]:
    """Names of the gates (`iumad.study.verdicts`) that a method of an attempt misses or was not measured for."""
    _, first, second, setting = attempt
    own = gates["method"].isin([first, second]) & (gates["setting"] == setting)
    return list(gates[own & gates["state"].isin([MISSED, UNMEASURED])]["gate"].unique())


def paired(attempt: tuple[pd.DataFrame, str, str, str]) -> pd.DataFrame:
    """Both methods of an attempt (`attempts_table`) and their difference over the seeds that both have.

    Returns
    -------
    DataFrame
        By metric: first, second, mean, low, high (percent and points), n; empty where it was not run.
    """
    rows, first, second, setting = attempt
    chosen = rows[(rows["setting"] == setting) & rows["method"].isin([first, second])]
    wide = 100 * final_table(chosen).pivot_table("value", ["metric", "seed"], "method")
    if not {first, second} <= set(wide):
        return pd.DataFrame()
    wide = wide.dropna()
    values = (wide[first] - wide[second]).rename("value").reset_index()
    sides = wide.groupby("metric").mean().rename(columns={first: "first", second: "second"})
    return summarise(values, ["metric"]).set_index("metric").join(sides)


def result_lines(
    lines: Mapping[str, tuple[pd.DataFrame, str, str]], setting: str, metrics: Sequence[str]
) -> pd.DataFrame:
    """Results of several studies, a line each: what, method, seeds, mean ± standard deviation of each metric.

    Parameters
    ----------
    lines : what -> (rows, modality, method)
    setting : str
    metrics : names in `iumad.study.results.final_table`, fractions
    """
    found = []
    for what, (rows, modality, method) in lines.items():
        part = rows[(rows["modality"] == modality) & (rows["setting"] == setting)]
        summary = summarise(final_table(part[part["method"] == method]), ["metric"])
        known = {row.metric: row for row in summary.itertuples()}
        if known:
            cells = [mean_and_sd(100 * known[m].mean, 100 * known[m].sd) for m in metrics]
            found.append([what, method, known[metrics[0]].n, *cells])
    return pd.DataFrame(found, columns=["what", "method", "seeds", *map(label_of, metrics)])


def forgetting_by_age(
    rows: pd.DataFrame, clean: str, variants: Sequence[str], setting: str
) -> pd.DataFrame:
    """How much more each variant of a method forgets, of the base step's categories and of later ones.

    FM (paper, Eq. 1) averages over both. What an increment hardly learnt it can hardly forget, so a variant that
    learns new categories worse has a lower FM for that reason alone; categories of the base step do not have this
    fault where all variants start from the same model.

    Parameters
    ----------
    rows : DataFrame
        Result rows.
    clean : str
        The method with which the variants are compared, seed by seed.
    variants : sequence of str
    setting : str
        With a base step and two increments or more.

    Returns
    -------
    DataFrame
        modality, method, seeds, and the change of FM of image AUROC in points with its 95 % interval over seeds:
        of the base step's categories, of later ones, of all.
    """
    rows = rows[(rows["setting"] == setting) & (rows["metric"] == "i_auroc")]
    first = rows.groupby([*RUN_COLUMNS, "category"])["step"].transform("min")
    parts = {"base categories": first == 0, "later categories": first > 0, "all": first >= 0}
    lines = []
    for modality, own in rows.groupby("modality", sort=False):
        for name in variants:
            found = {
                part: paired((own[chosen.loc[own.index]], name, clean, setting))
                for part, chosen in parts.items()
            }
            if any("fm_i_auroc" not in change.index for change in found.values()):
                continue
            change = {part: table.loc["fm_i_auroc"] for part, table in found.items()}
            line = {"modality": modality, "method": name, "seeds": int(change["all"]["n"])}
            for part, value in change.items():
                line[part] = interval_text(*value[["mean", "low", "high"]])
            lines.append(line)
    return pd.DataFrame(lines, columns=["modality", "method", "seeds", *parts])


def doses(
    rows: pd.DataFrame, methods: Mapping[str, MethodConfig], clean: str, setting: str
) -> pd.DataFrame:
    """What each dose of a perturbation changes in a method's results, paired over seeds.

    Parameters
    ----------
    rows : DataFrame
        Result rows of one modality.
    methods : mapping
        Methods of the study by name; doses are named "CLEAN+..." and change training images alone, with
        backgrounds of other categories.
    clean : str
        The method without perturbation.
    setting : str

    Returns
    -------
    DataFrame
        kind ("noise", "backgrounds", "both"), dose, metric, mean, low, high (points), n; dose 0 changes nothing.
    """
    found = []
    for name, method in methods.items():
        noise, background = method.perturb.redundant, method.perturb.spurious
        elsewhere = method.perturb.donors != "categories" or method.perturb.test
        if not name.startswith(f"{clean}+") or elsewhere:
            continue
        kind = "both" if noise and background else "noise" if noise else "backgrounds"
        change = paired((rows, name, clean, setting)).reset_index()
        if change.empty:  # not run
            continue
        dose = max(noise, background)
        found += [
            change.assign(kind=kind, dose=dose),
            change.assign(kind=kind, dose=0.0, mean=0.0, low=0.0, high=0.0),
        ]
    kept = ["kind", "dose", "metric", "mean", "low", "high", "n"]
    if not found:
        return pd.DataFrame(columns=kept)
    return pd.concat(found)[kept].drop_duplicates(kept[:3]).sort_values(kept[:2], ignore_index=True)


def interval_text(mean: float, low: float, high: float) -> str:
    """A number with its interval, both already in the unit shown; without one for a single seed."""
    if np.isnan(mean):
        return "undefined"
    mean = round(mean, 1) + 0.0  # no -0.0
    if np.isnan(low):
        return f"{mean:.1f}"
    if high - low < 1e-9:  # a method without randomness
        return f"{mean:.1f} (same for every seed)"
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _column(
    summary: pd.DataFrame,
    metric: str,
    setting: str,
    lines: Sequence[tuple[str, str]],
    grid: set[tuple[str, str, str]],
    dataset: str,
) -> list[Markup]:
    """One column of `paper_table`; a cell that is not asked for is empty."""
    chosen = (summary["metric"] == metric) & (summary["setting"] == setting)
    found = summary[chosen].set_index(["modality", "method"])
    best = _best(found, metric)
    asked = pd.DataFrame(lines, columns=["modality", "method"])
    asked = asked.assign(setting=setting, metric=metric, dataset=dataset, category=MEAN)
    paper = (100 * beside_paper(asked)["paper"]).tolist()
    cells = []
    for (modality, method), printed in zip(lines, paper, strict=True):
        if (modality, method) in found.index:
            row = found.loc[modality, method]
            cell = mean_and_sd(100 * row["mean"], 100 * row["sd"], (modality, method) in best)
        elif (modality, setting, method) in grid and not _cannot(
            metric, summary, setting, modality, method
        ):
            cell = fill('<span class="missing">{}</span>', NOT_RUN)
        else:
            cell = Markup("")
        if cell and not np.isnan(printed):
            cell += fill(' <span class="paper">{}</span>', f"{printed:.1f}")
        cells.append(cell)
    return cells


def _cannot(metric: str, summary: pd.DataFrame, setting: str, modality: str, method: str) -> bool:
    """Whether the runs are there and have nothing of this metric: one step forgets nothing, not all classify."""
    run = (summary["setting"] == setting) & (summary["modality"] == modality)
    possible = metric.startswith(CONTINUAL) or metric == "accuracy"
    return possible and bool((run & (summary["method"] == method)).any())


def _best(found: pd.DataFrame, metric: str) -> set[tuple[str, str]]:
    """Methods of each modality with the best mean as it is printed; none where there is one method only.

    Those with the most seeds compete: another seed may be other data.
    """
    found = found[found["n"] == found.groupby("modality")["n"].transform("max")]
    shown = (100 * found["mean"]).round(1)
    best: set[tuple[str, str]] = set()
    for _, part in shown.groupby("modality"):
        end = part.min() if metric.startswith(LESS_IS_BETTER) else part.max()
        best |= set(part.index[part == end]) if len(part) > 1 else set()
    return best


def mean_and_sd(mean: float, sd: float, best: bool = False, digits: int = 1) -> Markup:
    """Text of a cell: ``87.0 ± 0.6``, or the mean alone of a single seed."""
    if np.isnan(mean):
        return Markup("undefined")
    text = f"{round(mean, digits) + 0.0:.{digits}f}"  # no -0.0
    text += "" if np.isnan(sd) else f" ± {sd:.{digits}f}"
    return fill("<b>{}</b>" if best else "{}", text)


def _seeds_text(summary: pd.DataFrame, line: tuple[str, str]) -> str:
    n = summary[(summary["modality"] == line[0]) & (summary["method"] == line[1])]["n"]
    if n.empty:
        return "0"
    return f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"


def _one_value(table: pd.DataFrame, study: StudyConfig) -> pd.DataFrame:
    """The table without the columns of which the study has one value."""
    single = {"modality": study.modalities, "setting": study.settings}
    return table.drop(columns=[name for name, values in single.items() if len(values) == 1])


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    if rows.empty:
        return pd.DataFrame(columns=[*CELL, "metric", "mean", "sd", "n", "low", "high"])
    return summarise(pd.concat([final_table(rows), _new_at_once(rows)]), [*CELL, "metric"])


def _new_at_once(rows: pd.DataFrame) -> pd.DataFrame:
    """What runs of one step reach on categories that others of their setting learn in increments, as `new_*`."""
    runs = rows.groupby(RUN_COLUMNS)["step"]
    first = rows.groupby([*RUN_COLUMNS, "category"])["step"].transform("min")
    same = [name for name in RUN_COLUMNS if name not in ("run_id", "method")]
    later = rows.loc[first > runs.transform("min"), [*same, "category"]].drop_duplicates()
    single = rows[(runs.transform("max") == 0) & rows["metric"].isin(FRACTIONS)]
    groups = single.merge(later, on=list(later)).groupby([*RUN_COLUMNS, "metric"], sort=False)
    means = groups["value"].mean().reset_index()
    return means.assign(category=MEAN, metric="new_" + means["metric"].astype(str))


def _code(steps: pd.DataFrame) -> list[str]:
    changed = steps["modified"].map({"True": " (modified)"}).fillna("")
    return (steps["commit"].replace("", "no checkout").str[:10] + changed).tolist()


def _distinct(values: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if str(value) not in ("", "nan")))
