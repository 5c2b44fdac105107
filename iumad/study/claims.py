"""The paper's claims as data, in our words, and how each one came out.

A claim has one main contrast, printed with its interval beside the paper's number, and others that are shown but
not judged. Claims of one family are corrected together where their main contrasts are of one metric.
`iumad.study.verdicts` has the contrasts, and `iumad.study.statistics.judge` the verdicts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from iumad.config.files import load_params
from iumad.config.schema import StudyConfig
from iumad.data import data_of
from iumad.study.costs import cost_claims, read_costs
from iumad.study.load import load_rows, progress
from iumad.study.results import CONTINUAL, FRACTIONS
from iumad.study.verdicts import (
    COLUMNS,
    FLOOR,
    NOT_RUN,
    Contrast,
    Evidence,
    Harm,
    Term,
    against,
    evidence_of,
    evidence_of_costs,
    judge_contrasts,
    turned_row,
)

UNTESTABLE = "not testable here"
"""The verdict of a statement that no run can decide."""

COSTS = "efficiency"  # the study that is measured, not trained
REFERENCES = ("settings", "baselines")  # have floors and joint training, for the gates of all
PAIR = ("ib-iumad", "iuf")
PAPER_GRID = (
    ("rgb", "depth", "rgb+depth"),
    ("10-0", "9-1", "6-4", "6-1"),
)  # modalities, settings of Tables 1, 2
COMPARED = (*FRACTIONS, "fm_i_auroc", "fm_aupro", "new_i_auroc")  # metrics of comparisons
SEEN_BY_FLOORS = ("data", "evaluation")  # sections by which floors differ
SEEN_BY_MODELS = (*SEEN_BY_FLOORS, "features", "model", "training")  # by which models differ


@dataclass(frozen=True)
class Claim:
    """One statement of the paper.

    Attributes
    ----------
    name, statement, where : str
        A short name, the statement in our words, and where the paper makes it.
    study, page : str
        Params file (without .yaml) whose runs decide, and the notebook that shows them; "" if no run can.
    main : Contrast or None
        The contrast that decides; None if no run can.
    others : tuple of Contrast
        Shown beside it.
    family : str
        Claims that are corrected together; they are of one study.
    why_not : str
        For a claim without contrast: why no run here can decide.
    """

    name: str
    statement: str
    where: str
    study: str = ""
    page: str = ""
    main: Contrast | None = None
    others: tuple[Contrast, ...] = ()
    family: str = ""
    why_not: str = ""


def evaluate_claims(
    claims: tuple[Claim, ...], evidence: Mapping[str, Evidence], dataset: str = "mvtec3d"
) -> pd.DataFrame:
    """Estimate every contrast of every claim, and judge the main ones.

    Parameters
    ----------
    claims : tuple of Claim
        Whole families, since their size is part of the correction.
    evidence : mapping
        Study -> its evidence (`load_evidence`); a study may be missing.
    dataset : str
        Of the paper's data sets, the one whose numbers stand beside ours.

    Returns
    -------
    DataFrame
        claim, role ("main" or "other") and the columns of `iumad.study.verdicts.judge_contrasts`; the others have
        no verdict.
    """
    tables = []
    for study in dict.fromkeys(claim.study for claim in claims if claim.main):
        given = evidence.get(study, evidence_of(pd.DataFrame()))
        asked = [claim for claim in claims if claim.study == study and claim.main]
        families = {
            family: [claim for claim in asked if claim.family == family]
            for family in dict.fromkeys(claim.family for claim in asked)
        }
        mains = {
            family: [claim.main for claim in members if claim.main]
            for family, members in families.items()
        }
        names = [claim.name for members in families.values() for claim in members]
        judged = judge_contrasts(mains, given, dataset).assign(claim=names, role="main")
        absent = judged["verdict"] == NOT_RUN
        judged.loc[absent, "reason"] += f"; params/{study}.yaml has them"
        tables.append(judged)
        for claim in asked:
            shown = judge_contrasts({f"{claim.name}: others": claim.others}, given, dataset)
            tables.append(shown.assign(claim=claim.name, role="other", verdict=""))
    columns = ["claim", "role", *COLUMNS]
    if not tables:
        return pd.DataFrame(columns=columns)
    table = pd.concat([part for part in tables if len(part)], ignore_index=True)[columns]
    order = {claim.name: place for place, claim in enumerate(claims)}
    return table.sort_values(
        "claim", key=lambda name: name.map(order), kind="stable", ignore_index=True
    )


def verdicts(claims: tuple[Claim, ...], table: pd.DataFrame) -> pd.DataFrame:
    """One row a claim, as a page prints it.

    Returns
    -------
    DataFrame
        claim, statement, where, verdict (of its main contrast, or `UNTESTABLE`), test, estimate, low, high, paper,
        detectable, unit, n, gates, reason, page.
    """
    numbers = ["test", "estimate", "low", "high", "paper", "detectable", "unit", "n", "gates"]
    main = table[table["role"] == "main"].set_index("claim")
    records = []
    for claim in claims:
        record = {"claim": claim.name, "statement": claim.statement, "where": claim.where}
        if claim.main is None:
            record |= {"verdict": UNTESTABLE, "reason": claim.why_not}
        else:
            row = main.loc[claim.name]
            record |= row[["verdict", "reason", *numbers]].to_dict()
        records.append(record | {"page": claim.page})
    columns = ["claim", "statement", "where", "verdict", *numbers, "reason", "page"]
    return pd.DataFrame(records, columns=columns)


def compare(
    study: str,
    evidence: Evidence,
    reference: str,
    metrics: tuple[str, ...] = COMPARED,
    dataset: str = "mvtec3d",
) -> pd.DataFrame:
    """Every method against a reference in the same modality and setting.

    What a claim of the paper, or a question of ours, asks of the study or of the settings is judged in the family
    of its claim, on the runs of this study. The two methods that the paper compares (`PAIR`) are for every other
    metric one family over the paper's grid, whichever cells the study has, so that no two pages judge them
    differently. The rest is judged with the other methods of its cell of the grid.

    Parameters
    ----------
    study : str
        Name of the study, as in `Claim.study`, or a profile such as "mvtec3d/settings".
    evidence : Evidence
        Of the whole study.
    reference : str
        Method that the others are compared with.
    metrics : tuple of str
    dataset : str
        Of the paper's data sets, the one whose numbers stand beside ours.

    Returns
    -------
    DataFrame
        method, reference and the columns of `iumad.study.verdicts.judge_contrasts`: positive is better than the
        reference.
    """
    name = study.rsplit("/", 1)[-1]
    asked = {
        claim.name: replace(claim, study=name)
        for claim in (*PAPER_CLAIMS, *QUESTIONS)
        if claim.study in (name, REFERENCES[0])
    }
    judged = evaluate_claims(tuple(asked.values()), {name: evidence}, dataset)
    found: dict[tuple, dict] = {}
    for row in judged[judged["role"] == "main"].to_dict("records"):
        main = asked[row["claim"]].main
        assert main is not None
        found[main.key] = row
        found[main.turned.key] = turned_row(row)
    contrasts = against(evidence, reference, metrics, PERTURBED)
    rest: dict[str, list[Contrast]] = {}
    for family, method, contrast in contrasts:
        if contrast.key not in found:
            planned = _pair_of(method, reference, contrast)
            own = rest.setdefault(" and ".join(PAIR) if planned else family, [])
            own += [c for c in planned or [contrast] if c.key not in found and c not in own]
    judged_rest = judge_contrasts(rest, evidence, dataset).to_dict("records")
    for contrast, row in zip(
        [c for family in rest.values() for c in family], judged_rest, strict=True
    ):
        found[contrast.key] = row
    records = [
        {"method": method, "reference": reference} | found[contrast.key]
        for _, method, contrast in contrasts
    ]
    return pd.DataFrame(records, columns=["method", "reference", *COLUMNS])


def _pair_of(method: str, reference: str, contrast: Contrast) -> list[Contrast]:
    """The same metric of the paper's two methods in all cells of its grid; empty for others, and outside of it."""
    cells = [(modality, setting) for modality in PAPER_GRID[0] for setting in PAPER_GRID[1]]
    if {method, reference} != {*PAIR} or (
        contrast.terms[0].modality,
        contrast.setting,
    ) not in cells:
        return []
    steps = contrast.metric.startswith(CONTINUAL)
    return [
        Contrast(
            (Term(1, method, modality), Term(-1, reference, modality)), setting, contrast.metric
        )
        for modality, setting in cells
        if not (steps and setting == "10-0")
    ]


