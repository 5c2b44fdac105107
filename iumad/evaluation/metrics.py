"""Metrics of anomaly detection and of forgetting: arrays in, floats out.

Conventions of every function here
    * A higher score means more anomalous; at threshold t, score >= t is positive.
    * Every distinct score is a threshold (no grid of thresholds), so the areas are exact.
    * Masks and labels are bool or hold only 0 and 1; of 0 and 255 give ``mask > 0``.
    * An undefined value raises `MetricError` and is never 0; an area below 0.5 stays so.

Glossary
    FPR  share of the good pixels (or images) that are positive.
    PRO  per-region overlap: mean over the defect regions of the positive share of the region.

Exact area under a detection curve: every distinct score is a threshold, ties are one vertex.

The curve starts at (0, 0) and ends at (1, 1). Between two neighbouring defect scores only good
scores turn positive and the curve is level. So the vertices just before and at each distinct defect
score give the curve of all thresholds, and the many good scores need plain sorting only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy import ndimage

from iumad.errors import MetricError


def partial_area(
    good: Float[np.ndarray, " n_good"],
    defect: Float[np.ndarray, " n_defect"],
    weight: Float64[np.ndarray, " n_defect"],
    fpr_limit: float,
) -> float:
    """Area under the covered weight of `defect` over the false positive rate of `good`.

    Parameters
    ----------
    good, defect : array (n_good,), (n_defect,)
        Finite scores of the two classes, in any order; neither is empty.
    weight : array (n_defect,)
        Positive weight of each defect score: 1 gives the ROC curve, 1 / size of its region PRO.
    fpr_limit : float
        Upper end of the integration, in (0, 1].

    Returns
    -------
    float
        In [0, 1]: the area divided by the limit and by the total weight.
    """
    descending = np.argsort(defect)[::-1]
    defect = defect[descending]
    last_of_ties = np.append(np.flatnonzero(defect[1:] != defect[:-1]), len(defect) - 1)
    threshold = defect[last_of_ties]
    covered = np.cumsum(weight[descending])[last_of_ties]
    covered /= covered[-1]

    good = np.sort(good)
    above = len(good) - np.searchsorted(good, threshold, side="right")
    at_or_above = len(good) - np.searchsorted(good, threshold, side="left")

    false_positives = np.concatenate(
        [[0], np.column_stack([above, at_or_above]).ravel(), [len(good)]]
    ).astype(np.float64)
    before = np.append(0.0, covered[:-1])
    overlap = np.concatenate([[0], np.column_stack([before, covered]).ravel(), [1]])

    limit = fpr_limit * len(good)
    end = np.searchsorted(false_positives, limit, side="left")  # first vertex at or past the limit
    x, y = false_positives[end - 1 : end + 1], overlap[end - 1 : end + 1]
    at_limit = y[0] + (y[1] - y[0]) * (limit - x[0]) / (x[1] - x[0])
    area = np.trapezoid(np.append(overlap[:end], at_limit), np.append(false_positives[:end], limit))
    return min(float(area / limit), 1.0)  # rounding may leave 1 + 1e-16


EIGHT_CONNECTED = ndimage.generate_binary_structure(2, 2)


def image_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve over images.

    Parameters
    ----------
    scores : array (n,)
        Anomaly score of each image, any finite real numbers.
    labels : array (n,)
        1 or True for an image with a defect, else 0 or False.

    Returns
    -------
    float
        In [0, 1]. A tie between a good and a defect image counts one half.

    Raises
    ------
    MetricError
        If shapes differ, a score is not finite, a label is not 0 or 1, or one class is missing.
    """
    scores, positive = _checked(scores, labels, ndim=1, names=("scores", "labels"))
    _require_both_classes(positive, "image_auroc", "images")
    return _roc_area(scores, positive)


def pixel_auroc(anomaly_maps: np.ndarray, masks: np.ndarray) -> float:
    """Area under the ROC curve over all pixels of all images.

    Parameters
    ----------
    anomaly_maps : array (n, h, w)
        Anomaly score of each pixel, any finite real numbers.
    masks : array (n, h, w)
        Ground truth, True on defect pixels; good images are all False.

    Returns
    -------
    float
        In [0, 1]. Raises `MetricError` in the cases of `image_auroc`, for pixels.
    """
    anomaly_maps, masks = _checked(anomaly_maps, masks, ndim=3, names=("anomaly_maps", "masks"))
    _require_both_classes(masks, "pixel_auroc", "pixels")
    return _roc_area(anomaly_maps, masks)


def aupro(
    anomaly_maps: np.ndarray,
    masks: np.ndarray,
    fpr_limit: float = 0.3,
    structure: np.ndarray = EIGHT_CONNECTED,
) -> float:
    """Area under the per-region-overlap curve up to a false positive rate.

    Regions are the 8-connected components of each mask and weigh the same whatever their size.
    The curve of PRO over FPR starts at (0, 0), has a vertex per distinct score, is integrated by
    the trapezoid rule up to the limit (linear interpolation), and divided by the limit. The
    authors' release takes 100 thresholds instead.

    Parameters
    ----------
    anomaly_maps : array (n, h, w)
        Anomaly score of each pixel, any finite real numbers.
    masks : array (n, h, w)
        Ground truth, True on defect pixels; good images are all False and count for the FPR.
    fpr_limit : float
        Upper end of the integration, in (0, 1].
    structure : bool array (3, 3)
        Which neighbours of a pixel belong to its region.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    MetricError
        If shapes differ, values are not as above, or there is no defect region or no good pixel.
    """
    if not 0 < fpr_limit <= 1:
        raise MetricError(f"fpr_limit must lie in (0, 1], got {fpr_limit}")
    anomaly_maps, masks = _checked(anomaly_maps, masks, ndim=3, names=("anomaly_maps", "masks"))
    _require_both_classes(masks, "aupro", "pixels")

    region = region_of_defect_pixels(masks, structure)
    share = 1.0 / np.bincount(region)[region]  # of its own region that one pixel covers
    return partial_area(anomaly_maps[~masks], anomaly_maps[masks], share, fpr_limit)


