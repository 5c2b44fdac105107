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

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from scipy import ndimage
from torch import Tensor

from iumad.data.images import read_header
from iumad.data.prepare import Prepared, prepare_capture
from iumad.errors import ConfigError, DataError
from iumad.evaluation.metrics import EIGHT_CONNECTED, image_scores
from iumad.features.backbone import Backbone, one_thread
from iumad.features.cache import Batch, as_tensor
from iumad.inspection.model_file import Model, load_model
from iumad.machine import usable_cores

SURE = 0.5  # below it the runner-up is nearly as likely: within a quarter
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
        Whether the model recognised the category itself.
    confidence : float
        1 for a category that was given; else how sure the model is, 0 to 1. Below 0.5, do not trust it.
    region : Region or None
        None for a good image.
    modalities : tuple of str
        What it was judged by.
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
    modalities: tuple[str, ...]
    image: UInt8[np.ndarray, "size size 3"]
    seconds: float

    @property
    def unsure(self) -> bool:
        """Whether the category that the model recognised is not to be trusted."""
        return self.confidence < SURE


@dataclass(frozen=True)
class _Look:
    """What the model says of one image: index of its category, how sure that is, and the map."""

    prepared: Prepared
    size: tuple[int, int]  # height and width as given
    anomaly_map: Float32[np.ndarray, "size size"]
    number: int
    sure: float


