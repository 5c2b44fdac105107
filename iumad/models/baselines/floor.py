"""Floors: statistics of the image that need no training. A method that does not beat them has learnt nothing.

A floor scores whole images; its map says the same at every pixel and is no localisation (`has_map`).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from iumad.config.methods import FloorConfig
from iumad.errors import CheckpointError, ConfigError
from iumad.features.cache import Batch, FeatureStore
from iumad.models.base import Detector, InputSpec, in_chunks

THUMBNAIL = 32  # pixels along a side of the images that are compared


class Floor(Detector):
    """A statistic of each image, or its distance from those of the category's training images.

    Parameters
    ----------
    config : FloorConfig
    spec : InputSpec
    n_categories : int

    Attributes
    ----------
    references : category -> statistics of its training images

    Raises
    ------
    ConfigError
        The run does not have the floor's modality.
    """

    trained: ClassVar[bool] = False
    reads_features: ClassVar[bool] = False
    needs_category: ClassVar[bool] = True
    has_map: ClassVar[bool] = False

    def __init__(self, config: FloorConfig, spec: InputSpec, n_categories: int) -> None:
        self.looked_at = config.modality or spec.modalities[-1]
        if self.looked_at not in spec.modalities:
            raise ConfigError(
                f"model.modality: the floor looks at {self.looked_at!r}, the run has {'+'.join(spec.modalities)}"
            )
        super().__init__(config, spec, n_categories, (self.looked_at,), standardise=False)
        self.references: dict[str, Float[Tensor, "m k"]] = {}

    def statistics(self, batch: Batch) -> Float[Tensor, "b k"]:
        """The statistic of every image, one or more numbers."""
        images = batch.images[self.looked_at]
        match self.config.statistic:
            case "laplacian":
                return laplacian(images.mean(dim=1)).flatten(1).std(dim=1, keepdim=True)
            case "mean":
                return images.flatten(1).mean(dim=1, keepdim=True)
            case "spread":
                return images.mean(dim=1).flatten(1).std(dim=1, keepdim=True)
            case "histogram":
                return histograms(images, self.config.bins)
            case _:
                return functional.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)

    @torch.no_grad()
    def fit(
        self,
        store: FeatureStore,
        sample_ids: Sequence[str],
        generator: torch.Generator,
    ) -> None:
        """Keep the statistics of the step's training images, or their mean, category by category."""
        if self.config.distance == "none":
            return
        found: dict[str, list[Tensor]] = {}
        for batch in in_chunks(store, sample_ids):
            batch = batch.to(self.device)
            for category, row in zip(batch.category.tolist(), self.statistics(batch), strict=True):
                found.setdefault(str(category), []).append(row)
        for category, rows in found.items():
            values = torch.stack(rows)
            averaged = self.config.distance == "mean"
            self.references[category] = values.mean(dim=0, keepdim=True) if averaged else values

    def pretend_fitted(self, images: int) -> None:
        """Random statistics for every category."""
        size = {"histogram": 3 * self.config.bins, "image": 3 * THUMBNAIL**2}
        shape = (images, size.get(self.config.statistic, 1))
        for category in range(self.n_categories):
            self.references[str(category)] = torch.rand(shape, device=self.device)

    @torch.no_grad()
    def image_scores(self, batch: Batch) -> Float[Tensor, " b"]:
        """How unusual every image is: the statistic, or the mean absolute difference to the reference.

        Raises
        ------
        CheckpointError
            A category was never met.
        """
        values = self.statistics(batch)
        if self.config.distance == "none":
            return values[:, 0]
        scores = []
        for category, value in zip(batch.category.tolist(), values, strict=True):
            if str(category) not in self.references:
                raise CheckpointError(f"floor: category index {category} was never met")
            scores.append((self.references[str(category)] - value).abs().mean(dim=1).min())
        return torch.stack(scores)

    def residual_maps(self, batch: Batch) -> dict[str, Float[Tensor, "b g g"]]:
        """The image's score at every token."""
        scores = self.image_scores(batch)[:, None, None]
        return {self.looked_at: scores.expand(-1, self.grid, self.grid)}

    def anomaly_maps(self, batch: Batch) -> Float[Tensor, "b size size"]:
        """The image's score at every pixel."""
        scores = self.image_scores(batch)[:, None, None]
        return scores.expand(-1, self.image_size, self.image_size)

    def get_extra_state(self) -> dict[str, Tensor]:
        """The references, so that `state_dict` is the whole model."""
        return self.references

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `get_extra_state` gave."""
        self.references = {name: x.to(self.device) for name, x in state.items()}


def laplacian(images: Float[Tensor, "b h w"]) -> Float[Tensor, "b h2 w2"]:
    """Sum of the four neighbours minus four times the pixel, without the outermost pixels."""
    inner = images[:, 1:-1, 1:-1]
    beside = images[:, 1:-1, :-2] + images[:, 1:-1, 2:] + images[:, :-2, 1:-1] + images[:, 2:, 1:-1]
    return beside - 4 * inner


def histograms(images: Float[Tensor, "b k h w"], bins: int) -> Float[Tensor, "b n"]:
    """Share of the pixels in each of equal bins over [0, 1], by channel; outer bins take what is outside."""
    places = (images * bins).long().clamp(0, bins - 1).flatten(2)
    counts = torch.zeros(*places.shape[:2], bins, device=images.device)
    counts.scatter_add_(2, places, torch.ones_like(places, dtype=counts.dtype))
    return (counts / places.shape[2]).flatten(1)
