"""What every data set hands over: samples, an index table of all of them, and the reading of their files.

One `Reader` serves the samples of a data set and files to predict. A depth file is a point cloud (three
floating-point channels, metres as a rule) or a depth map (one channel), which a pinhole camera turns into points.
Eyecandies stores depth maps between two limits that are in a file beside each.
"""

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pandera.pandas as pa
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
        elif self.eyecandies:
            raise DataError(
                "depth array: of Eyecandies it needs the file, whose limits lie beside it, or points in metres"
            )
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


Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One object seen by registered sensors: pixel (i, j) is the same place in all images.

    Attributes
    ----------
    sample_id
        Unique in the data set, e.g. ``"bagel/test/hole/003"``.
    category
        The object class.
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    defect
        ``"good"`` or the type of the defect.
    rgb
        Colour image, 0 to 255.
    xyz
        Organised point cloud in metres (x right, y down, z away from the camera); (0, 0, 0) marks a
        pixel without a measurement. None for data sets without depth.
    mask
        Ground truth: True where the object is defective, False everywhere for a good sample. None for
        a defective sample of which it is not known where the defect is.
    geometric
        Whether the defect changes the surface; None for good samples and where it is not known.
    foreground
        Pixels of the object where they are known exactly, else None.
    others
        Further images by the name of their modality, e.g. ``"infrared"``, as stored: 8 or 16 bits or
        float32, one channel repeated to three.
    """

    sample_id: str
    category: str
    split: Split
    defect: str
    rgb: UInt8[np.ndarray, "h w 3"]
    xyz: Float32[np.ndarray, "h w 3"] | None
    mask: Bool[np.ndarray, "h w"] | None
    geometric: bool | None = None
    foreground: Bool[np.ndarray, "h w"] | None = None
    others: Mapping[str, Shaped[np.ndarray, "h w 3"]] = field(default_factory=dict)

    @property
    def label(self) -> int:
        """0 for a good sample, 1 for a defective one."""
        return int(self.defect != GOOD)


class Dataset(ABC):
    """A set of samples that are described by a table and loaded one at a time.

    Attributes
    ----------
    name
        Short name, as in the configuration.
    categories
        Object classes in the order of the data set.
    modalities
        Names of the registered images: ``("rgb", "depth")``, ``("rgb",)``, ``("rgb", "infrared")``.
    index
        One row a sample, as `build_index` returns it.
    reader
        How its files, and further ones of the same kind, become images.
    notes
        What a user should know of the data: what was left out, what is not known.
    """

    name: str
    categories: tuple[str, ...]
    modalities: tuple[str, ...]
    index: pd.DataFrame
    reader: Reader = Reader()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def load(self, sample_id: str) -> Sample:
        """Return the sample; raise DataError for an unknown id or an unreadable file."""

    @abstractmethod
    def fingerprint(self, sample_id: str) -> str:
        """Return a text that changes whenever the sample may have changed.

        It follows from content and names within the data set, not from where the data set lies.
        """

    def ids(self, split: str | None = None, categories: Iterable[str] | None = None) -> list[str]:
        """Ids of the samples of one split (None: all) and some categories (None: all), in index order."""
        chosen = self.index
        if split is not None:
            chosen = chosen[chosen["split"] == split]
        if categories is not None:
            chosen = chosen[chosen["category"].isin(list(categories))]
        return chosen["sample_id"].tolist()

    def digest(self, split: str, categories: Iterable[str]) -> str:  # noqa: ARG002
        """Return a text for the content of a part of the data, "" where the configuration decides it alone."""
        return ""


INDEX_SCHEMA = pa.DataFrameSchema(
    {
        "sample_id": pa.Column(str, unique=True),
        "category": pa.Column(str),
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
        "defect": pa.Column(str),
        "label": pa.Column("int64", pa.Check.isin((0, 1))),
        "geometric": pa.Column("boolean", nullable=True),
        "masked": pa.Column(bool),  # whether it is known which pixels are defective
        "height": pa.Column("int64", pa.Check.gt(0)),
        "width": pa.Column("int64", pa.Check.gt(0)),
    },
    checks=[
        pa.Check(
            lambda index: (index["label"] == 1) == (index["defect"] != GOOD),
            error="label must be 1 exactly where defect is not 'good'",
        ),
        pa.Check(
            lambda index: (index["split"] == "test") | (index["label"] == 0),
            error="train and validation hold good samples only",
        ),
        pa.Check(
            lambda index: index["geometric"].isna() | (index["label"] == 1),
            error="geometric is a property of a defect and must be missing for good samples",
        ),
        pa.Check(
            lambda index: index["masked"] | (index["label"] == 1),
            error="the mask of a good sample is known: nothing is defective",
        ),
    ],
    strict=True,
    ordered=True,
)


def build_index(rows: Iterable[Mapping[str, Any]], categories: tuple[str, ...]) -> pd.DataFrame:
    """Put the rows into one validated table, sorted and numbered from 0.

    Parameters
    ----------
    rows
        One mapping a sample with the columns of `INDEX_SCHEMA`; ``geometric`` may be None.
    categories
        The categories to keep, in this order.

    Returns
    -------
    DataFrame
        Sorted by category (as given), split (train, validation, test), defect and sample_id.

    Raises
    ------
    DataError
        When a category has no row or the table breaks the schema.
    """
    index = pd.DataFrame(list(rows), columns=list(INDEX_SCHEMA.columns))
    index = index[index["category"].isin(categories)]
    missing = [category for category in categories if category not in set(index["category"])]
    if missing:
        raise DataError(f"no samples found for the categories {', '.join(missing)}")

    ranks = {"category": categories, "split": SPLITS}
    index = index.sort_values(
        ["category", "split", "defect", "sample_id"],
        key=lambda column: (
            column.map({value: rank for rank, value in enumerate(ranks[column.name])})
            if column.name in ranks
            else column
        ),
        ignore_index=True,
    )
    index = index.astype({"geometric": "boolean"})

    try:
        return INDEX_SCHEMA.validate(index)
    except pa.errors.SchemaError as error:
        raise DataError(f"the index of the data set is not valid: {error}") from error
