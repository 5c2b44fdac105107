"""The paper's statements held against exact numbers, and small cases in which a step of the argument fails."""

import numpy as np
import pandas as pd
from jaxtyping import Float64

from iumad.theory import chain, quantities

ROUNDING = 1e-9  # bits; differences below it are rounding


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
