"""Claims of the paper tested on result tables: an estimate with its interval, and a verdict for each.

A claim is one or more contrasts, each a sum of results with signs that is positive if the claim is true. It is
computed for every seed, and its interval is the 95 % t interval over seeds:

- *holds*: the whole interval is above 0;
- *does not hold*: the interval reaches 0, and the paper's own difference is above all of it;
- *not testable here*: the interval has both 0 and the paper's difference in it, so that these runs cannot tell
  the two apart; or runs are missing; or no run could decide.

A claim holds if all of its contrasts do (so their number needs no correction); one that does not is enough against
it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from iumad.comparisons import NOT_RUN, SHORT
from iumad.results import FRACTIONS, MEAN, final_table, paper_results
from iumad.statistics import summarise

HOLDS, FAILS, UNTESTABLE = "holds", "does not hold", "not testable here"
MARGIN = 0.01  # one point: what a claim means where the paper prints nothing in its favour


@dataclass(frozen=True)
class Contrast:
    """Sum of results of one setting and metric.

    Attributes
    ----------
    terms : (sign, method, modality), ...
        Written for a metric of which more is better; for forgetting and memory all signs are turned.
    setting, metric : str
        A metric of `iumad.results.final_table`, or "log2 ..." of the efficiency table.
    paper_names : mapping
        Method here -> method in the paper, where the names differ.
    """

    terms: tuple[tuple[int, str, str], ...]
    setting: str
    metric: str
    paper_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def sign(self) -> int:
        """-1 where less is better."""
        return -1 if self.metric.startswith("fm_") or "memory" in self.metric else 1

    @property
    def scale(self) -> int:
        """Factor from the stored value to the one shown."""
        return 100 if self.metric.removeprefix("fm_") in FRACTIONS else 1

    @property
    def name(self) -> str:
        """What is compared, e.g. "image AUROC, rgb+depth, 6-1"."""
        modalities = " / ".join(dict.fromkeys(modality for _, _, modality in self.terms))
        return f"{SHORT.get(self.metric, self.metric)}, {modalities}, {self.setting}"


@dataclass(frozen=True)
class Claim:
    """One statement of the paper.

    Attributes
    ----------
    name, statement, where : str
        A short name, the statement in our words, and where the paper makes it.
    study, page : str
        Params file (without .yaml) whose runs decide, and the notebook that shows them; "" if no run can.
    contrasts : tuple of Contrast
    why_not : str
        For a claim without contrasts: why no run here can decide.
    """

    name: str
    statement: str
    where: str
    study: str = ""
    page: str = ""
    contrasts: tuple[Contrast, ...] = ()
    why_not: str = ""


def evaluate_claims(
    claims: tuple[Claim, ...], tables: Mapping[str, pd.DataFrame], dataset: str = "mvtec3d"
) -> pd.DataFrame:
    """Estimate and judge every contrast of every claim.

    Parameters
    ----------
    claims : tuple of Claim
    tables : mapping
        Study -> its values: method, modality, setting, seed, metric, value (`values_of`); may be empty.
    dataset : str
        Of the paper's data sets, the one whose numbers say how large a difference is claimed.

    Returns
    -------
    DataFrame
        claim, where, test, estimate, low, high, paper (points, or doublings for "log2 ..."), n, verdict, reason.
    """
    rows = []
    for claim in claims:
        if not claim.contrasts:
            why = {"n": 0, "verdict": UNTESTABLE, "reason": claim.why_not}
            rows.append({"claim": claim.name} | why)
        for contrast in claim.contrasts:
            result = _test(contrast, tables.get(claim.study, pd.DataFrame()), claim.study, dataset)
            rows.append({"claim": claim.name, "test": contrast.name, **result})
    columns = ["claim", "test", "estimate", "low", "high", "paper", "n", "verdict", "reason"]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype(dict.fromkeys(["estimate", "low", "high", "paper"], float))


def verdicts(claims: tuple[Claim, ...], table: pd.DataFrame) -> pd.DataFrame:
    """One row a claim: claim, statement, where, verdict, reason, page."""
    records = []
    for claim in claims:
        part = table[table["claim"] == claim.name]
        found = set(part["verdict"])
        verdict = next(v for v in (FAILS, UNTESTABLE, HOLDS) if v in found)
        reasons = list(dict.fromkeys(part["reason"]))
        if len(reasons) > 1:
            counts = part["verdict"].value_counts()
            told = [
                f"{each}: {counts[each]}" for each in (HOLDS, FAILS, UNTESTABLE) if each in found
            ]
            reasons = [f"of {len(part)} differences, {', '.join(told)}"]
        record = (claim.name, claim.statement, claim.where, verdict, reasons[0], claim.page)
        records.append(record)
    columns = ["claim", "statement", "where", "verdict", "reason", "page"]
    return pd.DataFrame(records, columns=columns)


def values_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Values that contrasts are made of, from result rows: means after the last step, and forgetting."""
    columns = ["method", "modality", "setting", "seed", "metric", "value"]
    return final_table(rows)[columns] if len(rows) else pd.DataFrame(columns=columns)


