"""Contrasts between results, each with its estimate, its verdict and the gates of the models that it compares.

A contrast is a sum of results with signs that is positive where it speaks for the statement. It is computed for
every seed from means over categories; `iumad.study.statistics.judge` gives the verdict. Pages and the list of
claims use the same function.

A model that misses a gate was not trained enough to be judged, and that is the verdict. Three questions about
every method, modality and setting, all asked of each category right after the step that learnt it, so that
forgetting, which is an outcome, is not taken for a lack of training, and of every seed, so that a mean does not
hide one that did not train:

- *floors*: is image AUROC at least 10 points above the best of the floors, methods without training (`floor-*`)?
- *classifier*: does the method name the right category for at least 95 % of good test images?
- *new categories*: is image AUROC of the increments' categories within 5 points of that of the same method when it
  learns all categories at once (its run of one step, else `joint`)?

A gate whose runs are absent is *not measured*, and is taken as missed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from iumad.study.results import (
    LABELS,
    MEAN,
    RUN_COLUMNS,
    as_learnt,
    final_table,
    paper_results,
)
from iumad.study.statistics import (
    CONTRADICTED,
    MARGIN,
    NO_DIFFERENCE,
    SUPPORTED,
    UNDECIDED,
    UNTRAINED,
    judge,
)

MET, MISSED, UNMEASURED, INAPPLICABLE = "met", "missed", "not measured", "does not apply"
FLOOR, JOINT = "floor-", "joint"  # method names
METRIC, ACCURACY = "i_auroc", "accuracy"
ABOVE_FLOORS, RIGHT, BELOW_JOINT = 0.10, 0.95, 0.05

_CELL = ["method", "modality", "setting"]
_GATE_COLUMNS = [*_CELL, "gate", "value", "needed", "state", "text"]


def measure_gates(rows: pd.DataFrame, references: pd.DataFrame | None = None) -> pd.DataFrame:
    """Measure all gates of all methods of a study.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows (`iumad.study.results.ROW_SCHEMA`) of the study.
    references : pandas.DataFrame, optional
        Rows of other studies with the same data and training: their floors count too, and runs of one step are
        looked for in them where the study has none.

    Returns
    -------
    pandas.DataFrame
        method, modality, setting, gate, value (of the worst seed), needed, state ("met", "missed", "not measured"
        or "does not apply"), text. Floors have no line.
    """
    if rows.empty:
        return pd.DataFrame(columns=_GATE_COLUMNS)
    own = _learnt(rows)
    other = own if references is None else _learnt(references)
    records = []
    for cell in own.levels:
        if not cell[0].startswith(FLOOR):
            for gate, measured in {
                "floors": _above_floors(cell, own, other),
                "classifier": _classifier(cell, own),
                "new categories": _below_joint(cell, own, other),
            }.items():
                records.append((*cell, gate, *measured))
    return pd.DataFrame(records, columns=_GATE_COLUMNS)


def of_cells(gates: pd.DataFrame, cells: list[tuple[str, str, str]]) -> pd.DataFrame:
    """The gates of some (method, modality, setting); a cell without rows has none."""
    return gates[pd.MultiIndex.from_frame(gates[_CELL]).isin(cells)]


@dataclass(frozen=True)
class _Learnt:
    """What each category reached right after the step that learnt it, by cell (method, modality, setting).

    Attributes
    ----------
    levels, accuracies : dict
        Cell -> mean over categories of image AUROC, and of the classifier's accuracy, by seed.
    new : dict
        Cell -> image AUROC of the increments' categories, by seed and category.
    at_once : dict
        Method and modality -> image AUROC of runs of one step, by seed and category.
    """

    levels: dict[tuple, pd.Series]
    accuracies: dict[tuple, pd.Series]
    new: dict[tuple, pd.Series]
    at_once: dict[tuple, pd.Series]


def _learnt(rows: pd.DataFrame) -> _Learnt:
    rows = rows[rows["metric"].isin([METRIC, ACCURACY])]
    steps = rows.groupby(RUN_COLUMNS)["step"]
    first, last = steps.transform("min"), steps.transform("max")
    table = as_learnt(rows.assign(later=rows["step"] > first, single=first == last))
    scores, named = table[table["metric"] == METRIC], table[table["metric"] == ACCURACY]
    new, at_once = scores[scores["later"]], scores[scores["single"]]

    def means(part: pd.DataFrame) -> dict[tuple, pd.Series]:
        return {
            keys: cell.groupby("seed")["value"].mean(skipna=False)
            for keys, cell in part.groupby(_CELL, sort=False)
        }

    def values(part: pd.DataFrame, by: list[str]) -> dict[tuple, pd.Series]:
        return {
            keys: cell.drop_duplicates(["seed", "category"]).set_index(["seed", "category"])[
                "value"
            ]
            for keys, cell in part.groupby(by, sort=False)
        }

    return _Learnt(means(scores), means(named), values(new, _CELL), values(at_once, _CELL[:2]))


def _above_floors(cell: tuple[str, str, str], own: _Learnt, other: _Learnt) -> tuple:
    method, modality, setting = cell
    floors = {
        keys: values
        for source in (other, own)
        for keys, values in source.levels.items()
        if keys[0].startswith(FLOOR) and keys[1] == modality
    }
    here = {keys: values for keys, values in floors.items() if keys[2] == setting}
    gains = pd.DataFrame(
        {name: own.levels[cell] - values for (name, *_), values in (here or floors).items()}
    )
    least = gains.min(axis=1).dropna()
    if least.empty:
        return _unmeasured(f"{method} ({modality}): no floors of its seeds")
    gain, seed = least.min(), least.idxmin()
    name = gains.loc[seed].idxmin()
    text = f"{_named(cell, seed)} is {100 * gain:.2f} points above {name} as learnt, 10 are needed"
    return _measured(gain, ABOVE_FLOORS, text)


def _classifier(cell: tuple[str, str, str], own: _Learnt) -> tuple:
    method, modality, _ = cell
    if not own.accuracies:
        return _unmeasured(f"{method} ({modality}): accuracy of the classifier")
    if cell not in own.accuracies:
        return np.nan, RIGHT, INAPPLICABLE, f"{method} has no classifier"
    accuracies = own.accuracies[cell].dropna()
    if accuracies.empty:
        return _unmeasured(f"{method} ({modality}): accuracy of the classifier after every step")
    accuracy, seed = accuracies.min(), accuracies.idxmin()
    text = (
        f"{_named(cell, seed)} names {100 * accuracy:.1f} % of good images right, 95 % are needed"
    )
    return _measured(accuracy, RIGHT, text)


def _below_joint(cell: tuple[str, str, str], own: _Learnt, other: _Learnt) -> tuple:
    method, modality, _ = cell
    if cell not in own.new:
        return np.nan, -BELOW_JOINT, INAPPLICABLE, f"{method} learns all categories at once"
    new = own.new[cell]
    for name in (method, JOINT):
        for source in (own, other):
            if (name, modality) in source.at_once:
                gaps = new - source.at_once[name, modality].reindex(new.index)
                gaps = gaps.groupby("seed").mean().dropna()
                if gaps.empty:
                    continue
                gap, seed = gaps.min(), gaps.idxmin()
                whose = JOINT if name == JOINT else "its joint training"
                text = (
                    f"{_named(cell, seed)} is {100 * gap:+.1f} points from {whose} on new categories, "
                    f"-5 is allowed"
                )
                return _measured(gap, -BELOW_JOINT, text)
    return _unmeasured(f"{method} ({modality}): no run of its seeds learns all categories at once")


def _named(cell: tuple[str, str, str], seed: Any) -> str:
    method, modality, setting = cell
    return f"{method} ({modality}, {setting}, seed {seed})"


def _measured(value: float, needed: float, text: str) -> tuple:
    return value, needed, MET if value >= needed else MISSED, text


def _unmeasured(text: str) -> tuple:
    return np.nan, np.nan, UNMEASURED, text


NOT_RUN = "not run"
VALUE_COLUMNS = ["method", "modality", "setting", "seed", "metric", "value"]
RELATIVE_MARGIN = 0.05  # of what lies above the floor: one point of twenty
RATIO_MARGIN = float(np.log2(1.05))  # 5 % in a ratio


class Term(NamedTuple):
    """One result with its sign."""

    sign: int
    method: str
    modality: str


class Harm(NamedTuple):
    """What a perturbation takes away of what lies above the floor: (clean - noisy) / (clean - best floor).

    Missing for a seed whose clean result does not end `ABOVE_FLOORS` above its best floor: nothing has no share.
    """

    sign: int
    clean: str
    noisy: str
    modality: str


@dataclass(frozen=True)
class Contrast:
    """Sum of results of one setting and metric.

    Attributes
    ----------
    terms : tuple of Term (or plain tuples like them) and Harm
        Written for a metric of which more is better; for forgetting and memory all signs are turned.
    setting, metric : str
        A metric of `iumad.study.results.final_table`, or "log2 ..." of the efficiency table.
    paper_names : mapping
        Method here -> method in the paper, where the names differ.
    exempt : tuple of str
        Methods that need not pass the gates: those whose harm is the question.
    """

    terms: tuple[Term | Harm, ...]
    setting: str
    metric: str
    paper_names: Mapping[str, str] = field(default_factory=dict)
    exempt: tuple[str, ...] = ()

    @property
    def key(self) -> tuple:
        """What is computed: contrasts of one key have the same numbers."""
        return frozenset(self.terms), self.setting, self.metric

    @property
    def turned(self) -> "Contrast":
        """The opposite statement."""
        return replace(self, terms=tuple(t._replace(sign=-t.sign) for t in self.terms))

    @property
    def sign(self) -> int:
        """-1 where less is better."""
        return -1 if self.metric.startswith("fm_") or self.metric == "log2 size" else 1

    @property
    def relative(self) -> bool:
        """Whether it is a share of what lies above the floor."""
        return any(isinstance(term, Harm) for term in self.terms)

    @property
    def unit(self) -> str:
        """Unit of the numbers shown."""
        if self.relative:
            return "% of what is above the floor"
        return "points" if self.scale == 100 else "doublings"

    @property
    def scale(self) -> int:
        """Factor from the stored value to the one shown."""
        return 100 if self.metric in LABELS else 1

    @property
    def margin(self) -> float:
        """What is no difference, in the unit of the stored value."""
        if self.relative:
            return RELATIVE_MARGIN
        return MARGIN if self.scale == 100 else RATIO_MARGIN

    @property
    def name(self) -> str:
        """What is compared, e.g. "image AUROC, rgb+depth, 6-1"."""
        modalities = " / ".join(dict.fromkeys(term.modality for term in self.terms))
        share = ", share above the floor" if self.relative else ""
        return f"{LABELS.get(self.metric, self.metric)}{share}, {modalities}, {self.setting}"

    @property
    def gated(self) -> list[tuple[str, str, str]]:
        """(method, modality, setting) of all results that have to pass the gates."""
        found = [
            (method, term.modality, self.setting)
            for term in self.terms
            for method in _methods(term)
        ]
        return [cell for cell in dict.fromkeys(found) if cell[0] not in self.exempt]


@dataclass(frozen=True)
class Evidence:
    """What a study has to be judged by.

    Attributes
    ----------
    rows : pandas.DataFrame
        Its result rows, `iumad.study.results.ROW_SCHEMA`; empty for measured costs.
    values : pandas.DataFrame
        `VALUE_COLUMNS`: means over categories after the last step, forgetting, plasticity; or costs.
    gates : pandas.DataFrame
        `iumad.study.verdicts.measure_gates`.
    """

    rows: pd.DataFrame
    values: pd.DataFrame
    gates: pd.DataFrame


def evidence_of(
    rows: pd.DataFrame,
    references: pd.DataFrame | None = None,
    unconditioned: Sequence[str] = (),
) -> Evidence:
    """Evidence from the result rows of one study; `references` as in `iumad.study.verdicts.measure_gates`.

    Methods of `unconditioned` have no condition network, so that the gate of the classifier does not apply: the
    accuracy in their rows is that of the head behind the bottleneck, at which no other method is judged.
    """
    known = rows
    if references is not None and len(rows):  # a share above the floor needs the floor's values too
        floors = references[references["method"].str.startswith(FLOOR)]
        known = pd.concat([rows, floors[~floors["run_id"].isin(rows["run_id"])]], ignore_index=True)
    values = final_table(known) if len(known) else pd.DataFrame(columns=VALUE_COLUMNS)
    values = values.drop_duplicates(VALUE_COLUMNS[:-1])  # two studies may have one floor
    judged = rows
    if unconditioned and len(rows):
        judged = rows[(rows["metric"] != ACCURACY) | ~rows["method"].isin(unconditioned)]
    return Evidence(rows, values[VALUE_COLUMNS], measure_gates(judged, references))


def evidence_of_costs(values: pd.DataFrame) -> Evidence:
    """Evidence from measured costs (`VALUE_COLUMNS`), which no gate concerns."""
    return Evidence(pd.DataFrame(), values, measure_gates(pd.DataFrame()))


def judge_contrasts(
    families: Mapping[str, Sequence[Contrast]], evidence: Evidence, paper_dataset: str = "mvtec3d"
) -> pd.DataFrame:
    """Judge contrasts; Holm's correction goes over the contrasts of one family and one metric.

    Parameters
    ----------
    families : mapping
        Name of a family -> its contrasts, whether they have been run or not.
    evidence : Evidence
    paper_dataset : str
        Of the paper's data sets, the one whose differences are put beside ours.

    Returns
    -------
    pandas.DataFrame
        One row a contrast: `COLUMNS`, families in order. Numbers are in the unit, n counts seeds; a verdict is one
        of `iumad.study.statistics.VERDICTS`, or "not run".
    """
    chosen = [(family, each) for family, contrasts in families.items() for each in contrasts]
    if not chosen:
        return pd.DataFrame(columns=COLUMNS)
    differences = pd.concat(
        [
            _per_seed(contrast, evidence.values).assign(
                place=place, family=family, metric=contrast.metric, margin=contrast.margin
            )
            for place, (family, contrast) in enumerate(chosen)
        ],
        ignore_index=True,
    )
    judged = judge(differences, ["place"], ["family", "metric"]).set_index("place")
    records = []
    for place, (family, contrast) in enumerate(chosen):
        row, paper = judged.loc[place], paper_difference(contrast, paper_dataset)
        numbers = {
            "n": int(row["n"]),
            "estimate": contrast.scale * row["mean"],
            "low": contrast.scale * row["low"],
            "high": contrast.scale * row["high"],
            "p": row["p"],
            "p_holm": row["p_holm"],
            "m": int(row["m"]),
            "detectable": contrast.scale * row["detectable"],
            "paper": contrast.scale * paper,
        }
        gates = of_cells(evidence.gates, contrast.gated)
        verdict, reason = _with_gates(row["verdict"], numbers, contrast, gates, evidence.values)
        labels = (family, contrast.name, _compared(contrast), *_place(contrast))
        records.append((*labels, *numbers.values(), verdict, _gates_text(gates), reason))
    return pd.DataFrame(records, columns=COLUMNS)


COLUMNS = [
    *("family", "test", "compared", "modality", "setting", "metric", "unit"),
    *("n", "estimate", "low", "high", "p", "p_holm", "m", "detectable", "paper"),
    *("verdict", "gates", "reason"),
]


def against(
    evidence: Evidence, reference: str, metrics: Sequence[str], exempt: tuple[str, ...] = ()
) -> list[tuple[str, str, Contrast]]:
    """Contrasts of every method with a reference in the same modality and setting: family, method, contrast.

    A family is one cell of the grid; floors are no competitors and left out. Methods of which a part of the name
    is in `exempt` need not pass the gates.
    """
    values = evidence.values[evidence.values["metric"].isin(list(metrics))]
    cells = values.drop_duplicates(["modality", "setting", "metric", "method"])
    found = []
    for (modality, setting, metric), part in cells.groupby(
        ["modality", "setting", "metric"], sort=False
    ):
        methods = [name for name in part["method"] if not name.startswith(FLOOR)]
        if reference in methods:
            for method in methods:
                terms = (Term(1, method, modality), Term(-1, reference, modality))
                free = tuple(n for n in (method, reference) if any(part in n for part in exempt))
                if method != reference:
                    family = f"against {reference}, {modality}, {setting}"
                    found.append((family, method, Contrast(terms, setting, metric, exempt=free)))
    return found


def turned_row(row: dict) -> dict:
    """A row of `judge_contrasts` as it is for the opposite statement."""
    words = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}
    numbers = {"estimate": -row["estimate"], "low": -row["high"], "high": -row["low"]}
    return (
        row
        | numbers
        | {"paper": -row["paper"], "verdict": words.get(row["verdict"], row["verdict"])}
    )


def paper_difference(contrast: Contrast, dataset: str) -> float:
    """The paper's value of a contrast, as a fraction; missing where it does not print one of the terms."""
    printed, total = _printed(dataset), 0.0
    for term in contrast.terms:
        if isinstance(term, Harm):
            return float("nan")
        name = contrast.paper_names.get(term.method, term.method).lower()
        value = printed.get((name, term.modality, contrast.setting, contrast.metric), float("nan"))
        total += contrast.sign * term.sign * value
    return total / contrast.scale


