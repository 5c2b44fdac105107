"""One memory bank per category: the N-objects-N-models reference (PatchCore, Roth et al., CVPR 2022).

A bank keeps patch features of a category's good images; the anomaly of a patch is its distance to the nearest
ones. The category of a test image is given, as it is for any per-category model, so nothing can be forgotten.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iumad.config.methods import MemoryBankConfig
from iumad.errors import CheckpointError
from iumad.features.cache import Batch, FeatureStore
from iumad.models.base import Detector, InputSpec


class MemoryBank(Detector):
    """Nearest-neighbour distances to stored patches, per category and modality.

    Parameters
    ----------
    config : MemoryBankConfig
    spec : InputSpec
        Maps of its modalities are divided by the mean distance between patches of different training images, then
        added.
    n_categories : int
    """

    trained: ClassVar[bool] = False
    needs_category: ClassVar[bool] = True

    def __init__(self, config: MemoryBankConfig, spec: InputSpec, n_categories: int) -> None:
        super().__init__(config, spec, n_categories, standardise=False)
        self.banks: dict[str, Float[Tensor, "m c"]] = {}
        self.scales: dict[str, float] = {}

    @torch.no_grad()
    def fit(
        self, store: FeatureStore, sample_ids: Sequence[str], generator: torch.Generator
    ) -> None:
        """Store the patches of the step's training images, category by category."""
        batch = store.batch(sample_ids)
        for category in batch.category.unique().tolist():
            mine = batch.category == category
            features = {m: batch.features[m][mine].to(self.device) for m in self.modalities}
            self._store(category, features, generator)

    def _store(
        self,
        category: int,
        features_of: dict[str, Float[Tensor, "b c g g"]],
        generator: torch.Generator,
    ) -> None:
        for modality, features in features_of.items():
            patches = _patches(features).flatten(0, 1)
            keep = max(1, round(self.config.coreset * len(patches)))
            bank = (
                patches
                if keep == len(patches)
                else patches[greedy_coreset(patches, keep, generator)]
            )
            key = f"{category}:{modality}"
            self.banks[key] = bank
            half = len(features) // 2
            first, second = _patches(features[: max(half, 1)]), _patches(features[half:])
            distances = torch.cdist(first.flatten(0, 1), second.flatten(0, 1)).min(dim=1).values
            self.scales[key] = max(float(distances.mean()), 1e-12)

    def pretend_fitted(self, images: int) -> None:
        """Random patches for every category."""
        patches = max(1, round(self.config.coreset * images * self.grid**2))
        for category in range(self.n_categories):
            for modality in self.modalities:
                key = f"{category}:{modality}"
                self.banks[key] = torch.randn(patches, self.channels, device=self.device)
                self.scales[key] = 1.0

    @torch.no_grad()
    def residual_maps(self, batch: Batch) -> dict[str, Float[Tensor, "b g g"]]:
        """Scaled distances; every image is compared with the bank of its own category."""
        return {
            modality: torch.stack([self._map(batch, modality, i) for i in range(len(batch))])
            for modality in self.modalities
        }

    def token_map(self, batch: Batch) -> Float[Tensor, "b g g"]:
        """Sum of the modalities' maps."""
        return torch.stack([*self.residual_maps(batch).values()]).sum(dim=0)

    def _map(self, batch: Batch, modality: str, i: int) -> Float[Tensor, "g g"]:
        key = f"{int(batch.category[i])}:{modality}"
        if key not in self.banks:
            raise CheckpointError(
                f"memory bank: category index {int(batch.category[i])} was never trained"
            )
        features = batch.features[modality][i : i + 1]
        bank = self.banks[key].to(features)
        distances = torch.cdist(_patches(features)[0], bank)
        nearest = distances.topk(
            min(self.config.neighbours, distances.shape[1]), largest=False
        ).values.mean(dim=1)
        return nearest.unflatten(0, features.shape[-2:]) / self.scales[key]

    def get_extra_state(self) -> dict[str, dict]:
        """Banks and scales, so that `state_dict` is the whole model."""
        return {"banks": self.banks, "scales": self.scales}

    def set_extra_state(self, state: dict[str, dict]) -> None:
        """Put back what `get_extra_state` gave."""
        self.banks, self.scales = dict(state["banks"]), dict(state["scales"])


def greedy_coreset(
    patches: Float[Tensor, "m c"], keep: int, generator: torch.Generator
) -> Int[Tensor, " keep"]:
    """Indices of `keep` patches chosen by farthest-point selection on a random projection to 128 dimensions."""
    if patches.shape[1] > 128:
        patches = (
            patches @ torch.randn(patches.shape[1], 128, generator=generator).to(patches) / 128**0.5
        )
    chosen = torch.empty(keep, dtype=torch.long)
    chosen[0] = torch.randint(len(patches), (), generator=generator)
    nearest = torch.full((len(patches),), float("inf"), device=patches.device)
    for i in range(1, keep):
        nearest = torch.minimum(nearest, (patches - patches[chosen[i - 1]]).square().sum(dim=1))
        chosen[i] = nearest.argmax()
    return chosen


def _patches(features: Float[Tensor, "b c g g"]) -> Float[Tensor, "b n c"]:
    return features.flatten(2).transpose(1, 2)
