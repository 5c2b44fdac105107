"""One's own captures: the index that `iumad data new` writes, read as a data set.

``iumad_dataset.yaml`` holds the depth scale and, where known, the camera's intrinsics;
``iumad_dataset.csv`` one line per sample with its files, relative to the folder of the index. A column after the
known ones is a further registered image, such as ``infrared``; its name is that of the modality.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from iumad.config.files import read_yaml
from iumad.config.sections import MODALITY_NAME, Section
from iumad.config.validation import build
from iumad.data.files import FileDataset, Scan, require_folder, require_plain_name
from iumad.data.reader import Intrinsics, Positive, Reader
from iumad.data.sample import GOOD, SPLITS
from iumad.errors import ConfigError, DataError
from iumad.machine import read_table

SETTINGS_FILE = "iumad_dataset.yaml"
SAMPLES_FILE = "iumad_dataset.csv"
COLUMNS = ("category", "split", "defect", "name", "rgb", "depth", "mask", "geometric")
VERSION = 1

GEOMETRIC = {"yes": True, "no": False, "": None}


class Camera(Section):
    """How stored depth becomes metres."""

    depth_scale: Positive = Field(0.001, description="metres per stored unit")
    intrinsics: Intrinsics | None = Field(None, description="None: focal length = longer side")


class OwnDataset(FileDataset):
    """The data set that an index file describes.

    Colour images, depth, further images, or several of them, the same for every sample. Depth files hold either z
    (one channel, 0 or NaN where nothing was measured) or an organised point cloud (three floating-point
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
        camera = read_camera(root)
        reader = Reader(
            cloud_scale=camera.depth_scale,
            map_scale=camera.depth_scale,
            intrinsics=camera.intrinsics,
            remove_plane=remove_plane,
        )
        super().__init__(scan_own(root, categories), categories, reader, problems)
        if remove_plane and "depth" not in self.modalities:
            raise ConfigError(f"remove_plane needs depth, and {root} has none")


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
    settings = read_yaml(path)
    version = settings.pop("version", None)
    if version != VERSION:
        raise ConfigError(f"{path}: version: needs {VERSION}, got {version!r}")
    return build(Camera, settings, str(path))


def scan_own(root: Path, categories: tuple[str, ...] | None = None) -> Scan:
    """Check every line of the table by the headers of its files; collect every problem."""
    scan = Scan(root)
    with scan.collecting():
        table = _read_index(root / SAMPLES_FILE)
        found = tuple(dict.fromkeys(table["category"]))
        for missing in set(categories or ()) - set(found):
            scan.problems.append(f"{root}: no category {missing!r}, only {', '.join(found)}")
        files = [name for name in table.columns if name not in COLUMNS or name in ("rgb", "depth")]
        kinds = [kind for kind in files if (table[kind] != "").any()]
        chosen = table[table["category"].isin(categories)] if categories else table
        without = _without_masks(scan, chosen)
        for number, line in chosen.iterrows():
            with scan.collecting():
                where = f"{root / SAMPLES_FILE}, line {number + 2}"
                _add_line(scan, where, dict(line), kinds, without)
        for category in dict.fromkeys(chosen["category"]):
            lines = chosen[chosen["category"] == category]
            if not (lines["split"] == "train").any():
                scan.problems.append(f"{root}: category {category!r} has no good training images")
        _refuse_twins(scan, dict.fromkeys(chosen["category"]))
    return scan


def _read_index(path: Path) -> pd.DataFrame:
    table = read_table(path)
    if tuple(table.columns[: len(COLUMNS)]) != COLUMNS:
        raise DataError(
            f"{path}: needs the columns {', '.join(COLUMNS)}, got {', '.join(table.columns)}"
        )
    for name in table.columns[len(COLUMNS) :]:
        if not MODALITY_NAME.fullmatch(name):
            raise DataError(
                f"{path}: a further column is a modality; its name needs lower-case letters, digits "
                f"and _, got {name!r}"
            )
    if table.empty:
        raise DataError(f"{path}: holds no samples")
    return table


def _without_masks(scan: Scan, table: pd.DataFrame) -> set[tuple[str, str]]:
    """The kinds of defect, (category, defect), of which no sample has a mask."""
    defects = table[table["defect"] != GOOD]
    without = set()
    for (category, defect), lines in defects.groupby(["category", "defect"], sort=False):
        if (lines["mask"] == "").all():
            without.add((category, defect))
            scan.notes.append(
                f"{scan.root}: {category}, {defect}: {len(lines)} defects without masks; they count in image "
                "scores, not in pixel scores"
            )
    return without


def _refuse_twins(scan: Scan, categories: dict[str, None]) -> None:
    seen: dict[str, str] = {}
    for name in categories:
        twin = seen.setdefault(name.casefold(), name)
        if twin != name:
            scan.problems.append(
                f"{scan.root / SAMPLES_FILE}: categories {twin!r} and {name!r} differ in case only"
            )


def _add_line(
    scan: Scan,
    where: str,
    line: dict[str, Any],
    kinds: list[str],
    without: set[tuple[str, str]],
) -> None:
    missing = [kind for kind in ("category", "name", *kinds) if not line[kind]]
    if missing:
        raise DataError(f"{where}: needs {missing[0]}, which is empty")
    for column in ("category", "defect", "name"):
        require_plain_name(line[column], column, where)
    if line["split"] not in SPLITS:
        raise DataError(f"{where}: split needs one of {', '.join(SPLITS)}, got {line['split']!r}")
    if line["geometric"] not in GEOMETRIC:
        raise DataError(f"{where}: geometric needs yes, no or nothing, got {line['geometric']!r}")
    defect = (line["category"], line["defect"])
    if line["defect"] != GOOD and line["split"] != "test":
        raise DataError(f"{where}: {line['split']} may hold good samples only")
    if line["defect"] != GOOD and not line["mask"] and defect not in without:
        raise DataError(
            f"{where}: {line['defect']!r} is a defect without a mask, others of it have one"
        )
    files = {kind: scan.root / line[kind] for kind in (*kinds, "mask") if line[kind]}
    for path in files.values():
        if not path.is_file():
            raise DataError(f"{path}: is missing ({where})")
    geometric = GEOMETRIC[line["geometric"]] if line["defect"] != GOOD else None
    scan.add(line["category"], line["split"], line["defect"], line["name"], files, geometric)
