"""FPFH: features of the surface itself, for BTF's bank (Horwitz and Hoshen, CVPR workshops 2023).

FPFH (Rusu et al., ICRA 2009) are histograms of angles between the normals of a point and its neighbours: 33
numbers a point that do not change when the object is turned. Open3D computes them; it is an optional extra.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32

from iumad.data.depth import valid_mask
from iumad.data.prepare import Prepared
from iumad.errors import ConfigError, DataError
from iumad.features.cache import Batch, FeatureStore

NORMAL_RADIUS, NORMAL_POINTS = 0.1, 30  # metres, and how many points at most: the authors' values
FEATURE_RADIUS, FEATURE_POINTS = 0.25, 100
VERSION = "1"  # part of the key of cached maps: raise when they change


class SurfaceStore(FeatureStore):
    """A store whose depth features are FPFH of the point cloud, on the backbone's grid."""

    def batch(self, sample_ids: Sequence[str], device: torch.device | None = None) -> Batch:
        """Inputs of these samples, in order; see `FeatureStore.batch`."""
        prepared = [self.prepared(sample_id) for sample_id in sample_ids]
        batch = super().assemble(prepared, self._categories(sample_ids))
        if "depth" in self.modalities:
            maps = torch.from_numpy(np.stack([self._fpfh(sample_id) for sample_id in sample_ids]))
            batch = replace(batch, features=batch.features | {"depth": maps})
        return batch.to(device or torch.device("cpu"))

    def assemble(self, prepared: Sequence[Prepared], categories: Sequence[int]) -> Batch:  # noqa: ARG002
        """Refuse: prepared samples have no point cloud."""
        raise ConfigError(
            "model.depth_features fpfh needs samples of the run's data set, because it reads their point clouds"
        )

    def _complete(self, sample_id: str) -> None:
        super()._complete(sample_id)
        if "depth" in self.modalities:
            self._fpfh(sample_id)

    def _fpfh(self, sample_id: str) -> Float32[np.ndarray, "33 g g"]:
        text = f"fpfh {VERSION} {self.backbone.grid} {self.dataset.fingerprint(sample_id)}"
        path = self.cache / "fpfh" / f"{hashlib.sha256(text.encode()).hexdigest()}.npy"
        if not path.exists():
            xyz = self.dataset.load(sample_id).xyz
            if xyz is None:
                raise DataError(f"{sample_id}: FPFH need a point cloud, and this sample has none")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{torch.randint(2**31, ()).item()}.npy")
            np.save(temporary, fpfh_map(xyz, self.backbone.grid))
            temporary.replace(path)
        return np.load(path)


def fpfh_map(xyz: Float32[np.ndarray, "h w 3"], grid: int) -> Float32[np.ndarray, "33 g g"]:
    """FPFH of all measured points, averaged over each cell of a grid; 0 in cells without a point.

    Normals point to the camera, so that they do not depend on the order of points.

    Raises
    ------
    ConfigError
        Open3D is not installed.
    """
    open3d, valid = import_open3d(), valid_mask(xyz)
    points = open3d.utility.Vector3dVector(xyz[valid].astype(np.float64))
    cloud = open3d.geometry.PointCloud(points)
    search = open3d.geometry.KDTreeSearchParamHybrid
    cloud.estimate_normals(search(NORMAL_RADIUS, NORMAL_POINTS))
    cloud.orient_normals_towards_camera_location(np.zeros(3))
    features = open3d.pipelines.registration.compute_fpfh_feature(
        cloud, search(FEATURE_RADIUS, FEATURE_POINTS)
    )
    return cell_means(np.asarray(features.data).T, valid, grid)


def cell_means(
    values: Float[np.ndarray, "n c"], valid: Bool[np.ndarray, "h w"], grid: int
) -> Float32[np.ndarray, "c g g"]:
    """Mean over each cell of a grid of the values of its valid pixels, given in row-major order."""
    rows, columns = np.nonzero(valid)
    height, width = valid.shape
    cell = (rows * grid // height) * grid + columns * grid // width
    count = np.bincount(cell, minlength=grid**2)
    sums = np.zeros((grid**2, values.shape[1]))
    np.add.at(sums, cell, values)
    means = sums / np.maximum(count, 1)[:, None]
    return means.T.reshape(-1, grid, grid).astype(np.float32)


def import_open3d() -> ModuleType:
    """Open3D, or an error that says how to get it."""
    try:
        import open3d
    except ImportError as error:
        raise ConfigError(
            f'model.depth_features fpfh needs Open3D: pip install "iumad[fpfh]" (import failed: {error})'
        ) from error
    return open3d
