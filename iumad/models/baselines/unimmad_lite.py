"""UniMMAD's experts on frozen features of one grid: an adaptation that a CPU can train, not UniMMAD."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from iumad.config_baselines import UniMMADLiteConfig
from iumad.errors import ConfigError
from iumad.models.base import KNOWN
from iumad.models.baselines.unimmad_compression import Compression
from iumad.models.baselines.unimmad_detector import Levels, MixtureDetector, Priors
from iumad.store import Batch


class UniMMADLite(MixtureDetector):
    """Frozen features on one grid take the place of both image networks; there is one level, and no image is read.

    Parameters
    ----------
    config, modalities, channels, grid, image_size : see `TrainedDetector`
    n_categories : not used, the method knows no categories

    Raises
    ------
    ConfigError
        4 does not divide the grid, which two bottlenecks halve, or it is less than 8.
    """

    def __init__(
        self,
        config: UniMMADLiteConfig,
        modalities: tuple[str, ...],
        channels: int,
        grid: int,
        image_size: int,
        n_categories: int,
    ) -> None:
        if grid % 4 or grid < 8:
            raise ConfigError(
                f"unimmad-lite needs a features.grid that 4 divides, at least 8, got {grid}"
            )
        super().__init__(config, modalities, channels, grid, image_size, (channels,))
        width = config.width
        self.embedding = nn.Conv2d(len(KNOWN) * channels, width, 1)
        outputs = (2 * width, width)
        self.compression = Compression(width, 1, config.kernels, 4 * width, outputs, blocks=(1, 1))
        self.project = nn.Conv2d(width, channels, 1, bias=False)

    def _inputs(self, batch: Batch) -> Mapping[str, Tensor]:
        return batch.features

    def general_and_priors(self, batch: Batch) -> tuple[Levels, Priors]:
        """One level: standardised features are the priors, and compressed together the general features."""
        maps = {
            modality: self.standardised(batch, modality).mT.unflatten(2, (self.grid, self.grid))
            for modality in self.present(batch)
        }
        zeros = torch.zeros_like(next(iter(maps.values())))
        together = torch.cat([maps.get(modality, zeros) for modality in KNOWN], dim=1)
        *_, restored = self.compression([self.embedding(together)])
        general = functional.normalize(self.project(restored), dim=1)
        return [general], [functional.normalize(torch.stack([*maps.values()]), dim=2)]
