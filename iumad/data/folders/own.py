"""One's own captures: the index that `iumad data new` writes, read as a data set.

``iumad_dataset.yaml`` holds the depth scale and, where known, the camera's intrinsics;
``iumad_dataset.csv`` one line per sample with its files, relative to the folder of the index.

`iumad data new`: from folders of good and defective captures to an index that `own` reads.

An engineer's export rarely has a benchmark's layout. A mapping says which folder holds what; the
index that is written names every sample's files, so that it can be read, edited and checked.
"""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import pandas as pd
import yaml
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iumad.data.depth import back_project
from iumad.data.files import FileDataset, Scan, cut_out, image_files, relative, require_folder
from iumad.data.images import read_depth, read_header, read_rgb, read_xyz, require_same_size
from iumad.data.sample import GOOD, SPLITS, Sample
from iumad.errors import ConfigError, DataError

SETTINGS_FILE = "iumad_dataset.yaml"
SAMPLES_FILE = "iumad_dataset.csv"
COLUMNS = ("category", "split", "defect", "name", "rgb", "depth", "mask", "geometric")
VERSION = 1
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Model = TypeVar("_Model", bound=BaseModel)
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Intrinsics(_Closed):
    """A pinhole camera without distortion: focal lengths and principal point in pixels."""

    fx: Positive
    fy: Positive
    cx: Finite
    cy: Finite


class Camera(_Closed):
    """How stored depth becomes metres."""

    depth_scale: Positive = Field(0.001, description="metres per stored unit")
    intrinsics: Intrinsics | None = Field(None, description="None: focal length = longer side")


class GoodFolders(_Closed):
    """Folders of aligned captures; files of one capture share their name."""

    rgb: Path | None = None
    depth: Path | None = None

    @model_validator(mode="after")
    def _has_images(self) -> "GoodFolders":
        if self.rgb is None and self.depth is None:
            raise ValueError("needs rgb, depth or both, got neither")
        return self


class DefectFolders(GoodFolders):
    """Captures of one defect type with their masks (non-zero = defective)."""

    mask: Path
    geometric: bool | None = Field(None, description="does the defect change the surface?")


class CategoryFolders(_Closed):
    """One object class."""

    good: GoodFolders
    defects: dict[str, DefectFolders] = Field(default_factory=dict)


class Mapping(Camera):
    """Which folders make up a data set; paths are relative to the data set's root or absolute."""

    validation_share: Share = Field(0.1, description="of the good captures")
    test_share: Share = Field(0.2, description="of the good captures")
    categories: dict[str, CategoryFolders] = Field(min_length=1)

    @model_validator(mode="after")
    def _leaves_training(self) -> "Mapping":
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must be below 1")
        return self


def read_mapping(path: Path) -> Mapping:
    """Read a mapping from a YAML file.

    Raises
    ------
    ConfigError
        The file cannot be read, or a key or value is wrong; the text names it.
    """
    return validated(path, read_settings(path), Mapping)


