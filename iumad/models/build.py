"""Which class is built from which kind of `model` section."""

from iumad.config.methods import ModelConfig
from iumad.models.bank import Bank, UnifiedBank
from iumad.models.base import Detector, InputSpec
from iumad.models.baselines.cdad_feat import CdadFeat
from iumad.models.baselines.cnd import Cnd
from iumad.models.baselines.floor import Floor
from iumad.models.baselines.mambaad import MambaAD
from iumad.models.baselines.simplenet import SimpleNet
from iumad.models.baselines.unimmad import UniMMAD, UniMMADLite
from iumad.models.detector import ReconstructionDetector

CLASSES: dict[str, type[Detector]] = {
    "reconstruction": ReconstructionDetector,
    "bank": Bank,
    "bank-unified": UnifiedBank,
    "floor": Floor,
    "mambaad-lite": MambaAD,
    "simplenet": SimpleNet,
    "cdad-feat": CdadFeat,
    "unimmad": UniMMAD,
    "unimmad-lite": UniMMADLite,
    "cnd": Cnd,
}


def method_class(config: ModelConfig) -> type[Detector]:
    """The class of a method; what it is and needs is known before it is made."""
    return CLASSES[config.kind]


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