@lru_cache
def _printed(dataset: str) -> dict[tuple[str, str, str, str], float]:
    """The paper's means over categories by method (in lower case), modality, setting and metric."""
    table = paper_results()
    table = table[(table["dataset"] == dataset) & (table["category"] == MEAN)]
    keys = zip(
        table["method"].str.lower(),
        table["modality"],
        table["setting"],
        table["metric"],
        strict=True,
    )
    # Where two tables of the paper print one quantity, the first is taken.
    return dict(reversed(list(zip(keys, table["value"].astype(float), strict=True))))


def interval_text(low: float, high: float) -> str:
    """An interval in the unit shown."""
    return f"[{low:.1f}, {high:.1f}]"


def _per_seed(contrast: Contrast, values: pd.DataFrame) -> pd.DataFrame:
    """The contrast of every seed; missing where a term is, and one missing value where nothing was run."""
    cell = values[(values["setting"] == contrast.setting) & (values["metric"] == contrast.metric)]
    total = _sum_of(contrast, cell)
    if total.empty:
        return pd.DataFrame({"seed": [0], "value": [np.nan]})
    return total.rename("value").rename_axis("seed").reset_index()


def _sum_of(contrast: Contrast, cell: pd.DataFrame) -> pd.Series:
    total: pd.Series | float = 0.0
    for term in contrast.terms:
        if isinstance(term, Harm):
            part = cell[cell["modality"] == term.modality]
            clean, noisy = (_of(part, name) for name in (term.clean, term.noisy))
            floors = part[part["method"].str.startswith(FLOOR)].groupby("seed")["value"].max()
            above = (clean - floors).where(lambda points: points >= ABOVE_FLOORS)
            value = (clean - noisy) / above
        else:
            value = _of(cell[cell["modality"] == term.modality], term.method)
        total = total + contrast.sign * term.sign * value
    assert isinstance(total, pd.Series)
    return total


