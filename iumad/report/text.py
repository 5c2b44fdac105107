"""The answer on the book's first page: five lines, every number of which comes from the result rows.

What paired tests say, in words: for the ends of the pages.
"""

from html import escape
from typing import Any

import numpy as np
import pandas as pd

from iumad.report.comparisons import NOT_RUN
from iumad.study.results import final_table, paper_results
from iumad.study.statistics import CONFIDENCE, summarise

VERDICTS = (BETTER, WORSE, EQUAL, UNJUDGED) = (
    "better",
    "worse",
    "not told apart from it",
    "one seed, no claim",
)


def told(tests: pd.DataFrame, reference: str) -> str:
    """Markdown: one line a comparison of `paired_table`, and whether the difference can be told from chance.

    The categories of a single seed share one model, so that they say nothing about the next: no verdict is given.
    """
    if tests.empty:
        return _nothing(reference)
    return "\n".join(
        f"- {row.modality}, {row.setting}, `{row.method}` against `{reference}`, {row.metric}: "
        f"{row.difference:+.1f} points [{row.low:+.1f}, {row.high:+.1f}], n = {row.n}, "
        f"p (Holm) {row.p_holm:.2g}: **{_verdict(row)}**"
        for row in tests.itertuples()
    )


def sorted_out(tests: pd.DataFrame, reference: str) -> str:
    """Markdown: the same verdicts for many methods, one line for each modality, setting and metric."""
    if tests.empty:
        return _nothing(reference)
    lines = []
    for keys, part in tests.groupby(["modality", "setting", "metric"], sort=False):
        found: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
        for row in part.itertuples():
            found[_verdict(row)].append(f"`{row.method}`")
        named = [f"{verdict}: {', '.join(names)}" for verdict, names in found.items() if names]
        lines.append(f"- {', '.join(keys)}, against `{reference}`: " + "; ".join(named))
    return "\n".join(lines)


def _verdict(row: Any) -> str:
    if row.seeds < 2:
        return UNJUDGED
    if row.p_holm >= 1 - CONFIDENCE or row.low * row.high <= 0:
        return EQUAL
    less_is_better = row.metric.startswith("FM")
    return BETTER if (row.difference > 0) != less_is_better else WORSE


def _nothing(reference: str) -> str:
    return f"Nothing can be compared with `{reference}` yet: {NOT_RUN}, or fewer than two pairs."


OURS, BASELINE, REFERENCE = "ib-iumad", "iuf", "memory-bank"
PAPER_DATASET = "mvtec3d"
NAMES = {
    "i_auroc": "image AUROC",
    "aupro": "AUPRO",
    "fm_i_auroc": "forgetting of image AUROC",
    "fm_aupro": "forgetting of AUPRO",
}


def answer(rows: pd.DataFrame) -> list[str]:
    """Answer the book's question from the rows of one setting and modality, in five lines of plain text.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows (`iumad.study.results.ROW_SCHEMA`) of one data set, setting and modality; may be empty.

    Returns
    -------
    list of str
        What was run; the accuracy; the difference in accuracy; the difference in forgetting; what the paper found.
        One line that says so if a method that the answer needs is missing.
    """
    missing = [name for name in (OURS, BASELINE) if name not in set(rows["method"])]
    if missing:
        return [f"Not answered yet: no finished run of {' and '.join(missing)}."]
    final = final_table(rows)
    first = rows.iloc[0]
    n_seeds = int(rows.groupby("method")["seed"].nunique().loc[[OURS, BASELINE]].min())
    steps = int(rows["step"].max()) + 1
    return [
        f"Asked of profile {first['profile']}: {first['dataset']}, setting {first['setting']} "
        f"({steps} step{'s' * (steps > 1)}), {first['modality']}, {n_seeds} seed{'s' * (n_seeds > 1)}.",
        f"After the last step: {_values(final, 'i_auroc')}; {_values(final, 'aupro')}.",
        _compared(final, ["i_auroc", "aupro"]),
        _compared(final, ["fm_i_auroc", "fm_aupro"])
        if steps > 1
        else "One step, so nothing can be forgotten.",
        _paper(first["setting"], first["modality"]),
    ]


def as_html(lines: list[str]) -> str:
    """The lines as an html list."""
    return f'<ol class="answer">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ol>'


def _values(final: pd.DataFrame, metric: str) -> str:
    summary = summarise(final[final["metric"] == metric], ["method"])
    shown = summary[summary["method"].isin([OURS, BASELINE, REFERENCE])]
    parts = [
        f"{row['method']} {100 * row['mean']:.1f}"
        + ("" if np.isnan(row["sd"]) else f" ± {100 * row['sd']:.1f}")
        for row in shown.to_dict("records")
    ]
    return f"{NAMES[metric]} {', '.join(parts)} %"


def _compared(final: pd.DataFrame, metrics: list[str]) -> str:
    said = [_difference(final[final["metric"] == metric], metric) for metric in metrics]
    return f"{OURS} minus {BASELINE}: {'; '.join(said)}."


def _difference(final: pd.DataFrame, metric: str) -> str:
    """Mean difference over the seeds that both have, its 95 % t interval, and what it allows to say."""
    wide = final.pivot(index="seed", columns="method", values="value")  # noqa: PD010
    pairs = (100 * (wide[OURS] - wide[BASELINE])).dropna().rename("value").reset_index()
    (row,) = summarise(pairs.assign(metric=metric), ["metric"]).to_dict("records")
    text = f"{NAMES[metric]} {row['mean']:+.1f} points"
    if row["n"] < 2:
        return f"{text} (one seed: no interval, no claim)"
    verdict = "not told apart" if row["low"] <= 0 <= row["high"] else "a difference"
    return f"{text} [{row['low']:+.1f}, {row['high']:+.1f}] ({verdict})"


def _paper(setting: str, modality: str) -> str:
    """The paper's own difference, where it has these cells."""
    table = paper_results()
    cell = table[
        (table["dataset"] == PAPER_DATASET)
        & (table["setting"] == setting)
        & (table["modality"] == modality)
        & (table["category"] == "mean")
    ].assign(method=table["method"].str.lower())
    found = []
    for metric in ("i_auroc", "fm_i_auroc"):
        values = (
            cell[cell["metric"] == metric].drop_duplicates("method").set_index("method")["value"]
        )
        if {OURS, BASELINE} <= set(values.index):
            found.append(f"{NAMES[metric]} {values[OURS] - values[BASELINE]:+.1f} points")
    if not found:
        return f"The paper has no such comparison for setting {setting} with {modality}."
    return (
        f"The paper, on MVTec 3D-AD in this setting, {OURS} minus {BASELINE}: {', '.join(found)}. "
        "Another data set, another size: compare directions, not digits."
    )
