"""A detector on the test images of every category seen so far: anomaly maps in, tidy rows out.

Details of evaluation move a number: `compare_details` gives, beside the value that the rows have, those that other
ways get from the same maps. What the paper's released code does is described on the book's page and cited there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float32, Int
from scipy import ndimage

from iumad.config.sections import EvaluationConfig
from iumad.errors import MetricError
from iumad.evaluation.metrics import (
    aupro,
    image_auroc,
    image_scores,
    or_missing,
    pixel_auroc,
    region_of_defect_pixels,
)
from iumad.features.cache import FeatureStore
from iumad.models.base import Detector, in_chunks


@torch.no_grad()
def validation_error(
    detector: Detector, store: FeatureStore, sample_ids: Sequence[str], batch_size: int = 16
) -> float:
    """Mean residual of one or more good samples, over tokens and targets, in the method's own unit.

    What training lowers, on images that it never saw: comparable between trainings of one method, not between
    methods.
    """
    detector.eval()
    total = 0.0
    for batch in in_chunks(store, sample_ids, batch_size):
        maps = torch.stack(list(detector.residual_maps(batch.to(store.device)).values()))
        total += float(maps.double().mean(dim=(0, 2, 3)).sum())
    return total / len(sample_ids)


@torch.no_grad()
def anomaly_maps(
    detector: Detector, store: FeatureStore, sample_ids: Sequence[str]
) -> Float32[np.ndarray, "n size size"]:
    """Anomaly maps of these samples, in order; higher is more anomalous."""
    detector.eval()
    batches = in_chunks(store, sample_ids)
    return np.concatenate(
        [detector.anomaly_maps(x.to(store.device)).cpu().numpy() for x in batches]
    )


def evaluate(
    detector: Detector,
    store: FeatureStore,
    categories: Sequence[str],
    config: EvaluationConfig,
    advance: Callable[[int], object] | None = None,
) -> pd.DataFrame:
    """Metrics of every category on all of its test images.

    Parameters
    ----------
    detector, store : Detector, FeatureStore
    categories : sequence of str
        The categories seen so far.
    config : EvaluationConfig
    advance : callable, optional
        Called with the number of images just scored (a progress bar).

    Returns
    -------
    DataFrame
        category, metric, value, n_good, n_defect. A metric that is undefined, such as AUROC without good images
        or pixel metrics of a method without maps, is a missing value, never a number. AUROC below 0.5 stays below
        0.5. `accuracy` is that of the category on good images, where the method classifies; `validation_error`
        that on validation images, of trained methods.
    """
    index = store.dataset.index
    rows = []
    for category in categories:
        test = index[(index["category"] == category) & (index["split"] == "test")]
        ids, labels = test["sample_id"].tolist(), test["label"].to_numpy(dtype=int)
        maps, predicted = _score(detector, store, ids, config.batch_size, advance)
        masked = test["masked"].to_numpy(dtype=bool)  # pixels of defects without a mask are unknown
        masks = store.masks(test.loc[masked, "sample_id"].tolist())
        if detector.has_map:
            scores = image_scores(maps, config.image_score, config.pool)
            pixels = or_missing(pixel_auroc, maps[masked], masks)
            regions = or_missing(aupro, maps[masked], masks, config.fpr_limit)
        else:
            scores, pixels, regions = maps[:, 0, 0], np.nan, np.nan
        values = {
            "i_auroc": or_missing(image_auroc, scores, labels),
            "p_auroc": pixels,
            "aupro": regions,
        }
        if predicted is not None and (labels == 0).any():
            number = store.dataset.categories.index(category)
            values["accuracy"] = float((predicted[labels == 0] == number).mean())
        validation = index[(index["category"] == category) & (index["split"] == "validation")]
        if detector.trained and len(validation):
            held_out = validation["sample_id"].tolist()
            values["validation_error"] = validation_error(
                detector, store, held_out, config.batch_size
            )
        n_defect = int(labels.sum())
        rows += [(category, k, v, len(labels) - n_defect, n_defect) for k, v in values.items()]
    return pd.DataFrame(rows, columns=["category", "metric", "value", "n_good", "n_defect"])


@torch.no_grad()
def _score(
    detector: Detector,
    store: FeatureStore,
    sample_ids: Sequence[str],
    batch_size: int,
    advance: Callable[[int], object] | None,
) -> tuple[Float32[np.ndarray, "n size size"], Int[np.ndarray, " n"] | None]:
    """Anomaly maps and the predicted categories (None: the method classifies nothing); one pass."""
    detector.eval()
    maps, predicted = [], []
    for batch in in_chunks(store, sample_ids, batch_size):
        each, logits = detector.maps_and_logits(batch.to(store.device))
        maps.append(each.cpu().numpy())
        if logits is not None:
            predicted.append(logits.argmax(dim=1).cpu().numpy())
        if advance:
            advance(len(batch))
    return np.concatenate(maps), np.concatenate(predicted) if predicted else None


N_THRESHOLDS = (10, 100, 1000)
N_EVALUATIONS = 1000  # as many as a training of 1000 epochs that is tested after each of them
FOUR_CONNECTED = ndimage.generate_binary_structure(2, 1)


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
        Nothing is marked where it is not known which pixels are defective (`masked` of `test`).
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


def compare_details(
    scored: Scored, config: EvaluationConfig
) -> list[tuple[str, str, float, float]]:
    """Values of one category without and with each detail: (detail, metric, here, there)."""
    masked, labels = scored.test["masked"].to_numpy(dtype=bool), scored.labels
    maps, masks = scored.maps[masked], scored.masks[masked]
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
            or_missing(image_auroc, image_scores(scored.maps, kind), labels),
        )
        for kind in ("mean", "std")
    ]
    found += [
        ("below 0.5 becomes 1 - AUROC", name, max(here[name], 1 - here[name]))
        for name in ("i_auroc", "p_auroc")
    ]
    four_connected = or_missing(aupro, maps, masks, limit, FOUR_CONNECTED)
    found.append(("4-connected regions", "aupro", four_connected))
    found += [
        (f"{n} thresholds", "aupro", or_missing(aupro_from_thresholds, maps, masks, n, limit))
        for n in N_THRESHOLDS
    ]
    if scored.test["geometric"].notna().any():
        kept = scored.test["geometric"].fillna(True).to_numpy(dtype=bool)  # good images stay
        kinds = ("only geometric defects",) * 3
        values = (
            or_missing(image_auroc, scored.scores[kept], labels[kept]),
            or_missing(pixel_auroc, maps[kept[masked]], masks[kept[masked]]),
            or_missing(aupro, maps[kept[masked]], masks[kept[masked]], limit),
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


def aupro_from_thresholds(
    maps: np.ndarray, masks: np.ndarray, n_thresholds: int, fpr_limit: float
) -> float:
    """AUPRO of a curve with a fixed number of thresholds, as MVTec's evaluation script draws it.

    The thresholds are good pixels' scores at equidistant ranks; what is larger is positive. The curve ends in
    (1, 1), is interpolated linearly at the limit and divided by it.
    """
    if masks.all() or not masks.any():
        raise MetricError("AUPRO needs good and defect pixels")
    region = region_of_defect_pixels(masks)
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