def load_evidence(study: StudyConfig, results: str | Path, params: Path) -> Evidence:
    """Everything that a study has to be judged by, from a results folder.

    Floors and joint training, which gates compare with, are also looked for in the studies `REFERENCES`.

    Parameters
    ----------
    study : StudyConfig
        A study of trained models.
    results : path
        Results folder (`iumad.study.load`).
    params : Path
        Folder that holds their params files; what counts of one depends on the sections in which both agree.
    """
    references = []
    for other in _read_references(params):
        if other.profile != study.profile and _agree(study, other, SEEN_BY_FLOORS):
            rows = load_rows(other, results)
            alike = _agree(study, other, SEEN_BY_MODELS)
            references.append(rows if alike else rows[rows["method"].str.startswith(FLOOR)])
    found = pd.concat(references, ignore_index=True) if references else None
    models = {run.method: run.model for run in study.runs()}
    unconditioned = [n for n, m in models.items() if getattr(m, "condition", "") == "none"]
    return evidence_of(load_rows(study, results), found, unconditioned)


def _read_references(params: Path) -> list[StudyConfig]:
    files = [params / f"{name}.yaml" for name in REFERENCES]
    return [load_params(file) for file in files if file.exists()]


def _agree(one: StudyConfig, other: StudyConfig, sections: tuple[str, ...]) -> bool:
    return all(getattr(one, key) == getattr(other, key) for key in sections)


