"""A model as a graph for other programs: ONNX or `torch.export`, compared with the model itself.

The graph begins with the prepared images, [0, 1] being the range of the training images, and ends with the anomaly
map, its score and, where the model tells categories, their log-probabilities. Backbone, weights and banks are
inside. How a file becomes a prepared image is in the JSON file beside it, with categories and thresholds.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.errors import ConfigError
from iumad.features.backbone import one_thread
from iumad.features.cache import Batch
from iumad.inspection.model_file import Model
from iumad.machine import replacing

Format = Literal["onnx", "torch"]
CHECKED = 10  # images on which the graph is compared with the model
OPSET = 20
STEPS = (
    "read the image; depth: z in metres, an unmeasured pixel takes the value of the nearest measured one",
    "resize to image_size, bilinear with antialiasing (as Pillow does)",
    "8 bits: divide by 255; else (value - low) / (high - low) with the limits of `scaling`, not clipped",
    "one channel becomes three equal ones; order: batch, channel, row, column; float32",
)


@dataclass(frozen=True)
class Exported:
    """How an exported graph compares with the model.

    Attributes
    ----------
    images : how many were compared
    difference : largest difference of a pixel of the anomaly maps
    highest : largest value of these maps, to compare the difference with
    milliseconds, reference_milliseconds
        Median of an image with one thread, of the graph and of the model.
    """

    images: int
    difference: float
    highest: float
    milliseconds: float
    reference_milliseconds: float


class Graph(nn.Module):
    """From prepared images of one capture to map, score and category; one that is told is the same for all."""

    def __init__(self, model: Model, category: int | None) -> None:
        super().__init__()
        self.backbone, self.detector, self.category = model.backbone, model.detector, category
        self.modalities, self.evaluation = model.card.modalities, model.run.evaluation

    def forward(self, *images: Float[Tensor, "1 3 size size"]) -> tuple[Tensor, ...]:
        """Map 1 x size x size, score 1, and log-probabilities 1 x categories where there are some."""
        given = dict(zip(self.modalities, images, strict=True))
        features = {name: self.backbone(image) for name, image in given.items()}
        batch = Batch(features, given, torch.zeros(1, dtype=torch.long))
        if self.category is not None:
            token_map = self.detector.token_map_of(batch, self.category)
            anomaly_map, logits = self.detector.enlarge(token_map), None
        else:
            anomaly_map, logits = self.detector.maps_and_logits(batch)
        found = (anomaly_map, self._score(anomaly_map))
        return found if logits is None else (*found, logits.log_softmax(dim=1))

    def _score(self, anomaly_map: Float[Tensor, "1 size size"]) -> Float[Tensor, " 1"]:
        """As `iumad.evaluation.metrics.image_scores`."""
        pixels = anomaly_map.flatten(1)
        match self.evaluation.image_score:
            case "max":
                pooled = functional.avg_pool2d(anomaly_map[:, None], self.evaluation.pool, stride=1)
                return pooled.amax(dim=(1, 2, 3))
            case "mean":
                return pixels.mean(dim=1)
            case "std":
                return pixels.std(dim=1, correction=0)
            case "top":
                return pixels.topk(max(1, pixels.shape[1] // 1000), dim=1).values.mean(dim=1)
            case _:
                assert_never(self.evaluation.image_score)


def export_model(model: Model, out: Path, kind: Format, category: str | None = None) -> Exported:
    """Write the graph and the JSON file beside it, read the graph back and compare it with the model.

    Raises
    ------
    ConfigError
        The method needs to be told the category and none is given, or it has steps that no graph can hold.
    """
    card, needed = model.card, model.detector.needs_category
    if category is not None and category not in card.categories:
        raise ConfigError(
            f"unknown category {category!r}; the model knows: {', '.join(card.categories)}"
        )
    if needed and category is None:
        raise ConfigError(
            f"{card.run['method']} is told the category of an image, so its graph is for one: give --category; "
            f"the model knows: {', '.join(card.categories)}"
        )
    number = card.categories.index(category) if needed and category is not None else None
    graph = Graph(model, number).eval()
    captures = _captures(model)
    with one_thread(), torch.no_grad(), _quiet():
        expected = [graph(*each) for each in captures]
        try:
            run = (_write_onnx if kind == "onnx" else _write_torch)(graph, captures[0], out)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # the exporter raises many kinds
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"{card.run['method']} cannot be exported to {kind}: {type(error).__name__}: {reason}"
            ) from error
        found = [run(*each) for each in captures]
        pairs = list(zip(found, expected, strict=True))
        exported = Exported(
            images=len(captures),
            difference=max(float((a[0] - b[0]).abs().max()) for a, b in pairs),
            highest=max(float(b[0].max()) for _, b in pairs),
            milliseconds=_milliseconds(run, captures),
            reference_milliseconds=_milliseconds(graph, captures),
        )
    names = [card.categories[number]] if number is not None else list(card.categories)
    with replacing(out.with_suffix(".json")) as file:
        text = json.dumps(_description(model, names, exported), indent=1, ensure_ascii=False)
        file.write(text.encode())
    return exported


def _write_onnx(graph: Graph, example: tuple[Tensor, ...], out: Path) -> Callable:
    """Write the file; returns what runs it."""
    import onnxruntime

    outputs = ["anomaly_map", "score", "category"][: len(graph(*example))]
    program = torch.onnx.export(
        graph,
        example,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(graph.modalities),
        output_names=outputs,
        verbose=False,
    )
    assert program is not None  # of the newer exporter there always is one
    with replacing(out) as file:
        file.write(program.model_proto.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(out, options, providers=["CPUExecutionProvider"])

    def run(*images: Tensor) -> list[Tensor]:
        given = {m: x.numpy() for m, x in zip(graph.modalities, images, strict=True)}
        return [torch.from_numpy(x) for x in session.run(None, given)]

    return run


def _write_torch(graph: Graph, example: tuple[Tensor, ...], out: Path) -> Callable:
    program = torch.export.export(graph, example)
    with replacing(out) as file:
        torch.export.save(program, file)
    return torch.export.load(out).module()


def _captures(model: Model) -> list[tuple[Tensor, ...]]:
    """Ten prepared captures: the good images that the file keeps, then the same mirrored."""
    kept = [
        tuple(parts[f"{m}.images"][i : i + 1].float() for m in model.card.modalities)
        for parts in model.held.values()
        for i in range(len(next(iter(parts.values()))))
    ]
    turned = [[tuple(x.flip(axes) for x in each) for each in kept] for axes in (3, 2, (2, 3))]
    return [*kept, *turned[0], *turned[1], *turned[2]][:CHECKED]


def _milliseconds(run: Callable, captures: list[tuple[Tensor, ...]]) -> float:
    taken = []
    for each in captures:
        started = time.perf_counter()
        run(*each)
        taken.append(1000 * (time.perf_counter() - started))
    return median(taken)


def _description(model: Model, names: list[str], exported: Exported) -> dict[str, Any]:
    card, size = model.card, model.run.data.image_size
    return {
        "inputs": {name: [1, 3, size, size] for name in card.modalities},
        "outputs": {
            "anomaly_map": [1, size, size],
            "score": [1],
            "category": "log-probabilities in the order of `thresholds`, where the model tells them",
        },
        "steps": STEPS,
        "preparation": card.preparation.model_dump(mode="json"),
        "thresholds": {name: card.thresholds[name].value for name in names},
        "check": asdict(exported),
        "iumad": card.iumad,
        "torch": torch.__version__,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
