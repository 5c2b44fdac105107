"""The paper's claims, in our words, and two questions of our own; `iumad.claims` tests them."""

from iumad.claims import Claim, Contrast

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
        ("UniAD as its authors train it", "UniAD", "uniad-original", METRICS),
        ("UniAD as trained here", "UniAD", "uniad", METRICS),
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
