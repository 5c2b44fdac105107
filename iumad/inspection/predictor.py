"""Predictions with a model file: `Predictor.load("model.iumad")(rgb, depth)`.

Inputs are prepared by the code that prepared the training images, with the model's own settings, one image at a
time, so that a prediction does not depend on what is predicted beside it.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from scipy import ndimage
from torch import Tensor

from iumad.data.images import read_header
from iumad.data.prepare import Prepared, prepare_capture
from iumad.errors import ConfigError, DataError
from iumad.evaluation.metrics import image_scores
from iumad.features.backbone import Backbone, one_thread
from iumad.features.cache import Batch
from iumad.inspection.model_file import Model, load_model
from iumad.machine import usable_cores

SURE = 0.5  # probability of a category, or lead of the nearest bank, from which it counts as recognised
EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
Image = np.ndarray | Path | str
Second = Image | Mapping[str, Image] | None


@dataclass(frozen=True)
class Region:
    """The largest anomalous region.

    Attributes
    ----------
    box : left, top, right, bottom in pixels of the given image; the last two are exclusive
    area : share of the image, 0 to 1
    """

    box: tuple[int, int, int, int]
    area: float


@dataclass(frozen=True)
class Prediction:
    """Result for one image.

    Attributes
    ----------
    anomaly_map : float32 array, size x size
        In the model's unit, comparable between images of a category.
    score : float
        Image score, in the unit of the map; higher is more anomalous.
    normalised : float
        The same as a number in (0, 1): 0.5 at the threshold.
    is_anomalous : bool
        Whether the score is above the threshold.
    threshold : float
    category : str
    recognised : bool
        Whether the model told the category itself.
    confidence : float
        1 for a category that was given; else how sure the model is, 0 to 1. Below 0.5, do not trust it.
    region : Region or None
        None for a good image.
    image : uint8 array, size x size x 3
        The first modality as the model saw it.
    seconds : float
        Time that preparing and scoring took.
    """

    anomaly_map: Float32[np.ndarray, "size size"]
    score: float
    normalised: float
    is_anomalous: bool
    threshold: float
    category: str
    recognised: bool
    confidence: float
    region: Region | None
    image: UInt8[np.ndarray, "size size 3"]
    seconds: float


class Predictor:
    """A loaded model; safe to call from several threads.

    Parameters
    ----------
    model : Model
    thresholds : mapping, optional
        Category -> score that takes the place of the stored threshold.
    """

    def __init__(self, model: Model, thresholds: dict[str, float] | None = None) -> None:
        self.model, self.categories = model, model.card.categories
        self.modalities = model.card.modalities
        self._thresholds = dict(model.card.thresholds)
        for category, value in (thresholds or {}).items():
            self._number(category)
            known = self._thresholds[category]
            self._thresholds[category] = known.model_copy(
                update={"value": float(value), "source": "given"}
            )
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str | Path, thresholds: dict[str, float] | None = None) -> "Predictor":
        """Read a model file; needs neither data nor params nor results.

        Raises
        ------
        CheckpointError
            The file is missing, damaged or no model file.
        """
        return cls(load_model(Path(path)), thresholds)

    def __call__(
        self, rgb: Image, second: Second = None, category: str | None = None
    ) -> Prediction:
        """Score one image.

        Parameters
        ----------
        rgb : uint8 array h x w x 3, or the path of an image
        second : the registered second image; for depth: float32 point cloud h x w x 3 in metres, a depth map h x w
            in the unit of the training files, or the path of either. A model of several takes them by name.
        category : str, optional
            None: the model recognises it.

        Raises
        ------
        DataError
            A file cannot be used, a modality is missing, or sizes differ.
        ConfigError
            The category is unknown.
        """
        return self.batch([(rgb, second)], category)[0]

    def batch(
        self,
        images: Sequence[tuple[Image, Second]],
        category: str | Sequence[str | None] | None = None,
    ) -> list[Prediction]:
        """Score several images, each pair as for a single call; `category` is one for all or one for each."""
        told = [category] * len(images) if isinstance(category, str | None) else list(category)
        if len(told) != len(images):
            raise ConfigError(f"needs a category for each of {len(images)} images, got {len(told)}")
        numbers = [None if name is None else self._number(name) for name in told]
        with self._lock, one_thread(), ThreadPoolExecutor(usable_cores()) as pool:
            started = time.perf_counter()
            inputs = list(pool.map(lambda pair: self._inputs(*pair), images))
            batch = encode(
                [prepared for prepared, _ in inputs], self.modalities, self.model.backbone, pool
            )
            chosen, confidence = self._categories(batch, numbers)
            with torch.no_grad():
                maps = self._maps(batch, chosen)
            seconds = (time.perf_counter() - started) / max(len(images), 1)
        evaluation = self.model.run.evaluation
        if not images:
            return []
        scores = image_scores(maps, evaluation.image_score, evaluation.pool)
        return [
            self._prediction(
                prepared, size, anomaly_map, float(score), number, known is None, sure, seconds
            )
            for (prepared, size), anomaly_map, score, number, known, sure in zip(
                inputs, maps, scores, chosen, numbers, confidence, strict=True
            )
        ]

    def _inputs(self, rgb: Image, second: Second) -> tuple[Prepared, tuple[int, int]]:
        """What the model sees of a capture, and its height and width as given."""
        further = [name for name in self.modalities if name != "rgb"]
        if second is not None and not isinstance(second, Mapping):
            if len(further) > 1:
                raise DataError(
                    f"the model needs {', '.join(further)} beside rgb; give them by name"
                )
            second = dict.fromkeys(further, second)
        given = {"rgb": rgb} | {
            name: (second or {})[name] for name in further if name in (second or {})
        }
        capture = {
            name: Path(image) if isinstance(image, str) else image for name, image in given.items()
        }
        prepared = prepare_capture(capture, self.model.card.preparation, ("rgb", *further))
        first = capture["rgb"]
        if isinstance(first, Path):
            header = read_header(first)
            return prepared, (header.height, header.width)
        return prepared, (first.shape[0], first.shape[1])

    def _number(self, category: str) -> int:
        if category not in self.categories:
            raise ConfigError(
                f"unknown category {category!r}; the model knows: {', '.join(self.categories)}"
            )
        return self.categories.index(category)

    @torch.no_grad()
    def _categories(
        self, batch: Batch, told: Sequence[int | None]
    ) -> tuple[list[int], list[float]]:
        """The category of each image and how sure it is: as told, from the classifier, or the nearest bank."""
        if None not in told:
            return [number for number in told if number is not None], [1.0] * len(told)
        logits = self.model.detector.category_logits(batch)
        if logits is None:
            distances = self._distances(batch)
            order = distances.sort(dim=1)
            best = order.indices[:, 0].tolist()
            second = order.values[:, min(1, distances.shape[1] - 1)]
            lead = 1 - order.values[:, 0] / second.clamp_min(1e-12)
            sure = [1.0] * len(best) if distances.shape[1] == 1 else (2 * lead).clamp(0, 1).tolist()
        else:
            likely = logits.softmax(dim=1).max(dim=1)
            best, sure = likely.indices.tolist(), likely.values.tolist()
        numbers = [
            guess if number is None else number for guess, number in zip(best, told, strict=True)
        ]
        return numbers, [
            given if number is None else 1.0 for given, number in zip(sure, told, strict=True)
        ]

    def _distances(self, batch: Batch) -> Float32[Tensor, "b y"]:
        """Median of every image's token map under every category; defects are small, so it tells the product."""
        medians = []
        for number in range(len(self.categories)):
            as_category = Batch(batch.features, batch.images, torch.full((len(batch),), number))
            medians.append(
                self.model.detector.token_map(as_category).flatten(1).median(dim=1).values
            )
        return torch.stack(medians, dim=1)

    def _maps(self, batch: Batch, numbers: Sequence[int]) -> Float32[np.ndarray, "b size size"]:
        told = Batch(batch.features, batch.images, torch.tensor(numbers, dtype=torch.long))
        maps = [
            self.model.detector.anomaly_maps(_one(told, i)).numpy() for i in range(len(numbers))
        ]
        return np.concatenate(maps) if maps else np.zeros((0, 1, 1), dtype=np.float32)

    def _prediction(
        self,
        prepared: Prepared,
        size: tuple[int, int],
        anomaly_map: Float32[np.ndarray, "size size"],
        score: float,
        number: int,
        recognised: bool,
        confidence: float,
        seconds: float,
    ) -> Prediction:
        category = self.categories[number]
        threshold = self._thresholds[category]
        pooled = ndimage.uniform_filter(anomaly_map, self.model.run.evaluation.pool, mode="nearest")
        image, anomalous = prepared.rgb, score > threshold.value
        if image is None:
            raise DataError("a prediction needs the colour image")
        return Prediction(
            anomaly_map=anomaly_map,
            score=score,
            normalised=threshold.normalised(score),
            is_anomalous=anomalous,
            threshold=threshold.value,
            category=category,
            recognised=recognised,
            confidence=float(confidence),
            region=_largest_region(pooled > threshold.value, size) if anomalous else None,
            image=image,
            seconds=seconds,
        )