def read_settings(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file; raise ConfigError where it holds none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: needs keys and values, got {type(content).__name__}")
    return content


def validated(path: Path, content: dict[str, Any], model: type[_Model]) -> _Model:
    """Check settings against a model; raise ConfigError that names file and key."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{path}: {key}: {first['msg']}, got {first['input']!r}") from error


def new_dataset(mapping: Mapping, root: Path) -> Path:
    """Write the index of a new data set into `root` and return the path of its settings file.

    Good captures are dealt out by name in natural order: the first become training, then
    validation, the last test images. Neighbours of a recorded sequence, which are nearly equal,
    so stay in one split but at two seams.

    Raises
    ------
    DataError
        A folder is missing or empty, files do not pair up, or an index exists already.
    """
    require_no_index(root)
    rows: list[dict[str, str]] = []
    for category, folders in mapping.categories.items():
        good = _captures(root, category, GOOD, folders.good)
        splits = _deal_out(len(good), mapping, category)
        rows += [row | {"split": split} for row, split in zip(good, splits, strict=True)]
        for defect, defect_folders in folders.defects.items():
            if defect.casefold() == GOOD:
                raise DataError(f"{root}: category {category!r} has a defect named {defect!r}")
            captures = _captures(root, category, defect, defect_folders)
            rows += [row | {"split": "test"} for row in captures]

    camera = mapping.model_dump(mode="json", include=set(Camera.model_fields))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    samples, settings = root / SAMPLES_FILE, root / SETTINGS_FILE
    try:
        table.to_csv(samples, index=False)
        settings.write_text(yaml.safe_dump({"version": VERSION} | camera, sort_keys=False))
    except BaseException:  # no space, Ctrl-C: leave both files or none
        for path in (samples, settings):
            path.unlink(missing_ok=True)
        raise
    return settings


def require_no_index(root: Path) -> None:
    """Raise DataError unless the root is a folder without an index."""
    for path in (require_folder(root) / SETTINGS_FILE, root / SAMPLES_FILE):
        if path.exists():
            raise DataError(f"{path}: exists already; move it away to write a new index")


def _captures(root: Path, category: str, defect: str, folders: GoodFolders) -> list[dict[str, str]]:
    kinds = {"rgb": folders.rgb, "depth": folders.depth}
    geometric = ""
    if isinstance(folders, DefectFolders):
        kinds["mask"] = folders.mask
        geometric = {True: "yes", False: "no", None: ""}[folders.geometric]
    files = {
        kind: image_files(require_folder(root / folder))
        for kind, folder in kinds.items()
        if folder is not None
    }
    if "mask" in files:
        files["mask"] = {name.removesuffix("_mask"): path for name, path in files["mask"].items()}
    first_kind, first = next(iter(files.items()))
    if not first:
        raise DataError(f"{root / str(kinds[first_kind])}: holds no images")
    for kind, others in files.items():
        unpaired = [*(set(first) - set(others)), *(set(others) - set(first))]
        if unpaired:
            raise DataError(
                f"{root / str(kinds[kind])}: needs one file for each in "
                f"{root / str(kinds[first_kind])}; {sorted(unpaired)[0]!r} is in one of them only"
            )
    return [
        {"category": category, "defect": defect, "name": name, "geometric": geometric}
        | {kind: relative(root, others[name]) for kind, others in files.items()}
        for name in first
    ]


def _deal_out(count: int, mapping: Mapping, category: str) -> list[str]:
    n_test = round(count * mapping.test_share)
    n_validation = round(count * mapping.validation_share)
    n_train = count - n_test - n_validation
    if n_train < 1:
        raise DataError(f"category {category!r}: {count} good captures leave none for training")
    return ["train"] * n_train + ["validation"] * n_validation + ["test"] * n_test


_GEOMETRIC = {"yes": True, "no": False, "": None}


class OwnDataset(FileDataset):
    """The data set that an index file describes.

    Colour images, depth, or both, the same for every sample. Depth files hold either z (one
    channel, 0 or NaN where nothing was measured) or an organised point cloud (three floating-point
    channels). Without intrinsics the focal length is taken as the longer side in pixels, so that z
    is exact and x and y are approximate. Without colour images, `Sample.rgb` is black.

    Parameters
    ----------
    root
        The folder of the index.
    categories
        Selection and order; None for all in the order of the index.
    remove_plane
        Set the background plane of every point cloud to invalid and return the foreground.
    problems
        As for `FileDataset`.

    Raises
    ------
    ConfigError
        The settings file is missing or wrong.
    DataError
        The table is wrong, or a file is missing, of another size or of an unreadable header.
    """

    name = "folder"

    def __init__(
        self,
        root: Path,
        categories: tuple[str, ...] | None = None,
        remove_plane: bool = False,
        problems: list[str] | None = None,
    ) -> None:
        self.camera = read_camera(root)
        scan = scan_own(root, categories)
        options = f"plane={remove_plane}|{self.camera!r}"
        super().__init__(root, scan, categories, options, problems)
        present = [kind for kind in ("rgb", "xyz") if (self.index[kind] != "").any()]
        self.modalities = tuple({"rgb": "rgb", "xyz": "depth"}[kind] for kind in present)
        if remove_plane and "depth" not in self.modalities:
            raise ConfigError(f"remove_plane needs depth, and {root} has none")
        self._remove_plane = remove_plane

    def load(self, sample_id: str) -> Sample:
        """Read and check one sample.

        Raises
        ------
        DataError
            The id is unknown, or a file is damaged or does not fit the others.
        """
        row = self.row(sample_id)
        size = (row["height"], row["width"])
        rgb_path, depth_path = (self.path(sample_id, kind) for kind in ("rgb", "xyz"))
        rgb = np.zeros((*size, 3), dtype=np.uint8) if rgb_path is None else read_rgb(rgb_path)
        if depth_path is None:
            return self.sample(sample_id, rgb, None)
        xyz = read_points(depth_path, self.camera)
        require_same_size(depth_path, xyz.shape[:2], rgb.shape[:2])
        if not self._remove_plane:
            return self.sample(sample_id, rgb, xyz)
        return self.sample(sample_id, rgb, *cut_out(xyz, sample_id))


def read_points(path: Path, camera: Camera) -> Float32[np.ndarray, "h w 3"]:
    """Read a depth map or a point cloud as points in metres.

    Raises
    ------
    DataError
        The file is neither, or is damaged.
    """
    if read_header(path).channels == 3:
        return read_xyz(path, camera.depth_scale)
    return project(read_depth(path, camera.depth_scale), camera)


def project(depth: Float32[np.ndarray, "h w"], camera: Camera) -> Float32[np.ndarray, "h w 3"]:
    """A depth map in metres as points; without intrinsics the focal length is the longer side."""
    height, width = depth.shape
    if camera.intrinsics is None:
        focal = float(max(height, width))
        return back_project(depth, focal, focal, (width - 1) / 2, (height - 1) / 2)
    lens = camera.intrinsics
    return back_project(depth, lens.fx, lens.fy, lens.cx, lens.cy)


def read_camera(root: Path) -> Camera:
    """Read the settings file of a data set's root.

    Raises
    ------
    DataError
        The root is no folder.
    ConfigError
        The file is missing, a key is wrong, or it was written by another version.
    """
    path = require_folder(root) / SETTINGS_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: is missing; `iumad data new` writes it")
    settings = read_settings(path)
    version = settings.pop("version", None)
    if version != VERSION:
        raise ConfigError(f"{path}: version: needs {VERSION}, got {version!r}")
    return validated(path, settings, Camera)


def scan_own(root: Path, categories: tuple[str, ...] | None = None) -> Scan:
    """Check every line of the table by the headers of its files; collect every problem."""
    scan = Scan(root)
    with scan.collecting():
        table = _read_table(root / SAMPLES_FILE)
        found = tuple(dict.fromkeys(table["category"]))
        for missing in set(categories or ()) - set(found):
            scan.problems.append(f"{root}: no category {missing!r}, only {', '.join(found)}")
        kinds = [kind for kind in ("rgb", "depth") if (table[kind] != "").any()]
        chosen = table[table["category"].isin(categories)] if categories else table
        for number, line in chosen.iterrows():
            with scan.collecting():
                _add_line(scan, f"{root / SAMPLES_FILE}, line {number + 2}", dict(line), kinds)
        for category in (name for name in found if categories is None or name in categories):
            lines = table[table["category"] == category]
            if not (lines["split"] == "train").any():
                scan.problems.append(f"{root}: category {category!r} has no good training images")
    return scan


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:  # the parser's errors are ValueErrors
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if tuple(table.columns) != COLUMNS:
        raise DataError(
            f"{path}: needs the columns {', '.join(COLUMNS)}, got {', '.join(table.columns)}"
        )
    if table.empty:
        raise DataError(f"{path}: holds no samples")
    return table


def _add_line(scan: Scan, where: str, line: dict[str, Any], kinds: list[str]) -> None:
    missing = [kind for kind in ("category", "name", *kinds) if not line[kind]]
    if missing:
        raise DataError(f"{where}: needs {missing[0]}, which is empty")
    if line["split"] not in SPLITS:
        raise DataError(f"{where}: split needs one of {', '.join(SPLITS)}, got {line['split']!r}")
    if line["geometric"] not in _GEOMETRIC:
        raise DataError(f"{where}: geometric needs yes, no or nothing, got {line['geometric']!r}")
    if line["defect"] != GOOD and line["split"] != "test":
        raise DataError(f"{where}: {line['split']} may hold good samples only")
    if line["defect"] != GOOD and not line["mask"]:
        raise DataError(f"{where}: {line['defect']!r} is a defect without a mask")
    paths = {kind: scan.root / line[kind] if line[kind] else None for kind in (*kinds, "mask")}
    for path in paths.values():
        if path is not None and not path.is_file():
            raise DataError(f"{path}: is missing ({where})")
    scan.add(
        category=line["category"],
        split=line["split"],
        defect=line["defect"],
        stem=line["name"],
        geometric=_GEOMETRIC[line["geometric"]] if line["defect"] != GOOD else None,
        rgb=paths.get("rgb"),
        xyz=paths.get("depth"),
        mask=paths["mask"],
    )
