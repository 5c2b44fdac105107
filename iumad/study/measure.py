"""Measure what pages show of finished models, and leave it where `iumad.study.measured` reads it without torch."""

import base64
import copy
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from iumad.config.schema import RunConfig, StudyConfig
from iumad.data import data_of, open_dataset
from iumad.data.sample import GOOD
from iumad.errors import DataError
from iumad.evaluation.evaluate import Scored, anomaly_maps, compare_details, evaluate, overwritten
from iumad.evaluation.metrics import aupro, image_auroc, image_scores, or_missing, pixel_auroc
from iumad.features import open_store
from iumad.models.base import Detector
from iumad.models.build import method_class
from iumad.models.detector import ReconstructionDetector, gate_figures
from iumad.study.counting import gradient_reach, model_card
from iumad.study.diagnosis import FOLDS, bottleneck_features, diagnose, probe
from iumad.study.measured import (
    KINDS,
    STRENGTHS,
    measured_file,
    measured_part,
    perturbed,
    write_measured,
)
from iumad.study.runner import (
    RunWork,
    load_detector,
    run_study,
    score_categories,
    watch_training,
)
from iumad.study.steps import is_trained, steps_of

MAP = 48  # pixels, side of a stored anomaly map, which is smooth
WORST = 8  # defects with the lowest scores among the good ones', whose maps are kept too
CATEGORIES_PERTURBED = 2  # the first ones; each strength has to go through the backbone again
UNTRAINED = ("parts", "gradients")  # kinds that need a network, and no trained one


def measure(
    study: StudyConfig,
    results: str | Path,
    kinds: Sequence[str] = tuple(KINDS),
    device: str = "auto",
    whole: StudyConfig | None = None,
) -> int:
    """Measure the part of a study that pages look at closely; what is there already stays.

    Parameters
    ----------
    study : StudyConfig
        Of its runs (`iumad.study.measured.measured_part`) those are measured that are finished.
    results : path
        Results folder.
    kinds : sequence of str
        Of `iumad.study.measured.KINDS`.
    device : "auto", "cpu", "cuda", "cuda:1", ...
    whole : StudyConfig, optional
        The study of whose grid `study` is a part: what pages look at is a part of the whole grid.

    Returns
    -------
    int
        Tables that were written.
    """
    written = 0
    chosen = {run.run_id for run in study.runs()}
    study = whole or study
    wanted = {kind: measured_part(study, kind).seeds for kind in kinds}
    runs = [run for run in _runs_of(study, kinds) if run.run_id in chosen]
    for run in tqdm(runs, desc="measurements", unit="run", disable=not runs):
        finished, scored = is_trained(run, results), list[Scored]()
        for kind in [kind for kind, seeds in wanted.items() if run.seed in seeds]:
            path = measured_file(run, kind, Path(results))
            if path.exists() or not (finished or kind in UNTRAINED):
                continue
            if kind in OF_MAPS:
                scored = scored or list(score_categories(run, results, device))
                table = OF_MAPS[kind](run, scored)
            elif method_class(run.model).trained or kind == "perturbed":
                table = OF_MODELS[kind](run, results, device)
            else:
                continue  # a bank has neither epochs nor parts
            if len(table):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_measured(table[list(KINDS[kind])], path)
                written += 1
    return written


def _runs_of(study: StudyConfig, kinds: Sequence[str]) -> list[RunConfig]:
    """The runs that one of the kinds is measured of."""
    runs = [run for kind in kinds for run in measured_part(study, kind).runs()]
    return list({run.run_id: run for run in runs}.values())


def run_and_measure(study: StudyConfig, results: str | Path) -> None:
    """Run what is missing of a study, then measure what pages show of it."""
    run_study(study, results)
    measure(study, results)


