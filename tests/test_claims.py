"""Gates, contrasts, verdicts and the paper's claims: by hand, and never from runs that do not exist."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import tiny
from scipy import optimize, stats

from iumad.config.files import load_params
from iumad.report.tables import forgetting_by_age
from iumad.report.text import forgets_by_age
from iumad.study import claims
from iumad.study.claims import (
    CREDIT,
    PAPER_CLAIMS,
    QUESTIONS,
    SPURIOUS,
    UNTESTABLE,
    Claim,
    compare,
    evaluate_claims,
    load_evidence,
    verdicts,
)
from iumad.study.results import ROW_SCHEMA, validate_rows
from iumad.study.statistics import (
    CONTRADICTED,
    NO_DIFFERENCE,
    SUPPORTED,
    UNDECIDED,
    UNTRAINED,
    smallest_detectable,
)
from iumad.study.verdicts import (
    INAPPLICABLE,
    MET,
    MISSED,
    NOT_RUN,
    UNMEASURED,
    VALUE_COLUMNS,
    Contrast,
    Harm,
    Term,
    evidence_of,
    evidence_of_costs,
    judge_contrasts,
    measure_gates,
    turned_row,
)

BOTH = "rgb+depth"


def run_rows(method, steps, seed=0, setting="2-1", modality=BOTH, metric="i_auroc", study="main"):
    """Rows of one run from one {category: value} a step."""
    run = (f"{method}-{modality}-{setting}-{seed}", study, "minicandies", method, modality, setting)
    records = [
        (*run, seed, step, category, metric, value, 4, 6)
        for step, values in enumerate(steps)
        for category, value in values.items()
    ]
    return pd.DataFrame(records, columns=list(ROW_SCHEMA.columns))


def at_once(table, metric="i_auroc", setting="2-0", **labels):
    """Rows of runs of one step: one value per method and seed, the same for both categories."""
    return pd.concat(
        [
            run_rows(method, [{"a": value, "b": value}], seed, setting, metric=metric, **labels)
            for method, values in table.items()
            for seed, value in enumerate(values)
        ],
        ignore_index=True,
    )


def trained(rows):
    """The same rows beside a low floor and classifiers that are always right, so that all gates are met."""
    scores = rows[rows["metric"] == "i_auroc"]
    right = scores.assign(metric="accuracy", value=1.0)
    cell = ["modality", "setting", "seed", "step", "category"]
    floor = scores.assign(method="floor-low", value=0.1).drop_duplicates(cell)
    floor["run_id"] = floor["run_id"] + "-floor"
    return pd.concat([rows, right, floor], ignore_index=True)


def difference(metric="i_auroc", setting="2-0", first="ib-iumad", second="iuf", **options):
    terms = (Term(1, first, BOTH), Term(-1, second, BOTH))
    return Contrast(terms, setting, metric, **options)


def judged(rows, *contrasts, references=None):
    return judge_contrasts({"one": contrasts}, evidence_of(rows, references)).to_dict("records")


# --- contrasts ----------------------------------------------------------------------------------


def test_a_difference_by_hand():
    rows = at_once({"ib-iumad": [0.80, 0.83, 0.86], "iuf": [0.78, 0.80, 0.82]}, setting="6-1")
    (row,) = judged(rows, difference(setting="6-1"))
    # differences 2, 3, 4 points: mean 3, sd 1, half width t(0.975, 2) / sqrt(3)
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert row["estimate"] == pytest.approx(3)
    assert (row["low"], row["high"]) == pytest.approx((3 - half, 3 + half))
    assert row["paper"] == pytest.approx(78.6 - 75.1)  # Table 1, RGB+3D, 6-1
    assert row["detectable"] == pytest.approx(5.06, abs=0.02)  # deviations, each of one point
    assert (row["n"], row["m"], row["verdict"]) == (3, 1, UNTRAINED)
    assert "not measured: ib-iumad (rgb+depth): no floors" in row["gates"]
    assert "not shown to be trained enough" in row["reason"]
    (row,) = judged(trained(rows), difference(setting="6-1"))
    assert (row["estimate"], row["verdict"]) == (pytest.approx(3), SUPPORTED)


@pytest.mark.parametrize(
    ("differences", "verdict", "text"),
    [
        ([0.02, 0.021, 0.022], SUPPORTED, "above 0"),
        ([0.002, 0.0021, 0.0022], SUPPORTED, "smaller than 1 point"),
        ([-0.02, -0.021, -0.022], CONTRADICTED, "below 0"),
        ([-0.001, 0.0, 0.002], NO_DIFFERENCE, "lies inside ± 1 point"),
        ([0.0, 0.0, 0.0], NO_DIFFERENCE, "lies inside"),
        ([-0.02, 0.0, 0.03], UNDECIDED, "has 0 in it"),
        ([0.03], UNDECIDED, "one seed has no interval"),
    ],
)
def test_the_words(differences, verdict, text):
    rows = at_once({"iuf": [0.5] * len(differences), "ib-iumad": [0.5 + d for d in differences]})
    rows = trained(rows)
    (row,) = judged(rows, difference())
    assert row["verdict"] == verdict and text in row["reason"], row["reason"]
    (turned,) = judged(rows, difference().turned)
    opposite = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}
    assert turned["verdict"] == opposite.get(verdict, verdict)


def test_correction_goes_over_what_was_planned_with_one_metric():
    rows = at_once({"iuf": [0.5] * 3, "a": [0.52, 0.53, 0.545], "ib-iumad": [0.51, 0.55, 0.60]})
    rows = trained(rows)
    (alone,) = judged(rows, difference(first="a"))
    planned = [difference(first=name) for name in ("a", "ib-iumad", "never run")]
    first, second, absent, other = judged(rows, *planned, difference("aupro"))
    assert (alone["verdict"], first["verdict"]) == (SUPPORTED, UNDECIDED)
    # Holm: the smallest p of three counts three times, the next one twice, the one that is not run as 1.
    assert first["p_holm"] == pytest.approx(3 * alone["p"])
    assert second["p_holm"] == pytest.approx(max(2 * second["p"], first["p_holm"]))
    assert "does not have 0 in it, p = " in first["reason"] and first["m"] == 3
    assert (absent["verdict"], absent["n"], other["m"]) == (NOT_RUN, 0, 1)
    assert first["detectable"] > alone["detectable"]


def test_less_forgetting_is_in_favour():
    steps = {"iuf": (0.80, 0.70), "ib-iumad": (0.80, 0.76)}
    rows = pd.concat(
        [
            run_rows(name, [{"a": first}, {"a": last + 0.001 * seed, "b": 0.7}], seed, "6-1")
            for name, (first, last) in steps.items()
            for seed in range(2)
        ]
    )
    (row,) = judged(rows, difference("fm_i_auroc", "6-1"))
    assert row["estimate"] == pytest.approx(6)
    assert row["paper"] == pytest.approx(15.1 - 9.3)


def test_only_seeds_that_have_all_terms_count():
    rows = at_once({"ib-iumad": [0.8, 0.8, 0.9], "iuf": [0.7, 0.8]})
    (row,) = judged(rows, difference())
    assert row["n"] == 2
    assert row["estimate"] == pytest.approx(5)


def test_a_difference_of_differences_and_harm_above_the_floor():
    table = {
        "clean": [0.9, 0.8],
        "noisy": [0.7, 0.6],
        "floor-a": [0.5, 0.4],
        "floor-b": [0.3, 0.3],
    }
    rows = pd.concat(
        [
            at_once(table),
            at_once(
                {"clean": [0.7, 0.8], "noisy": [0.6, 0.7], "floor-a": [0.5, 0.6]}, modality="rgb"
            ),
        ]
    )
    points = Contrast(
        (
            Term(1, "clean", BOTH),
            Term(-1, "noisy", BOTH),
            Term(-1, "clean", "rgb"),
            Term(1, "noisy", "rgb"),
        ),
        "2-0",
        "i_auroc",
    )
    share = Contrast(
        (Harm(1, "clean", "noisy", BOTH), Harm(-1, "clean", "noisy", "rgb")), "2-0", "i_auroc"
    )
    first, second = judged(rows, points, share)
    assert first["estimate"] == pytest.approx(10)  # (20 points lost) - (10 points lost)
    # Of 40 points above the better floor 20 are lost, of 20 points 10: as large a share.
    assert second["estimate"] == pytest.approx(0, abs=1e-9)
    assert second["unit"] == "% of what is above the floor" and np.isnan(second["paper"])


def test_the_floor_of_another_study_serves_a_share_above_the_floor():
    rows = at_once({"clean": [0.9, 0.8], "noisy": [0.7, 0.6]})
    floors = at_once({"floor-a": [0.5, 0.4], "clean": [0.1, 0.1]}, study="other")
    share = Contrast((Harm(1, "clean", "noisy", BOTH),), "2-0", "i_auroc", exempt=("noisy",))
    (row,) = judged(rows, share, references=pd.concat([floors, floors]).drop_duplicates())
    assert row["estimate"] == pytest.approx(50)  # 20 of 40 points; only floors are taken from there
    (without,) = judged(rows, share)
    assert without["reason"] == "not run: floors (rgb+depth)"


def test_there_is_no_share_of_what_ends_near_the_floor():
    share = Contrast((Harm(1, "clean", "noisy", BOTH),), "2-0", "i_auroc", exempt=("noisy",))
    rows = {"clean": [0.9, 0.8], "noisy": [0.7, 0.6]}
    (one,) = judged(at_once(rows | {"floor-a": [0.5, 0.75]}), share)
    assert (one["n"], one["estimate"]) == (1, pytest.approx(50))
    (none,) = judged(at_once(rows | {"floor-a": [0.85, 0.75]}), share)
    assert none["verdict"] == UNDECIDED
    assert "no share" in none["reason"]


# --- gates --------------------------------------------------------------------------------------


def trained_rows(level=0.85, new=0.84, final=0.6, accuracy=1.0):
    """A run of two steps that forgets a lot, its joint training, floors and accuracy."""
    return pd.concat(
        [
            run_rows("iuf", [{"a": level, "b": level}, {"a": final, "b": final, "c": new}]),
            run_rows(
                "iuf",
                [{"a": accuracy, "b": accuracy}, {"a": 0.0, "b": 0.0, "c": accuracy}],
                metric="accuracy",
            ),
            run_rows("iuf", [dict.fromkeys("abc", 0.88)], setting="3-0"),
            run_rows("floor-depth", [{"a": 0.7, "b": 0.7}, {"a": 0.7, "b": 0.7, "c": 0.7}]),
            run_rows("floor-rgb", [{"a": 0.6, "b": 0.6}, {"a": 0.6, "b": 0.6, "c": 0.6}]),
        ],
        ignore_index=True,
    )


def gate_states(rows, references=None, setting="2-1", method="iuf"):
    table = measure_gates(rows, references)
    part = table[(table["method"] == method) & (table["setting"] == setting)]
    return part.set_index("gate")["state"].to_dict()


def test_gates_by_hand():
    table = measure_gates(validate_rows(trained_rows()))
    assert set(table["method"]) == {"iuf"}  # floors have no gates
    part = table[table["setting"] == "2-1"].set_index("gate")
    # Each category right after its step: (85 + 85 + 84) / 3 - 70; what is forgotten later does not count.
    assert part.loc["floors", "value"] == pytest.approx((0.85 + 0.85 + 0.84) / 3 - 0.7)
    assert part.loc["classifier", "value"] == 1.0
    assert part.loc["new categories", "value"] == pytest.approx(0.84 - 0.88)
    assert set(part["state"]) == {MET}
    assert "14.67 points above floor-depth" in part.loc["floors", "text"]
    assert "-4.0 points from its joint training" in part.loc["new categories", "text"]


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"level": 0.77, "new": 0.84}, "floors"),
        ({"accuracy": 0.94}, "classifier"),
        ({"new": 0.82}, "new categories"),
    ],
)
def test_each_gate_can_be_missed_alone(changes, gate):
    states = gate_states(trained_rows(**changes))
    assert {name for name, state in states.items() if state == MISSED} == {gate}


def test_gates_without_their_runs_are_not_measured_unless_another_study_has_them():
    rows = trained_rows()
    own = rows[(rows["method"] == "iuf") & (rows["setting"] == "2-1")]
    assert gate_states(own[own["metric"] == "i_auroc"]) == {
        "floors": UNMEASURED,
        "classifier": UNMEASURED,
        "new categories": UNMEASURED,
    }
    assert set(gate_states(own, rows).values()) == {MET}
    high = run_rows(
        "floor-a", [dict.fromkeys("ab", 0.9), dict.fromkeys("abc", 0.9)], modality="rgb"
    )
    assert gate_states(pd.concat([rows, high]))["floors"] == MET  # of another modality
    joint = run_rows("joint", [dict.fromkeys("abc", 0.95)])
    assert gate_states(pd.concat([own, joint]))["new categories"] == MISSED
    # IB-IUMAD's joint training counts only where the method's own is nowhere
    assert gate_states(pd.concat([own, joint]), rows)["new categories"] == MET
    other_seed = rows[rows["setting"] == "3-0"].assign(seed=5)
    assert gate_states(pd.concat([own, other_seed]))["new categories"] == UNMEASURED


def test_gates_that_do_not_apply():
    plain = run_rows("plain", [{"a": 0.8, "b": 0.8}], setting="2-0")
    states = gate_states(pd.concat([trained_rows(), plain]), setting="2-0", method="plain")
    assert states == {"floors": MET, "classifier": INAPPLICABLE, "new categories": INAPPLICABLE}


def test_a_gate_missed_by_one_seed_replaces_the_verdict_unless_the_method_is_exempt():
    table = {"ib-iumad": [0.9, 0.91, 0.92], "iuf": [0.65, 0.55, 0.65], "floor-a": [0.5] * 3}
    rows = trained(at_once(table))
    (row,) = judged(rows, difference())
    assert row["verdict"] == UNTRAINED
    assert (
        row["reason"]
        == "iuf (rgb+depth, 2-0, seed 1) is 5.00 points above floor-a as learnt, 10 are needed"
    )
    assert row["estimate"] == pytest.approx(100 * (0.25 + 0.36 + 0.27) / 3)
    (free,) = judged(rows, difference(exempt=("iuf",)))
    assert free["verdict"] == SUPPORTED


def test_the_papers_pair_is_judged_alike_on_every_page():
    """Other metrics of IB-IUMAD against IUF are one family over the paper's grid, whatever else a page shows."""
    table = {"ib-iumad": [0.9, 0.92, 0.94], "iuf": [0.85, 0.89, 0.9], "plain": [0.7, 0.6, 0.8]}
    rows = trained(pd.concat([at_once(table), at_once(table, "aupro", setting="10-0")]))
    rows = pd.concat(
        [rows, at_once(table, setting="10-0"), at_once({"floor-a": [0.5] * 3}, setting="10-0")]
    )
    few = rows[rows["method"] != "plain"]
    judged_rows = [
        compare("other", evidence_of(part), "iuf").query(
            "metric == 'aupro' and method == 'ib-iumad'"
        )
        for part in (rows, few)
    ]
    assert [list(row["m"]) for row in judged_rows] == [[12], [12]]


