"""`iumad data new`: from folders of good and defective captures to an index that `own` reads.

An engineer's export rarely has a benchmark's layout. A mapping says which folder holds what; the
index that is written names every sample's files, so that it can be read, edited and checked.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import yaml
from pydantic import Field, model_validator

from iumad.config.files import read_yaml
from iumad.config.sections import MODALITY_NAME, Section
from iumad.config.validation import build
from iumad.data.files import image_files, relative, require_folder, require_plain_name
from iumad.data.folders.foreign import ForeignLayout
from iumad.data.folders.own import (
    COLUMNS,
    GEOMETRIC,
    SAMPLES_FILE,
    SETTINGS_FILE,
    VERSION,
    Camera,
)
from iumad.data.sample import GOOD
from iumad.errors import DataError

Share = Annotated[float, Field(ge=0, lt=1)]


class GoodFolders(Section):
    """Folders of registered captures; files of one capture share their name."""

    rgb: Path | None = None
    depth: Path | None = None
    others: dict[str, Path] = Field(
        {}, description="further registered images by the name of their modality, e.g. infrared"
    )

    @property
    def images(self) -> dict[str, Path]:
        """Modality -> folder."""
        usual = {"rgb": self.rgb, "depth": self.depth}
        return {name: path for name, path in usual.items() if path is not None} | self.others

    @model_validator(mode="after")
    def _has_images(self) -> "GoodFolders":
        if not self.images:
            raise ValueError("needs rgb, depth or others, got none of them")
        for name in self.others:
            if not MODALITY_NAME.fullmatch(name) or name in (*COLUMNS, "xyz", "gt"):
                raise ValueError(
                    f"others: a modality needs a name of lower-case letters, digits and _ that is not taken, "
                    f"got {name!r}"
                )
        return self


class DefectFolders(GoodFolders):
    """Captures of one defect type with their masks (non-zero = defective), if there are any."""

    mask: Path | None = Field(None, description="without it they count in image scores only")
    geometric: bool | None = Field(None, description="does the defect change the surface?")


class CategoryFolders(Section):
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
    return build(Mapping, read_yaml(path), str(path))


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
        require_plain_name(category, "category", root)
        good = _captures(root, category, GOOD, folders.good)
        splits = _deal_out(len(good), mapping, category)
        rows += [row | {"split": split} for row, split in zip(good, splits, strict=True)]
        for defect, defect_folders in folders.defects.items():
            require_plain_name(defect, "defect", root)
            if defect.casefold() == GOOD:
                raise DataError(f"{root}: category {category!r} has a defect named {defect!r}")
            captures = _captures(root, category, defect, defect_folders)
            rows += [row | {"split": "test"} for row in captures]
    camera = Camera(depth_scale=mapping.depth_scale, intrinsics=mapping.intrinsics)
    return write_index(root, rows, camera)


def new_from_foreign(layout: ForeignLayout, source: Path, root: Path) -> Path:
    """Write the index of a data set in a layout of its own; return the path of its settings file."""
    return write_index(root, layout.rows(source, root), Camera())


def write_index(root: Path, rows: list[dict[str, str]], camera: Camera) -> Path:
    """Write both files of an index, or none of them; return the path of the settings.

    Parameters
    ----------
    rows
        One mapping a sample with the columns of the table, files relative to the root; what is not given is "".
    """
    require_no_index(root)
    others = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    columns = [*COLUMNS, *others]
    table = pd.DataFrame([{name: row.get(name, "") for name in columns} for row in rows])
    samples, settings = root / SAMPLES_FILE, root / SETTINGS_FILE
    content = {"version": VERSION} | camera.model_dump(mode="json")
    try:
        table.to_csv(samples, index=False, lineterminator="\n")
        settings.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
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
    kinds, geometric = dict(folders.images), ""
    if isinstance(folders, DefectFolders):
        geometric = {value: text for text, value in GEOMETRIC.items()}[folders.geometric]
        if folders.mask is not None:
            kinds["mask"] = folders.mask
    files = {kind: image_files(require_folder(root / folder)) for kind, folder in kinds.items()}
    if "mask" in files:
        files["mask"] = {name.removesuffix("_mask"): path for name, path in files["mask"].items()}
    first_kind, first = next(iter(files.items()))
    if not first:
        raise DataError(f"{root / kinds[first_kind]}: holds no images")
    for kind, others in files.items():
        unpaired = [*(set(first) - set(others)), *(set(others) - set(first))]
        if unpaired:
            raise DataError(
                f"{root / kinds[kind]}: needs one file for each in {root / kinds[first_kind]}; "
                f"{sorted(unpaired)[0]!r} is in one of them only"
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
