"""One memory bank per category: the N-objects-N-models reference (PatchCore, Roth et al., CVPR 2022).

A bank keeps patch features of a category's good images; the anomaly of a patch is its distance to the nearest
ones. The category of a test image is given, as it is for any per-category model, so nothing can be forgotten.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.sections import MemoryBankConfig
from iumad.errors import CheckpointError
from iumad.features.cache import Batch


class MemoryBank(nn.Module):
    """Nearest-neighbour distances to stored patches, per category and modality.

    Parameters
    ----------
    config : MemoryBankConfig
    modalities : tuple of str
        Their maps are divided by the mean distance between patches of different training images, then added.
    image_size : int
        Side of the anomaly maps, pixels.
    """

    def __init__(
        self, config: MemoryBankConfig, modalities: tuple[str, ...], image_size: int
    ) -> None:
        super().__init__()
        self.config, self.modalities, self.image_size = config, modalities, image_size
        self.banks: dict[str, Float[Tensor, "m c"]] = {}
        self.scales: dict[str, float] = {}

    def fit(self, category: int, batch: Batch, generator: torch.Generator) -> None:
        """Store the patches of one category's training images (all in `batch`)."""
        for modality in self.modalities:
            features = batch.features[modality]
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

    def anomaly_maps(self, batch: Batch) -> Float[Tensor, "b size size"]:
        """Distance maps at image size; every image is compared with the bank of its own category."""
        maps = [self._map(batch, i) for i in range(len(batch))]
        size = (self.image_size, self.image_size)
        return functional.interpolate(
            torch.stack(maps)[:, None], size, mode="bilinear", align_corners=True
        )[:, 0]

    def _map(self, batch: Batch, i: int) -> Float[Tensor, "g g"]:
        total = None
        for modality in self.modalities:
            key = f"{int(batch.category[i])}:{modality}"
            if key not in self.banks:
                raise CheckpointError(
                    f"memory bank: category index {int(batch.category[i])} was never trained"
                )
            features = batch.features[modality][i : i + 1]
            distances = torch.cdist(_patches(features)[0], self.banks[key])
            nearest = distances.topk(
                min(self.config.neighbours, distances.shape[1]), largest=False
            ).values.mean(dim=1)
            scaled = nearest.unflatten(0, features.shape[-2:]) / self.scales[key]
            total = scaled if total is None else total + scaled
        assert total is not None
        return total

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
