"""Score one image, with or without its depth file, by a trained model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from matplotlib import colormaps
from PIL import Image

from iumad.config.schema import RunConfig
from iumad.data.images import read_depth, read_header, read_rgb, read_xyz, require_same_size
from iumad.data.prepare import prepare
from iumad.data.sample import Sample
from iumad.errors import CheckpointError, ConfigError, DataError
from iumad.evaluation.metrics import image_scores
from iumad.study.runner import RunWork, load_detector
from iumad.study.steps import run_name, steps_of


@dataclass(frozen=True)
class Prediction:
    """Result for one image.

    Attributes
    ----------
    score : float
        Image score as the run's `evaluation` section defines it; higher is more anomalous.
    anomaly_map : float32 array, size x size
    image : uint8 array, size x size x 3
        The image as the model saw it.
    """

    score: float
    anomaly_map: Float32[np.ndarray, "size size"]
    image: UInt8[np.ndarray, "size size 3"]

    def save(self, folder: Path, stem: str) -> tuple[Path, Path]:
        """Write `<stem>_map.png` (image and heat map side by side) and `<stem>_map.npy`; return both paths."""
        folder.mkdir(parents=True, exist_ok=True)
        picture, array = folder / f"{stem}_map.png", folder / f"{stem}_map.npy"
        spread = max(float(np.ptp(self.anomaly_map)), 1e-12)
        scaled = (self.anomaly_map - self.anomaly_map.min()) / spread
        heat = (colormaps["inferno"](scaled)[..., :3] * 255).astype(np.uint8)
        Image.fromarray(np.concatenate([self.image, heat], axis=1)).save(picture)
        np.save(array, self.anomaly_map)
        return picture, array


def predict_files(
    run: RunConfig,
    results: Path,
    image: Path,
    depth: Path | None = None,
    category: str | None = None,
    depth_scale: float = 0.001,
    device: str = "auto",
) -> Prediction:
    """Score one image by the model of a finished run after its last step.

    Parameters
    ----------
    run, results : RunConfig, Path
        Which model, and the folder of results that holds it.
    image, depth : Path
        RGB image, and an organised point cloud (three channels) or a depth map (one channel).
    category : str, optional
        Needed by per-category methods only.
    depth_scale : float
        Metres per unit of a one-channel depth map.

    Raises
    ------
    DataError, ConfigError, CheckpointError
        A file is unusable or missing, the category is unknown, or the run is not trained.
    """
    work = RunWork(run, device)
    step = steps_of(run, results, work.dataset.categories)[-1]
    if not step.checkpoint.exists():
        raise CheckpointError(f"{results}: {run_name(run)} is not trained; use `iumad run` first")
    rgb = read_rgb(image)
    xyz = None
    if "depth" in run.modalities:
        if depth is None:
            raise DataError(
                f"{image}: a model for {run.modality} needs a depth file as the second argument"
            )
        xyz = _read_cloud(depth, depth_scale)
        require_same_size(depth, xyz.shape[:2], rgb.shape[:2])
    mask = np.zeros(rgb.shape[:2], dtype=bool)
    sample = Sample(str(image), category or "", "test", "good", rgb, xyz, mask, None, None)
    prepared = prepare(sample, run.data, ("rgb", *run.modalities))
    detector = load_detector(work, step)
    number = _category_number(category, work.dataset.categories, needed=detector.needs_category)
    with torch.no_grad():
        batch = work.store.assemble([prepared], [number]).to(work.device)
        anomaly_map = detector.anomaly_maps(batch)[0].cpu().numpy()
    score = image_scores(anomaly_map[None], run.evaluation.image_score, run.evaluation.pool)[0]
    assert prepared.rgb is not None
    return Prediction(float(score), anomaly_map, prepared.rgb)


def _read_cloud(path: Path, scale: float) -> Float32[np.ndarray, "h w 3"]:
    """Points of an xyz file; a depth map becomes a cloud with x = y = 0, since encodings of z need no more."""
    if read_header(path).channels == 3:
        return read_xyz(path)
    z = read_depth(path, scale)
    return np.stack([np.zeros_like(z), np.zeros_like(z), z], axis=-1)


def _category_number(category: str | None, categories: tuple[str, ...], needed: bool) -> int:
    if category is None:
        if needed:
            raise ConfigError(
                f"a per-category method needs --category, one of: {', '.join(categories)}"
            )
        return 0
    if category not in categories:
        raise ConfigError(
            f"unknown category {category!r}; the data set has: {', '.join(categories)}"
        )
    return categories.index(category)