def studies_of(names: Iterable[str], params: Path) -> dict[str, StudyConfig]:
    """The studies that claims name, each from its params file in a folder."""
    return {name: load_params(params / f"{name}.yaml") for name in dict.fromkeys(names) if name}


def claim_evidence(
    studies: dict[str, StudyConfig], results: str | Path, params: Path
) -> dict[str, Evidence]:
    """Evidence of every study, for `evaluate_claims`; without rows where nothing is finished."""
    return {
        name: costs_evidence(study, results)
        if name == COSTS
        else load_evidence(study, results, params)
        for name, study in studies.items()
    }


def costs_evidence(study: StudyConfig, results: str | Path) -> Evidence:
    """Evidence from the measured costs of a study."""
    categories = len(data_of(study.data).categories)
    costs = read_costs(study, results)
    return evidence_of_costs(cost_claims(costs, categories, study.data.image_size))


def progress_table(studies: dict[str, StudyConfig], results: str | Path) -> pd.DataFrame:
    """How much of each study is finished: study, data set, runs, finished, seeds."""
    records = []
    for name, study in studies.items():
        if name != COSTS:
            runs = progress(study, results)
            seeds = runs[runs["finished"]]["seed"].nunique()
            records.append((name, study.data.name, len(runs), int(runs["finished"].sum()), seeds))
    return pd.DataFrame(records, columns=["study", "data set", "runs", "finished", "seeds"])


BOTH = "rgb+depth"
PERTURBED = (
    "+redundant-",
    "+spurious-",
    "+both-",
    "[test-",
)  # parts of the names of methods on perturbed images
NOISY, NOISIER = "iuf+redundant-1", "iuf+both-1"
DETECTION = ("i_auroc", "aupro")
SPURIOUS_PAGE, SETTINGS_PAGE = "13_spurious_redundant", "14_settings"


def _difference(
    better: str,
    worse: str,
    modality: str,
    setting: str,
    metric: str = "i_auroc",
    names: Mapping[str, str] | None = None,
) -> Contrast:
    exempt = tuple(m for m in (better, worse) if any(part in m for part in PERTURBED))
    terms = (Term(1, better, modality), Term(-1, worse, modality))
    return Contrast(terms, setting, metric, names or {}, exempt)


def _of_modalities(
    method: str, better: str, worse: str, setting: str, metric: str = "i_auroc"
) -> Contrast:
    """One method with two inputs; the first has the higher value, or forgets less."""
    return Contrast((Term(1, method, better), Term(-1, method, worse)), setting, metric)


def _harm(clean: str, noisy: str, modality: str, metric: str = "i_auroc") -> Contrast:
    return _difference(clean, noisy, modality, "6-1", metric)