def test_forgetting_is_split_by_age():
    """What was hardly learnt is hardly forgotten, so FM hides how much more the base category is forgotten."""
    clean = [{"a": 0.9}, {"a": 0.8, "b": 0.9}, {"a": 0.8, "b": 0.7, "c": 0.9}]  # forgets 10 and 20
    noisy = [{"a": 0.9}, {"a": 0.7, "b": 0.6}, {"a": 0.7, "b": 0.6, "c": 0.6}]  # 20 and nothing
    runs = [run_rows(name, steps) for name, steps in (("iuf", clean), ("iuf+noise", noisy))]
    split = forgetting_by_age(
        pd.concat(runs, ignore_index=True), "iuf", ["iuf+noise", "iuf+absent"], "2-1"
    )
    assert split.to_dict("records") == [
        {
            "modality": BOTH,
            "method": "iuf+noise",
            "seeds": 1,
            "base categories": "10.0",
            "later categories": "-20.0",
            "all": "-5.0",
        }
    ]
    (said,) = forgets_by_age(split, "iuf")
    assert "changes by 10.0 points" in said and "by -20.0 (one seed;" in said


# --- claims -------------------------------------------------------------------------------------


def claim(name, *contrasts, family="one"):
    return Claim(name, "s", "w", "main", "05", contrasts[0], contrasts[1:], family)


