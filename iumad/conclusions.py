"""What paired tests say, in words: for the ends of the pages."""

from typing import Any

import pandas as pd

from iumad.comparisons import NOT_RUN
from iumad.statistics import CONFIDENCE

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
