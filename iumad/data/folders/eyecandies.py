"""Eyecandies as distributed: ``<Category>/{train,val,test_public}/data/<number>_<item>``.

Bonfiglioli et al., "The Eyecandies Dataset for Unsupervised Multimodal Anomaly Detection and
Localization", ACCV 2022. ``test_private`` has no labels and is not read. Samples of train and val
are good by the data set's definition; labels of test_public come from ``metadata.yaml``, the defect
type from the masks of the four kinds: the kind's name, or ``combined`` for more than one.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Bool, Float32, Float64

from iumad.data.depth import back_project
from iumad.data.files import FileDataset, Scan, category_folders, find_folder, visible_entries
from iumad.data.images import naming, read_array, read_mask, read_rgb, require_same_size
from iumad.data.sample import GOOD, Sample
from iumad.errors import DataError

SPLIT_FOLDERS = {"train": "train", "validation": "val", "test": "test_public"}
KINDS = ("bumps", "dents", "colors", "normals")
FOCAL_LENGTH = 711.11  # pixels at 512 x 512, principal point at half the size
_LARGEST = 65535


class Eyecandies(FileDataset):
    """The ten candies of Eyecandies, or any set in its layout.

    Parameters
    ----------
    root
        The folder that holds ``CandyCane``, ``ChocolateCookie`` and so on.
    categories
        Selection and order; None for all in natural order.
    light
        Which ``image_<light>.png`` is the colour image: 0 all spotlights, 1 bottom, 2 right, 3 top,
        4 left, 5 global.
    problems
        As for `FileDataset`.

    Raises
    ------
    DataError
        Any file that a sample needs is missing, of another size or of an unreadable header.
    """

    name = "eyecandies"
    modalities = ("rgb", "depth")

    def __init__(
        self,
        root: Path,
        categories: tuple[str, ...] | None = None,
        light: int = 4,
        problems: list[str] | None = None,
    ) -> None:
        scan = scan_eyecandies(root, categories, light)
        super().__init__(root, scan, categories, f"light={light}", problems)

    def load(self, sample_id: str) -> Sample:
        """Read one sample; its point cloud is in the camera's frame, x right, y down, z away.

        Raises
        ------
        DataError
            The id is unknown, or a file is damaged or does not fit the others.
        """
        row = self.row(sample_id)
        rgb = read_rgb(self.root / row["rgb"])
        xyz = camera_points(
            read_metric_depth(self.root / row["xyz"], self._item(sample_id, "info_depth.yaml"))
        )
        require_same_size(self.root / row["xyz"], xyz.shape[:2], rgb.shape[:2])
        return self.sample(sample_id, rgb, xyz)

    def files(self, sample_id: str) -> list[Path]:
        """Return all files that `load` reads for a sample."""
        return [*super().files(sample_id), self._item(sample_id, "info_depth.yaml")]

    def load_normals(self, sample_id: str) -> Float32[np.ndarray, "h w 3"]:
        """Read the rendered unit normals in the camera's frame (z <= 0 points to the camera)."""
        path = self._item(sample_id, "normals.png")
        normals = read_rgb(path) / 127.5 - 1
        normals[..., 1:] *= -1  # stored with y up and z to the camera
        length = np.linalg.norm(normals, axis=-1, keepdims=True)
        return (normals / np.maximum(length, 1.0e-6)).astype(np.float32)

    def load_pose(self, sample_id: str) -> Float64[np.ndarray, "4 4"]:
        """Read the camera pose: the matrix that takes world points to the camera's frame."""
        path = self._item(sample_id, "pose.txt")
        with naming(path, "pose"):
            pose = np.loadtxt(path, dtype=np.float64, ndmin=2)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise DataError(f"{path}: a pose needs 4 x 4 finite numbers, got shape {pose.shape}")
        return pose

    def load_kind_masks(self, sample_id: str) -> dict[str, Bool[np.ndarray, "h w"]]:
        """Read the masks of the four kinds of defect: bumps, dents, colors, normals."""
        return {kind: read_mask(self._item(sample_id, f"{kind}_mask.png")) for kind in KINDS}

    def _item(self, sample_id: str, item: str) -> Path:
        depth = self.root / self.row(sample_id)["xyz"]
        return depth.with_name(depth.name.removesuffix("depth.png") + item)


