"""Details of evaluation that move a number: other ways to get one from the same anomaly maps.

Each detail is a second way to get one category's value from the same maps; the first way is that of
`iumad.evaluation.evaluate`. What the paper's released code does is described on the book's page and cited there.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32
from scipy import ndimage

from iumad.config.sections import EvaluationConfig
from iumad.errors import MetricError
from iumad.evaluation.metrics import (
    aupro,
    image_auroc,
    image_scores,
    or_missing,
    partial_area,
    pixel_auroc,
)

N_THRESHOLDS = (10, 100, 1000)
N_EVALUATIONS = 1000  # as many as a training of 1000 epochs that is tested after each of them
FOUR_CONNECTED = ndimage.generate_binary_structure(2, 1)
EIGHT_CONNECTED = ndimage.generate_binary_structure(2, 2)


@dataclass(frozen=True)
class Scored:
    """The test images of one category and what a model says of them.

    Attributes
    ----------
    category : str
    test : DataFrame
        Rows of the data set's index.
    maps : float32 array (n, h, w)
    masks : bool array (n, h, w)
    scores : array (n,)
        Image scores as the run's `evaluation` section defines them.
    """

    category: str
    test: pd.DataFrame
    maps: Float32[np.ndarray, "n h w"]
    masks: Bool[np.ndarray, "n h w"]
    scores: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """1 for a defective image, else 0."""
        return self.test["label"].to_numpy(dtype=int)


def compare(scored: Scored, config: EvaluationConfig) -> list[tuple[str, str, float, float]]:
    """Values of one category without and with each detail: (detail, metric, here, there)."""
    maps, masks, labels = scored.maps, scored.masks, scored.labels
    limit = config.fpr_limit
    here = {
        "i_auroc": or_missing(image_auroc, scored.scores, labels),
        "p_auroc": or_missing(pixel_auroc, maps, masks),
        "aupro": or_missing(aupro, maps, masks, limit),
    }
    found = [
        (
            f"image score: {kind}",
            "i_auroc",
            or_missing(image_auroc, image_scores(maps, kind), labels),
        )
        for kind in ("mean", "std")
    ]
    found += [
        ("below 0.5 becomes 1 - AUROC", name, max(here[name], 1 - here[name]))
        for name in ("i_auroc", "p_auroc")
    ]
    found.append(
        (
            "4-connected regions",
            "aupro",
            or_missing(aupro_of_regions, maps, masks, FOUR_CONNECTED, limit),
        )
    )
    found += [
        (f"{n} thresholds", "aupro", or_missing(aupro_from_thresholds, maps, masks, n, limit))
        for n in N_THRESHOLDS
    ]
    if scored.test["geometric"].notna().any():
        kept = scored.test["geometric"].fillna(True).to_numpy(dtype=bool)  # good images stay
        kinds = ("only geometric defects",) * 3
        values = (
            or_missing(image_auroc, scored.scores[kept], labels[kept]),
            or_missing(pixel_auroc, maps[kept], masks[kept]),
            or_missing(aupro, maps[kept], masks[kept], limit),
        )
        found += list(zip(kinds, here, values, strict=True))
    pairs = [(detail, metric, here[metric], there) for detail, metric, there in found]
    return [pair for pair in pairs if np.isfinite(pair[2:]).all()]


def overwritten(
    scored: list[Scored], rng: np.random.Generator, n: int = N_EVALUATIONS
) -> pd.DataFrame:
    """Image AUROC when test images with one file name in one category overwrite each other.

    A result is kept as `<category>_<file name>`; good images and all types of defects count their files from
    000, so one image of each name remains: the last one written, at random where the order is shuffled.

    Parameters
    ----------
    scored : list of Scored
        All categories of one model.
    rng : numpy.random.Generator
        Draws which image remains.
    n : int
        Evaluations of the same model.

    Returns
    -------
    DataFrame
        evaluation (from 0), value (mean over categories; missing where a category keeps no good or no defective
        image), here (of all images), images, files (that remain).
    """
    totals, here, images, files = np.zeros(n), 0.0, 0, 0
    for one in scored:
        names = one.test["sample_id"].str.rsplit("/", n=1).str[-1]
        groups = [np.flatnonzero(names == name) for name in names.unique()]
        survivors = np.stack([group[rng.integers(len(group), size=n)] for group in groups], axis=1)
        labels = one.labels
        totals += [or_missing(image_auroc, one.scores[row], labels[row]) for row in survivors]
        here += or_missing(image_auroc, one.scores, labels)
        images, files = images + len(names), files + len(groups)
    return pd.DataFrame({"evaluation": range(n), "value": totals / len(scored)}).assign(
        here=here / len(scored), images=images, files=files
    )


def aupro_of_regions(
    maps: np.ndarray, masks: np.ndarray, structure: np.ndarray, fpr_limit: float
) -> float:
    """AUPRO as `iumad.evaluation.metrics.aupro` with another neighbourhood of pixels (3 x 3, bool)."""
    region = _regions(masks, structure)
    share = 1.0 / np.bincount(region)[region]
    return partial_area(maps[~masks], maps[masks], share, fpr_limit)


def aupro_from_thresholds(
    maps: np.ndarray, masks: np.ndarray, n_thresholds: int, fpr_limit: float
) -> float:
    """AUPRO of a curve with a fixed number of thresholds, as MVTec's evaluation script draws it.

    The thresholds are good pixels' scores at equidistant ranks; what is larger is positive. The curve ends in
    (1, 1), is interpolated linearly at the limit and divided by it.
    """
    region = _regions(masks, EIGHT_CONNECTED)
    good, defect = np.sort(maps[~masks]), maps[masks]
    order = np.argsort(defect)
    share = (1.0 / np.bincount(region)[region])[order] / (region.max() + 1)
    ranks = np.linspace(0, len(good) - 1, n_thresholds, dtype=int)
    above = np.append(np.cumsum(share[::-1])[::-1], 0)  # weight of the defect pixels from here up
    pro = above[np.searchsorted(defect[order], good[ranks], side="right")][::-1]
    fpr = (1 - (ranks + 1) / len(good))[::-1]
    fpr, pro = np.append(fpr, 1.0), np.append(pro, 1.0)
    inside = fpr < fpr_limit
    at_limit = np.interp(fpr_limit, fpr, pro)
    area = np.trapezoid(np.append(pro[inside], at_limit), np.append(fpr[inside], fpr_limit))
    return float(area / fpr_limit)


def _regions(masks: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """Region number, from 0, of each defect pixel in the order of ``masks[masks]``."""
    if masks.all() or not masks.any():
        raise MetricError("AUPRO needs good and defect pixels")
    stacked = np.zeros((3, 3, 3), dtype=bool)
    stacked[1] = structure  # no neighbours across images
    return ndimage.label(masks, structure=stacked)[0][masks].astype(np.int64) - 1
