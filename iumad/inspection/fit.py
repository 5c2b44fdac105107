"""From a folder of one's own images to a model, and a new product learnt on top of it.

Good images that the model was not fitted on give the threshold: those of `validation` where a category has some,
else a part of `train` that is held out (methods that are trained) or every image in turn (methods that are fitted
in closed form, which cost seconds).
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from iumad.config.files import build_study, merged, read_params
from iumad.config.schema import RunConfig
from iumad.data import open_dataset
from iumad.data.check import detect_layout, open_folder
from iumad.data.prepare import Preparation
from iumad.data.sample import Dataset
from iumad.errors import CheckpointError, ConfigError, DataError
from iumad.evaluation.metrics import image_auroc, image_scores, or_missing
from iumad.features.cache import Batch, FeatureStore
from iumad.inspection.model_file import (
    Card,
    Model,
    Threshold,
    require_rate,
    threshold_from_good,
)
from iumad.models.base import Detector, InputSpec
from iumad.models.build import make_detector, method_class
from iumad.study.runner import RunWork, ShowBar, load_detector, remembered_after
from iumad.study.steps import read_provenance, run_name, steps_of
from iumad.training.checkpoint import load_grown
from iumad.training.increments import remember
from iumad.training.loop import StepPlan, Watch, fit_step

METHOD = "bank-unified"  # the page "Your own images" has what it was compared with
FOLDS = 5  # of cross-fitting
ENOUGH = 20  # validation images of a category, beside which its training images are not scored too
HELD_OUT = 0.2  # share of the training images that a trained method keeps for the threshold
KEPT = 4  # held-out good images of a category that stay in the model file, for `learn`
SMALL = 200  # shorter side of the images in pixels from which 224 pixels are used instead of 128


@dataclass(frozen=True)
class Fitted:
    """A model and what is known of it.

    Attributes
    ----------
    model : Model
    table : DataFrame
        A row a category: images, threshold, its false alarms on held-out images, and, where there are test images
        of both kinds, AUROC, false alarms and misses.
    """

    model: Model
    table: pd.DataFrame


def own_run(
    root: Path, method: str = METHOD, params: Path | None = None, assignments: Sequence[str] = ()
) -> RunConfig:
    """The configuration of a model for a folder: sizes from the images, all modalities, all categories at once.

    Parameters
    ----------
    root : folder of the data set, in any known layout
    method : name of a method
    params : params file on top of the defaults; its data section and grid do not count
    assignments : see `iumad.config.files.load_params`; they win
    """
    dataset = open_folder(root)
    shorter = int(dataset.index[["height", "width"]].to_numpy().min())
    size = 128 if shorter < SMALL else 224
    data: dict[str, Any] = {"name": detect_layout(root), "root": str(root), "image_size": size}
    content: dict[str, Any] = {
        "data": data,
        "features": {"grid": 16},
        "model": {"dim": 128, "heads": 4},
        "training": {"epochs": _epochs(len(dataset.ids("train"))), "batch_size": 16, "lr": 3.0e-3},
        "increment": {"epochs": 60, "lr": 1.0e-3},
        "evaluation": {"pool": max(1, round(size * 16 / 224))},
    }
    if params is not None:
        own = {k: v for k, v in read_params(params).items() if k not in ("data", "vary")}
        content = merged(content, own)
    content |= {
        "profile": "own",
        "data": data,
        "methods": {method: (content.get("methods") or {}).get(method, {})},
        "modalities": ["+".join(dataset.modalities)],
        "settings": ["1-1"],  # of this is `increment`
        "seeds": [0],
    }
    where = str(params or root)
    chosen = getattr(build_study(content, where, assignments).data, "categories", None)
    at_once = f"{len(chosen or dataset.categories)}-0"
    return build_study(content | {"settings": [at_once, "1-1"]}, where, assignments).runs()[0]


def _require_thresholds(run: RunConfig, false_alarm_rate: float) -> None:
    """Refuse what would be refused after hours: a rate that no threshold has, scores that are not positive."""
    require_rate(false_alarm_rate)
    if method_class(run.model).signed:
        raise ConfigError(
            f"method {run.method!r}: its scores may be negative, and thresholds are made from their logarithms; "
            "take another method"
        )


def fit_folder(
    root: Path,
    run: RunConfig,
    false_alarm_rate: float,
    progress: ShowBar,
    cache: Path | None = None,
) -> Fitted:
    """Fit a model on the good training images of a folder, and its thresholds.

    Raises
    ------
    DataError
        The folder cannot be used, or a category has too few good images for a threshold.
    """
    _require_thresholds(run, false_alarm_rate)
    started, clock = datetime.now(UTC), time.monotonic()
    dataset = open_dataset(run.data.model_copy(update={"root": root}))
    store = _store(dataset, run, progress, cache)
    detector = _new_detector(run, store, len(dataset.categories))
    categories = dataset.categories
    learnt, held = _split(dataset, categories, detector.trained)
    _fit_step(detector, store, learnt, run, 0, {}, progress)
    thresholds, alone = _thresholds(detector, store, run, held, false_alarm_rate, progress, None)
    memory = _remember(detector, store, learnt, run, {})
    seconds = time.monotonic() - clock
    created = started.isoformat(timespec="seconds")
    card = _card(run, store, held, thresholds, created, seconds, alone)
    model = Model(card, run, detector.eval(), store.backbone, _kept(store, held), memory)
    return Fitted(model, _table(model, store, dataset, categories))


def pack_run(run: RunConfig, results: Path, false_alarm_rate: float) -> Fitted:
    """The model of a finished run of a study as a model file would hold it.

    Thresholds come from the validation images; methods that are fitted in closed form never saw them either.

    Raises
    ------
    CheckpointError
        The run is not trained.
    ConfigError
        A category has fewer than two validation images.
    """
    _require_thresholds(run, false_alarm_rate)
    work = RunWork(run, "cpu")
    step = steps_of(run, results, work.dataset)[-1]
    if not step.checkpoint.exists():
        raise CheckpointError(f"{results}: {run_name(run)} is not trained; use `iumad run` first")
    detector, store, categories = load_detector(work, step), work.store, step.seen
    held = {name: work.dataset.ids("validation", [name]) for name in categories}
    store.fill([i for ids in held.values() for i in ids])
    thresholds = {
        name: _threshold(
            name, _scores(detector, store, run, held[name], run.modalities), false_alarm_rate
        )
        for name in categories
    }
    provenance = read_provenance(step.provenance)
    card = _card(run, store, held, thresholds, provenance.started, provenance.duration_s)
    memory = remembered_after(work, step) if detector.trained and _protects(run) else {}
    model = Model(card, run, detector.eval(), store.backbone, _kept(store, held), memory)
    return Fitted(model, _table(model, store, work.dataset, categories))


def learn_folder(
    model: Model, root: Path, false_alarm_rate: float, progress: ShowBar, cache: Path | None = None
) -> tuple[Fitted, pd.DataFrame]:
    """Add the categories of a folder to a model that never heard of them, from their good images only.

    Returns
    -------
    Fitted
        The new model; its table has the new categories.
    DataFrame
        A row an earlier category: mean score of its kept good images before and after, its threshold, which moves
        with them if they were held out, and how many of them lie above it.

    Raises
    ------
    ConfigError, DataError
        A category is known already, or its images are not of the model's kind.
    """
    _require_thresholds(model.run, false_alarm_rate)
    started, clock = datetime.now(UTC), time.monotonic()
    run, dataset = _new_categories(model, root)
    categories = (*model.card.categories, *dataset.categories)
    counted = copy.copy(dataset)
    counted.categories = categories  # the new ones are counted after those that the model knows
    store = _store(counted, run, progress, cache, model.card.preparation)
    detector = _new_detector(run, store, len(categories))
    load_grown(detector, model.detector.state_dict())
    learnt, held = _split(dataset, dataset.categories, detector.trained)
    views = [model.card.modalities, *([model.card.modalities[:1]] if model.card.alone else [])]
    before = [_kept_scores(model.detector, model, view) for view in views]
    _fit_step(detector, store, learnt, run, 1, model.memory, progress)
    after = [_kept_scores(detector, model, view) for view in views]
    stored = (model.card.thresholds, model.card.alone)
    full, *fewer = (_moved(model, *each) for each in zip(stored, before, after, strict=False))
    thresholds, alone = _thresholds(
        detector, store, run, held, false_alarm_rate, progress, model.detector
    )
    memory = _remember(detector, store, learnt, run, model.memory)
    n_train = {name: len(dataset.ids("train", [name])) for name in dataset.categories}
    card = model.card.model_copy(
        update={
            "created": started.isoformat(timespec="seconds"),
            "categories": categories,
            "n_train": model.card.n_train | n_train,
            "thresholds": full | thresholds,
            "alone": (fewer[0] if fewer else {}) | alone,
            "held_out": tuple(
                name
                for name in categories
                if (held[name] if name in held else _kept_were_held_out(model, name))
            ),
            "seconds": round(time.monotonic() - clock, 1),
        }
    )
    kept = model.held | _kept(store, held)
    grown = Model(card, model.run, detector.eval(), model.backbone, kept, memory)
    table = _table(grown, store, dataset, dataset.categories)
    return Fitted(grown, table), _lost(model, full, before[0], after[0])


def _new_categories(model: Model, root: Path) -> tuple[RunConfig, Dataset]:
    """The model's configuration for a folder, and the folder; refused if the model could not learn it."""
    layout = {"root": root, "name": detect_layout(root), "categories": None}
    run = model.run.model_copy(update={"data": model.run.data.model_copy(update=layout)})
    dataset = open_dataset(run.data)
    again = [name for name in dataset.categories if name in model.card.categories]
    if again:
        raise ConfigError(f"{root}: the model knows {', '.join(again)} already; rename the folder")
    absent = [name for name in model.card.modalities if name not in dataset.modalities]
    if absent:
        raise DataError(
            f"{root}: the model needs {', '.join(absent)}, which these images do not have"
        )
    reader = model.card.preparation.reader
    if "depth" in model.card.modalities and dataset.reader != reader:
        raise DataError(
            f"{root}: its depth is read in another way than that of the model's images "
            f"({dataset.reader}, not {reader}), so one model cannot serve both"
        )
    return run, dataset


