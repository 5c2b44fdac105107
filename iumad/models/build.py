"""From a `model` section to a detector on a device: which class, which device, what the machine can do."""

import re

import torch

from iumad.config.methods import ModelConfig
from iumad.errors import ConfigError
from iumad.models.bank import Bank, Floor, UnifiedBank
from iumad.models.base import Detector, InputSpec
from iumad.models.baselines.cnd import Cnd
from iumad.models.baselines.feature_noise import CdadFeat, SimpleNet
from iumad.models.baselines.mambaad import MambaAD
from iumad.models.baselines.unimmad import UniMMAD, UniMMADLite
from iumad.models.detector import ReconstructionDetector
from iumad.models.keep import KeepDetector


def pick_device(device: str) -> torch.device:
    """The torch device of a name: 'auto' is CUDA where there is a device, else CPU.

    On a card convolutions compute in full float32 from then on, as on a CPU.

    Parameters
    ----------
    device : "auto", "cpu", "cuda" or "cuda:N"

    Raises
    ------
    ConfigError
        The name is none of these, or this machine has no such device; the text names those it has.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    have = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(
            f"device must be auto, cpu, cuda or cuda:N, got {device!r}; this machine has: {have}"
        )
    if device == "cpu" or (device == "auto" and not count):
        return torch.device("cpu")
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise ConfigError(f"device {device!r} (cuda:{index}): this machine has only: {have}")
    torch.backends.cudnn.allow_tf32 = False  # cached features have one key, whatever computes them
    return torch.device("cuda", index)


def device_name(device: torch.device) -> str:
    """'cpu' or the accelerator's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def require_compiler(device: torch.device, mode: str) -> None:
    """Compile a small function as `torch.compile` would; ConfigError with the reason where that fails."""
    try:
        torch.compile(torch.square, mode=mode)(torch.ones(2, device=device))
    except Exception as error:  # torch raises many kinds: no C++ compiler, no Triton, no headers
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"training.compile: torch.compile does not work on this machine ({reason}); "
            "install a C++ compiler (and Triton for CUDA), or set it to false"
        ) from error


CLASSES: dict[str, type[Detector]] = {
    "reconstruction": ReconstructionDetector,
    "keep": KeepDetector,
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