def samples(_run: RunConfig, scored: Sequence[Scored]) -> pd.DataFrame:
    """The score of every test image, and the map of the first of each kind and of the worst missed ones."""
    tables = []
    for one in scored:
        low, high = (float(end) for end in np.percentile(one.maps, [1, 99.9]))
        good = one.scores[one.labels == 0]
        beaten = [float((good > score).mean()) if len(good) else 0.0 for score in one.scores]
        table = one.test[["sample_id", "category", "defect", "geometric"]].assign(
            geometric=one.test["geometric"].map({True: "True", False: "False"}).fillna(""),
            score=one.scores,
            low=low,
            high=high,
            place=range(len(one.test)),
            beaten=beaten,
        )
        tables.append(table.assign(map=_first_maps(one, table, low, high)))
    found = pd.concat(tables, ignore_index=True)
    worst = found[found["defect"] != GOOD].nlargest(WORST, "beaten").index
    of_category = {one.category: one for one in scored}
    for row in found.loc[worst].itertuples():
        anomaly_map = of_category[row.category].maps[row.place]
        found.loc[row.Index, "map"] = _encoded(anomaly_map, row.low, row.high)
    return found


def details(run: RunConfig, scored: Sequence[Scored]) -> pd.DataFrame:
    """Values of every category without and with each detail of evaluation, where both are defined."""
    rows = [(one.category, *row) for one in scored for row in compare_details(one, run.evaluation)]
    return pd.DataFrame(rows, columns=list(KINDS["details"]))


def defects(run: RunConfig, scored: Sequence[Scored]) -> pd.DataFrame:
    """How many good images score lower than each defect; its size and localisation where it is marked."""
    records = []
    for one in scored:
        good = one.scores[one.labels == 0]
        for row, label, anomaly_map, mask, score in zip(
            one.test.itertuples(), one.labels, one.maps, one.masks, one.scores, strict=True
        ):
            if label == 0:
                continue
            found = ((good < score) + 0.5 * (good == score)).mean() if len(good) else np.nan
            share = mask.mean() if mask.any() else np.nan
            image, marks = anomaly_map[None], mask[None]
            inside = or_missing(pixel_auroc, image, marks)
            regions = or_missing(aupro, image, marks, run.evaluation.fpr_limit)
            names = (row.sample_id, row.category, row.defect)
            records.append((*names, share, found, inside, regions))
    return pd.DataFrame(records, columns=list(KINDS["defects"]))


def lottery(run: RunConfig, scored: Sequence[Scored]) -> pd.DataFrame:
    """What evaluations give in which images of one file name overwrite each other, in one line.

    Shifts are in points; low and high hold the middle 95 % of the evaluations.
    """
    drawn = overwritten(list(scored), np.random.default_rng(run.seed))
    here = drawn["here"].iloc[0]
    shift = 100 * (drawn["value"] - here)
    low, high = shift.quantile([0.025, 0.975])
    line = {
        **drawn[["images", "files"]].iloc[0],
        "here": 100 * here,
        "there": 100 * drawn["value"].mean(),
        "low": low,
        "high": high,
        "best": shift.max(),
        "evaluations": len(drawn),
        "undefined": drawn["value"].isna().mean(),
    }
    return pd.DataFrame([line]).astype({"images": int, "files": int})


def epochs(run: RunConfig, results: str | Path, device: str) -> pd.DataFrame:
    """What becomes of the last step, epoch by epoch; it is trained once more to watch it.

    Image AUROC of every category and, of methods with gates, `iumad.models.detector.gate_figures` on all good test
    images, which belong to no category.
    """
    work, config = RunWork(run, device), run.evaluation
    last = steps_of(run, results, work.dataset)[-1]
    ids, index = work.dataset.ids("train", last.categories), work.dataset.index
    records = []

    def look(detector: Detector, epoch: int) -> None:
        seen = copy.deepcopy(detector).eval()
        seen.calibrate(work.training_store(last), ids)
        for category, test in index[index["split"] == "test"].groupby("category", sort=False):
            maps = anomaly_maps(seen, work.test_store, test["sample_id"].tolist())
            scores = image_scores(maps, config.image_score, config.pool)
            value = or_missing(image_auroc, scores, test["label"].to_numpy(dtype=int))
            records.append((epoch + 1, category, "i_auroc", value))
        if isinstance(seen, ReconstructionDetector):
            good = index[(index["split"] == "test") & (index["label"] == 0)]["sample_id"].tolist()
            figures = gate_figures(seen, work.test_store.batch(good).to(work.device))
            records.extend((epoch + 1, "", name, value) for name, value in figures.items())

    watch_training(work, last, look)
    return pd.DataFrame(records, columns=list(KINDS["epochs"]))