def test_the_main_contrast_alone_decides_and_the_others_are_shown():
    good = {"ib-iumad": [0.80, 0.81, 0.82], "iuf": [0.70, 0.71, 0.72]}
    bad = {"ib-iumad": [0.70, 0.70, 0.70], "iuf": [0.78, 0.79, 0.80]}
    rows = trained(pd.concat([at_once(good), at_once(bad, "aupro")]))
    claims = (
        claim("one", difference(), difference("aupro")),
        claim("two", difference(first="never")),
        Claim("three", "s", "w", why_not="no run can"),
    )
    table = evaluate_claims(claims, {"main": evidence_of(rows)})
    assert table[["claim", "role", "verdict"]].to_numpy().tolist() == [
        ["one", "main", SUPPORTED],
        ["one", "other", ""],
        ["two", "main", NOT_RUN],
    ]
    assert table["m"].tolist() == [2, 1, 2]
    answers = verdicts(claims, table)
    assert answers["verdict"].tolist() == [SUPPORTED, NOT_RUN, UNTESTABLE]
    assert answers["reason"].iloc[2] == "no run can"


def test_a_page_takes_what_a_claim_asks_from_the_claim():
    rows = at_once(
        {"ib-iumad": [0.80, 0.83, 0.86], "iuf": [0.78, 0.80, 0.82], "x": [0.7, 0.8, 0.7]},
        setting="10-0",
        study="settings",
    )
    evidence = evidence_of(rows)
    asked = tuple(c for c in PAPER_CLAIMS if c.study == "settings")
    table = evaluate_claims(asked, {"settings": evidence})
    main = table[(table["claim"] == "better at once, rgb+depth") & (table["role"] == "main")]
    same = ["n", "estimate", "p_holm", "m", "detectable", "verdict", "reason"]
    against_iuf = compare("mvtec3d/settings", evidence, "iuf").set_index("method")
    assert against_iuf.loc["ib-iumad", same].tolist() == main.iloc[0][same].tolist()
    assert main.iloc[0]["m"] == 3  # three modalities, run or not
    assert against_iuf.loc["x", "m"] == 1
    turned = compare("settings", evidence, "ib-iumad").set_index("method").loc["iuf"]
    assert turned["estimate"] == -main.iloc[0]["estimate"]
    assert turned["p_holm"] == main.iloc[0]["p_holm"]


