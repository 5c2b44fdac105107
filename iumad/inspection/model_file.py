"""The model file: everything that a prediction needs in one file that runs no code when it is read.

A zip archive (stored, not compressed): `card.json` says what is in it, the other members are safetensors:

    card.json              version, configuration, categories, thresholds, provenance, SHA-256 of the other members
    detector.safetensors   weights or banks
    backbone.safetensors   the frozen backbone, so that no download is needed
    held.safetensors       features and images of a few held-out good images a category, for `iumad learn`
    memory.safetensors     what protects the categories learnt so far; absent where nothing does

Thresholds come from a few good images, or from examples of defects. A score is compared on a logarithmic scale, on
which scores of good images are nearly normal: distances are positive and their spread grows with their size.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from iumad.config.schema import RunConfig
from iumad.data.prepare import Preparation
from iumad.errors import CheckpointError, ConfigError
from iumad.features.backbone import Backbone
from iumad.machine import replacing
from iumad.models.base import Detector, InputSpec
from iumad.models.build import make_detector

MIN_SCORE = 1e-12  # scores are distances; zero has no logarithm
CONFIDENCE = 0.9  # of the interval of the false alarm rate


class Threshold(BaseModel):
    """Where good ends for one category, and how sure that is.

    Attributes
    ----------
    value : float
        Scores above it are anomalous.
    good_scores : tuple of float
        Scores of good images that the model was not fitted on, rising.
    false_alarm_rate : float
        Of good images, the share that was asked for; for `defects`, that of the held-out ones.
    source : "good", "defects" or "given"
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    good_scores: tuple[float, ...] = Field(min_length=1)
    false_alarm_rate: float = Field(ge=0, lt=1)
    source: Literal["good", "defects", "given"] = "good"

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson interval (90 %) of the false alarm rate, from the held-out good images alone."""
        from scipy import stats  # here and below: slow to import, and predicting needs none

        n = len(self.good_scores)
        above = sum(score > self.value for score in self.good_scores)
        tail = (1 - CONFIDENCE) / 2
        low = stats.beta.ppf(tail, above, n - above + 1) if above else 0.0
        high = stats.beta.ppf(1 - tail, above + 1, n - above) if above < n else 1.0
        return float(low), float(high)

    def normalised(self, score: float) -> float:
        """A score as a number in (0, 1): 0.5 at the threshold, 0.05 where good images lie on average, or below.

        A logistic curve of the logarithm of the score.
        """
        typical = float(np.mean(_logs(self.good_scores)))
        distance = max(math.log(max(self.value, MIN_SCORE)) - typical, 1e-3)
        steepness = math.log(19) / distance  # 19 to 1 at the typical good score
        x = steepness * (math.log(max(score, MIN_SCORE)) - math.log(max(self.value, MIN_SCORE)))
        return float(1 / (1 + math.exp(-min(max(x, -30.0), 30.0))))

    def moved(self, before: Sequence[float], after: Sequence[float]) -> "Threshold":
        """The same where good images score otherwise than before: all moves by the mean of their logarithms."""
        factor = math.exp(float(np.mean(_logs(after) - _logs(before))))
        good_scores = tuple(score * factor for score in self.good_scores)
        return self.model_copy(update={"value": self.value * factor, "good_scores": good_scores})


def require_rate(rate: float) -> None:
    """Refuse a false alarm rate that no threshold can have.

    Raises
    ------
    ConfigError
        It is outside (0, 0.5].
    """
    if not 0 < rate <= 0.5:
        raise ConfigError(f"false alarm rate: needs a number in (0, 0.5], got {rate}")


def threshold_from_good(scores: Sequence[float], false_alarm_rate: float) -> Threshold:
    """The score that a new good image exceeds with the given probability.

    With n scores no order statistic can promise less than 1 / (n + 1). So the threshold is the upper prediction
    limit of a normal distribution fitted to their logarithms (Student's t with n - 1 degrees of freedom), and
    never below what the order of the scores says where n is large enough to say it.

    Parameters
    ----------
    scores : sequence of float
        Of good images that the model was not fitted on; at least two.
    false_alarm_rate : float
        In (0, 0.5].

    Raises
    ------
    ConfigError
        Fewer than two scores, or a rate outside (0, 0.5].
    """
    require_rate(false_alarm_rate)
    if len(scores) < 2:
        raise ConfigError(
            f"a threshold needs at least 2 held-out good images of a category, got {len(scores)}"
        )
    from scipy import stats

    logs, n = np.sort(_logs(scores)), len(scores)
    spread = max(float(logs.std(ddof=1)), 1e-6)
    limit = stats.t.ppf(1 - false_alarm_rate, n - 1) * spread * math.sqrt(1 + 1 / n)
    value = float(logs.mean() + limit)
    rank = math.ceil((n + 1) * (1 - false_alarm_rate))
    if rank <= n:
        value = max(value, float(logs[rank - 1]))
    return Threshold(
        value=math.exp(
            min(value, 300.0)
        ),  # two scores and a small rate ask for more than floats hold
        good_scores=tuple(sorted(float(score) for score in scores)),
        false_alarm_rate=false_alarm_rate,
    )


def threshold_from_defects(
    good: Sequence[float], defects: Sequence[float], miss_cost: float | None = None
) -> Threshold:
    """The threshold with the lowest cost on examples: one for a false alarm, `miss_cost` for a miss.

    Without a cost it is the one with the highest F1, 2 TP / (2 TP + FP + FN) with defects as positives. It lies in
    the middle between two neighbouring scores; of equally good places the highest is taken, which has the fewest
    false alarms.

    Raises
    ------
    ConfigError
        There are no good or no defective examples, or the cost is not positive.
    """
    if not good or not defects:
        raise ConfigError(
            f"needs good and defective examples, got {len(good)} good and {len(defects)} defective"
        )
    if miss_cost is not None and not miss_cost > 0:
        raise ConfigError(f"the cost of a miss must be positive, got {miss_cost}")
    places = np.unique(np.concatenate([good, defects]))
    middles = np.sqrt(np.maximum(places[:-1], MIN_SCORE) * np.maximum(places[1:], MIN_SCORE))
    candidates = np.concatenate([[places[0] * (1 - 1e-9)], middles, [places[-1]]])
    false_alarms = (np.asarray(good)[None] > candidates[:, None]).sum(axis=1)
    misses = (np.asarray(defects)[None] <= candidates[:, None]).sum(axis=1)
    if miss_cost is None:
        caught = 2 * (len(defects) - misses)
        cost = -caught / np.maximum(caught + false_alarms + misses, 1)
    else:
        cost = false_alarms + miss_cost * misses
    best = len(cost) - 1 - int(np.argmin(cost[::-1]))
    return Threshold(
        value=max(float(candidates[best]), MIN_SCORE),
        good_scores=tuple(sorted(float(score) for score in good)),
        false_alarm_rate=min(float(false_alarms[best] / len(good)), 1 - 1e-9),
        source="defects",
    )


def promise(threshold: Threshold) -> str:
    """What the number of held-out good images allows to say, in one sentence."""
    n, (low, high) = len(threshold.good_scores), threshold.interval
    above = sum(score > threshold.value for score in threshold.good_scores)
    said = f"{above} of {n} held-out good images lie above it: {100 * low:.0f} to {100 * high:.0f} % false alarms"
    if threshold.source == "good" and n + 1 < 1 / threshold.false_alarm_rate:
        said += f"; {100 * threshold.false_alarm_rate:g} % rests on the shape of their distribution"
    return said


def _logs(scores: Sequence[float]) -> np.ndarray:
    return np.log(np.maximum(np.asarray(scores, dtype=np.float64), MIN_SCORE))


# 2: how inputs are prepared is in the file; 3: thresholds for the first modality alone; 4: `held_out`
VERSION = 4
CARD = "card.json"
EPOCH = (1980, 1, 1, 0, 0, 0)  # of all members, so that equal models are equal files


class Card(BaseModel):
    """What a model file says of itself.

    `alone` has the thresholds for images without a second modality. `held_out` names the categories whose kept
    images were not learnt; files of earlier versions do not say it.
    """

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
    alone: dict[str, Threshold] = {}
    held_out: tuple[str, ...] | None = None
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
    if not path.is_file():  # a device such as /dev/full would be read for ever
        raise CheckpointError(f"{path}: there is no such model file")
    try:
        return zipfile.ZipFile(path)
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
