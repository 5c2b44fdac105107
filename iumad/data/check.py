"""`iumad data check`: every file of a data set is read, every problem is listed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iumad.data.depth import valid_mask
from iumad.data.files import find_folder, require_folder, subfolders
from iumad.data.folders.eyecandies import SPLIT_FOLDERS, Eyecandies
from iumad.data.folders.mvtec import MVTec, MVTec3D
from iumad.data.folders.own import SETTINGS_FILE, OwnDataset
from iumad.data.published import compare_with_published
from iumad.data.sample import Dataset
from iumad.errors import DataError, IumadError

_LAYOUTS: dict[str, Callable[..., Dataset]] = {
    "mvtec3d": MVTec3D,
    "mvtec": MVTec,
    "eyecandies": Eyecandies,
    "folder": OwnDataset,
}


@dataclass(frozen=True)
class CheckReport:
    """What `check_dataset` found.

    Attributes
    ----------
    layout
        ``"mvtec3d"``, ``"mvtec"``, ``"eyecandies"``, ``"folder"`` or the data set's name.
    table
        One row a category: samples of each split, defect types with their counts, image sizes,
        the least share of valid depth pixels in a sample (0 to 1, NaN without depth), and how many
        samples could not be read.
    errors
        Problems that make a sample or the whole data set unusable; each text names the file.
    warnings
        What is unusual but usable: an empty mask of a defect, a category without defects.
    differences
        Where the counts differ from the published ones, as `compare_with_published` has it; None
        where no published data set is meant.
    """

    layout: str
    table: pd.DataFrame
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    differences: pd.DataFrame | None

    @property
    def ok(self) -> bool:
        """Whether the data set can be used as it is."""
        return not self.errors


def detect_layout(root: Path) -> str:
    """Recognise the layout of a folder by the first category that shows it.

    Raises
    ------
    DataError
        The folder is none of the known layouts.
    """
    if (require_folder(root) / SETTINGS_FILE).is_file():
        return "folder"
    for category in subfolders(root).values():
        splits = {split: find_folder(category, split) for split in ("train", "test")}
        found = [folder for folder in splits.values() if folder is not None]
        if any(find_folder(folder, "data") for folder in found) or find_folder(
            category, SPLIT_FOLDERS["test"]
        ):
            return "eyecandies"
        defects = [defect for folder in found for defect in subfolders(folder).values()]
        if any(find_folder(defect, kind) for defect in defects for kind in ("rgb", "xyz")):
            return "mvtec3d"
        if defects:
            return "mvtec"
    raise DataError(
        f"{root}: no known layout; needs <category>/train/good/rgb (MVTec 3D-AD), "
        f"<category>/train/good (MVTec AD), <category>/train/data (Eyecandies) or {SETTINGS_FILE}"
    )


def check_dataset(
    source: Path | Dataset, track: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> CheckReport:
    """Read every sample of a data set and report what is wrong.

    Parameters
    ----------
    source
        The root of a data set in any known layout, or an open data set.
    track
        Wraps the sample ids, to show progress.

    Raises
    ------
    DataError
        The folder does not exist or is in no known layout.
    """
    errors: list[str] = []
    dataset = open_folder(source, errors) if isinstance(source, Path) else source
    warnings: list[str] = []
    valid_depth: list[float] = []
    unreadable: list[bool] = []
    for sample_id in track(list(dataset.index["sample_id"])):
        valid_depth.append(np.nan)
        unreadable.append(False)
        try:
            sample = dataset.load(sample_id)
        except IumadError as error:
            errors.append(str(error))
            unreadable[-1] = True
            continue
        if sample.xyz is not None:
            valid_depth[-1] = float(valid_mask(sample.xyz).mean())
        if sample.label and not sample.mask.any():
            warnings.append(f"{sample_id}: is a defect, but its mask is empty")

    found = dataset.index.assign(valid_depth=valid_depth, unreadable=unreadable)
    table = pd.DataFrame(
        _category_row(category, found[found["category"] == category])
        for category in dataset.categories
    )
    for kind in ("test_good", "test_defect"):
        lacking = table.loc[table[kind] == 0, "category"]
        warnings += [f"{name}: has no {kind.replace('_', ' ')} images" for name in lacking]
    return CheckReport(
        layout=dataset.name,
        table=table,
        errors=tuple(errors),
        warnings=tuple(warnings),
        differences=compare_with_published(dataset.index, dataset.name),
    )


def open_folder(root: Path, problems: list[str] | None = None) -> Dataset:
    """Open a folder in whichever of the four layouts it is in.

    Parameters
    ----------
    root
        The folder.
    problems
        As for `FileDataset`.

    Raises
    ------
    DataError
        The folder is in no known layout or has no usable sample; without `problems`, any problem.
    """
    layout = detect_layout(root)
    try:
        return _LAYOUTS[layout](root, problems=problems)
    except DataError as error:
        if problems:  # nothing usable is left: say why
            raise DataError("; ".join(problems[:3])) from error
        raise


def _category_row(category: str, rows: pd.DataFrame) -> dict[str, Any]:
    split, label = rows["split"], rows["label"]
    defects = rows.loc[label == 1, "defect"].value_counts(sort=False)
    sizes = sorted(set(zip(rows["height"], rows["width"], strict=True)))
    return {
        "category": category,
        "train": int((split == "train").sum()),
        "validation": int((split == "validation").sum()),
        "test_good": int(((split == "test") & (label == 0)).sum()),
        "test_defect": int((label == 1).sum()),
        "defects": ", ".join(f"{defect} {count}" for defect, count in defects.items()),
        "size": ", ".join(f"{height} x {width}" for height, width in sizes),
        "valid_depth": rows["valid_depth"].min(),
        "unreadable": int(rows["unreadable"].sum()),
    }
