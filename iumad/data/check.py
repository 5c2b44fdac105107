"""What can be known of data before anything is trained: problems, and one look at what they hold.

`data_problems` reads no image but what it can remember from an earlier time (`iumad.data.files`) and serves
`iumad run`; `check_dataset` reads every file. A contact sheet shows a data set, and what perturbations do to it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from iumad.data.depth import encode_depth, robust_range, scale_depth, scaled, valid_mask
from iumad.data.files import (
    FileDataset,
    file_digests,
    find_folder,
    keep,
    recall,
    require_folder,
    subfolders,
)
from iumad.data.own import SETTINGS_FILE, OwnDataset, foreign_layout
from iumad.data.perturb import redundant, spurious, with_foreground
from iumad.data.prepare import joint_range
from iumad.data.public import SPLIT_FOLDERS, Eyecandies, MVTec, MVTec3D, compare_with_published
from iumad.data.sample import GOOD, Dataset, Sample
from iumad.errors import DataError, IumadError

LAYOUTS: dict[str, tuple[Callable[..., FileDataset], str]] = {
    "mvtec3d": (MVTec3D, "MVTec 3D-AD, a folder for each sensor"),
    "mvtec": (MVTec, "MVTec AD, colour only; MPDD and the converted VisA have it too"),
    "eyecandies": (Eyecandies, "Eyecandies"),
    "folder": (OwnDataset, "an index of iumad data new"),
}
"""data.name -> the class that reads such a folder, and what it is called."""
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
        return LAYOUTS[layout][0](root, problems=problems)
    except DataError as error:
        if problems:  # nothing usable is left: say why
            raise DataError("; ".join(problems[:3])) from error
        raise


def data_problems(dataset: Dataset) -> tuple[list[str], list[str]]:
    """Errors and warnings that show without looking at pictures; a data set that is drawn has none.

    A file's content and the range of a sample's depth are worked out once and remembered.
    """
    index = dataset.index
    errors, warnings, untested = _wrong_counts(index)
    errors += untested
    warnings += [*dataset.notes, *_odd_sizes(index)]
    if isinstance(dataset, FileDataset):
        repeated = _repeated_images(index, _contents(dataset, index["sample_id"]))
        errors, warnings = errors + repeated[0], warnings + repeated[1]
        if "depth" in dataset.modalities:
            errors += _other_units(depth_ranges(dataset, index["sample_id"]), dataset)
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
    more_errors, more_warnings, untested = _wrong_counts(dataset.index)
    more_warnings += untested  # `iumad fit` needs none
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
        errors=(*errors, *more_errors, *_other_units(ranges, dataset)),
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


def _wrong_counts(index: pd.DataFrame) -> tuple[list[str], list[str], list[str]]:
    """Errors, warnings, and the categories without test images, which a study cannot use."""
    errors, warnings, untested = [], [], []
    for category, rows in index.groupby("category", sort=False):
        test = rows[rows["split"] == "test"]
        if not (rows["split"] == "train").any():
            errors.append(f"{category}: has no training images")
        if test.empty:
            untested.append(f"{category}: has no test images, so nothing could be measured")
            continue
        for name, label in (("good", 0), ("defective", 1)):
            if not (test["label"] == label).any():
                warnings.append(f"{category}: has no {name} test images, so AUROC is undefined")
    return errors, warnings, untested


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


def _other_units(ranges: Mapping[str, tuple[float, float]], dataset: Dataset) -> list[str]:
    """Depth in millimetres among depth in metres."""
    if not ranges or not isinstance(dataset, FileDataset):
        return []
    middles = {each: (low + high) / 2 for each, (low, high) in ranges.items()}
    usual = float(np.median(list(middles.values())))
    return [
        f"{dataset.files(each)['depth']}: its depth of about {z:.4g} m is far from the usual {usual:.4g} m; "
        "is it in another unit?"
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
        "data.depth_scaling: sample would stretch each to the same range and hide the difference; keep measured, "
        f"or give the range: data.depth_scaling: [{lows.min():.4g}, {highs.max():.4g}]"
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


TILE = 112  # pixels
LABEL = 14  # pixels of text above each tile
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of spurious backgrounds, all that is possible
INTENSITIES = (0.0, 0.1, 0.2, 0.4, 0.8)  # doses of redundant noise
NOISE_CELLS = 8
_OUTLINE = (255, 0, 90)


def contact_sheet(dataset: Dataset, n_defects: int = 4) -> Image.Image:
    """Draw one row per category: a good image, then one of each of the first defects.

    Every sample is its colour image with the mask outlined, and beside it its other images, each scaled to its own
    range. A sample that cannot be read is a grey tile with its id.

    Parameters
    ----------
    dataset
        Any data set.
    n_defects
        Largest number of defect types in a row.
    """
    n_tiles = len({"rgb", *dataset.modalities})
    width = TILE * n_tiles
    rows = [_chosen(dataset, category, n_defects) for category in dataset.categories]
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + 4), len(rows) * (TILE + LABEL + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, (sample_id, title) in enumerate(row):
            x, y = j * (width + 4), i * (TILE + LABEL + 4)
            draw.text((x + 1, y), title[: width // 5], fill="black")
            sheet.paste(_tiles(dataset, sample_id, n_tiles), (x, y + LABEL))
    return sheet


def perturbation_sheet(dataset: Dataset, rng: np.random.Generator) -> Image.Image:
    """Draw both perturbations of one sample, from none (left) to the strongest (right).

    The sample is the first defect of the first category; the donor of its spurious backgrounds is
    the first training image of the second category. Colour above, other images below, which all columns
    scale to the range of the undisturbed sample. The first column is the undisturbed sample.

    Parameters
    ----------
    dataset
        Its samples of one image size; without two categories whose foreground is known or stands out of a plane,
        a line of text says why there are no spurious backgrounds.
    rng
        Draws the noise, the same at every intensity, and the trials of the plane.
    """
    index = dataset.index
    defects = index[(index["category"] == dataset.categories[0]) & (index["label"] == 1)]
    sample = dataset.load(defects["sample_id"].iloc[0])
    donor = dataset.load(dataset.ids("train", (dataset.categories * 2)[1:2])[0])
    seed = int(rng.integers(2**32))
    noisy = {
        f"redundant {intensity:g}": redundant(
            sample, intensity, NOISE_CELLS, np.random.default_rng(seed)
        )
        for intensity in INTENSITIES
    }
    try:
        own, other = with_foreground(sample, rng), with_foreground(donor, rng)
        blended = {f"spurious {alpha:g}": spurious(own, other, alpha) for alpha in ALPHAS}
    except DataError as error:
        blended = {f"no spurious backgrounds: {error}": sample}

    height = TILE * len(_images(sample))
    sheet = Image.new("RGB", (len(ALPHAS) * (TILE + 4), 2 * (height + LABEL + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate((blended, noisy)):
        for j, (title, each) in enumerate(row.items()):
            x, y = j * (TILE + 4), i * (height + LABEL + 4)
            draw.text((x + 1, y), title, fill="black")
            for k, image in enumerate(_images(each, sample)):
                sheet.paste(_tile(image), (x, y + LABEL + k * TILE))
    return sheet


def outlined(
    rgb: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image with the border of the mask's regions drawn one pixel wide."""
    image = rgb.copy()
    image[mask & ~ndimage.binary_erosion(mask)] = _OUTLINE
    return image