def perturbation(run: RunConfig, results: str | Path, device: str) -> pd.DataFrame:
    """Metrics on perturbed test images of the first categories, the model as it was trained on clean ones.

    A perturbation that the data set does not allow, such as another background where no object can be told from
    its own, is left out.
    """
    work = RunWork(run, device)
    detector = load_detector(work, steps_of(run, results, work.dataset)[-1])
    categories = work.dataset.categories[:CATEGORIES_PERTURBED]
    tables = []
    for kind, strengths in STRENGTHS.items():
        try:
            for strength in strengths:
                dataset = perturbed(work.dataset, kind, strength)
                store = open_store(dataset, run, work.device, work.store)
                rows = evaluate(detector, store, categories, run.evaluation)
                means = rows.groupby("metric", sort=False)["value"].mean().reset_index()
                tables.append(means.assign(perturbation=kind, strength=strength))
        except DataError:
            tables = [table for table in tables if table["perturbation"].iloc[0] != kind]
    return pd.concat(tables) if tables else pd.DataFrame()


def inside(run: RunConfig, results: str | Path, device: str) -> pd.DataFrame:
    """`iumad.study.diagnosis.diagnose` of the methods that have what it looks at."""
    is_network = run.model.kind == "reconstruction"
    return diagnose(run, results, device) if is_network else pd.DataFrame()


def parts(run: RunConfig, _results: str | Path, _device: str) -> pd.DataFrame:
    """`iumad.study.counting.model_card` with a logit for each category."""
    return model_card(run, len(data_of(run.data).categories))


def gradients(run: RunConfig, _results: str | Path, _device: str) -> pd.DataFrame:
    """`iumad.study.counting.gradient_reach`, a line for each part and term."""
    if run.model.kind != "reconstruction":
        return pd.DataFrame()
    wide = gradient_reach(run, len(data_of(run.data).categories)).reset_index()
    return wide.melt("part", var_name="term", value_name="share")


def information(run: RunConfig, results: str | Path, device: str) -> pd.DataFrame:
    """What probes read around the bottleneck (`iumad.study.diagnosis`).

    Nothing where there is no bottleneck, or fewer good test images of a category than folds.
    """
    index = open_dataset(run.data).index
    good = index[(index["split"] == "test") & (index["label"] == 0)]
    few = good["category"].value_counts().min() < FOLDS
    if few or not getattr(run.model, "bottleneck", False):
        return pd.DataFrame()
    features, images = bottleneck_features(run, results, device)
    return probe(features, images[["category", "redundant", "spurious"]], images["sample_id"])


OF_MAPS: dict[str, Callable[[RunConfig, Sequence[Scored]], pd.DataFrame]] = {
    "samples": samples,
    "defects": defects,
    "details": details,
    "lottery": lottery,
}
OF_MODELS: dict[str, Callable[[RunConfig, str | Path, str], pd.DataFrame]] = {
    "perturbed": perturbation,
    "epochs": epochs,
    "inside": inside,
    "information": information,
    "parts": parts,
    "gradients": gradients,
}


def _first_maps(one: Scored, table: pd.DataFrame, low: float, high: float) -> list[str]:
    """The map of the first image of each kind, "" for the others."""
    first = ~table["defect"].duplicated()
    return [
        _encoded(anomaly_map, low, high) if kept else ""
        for anomaly_map, kept in zip(one.maps, first, strict=True)
    ]


def _encoded(anomaly_map: np.ndarray, low: float, high: float) -> str:
    """A map in 256 levels from low to high, as a small grey PNG in base64."""
    level = np.clip((anomaly_map - low) / max(high - low, 1e-12), 0, 1)
    grey = Image.fromarray((255 * level).round().astype(np.uint8))
    if max(grey.size) > MAP:
        grey = grey.resize((MAP, MAP), Image.Resampling.BOX)
    buffer = io.BytesIO()
    grey.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
