"""What can be known to be wrong with data before anything is trained: `iumad data check` and `iumad run` share it.

`data_problems` reads no image but what it can remember from an earlier time (`iumad.data.memo`); `check_dataset`
reads every file.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iumad.data.depth import robust_range, valid_mask
from iumad.data.files import FileDataset, find_folder, require_folder, subfolders
from iumad.data.folders.eyecandies import SPLIT_FOLDERS, Eyecandies
from iumad.data.folders.foreign import foreign_layout
from iumad.data.folders.mvtec import MVTec, MVTec3D
from iumad.data.folders.own import SETTINGS_FILE, OwnDataset
from iumad.data.memo import file_digests, keep, recall
from iumad.data.prepare import joint_range
from iumad.data.published import compare_with_published
from iumad.data.sample import Dataset
from iumad.errors import DataError, IumadError

_LAYOUTS: dict[str, Callable[..., FileDataset]] = {
    "mvtec3d": MVTec3D,
    "mvtec": MVTec,
    "eyecandies": Eyecandies,
    "folder": OwnDataset,
}
LAYOUTS = {
    "mvtec3d": "MVTec 3D-AD, a folder for each sensor (data.name: mvtec3d)",
    "mvtec": "MVTec AD, colour only; MPDD and the converted VisA have it too (data.name: mvtec)",
    "eyecandies": "Eyecandies (data.name: eyecandies)",
    "folder": "an index of iumad data new (data.name: folder)",
}
OTHER_UNIT = (
    20.0  # median depths this many times apart are of different units, not of different objects
)
HIDDEN = 2.0  # all images together span this many times what one does: then "sample" hides depth
ASPECT = (
    1.05  # width over height of images of a category: a larger ratio of the two extremes is said
)


@dataclass(frozen=True)
class CheckReport:
    """What `check_dataset` found.

    Attributes
    ----------
    layout
        ``"mvtec3d"``, ``"mvtec"``, ``"eyecandies"``, ``"folder"`` or the data set's name.
    modalities
        Names of the registered images.
    table
        One row a category: samples of each split, defect types with their counts, image sizes,
        the least share of valid depth pixels in a sample (0 to 1, NaN without depth), and how many
        samples could not be read.
    depth_range
        Of z in metres over all training images, None without depth.
    errors
        Problems that make a sample or the whole data set unusable; each text names the file.
    warnings
        What is unusual but usable: an empty mask of a defect, a category without defects.
    differences
        Where the counts differ from the published ones, as `compare_with_published` has it; None
        where no published data set is meant.
    """

    layout: str
    modalities: tuple[str, ...]
    table: pd.DataFrame
    depth_range: tuple[float, float] | None
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
        The folder is none of the layouts that can be read; where it is a known one, the text says what to do.
    """
    if (require_folder(root) / SETTINGS_FILE).is_file():
        return "folder"
    foreign = foreign_layout(root)
    if foreign is not None:
        raise DataError(f"{root}: {foreign.advice(root)}")
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
        f"<category>/train/good (MVTec AD), <category>/train/data (Eyecandies) or {SETTINGS_FILE}, "
        "which `iumad data new` writes"
    )


def open_folder(root: Path, problems: list[str] | None = None) -> FileDataset:
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


def data_problems(
    dataset: Dataset, categories: Iterable[str] | None = None
) -> tuple[list[str], list[str]]:
    """Errors and warnings that show without looking at pictures.

    A file's content and the range of a sample's depth are worked out once and remembered.

    Parameters
    ----------
    dataset
        Any data set; one that is drawn has no problem.
    categories
        Which; default: all.

    Returns
    -------
    errors, warnings
    """
    index = dataset.index
    if categories is not None:
        index = index[index["category"].isin(list(categories))]
    errors, warnings = _wrong_counts(index)
    warnings += [*dataset.notes, *_odd_sizes(index)]
    if isinstance(dataset, FileDataset):
        repeated = _repeated_images(index, _contents(dataset, index["sample_id"]))
        errors, warnings = errors + repeated[0], warnings + repeated[1]
        if "depth" in dataset.modalities:
            errors += _other_units(depth_ranges(dataset, index["sample_id"]))
    return errors, warnings


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
    ranges: dict[str, tuple[float, float]] = {}
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
            valid = valid_mask(sample.xyz)
            valid_depth[-1] = float(valid.mean())
            ranges[sample_id] = robust_range(sample.xyz[..., 2][valid])
        if sample.label and sample.mask is not None and not sample.mask.any():
            warnings.append(f"{sample_id}: is a defect, but its mask is empty")

    found = dataset.index.assign(valid_depth=valid_depth, unreadable=unreadable)
    readable = dataset.index[~found["unreadable"].to_numpy()]
    more_errors, more_warnings = _wrong_counts(dataset.index)
    if isinstance(dataset, FileDataset):
        repeated = _repeated_images(readable, _contents(dataset, readable["sample_id"]))
        more_errors, more_warnings = more_errors + repeated[0], more_warnings + repeated[1]
    train = [ranges[i] for i in dataset.ids("train") if i in ranges]
    return CheckReport(
        layout=dataset.name,
        modalities=dataset.modalities,
        table=pd.DataFrame(
            _category_row(category, found[found["category"] == category])
            for category in dataset.categories
        ),
        depth_range=joint_range(train) if train else None,
        errors=(*errors, *more_errors, *_other_units(ranges)),
        warnings=(
            *dataset.notes,
            *warnings,
            *more_warnings,
            *_odd_sizes(dataset.index),
            *_hidden_depth(train),
        ),
        differences=compare_with_published(dataset.index, dataset.name),
    )