def _of(part: pd.DataFrame, method: str) -> pd.Series:
    return part[part["method"] == method].set_index("seed")["value"]


def _with_gates(
    verdict: str, numbers: dict, contrast: Contrast, gates: pd.DataFrame, values: pd.DataFrame
) -> tuple[str, str]:
    """The final verdict and its reason."""
    if numbers["n"] == 0:
        absent = _absent(contrast, values)
        if not absent and any(isinstance(term, Harm) for term in contrast.terms):
            points = f"{100 * ABOVE_FLOORS:.0f} points above the best floor"
            return UNDECIDED, f"no share can be given: in no seed do all clean results end {points}"
        return NOT_RUN, f"not run: {', '.join(absent) or 'any seed of all'}"
    missed = gates[gates["state"] == MISSED]["text"]
    if len(missed):
        return UNTRAINED, "; ".join(missed)
    unmeasured = gates[gates["state"] == UNMEASURED]["text"]
    if len(unmeasured):
        return UNTRAINED, f"not shown to be trained enough, not measured: {'; '.join(unmeasured)}"
    return verdict, _reason(verdict, numbers, contrast)


def _absent(contrast: Contrast, values: pd.DataFrame) -> list[str]:
    """Which results of a contrast do not exist."""
    cell = values[values["setting"] == contrast.setting]
    have = set(zip(cell["method"], cell["modality"], strict=True))
    needed = [(method, term.modality) for term in contrast.terms for method in _methods(term)]
    absent = [
        f"{m} ({modality})" for m, modality in dict.fromkeys(needed) if (m, modality) not in have
    ]
    for term in contrast.terms:
        if isinstance(term, Harm):
            floors = any(m.startswith(FLOOR) for m, modality in have if modality == term.modality)
            absent += [] if floors else [f"floors ({term.modality})"]
    return absent


