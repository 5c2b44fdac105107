"""Metrics against hand-worked cases, an independent brute force, scikit-learn and invariants."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from iumad.errors import MetricError
from iumad.evaluation.metrics import aupro, image_auroc, image_scores, pixel_auroc

# Rounding of a few hundred float64 additions stays far below this.
TOLERANCE = 1e-12

PERFECT_MAPS = np.array([[[9.0, 1, 1], [1, 1, 1], [1, 1, 8]], [[0.0, 0, 0], [0, 0, 0], [0, 0, 0]]])
PERFECT_MASKS = PERFECT_MAPS > 5


def brute_force_aupro(anomaly_maps, masks, fpr_limit):
    """Loop over thresholds and regions, then integrate segment by segment."""
    regions = []
    for image, mask in enumerate(masks):
        labelled, n_regions = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(image, labelled == number) for number in range(1, n_regions + 1)]
    n_good = (~masks).sum()

    curve = [(0.0, 0.0)]
    for threshold in sorted(set(anomaly_maps.ravel().tolist()), reverse=True):
        positive = anomaly_maps >= threshold
        overlaps = [positive[image][region].mean() for image, region in regions]
        curve.append(((positive & ~masks).sum() / n_good, sum(overlaps) / len(overlaps)))

    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x1 <= fpr_limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < fpr_limit:
            y_limit = y0 + (y1 - y0) * (fpr_limit - x0) / (x1 - x0)
            area += (fpr_limit - x0) * (y0 + y_limit) / 2
    return area / fpr_limit


@st.composite
def maps_and_masks(draw, dtype=np.float32):
    """Small stacks with many ties, at least one defect and one good pixel."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)))
    levels = draw(st.integers(1, 30))
    values = draw(hnp.arrays(np.int64, shape, elements=st.integers(-levels, levels)))
    masks = draw(hnp.arrays(bool, shape))
    assume(masks.any() and not masks.all())
    return values.astype(dtype), masks


def test_image_auroc_by_hand():
    # Pairs (defect, good): 3>1, 3>2, 2>1 count 1 and the tie 2=2 counts 1/2: 3.5 of 4 pairs.
    assert image_auroc(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 0, 1, 1])) == 3.5 / 4


def test_auroc_below_one_half_is_not_flipped():
    assert image_auroc(np.array([2.0, 1.0]), np.array([0, 1])) == 0.0


def test_pixel_auroc_by_hand():
    # Defect pixels 4 and 1, good pixels 3 and 0: 4>3, 4>0, 1>0 win and 1<3 loses: 3 of 4 pairs.
    maps = np.array([[[4, 3], [1, 0]]], dtype=np.float32)
    assert pixel_auroc(maps, np.array([[[1, 0], [1, 0]]])) == 3 / 4


def test_aupro_by_hand():
    # Row of 2 regions (9 | 5 2) and 4 good pixels. Thresholds, FPR and PRO:
    #   9: 0, (1 + 0)/2 = 1/2    6: 1/4, 1/2    5: 1/4, (1 + 1/2)/2 = 3/4
    #   3: 2/4, 3/4              2: 2/4, 1      1: 1, 1
    # Area up to 1/2: 1/4 * 1/2 + 1/4 * 3/4 = 5/16; divided by 1/2: 5/8.
    maps = np.array([[[9.0, 6, 5, 2, 3, 1, 1]]])
    masks = np.array([[[1, 0, 1, 1, 0, 0, 0]]])
    assert aupro(maps, masks, fpr_limit=0.5) == pytest.approx(5 / 8, abs=TOLERANCE)
    # Up to 3/8 the limit cuts the level piece at 3/4: (1/4 * 1/2 + 1/8 * 3/4) / (3/8) = 7/12.
    assert aupro(maps, masks, fpr_limit=0.375) == pytest.approx(7 / 12, abs=TOLERANCE)


def test_aupro_interpolates_inside_a_tie():
    # All scores are equal: the curve is the diagonal and the area up to L is L^2 / 2.
    masks = np.array([[[1, 0], [0, 0]]])
    assert aupro(np.ones((1, 2, 2)), masks, fpr_limit=0.3) == pytest.approx(0.15, abs=TOLERANCE)


def test_diagonal_neighbours_are_one_region_and_images_are_apart():
    # Diagonal pixels 9 and 1 are one region, the 2 of the second image is another.
    # FPR 0: PRO = (1/2 + 0)/2 = 1/4 at 9, then good 5 (1 of 6 good pixels), then PRO 3/4 at 2.
    maps = np.array([[[9.0, 5], [0, 1]], [[0, 0], [0, 2]]])
    masks = np.array([[[1, 0], [0, 1]], [[0, 0], [0, 1]]])
    assert aupro(maps, masks, fpr_limit=1 / 6) == pytest.approx(1 / 4, abs=TOLERANCE)


@pytest.mark.parametrize("fpr_limit", [0.05, 0.3, 1.0])
def test_perfect_maps_score_exactly_one(fpr_limit):
    assert aupro(PERFECT_MAPS, PERFECT_MASKS, fpr_limit) == 1.0
    assert pixel_auroc(PERFECT_MAPS, PERFECT_MASKS) == 1.0
    assert image_auroc(np.array([9.0, 0.0]), np.array([True, False])) == 1.0


