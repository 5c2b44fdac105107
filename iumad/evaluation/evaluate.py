"""A detector on the test images of every category seen so far: anomaly maps in, tidy rows out."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Int

from iumad.config.sections import EvaluationConfig
from iumad.evaluation.metrics import aupro, image_auroc, image_scores, or_missing, pixel_auroc
from iumad.features.cache import FeatureStore
from iumad.models.base import Detector


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
    for start in range(0, len(sample_ids), batch_size):
        batch = store.batch(sample_ids[start : start + batch_size]).to(store.device)
        maps = torch.stack(list(detector.residual_maps(batch).values()))
        total += float(maps.double().mean(dim=(0, 2, 3)).sum())
    return total / len(sample_ids)


@torch.no_grad()
def anomaly_maps(
    detector: Detector,
    store: FeatureStore,
    sample_ids: Sequence[str],
    batch_size: int = 16,
    advance: Callable[[int], object] | None = None,
) -> Float32[np.ndarray, "n size size"]:
    """Anomaly maps of these samples, in order; higher is more anomalous."""
    detector.eval()
    maps = []
    for start in range(0, len(sample_ids), batch_size):
        ids = sample_ids[start : start + batch_size]
        maps.append(detector.anomaly_maps(store.batch(ids).to(store.device)).cpu().numpy())
        if advance:
            advance(len(ids))
    return np.concatenate(maps)


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
        maps, told = _score(detector, store, ids, config.batch_size, advance)
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
        if told is not None and (labels == 0).any():
            number = store.dataset.categories.index(category)
            values["accuracy"] = float((told[labels == 0] == number).mean())
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
) -> tuple[
    Float32[np.ndarray, "n size size"],
    Int[np.ndarray, " n"] | None,
]:
    """Anomaly maps and the categories told (None: the method classifies nothing); one pass."""
    detector.eval()
    maps, told = [], []
    for start in range(0, len(sample_ids), batch_size):
        ids = sample_ids[start : start + batch_size]
        batch = store.batch(ids).to(store.device)
        each, logits = detector.maps_and_logits(batch)
        maps.append(each.cpu().numpy())
        if logits is not None:
            told.append(logits.argmax(dim=1).cpu().numpy())
        if advance:
            advance(len(ids))
    return np.concatenate(maps), np.concatenate(told) if told else None