def image_scores(
    anomaly_maps: np.ndarray, kind: str = "max", pool: int = 16
) -> Float64[np.ndarray, " n"]:
    """One score per image from its anomaly map.

    Parameters
    ----------
    anomaly_maps : array (n, h, w)
        Anomaly score of each pixel, finite.
    kind : {"max", "mean", "std", "top"}
        ``max``: the largest mean of a pool x pool window inside the map (stride 1, as in UniAD);
        ``mean`` and ``std``: of all pixels of the map;
        ``top``: mean of the highest 0.1 % of the pixels, at least one (UniMMAD, section 3.4).
    pool : int
        Side of the window in pixels, at least 1 and at most h and w; only ``max`` uses it.

    Returns
    -------
    array (n,)
        Scores in the unit of the maps.

    Raises
    ------
    MetricError
        If the maps are not finite or not 3-dimensional, the kind is unknown, or the window is
        larger than the map.
    """
    anomaly_maps = _finite(anomaly_maps, ndim=3, name="anomaly_maps")
    if kind == "mean":
        return anomaly_maps.mean(axis=(1, 2), dtype=np.float64)
    if kind == "std":
        return anomaly_maps.std(axis=(1, 2), dtype=np.float64)
    if kind == "top":
        pixels = anomaly_maps.reshape(len(anomaly_maps), -1)
        highest = max(1, pixels.shape[1] // 1000)
        return np.partition(pixels, -highest)[:, -highest:].mean(axis=1, dtype=np.float64)
    if kind != "max":
        raise MetricError(f"kind must be one of max, mean, std, top, got {kind!r}")

    smallest_side = min(anomaly_maps.shape[1:])
    if not 1 <= pool <= smallest_side:
        raise MetricError(f"pool must lie in 1..{smallest_side} for these maps, got {pool}")
    window_means = ndimage.uniform_filter(anomaly_maps, size=(1, pool, pool), output=np.float64)
    height, width = np.array(anomaly_maps.shape[1:]) - pool + 1
    top = left = pool // 2  # the filter centres its windows; these are the first inside the map
    return window_means[:, top : top + height, left : left + width].max(axis=(1, 2))


def _checked(
    scores: np.ndarray, truth: np.ndarray, ndim: int, names: tuple[str, str]
) -> tuple[Float[np.ndarray, "..."], Bool[np.ndarray, "..."]]:
    """Scores as finite floats and truth as bool, both of one shape with `ndim` axes."""
    scores, truth = _finite(scores, ndim, names[0]), np.asarray(truth)
    if scores.shape != truth.shape:
        raise MetricError(
            f"{names[0]} and {names[1]} need one shape, got {scores.shape} and {truth.shape}"
        )
    if truth.dtype != bool and not ((truth == 0) | (truth == 1)).all():
        raise MetricError(f"{names[1]} must be bool or hold only 0 and 1; give `{names[1]} > 0`")
    return scores, truth.astype(bool, copy=False)


def _finite(values: np.ndarray, ndim: int, name: str) -> Float[np.ndarray, "..."]:
    """Values as float32 or float64 with `ndim` axes; refuses NaN and infinities."""
    values = np.asarray(values)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    if values.ndim != ndim or values.size == 0:
        raise MetricError(f"{name} needs {ndim} axes and a value, got shape {values.shape}")
    n_bad = values.size - np.count_nonzero(np.isfinite(values))
    if n_bad:
        raise MetricError(f"{name} must be finite, got {n_bad} NaN or infinite values")
    return values


def _require_both_classes(positive: Bool[np.ndarray, "..."], metric: str, what: str) -> None:
    n_defect = int(positive.sum())
    if n_defect in (0, positive.size):
        raise MetricError(
            f"{metric} needs good and defect {what}, "
            f"got {positive.size - n_defect} good and {n_defect} defect"
        )


def region_of_defect_pixels(
    masks: Bool[np.ndarray, "n h w"], structure: np.ndarray = EIGHT_CONNECTED
) -> Int64[np.ndarray, " n_defect"]:
    """Region number, from 0, of each defect pixel in the order of ``masks[masks]``."""
    with_defect = masks[masks.any(axis=(1, 2))]
    apart = np.pad(structure[None], ((1, 1), (0, 0), (0, 0)))  # no neighbours across images
    labelled, _ = ndimage.label(with_defect, structure=apart)
    return labelled[with_defect].astype(np.int64) - 1


def _roc_area(scores: Float[np.ndarray, "..."], positive: Bool[np.ndarray, "..."]) -> float:
    defect = scores[positive]
    return partial_area(scores[~positive], defect, np.ones(len(defect)), fpr_limit=1.0)


def or_missing(metric: Callable[..., float], *arguments: Any) -> float:
    """The metric of these arguments, or NaN where it is undefined."""
    try:
        return metric(*arguments)
    except MetricError:
        return float("nan")
