"""Summaries over seeds, paired differences with one verdict for each, and a bootstrap as a second view.

The unit is the seed: it decides data, initialisation and order of a run, and the categories of one run share a
model. So categories are averaged inside a seed, and n is the number of seeds. Intervals are 95 % Student t
intervals of a mean.

Glossary: m is the number of comparisons in a family; a difference is positive where it speaks for the statement.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import optimize, stats
from scipy.special import ndtr

from iumad.errors import DataError

CONFIDENCE = 0.95
ERROR = 1 - CONFIDENCE  # chance of a wrong "supported" or "contradicted" in a family of comparisons
POWER = 0.8  # at which the smallest detectable difference is found
MARGIN = 0.01  # one point of a fraction: less than that is no difference

SUPPORTED, CONTRADICTED = "supported", "contradicted"
NO_DIFFERENCE, UNDECIDED = "no difference", "undecided"
UNTRAINED = "not trained enough"
VERDICTS = (SUPPORTED, CONTRADICTED, NO_DIFFERENCE, UNDECIDED, UNTRAINED)


def summarise(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean, standard deviation, number of seeds and interval of the mean.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns `by`, seed and value; one value per seed in each group.
    by : sequence of str
        Columns that make a group.

    Returns
    -------
    pandas.DataFrame
        `by`, mean, sd (n - 1 in the denominator), n, low, high. One seed has no sd and no interval
        (missing); a missing value makes its group's numbers missing.

    Raises
    ------
    DataError
        If a seed occurs twice in a group: `by` lacks the column that tells its values apart.
    """
    _require_unique(table, [*by, "seed"])
    groups = table.groupby(list(by), sort=False)["value"]
    summary = pd.DataFrame(
        {"mean": groups.mean(skipna=False), "sd": groups.std(skipna=False), "n": groups.size()}
    ).reset_index()
    half = _half_width(summary["sd"], summary["n"])
    return summary.assign(low=summary["mean"] - half, high=summary["mean"] + half)


def judge(differences: pd.DataFrame, by: Sequence[str], family: Sequence[str]) -> pd.DataFrame:
    """Estimate every difference over its seeds, and give the verdict, which gates may still withhold (`verdicts`).

    - *supported*: above 0 after Holm's correction, so that the chance of one wrong word in a family is 5 %;
    - *contradicted*: below 0 in the same way;
    - *no difference*: the 95 % interval lies inside ± margin;
    - *undecided*: everything else; with one seed there is no interval.

    Parameters
    ----------
    differences : pandas.DataFrame
        `by`, `family`, seed, value, margin; one value per seed, positive where it speaks for the statement.
        A seed with a missing value does not count, but a comparison without any is one of its family all the same.
    by : sequence of str
        Columns that name one comparison.
    family : sequence of str
        Columns that name the comparisons that are corrected together.

    Returns
    -------
    pandas.DataFrame
        `by`, n, mean, sd, low, high, p (Student's t test, two-sided), p_holm, m, detectable (the smallest true
        difference that such an experiment finds with a chance of 80 %, see `smallest_detectable`), verdict.

    Raises
    ------
    DataError
        If a seed occurs twice in a comparison.
    """
    names = list(dict.fromkeys([*by, *family]))
    _require_unique(differences, [*names, "seed"])
    groups = differences.groupby(names, sort=False)
    table = groups["value"].agg(n="count", mean="mean", sd="std").reset_index()
    half = _half_width(table["sd"], table["n"])
    table = table.assign(low=table["mean"] - half, high=table["mean"] + half)
    table["p"] = _t_test(table["mean"], table["sd"], table["n"])
    families = table.groupby(list(family), sort=False)["p"]
    table["p_holm"], table["m"] = families.transform(holm), families.transform("size")
    table["detectable"] = [
        smallest_detectable(row.sd, row.n, ERROR / row.m) for row in table.itertuples()
    ]
    margin = groups["margin"].first().to_numpy()
    told_apart = (table["p_holm"] < ERROR).to_numpy()
    inside = ((table["low"] > -margin) & (table["high"] < margin)).to_numpy()
    choices = [told_apart & (table["mean"] > 0), told_apart, inside]
    words = np.select(choices, [SUPPORTED, CONTRADICTED, NO_DIFFERENCE], default=UNDECIDED)
    return table.drop(columns=[name for name in family if name not in by]).assign(verdict=words)


def holm(p: "pd.Series | Float[np.ndarray, ' m']") -> Float[np.ndarray, " m"]:
    """Holm's corrected p values; a missing one counts as 1, since its comparison was planned too."""
    filled = np.nan_to_num(np.asarray(p, dtype=float), nan=1.0)
    order, m = np.argsort(filled), len(filled)
    corrected = np.empty(m)
    corrected[order] = np.minimum(np.maximum.accumulate(filled[order] * (m - np.arange(m))), 1)
    return corrected


def smallest_detectable(sd: float, n: int, error: float = ERROR) -> float:
    """The smallest true difference that a new experiment of this design finds with a chance of 80 %.

    The new experiment has its own n seeds, and its deviation is known from these n seeds only, which is taken into
    account: with 5 seeds the factor of `sd` is 2.1, where a known deviation would give 1.7.

    Parameters
    ----------
    sd : float
        Standard deviation of the differences over seeds.
    n : int
        Number of seeds; with one, nothing can be found (missing).
    error : float
        Chance of a wrong verdict of this comparison: 5 %, divided by the number of comparisons in the family, for
        Holm's correction finds at least what this finds.
    """
    return float("nan") if n < 2 else _detectable_deviations(int(n), float(error)) * sd