def _card(
    run: RunConfig,
    store: FeatureStore,
    held: dict[str, list[str]],
    thresholds: dict[str, Threshold],
    created: str,
    seconds: float,
    alone: dict[str, Threshold] | None = None,
) -> Card:
    """What a new model file says of itself."""
    return Card(
        iumad=version("iumad"),
        created=created,
        run=_without_root(run),
        categories=tuple(held),
        channels=store.backbone.channels,
        modalities=run.modalities,
        preparation=store.preparation(),
        n_train={name: len(store.dataset.ids("train", [name])) for name in held},
        thresholds=thresholds,
        alone=alone or {},
        held_out=tuple(name for name, ids in held.items() if ids),
        seconds=round(seconds, 1),
        torch=torch.__version__,
    )


def _epochs(images: int) -> int:
    """Enough for about 7,200 image-steps, the budget of `params/mini.yaml`, between 10 and 400."""
    return int(np.clip(7_200 // max(images, 1), 10, 400))


def _store(
    dataset: Dataset,
    run: RunConfig,
    progress: ShowBar,
    cache: Path | None,
    preparation: Preparation | None = None,
) -> FeatureStore:
    store = FeatureStore(dataset, run, cache, preparation=preparation)
    ids = dataset.index["sample_id"].tolist()
    with progress("features", len(ids)) as advance:
        store.fill(ids, advance)
    return store


def _new_detector(run: RunConfig, store: FeatureStore, n_categories: int) -> Detector:
    torch.manual_seed(run.seed)
    return make_detector(run.model, InputSpec.of(run, store.backbone.channels), n_categories)


def _split(
    dataset: Dataset, categories: Sequence[str], trained: bool
) -> tuple[list[str], dict[str, list[str]]]:
    """Samples to learn from, and held-out good ones of each category (none: cross-fitting)."""
    learnt: list[str] = []
    held: dict[str, list[str]] = {}
    for name in categories:
        train = dataset.ids("train", [name])
        held[name] = dataset.ids("validation", [name])
        if len(train) + len(held[name]) < 4:
            raise DataError(
                f"{name}: needs at least 4 good images in train and validation, has "
                f"{len(train) + len(held[name])}"
            )
        if trained and len(held[name]) < 2:
            every = max(2, round(1 / HELD_OUT))
            held[name] = train[::every] if len(train) >= 2 * every else train[:2]
            train = [i for i in train if i not in held[name]]
        learnt += train
    return learnt, held


def _fit_step(
    detector: Detector,
    store: FeatureStore,
    ids: Sequence[str],
    run: RunConfig,
    step: int,
    memory: dict[str, Any],
    progress: ShowBar,
) -> None:
    """Fit or train one step, without a results folder."""
    if not detector.trained:
        with progress("fit", len(ids)) as advance:
            detector.fit(store, ids, torch.Generator().manual_seed(run.seed))
            advance(len(ids))
        return
    plan = StepPlan.of(run, step)
    with progress("training", plan.epochs * len(ids)) as advance:
        fit_step(detector, store, ids, plan, memory, watch=Watch(samples=advance))


def _remember(
    detector: Detector,
    store: FeatureStore,
    ids: Sequence[str],
    run: RunConfig,
    earlier: dict[str, Any],
) -> dict[str, Any]:
    """What protects these categories later; replayed images stay with the folder, so replay keeps none."""
    if not detector.trained or not _protects(run):
        return {}
    return remember(detector, store, ids, run.increment, earlier, run.seed)


def _protects(run: RunConfig) -> bool:
    return run.increment.strategy not in ("none", "joint", "replay")


def _thresholds(
    detector: Detector,
    store: FeatureStore,
    run: RunConfig,
    held: dict[str, list[str]],
    false_alarm_rate: float,
    progress: ShowBar,
    earlier: Detector | None,
) -> tuple[dict[str, Threshold], dict[str, Threshold]]:
    """Thresholds from good images that the model was not fitted on: with all modalities, and with the first alone.

    Where a method is fitted in closed form and a category has few validation images, its training images count
    too, each scored by a model without it (cross-fitting). `earlier` is the model before this step, on which those
    models build as well.
    """
    views = [run.modalities]
    if detector.takes_fewer and len(run.modalities) > 1:
        views.append(run.modalities[:1])
    scores = {
        (view, name): _scores(detector, store, run, ids, view)
        for view in views
        for name, ids in held.items()
    }
    cross = [] if detector.trained else [n for n, ids in held.items() if len(ids) < ENOUGH]
    if cross:
        train = {name: store.dataset.ids("train", [name]) for name in held}
        with progress("threshold", FOLDS) as advance:
            for fold in range(FOLDS):
                part = _new_detector(run, store, detector.n_categories)
                if earlier is not None:
                    load_grown(part, earlier.state_dict())
                rest = [i for ids in train.values() for n, i in enumerate(ids) if n % FOLDS != fold]
                part.fit(store, rest, torch.Generator().manual_seed(run.seed))
                for view in views:
                    for name in cross:
                        scores[view, name] += _scores(
                            part, store, run, train[name][fold::FOLDS], view
                        )
                advance(1)
    full, *fewer = (
        {name: _threshold(name, scores[view, name], false_alarm_rate) for name in held}
        for view in views
    )
    return full, fewer[0] if fewer else {}


def _scores(
    detector: Detector,
    store: FeatureStore,
    run: RunConfig,
    ids: Sequence[str],
    modalities: Sequence[str],
) -> list[float]:
    """Image scores, each computed apart from the others, from some modalities."""
    detector.eval()
    evaluation, scores = run.evaluation, []
    for sample_id in ids:
        with torch.inference_mode():
            maps = detector.anomaly_maps(store.batch([sample_id]).only(modalities)).numpy()
        scores += image_scores(maps, evaluation.image_score, evaluation.pool).tolist()
    return scores


def _threshold(name: str, scores: Sequence[float], false_alarm_rate: float) -> Threshold:
    try:
        return threshold_from_good(scores, false_alarm_rate)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _kept(store: FeatureStore, held: dict[str, list[str]]) -> dict[str, dict[str, Tensor]]:
    """Features and images of a few good samples of each category, held-out ones if any, in half precision."""
    kept = {}
    for name, ids in held.items():
        batch = store.batch((ids or store.dataset.ids("train", [name]))[:KEPT])
        parts = {f"{m}.features": x.half() for m, x in batch.features.items()}
        kept[name] = parts | {f"{m}.images": x.half() for m, x in batch.images.items()}
    return kept


def _kept_scores(
    detector: Detector, model: Model, modalities: Sequence[str]
) -> dict[str, list[float]]:
    """Scores of the kept good images of the model's categories by a detector, from some modalities."""
    found = {}
    detector.eval()
    for number, name in enumerate(model.card.categories):
        kept = model.held[name]
        features = {m: kept[f"{m}.features"].float() for m in model.card.modalities}
        images = {m: kept[f"{m}.images"].float() for m in model.card.modalities}
        count = len(next(iter(features.values())))
        batch = Batch(features, images, torch.full((count,), number))
        with torch.no_grad():
            maps = detector.anomaly_maps(batch.only(modalities)).numpy()
        evaluation = model.run.evaluation
        found[name] = image_scores(maps, evaluation.image_score, evaluation.pool).tolist()
    return found


def _moved(
    model: Model,
    thresholds: dict[str, Threshold],
    before: dict[str, list[float]],
    after: dict[str, list[float]],
) -> dict[str, Threshold]:
    """Thresholds of earlier categories, moved with the scores of their kept images where these were held out."""
    return {
        name: old.moved(before[name], after[name]) if _kept_were_held_out(model, name) else old
        for name, old in thresholds.items()
    }


def _kept_were_held_out(model: Model, name: str) -> bool:
    """Whether the kept images of a category were held out, so that their scores rise as those of new images do.

    Files of earlier versions do not say it. Trained methods always hold some out; one in closed form learns all
    training images, and without validation images it keeps some of these: then there are as many scores as
    training images.
    """
    if model.card.held_out is not None:
        return name in model.card.held_out
    n_scores = len(model.card.thresholds[name].good_scores)
    return model.detector.trained or n_scores != model.card.n_train[name]


def _lost(
    model: Model,
    thresholds: dict[str, Threshold],
    before: dict[str, list[float]],
    after: dict[str, list[float]],
) -> pd.DataFrame:
    """What the earlier categories lost, on their kept good images, and their thresholds from now on."""
    rows = []
    for name in model.card.categories:
        old, new = model.card.thresholds[name].value, thresholds[name].value
        rows.append(
            {
                "category": name,
                "good images": len(before[name]),
                "held out": _kept_were_held_out(model, name),
                "score before": float(np.mean(before[name])),
                "score after": float(np.mean(after[name])),
                "threshold before": old,
                "threshold after": new,
                "above before": sum(score > old for score in before[name]),
                "above after": sum(score > new for score in after[name]),
            }
        )
    return pd.DataFrame(rows)


def _table(
    model: Model, store: FeatureStore, dataset: Dataset, categories: Sequence[str]
) -> pd.DataFrame:
    """What is known of each category."""
    rows = []
    for name in categories:
        threshold = model.card.thresholds[name]
        row = {
            "category": name,
            "train": model.card.n_train[name],
            "held out": len(threshold.good_scores),
            "threshold": threshold.value,
            "false alarms up to (%)": 100 * threshold.interval[1],
        }
        test = dataset.ids("test", [name])
        if test:
            labels = dataset.index.set_index("sample_id").loc[test, "label"].to_numpy()
            scores = np.asarray(
                _scores(model.detector, store, model.run, test, model.card.modalities)
            )
            above = scores > threshold.value
            row |= {
                "test": len(test),
                "image AUROC": or_missing(image_auroc, scores, labels),
                "false alarms": int((above & (labels == 0)).sum()),
                "misses": int((~above & (labels == 1)).sum()),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _without_root(run: RunConfig) -> dict[str, Any]:
    """The configuration in JSON types, without the place of the folder."""
    content = run.model_dump(mode="json")
    if "root" in content["data"]:
        content["data"]["root"] = "."
    return content
