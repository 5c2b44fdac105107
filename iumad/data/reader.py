"""From the files of one capture to arrays: the same code for the samples of a data set and for files to predict.

A depth file is a point cloud (three floating-point channels, metres as a rule) or a depth map (one channel), which
a pinhole camera turns into points. Eyecandies stores depth maps between two limits that are in a file beside each.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from jaxtyping import Bool, Float32, Shaped, UInt8
from pydantic import Field

from iumad.config.sections import Section
from iumad.data.depth import back_project, remove_plane
from iumad.data.images import (
    as_depth,
    as_other,
    as_points,
    naming,
    read_array,
    read_depth,
    read_header,
    read_other,
    read_rgb,
    read_xyz,
    require_same_size,
)
from iumad.errors import DataError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
EYECANDIES_FOCAL_LENGTH = 711.11  # pixels at 512 x 512, principal point at half the size
_LARGEST = 65535
Source = Path | np.ndarray


class Intrinsics(Section):
    """A pinhole camera without distortion: focal lengths and principal point in pixels."""

    fx: Positive
    fy: Positive
    cx: Finite
    cy: Finite


@dataclass(frozen=True)
class Images:
    """The arrays of one capture; see `iumad.data.sample.Sample`, whose attributes they become."""

    rgb: UInt8[np.ndarray, "h w 3"]
    xyz: Float32[np.ndarray, "h w 3"] | None
    foreground: Bool[np.ndarray, "h w"] | None
    others: dict[str, Shaped[np.ndarray, "h w 3"]]


class Reader(Section):
    """How the files of a data set are read; part of what a trained model needs to know."""

    cloud_scale: Positive = Field(1.0, description="metres per stored unit of a point cloud")
    map_scale: Positive = Field(0.001, description="metres per stored unit of a depth map")
    intrinsics: Intrinsics | None = Field(
        None, description="of depth maps; None: focal length = longer side, so x and y are rough"
    )
    eyecandies: bool = Field(
        False, description="depth maps are Eyecandies': between the limits in *info_depth.yaml"
    )
    remove_plane: bool = Field(
        False, description="set the background plane to invalid and keep the foreground"
    )

    def read(self, capture: Mapping[str, Source]) -> Images:
        """Read one capture.

        Parameters
        ----------
        capture
            Modality -> file or array. Without ``"rgb"`` the colour image is black. An array of depth is a point
            cloud in metres, h x w x 3, or a depth map in stored units, h x w, 0 where nothing was measured.

        Raises
        ------
        DataError
            A file is damaged, is no image of its modality, or has another size than the first one.
        """
        xyz = foreground = None
        if "depth" in capture:
            xyz = self.points(capture["depth"])
        others = {
            name: read_other(source) if isinstance(source, Path) else as_other(source, name)
            for name, source in capture.items()
            if name not in ("rgb", "depth")
        }
        if "rgb" in capture:
            rgb = _colours(capture["rgb"])
        else:
            first = next(iter(others.values())) if xyz is None else xyz
            rgb = np.zeros((*first.shape[:2], 3), dtype=np.uint8)
        sized = others if xyz is None else others | {"depth": xyz}
        for name, image in sized.items():
            require_same_size(_named(capture[name], name), image.shape[:2], rgb.shape[:2])
        if xyz is not None and self.remove_plane:
            xyz, foreground = _cut_out(xyz, _named(capture["depth"], "depth"))
        return Images(rgb, xyz, foreground, others)

    def points(self, source: Source) -> Float32[np.ndarray, "h w 3"]:
        """Read a point cloud or a depth map as points in metres."""
        if isinstance(source, Path):
            if read_header(source).channels == 3:
                return read_xyz(source, self.cloud_scale)
            if self.eyecandies:
                return eyecandies_points(_eyecandies_depth(source))
            depth = read_depth(source, self.map_scale)
        elif source.ndim == 3 and source.shape[2] == 3:
            return as_points(source, "depth")
        else:
            depth = as_depth(source, "depth", self.map_scale)
        if self.intrinsics is None:
            height, width = depth.shape
            focal = float(max(height, width))
            return back_project(depth, focal, focal, (width - 1) / 2, (height - 1) / 2)
        lens = self.intrinsics
        return back_project(depth, lens.fx, lens.fy, lens.cx, lens.cy)

    def files_beside(self, files: Mapping[str, Path]) -> list[Path]:
        """Return what `read` reads besides the files themselves."""
        if self.eyecandies and "depth" in files:
            return [_eyecandies_info(files["depth"])]
        return []


def _named(source: Source, modality: str) -> Path | str:
    return source if isinstance(source, Path) else f"{modality} array"


def _colours(source: Source) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(source, Path):
        return read_rgb(source)
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
        raise DataError(f"rgb array: needs uint8, h x w x 3, got {source.dtype} {source.shape}")
    return source


def eyecandies_points(depth: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 3"]:
    """Project z in metres to points in the camera's frame.

    Pixels count from 0, the principal point is at half the size, as the data set's authors have it.
    """
    height, width = depth.shape
    focal = EYECANDIES_FOCAL_LENGTH * width / 512
    return back_project(depth, focal, focal, width / 2, height / 2)


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """Read the keys and values that a data set has beside its images; raise DataError where there are none."""
    with naming(path, "YAML"):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    if not isinstance(content, dict):
        raise DataError(f"{path}: needs keys and values, got {type(content).__name__}")
    return content


def _eyecandies_info(depth: Path) -> Path:
    return depth.with_name(re.sub(r"depth\.[^.]+$", "info_depth.yaml", depth.name))


def _eyecandies_depth(path: Path) -> Float32[np.ndarray, "h w"]:
    """Decode 16 bits to metres; 0 and 65535 are the limits in the file beside it, both valid."""
    info = _eyecandies_info(path)
    limits: Any = read_yaml_mapping(info).get("normalization")
    try:
        low, high = float(limits["min"]), float(limits["max"])
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{info}: needs normalization with min and max, got {limits!r}") from error
    if not 0 < low < high < np.inf:
        raise DataError(f"{info}: needs 0 < min < max in metres, got min {low}, max {high}")
    stored = read_array(path)
    if stored.dtype != np.uint16 or stored.ndim != 2:
        raise DataError(f"{path}: needs one channel of 16 bits, got {stored.dtype} {stored.shape}")
    return (low + stored / _LARGEST * (high - low)).astype(np.float32)


def _cut_out(
    xyz: Float32[np.ndarray, "h w 3"], path: Path | str
) -> tuple[Float32[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Remove the background plane with random numbers that follow from the points alone."""
    try:
        return remove_plane(xyz, np.random.default_rng(zlib.crc32(xyz.tobytes())))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