def test_the_paper_s_numbers_are_those_of_the_data_set():
    evidence = evidence_of(at_once({"ib-iumad": [0.8], "iuf": [0.7]}, setting="10-0"))
    mvtec, eyecandies = (
        compare("settings", evidence, "iuf", dataset=name).query("metric == 'i_auroc'")["paper"]
        for name in ("mvtec3d", "eyecandies")
    )
    assert mvtec.item() != eyecandies.item()


def test_every_claim_asks_for_runs_that_its_study_has(repository):
    names = [each.name for each in (*PAPER_CLAIMS, *QUESTIONS)]
    assert len(set(names)) == len(names)
    studies: dict[str, set] = {}
    for each in (*PAPER_CLAIMS, *QUESTIONS):
        assert bool(each.main) != bool(each.why_not), each.name
        assert not each.page or (repository / "notebooks" / f"{each.page}.ipynb").is_file()
        if each.main is None:
            continue
        assert each.family, each.name
        if each.study not in studies:
            runs = load_params(repository / "params" / f"{each.study}.yaml").runs()
            studies[each.study] = {(run.method, run.modality, run.setting) for run in runs}
        cells = studies[each.study]
        for contrast in (each.main, *each.others):
            needed = [
                (method, term.modality)
                for term in contrast.terms
                for method in (term[1:3] if isinstance(term, Harm) else (term.method,))
            ]
            for method, modality in needed:
                assert (method, modality, contrast.setting) in cells, each.name