def encode(
    prepared: Sequence[Prepared],
    modalities: Sequence[str],
    backbone: Backbone,
    pool: ThreadPoolExecutor,
) -> Batch:
    """A batch of prepared samples; features are extracted one image at a time, so that bits depend on it alone."""
    images = {m: [_image_tensor(each.images[m]) for each in prepared] for m in modalities}
    features = {
        m: list(pool.map(lambda image: backbone(image[None])[0], many))
        for m, many in images.items()
    }
    stacked: dict[str, Any] = {m: torch.stack(many) for m, many in features.items() if many}
    return Batch(
        stacked,
        {m: torch.stack(many) for m, many in images.items() if many},
        torch.zeros(len(prepared), dtype=torch.long),
    )


def _image_tensor(image: np.ndarray) -> Float32[Tensor, "3 h w"]:
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.contiguous()


def _one(batch: Batch, i: int) -> Batch:
    part = slice(i, i + 1)
    return Batch(
        {m: x[part] for m, x in batch.features.items()},
        {m: x[part] for m, x in batch.images.items()},
        batch.category[part],
    )


def _largest_region(above: np.ndarray, size: tuple[int, int]) -> Region | None:
    """The largest 8-connected part of a mask, in pixels of an image of the given height and width."""
    labels, count = ndimage.label(above, structure=EIGHT_CONNECTED)
    if not count:
        return None
    areas = np.bincount(labels.ravel())[1:]
    rows, columns = ndimage.find_objects(labels)[int(areas.argmax())]
    down, across = size[0] / above.shape[0], size[1] / above.shape[1]
    box = (
        round(columns.start * across),
        round(rows.start * down),
        round(columns.stop * across),
        round(rows.stop * down),
    )
    return Region(box, float(areas.max() / above.size))
