"""Two studies side by side: which keys differ, which numbers, which trained steps they share; also as a page."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from iumad.config.schema import RunConfig, StudyConfig
from iumad.report.style import Html, box, fill, fold, table
from iumad.study.load import load_rows
from iumad.study.results import final_table
from iumad.study.statistics import MARGIN, judge
from iumad.study.steps import steps_of

CELL = ["method", "modality", "setting"]
METRICS = ("i_auroc", "p_auroc", "aupro", "fm_i_auroc", "new_i_auroc")
ALL, ABSENT = "all", "-"  # methods; in the place of a key that a run does not have
LABELS = {"profile", "method", "modality", "setting", "seed"}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 66rem; color: #222; }}
.box {{ border-left: 4px solid #0072b2; background: #f4f4f4; padding: .5em 1em; }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }}
.number {{ text-align: right; }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes
    ----------
    keys : DataFrame
        method ("all" where every method that both have changes alike), key, first, second.
    numbers : DataFrame
        method, modality, setting, metric; first and second, means in percent over the n seeds that both have;
        difference (second minus first, points) with low and high, its 95 % interval over seeds.
    shared : DataFrame
        method, modality, setting, seeds (how many); steps of the first and of the second, and how many trained
        steps are the same.
    finished : (int, int)
        Runs of the first and of the second that have numbers.
    """

    keys: pd.DataFrame
    numbers: pd.DataFrame
    shared: pd.DataFrame
    finished: tuple[int, int]


def compare(
    first: StudyConfig,
    second: StudyConfig,
    first_results: str | Path,
    second_results: str | Path,
) -> Comparison:
    """Compare two studies, or one study in two results folders; nothing is trained.

    Runs of the same method, modality, setting and seed are compared with each other.
    """
    ours, theirs = _labelled(first), _labelled(second)
    common = [label for label in ours if label in theirs]
    keys = _changed_keys({label: (ours[label], theirs[label]) for label in common})
    rows = load_rows(first, first_results), load_rows(second, second_results)
    records = []
    for label in common:
        one, other = (
            [step.key for step in steps_of(run, first_results)]
            for run in (ours[label], theirs[label])
        )
        same = sum(a == b for a, b in zip(one, other, strict=False))
        records.append((*label[:3], 1, len(one), len(other), same))
    columns = [*CELL, "seeds", "steps first", "steps second", "shared"]
    shared = pd.DataFrame(records, columns=columns).groupby(CELL, sort=False).sum().reset_index()
    one, other = (table["run_id"].nunique() for table in rows)
    return Comparison(keys, _changed_numbers(*rows), shared, (one, other))


def _labelled(study: StudyConfig) -> dict[tuple, RunConfig]:
    return {(run.method, run.modality, run.setting, run.seed): run for run in study.runs()}


def _changed_keys(pairs: dict[tuple, tuple[RunConfig, RunConfig]]) -> pd.DataFrame:
    changed: dict[str, dict[tuple[str, str, str], None]] = {}
    for (method, *_), runs in pairs.items():
        one, other = (dict(_flat(run.model_dump(mode="json", exclude=LABELS))) for run in runs)
        lines = changed.setdefault(method, {})
        for key in dict.fromkeys([*one, *other]):
            before, after = (str(side.get(key, ABSENT)) for side in (one, other))
            if before != after:
                lines[key, before, after] = None
    everywhere = [
        line
        for line in next(iter(changed.values()), {})
        if len(changed) > 1 and all(line in lines for lines in changed.values())
    ]
    records = [(ALL, *line) for line in everywhere]
    for method, lines in changed.items():
        records += [(method, *line) for line in lines if line not in everywhere]
    return pd.DataFrame(records, columns=["method", "key", "first", "second"])


def _flat(content: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _changed_numbers(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    columns = [*CELL, "metric", "first", "second", "n", "difference", "low", "high"]
    if first.empty or second.empty:
        return pd.DataFrame(columns=columns)
    index = [*CELL, "metric", "seed"]
    one, other = (
        table[table["metric"].isin(METRICS)].set_index(index)["value"]
        for table in (final_table(first), final_table(second))
    )
    both = pd.DataFrame({"first": one, "second": other}).dropna().reset_index()
    if both.empty:
        return pd.DataFrame(columns=columns)
    cell = [*CELL, "metric"]
    differences = both.assign(value=both["second"] - both["first"], margin=MARGIN, family="")
    judged = judge(differences, cell, ["family"]).rename(columns={"mean": "difference"})
    means = both.groupby(cell, sort=False)[["first", "second"]].mean().reset_index()
    table = means.merge(judged[[*cell, "n", "difference", "low", "high"]], on=cell)
    percent = ["first", "second", "difference", "low", "high"]
    return table.assign(**{name: 100 * table[name] for name in percent})[columns]


def comparison_page(found: Comparison, first: str, second: str) -> str:
    """Two studies side by side as one html file, named as the reader named them."""
    title = fill("{} (first) and {} (second)", first, second)
    parts: list[Html] = [
        box(comparison_text(found, first, second)),
        _part("Keys that differ", found.keys, "keys"),
        _part("Numbers, in percent and points (second minus first)", found.numbers, "numbers"),
        fold("Trained steps that both share", table(found.shared, csv="shared-steps")),
    ]
    body = fill("{}" * len(parts), *[part.source for part in parts])
    return str(fill(PAGE, title=title, body=body))


def comparison_text(found: Comparison, first: str, second: str) -> list[str]:
    """What a comparison found, in two sentences."""
    steps, same = found.shared["steps second"].sum(), found.shared["shared"].sum()
    told = found.numbers.query("low > 0 or high < 0")
    return [
        f"{len(found.keys)} keys differ between {first} and {second}; they share {same} of {steps} trained steps.",
        f"{len(told)} of {len(found.numbers)} numbers differ by more than their 95 % interval over seeds."
        if len(found.numbers)
        else "No run of both has numbers: {} of {} has some, and {} of {}.".format(
            *(found.finished[0], first, found.finished[1], second)
        ),
    ]


def _part(title: str, frame: pd.DataFrame, name: str) -> Html:
    shown = table(frame, csv=name).source if len(frame) else fill("<p>none</p>")
    return Html(fill("<h2>{}</h2>{}", title, shown))
