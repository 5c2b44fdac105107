"""What each method of a comparison is made of, and in which part of the grid it is run."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field

from iumad.config.sections import ModelConfig, PerturbConfig, Section
from iumad.config.validation import nearest
from iumad.errors import ConfigError

Modality = Literal["rgb", "depth", "rgb+depth"]

_UNIAD = {"fusion": "addition", "bottleneck": False, "channel_reduction": "mean"}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "ib-iumad": {},
    "ib-iumad-plus": {"model": {"depth_target": True, "bottleneck_residual": True}},
    "uniad": {"model": {"condition": "none"} | _UNIAD},
    "uniad-original": {
        "model": {"condition": "none", "neighbour_mask": 7, "dropout": 0.1, "standardise": False}
        | _UNIAD
        | {"depth_target": True},
        "training": {"schedule": "step", "clip": 0.1, "lr": 1.0e-4},
        "increment": {"strategy": "none", "lr": 1.0e-4},
    },
    "iuf": {"model": {"condition": "vit", "lambda_compression": 10.0} | _UNIAD},
    "joint": {"increment": {"strategy": "joint"}},
    "finetune": {"increment": {"strategy": "none"}},
    "memory-bank": {"model": {"kind": "memory-bank"}},
    "btf": {"model": {"kind": "memory-bank", "depth_features": "fpfh", "coreset": 0.1}},
    "mambaad": {"model": {"kind": "mambaad"}, "increment": {"strategy": "none"}},
    "simplenet": {"model": {"kind": "simplenet"}, "increment": {"strategy": "none"}},
    "cdad-feat": {"model": {"kind": "cdad-feat"}, "increment": {"strategy": "svd"}},
    "cnd": {
        "model": {"kind": "cnd"},
        "training": {"lr": 1.0e-3, "weight_decay": 0.0, "schedule": "constant"},
        "increment": {"strategy": "none", "lr": 1.0e-3},
    },
    "unimmad": {
        "model": {"kind": "unimmad"},
        "training": {"lr": 1.0e-3, "weight_decay": 0.0},
        "increment": {"strategy": "none"},
    },
    "unimmad-replay": {
        "model": {"kind": "unimmad"},
        "training": {"lr": 1.0e-3, "weight_decay": 0.0},
        "increment": {"strategy": "replay", "replay_images": 3},
    },
    "unimmad-lite": {"model": {"kind": "unimmad-lite"}, "increment": {"strategy": "none"}},
    "unimmad-lite-replay": {
        "model": {"kind": "unimmad-lite"},
        "increment": {"strategy": "replay", "replay_images": 1},
    },
}
"""What each method changes in the defaults, which are IB-IUMAD's. `joint` (all categories at once) and `finetune`
(nothing protects the earlier ones) are its upper and lower bound. `uniad-original` is UniAD as its authors train
it; methods of other kinds that know no increments are fine-tuned."""


class MethodConfig(Section):
    """One row of a comparison: a preset and what is changed in it."""

    preset: str | None = Field(
        None, description="a name of PRESETS; default: the method's own name"
    )
    model: dict[str, Any] = Field({})
    increment: dict[str, Any] = Field({})
    training: dict[str, Any] = Field({})
    perturb: PerturbConfig = PerturbConfig()
    modalities: tuple[Modality, ...] | None = Field(
        None, description="of the study's, those with this method; default: all"
    )
    settings: tuple[str, ...] | None = Field(
        None, description="of the study's, those with this method; default: all"
    )

    def is_in(self, modality: str, setting: str) -> bool:
        """Whether the method is run there."""
        return (self.modalities is None or modality in self.modalities) and (
            self.settings is None or setting in self.settings
        )


def model_section(model: Mapping[str, Any]) -> type[Section]:
    """The section of a model's `kind`; without one, that of reconstruction methods.

    Raises
    ------
    ConfigError
        No section has this kind.
    """
    union, *_ = get_args(ModelConfig)
    kinds = {section.model_fields["kind"].default: section for section in get_args(union)}
    kind = str(model.get("kind", "reconstruction"))
    if kind not in kinds:
        raise ConfigError(
            f"model.kind: no kind is called {kind!r}{nearest(kind, kinds)}; known: {', '.join(kinds)}"
        )
    return kinds[kind]
