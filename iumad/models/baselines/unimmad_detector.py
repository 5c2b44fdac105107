"""What both sizes of UniMMAD share: experts, losses, scores, and what an increment trains (Zhao et al.).

All modalities together are compressed to general features f^gen. A cross mixture of experts C-MoE per level
decompresses them to each modality's own features p, guided by a pooled prior u of that modality; normal images
decompress well. Where paper and public code differ, the paper is the default and the code a switch.

Symbols: M  modalities; L  levels; u, p  prior and decompressed features; A = 1 - cos(u, p); e/E  progress.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.config_baselines import UniMMADConfig, UniMMADLiteConfig
from iumad.errors import ConfigError
from iumad.models.base import TrainedDetector
from iumad.models.baselines.unimmad_balance import (
    balance_of_the_code,
    balance_of_the_paper,
    leader_frequency,
)
from iumad.models.baselines.unimmad_experts import CrossMixture
from iumad.models.baselines.unimmad_score import (
    enlarged,
    score_of_the_code,
    score_of_the_paper,
)
from iumad.store import Batch

Levels = list[Float[Tensor, "b _ _ _"]]  # general features, finest first
Priors = list[Float[Tensor, "modalities b _ _ _"]]


class MixtureDetector(TrainedDetector):
    """A detector by decompression; a size of it says what the general features and the priors are.

    Parameters
    ----------
    config, modalities, channels, grid, image_size : see `TrainedDetector`
    level_channels : C of every level
    """

    def __init__(
        self,
        config: UniMMADConfig | UniMMADLiteConfig,
        modalities: tuple[str, ...],
        channels: int,
        grid: int,
        image_size: int,
        level_channels: tuple[int, ...],
    ) -> None:
        lite = isinstance(config, UniMMADLiteConfig)
        super().__init__(modalities, channels, grid, image_size, standardise=lite)
        self.config = config
        self.progress = 0.0
        numbers = (config.width, config.leaders, config.bases, config.active, config.kernels)
        self.mixtures = nn.ModuleList(CrossMixture(c, *numbers, lite) for c in level_channels)

    def general_and_priors(self, batch: Batch) -> tuple[Levels, Priors]:
        """General features f^gen and, for the modalities that the batch has, the priors u; per level."""
        raise NotImplementedError

    def present(self, batch: Batch) -> tuple[str, ...]:
        """The detector's modalities that a batch has.

        Raises
        ------
        ConfigError
            It has none of them.
        """
        given = tuple(m for m in self.modalities if m in self._inputs(batch))
        if not given:
            raise ConfigError(
                f"a batch needs one of the modalities {', '.join(self.modalities)}, "
                f"it has {', '.join(self._inputs(batch)) or 'none'}"
            )
        return given

    def _inputs(self, batch: Batch) -> Mapping[str, Tensor]:
        raise NotImplementedError

    def decompress(
        self, batch: Batch
    ) -> tuple[list[Float[Tensor, "modalities b _ _"]], list[Float[Tensor, "branches items j"]]]:
        """A = 1 - cos(u, p) of Eq. 3 at every place, and the gates' logits; per level."""
        distances, logits = [], []
        for mixture, general, prior in zip(
            self.mixtures, *self.general_and_priors(batch), strict=True
        ):
            output, gate = mixture(general, prior.flatten(0, 1))
            p = output.unflatten(0, prior.shape[:2])
            distances.append(1 - functional.cosine_similarity(prior.float(), p.float(), dim=2))
            logits.append(gate)
        return distances, logits

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set e/E, by which the balance loss is annealed."""
        self.progress = epoch / epochs

    def losses(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        base: bool = False,
    ) -> dict[str, Float[Tensor, ""]]:
        """`decompression`: Eq. 3, mean over levels, modalities and places; `balance`: Eq. 1."""
        config = self.config
        distances, logits = self.decompress(batch)
        focal = [(a.detach().clamp_min(0) ** config.gamma * a).mean() for a in distances]
        balance = (
            balance_of_the_paper(logits, len(self.present(batch)), self.progress)
            if config.balance == "paper"
            else balance_of_the_code(logits, self.progress)
        )
        return {"decompression": torch.stack(focal).mean(), "balance": balance}

    @torch.no_grad()
    def residual_maps(self, batch: Batch) -> dict[str, Float[Tensor, "b g g"]]:
        """Mean over levels of A on the grid, per modality that the batch has."""
        distances, _ = self.decompress(batch)
        return {
            modality: torch.stack([enlarged(level[i], self.grid) for level in distances]).mean(0)
            for i, modality in enumerate(self.present(batch))
        }

    @torch.no_grad()
    def anomaly_maps(self, batch: Batch) -> Float[Tensor, "b size size"]:
        """Eq. 4 or, by `score`, the public code's."""
        score = score_of_the_paper if self.config.score == "paper" else score_of_the_code
        return score(self.decompress(batch)[0], self.image_size, self.config.sigma)

    @torch.no_grad()
    def leader_frequency(self, batch: Batch) -> Float[Tensor, "levels branches j"]:
        """How often each leader is among the chosen: above 0.01 it counts as used (Fig. 7a)."""
        return leader_frequency(self.decompress(batch)[1], self.config.active)

    def begin_increment(self) -> None:
        """Freeze all but leaders, routers with their gates, and aggregation (section 4.5)."""
        self.requires_grad_(False)
        for mixture in self.mixtures:
            assert isinstance(mixture, CrossMixture)
            for part in mixture.adaptable():
                part.requires_grad_(True)

    def train(self, mode: bool = True) -> "MixtureDetector":
        """Batch norms whose weights are frozen keep their statistics, else frozen parts would drift."""
        super().train(mode)
        for module in self.modules():
            is_norm = isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)
            if is_norm and not module.weight.requires_grad:
                module.eval()
        return self

    def compiled_parts(self) -> tuple[nn.Module, ...]:
        """Every level's experts, and the other networks."""
        others = (child for child in self.children() if child is not self.mixtures)
        return (*others, *self.mixtures)
