"""The model file: everything that a prediction needs in one file that runs no code when it is read.

A zip archive (stored, not compressed): `card.json` says what is in it, the other members are safetensors:

    card.json              version, configuration, categories, thresholds, provenance, SHA-256 of the other members
    detector.safetensors   weights or banks
    backbone.safetensors   the frozen backbone, so that no download is needed
    held.safetensors       features and images of a few held-out good images a category, for `iumad learn`
    memory.safetensors     what protects the categories learnt so far; absent where nothing does
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from iumad.config.schema import RunConfig
from iumad.data.prepare import Preparation
from iumad.errors import CheckpointError
from iumad.features.backbone import Backbone
from iumad.inspection.threshold import Threshold
from iumad.machine import replacing
from iumad.models.base import Detector, InputSpec
from iumad.models.build import make_detector

VERSION = 2  # 2: how inputs are prepared is in the file
CARD = "card.json"
EPOCH = (1980, 1, 1, 0, 0, 0)  # of all members, so that equal models are equal files


class Card(BaseModel):
    """What a model file says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = "iumad-model"
    version: int = VERSION
    iumad: str
    created: str
    run: dict[str, Any]
    categories: tuple[str, ...]
    channels: int
    modalities: tuple[str, ...]
    preparation: Preparation
    n_train: dict[str, int]
    thresholds: dict[str, Threshold]
    seconds: float
    torch: str
    plain: dict[str, Any] = {}
    members: dict[str, str] = {}


@dataclass
class Model:
    """A model in memory.

    Attributes
    ----------
    card : Card
    run : RunConfig
        The folder in it means nothing here.
    detector, backbone : in evaluation mode, on the CPU
    held : category -> name -> tensor, b x ...; `rgb.features` and `rgb.images` for every modality
    memory : what `iumad.training.increments.remember` gave
    """

    card: Card
    run: RunConfig
    detector: Detector
    backbone: Backbone
    held: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)


def save_model(model: Model, path: Path) -> None:
    """Write a model file in one step; after a failure an older file is still there."""
    plain: dict[str, Any] = {}
    contents = {
        "detector": model.detector.state_dict(),
        "backbone": model.backbone.state_dict(),
        "held": model.held,
        "memory": model.memory,
    }
    members = {}
    for name, content in contents.items():
        tensors: dict[str, Tensor] = {}
        plain[name] = _without_tensors(content, name, tensors)
        if tensors:
            members[f"{name}.safetensors"] = bytes_of(tensors)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    card = model.card.model_copy(update={"plain": plain, "members": digests})
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        text = json.dumps(
            card.model_dump(mode="json"), indent=1, ensure_ascii=False, sort_keys=True
        )
        archive.writestr(zipfile.ZipInfo(CARD, EPOCH), text.encode())
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)


def read_card(path: Path) -> Card:
    """The card of a model file, without its tensors.

    Raises
    ------
    CheckpointError
        The file is not there, is no model file, or is of a newer version.
    """
    with _opened(path) as archive:
        return _card(path, archive)


def load_model(path: Path) -> Model:
    """Read a model file and compare every member with its checksum.

    Raises
    ------
    CheckpointError
        As `read_card`; or a member is missing or changed.
    """
    with _opened(path) as archive:
        card = _card(path, archive)
        tensors: dict[str, Tensor] = {}
        for name, digest in card.members.items():
            try:
                data = archive.read(name)
            except (KeyError, zipfile.BadZipFile, OSError) as error:
                raise CheckpointError(f"{path}: its part {name} cannot be read: {error}") from error
            if hashlib.sha256(data).hexdigest() != digest:
                raise CheckpointError(
                    f"{path}: its part {name} was changed or damaged; copy or make the file again"
                )
            try:
                tensors |= tensors_of(data)
            except SafetensorError as error:
                raise CheckpointError(f"{path}: {name} holds no tensors: {error}") from error
    try:
        run = RunConfig.model_validate(card.run)
        spec = InputSpec(card.modalities, card.channels, run.features.grid, run.data.image_size)
        parts = {name: _with_tensors(part, tensors) for name, part in card.plain.items()}
        detector = make_detector(run.model, spec, len(card.categories))
        detector.load_state_dict(parts["detector"])
        backbone = Backbone(run.features.model_copy(update={"weights": "random"}))
        backbone.load_state_dict(parts["backbone"])
    except (ValidationError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: made by another version of iumad: {reason}") from error
    detector.requires_grad_(False)
    return Model(card, run, detector.eval(), backbone.eval(), parts["held"], parts["memory"])


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such model file") from error
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path}: is no model file of iumad: {error}") from error


def _card(path: Path, archive: zipfile.ZipFile) -> Card:
    try:
        content = json.loads(archive.read(CARD))
        known = content["format"] == "iumad-model"
        newer = known and content["version"] > VERSION
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile, RecursionError) as error:
        raise CheckpointError(f"{path}: is no model file of iumad: it has no {CARD}") from error
    if not known:
        raise CheckpointError(f"{path}: is no model file of iumad")
    if newer:
        raise CheckpointError(
            f"{path}: has version {content['version']}, this iumad reads up to {VERSION}; update iumad"
        )
    try:
        return Card.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {CARD} is damaged: {error.errors()[0]['msg']}") from error


def _without_tensors(content: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The content in JSON types; its tensors are put into `tensors` under the place where they stood."""
    if isinstance(content, Tensor):
        tensors[place] = content.detach().cpu().contiguous()
        return {"tensor": place}
    if isinstance(content, Mapping):
        return {
            "map": [
                [key, _without_tensors(x, f"{place}/{key}", tensors)] for key, x in content.items()
            ]
        }
    if isinstance(content, (list, tuple)):
        parts = [_without_tensors(x, f"{place}/{i}", tensors) for i, x in enumerate(content)]
        return {"list": parts}
    return {"value": content}


def _with_tensors(content: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, inner),) = content.items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "map":
            return {key: _with_tensors(x, tensors) for key, x in inner}
        case "list":
            return [_with_tensors(x, tensors) for x in inner]
        case _:
            return inner
