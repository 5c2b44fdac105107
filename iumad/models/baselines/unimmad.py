"""UniMMAD at full size: one trained and one frozen backbone read the images (section 3.2).

Written from the paper and a sheet of facts, not from the authors' code.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from iumad.config_baselines import UniMMADConfig
from iumad.errors import ConfigError
from iumad.models.base import KNOWN
from iumad.models.baselines.unimmad_compression import PyramidCompression
from iumad.models.baselines.unimmad_detector import Levels, MixtureDetector, Priors
from iumad.models.baselines.unimmad_pyramid import GeneralEncoder, Pyramid
from iumad.store import Batch


class UniMMAD(MixtureDetector):
    """The full method: it reads the images, with its own frozen and its own trained backbone.

    Parameters
    ----------
    config, modalities, image_size : see `TrainedDetector`
    channels, grid : C and g of the study's features, which are not used but for the grid of residual maps
    n_categories : not used, the method knows no categories

    Raises
    ------
    ConfigError
        The image size is not a multiple of 32 or less than 64.
    """

    reads_features = False

    def __init__(
        self,
        config: UniMMADConfig,
        modalities: tuple[str, ...],
        channels: int,
        grid: int,
        image_size: int,
        n_categories: int,
    ) -> None:
        if image_size % 32 or image_size < 64:
            raise ConfigError(
                f"unimmad needs an image_size that 32 divides, at least 64, got {image_size}"
            )
        prior = Pyramid(config.backbone, config.weights)
        super().__init__(config, modalities, channels, grid, image_size, prior.channels)
        refined = config.prior_refinement
        self.encoder = GeneralEncoder(prior, config.slots, image_size, refined)
        self.compression = PyramidCompression(prior.channels, config.kernels)
        self.prior = prior.requires_grad_(False)

    def _inputs(self, batch: Batch) -> Mapping[str, Tensor]:
        return batch.images

    def general_and_priors(self, batch: Batch) -> tuple[Levels, Priors]:
        """Encoder and compression of the images together; the prior generator of each alone."""
        images = {m: batch.images[m] for m in self.present(batch)}
        stacked = torch.cat([self.prior.normalised(x) for x in images.values()])
        with torch.no_grad():
            raw = [x.unflatten(0, (len(images), -1)) for x in self.prior(stacked)]
        slots = {KNOWN.index(modality): x for modality, x in images.items()}
        general = self.compression(self.encoder(slots, raw))
        return general, [functional.normalize(x, dim=2) for x in raw]