def _more_harm(
    more: tuple[str, str, str], less: tuple[str, str, str], metric: str = "i_auroc"
) -> Contrast:
    """What is lost from clean to noisy is larger in `more` (clean, noisy, modality) than in `less`, in points."""
    (a, b, m), (c, d, k) = more, less
    terms = (Term(1, a, m), Term(-1, b, m), Term(-1, c, k), Term(1, d, k))
    return Contrast(terms, "6-1", metric, exempt=(b, d))


def _more_relative_harm(modality: str) -> Contrast:
    """The same with both modalities against one, as shares of what lies above the floor."""
    terms = (Harm(1, "iuf", NOISIER, BOTH), Harm(-1, "iuf", NOISIER, modality))
    return Contrast(terms, "6-1", "i_auroc", exempt=(NOISIER,))


SPURIOUS = (
    Claim(
        "redundant features harm one modality",
        "With one modality, redundant features in the images of new categories lower IUF's results.",
        "Sec. 2.3, observation 1",
        "spurious",
        SPURIOUS_PAGE,
        _harm("iuf", NOISY, "rgb"),
        (
            _harm("iuf", NOISY, "depth"),
            *(_harm("iuf", NOISY, modality, "aupro") for modality in ("rgb", "depth")),
        ),
        "harm",
    ),
    Claim(
        "redundant features make one modality forget",
        "With one modality, redundant features in the images of new categories raise IUF's forgetting.",
        "Sec. 2.3, observation 1",
        "spurious",
        SPURIOUS_PAGE,
        _harm("iuf", NOISY, "rgb", "fm_i_auroc"),
        (_harm("iuf", NOISY, "depth", "fm_i_auroc"),),
        "harm",
    ),
    Claim(
        "spurious features harm further",
        "With one modality, spurious features on top of redundant ones lower the results further.",
        "Sec. 2.3, observation 1",
        "spurious",
        SPURIOUS_PAGE,
        _harm(NOISY, NOISIER, "rgb"),
        (
            _harm(NOISY, NOISIER, "depth"),
            *(_harm(NOISY, NOISIER, modality, "aupro") for modality in ("rgb", "depth")),
            *(_harm(NOISY, NOISIER, modality, "fm_i_auroc") for modality in ("rgb", "depth")),
        ),
        "harm",
    ),
    Claim(
        "both harm two modalities",
        "With both modalities, redundant and spurious features lower IUF's results too.",
        "Sec. 2.3, observation 2",
        "spurious",
        SPURIOUS_PAGE,
        _harm("iuf", NOISIER, BOTH),
        tuple(_harm("iuf", NOISIER, BOTH, metric) for metric in ("aupro", "fm_i_auroc")),
        "harm",
    ),
    Claim(
        "two modalities are harmed more",
        "With both modalities the fall is larger than with one, as a share of what is above the floor.",
        "Sec. 2.3, observation 2",
        "spurious",
        SPURIOUS_PAGE,
        _more_relative_harm("rgb"),
        (
            _more_relative_harm("depth"),
            *(
                _more_harm(("iuf", NOISIER, BOTH), ("iuf", NOISIER, modality), metric)
                for modality in ("rgb", "depth")
                for metric in ("i_auroc", "fm_i_auroc")
            ),
        ),
        "two modalities",
    ),
    Claim(
        "the bottleneck relieves",
        "With information bottleneck regularisation, both perturbations do less harm.",
        "Sec. 2.3, observation 3",
        "spurious",
        SPURIOUS_PAGE,
        _more_harm(("iuf", NOISIER, BOTH), ("iuf-ib", "iuf-ib+both-1", BOTH)),
        tuple(
            _more_harm(("iuf", NOISIER, BOTH), ("iuf-ib", "iuf-ib+both-1", BOTH), metric)
            for metric in ("aupro", "fm_i_auroc")
        ),
        "relief",
    ),
    Claim(
        "relief is crucial",
        "How forgetting from spurious and redundant features is relieved is crucial.",
        "Sec. 2.3, observation 4",
        page=SPURIOUS_PAGE,
        why_not="a summary of observations 1 to 3, without a test of its own",
    ),
)
MODALITIES = (
    Claim(
        "two modalities forget more",
        "IUF forgets more with both modalities than with one.",
        "Abstract; Tables 1 and 2, 6-1",
        "settings",
        SETTINGS_PAGE,
        _of_modalities("iuf", "rgb", BOTH, "6-1", "fm_i_auroc"),
        (_of_modalities("iuf", "depth", BOTH, "6-1", "fm_i_auroc"),),
        "modalities",
    ),
    Claim(
        "two modalities end higher",
        "After the last step, IB-IUMAD with both modalities is better than with one.",
        "Tables 1 and 2, 6-1",
        "settings",
        SETTINGS_PAGE,
        _of_modalities("ib-iumad", BOTH, "rgb", "6-1"),
        (
            _of_modalities("ib-iumad", BOTH, "depth", "6-1"),
            *(_of_modalities("ib-iumad", BOTH, modality, "10-0") for modality in ("rgb", "depth")),
        ),
        "modalities",
    ),
)
CREDIT = (  # which part of observation 3 is the bottleneck's own
    Claim(
        "attention relieves without a bottleneck",
        "Cross-attention without a bottleneck already reduces the harm.",
        "control",
        "spurious",
        SPURIOUS_PAGE,
        _more_harm(("iuf", NOISIER, BOTH), ("iuf-attention", "iuf-attention+both-1", BOTH)),
        (
            _more_harm(
                ("iuf", NOISIER, BOTH),
                ("iuf-attention", "iuf-attention+both-1", BOTH),
                "fm_i_auroc",
            ),
        ),
        "credit",
    ),
    Claim(
        "the bottleneck relieves further",
        "The bottleneck reduces the harm below that of the same network without it.",
        "control",
        "spurious",
        SPURIOUS_PAGE,
        _more_harm(
            ("iuf-attention", "iuf-attention+both-1", BOTH), ("iuf-ib", "iuf-ib+both-1", BOTH)
        ),
        (
            _more_harm(
                ("iuf-attention", "iuf-attention+both-1", BOTH),
                ("iuf-ib", "iuf-ib+both-1", BOTH),
                "fm_i_auroc",
            ),
        ),
        "credit",
    ),
)
SETTINGS = tuple(
    claim
    for modality, text in {
        BOTH: "colour and depth",
        "rgb": "colour alone",
        "depth": "depth alone",
    }.items()
    for claim in (
        Claim(
            f"better at once, {modality}",
            f"With {text} and all categories at once, IB-IUMAD is better than IUF.",
            "Tables 1 and 2, 10-0",
            "settings",
            SETTINGS_PAGE,
            _difference("ib-iumad", "iuf", modality, "10-0"),
            (_difference("ib-iumad", "iuf", modality, "10-0", "aupro"),),
            "at once",
        ),
        Claim(
            f"better in steps, {modality}",
            f"With {text} and categories that come in steps, IB-IUMAD is better than IUF after the last step.",
            "Tables 1 and 2, 6-1",
            "settings",
            SETTINGS_PAGE,
            _difference("ib-iumad", "iuf", modality, "6-1"),
            (
                _difference("ib-iumad", "iuf", modality, "6-1", "aupro"),
                *(
                    _difference("ib-iumad", "iuf", modality, setting, metric)
                    for setting in ("6-4", "9-1")
                    for metric in DETECTION
                ),
            ),
            "in steps",
        ),
        Claim(
            f"forgets less, {modality}",
            f"With {text}, IB-IUMAD forgets less than IUF.",
            "Tables 1 and 2, 6-1",
            "settings",
            SETTINGS_PAGE,
            _difference("ib-iumad", "iuf", modality, "6-1", "fm_i_auroc"),
            (
                _difference("ib-iumad", "iuf", modality, "6-1", "fm_aupro"),
                _difference("ib-iumad", "iuf", modality, "6-1", "new_i_auroc"),
                *(
                    _difference("ib-iumad", "iuf", modality, setting, "fm_i_auroc")
                    for setting in ("6-4", "9-1")
                ),
            ),
            "in steps",
        ),
    )
)
UNIFIED = tuple(
    Claim(
        f"better than {label}",
        f"With colour alone and all categories at once, IB-IUMAD is better than {label}.",
        "Sec. 4.2, Table 3",
        "baselines",
        "17_others",
        _difference("ib-iumad", method, "rgb", "10-0", names={method: name}),
        tuple(
            _difference("ib-iumad", method, "rgb", "10-0", metric, {method: name})
            for metric in ("p_auroc", "aupro")
        ),
        "other systems",
    )
    for label, name, method in (
        ("UniAD", "UniAD", "uniad"),
        ("MambaAD", "MambaAD", "mambaad-lite"),
        ("SimpleNet", "SimpleNet", "simplenet"),
    )
)
_ALL = "ib-iumad[mamba+ibfm]"
ABLATION = (
    *(
        Claim(
            f"both modules beat {name}",
            f"With both modules, IB-IUMAD is better than with {name}.",
            "Sec. 4.3, Table 5",
            "ablation",
            "18_ablation",
            _difference(_ALL, f"ib-iumad[{key}]", BOTH, "6-1"),
            (_difference(_ALL, f"ib-iumad[{key}]", BOTH, "10-0"),),
            "modules",
        )
        for name, key in {
            "none": "none",
            "the Mamba decoder alone": "mamba",
            "the bottleneck fusion alone": "ibfm",
        }.items()
    ),
    Claim(
        "both modules forget less than none",
        "With both modules, IB-IUMAD forgets less than with none.",
        "Sec. 4.3, Table 5",
        "ablation",
        "18_ablation",
        _difference(_ALL, "ib-iumad[none]", BOTH, "6-1", "fm_i_auroc"),
        tuple(
            _difference(_ALL, f"ib-iumad[{key}]", BOTH, "6-1", "fm_i_auroc")
            for key in ("mamba", "ibfm")
        ),
        "modules",
    ),
    *(
        Claim(
            f"cross-attention beats {name}",
            f"Fusion by cross-attention is better than by {name}.",
            "Sec. 4.3, Table 6",
            "fusion",
            "19_fusion",
            _difference("ib-iumad[cross_attention]", f"ib-iumad[{key}]", BOTH, "10-0"),
            tuple(
                _difference("ib-iumad[cross_attention]", f"ib-iumad[{key}]", BOTH, "10-0", metric)
                for metric in ("p_auroc", "aupro")
            ),
            "fusion",
        )
        for name, key in {
            "addition": "addition",
            "ConcatFC": "concat_fc",
            "LinearGLU": "linear_glu",
        }.items()
    ),
)
UNTESTED = (
    Claim(
        "41 times as fast, a 44th of the memory",
        "Compared with M3DM, one model per object, frames a second are 41 times as many and memory is a 44th.",
        "Sec. 4.3, Table 7",
        page="20_efficiency",
        why_not="M3DM, which the ratios are of, is not part of this study; what a bank of the same features "
        "costs is a question of ours",
    ),
    Claim(
        "comparable with one model per object",
        "With all categories at once, image AUROC is comparable with that of M3DM, one model per object.",
        "Sec. 4.3, Table 7",
        page="15_unified",
        why_not="M3DM is not part of this study, and no bound says what is comparable; the page shows the "
        "distance to one bank per category",
    ),
    Claim(
        "better than DiAD, CDAD and DeSTSeg",
        "IB-IUMAD is better than DiAD and CDAD, which are built on diffusion models, and than DeSTSeg.",
        "Sec. 4.2, Tables 1 to 4",
        why_not="none of them is run in this study",
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
        "Sec. 3.4, Corollary 2",
        page="18_ablation",
        why_not="a statement about mutual information; the page shows what probes read before and after the "
        "bottleneck, which bounds it from below only",
    ),
)
EFFICIENCY = tuple(
    Claim(
        name,
        f"With ten categories, IB-IUMAD {text} than one bank of all patches for each category.",
        "control",
        COSTS,
        "20_efficiency",
        _difference("ib-iumad", "bank", BOTH, "10-0", metric),
        family="costs",
    )
    for name, text, metric in (
        ("faster than a bank per category", "gives more images a second", "log2 frames/s"),
        ("smaller than a bank per category", "has a smaller model file", "log2 size"),
    )
)
PAPER_CLAIMS: tuple[Claim, ...] = (
    *SPURIOUS,
    *MODALITIES,
    *SETTINGS,
    *UNIFIED,
    *ABLATION,
    *UNTESTED,
)
"""In the order of the paper."""
QUESTIONS: tuple[Claim, ...] = (*CREDIT, *EFFICIENCY)
"""Ours, not the paper's."""
