"""The generator: same bytes for the same seed, exact masks, and what each defect may change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from iumad.config.sections import MiniCandiesConfig
from iumad.data.minicandies import CATEGORIES, DEFECTS, MiniCandies
from iumad.data.sample import INDEX_SCHEMA
from iumad.errors import ConfigError, DataError


def candies(**changes):
    counts = {"n_train": 2, "n_validation": 1, "n_test_good": 1, "n_test_defect": 12}
    return MiniCandies(MiniCandiesConfig(**{"image_size": 64, **counts, **changes}))


def same_bytes(one, other):
    names = ("rgb", "xyz", "mask", "foreground")
    return all(getattr(one, k).tobytes() == getattr(other, k).tobytes() for k in names)


categories, seeds = st.sampled_from(CATEGORIES), st.integers(0, 2**31)
difficulties = st.sampled_from([0.0, 0.5, 1.0])
geometric_kinds = st.sampled_from([kind for kind, geometric in DEFECTS.items() if geometric])


def damaged_and_before(category, kind, difficulty, seed):
    """A defective sample and the same object without its defect."""
    dataset = candies(difficulty=difficulty, seed=seed, categories=(category,))
    sample_id = f"{category}/test/{kind}/000"
    return dataset.load(sample_id), dataset.load_without_defect(sample_id)


def test_ten_categories_and_both_kinds_of_defects():
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 10
    assert DEFECTS["stain"] is False
    assert all(DEFECTS[kind] for kind in ("bump", "chip", "dent", "hole", "scratch"))


def test_index_has_every_sample_once_and_defects_evenly_spread():
    dataset = candies(n_test_defect=14)
    INDEX_SCHEMA.validate(dataset.index)
    assert len(dataset.index) == 10 * (2 + 1 + 1 + 14)
    assert tuple(dataset.index["category"].unique()) == CATEGORIES
    per_kind = dataset.index.query("label == 1").groupby(["category", "defect"]).size()
    assert per_kind.min() == 2
    assert per_kind.max() == 3
    geometric = dataset.index.query("label == 1").set_index("defect")["geometric"]
    assert all(geometric[kind].eq(flag).all() for kind, flag in DEFECTS.items())


def test_same_seed_same_bytes_whatever_else_is_in_the_set():
    few = candies(categories=("waffle",), n_train=2)
    many = candies(categories=("mint", "waffle"), n_train=30, n_test_defect=6)
    for sample_id in ("waffle/train/good/001", "waffle/test/hole/000"):
        assert same_bytes(few.load(sample_id), few.load(sample_id))
        assert same_bytes(few.load(sample_id), many.load(sample_id))


def test_no_two_samples_are_alike():
    dataset = candies(n_train=4)
    good = dataset.index.query("label == 0")["sample_id"]
    images = {dataset.load(sample_id).rgb.tobytes() for sample_id in good}
    assert len(images) == len(good)
    sample_id = "mint/train/good/000"
    assert not same_bytes(dataset.load(sample_id), candies(seed=1).load(sample_id))


def test_fingerprint_follows_what_pixels_depend_on():
    sample_id = "mint/train/good/000"
    first = candies().fingerprint(sample_id)
    assert first == candies(n_train=9, categories=("mint",)).fingerprint(sample_id)
    changed = [
        candies().fingerprint("mint/train/good/001"),
        candies(seed=1).fingerprint(sample_id),
        candies(image_size=72).fingerprint(sample_id),
        candies(difficulty=0.6).fingerprint(sample_id),
    ]
    assert len({first, *changed}) == 5


@given(categories, st.sampled_from(list(DEFECTS)), difficulties, seeds)
def test_a_defect_lies_on_the_object_and_only_there(category, kind, difficulty, seed):
    damaged, before = damaged_and_before(category, kind, difficulty, seed)
    assert damaged.mask.any()
    assert not (damaged.mask & ~damaged.foreground).any()
    assert damaged.mask.sum() < 0.5 * damaged.foreground.sum()
    assert (damaged.label, before.label) == (1, 0)
    assert not before.mask.any()
    assert (damaged.foreground == before.foreground).all()


@given(categories, difficulties, seeds)
def test_a_stain_is_invisible_in_depth_and_stays_inside_its_mask(category, difficulty, seed):
    stained, before = damaged_and_before(category, "stain", difficulty, seed)
    assert stained.xyz.tobytes() == before.xyz.tobytes()
    changed = (stained.rgb != before.rgb).any(axis=-1)
    assert not (changed & ~stained.mask).any()
    assert changed[stained.mask].mean() > 0.5


@given(categories, geometric_kinds, difficulties, seeds)
def test_a_geometric_defect_changes_depth_at_its_mask_only(category, kind, difficulty, seed):
    damaged, before = damaged_and_before(category, kind, difficulty, seed)
    # steep new walls can lose the neighbouring pixel
    near = ndimage.binary_dilation(damaged.mask, np.ones((3, 3)))
    assert np.array_equal(damaged.xyz[~near], before.xyz[~near])

    both = damaged.mask & (damaged.xyz[..., 2] > 0) & (before.xyz[..., 2] > 0)
    away = (damaged.xyz[..., 2] - before.xyz[..., 2])[both]
    lost = (damaged.xyz[damaged.mask] == 0).any()
    assert lost or np.abs(away).max() > 2e-4
    rounding = 1.1e-5
    if damaged.defect == "bump":
        assert away.max(initial=0) <= rounding
    else:
        assert away.min(initial=0) >= -rounding


@given(categories, difficulties, seeds)
def test_point_cloud_is_a_table_with_an_object_on_it(category, difficulty, seed):
    dataset = candies(difficulty=difficulty, seed=seed, categories=(category,))
    sample = dataset.load(f"{category}/train/good/000")
    z = sample.xyz[..., 2]
    valid = z > 0
    assert np.isfinite(sample.xyz).all()
    assert (sample.xyz[~valid] == 0).all()
    assert 0 < (~valid).mean() < 0.15

    # A pinhole camera: x / z depends on the column alone.
    ratio = np.where(valid, sample.xyz[..., 0] / np.where(valid, z, 1), np.nan)
    assert np.nanmax(np.nanmax(ratio, axis=0) - np.nanmin(ratio, axis=0)) < 1e-6

    # The background is a plane with the sensor's noise of 0.12 mm, the object stands above it.
    rows, columns = np.indices(z.shape)
    design = np.stack([rows, columns, np.ones_like(rows)], axis=-1).astype(float)
    table = valid & ~sample.foreground
    plane = design @ np.linalg.lstsq(design[table], z[table], rcond=None)[0]
    assert (plane - z)[table].std() == pytest.approx(1.2e-4, rel=0.1)
    assert ((plane - z)[valid & sample.foreground] > 2e-4).mean() > 0.98


def test_the_same_object_at_every_size():
    small, large = (
        candies(image_size=size, categories=("cookie",)).load("cookie/test/stain/001")
        for size in (128, 256)
    )
    assert large.foreground.mean() == pytest.approx(small.foreground.mean(), abs=0.005)
    halved = large.rgb.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    # sensor noise differs from pixel to pixel, the scene does not
    assert np.abs(ndimage.uniform_filter(halved - small.rgb, (8, 8, 0))).mean() < 2


def test_difficulty_makes_defects_fainter():
    def mean_change(difficulty):
        dataset = candies(difficulty=difficulty, categories=("macaron",))
        ids = dataset.index.query("label == 1")["sample_id"][::2]
        pairs = [(dataset.load(i), dataset.load_without_defect(i)) for i in ids]
        return np.mean([np.abs(a.rgb.astype(float) - b.rgb).mean() for a, b in pairs])

    assert mean_change(0.0) > 2 * mean_change(1.0)


def test_errors_name_what_is_wrong():
    with pytest.raises(ConfigError, match="'wafle'; did you mean 'waffle'"):
        candies(categories=("wafle",))
    with pytest.raises(DataError, match="mint/train/good/002"):
        candies().load("mint/train/good/002")
    with pytest.raises(DataError, match="nothing"):
        candies().fingerprint("nothing")
