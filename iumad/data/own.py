"""One's own captures: the index that `iumad data new` writes, read as a data set.

``iumad_dataset.yaml`` holds the depth scale and, where known, the camera's intrinsics;
``iumad_dataset.csv`` one line per sample with its files, relative to the folder of the index.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32

from iumad.data.decode import read_header
from iumad.data.depth import back_project
from iumad.data.files import FileDataset, Scan, cut_out
from iumad.data.images import read_depth, read_rgb, read_xyz, require_same_size
from iumad.data.mapping import (
    COLUMNS,
    SAMPLES_FILE,
    SETTINGS_FILE,
    VERSION,
    Camera,
    read_settings,
    validated,
)
from iumad.data.sample import GOOD, SPLITS, Sample
from iumad.data.tree import require_folder
from iumad.errors import ConfigError, DataError

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
    depth = read_depth(path, camera.depth_scale)
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
