"""The values that the paper's claims are tested on, collected from the studies that lie finished.

Claims of the paper tested on result tables: an estimate with its interval, and a verdict for each.

A claim is one or more contrasts, each a sum of results with signs that is positive if the claim is true. It is
computed for every seed, and its interval is the 95 % t interval over seeds:

- *holds*: the whole interval is above 0;
- *does not hold*: the interval reaches 0, and the paper's own difference is above all of it;
- *not testable here*: the interval has both 0 and the paper's difference in it, so that these runs cannot tell
  the two apart; or runs are missing; or no run could decide.

A claim holds if all of its contrasts do (so their number needs no correction); one that does not is enough against
it.

The paper's claims, in our words, and two questions of our own; `iumad.study.claims` tests them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from iumad.config.files import load_params
from iumad.config.schema import StudyConfig
from iumad.data import categories_of
from iumad.report.comparisons import NOT_RUN, SHORT
from iumad.study.costs import claim_values, read_costs
from iumad.study.load import load_rows, progress
from iumad.study.results import FRACTIONS, MEAN, final_table, paper_results
from iumad.study.statistics import summarise

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
        A metric of `iumad.study.results.final_table`, or "log2 ..." of the efficiency table.
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


METRICS = ("i_auroc", "aupro")
FORGETTING = ("fm_i_auroc", "fm_aupro")
BOTH = "rgb+depth"
NOISY, NOISIER = "iuf+redundant-1", "iuf+both-1"


def _better(
    first: str, second: str, modality: str, setting: str, metrics: tuple[str, ...]
) -> tuple[Contrast, ...]:
    terms = ((1, first, modality), (-1, second, modality))
    return tuple(Contrast(terms, setting, metric) for metric in metrics)


def _over(modality: str, setting: str) -> tuple[Contrast, ...]:
    metrics = METRICS if setting == "10-0" else METRICS + FORGETTING
    return _better("ib-iumad", "iuf", modality, setting, metrics)


def _harm(clean: str, noisy: str, modality: str) -> tuple[Contrast, ...]:
    return _better(clean, noisy, modality, "6-1", METRICS + FORGETTING[:1])


def _more_harm(first: tuple[str, str, str], second: tuple[str, str, str]) -> tuple[Contrast, ...]:
    """The loss from clean to noisy is larger in the first (clean, noisy, modality) than in the second."""
    (a, b, m), (c, d, k) = first, second
    terms = ((1, a, m), (-1, b, m), (-1, c, k), (1, d, k))
    return tuple(Contrast(terms, "6-1", metric) for metric in METRICS + FORGETTING[:1])


def _settings() -> tuple[Claim, ...]:
    shown = {BOTH: "colour and depth", "rgb": "colour alone", "depth": "depth alone"}
    return tuple(
        Claim(
            f"better than IUF, {setting}, {modality}",
            f"With {text} in setting {setting}, IB-IUMAD detects and localises better than IUF"
            + (" and forgets less." if setting != "10-0" else "."),
            "Tables 1 and 2",
            "settings",
            "05_settings",
            _over(modality, setting),
        )
        for modality, text in shown.items()
        for setting in ("10-0", "9-1", "6-4", "6-1")
    )


SPURIOUS = (
    Claim(
        "redundant features harm one modality",
        "With one modality, redundant features lower the results and raise forgetting.",
        "Sec. 2.3, observation 1",
        "spurious",
        "04_spurious_redundant",
        _harm("iuf", NOISY, "rgb") + _harm("iuf", NOISY, "depth"),
    ),
    Claim(
        "spurious features harm further",
        "With one modality, spurious features on top of redundant ones lower the results further.",
        "Sec. 2.3, observation 1",
        "spurious",
        "04_spurious_redundant",
        _harm(NOISY, NOISIER, "rgb") + _harm(NOISY, NOISIER, "depth"),
    ),
    Claim(
        "both harm two modalities",
        "With both modalities the results fall in the same way.",
        "Sec. 2.3, observation 2",
        "spurious",
        "04_spurious_redundant",
        _harm("iuf", NOISIER, BOTH),
    ),
    Claim(
        "two modalities are harmed more",
        "With both modalities the fall is larger than with one.",
        "Sec. 2.3, observation 2",
        "spurious",
        "04_spurious_redundant",
        _more_harm(("iuf", NOISIER, BOTH), ("iuf", NOISIER, "rgb"))
        + _more_harm(("iuf", NOISIER, BOTH), ("iuf", NOISIER, "depth")),
    ),
    Claim(
        "the bottleneck relieves",
        "With information bottleneck regularisation, both perturbations do less harm.",
        "Sec. 2.3, observation 3",
        "spurious",
        "04_spurious_redundant",
        _more_harm(("iuf", NOISIER, BOTH), ("iuf-ib", "iuf-ib+both-1", BOTH)),
    ),
    Claim(
        "relief is crucial",
        "How forgetting from spurious and redundant features is relieved is crucial.",
        "Sec. 2.3, observation 4",
        why_not="a summary of observations 1 to 3, without a test of its own",
    ),
)
CREDIT = (  # ours, not the paper's: which part of observation 3 is the bottleneck's own
    Claim(
        "attention relieves without a bottleneck",
        "Cross-attention and the sum over channels, without a bottleneck, already reduce the harm.",
        "control",
        "spurious",
        "04_spurious_redundant",
        _more_harm(("iuf", NOISIER, BOTH), ("iuf-attention", "iuf-attention+both-1", BOTH)),
    ),
    Claim(
        "the bottleneck relieves further",
        "The bottleneck reduces the harm below that of the same network without it.",
        "control",
        "spurious",
        "04_spurious_redundant",
        _more_harm(
            ("iuf-attention", "iuf-attention+both-1", BOTH), ("iuf-ib", "iuf-ib+both-1", BOTH)
        ),
    ),
)
ABLATION = (
    Claim(
        "both modules beat none",
        "With both modules, IB-IUMAD is better than without both and forgets less.",
        "Sec. 4.3, Table 5",
        "ablation",
        "07_ablation",
        _better("ib-iumad[mamba+ibfm]", "ib-iumad[none]", BOTH, "10-0", METRICS[:1])
        + _better("ib-iumad[mamba+ibfm]", "ib-iumad[none]", BOTH, "6-1", ("i_auroc", "fm_i_auroc")),
    ),
    *(
        Claim(
            f"both modules beat {name} alone",
            f"With both modules, IB-IUMAD is better than with {name} alone.",
            "Sec. 4.3, Table 5",
            "ablation",
            "07_ablation",
            _better("ib-iumad[mamba+ibfm]", f"ib-iumad[{key}]", BOTH, "10-0", METRICS[:1])
            + _better(
                "ib-iumad[mamba+ibfm]", f"ib-iumad[{key}]", BOTH, "6-1", ("i_auroc", "fm_i_auroc")
            ),
        )
        for name, key in {"the Mamba decoder": "mamba", "the bottleneck fusion": "ibfm"}.items()
    ),
    *(
        Claim(
            f"cross-attention beats {name}",
            f"Fusion by cross-attention is better than by {name}.",
            "Sec. 4.3, Table 6",
            "fusion",
            "08_fusion",
            _better(
                "ib-iumad[cross_attention]",
                f"ib-iumad[{key}]",
                BOTH,
                "10-0",
                ("i_auroc", "p_auroc", "aupro"),
            ),
        )
        for name, key in {
            "addition": "addition",
            "ConcatFC": "concat_fc",
            "LinearGLU": "linear_glu",
        }.items()
    ),
)
EFFICIENCY = (
    Claim(
        "faster and smaller than a model per object",
        "IB-IUMAD gives more images a second and needs less memory than M3DM, which has one model per object.",
        "Sec. 4.3, Table 7",
        "efficiency",
        "09_efficiency",
        tuple(
            Contrast(
                ((1, "ib-iumad", BOTH), (-1, "memory-bank", BOTH)),
                "10-0",
                metric,
                {"memory-bank": "M3DM"},
            )
            for metric in ("log2 frames/s", "log2 peak memory")
        ),
    ),
)
UNIFIED = tuple(
    Claim(
        f"better than {label}, 10-0",
        f"With colour alone and all categories at once, IB-IUMAD is better than {label}.",
        "Sec. 4.2, Table 3",
        "baselines",
        "15_others",
        tuple(
            Contrast(((1, "ib-iumad", "rgb"), (-1, method, "rgb")), "10-0", metric, {method: name})
            for metric in metrics
        ),
    )
    for label, name, method, metrics in (
        ("UniAD", "UniAD", "uniad", METRICS),
        ("MambaAD", "MambaAD", "mambaad", METRICS[:1]),
        ("SimpleNet", "SimpleNet", "simplenet", METRICS),
    )
)
UNTESTED = (
    Claim(
        "comparable with one model per object",
        "With all categories at once, image AUROC is comparable with that of M3DM, one model per object.",
        "Sec. 4.3, Table 7",
        why_not="no bound says what is comparable; page 06 shows the distance to one bank per category",
    ),
    Claim(
        "better than DiAD and CDAD",
        "IB-IUMAD is better than DiAD and CDAD, which are built on diffusion models.",
        "Sec. 4.2, Tables 1 to 4",
        why_not="neither method is part of this study",
    ),
    Claim(
        "better on real parts and on Eyecandies",
        "The differences appear on MVTec 3D-AD and on Eyecandies.",
        "Tables 1 to 4",
        why_not="neither data set may be passed on; params/mvtec3d.yaml and params/eyecandies.yaml run them",
    ),
    Claim(
        "the KL removes redundant information",
        "The KL divergence between the two predictions removes redundant information from fused features.",
        "Sec. 3, Corollary 2",
        why_not="a statement about mutual information, which these runs do not measure",
    ),
)
PAPER_CLAIMS: tuple[Claim, ...] = (
    *SPURIOUS,
    *_settings(),
    *UNIFIED,
    *ABLATION,
    *EFFICIENCY,
    *UNTESTED,
)
"""In the order of the paper."""


COSTS = "efficiency"  # the study that is measured, not trained


def studies_of(
    names: Iterable[str], params: Path, given: StudyConfig | None = None
) -> dict[str, StudyConfig]:
    """The studies that claims name, each from its params file in a folder, or one given study for all of them."""
    files = {name: params / f"{name}.yaml" for name in dict.fromkeys(names)}
    return {name: given or load_params(file) for name, file in files.items()}


def claim_tables(studies: dict[str, StudyConfig], results: str | Path) -> dict[str, pd.DataFrame]:
    """Values of every study for `iumad.study.claims.evaluate_claims`; without rows where nothing is finished."""
    tables = {}
    for name, study in studies.items():
        if name == COSTS:
            categories = len(categories_of(study.data))
            costs = read_costs(study, results)
            tables[name] = claim_values(costs, categories, study.data.image_size)
        else:
            tables[name] = values_of(load_rows(study, results))
    return tables


def progress_table(studies: dict[str, StudyConfig], results: str | Path) -> pd.DataFrame:
    """How much of each study is finished: study, data set, runs, finished, seeds."""
    records = []
    for name, study in studies.items():
        if name != COSTS:
            runs = progress(study, results)
            seeds = runs[runs["finished"]]["seed"].nunique()
            records.append((name, study.data.name, len(runs), int(runs["finished"].sum()), seeds))
    return pd.DataFrame(records, columns=["study", "data set", "runs", "finished", "seeds"])
