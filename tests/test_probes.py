"""Linear probes on representations whose information is known."""

import numpy as np
import pandas as pd
import pytest

from iumad.errors import DataError
from iumad.study.diagnosis import probe

N = 400


def one(representation, **target):
    table = pd.DataFrame(target)
    (row,) = probe({"x": representation}, table, pd.Series(range(len(table)))).to_dict("records")
    return row


def test_a_gaussian_channel_has_the_bits_of_its_formula():
    rng = np.random.default_rng(0)
    strength = rng.standard_normal(N)
    for noise in (0.5, 2.0):
        channel = np.c_[strength + noise * rng.standard_normal(N), rng.standard_normal((N, 4))]
        row = one(channel, strength=strength)
        assert row["bits"] == pytest.approx(0.5 * np.log2(1 + 1 / noise**2), abs=0.08)
        assert row["score"] == pytest.approx(1 / (1 + noise**2), abs=0.06)


def test_classes_that_are_apart_have_all_bits_and_independent_ones_none():
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=N)
    names = np.array(["a", "b", "c", "d"])[labels]
    apart = 8 * np.eye(4)[labels] + rng.standard_normal((N, 4))
    row = one(apart, category=names)
    assert row["possible"] == pytest.approx(2, abs=0.02)
    assert row["bits"] == pytest.approx(row["possible"], abs=0.05) and row["score"] > 0.99
    row = one(rng.standard_normal((N, 20)), category=names)
    assert row["bits"] < 0.05 and abs(row["score"] - row["chance"]) < 0.1


def test_bits_of_two_classes_in_noise_stay_below_the_truth_and_near_it():
    # Y = +-1 with noise of deviation 1: I(X; Y) = 0.486 bits (numerical integration below).
    rng = np.random.default_rng(2)
    sign = rng.choice([-1, 1], 1200)
    x = np.linspace(-9, 9, 12001)
    density = (np.exp(-((x - 1) ** 2) / 2) + np.exp(-((x + 1) ** 2) / 2)) / np.sqrt(8 * np.pi)
    truth = np.trapezoid(-density * np.log2(density), x) - 0.5 * np.log2(2 * np.pi * np.e)
    row = one((sign + rng.standard_normal(1200))[:, None], side=np.where(sign > 0, "up", "down"))
    assert row["bits"] == pytest.approx(truth, abs=0.05)


def test_a_bottleneck_that_drops_the_noise_and_keeps_the_category_is_seen():
    rng = np.random.default_rng(3)
    category, strength = rng.integers(3, size=N), rng.uniform(0, 1, N)
    label = 5 * np.eye(3)[category] + 0.3 * rng.standard_normal((N, 3))
    noise = strength[:, None] + 0.05 * rng.standard_normal((N, 1))
    targets = pd.DataFrame({"category": np.array(list("abc"))[category], "strength": strength})
    both = {"before": np.hstack([label, noise]), "after": label}
    table = probe(both, targets, pd.Series(range(N))).set_index(["target", "representation"])
    assert table.loc[("category", "after"), "bits"] == pytest.approx(
        table.loc[("category", "before"), "bits"], abs=0.02
    )
    assert table.loc[("strength", "before"), "bits"] > 2
    assert table.loc[("strength", "after"), "bits"] < 0.02


def test_an_image_is_not_known_again_in_its_other_versions():
    rng = np.random.default_rng(4)
    image = np.repeat(np.arange(50), 4)
    looks = rng.standard_normal((50, 60))[image] + 0.01 * rng.standard_normal((200, 60))
    by_image = rng.standard_normal(50)[image]  # a property that only the image itself tells
    targets = pd.DataFrame({"property": by_image})
    apart, mixed = (
        probe({"x": looks}, targets, pd.Series(groups))["score"].item()
        for groups in (image, np.arange(200))
    )
    assert apart < 0.1 < 0.9 < mixed


def test_missing_values_are_left_out_and_what_cannot_be_probed_is_refused():
    rng = np.random.default_rng(5)
    values = pd.DataFrame({"strength": rng.uniform(size=50)})
    values.loc[:9, "strength"] = np.nan
    table = probe({"x": rng.standard_normal((50, 2))}, values, pd.Series(range(50)))
    assert table["n"].tolist() == [40]
    with pytest.raises(DataError, match="one row an image"):
        probe({"x": rng.standard_normal((49, 2))}, values, pd.Series(range(50)))
    with pytest.raises(DataError, match="needs 2 values and 5 groups, got 1 and 50"):
        one(rng.standard_normal((50, 2)), strength=np.ones(50))
