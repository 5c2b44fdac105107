"""Settings are split into steps that partition the categories in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iumad.config.schema import parse_setting
from iumad.errors import ConfigError

TEN = tuple("abcdefghij")


@pytest.mark.parametrize(
    ("setting", "sizes"),
    [
        ("10-0", [10]),
        ("9-1", [9, 1]),
        ("6-4", [6, 4]),
        ("6-1", [6, 1, 1, 1, 1]),
        ("6-2", [6, 2, 2]),
        ("1-1", [1] * 10),
        ("6-2-2", [6, 2, 2]),
        ("1-2-3-4", [1, 2, 3, 4]),
    ],
)
def test_sizes_of_ten_categories(setting, sizes):
    steps = parse_setting(setting, TEN)
    assert [len(step) for step in steps] == sizes
    assert sum(steps, ()) == TEN


def test_steps_by_hand():
    assert parse_setting("2-1", ["bagel", "carrot", "rope"]) == (("bagel", "carrot"), ("rope",))


@given(base=st.integers(1, 6), increment=st.integers(1, 4), n_increments=st.integers(1, 4))
def test_base_and_increments_partition_the_categories_in_order(base, increment, n_increments):
    categories = tuple(f"c{i}" for i in range(base + increment * n_increments))
    steps = parse_setting(f"{base}-{increment}", categories)
    assert sum(steps, ()) == categories
    assert len(steps[0]) == base
    assert all(len(step) == increment for step in steps[1:])


@given(sizes=st.lists(st.integers(1, 5), min_size=3, max_size=6))
def test_explicit_sizes_partition_the_categories_in_order(sizes):
    categories = tuple(f"c{i}" for i in range(sum(sizes)))
    steps = parse_setting("-".join(map(str, sizes)), categories)
    assert sum(steps, ()) == categories
    assert [len(step) for step in steps] == sizes


@pytest.mark.parametrize("setting", ["6-3", "9-0", "10-1", "11-1", "6-2-1", "6-2-4"])
def test_setting_that_does_not_fit_is_refused(setting):
    with pytest.raises(ConfigError, match=f"setting {setting} does not fit 10 categories"):
        parse_setting(setting, TEN)


@pytest.mark.parametrize(
    "setting", ["", "6", "6-", "-1", "6-x", "0-1", "6--1", "6-4-0", "6.1", "06-4"]
)
def test_malformed_setting_is_refused(setting):
    with pytest.raises(ConfigError, match="must look like"):
        parse_setting(setting, TEN)


def test_repeated_category_is_refused():
    with pytest.raises(ConfigError, match="distinct, got a more than once"):
        parse_setting("2-1", ["a", "b", "a"])