def judge(low: float, high: float, expected: float) -> str:
    """Verdict on a contrast from its interval and what the claim promises; see the module's text."""
    if np.isnan(low):
        return UNTESTABLE
    if low > 0:
        return HOLDS
    return FAILS if high < expected else UNTESTABLE


def _test(contrast: Contrast, values: pd.DataFrame, study: str, dataset: str) -> dict:
    paper, scale = _in_paper(contrast, dataset), contrast.scale
    result = {"paper": scale * paper, "n": 0, "verdict": UNTESTABLE}
    per_seed = _per_seed(contrast, values)
    if per_seed.empty:
        return result | {"reason": f"{NOT_RUN}: params/{study}.yaml"}
    (row,) = summarise(per_seed.assign(all="all"), ["all"]).itertuples()
    printed = paper > 0  # neither missing nor against the claim
    expected = paper if printed else MARGIN
    numbers = {"estimate": scale * row.mean, "low": scale * row.low, "high": scale * row.high}
    found = judge(row.low, row.high, expected)
    claimed = f"{'the paper says' if printed else 'the margin is'} {scale * expected:.1f}"
    where = f"[{numbers['low']:.1f}, {numbers['high']:.1f}]"
    reason = {
        HOLDS: f"{where} is above 0",
        FAILS: f"{where} reaches 0 and stays below what is claimed ({claimed})",
        UNTESTABLE: f"{where} has both 0 and what is claimed in it ({claimed})",
    }[found]
    if row.n < 2:
        reason = "one seed has no interval"
    return result | numbers | {"n": row.n, "verdict": found, "reason": reason}


def _per_seed(contrast: Contrast, values: pd.DataFrame) -> pd.DataFrame:
    """The contrast of every seed that has all of its terms."""
    empty = pd.DataFrame({"seed": [], "value": []})
    if values.empty:
        return empty
    cell = values[(values["setting"] == contrast.setting) & (values["metric"] == contrast.metric)]
    total = None
    for sign, method, modality in contrast.terms:
        part = cell[(cell["method"] == method) & (cell["modality"] == modality)]
        term = contrast.sign * sign * part.set_index("seed")["value"]
        total = term if total is None else (total + term).dropna()
    return empty if total is None else total.rename("value").reset_index()


def _in_paper(contrast: Contrast, dataset: str) -> float:
    """The paper's value of a contrast; missing where it does not print one of the terms."""
    table = paper_results()
    names = {"log2 frames/s": "frame_rate_hz", "log2 peak memory": "memory_mb"}
    metric = names.get(contrast.metric, contrast.metric)
    chosen = (table["dataset"] == dataset) & (table["metric"] == metric)
    chosen &= (table["setting"] == contrast.setting) & (table["category"] == MEAN)
    table = table[chosen].assign(method=table["method"].str.lower())
    total = 0.0
    for sign, method, modality in contrast.terms:
        name = contrast.paper_names.get(method, method).lower()
        found = table[(table["method"] == name) & (table["modality"] == modality)]["value"]
        if found.empty:
            return float("nan")
        value = found.iloc[0]
        total += contrast.sign * sign * (np.log2(value) if metric in names.values() else value)
    return total / contrast.scale
