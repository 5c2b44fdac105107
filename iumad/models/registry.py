"""Which class is built from which section of the configuration."""

from collections.abc import Callable

from iumad.config.sections import (
    CdadFeatConfig,
    CndConfig,
    MambaADConfig,
    MemoryBankConfig,
    ModelConfig,
    ReconstructionConfig,
    SimpleNetConfig,
    UniMMADConfig,
    UniMMADLiteConfig,
)
from iumad.models.base import TrainedDetector
from iumad.models.baselines.cdad_feat import CdadFeat
from iumad.models.baselines.cnd import Cnd
from iumad.models.baselines.mambaad import MambaAD
from iumad.models.baselines.simplenet import SimpleNet
from iumad.models.baselines.unimmad import UniMMAD, UniMMADLite
from iumad.models.detector import ReconstructionDetector
from iumad.models.memory_bank import MemoryBank

Detector = TrainedDetector | MemoryBank

TRAINED: dict[type, Callable[..., TrainedDetector]] = {
    ReconstructionConfig: ReconstructionDetector,
    MambaADConfig: MambaAD,
    SimpleNetConfig: SimpleNet,
    CdadFeatConfig: CdadFeat,
    UniMMADConfig: UniMMAD,
    UniMMADLiteConfig: UniMMADLite,
    CndConfig: Cnd,
}
"""Section -> class, all with the same arguments."""


def reads_features(config: ModelConfig) -> bool:
    """Whether a model reads the study's features, as banks do too; else it encodes the images itself."""
    return getattr(TRAINED.get(type(config)), "reads_features", True)


def with_random_weights(config: ModelConfig) -> ModelConfig:
    """The section of a model of the same size for which no weights need to be at hand."""
    if "weights" not in type(config).model_fields:
        return config
    return config.model_copy(update={"weights": "random"})


def make_detector(
    config: ModelConfig,
    modalities: tuple[str, ...],
    channels: int,
    grid: int,
    image_size: int,
    n_categories: int,
) -> Detector:
    """A new detector, with random weights from torch's global generator.

    Parameters
    ----------
    config : section of the configuration; its `kind` decides
    modalities : ("rgb",), ("depth",) or ("rgb", "depth")
    channels, grid, image_size, n_categories : int
        C and g of the features, side of the images in pixels, logits.
    """
    if isinstance(config, MemoryBankConfig):
        return MemoryBank(config, modalities, image_size)
    return TRAINED[type(config)](config, modalities, channels, grid, image_size, n_categories)
