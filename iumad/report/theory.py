"""The paper's information theory (Eq. 6 to 8, Corollaries 1 and 2) on discrete variables, exactly.

Statements are held against exact numbers of random distributions, and against small cases in which a step of the
argument fails. Everything is in bits. Sums over all states take the place of estimates, so what differs from zero
by more than rounding does differ.

Glossary
    Y      category, F_fu's label
    F, G   the fused feature F_fu and the feature behind the bottleneck F_fu^g
    joint  array p[y, f, g] of probabilities that sum to 1
    chain  Y - F - G: G is made from F alone, p(g | y, f) = p(g | f), as behind a bottleneck
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from markupsafe import Markup
from matplotlib.figure import Figure

from iumad.errors import MetricError
from iumad.report.style import MARKERS, OKABE_ITO, fill, in_style, keep_table, panels

Joint = Float64[np.ndarray, "y f g"]
Y, F, G = 0, 1, 2  # axes of a joint
CONCENTRATION = (
    0.5  # of the Dirichlet distribution: below 1, some states are much likelier than others
)
MAX_STATES = 6


def entropy(joint: np.ndarray) -> float:
    """Entropy in bits of a distribution of any number of axes; 0 log 0 is 0."""
    p = joint[joint > 0]
    return float(-np.sum(p * np.log2(p)))


def information(joint: Joint, a: int, b: int) -> float:
    """Mutual information I(A; B) in bits of two axes of a joint (paper Eq. 6)."""
    return (
        entropy(_marginal(joint, a))
        + entropy(_marginal(joint, b))
        - entropy(_marginal(joint, a, b))
    )


def conditional_information(joint: Joint, a: int, b: int, given: int) -> float:
    """Conditional mutual information I(A; B | C) in bits of three axes of a joint."""
    pairs = entropy(_marginal(joint, a, given)) + entropy(_marginal(joint, b, given))
    return pairs - entropy(joint) - entropy(_marginal(joint, given))


def expected_kl(
    joint: Joint,
    heads: tuple[np.ndarray, np.ndarray] | None = None,
    pairing: str = "paired",
) -> float:
    """Paper Eq. 8, KL[p(Y | f) || p(Y | g)] in bits, averaged over f and g.

    Parameters
    ----------
    joint : array p[y, f, g]
    heads : pair of arrays (y, f) and (y, g), optional
        Predicted class probabilities in columns; default: the true posteriors p(y | f) and p(y | g).
    pairing : {"paired", "independent"}
        Whether g is the one made from f, as in training, or drawn without regard to it.
    """
    of_f, of_g = heads or (posterior(joint, F), posterior(joint, G))
    return float(np.sum(_weights(joint, pairing) * _kl(of_f[:, :, None], of_g[:, None, :])))


def printed_difference(joint: Joint, pairing: str) -> float:
    """Right side of the last line of the printed proof of Corollary 2, in bits.

    The paper says that it equals I(Y; F) - I(Y; G). It does not say how the f and the g of one term belong
    together, so both readings are offered (`expected_kl`).
    """
    of_f, of_g = posterior(joint, F)[:, :, None], posterior(joint, G)[:, None, :]
    prior = _marginal(joint, Y)[:, None, None]
    log_ratio = np.log2(np.maximum(of_g, np.finfo(float).tiny)) - np.log2(
        np.maximum(of_f, np.finfo(float).tiny)
    )
    terms = _kl(of_f, of_g) - _kl(of_g, of_f) + np.sum(prior * log_ratio, axis=0)
    return float(np.sum(_weights(joint, pairing) * terms))


def posterior(joint: Joint, axis: int) -> Float64[np.ndarray, "y n"]:
    """p(y | f) or p(y | g) in columns; uniform for a state that never occurs."""
    together = _marginal(joint, Y, axis)
    total = together.sum(axis=0, keepdims=True)
    uniform = np.full_like(together, 1 / len(together))
    return np.divide(together, total, out=uniform, where=total > 0)


def random_joint(rng: np.random.Generator, sizes: Sequence[int]) -> Joint:
    """Draw any distribution of Y, F and G."""
    return rng.dirichlet(np.full(int(np.prod(sizes)), CONCENTRATION)).reshape(sizes)


def random_chain(rng: np.random.Generator, sizes: Sequence[int]) -> Joint:
    """Draw a distribution in which G is made from F alone."""
    n_y, n_f, n_g = sizes
    label_and_feature = rng.dirichlet(np.full(n_y * n_f, CONCENTRATION)).reshape(n_y, n_f)
    return chain(label_and_feature, rng.dirichlet(np.full(n_g, CONCENTRATION), size=n_f))


def chain(
    label_and_feature: Float64[np.ndarray, "y f"], channel: Float64[np.ndarray, "f g"]
) -> Joint:
    """Join p(y, f) and a channel p(g | f) (rows) to the chain Y - F - G."""
    for name, total in (
        ("label_and_feature", label_and_feature.sum()),
        ("channel", channel.sum(axis=1)),
    ):
        if not np.allclose(total, 1):
            raise MetricError(f"{name} must sum to 1, got {total}")
    return label_and_feature[:, :, None] * channel[None]


def quantities(joint: Joint) -> dict[str, float]:
    """All informations that the corollaries speak of, in bits."""
    blind = np.full(joint.shape[0], 1 / joint.shape[0])[:, None]
    constant = (np.repeat(blind, joint.shape[F], 1), np.repeat(blind, joint.shape[G], 1))
    return {
        "I(F;Y)": information(joint, F, Y),
        "I(G;Y)": information(joint, G, Y),
        "I(F;G)": information(joint, F, G),
        "I(F;G|Y)": conditional_information(joint, F, G, Y),
        "I(G;Y|F)": conditional_information(joint, G, Y, F),
        "KL": expected_kl(joint),
        "KL, independent": expected_kl(joint, pairing="independent"),
        "KL, constant heads": expected_kl(joint, constant),
        "printed, paired": printed_difference(joint, "paired"),
        "printed, independent": printed_difference(joint, "independent"),
    }


def draw(n: int, seed: int = 0) -> pd.DataFrame:
    """Quantities of n random chains and n random joints of 2 to `MAX_STATES` states per variable.

    Returns
    -------
    pandas.DataFrame
        kind ("chain" or "any joint") and a column per quantity.
    """
    rng = np.random.default_rng(seed)
    records = []
    for kind, make in (("chain", random_chain), ("any joint", random_joint)):
        for _ in range(n):
            sizes = rng.integers(2, MAX_STATES + 1, size=3).tolist()
            records.append({"kind": kind, **quantities(make(rng, sizes))})
    return pd.DataFrame(records)


def _marginal(joint: Joint, *axes: int) -> np.ndarray:
    """Distribution of some axes, in increasing order."""
    return joint.sum(axis=tuple(axis for axis in range(joint.ndim) if axis not in axes))


def _weights(joint: Joint, pairing: str) -> Float64[np.ndarray, "f g"]:
    if pairing == "paired":
        return _marginal(joint, F, G)
    if pairing == "independent":
        return np.outer(_marginal(joint, F), _marginal(joint, G))
    raise MetricError(f"pairing must be one of paired, independent, got {pairing!r}")


def _kl(p: np.ndarray, q: np.ndarray) -> Float64[np.ndarray, "f g"]:
    """KL[p || q] in bits over the first axis; where q is 0 and p is not, a very large number."""
    tiny = np.finfo(float).tiny
    return np.sum(p * (np.log2(np.maximum(p, tiny)) - np.log2(np.maximum(q, tiny))), axis=0)


ROUNDING = 1e-9  # bits; differences below it are rounding
COLOURS = (OKABE_ITO["blue"], OKABE_ITO["vermilion"])


def check_statements(drawn: pd.DataFrame) -> pd.DataFrame:
    """Hold each statement against each drawn distribution.

    Returns
    -------
    pandas.DataFrame
        statement, for (kind of joint), draws, worst (largest violation in bits), broken (share of the draws
        that violate it by more than rounding), verdict.
    """
    gap = drawn["I(F;Y)"] - drawn["I(G;Y)"]
    parts = drawn["I(F;G|Y)"] + drawn["I(G;Y)"]
    violations = {
        "chain rule: I(F;G) + I(G;Y|F) = I(F;G|Y) + I(G;Y)": drawn["I(F;G)"]
        + drawn["I(G;Y|F)"]
        - parts,
        "Corollary 1: I(F;G) = I(F;G|Y) + I(G;Y)": drawn["I(F;G)"] - parts,
        "data processing: I(G;Y) ≤ I(F;Y)": np.maximum(-gap, 0),
        "Eq. 7 = Eq. 8: I(F;Y) - I(G;Y) = KL": gap - drawn["KL"],
        "f and g independent: I(F;Y) ≤ KL": np.maximum(
            drawn["I(F;Y)"] - drawn["KL, independent"], 0
        ),
        "printed proof of Corollary 2, f and g paired": gap - drawn["printed, paired"],
        "printed proof of Corollary 2, f and g independent": gap - drawn["printed, independent"],
    }
    records = []
    for statement, violation in violations.items():
        for kind, size in np.abs(violation).groupby(drawn["kind"], sort=False):
            broken = float((size > ROUNDING).mean())
            verdict = "does not hold" if broken else "holds"
            records.append((statement, kind, len(size), size.max(), broken, verdict))
    return pd.DataFrame(
        records, columns=["statement", "for", "draws", "worst", "broken", "verdict"]
    )


def counterexamples(n_categories: int = 4, n_noise: int = 4) -> pd.DataFrame:
    """Small cases in which a step of the argument fails, with their quantities in bits.

    F holds the category and an independent, uniform noise state unless the case says otherwise.

    Returns
    -------
    pandas.DataFrame
        case and the quantities that matter.
    """
    feature = _category_and_noise(n_categories, n_noise)
    only = np.ones((1, n_noise)) / n_noise
    exclusive_or = np.zeros((2, 2, 2))
    for f in range(2):
        for g in range(2):
            exclusive_or[f ^ g, f, g] = 0.25
    cases = {
        "Y = F xor G, G not made from F": exclusive_or,
        "G = F, everything is kept": chain(feature, np.eye(feature.shape[1])),
        "G = the category in F, the rest is dropped": chain(
            feature, _category_channel(n_categories, n_noise)
        ),
        "G constant, everything is dropped": chain(feature, np.ones((feature.shape[1], 1))),
        "F and G constant": chain(np.full((n_categories, 1), 1 / n_categories), np.ones((1, 1))),
        "one category, G = F": chain(only, np.eye(n_noise)),
        "one category, G constant": chain(only, np.ones((n_noise, 1))),
    }
    table = pd.DataFrame([{"case": name, **quantities(joint)} for name, joint in cases.items()])
    shown = ["case", "I(F;Y)", "I(G;Y)", "I(F;G)", "I(F;G|Y)", "KL", "KL, constant heads"]
    return table[shown]


def answer(checked: pd.DataFrame, cases: pd.DataFrame) -> list[Markup]:
    """What the page finds, from `check_statements` and `counterexamples`."""
    verdicts = checked.groupby("statement", sort=False)["verdict"].unique()
    always = sum(list(found) == ["holds"] for found in verdicts)
    chains = checked[checked["for"] == "chain"]
    never = list(chains.loc[chains["verdict"] != "holds", "statement"])
    copy, blind = cases.iloc[1], cases.iloc[3]
    return [
        fill(
            "Of {} statements, {} hold for every distribution and {} more if G is made from F alone: then Eq. 8 "
            "equals Eq. 7 to within rounding. Not even then: {}.",
            *(
                len(verdicts),
                always,
                len(verdicts) - always - len(never),
                "; ".join(never) or "none",
            ),
        ),
        fill(
            "So the loss asks that G knows as much about the category as F. It does <b>not</b> ask that G forgets "
            "anything: it is zero with {} redundant bits kept, and with {} bits about the category lost when both "
            "heads are constant.",
            *(f"{copy['I(F;G|Y)']:.2g}", f"{blind['I(F;Y)']:.2g}"),
        ),
    ]


def paths_to_zero(points: int = 33, n_categories: int = 4, n_noise: int = 4) -> pd.DataFrame:
    """Two bottlenecks whose KL goes to zero, one of which keeps all noise.

    Each passes its symbol on, except that with a probability from 1 to 0 it sends a random one.

    Returns
    -------
    pandas.DataFrame
        keeps ("everything" or "the category"), and the quantities along the path.
    """
    feature = _category_and_noise(n_categories, n_noise)
    channels = {
        "everything": np.eye(feature.shape[1]),
        "the category": _category_channel(n_categories, n_noise),
    }
    records = []
    for name, channel in channels.items():
        for lost in np.linspace(1, 0, points) ** 2:  # more points near zero
            mixed = (1 - lost) * channel + lost / channel.shape[1]
            records.append({"keeps": name, "lost": lost, **quantities(chain(feature, mixed))})
    return pd.DataFrame(records)


def _category_and_noise(n_categories: int, n_noise: int) -> Float64[np.ndarray, "y f"]:
    """p(y, f) of f = (y, noise), all equally likely."""
    return np.repeat(np.eye(n_categories), n_noise, axis=1) / (n_categories * n_noise)


def _category_channel(n_categories: int, n_noise: int) -> Float64[np.ndarray, "f g"]:
    return np.repeat(np.eye(n_categories), n_noise, axis=0)


@in_style
def redundancy_on_the_way_to_zero(paths: pd.DataFrame) -> Figure:
    """Draw what is kept besides the category while the KL goes to zero (`paths_to_zero`)."""
    figure, axes = panels(2)
    names = {"I(G;Y)": "I(G;Y), about the category", "I(F;G|Y)": "I(F;G|Y), redundant"}
    for axis, (column, label) in zip(axes, names.items(), strict=True):
        for place, (keeps, path) in enumerate(paths.groupby("keeps", sort=False)):
            look: dict[str, Any] = {
                "color": COLOURS[place],
                "marker": MARKERS[place],
                "markevery": 4,
            }
            axis.plot(path["KL"], path[column], label=f"G keeps {keeps}", **look)
        axis.set(xlabel="KL, Eq. 8 (bits)", ylabel=f"{label} (bits)")
        axis.invert_xaxis()  # to the right, the loss falls
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return keep_table(figure, paths)