def _methods(term: Term | Harm) -> tuple[str, ...]:
    return (term.clean, term.noisy) if isinstance(term, Harm) else (term.method,)


def _reason(verdict: str, numbers: dict, contrast: Contrast) -> str:
    if numbers["n"] < 2:
        return "one seed has no interval"
    low, high, m = numbers["low"], numbers["high"], numbers["m"]
    where, margin = interval_text(low, high), contrast.scale * contrast.margin
    unit = contrast.unit.split()[0].rstrip("s") if abs(margin) == 1 else contrast.unit.split()[0]
    corrected = f", p = {numbers['p_holm']:.2g} after correction for {m}" if m > 1 else ""
    if verdict == NO_DIFFERENCE:
        return f"{where} lies inside ± {margin:.2g} {unit}"
    if verdict in (SUPPORTED, CONTRADICTED):
        side = "above" if verdict == SUPPORTED else "below"
        small = max(abs(low), abs(high)) < margin
        little = f", but it is smaller than {margin:.2g} {unit}" if small else ""
        return f"{where} is {side} 0{corrected}{little}"
    assert verdict == UNDECIDED
    reason = (
        f"{where} has 0 in it" if low <= 0 <= high else f"{where} does not have 0 in it{corrected}"
    )
    if numbers["paper"] > high:
        reason += "; a difference as large as the paper's lies above it"
    elif abs(numbers["paper"]) < numbers["detectable"]:
        reason += "; the paper's own difference is smaller than these runs could show"
    return reason


def _gates_text(gates: pd.DataFrame) -> str:
    states = gates.groupby("state", sort=False)["text"]
    return "; ".join(f"{state}: {', '.join(texts)}" for state, texts in states)


def _compared(contrast: Contrast) -> str:
    """What is subtracted from what, e.g. "ib-iumad - iuf", with modalities where they differ."""
    several = len({term.modality for term in contrast.terms}) > 1
    parts: list[str] = []
    for term in sorted(contrast.terms, key=lambda term: -contrast.sign * term.sign):
        sign = "-" if contrast.sign * term.sign < 0 else "+" if parts else ""
        name = f"harm({term.clean} to {term.noisy})" if isinstance(term, Harm) else term.method
        parts.append(f"{sign} {name}{f' ({term.modality})' if several else ''}".strip())
    return " ".join(parts)


def _place(contrast: Contrast) -> tuple[str, str, str, str]:
    modalities = " / ".join(dict.fromkeys(term.modality for term in contrast.terms))
    return modalities, contrast.setting, contrast.metric, contrast.unit