def read_metric_depth(depth: Path, info: Path) -> Float32[np.ndarray, "h w"]:
    """Decode a 16-bit depth image to metres; 0 and 65535 are the limits in `info`, both valid."""
    low, high = _depth_limits(info)
    stored = read_array(depth)
    if stored.dtype != np.uint16 or stored.ndim != 2:
        raise DataError(f"{depth}: needs one channel of 16 bits, got {stored.dtype} {stored.shape}")
    return (low + stored / _LARGEST * (high - low)).astype(np.float32)


def camera_points(depth: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 3"]:
    """Project z in metres to points in the camera's frame.

    Pixels count from 0, the principal point is at half the size, as the data set's authors have it.
    """
    height, width = depth.shape
    focal = FOCAL_LENGTH * width / 512
    return back_project(depth, focal, focal, width / 2, height / 2)


def world_points(
    xyz: Float32[np.ndarray, "h w 3"], pose: Float64[np.ndarray, "4 4"]
) -> Float32[np.ndarray, "h w 3"]:
    """Take points from the camera's frame to the world's, by the inverse of the pose."""
    inverse = np.linalg.inv(pose)
    return (xyz @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.float32)


def scan_eyecandies(root: Path, categories: tuple[str, ...] | None = None, light: int = 4) -> Scan:
    """Find all samples, and every problem; decodes nothing but the masks of defective samples."""
    scan = Scan(root)
    with scan.collecting():
        for category, folder in category_folders(scan, categories).items():
            for split, name in SPLIT_FOLDERS.items():
                with scan.collecting():
                    _scan_split(scan, category, split, _data_folder(folder, name), light)
    return scan


def _data_folder(category: Path, split: str) -> Path:
    folder = find_folder(category, split)
    if folder is None:
        raise DataError(f"{category}: category {category.name!r} has no {split} folder")
    data = find_folder(folder, "data")
    if data is None:
        raise DataError(f"{folder}: has no data folder")
    return data


def _scan_split(scan: Scan, category: str, split: str, folder: Path, light: int) -> None:
    samples: dict[str, dict[str, Path]] = {}
    for path in visible_entries(folder):
        match = re.fullmatch(r"([0-9]+)_(.+)", path.name)
        if match:
            samples.setdefault(match[1], {})[match[2]] = path
    if not samples:
        raise DataError(f"{folder}: category {category!r} has no images in {split}")

    for number, items in sorted(samples.items()):
        with scan.collecting():
            rgb = _need(items, folder, number, f"image_{light}.png")
            depth = _need(items, folder, number, "depth.png")
            _need(items, folder, number, "info_depth.yaml")
            defect, geometric, mask = GOOD, None, None
            if split == "test":
                mask = _need(items, folder, number, "mask.png")
                defect, geometric = _defect(items, folder, number)
            scan.add(
                category=category,
                split=split,
                defect=defect,
                stem=number,
                geometric=geometric,
                rgb=rgb,
                xyz=depth,
                mask=mask,
            )


def _defect(items: dict[str, Path], folder: Path, number: str) -> tuple[str, bool | None]:
    path = _need(items, folder, number, "metadata.yaml")
    anomalous = _read_yaml(path).get("anomalous")
    if anomalous not in (0, 1):
        raise DataError(f"{path}: needs anomalous: 0 or 1, got {anomalous!r}")
    if not anomalous:
        return GOOD, None
    masks = {kind: _need(items, folder, number, f"{kind}_mask.png") for kind in KINDS}
    present = [kind for kind, mask in masks.items() if read_mask(mask).any()]
    if not present:
        raise DataError(f"{path}: says anomalous, but the masks of all kinds are empty")
    return present[0] if len(present) == 1 else "combined", _is_geometric(present)


def _is_geometric(kinds: list[str]) -> bool | None:
    """Bumps and dents move the surface, colors do not; normals change the shading, depth maybe."""
    if "bumps" in kinds or "dents" in kinds:
        return True
    return None if "normals" in kinds else False


def _need(items: dict[str, Path], folder: Path, number: str, item: str) -> Path:
    if item not in items:
        raise DataError(f"{folder / f'{number}_{item}'}: is missing")
    return items[item]


def _depth_limits(path: Path) -> tuple[float, float]:
    limits: Any = _read_yaml(path).get("normalization")
    try:
        low, high = float(limits["min"]), float(limits["max"])
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path}: needs normalization with min and max, got {limits!r}") from error
    if not 0 < low < high < np.inf:
        raise DataError(f"{path}: needs 0 < min < max in metres, got min {low}, max {high}")
    return low, high


def _read_yaml(path: Path) -> dict[str, Any]:
    with naming(path, "YAML"):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    if not isinstance(content, dict):
        raise DataError(f"{path}: needs keys and values, got {type(content).__name__}")
    return content