class Predictor:
    """A loaded model; safe to call from several threads.

    Parameters
    ----------
    model : Model
    thresholds : mapping, optional
        Category -> score that takes the place of the stored threshold of images that have all modalities.
    allow_missing : bool
        Judge a capture that lacks the second modality by the first alone, with the threshold for that.

    Raises
    ------
    ConfigError
        A category is unknown, or the method needs all modalities.
    """

    def __init__(
        self, model: Model, thresholds: dict[str, float] | None = None, allow_missing: bool = False
    ) -> None:
        if allow_missing and not model.card.alone:
            raise ConfigError(
                f"a model of {model.card.run['method']} for {' + '.join(model.card.modalities)} cannot judge "
                "images that lack one of them; banks of several modalities can"
            )
        self.allow_missing = allow_missing
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
    def load(
        cls,
        path: str | Path,
        thresholds: dict[str, float] | None = None,
        allow_missing: bool = False,
    ) -> "Predictor":
        """Read a model file; needs neither data nor params nor results. The other parameters are the class's.

        Raises
        ------
        CheckpointError
            The file is missing, damaged or no model file.
        """
        return cls(load_model(Path(path)), thresholds, allow_missing)

    def __call__(
        self, rgb: Image, second: Second = None, category: str | None = None
    ) -> Prediction:
        """Score one image.

        Parameters
        ----------
        rgb : uint8 array h x w x 3, or the path of an image
        second : the registered second image; for depth: float32 point cloud h x w x 3 in metres, a depth map h x w
            in the unit of the training files, or the path of either. A model of several takes them by name. None
            where there is none.
        category : str, optional
            None: the model recognises it, where its method can.

        Raises
        ------
        DataError
            A file cannot be used, sizes differ, or a modality is missing and may not.
        ConfigError
            The category is unknown, or was not given to a model of several that recognises none.
        """
        return self.batch([(rgb, second)], category)[0]

    def batch(
        self,
        images: Sequence[tuple[Image, Second]],
        category: str | Sequence[str | None] | None = None,
    ) -> list[Prediction]:
        """Score several images, each pair as for a single call; `category` is one for all or one for each."""
        names = [category] * len(images) if isinstance(category, str | None) else list(category)
        if len(names) != len(images):
            raise ConfigError(
                f"needs a category for each of {len(images)} images, got {len(names)}"
            )
        numbers = [None if name is None else self._number(name) for name in names]
        with self._lock, one_thread(), ThreadPoolExecutor(usable_cores()) as pool:
            started = time.perf_counter()
            looks = list(pool.map(self._look, images, numbers))
            seconds = (time.perf_counter() - started) / max(len(images), 1)
        return [
            self._prediction(look, known is None, seconds)
            for look, known in zip(looks, numbers, strict=True)
        ]

    def _look(self, pair: tuple[Image, Second], given: int | None) -> _Look:
        """Prepare one image and pass it through the model, apart from all others."""
        prepared, size = self._inputs(*pair)
        with torch.inference_mode():
            batch = encode(prepared, self._given(prepared), self.model.backbone, given or 0)
            number, sure, anomaly_map = self._map(batch, given)
        return _Look(prepared, size, anomaly_map.numpy()[0], number, sure)

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
        if self.allow_missing and len(given) <= len(further):
            further, given = [], {"rgb": rgb}
        capture = {
            name: Path(image) if isinstance(image, str) else image for name, image in given.items()
        }
        prepared = prepare_capture(capture, self.model.card.preparation, ("rgb", *further))
        first = capture["rgb"]
        if isinstance(first, Path):
            header = read_header(first)
            return prepared, (header.height, header.width)
        return prepared, (first.shape[0], first.shape[1])

    def _given(self, prepared: Prepared) -> tuple[str, ...]:
        return tuple(name for name in self.modalities if name in prepared.images)

    def _number(self, category: str) -> int:
        if category not in self.categories:
            raise ConfigError(
                f"unknown category {category!r}; the model knows: {', '.join(self.categories)}"
            )
        return self.categories.index(category)

    def _map(
        self, batch: Batch, given: int | None
    ) -> tuple[int, float, Float32[Tensor, "1 size size"]]:
        """The category of an image, how sure that is, and its map.

        The category is as given, or what the classifier says, or, for a method whose maps depend on it, that under
        which the median of the token map is lowest: defects are small, so it tells the product.
        """
        detector = self.model.detector
        if given is not None:
            return given, 1.0, detector.anomaly_maps(batch)
        if detector.needs_category:
            maps = [detector.token_map_of(batch, number) for number in range(len(self.categories))]
            medians = torch.stack([x.median() for x in maps]).sort()
            best, sure = int(medians.indices[0]), _lead(*medians.values[:2].tolist())
            return best, sure, detector.enlarge(maps[best])
        anomaly_map, logits = detector.maps_and_logits(batch)
        if logits is not None:
            likely = logits[0].softmax(dim=0).sort(descending=True)
            sure = _lead(*reversed(likely.values[:2].tolist()))
            return int(likely.indices[0]), sure, anomaly_map
        if len(self.categories) > 1:
            raise ConfigError(
                f"a model of {self.model.card.run['method']} does not say which product an image shows; name it "
                "with --category NAME or --category folder. Banks, iuf and the ib-iumad family recognise it"
            )
        return 0, 1.0, anomaly_map

    def _prediction(self, look: _Look, recognised: bool, seconds: float) -> Prediction:
        evaluation, category = self.model.run.evaluation, self.categories[look.number]
        maps = look.anomaly_map[None]
        score = float(image_scores(maps, evaluation.image_score, evaluation.pool)[0])
        modalities, image = self._given(look.prepared), look.prepared.rgb
        whole = modalities == self.modalities
        threshold = self._thresholds[category] if whole else self.model.card.alone[category]
        anomalous = score > threshold.value
        if image is None:
            raise DataError("a prediction needs the colour image")
        pooled = ndimage.uniform_filter(look.anomaly_map, evaluation.pool, mode="nearest")
        return Prediction(
            anomaly_map=look.anomaly_map,
            score=score,
            normalised=threshold.normalised(score),
            is_anomalous=anomalous,
            threshold=threshold.value,
            category=category,
            recognised=recognised,
            confidence=look.sure,
            region=_largest_region(pooled > threshold.value, look.size) if anomalous else None,
            modalities=modalities,
            image=image,
            seconds=seconds,
        )


def encode(
    prepared: Prepared, modalities: Sequence[str], backbone: Backbone, category: int
) -> Batch:
    """A batch of one prepared sample."""
    images = {name: as_tensor([prepared.images[name]]) for name in modalities}
    features = {name: backbone(image) for name, image in images.items()}
    return Batch(features, images, torch.tensor([category]))


def _lead(smaller: float, larger: float | None = None) -> float:
    """How sure the better of two is: twice its relative lead, at most 1; without another one it is sure."""
    return 1.0 if larger is None else min(1.0, 2 * (1 - smaller / max(larger, 1e-12)))


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
