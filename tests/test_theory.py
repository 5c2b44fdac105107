"""Information theory: values by hand, laws over random distributions, and the cases that break the proof."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iumad.errors import MetricError
from iumad.report import theory
from iumad.report import theory as theory_checks
from iumad.report.theory import F, G, Y

SIZES = st.tuples(*[st.integers(1, 5)] * 3)
SEEDS = st.integers(0, 2**32 - 1)


def test_information_by_hand():
    # Y is a fair coin, F shows it with probability 3/4: I = 1 - H(1/4) = 1 - 0.8112781
    joint = theory.chain(np.array([[3, 1], [1, 3]]) / 8, np.eye(2))
    assert theory.information(joint, Y, F) == pytest.approx(1 - 0.8112781, abs=1e-6)
    assert theory.information(joint, F, G) == pytest.approx(1)  # G = F, one fair bit
    # I(F;G|Y) = H(F|Y) = H(1/4), since G shows all of F
    assert theory.conditional_information(joint, F, G, Y) == pytest.approx(0.8112781, abs=1e-6)


def test_kl_by_hand():
    # f and g are one constant state each; heads say (1/2, 1/2) and (1/4, 3/4):
    # KL = 1/2 log2(2) + 1/2 log2(2/3) = 0.2075187
    joint = theory.chain(np.array([[0.5], [0.5]]), np.ones((1, 1)))
    heads = (np.array([[0.5], [0.5]]), np.array([[0.25], [0.75]]))
    assert theory.expected_kl(joint, heads) == pytest.approx(0.2075187, abs=1e-6)


def test_exclusive_or_breaks_corollary_1():
    row = theory_checks.counterexamples().set_index("case").loc["Y = F xor G, G not made from F"]
    assert row["I(F;G)"] == pytest.approx(0, abs=1e-12)
    assert row["I(F;G|Y)"] == pytest.approx(1)
    assert row["I(G;Y)"] == pytest.approx(0, abs=1e-12)


def test_a_copy_and_a_minimal_feature_have_the_same_loss():
    cases = theory_checks.counterexamples(n_categories=4, n_noise=8).set_index("case")
    copy, minimal = (
        cases.loc["G = F, everything is kept"],
        cases.loc["G = the category in F, the rest is dropped"],
    )
    assert copy["KL"] == pytest.approx(0, abs=1e-12)
    assert minimal["KL"] == pytest.approx(0, abs=1e-12)
    assert copy["I(F;G|Y)"] == pytest.approx(3)  # the 8 noise states
    assert minimal["I(F;G|Y)"] == pytest.approx(0, abs=1e-12)


def test_constant_heads_make_the_loss_zero_whatever_is_lost():
    row = (
        theory_checks.counterexamples(n_categories=4)
        .set_index("case")
        .loc["G constant, everything is dropped"]
    )
    assert row["KL, constant heads"] == 0
    assert row["I(F;Y)"] - row["I(G;Y)"] == pytest.approx(2)  # all of log2(4)
    assert row["KL"] == pytest.approx(2)  # the true posteriors do notice


@given(SIZES, SEEDS)
def test_laws_that_need_no_chain(sizes, seed):
    q = theory.quantities(theory.random_joint(np.random.default_rng(seed), sizes))
    assert min(q[name] for name in q if name.startswith(("I(", "KL"))) >= -1e-12
    assert q["I(F;G)"] + q["I(G;Y|F)"] == pytest.approx(q["I(F;G|Y)"] + q["I(G;Y)"], abs=1e-9)
    assert q["KL, independent"] >= q["I(F;Y)"] - 1e-9
    # the printed line is an identity only if f and g are drawn without regard to each other
    assert q["printed, independent"] == pytest.approx(q["I(F;Y)"] - q["I(G;Y)"], abs=1e-6)


@given(SIZES, SEEDS)
def test_laws_of_a_chain(sizes, seed):
    q = theory.quantities(theory.random_chain(np.random.default_rng(seed), sizes))
    assert q["I(G;Y|F)"] == pytest.approx(0, abs=1e-9)
    assert q["I(F;G)"] == pytest.approx(q["I(F;G|Y)"] + q["I(G;Y)"], abs=1e-9)
    assert q["I(F;Y)"] - q["I(G;Y)"] == pytest.approx(q["KL"], abs=1e-9)


def test_verdicts_follow_from_the_draws():
    verdict = theory_checks.check_statements(theory.draw(50)).set_index(["statement", "for"])[
        "verdict"
    ]
    assert set(verdict.xs("chain", level="for")[:5]) == {"holds"}
    assert verdict["Corollary 1: I(F;G) = I(F;G|Y) + I(G;Y)", "any joint"] == "does not hold"
    assert verdict["printed proof of Corollary 2, f and g paired", "chain"] == "does not hold"
    assert verdict["printed proof of Corollary 2, f and g independent", "chain"] == "holds"


def test_the_loss_goes_to_zero_while_the_noise_comes_back():
    paths = theory_checks.paths_to_zero(points=9, n_noise=4).set_index("keeps")
    kept = paths.loc["everything"]
    assert kept["KL"].is_monotonic_decreasing
    assert kept["KL"].iloc[-1] == pytest.approx(0, abs=1e-9)
    assert kept["I(F;G|Y)"].iloc[-1] == pytest.approx(2)  # log2(4), all of the noise
    assert paths.loc["the category", "I(F;G|Y)"].abs().max() < 1e-9


def test_wrong_input_is_named():
    with pytest.raises(MetricError, match="channel must sum to 1"):
        theory.chain(np.array([[0.5, 0.5]]), np.ones((2, 2)))
    with pytest.raises(MetricError, match="paired, independent, got 'both'"):
        theory.expected_kl(np.ones((1, 1, 1)), pairing="both")
