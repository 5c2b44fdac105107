"""Which class is built from which section of the configuration."""

from iumad.config.methods import (
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
from iumad.models.base import Detector, InputSpec
from iumad.models.baselines.cdad_feat import CdadFeat
from iumad.models.baselines.cnd import Cnd
from iumad.models.baselines.mambaad import MambaAD
from iumad.models.baselines.simplenet import SimpleNet
from iumad.models.baselines.unimmad import UniMMAD, UniMMADLite
from iumad.models.detector import ReconstructionDetector
from iumad.models.memory_bank import MemoryBank

METHODS: dict[type, type[Detector]] = {
    ReconstructionConfig: ReconstructionDetector,
    MambaADConfig: MambaAD,
    SimpleNetConfig: SimpleNet,
    CdadFeatConfig: CdadFeat,
    UniMMADConfig: UniMMAD,
    UniMMADLiteConfig: UniMMADLite,
    CndConfig: Cnd,
    MemoryBankConfig: MemoryBank,
}
"""Section of the configuration -> class."""


def method_class(config: ModelConfig) -> type[Detector]:
    """The class of a method; what it is and needs is known before it is made."""
    return METHODS[type(config)]


def with_random_weights(config: ModelConfig) -> ModelConfig:
    """The section of a model of the same size for which no weights need to be at hand."""
    if "weights" not in type(config).model_fields:
        return config
    return config.model_copy(update={"weights": "random"})


def make_detector(config: ModelConfig, spec: InputSpec, n_categories: int) -> Detector:
    """A new detector, with random weights from torch's global generator.

    Parameters
    ----------
    config : section of the configuration; its `kind` decides
    spec : InputSpec
    n_categories : int
        Categories met so far.
    """
    return method_class(config)(config, spec, n_categories)
