"""`iumad data new`: from folders of good and defective captures to an index that `own` reads.

An engineer's export rarely has a benchmark's layout. A mapping says which folder holds what; the
index that is written names every sample's files, so that it can be read, edited and checked.
"""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iumad.data.files import relative
from iumad.data.sample import GOOD
from iumad.data.tree import image_files, require_folder
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
