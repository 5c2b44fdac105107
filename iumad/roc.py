"""Exact area under a detection curve: every distinct score is a threshold, ties are one vertex.

The curve starts at (0, 0) and ends at (1, 1). Between two neighbouring defect scores only good
scores turn positive and the curve is level. So the vertices just before and at each distinct defect
score give the curve of all thresholds, and the many good scores need plain sorting only.
"""

import numpy as np
from jaxtyping import Float, Float64


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
