"""Frozen features and the cache that holds them."""

import torch

from iumad.config.schema import RunConfig
from iumad.data.sample import Dataset
from iumad.features.cache import FeatureStore
from iumad.features.fpfh import SurfaceStore


def open_store(dataset: Dataset, run: RunConfig, device: torch.device) -> FeatureStore:
    """The inputs of a run's model: the backbone's features, for BTF with those of the surface for depth."""
    surface = getattr(run.model, "depth_features", "backbone") == "fpfh"
    return (SurfaceStore if surface else FeatureStore)(dataset, run, device=device)