def test_the_protocol_names_every_family(repository):
    text = (repository / "book" / "protocol.md").read_text(encoding="utf-8")
    for each in (*PAPER_CLAIMS, *QUESTIONS):
        assert not each.main or f"| {each.family} |" in text, each.family


def test_the_protocol_prints_the_factors_of_the_smallest_difference(repository):
    text = (repository / "book" / "protocol.md").read_text(encoding="utf-8")
    for comparisons in (1, 3, 4):
        factors = [f"{smallest_detectable(1.0, n, 0.05 / comparisons):.1f}" for n in (3, 5, 10)]
        assert f"| {comparisons} | {' | '.join(factors)} |" in text
    for comparisons in (1, 3):  # the power of the t test where the deviation is known
        known = []
        for n in (3, 5, 10):
            border = stats.t.ppf(1 - 0.025 / comparisons, n - 1)
            miss = partial(_missed_power, border, n)
            known.append(f"{optimize.brentq(miss, 0.1, 8):.1f}")
        assert ", ".join(known) in text.replace("\n", " ")


def _missed_power(border: float, n: int, factor: float) -> float:
    return float(stats.nct.sf(border, n - 1, factor * np.sqrt(n))) - 0.8


def test_claims_with_a_number_in_the_paper_find_it():
    table = evaluate_claims(PAPER_CLAIMS, {})
    tables = {each.name for each in PAPER_CLAIMS if "Table" in each.where and each.main}
    printed = table[table["claim"].isin(tables) & (table["role"] == "main")]
    assert printed["paper"].notna().all()
    assert set(table["verdict"]) == {NOT_RUN, ""}