def depth_ranges(dataset: FileDataset, sample_ids: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Robust range of z in metres of each sample, remembered by the sample's content.

    Raises
    ------
    DataError
        A file is damaged.
    """
    keys = {each: f"z {dataset.fingerprint(each)}" for each in sample_ids}
    known = recall(keys.values())
    made: dict[str, list[float]] = {}
    try:
        for sample_id, key in keys.items():
            if key not in known:
                xyz = dataset.load(sample_id).xyz
                if xyz is not None:
                    made[key] = list(robust_range(xyz[..., 2][valid_mask(xyz)]))
    finally:  # what was read before an error or Ctrl-C is not read again
        keep(made)
    known |= made
    return {each: (known[key][0], known[key][1]) for each, key in keys.items() if key in known}


def _contents(dataset: FileDataset, sample_ids: Iterable[str]) -> dict[str, str]:
    """Hash of the content of each sample's first image."""
    first = {each: dataset.files(each)[dataset.modalities[0]] for each in sample_ids}
    digests = file_digests(first.values())
    return {each: digests[path] for each, path in first.items()}


def _wrong_counts(index: pd.DataFrame) -> tuple[list[str], list[str]]:
    errors, warnings = [], []
    for category, rows in index.groupby("category", sort=False):
        test = rows[rows["split"] == "test"]
        if not (rows["split"] == "train").any():
            errors.append(f"{category}: has no training images")
        if test.empty:
            errors.append(f"{category}: has no test images, so nothing could be measured")
            continue
        for name, label in (("good", 0), ("defective", 1)):
            if not (test["label"] == label).any():
                warnings.append(f"{category}: has no {name} test images, so AUROC is undefined")
    return errors, warnings


def _repeated_images(
    index: pd.DataFrame, contents: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """One image in two splits, or good and defective at once, is an error; twice in one place a warning."""
    errors, warnings = [], []
    same: dict[tuple[str, str], list[Any]] = {}
    for row in index.itertuples():
        same.setdefault((row.category, contents[row.sample_id]), []).append(row)
    for rows in (rows for rows in same.values() if len(rows) > 1):
        names = f"{rows[0].sample_id} and {rows[1].sample_id}"
        names += f" (and {len(rows) - 2} more)" if len(rows) > 2 else ""
        if len({row.label for row in rows}) > 1:
            errors.append(f"{names}: one image, good in one place and defective in the other")
        elif len({row.split for row in rows}) > 1:
            errors.append(
                f"{names}: one image in two splits; what is tested must not be trained on"
            )
        else:
            warnings.append(f"{names}: one image, twice")
    return errors, warnings


def _odd_sizes(index: pd.DataFrame) -> list[str]:
    shape = (index["width"] / index["height"]).groupby(index["category"], sort=False)
    spread = shape.max() / shape.min()
    return [
        f"{category}: images differ in shape (width over height {shape.min()[category]:.2f} to "
        f"{shape.max()[category]:.2f}); brought to one size, they are stretched differently"
        for category in spread.index[spread > ASPECT]
    ]


def _other_units(ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """Depth in millimetres among depth in metres."""
    if not ranges:
        return []
    middles = {each: (low + high) / 2 for each, (low, high) in ranges.items()}
    usual = float(np.median(list(middles.values())))
    return [
        f"{each}: its depth of about {z:.4g} m is far from the usual {usual:.4g} m; is it in another unit?"
        for each, z in middles.items()
        if usual > 0 and not usual / OTHER_UNIT < z < usual * OTHER_UNIT
    ]


def _hidden_depth(ranges: list[tuple[float, float]]) -> list[str]:
    """What `depth_scaling: sample` would do to these images."""
    if len(ranges) < 2:
        return []
    lows, highs = (np.array(limits) for limits in zip(*ranges, strict=True))
    within = float(np.median(highs - lows))
    whole = float(highs.max() - lows.min())
    if whole < HIDDEN * within:
        return []
    return [
        f"depth: an image spans {1000 * within:.3g} mm of the {1000 * whole:.3g} mm of all training images; "
        "data.depth_scaling: sample would stretch each to the same range and hide the difference"
    ]


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
