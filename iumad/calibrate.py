"""Numbers of a detector that are measured on a step's training data rather than learnt."""

from collections.abc import Sequence

import torch

from iumad.models.base import TrainedDetector
from iumad.store import FeatureStore


@torch.no_grad()
def fit_statistics(
    detector: TrainedDetector, store: FeatureStore, sample_ids: Sequence[str]
) -> None:
    """Mean and standard deviation of every feature channel over the base step's training data."""
    if not detector.standardise:
        return
    for modality in detector.modalities:
        total = total_square = torch.zeros(())
        count = 0
        for start in range(0, len(sample_ids), 16):
            features = store.batch(sample_ids[start : start + 16]).features[modality].double()
            count += features[:, 0].numel()
            total = total + features.sum(dim=(0, 2, 3))
            total_square = total_square + features.square().sum(dim=(0, 2, 3))
        mean = total / count
        std = (total_square / count - mean.square()).clamp_min(1e-12).sqrt()
        getattr(detector, f"mean_{modality}").copy_(mean)
        getattr(detector, f"std_{modality}").copy_(std)


@torch.no_grad()
def fit_residual_scales(
    detector: TrainedDetector, store: FeatureStore, sample_ids: Sequence[str]
) -> None:
    """Mean residual per target over the step's training data: the unit in which targets' maps are added."""
    if len(detector.targets) == 1:
        return
    device = next(detector.parameters()).device
    sums = dict.fromkeys(detector.targets, 0.0)
    for start in range(0, len(sample_ids), 16):
        ids = sample_ids[start : start + 16]
        for modality, residual in detector.residual_maps(store.batch(ids).to(device)).items():
            sums[modality] += float(residual.mean()) * len(ids) / len(sample_ids)
    for modality, value in sums.items():
        getattr(detector, f"residual_{modality}").fill_(value)
