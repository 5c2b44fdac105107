"""Spurious backgrounds and redundant noise: hand-worked blends, identities, statistics, errors."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iumad.config.sections import MiniCandiesConfig
from iumad.data.minicandies import CATEGORIES, MiniCandies
from iumad.data.noise import PERIOD, perlin_noise
from iumad.data.perturb import redundant, spurious, with_foreground
from iumad.data.sample import Sample
from iumad.errors import ConfigError, DataError

CANDIES = MiniCandies(MiniCandiesConfig(image_size=64, n_train=2, n_test_good=1, n_test_defect=6))


def flat(background, z, name="flat/train/good/000"):
    """Image of one colour with a white 4 x 4 object in the middle of 8 x 8 pixels."""
    foreground = np.zeros((8, 8), dtype=bool)
    foreground[2:6, 2:6] = True
    rgb = np.where(foreground[..., None], 255, background).astype(np.uint8).repeat(3, axis=-1)
    rows, columns = np.indices((8, 8)) * 0.01
    xyz = np.stack([columns, rows, np.where(foreground, 0.1, z)], axis=-1).astype(np.float32)
    return Sample(name, "flat", "train", "good", rgb, xyz, np.zeros((8, 8), bool), None, foreground)


def loaded(category, defect="good", number=0):
    split = "train" if defect == "good" else "test"
    return CANDIES.load(f"{category}/{split}/{defect}/{number:03d}")


def test_spurious_by_hand():
    sample, donor = flat(100, 0.5), flat(200, 0.3)
    blended = spurious(sample, donor, 0.25)
    outside = ~sample.foreground
    assert (blended.rgb[outside] == 125).all()  # 0.75 * 100 + 0.25 * 200
    np.testing.assert_allclose(
        blended.xyz[outside][:, 2], 0.45, rtol=1e-6
    )  # 0.75 * 0.5 + 0.25 * 0.3
    # along the ray: x and y shrink as z does, by 0.45 / 0.5
    np.testing.assert_allclose(blended.xyz[outside], 0.9 * sample.xyz[outside], rtol=1e-6)


def test_spurious_never_shows_the_donors_object():
    sample, donor = flat(100, 0.5), flat(200, 0.3)
    elsewhere = replace(sample, foreground=np.roll(sample.foreground, 2, axis=0))
    outside = ~elsewhere.foreground
    assert set(np.unique(spurious(elsewhere, donor, 1.0).rgb[outside])) == {200}


def test_spurious_covers_the_donors_object_with_a_mirrored_background():
    columns = np.arange(8, dtype=np.uint8)
    image = np.broadcast_to(columns[:, None], (8, 8, 3)).copy()
    object_at = np.zeros((8, 8), dtype=bool)
    object_at[:, 5:] = True
    donor = replace(flat(0, 0.3), rgb=image, foreground=object_at)
    sample = replace(flat(0, 0.3), foreground=np.zeros((8, 8), dtype=bool))
    # Pixel 5 has the nearest background at 4 and its mirror image at 3, and so on.
    assert spurious(sample, donor, 1.0).rgb[0, :, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]


@given(st.sampled_from(CATEGORIES), st.sampled_from(CATEGORIES), st.floats(0, 1))
def test_spurious_leaves_object_labels_and_missing_points_alone(category, other, alpha):
    sample, donor = loaded(category, "hole"), loaded(other, number=1)
    result = spurious(sample, donor, alpha)
    inside = sample.foreground
    assert np.array_equal(result.rgb[inside], sample.rgb[inside])
    assert np.array_equal(result.xyz[inside], sample.xyz[inside])
    assert np.array_equal(result.mask, sample.mask)
    assert (result.sample_id, result.label) == (sample.sample_id, sample.label)
    assert np.array_equal(result.xyz[..., 2] == 0, sample.xyz[..., 2] == 0)
    if category != other and alpha > 0.2:
        assert not np.array_equal(result.rgb, sample.rgb)


@pytest.mark.parametrize("category", CATEGORIES)
def test_intensity_zero_is_the_identity(category):
    sample = loaded(category)
    for same in (
        spurious(sample, loaded("donut"), 0.0),
        redundant(sample, 0.0, 8, np.random.default_rng(0)),
    ):
        assert same.rgb.tobytes() == sample.rgb.tobytes()
        assert same.xyz.tobytes() == sample.xyz.tobytes()


def test_neither_changes_its_arguments():
    sample, donor = loaded("mint"), loaded("waffle")
    before = [array.copy() for array in (sample.rgb, sample.xyz, donor.rgb, donor.xyz)]
    spurious(sample, donor, 0.5)
    redundant(sample, 0.5, 4, np.random.default_rng(0))
    for old, new in zip(before, (sample.rgb, sample.xyz, donor.rgb, donor.xyz), strict=True):
        assert np.array_equal(old, new)


@given(st.floats(0.05, 0.5), st.sampled_from([1, 4, 16, 64]), st.integers(0, 2**31))
def test_noise_has_the_stated_size(intensity, scale, seed):
    sample = loaded("macaron")
    mid_grey = np.random.default_rng(seed).normal(128, 15, sample.rgb.shape).round()
    sample = replace(sample, rgb=np.clip(mid_grey, 0, 255).astype(np.uint8))
    result = redundant(sample, intensity, scale, np.random.default_rng(seed))

    added = result.rgb.astype(float) - sample.rgb
    wanted = intensity * sample.rgb.std(axis=(0, 1))
    # rounding adds a variance of at most 1/12 and moves the mean by less than half a grey level
    assert np.allclose(added.std(axis=(0, 1)), wanted, atol=0.35)
    assert np.abs(added.mean()) < 0.5
    # one field for all channels: they move together
    assert np.abs(added[..., 0] / wanted[0] - added[..., 1] / wanted[1]).max() < 2 / wanted.min()

    valid = sample.xyz[..., 2] > 0
    assert np.array_equal(result.xyz[..., 2] == 0, ~valid)
    z, noisy = sample.xyz[..., 2][valid], result.xyz[..., 2][valid]
    assert (noisy - z).std() == pytest.approx(intensity * z.std(), rel=0.2)  # a few pixels lack
    rays = [s.xyz[valid][:, :2] / s.xyz[valid][:, 2:] for s in (sample, result)]
    np.testing.assert_allclose(rays[0], rays[1], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_further_image_is_perturbed_in_its_own_range(dtype):
    rng, top = np.random.default_rng(0), np.iinfo(dtype).max
    sample, donor = flat(100, 0.5), flat(200, 0.3, "other/train/good/007")
    own = np.clip(rng.normal(top / 2, top / 10, (8, 8, 3)), 0, top).astype(dtype)
    other = np.full((8, 8, 3), top // 4, dtype)
    sample = replace(sample, others={"infrared": own})
    changed = spurious(sample, replace(donor, others={"infrared": other}), 0.5).others["infrared"]
    assert changed.dtype == dtype
    assert np.array_equal(changed[3:5, 3:5], own[3:5, 3:5])  # the object
    expected = 0.5 * own[0, 0].astype(float) + 0.5 * (top // 4)
    np.testing.assert_allclose(changed[0, 0].astype(float), expected, atol=1)
    noisy = redundant(sample, 0.5, 4, rng).others["infrared"]
    added = noisy.astype(float) - own
    assert noisy.dtype == dtype
    np.testing.assert_allclose(added.std(axis=(0, 1)), 0.5 * own.std(axis=(0, 1)), rtol=0.02)


def test_noise_depends_on_the_generator_only():
    sample = loaded("cookie")
    one, same, other = (
        redundant(sample, 0.2, 8, np.random.default_rng(seed)).rgb.tobytes() for seed in (3, 3, 4)
    )
    assert one == same != other
    flat_image = redundant(replace(sample, xyz=None), 0.2, 8, np.random.default_rng(3))
    assert flat_image.rgb.tobytes() == one


def test_perlin_noise_by_hand():
    x, y = np.array([[0.0, 0.5, 3.0]]), np.array([[0.0, 0.5, 7.0]])
    noise = perlin_noise(x, y, np.random.default_rng(5))
    assert noise[0, 0] == noise[0, 2] == 0  # lattice points
    angle = np.random.default_rng(5).uniform(0, 2 * np.pi, PERIOD * PERIOD)
    angle = angle.reshape(PERIOD, PERIOD)
    ramps = [
        np.cos(angle[row, column]) * (0.5 - column) + np.sin(angle[row, column]) * (0.5 - row)
        for row in (0, 1)
        for column in (0, 1)
    ]
    # In a cell's centre all four fade weights are 1/4.
    assert noise[0, 1] == pytest.approx(np.sqrt(2) * np.mean(ramps))


@given(st.integers(0, 2**31))
def test_perlin_noise_is_bounded_centred_and_smooth(seed):
    y, x = np.indices((160, 160)) * 0.1
    noise = perlin_noise(x, y, np.random.default_rng(seed))
    assert np.abs(noise).max() <= 1
    assert np.abs(noise.mean()) < 0.1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.5
    wrapped = perlin_noise(x + PERIOD, y - PERIOD, np.random.default_rng(seed))
    np.testing.assert_allclose(wrapped, noise, atol=1e-9)


@pytest.mark.parametrize("category", CATEGORIES)
def test_foreground_is_estimated_from_depth(category):
    sample = loaded(category)
    rng = np.random.default_rng(0)
    assert with_foreground(sample, rng) is sample
    found = with_foreground(replace(sample, foreground=None), rng).foreground
    valid = sample.xyz[..., 2] > 0
    overlap = (found & sample.foreground & valid).sum() / (
        (found | sample.foreground) & valid
    ).sum()
    assert overlap > 0.95
    with pytest.raises(DataError, match="without depth"):
        with_foreground(replace(sample, foreground=None, xyz=None), rng)


def test_a_donor_of_another_size_is_stretched():
    sample, donor = flat(100, 0.5), loaded("mint")
    changed = spurious(sample, donor, 1.0)
    outside = ~sample.foreground
    corner = donor.rgb[donor.rgb.shape[0] // 16, donor.rgb.shape[1] // 16]
    np.testing.assert_array_equal(changed.rgb[0, 0], corner)  # the middle of the donor's first cell
    np.testing.assert_array_equal(changed.rgb[~outside], sample.rgb[~outside])
    z = donor.xyz[donor.rgb.shape[0] // 16, donor.rgb.shape[1] // 16, 2]
    assert changed.xyz[0, 0, 2] == pytest.approx(z)


def test_errors_say_what_is_missing():
    sample, donor = flat(100, 0.5), flat(200, 0.3, "other/train/good/007")
    rng = np.random.default_rng(0)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="alpha"):
            spurious(sample, donor, alpha)
    with pytest.raises(DataError, match=r"other/train/good/007: .* need a foreground"):
        spurious(sample, replace(donor, foreground=None), 0.5)
    with pytest.raises(DataError, match=r"flat/train/good/000: .* need a foreground"):
        spurious(replace(sample, foreground=None), donor, 0.5)
    with pytest.raises(DataError, match="needs depth"):
        spurious(sample, replace(donor, xyz=None), 0.5)
    with pytest.raises(DataError, match="no background"):
        spurious(sample, replace(donor, foreground=np.ones((8, 8), dtype=bool)), 0.5)
    for dose in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="dose"):
            redundant(sample, dose, 4, rng)
    for scale in (0, PERIOD + 1):
        with pytest.raises(ConfigError, match="scale"):
            redundant(sample, 0.1, scale, rng)