@given(case=maps_and_masks(), fpr_limit=st.floats(0.01, 1.0))
def test_aupro_equals_brute_force(case, fpr_limit):
    expected = brute_force_aupro(*case, fpr_limit)
    assert aupro(*case, fpr_limit) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_aupro_equals_brute_force_on_larger_maps(dtype):
    rng = np.random.default_rng(0)
    masks = ndimage.gaussian_filter(rng.normal(size=(3, 24, 24)), sigma=(0, 2, 2)) > 0.15
    maps = (rng.normal(size=masks.shape) + masks).astype(dtype)
    assert aupro(maps, masks) == pytest.approx(brute_force_aupro(maps, masks, 0.3), abs=TOLERANCE)


@given(case=maps_and_masks())
def test_auroc_equals_scikit_learn(case):
    maps, masks = case
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert pixel_auroc(maps, masks) == pytest.approx(expected, abs=TOLERANCE)
    assert image_auroc(maps.ravel(), masks.ravel()) == pytest.approx(expected, abs=TOLERANCE)


@given(case=maps_and_masks(dtype=np.float64), seed=st.integers(0, 99))
def test_invariants(case, seed):
    maps, masks = case
    order = np.random.default_rng(seed).permutation(len(maps))
    for metric in (aupro, pixel_auroc):
        value = metric(maps, masks)
        assert 0 <= value <= 1
        assert metric(np.exp(maps / 10) - 3, masks) == pytest.approx(value, abs=TOLERANCE)
        assert metric(maps[order], masks[order]) == pytest.approx(value, abs=TOLERANCE)
        assert metric(maps[:, ::-1], masks[:, ::-1]) == pytest.approx(value, abs=TOLERANCE)
    assert pixel_auroc(-maps, masks) == pytest.approx(1 - pixel_auroc(maps, masks), abs=TOLERANCE)


@given(case=maps_and_masks())
def test_mask_may_be_bool_or_zero_and_one(case):
    maps, masks = case
    assert aupro(maps, masks.astype(np.uint8)) == aupro(maps, masks)


@pytest.mark.parametrize("metric", [aupro, pixel_auroc])
@pytest.mark.parametrize(
    ("maps", "masks", "text"),
    [
        (np.full((1, 2, 2), np.nan), np.eye(2)[None], "anomaly_maps must be finite, got 4 NaN"),
        (np.ones((1, 2, 2)), np.ones((1, 2, 3)), r"one shape, got \(1, 2, 2\) and \(1, 2, 3\)"),
        (np.ones((2, 2)), np.eye(2), "needs 3 axes"),
        (np.ones((0, 2, 2)), np.ones((0, 2, 2)), "needs 3 axes and a value"),
        (np.ones((1, 2, 2)), np.zeros((1, 2, 2)), "good and defect pixels, got 4 good and 0"),
        (np.ones((1, 2, 2)), np.ones((1, 2, 2)), "good and defect pixels, got 0 good and 4"),
        (np.ones((1, 2, 2)), 255 * np.eye(2)[None], "only 0 and 1; give `masks > 0`"),
    ],
)
def test_undefined_pixel_metrics_raise(metric, maps, masks, text):
    with pytest.raises(MetricError, match=text):
        metric(maps, masks)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
def test_image_auroc_of_one_class_raises(labels):
    with pytest.raises(MetricError, match="needs good and defect images"):
        image_auroc(np.array([1.0, 2.0]), np.array(labels))


@pytest.mark.parametrize("fpr_limit", [0.0, -0.1, 1.5])
def test_fpr_limit_outside_the_unit_interval_raises(fpr_limit):
    with pytest.raises(MetricError, match="fpr_limit"):
        aupro(PERFECT_MAPS, PERFECT_MASKS, fpr_limit)


def test_image_scores_by_hand():
    # 2 x 2 windows of the first map sum to 0+1+3+4, 1+2+4+5, 3+4+6+7, 4+5+7+14 = 30.
    maps = np.array(
        [[[0, 1, 2], [3, 4, 5], [6, 7, 14]], [[1, 1, 1], [1, 1, 1], [1, 1, 1]]], np.float32
    )
    np.testing.assert_allclose(image_scores(maps, pool=2), [7.5, 1.0], rtol=1e-12)
    np.testing.assert_allclose(image_scores(maps, pool=3), [42 / 9, 1.0], rtol=1e-12)
    np.testing.assert_allclose(image_scores(maps, "mean"), [42 / 9, 1.0], rtol=1e-12)
    np.testing.assert_allclose(
        image_scores(maps, "std"), [maps[0].std(dtype=float), 0.0], rtol=1e-12
    )
    np.testing.assert_array_equal(image_scores(maps, pool=1), [14.0, 1.0])
    np.testing.assert_array_equal(image_scores(maps, "top"), [14.0, 1.0])  # at least one pixel
    large = np.arange(2500.0).reshape(1, 50, 50)
    np.testing.assert_array_equal(image_scores(large, "top"), [2498.5])  # of 2499 and 2498


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9)), pool=st.integers(1, 4)
)
def test_image_scores_equal_sliding_windows(shape, pool):
    maps = np.random.default_rng(0).normal(size=shape)
    windows = np.lib.stride_tricks.sliding_window_view(maps, (pool, pool), axis=(1, 2))
    expected = windows.mean(axis=(-2, -1)).max(axis=(1, 2))
    np.testing.assert_allclose(image_scores(maps, pool=pool), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "pool", "text"), [("median", 2, "kind"), ("max", 4, "1..3"), ("max", 0, "1..3")]
)
def test_image_scores_refuse_unknown_kind_and_large_window(kind, pool, text):
    with pytest.raises(MetricError, match=text):
        image_scores(np.ones((1, 3, 5)), kind, pool)
