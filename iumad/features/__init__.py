"""Frozen features and the cache that holds them."""

import torch

from iumad.config.schema import RunConfig
from iumad.data.prepare import Preparation
from iumad.data.sample import Dataset
from iumad.features.cache import FeatureStore, SurfaceStore


def open_store(
    dataset: Dataset,
    run: RunConfig,
    device: torch.device,
    preparation: Preparation | None = None,
) -> FeatureStore:
    """The inputs of a run's model: the backbone's features, for BTF with those of the surface for depth.

    Parameters as for `FeatureStore`.
    """
    surface = getattr(run.model, "depth_features", "backbone") == "fpfh"
    store = SurfaceStore if surface else FeatureStore
    return store(dataset, run, device=device, preparation=preparation)
