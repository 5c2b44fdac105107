"""Frozen features and the cache that holds them."""

import torch

from iumad.config.schema import RunConfig
from iumad.data.sample import Dataset
from iumad.features.cache import FeatureStore, SurfaceStore


def open_store(
    dataset: Dataset,
    run: RunConfig,
    device: torch.device,
    like: FeatureStore | None = None,
) -> FeatureStore:
    """The inputs of a run's model: the backbone's features, for BTF with those of the surface for depth.

    Parameters as for `FeatureStore`; `like` is a store of the same images undisturbed, whose preparation and
    backbone are used.
    """
    surface = getattr(run.model, "depth_features", "backbone") == "fpfh"
    store = SurfaceStore if surface else FeatureStore
    if like is None:
        return store(dataset, run, device=device)
    return store(
        dataset, run, device=device, preparation=like.preparation(), backbone=like.backbone
    )
