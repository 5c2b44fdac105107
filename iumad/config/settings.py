"""Incremental scenarios: a setting such as ``6-1`` split over the categories of a data set.

A setting names how many categories each step learns (paper §4.1):

    ``10-0``   one step with all ten categories
    ``6-4``    six categories, then four
    ``6-1``    six categories, then one at a time until none is left
    ``1-1``    one at a time from the start
    ``6-2-2``  three or more numbers list every step
"""

import re
from collections.abc import Sequence

from iumad.errors import ConfigError

SETTING_PATTERN = re.compile(r"[1-9]\d*(-0|(-[1-9]\d*)+)")


def parse_setting(setting: str, categories: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Categories that each step learns, in the order given.

    Parameters
    ----------
    setting : str
        ``base-increment`` or the size of every step, see the module's text.
    categories : sequence of str
        All categories, distinct, in the order in which they are learnt.

    Returns
    -------
    tuple of tuple of str
        One tuple per step; together they are `categories`, each once and in order.

    Raises
    ------
    ConfigError
        If the setting is not written as above or does not use up the categories exactly.
    """
    repeated = sorted({name for name in categories if list(categories).count(name) > 1})
    if repeated:
        raise ConfigError(f"categories must be distinct, got {', '.join(repeated)} more than once")

    sizes = _step_sizes(setting, len(categories))
    ends = [sum(sizes[: step + 1]) for step in range(len(sizes))]
    return tuple(tuple(categories[end - size : end]) for size, end in zip(sizes, ends, strict=True))


def _step_sizes(setting: str, n_categories: int) -> list[int]:
    if not SETTING_PATTERN.fullmatch(setting):
        raise ConfigError(f"setting must look like 10-0, 6-1 or 6-2-2, got {setting!r}")

    sizes = [int(part) for part in setting.split("-")]
    if len(sizes) == 2:
        base, increment = sizes
        n_increments = max(1, (n_categories - base) // increment) if increment else 0
        sizes = [base] + [increment] * n_increments
    if sum(sizes) != n_categories:
        raise ConfigError(
            f"setting {setting} does not fit {n_categories} categories: its steps must add up to "
            f"them exactly, e.g. {n_categories}-0 for one step or 1-1 for one category a step"
        )
    return sizes