@lru_cache
def _detectable_deviations(n: int, error: float) -> float:
    """`smallest_detectable` in standard deviations; P(|mean| > t sd / sqrt(n)), averaged over both deviations."""
    freedom, places = n - 1, (np.arange(200) + 0.5) / 200
    deviation = np.sqrt(stats.chi2.ppf(places, freedom) / freedom)  # of n seeds, true value 1
    border = stats.t.ppf(1 - error / 2, freedom) * deviation[None, :]

    def missing_power(factor: float) -> float:
        centre = factor * np.sqrt(n) * deviation[:, None]
        return float((ndtr(centre - border) + ndtr(-border - centre)).mean()) - POWER

    return float(optimize.brentq(missing_power, 0, 1e7))


def interquartile_mean(values: Float[np.ndarray, "*rest n"]) -> Float[np.ndarray, "*rest"]:
    """Mean of the middle half of the values along the last axis."""
    return np.asarray(stats.trim_mean(values, 0.25, axis=-1))


def bootstrap(
    table: pd.DataFrame,
    by: Sequence[str],
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    draws: int = 2000,
) -> pd.DataFrame:
    """A statistic over seeds and categories with its stratified bootstrap interval, as a second view.

    Categories are the strata: in every draw, seeds are drawn with replacement for each category on its own
    (Agarwal et al., NeurIPS 2021). Categories of one seed are treated as independent, which they are not quite, so
    the interval is rather too narrow; verdicts come from `judge`.

    Parameters
    ----------
    table : pandas.DataFrame
        `by`, seed, category, value: scores, or differences; every seed has every category.
    by : sequence of str
        Columns that make a group.
    statistic : callable
        Of the last axis of an array.
    draws : int
        Number of bootstrap samples; they are drawn from seed 0.

    Returns
    -------
    pandas.DataFrame
        `by`, n (seeds), value, low, high (95 % percentile interval). A missing value makes all of them missing.

    Raises
    ------
    DataError
        If a seed lacks a category, or has it twice.
    """
    records = []
    for keys, scores in _matrices(table, by):
        drawn = _resampled(scores, draws)
        value = float(statistic(scores.reshape(-1)))
        low, high = np.quantile(statistic(drawn), [ERROR / 2, 1 - ERROR / 2])
        records.append((*keys, len(scores), value, low, high))
    return pd.DataFrame(records, columns=[*by, "n", "value", "low", "high"])


def performance_profile(
    table: pd.DataFrame, by: Sequence[str], thresholds: Float[np.ndarray, " k"], draws: int = 2000
) -> pd.DataFrame:
    """Share of all (seed, category) pairs whose value is above each threshold, with its bootstrap interval.

    Parameters
    ----------
    table, by, draws
        See `bootstrap`.
    thresholds : array
        In the unit of the values.

    Returns
    -------
    pandas.DataFrame
        `by`, threshold, share, low, high.
    """
    tables = []
    for keys, scores in _matrices(table, by):
        drawn = _resampled(scores, draws)
        shares = np.array([(drawn > t).mean(axis=-1) for t in thresholds])
        low, high = np.quantile(shares, [ERROR / 2, 1 - ERROR / 2], axis=1)
        profile = {
            **dict(zip(by, keys, strict=True)),
            "threshold": thresholds,
            "share": [(scores > t).mean() for t in thresholds],
            "low": low,
            "high": high,
        }
        tables.append(pd.DataFrame(profile))
    columns = [*by, "threshold", "share", "low", "high"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _t_test(mean: pd.Series, sd: pd.Series, n: pd.Series) -> Float[np.ndarray, " m"]:
    """Two-sided p of Student's t test that the mean is 0: its limit without a deviation, missing for one seed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(mean) * np.sqrt(n) / sd
    p = 2 * stats.t.sf(t, n - 1)
    p = np.where((sd == 0) & (mean == 0), 1.0, p)
    return np.where(n < 2, np.nan, p)


def _matrices(
    table: pd.DataFrame, by: Sequence[str]
) -> list[tuple[tuple, Float[np.ndarray, "seeds categories"]]]:
    """The values of each group, seeds by categories."""
    _require_unique(table, [*by, "seed", "category"])
    found = []
    for keys, part in table.groupby(list(by), sort=False, observed=True):
        wide = part.pivot(index="seed", columns="category", values="value")  # noqa: PD010
        if len(part) < wide.size:
            raise DataError(
                f"{_named(by, keys)}: {wide.size} pairs of seed and category are needed, got {len(part)}"
            )
        found.append((keys, wide.to_numpy()))
    return found


def _resampled(
    scores: Float[np.ndarray, "seeds categories"], draws: int
) -> Float[np.ndarray, "draws pairs"]:
    """Bootstrap samples: within each category, seeds drawn with replacement."""
    n_seeds, n_categories = scores.shape
    chosen = np.random.default_rng(0).integers(n_seeds, size=(draws, n_seeds, n_categories))
    return scores[chosen, np.arange(n_categories)].reshape(draws, -1)


def _half_width(sd: pd.Series, n: pd.Series) -> pd.Series:
    return stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * sd / np.sqrt(n)


def _require_unique(table: pd.DataFrame, keys: list[str]) -> None:
    missing = [key for key in [*keys, "value"] if key not in table.columns]
    if missing:
        raise DataError(f"the table lacks {', '.join(missing)}; it has {', '.join(table.columns)}")
    repeated = table[table.duplicated(keys)]
    if len(repeated):
        raise DataError(
            f"{len(repeated)} values share all of {', '.join(keys)}, "
            f"first {_named(keys, tuple(repeated.iloc[0][keys]))}"
        )


def _named(names: Sequence[str], values: tuple) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