def _chosen(dataset: Dataset, category: str, n_defects: int) -> list[tuple[str, str]]:
    """Return the ids and titles of the samples in a category's row."""
    rows = dataset.index[dataset.index["category"] == category]
    good = rows[rows["defect"] == GOOD].head(1)
    defects = rows[rows["label"] == 1].drop_duplicates("defect").head(n_defects)
    chosen = pd.concat([good, defects])
    return [(row.sample_id, f"{category} {row.defect}") for row in chosen.itertuples()]


def _tiles(dataset: Dataset, sample_id: str, n_tiles: int) -> Image.Image:
    strip = Image.new("RGB", (TILE * n_tiles, TILE), "grey")
    try:
        images = _images(dataset.load(sample_id))
    except DataError:
        ImageDraw.Draw(strip).text((4, 4), f"unreadable\n{sample_id}", fill="white")
        return strip
    for position, image in enumerate(images):
        strip.paste(_tile(image), (position * TILE, 0))
    return strip


def _tile(image: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    return Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BILINEAR)


def _images(sample: Sample, ranges_of: Sample | None = None) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The colour image with the mask outlined, then all others, scaled to the ranges of this or another sample."""
    size, other = sample.rgb.shape[:2], ranges_of or sample
    step = max(1, min(size) // TILE)  # thin outlines would vanish in a strong reduction
    mask = np.zeros(size, dtype=bool) if sample.mask is None else sample.mask
    images = [outlined(sample.rgb[::step, ::step], mask[::step, ::step])]
    if sample.xyz is not None and other.xyz is not None:
        limits = robust_range(other.xyz[..., 2][valid_mask(other.xyz)])
        images.append(_as_bytes(scale_depth(encode_depth(sample.xyz), *limits, clip=True)))
    for name, image in sample.others.items():
        if image.dtype == np.uint8:
            images.append(image)
        else:
            images.append(_as_bytes(scaled(image, *robust_range(other.others[name]), clip=True)))
    return images


def _as_bytes(image: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return (image * 255).round().astype(np.uint8)
