"""Summaries over seeds, paired comparisons with Holm's correction, and ranks.

Intervals are 95 % Student t intervals of a mean. scipy and statsmodels do the computing.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from iumad.errors import DataError

CONFIDENCE = 0.95
FEW = 6  # pairs from which an exact signed rank test can reach p < 0.05: 2 / 2**6


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


def paired_tests(
    table: pd.DataFrame,
    reference: str,
    factor: str = "method",
    by: Sequence[str] = ("modality", "setting", "metric"),
    pair: Sequence[str] = ("seed", "category"),
) -> pd.DataFrame:
    """Compare each level of a factor with a reference level on the same pairs.

    Categories of one seed share a model and are not independent; ``pair=("seed",)`` on means over
    categories is the strict reading, at the price of few pairs.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns `factor`, `by`, `pair` and value, e.g. the last step's rows.
    reference : str
        Level of the factor that the others are compared with, e.g. "iuf".
    factor : str
        Column that is compared, e.g. "method" or "modality".
    by : sequence of str
        Columns that make one comparison; they must not contain the factor.
    pair : sequence of str
        Columns that make a pair. A pair that one side lacks is left out; `n` says how many remain.

    Returns
    -------
    pandas.DataFrame
        `by`, factor, reference, n, difference (mean of level - reference), low, high, effect_size
        (Cohen's d of the differences; missing if they are all equal), p (two-sided; Wilcoxon's signed
        rank test, or Student's t test of fewer than `FEW` pairs, where the former cannot fall below
        5 %; 1 if all differences are 0), p_holm (Holm's correction over all rows of the result).

    Raises
    ------
    DataError
        If a pair occurs twice, the reference is missing, or fewer than two pairs remain.
    """
    _require_unique(table, [*by, factor, *pair])
    records = []
    for keys, group in table.groupby(list(by), sort=False):
        wide = _wide(group, pair, factor)
        if reference not in wide:
            raise DataError(f"{factor} {reference!r} has no value for {_named(by, keys)}")
        for level in [name for name in group[factor].unique() if name != reference]:
            difference = (wide[level] - wide[reference]).dropna().to_numpy()
            if len(difference) < 2:
                raise DataError(
                    f"{level} and {reference} need 2 common pairs of {' x '.join(pair)} for "
                    f"{_named(by, keys)}, got {len(difference)}"
                )
            records.append((*keys, level, reference, *_compare(difference)))
    columns = ["n", "difference", "low", "high", "effect_size", "p"]
    tests = pd.DataFrame(records, columns=[*by, factor, "reference", *columns])
    if tests.empty:
        raise DataError(f"there is nothing to compare with {factor} {reference!r}")
    return tests.assign(p_holm=multipletests(tests["p"], method="holm")[1])


def mean_ranks(
    table: pd.DataFrame,
    factor: str = "method",
    block: Sequence[str] = ("seed", "category"),
    less_is_better: bool = False,
) -> pd.DataFrame:
    """Mean rank of each level over blocks, rank 1 being the best and ties sharing their mean rank.

    Two levels differ at 5 % by Nemenyi's test if their mean ranks are further apart than the
    critical difference; that test presumes that Friedman's rejects (Demsar, JMLR 2006).

    Parameters
    ----------
    table : pandas.DataFrame
        Columns `factor`, `block` and value of one metric; incomplete blocks are left out.
    factor, block
        The column that is ranked and those that make a block.
    less_is_better : bool
        True for forgetting.

    Returns
    -------
    pandas.DataFrame
        `factor`, rank, n (blocks), critical_difference, p_friedman (missing for two levels), best
        level first.

    Raises
    ------
    DataError
        If a level occurs twice in a block, or there is one level or no complete block.
    """
    _require_unique(table, [factor, *block])
    wide = _wide(table, block, factor).dropna()
    n, n_levels = wide.shape
    if n == 0 or n_levels < 2:
        raise DataError(f"ranks need 2 levels of {factor} in a block, got {n_levels} in {n} blocks")
    ranks = wide.rank(axis=1, ascending=less_is_better)
    studentised = stats.studentized_range.ppf(CONFIDENCE, n_levels, np.inf)
    return (
        ranks.mean()
        .rename("rank")
        .reset_index()
        .assign(
            n=n,
            critical_difference=studentised * np.sqrt(n_levels * (n_levels + 1) / (12 * n)),
            p_friedman=_friedman(ranks.to_numpy()),
        )
        .sort_values("rank", ignore_index=True)
    )


def _wide(table: pd.DataFrame, index: Sequence[str], factor: str) -> pd.DataFrame:
    # Unlike pivot_table, pivot averages nothing.
    return table.pivot(index=list(index), columns=factor, values="value")  # noqa: PD010


def _compare(difference: np.ndarray) -> tuple[int, float, float, float, float, float]:
    n, mean, sd = len(difference), difference.mean(), difference.std(ddof=1)
    half = _half_width(sd, n)
    effect_size = mean / sd if sd > 0 else np.nan
    return n, mean, mean - half, mean + half, effect_size, _p_value(difference)


def _p_value(difference: np.ndarray) -> float:
    if not difference.any():
        return 1.0
    if len(difference) >= FEW:
        return float(stats.wilcoxon(difference).pvalue)
    if (difference == difference[0]).all():
        return 0.0  # the limit of the t test, which divides by the deviation
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def _friedman(ranks: np.ndarray) -> float:
    if ranks.shape[1] < 3:
        return np.nan
    if (ranks == ranks[:, :1]).all():
        return 1.0  # all levels tie everywhere
    return float(stats.friedmanchisquare(*ranks.T).pvalue)


def _half_width(sd: "pd.Series | float", n: "pd.Series | int") -> "pd.Series | float":
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