def test_the_paper_s_numbers_speak_for_its_claims():
    table = evaluate_claims(PAPER_CLAIMS, {})
    printed = table[(table["role"] == "main") & table["paper"].notna()]
    assert len(printed) > 10
    assert (printed["paper"] > 0).all()


def test_what_the_paper_observes_speaks_for_its_statements():
    """Noise and backgrounds cost IUF most with both modalities, and IUF with the bottleneck less."""
    ends = {"iuf": (0.9, 0.9), "iuf+redundant-1": (0.8, 0.8), "iuf+both-1": (0.7, 0.6)}
    ends |= {"iuf-attention": (0.9, 0.9), "iuf-attention+both-1": (0.8, 0.8)}
    ends |= {"iuf-ib": (0.9, 0.9), "iuf-ib+both-1": (0.85, 0.85), "floor-a": (0.5, 0.5)}
    records = [
        (method, modality, "6-1", seed, metric, value if metric == "i_auroc" else 1 - value)
        for method, (one, both) in ends.items()
        for modality, value in (("rgb", one), ("depth", one), (BOTH, both))
        for metric in ("i_auroc", "fm_i_auroc")
        for seed in (0, 1)
    ]
    values = pd.DataFrame(records, columns=VALUE_COLUMNS)
    table = evaluate_claims((*SPURIOUS, *CREDIT), {"spurious": evidence_of_costs(values)})
    assert (table[table["role"] == "main"]["estimate"] > 0).all()


def test_a_smaller_model_is_better():
    sizes = {"ib-iumad": 3.0, "bank": 5.0}  # doublings
    records = [(name, BOTH, "10-0", 0, "log2 size", size) for name, size in sizes.items()]
    evidence = evidence_of_costs(pd.DataFrame(records, columns=VALUE_COLUMNS))
    contrast = difference("log2 size", "10-0", second="bank")
    (row,) = judge_contrasts({"one": [contrast]}, evidence).to_dict("records")
    assert row["estimate"] == 2


def test_a_row_turned_round_says_the_opposite():
    row = {"estimate": 2.0, "low": 1.0, "high": 4.0, "paper": 3.0, "verdict": SUPPORTED}
    other = {"estimate": -2.0, "low": -4.0, "high": -1.0, "paper": -3.0, "verdict": CONTRADICTED}
    assert turned_row(row) == other


@pytest.mark.parametrize(
    ("change", "met"),
    [
        ({}, {"floors", "new categories"}),
        ({"training": {"epochs": 7}}, {"floors"}),
        ({"data": {"image_size": 64}}, set()),
    ],
    ids=["alike", "other training", "other data"],
)
def test_gates_take_what_is_alike_from_other_studies(monkeypatch, tmp_path, change, met):
    rows, study = trained_rows(), tiny.study()
    other = tiny.study(profile="settings", **change)
    own = rows[(rows["method"] == "iuf") & (rows["setting"] == "2-1")]
    monkeypatch.setattr(claims, "_read_references", lambda _: [other])
    monkeypatch.setattr(claims, "load_rows", lambda one, _: own if one is study else rows)
    gates = load_evidence(study, tmp_path, tmp_path).gates
    assert set(gates.query("state == 'met' and gate != 'classifier'")["gate"]) == met
