"""Public data sets as distributed: their layouts, read and written, and their published sizes.

MVTec 3D-AD: ``<category>/{train,validation,test}/<defect>/{rgb,xyz,gt}/<name>.*``;
MVTec AD: ``<category>/{train,test}/<defect>/<name>.*`` and
``<category>/ground_truth/<defect>/<name>_mask.*``. Folder names may be in any case. ``validation``
may be missing, ``gt`` as well for good samples, and for defects of which no mask is known. Beside ``rgb`` and
``xyz`` there may be folders of further registered images, such as ``infrared``; where every category's
``train/good`` has one, it is a modality of that name.

Eyecandies: ``<Category>/{train,val,test_public}/data/<number>_<item>``. ``test_private`` has no labels and is not
read. Samples of train and val are good by the data set's definition; labels of test_public come from
``metadata.yaml``, the defect type from the masks of the four kinds: the kind's name, or ``combined`` for several.

Sizes as in Bergmann et al., "The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection and
Localization" (VISAPP 2022) and Bonfiglioli et al., "The Eyecandies Dataset for Unsupervised Multimodal Anomaly
Detection and Localization" (ACCV 2022). Eyecandies publishes no counts per kind of defect, so its defects are
counted together, as ``bad``.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import tifffile
from PIL import Image

from iumad.config.sections import MODALITY_NAME
from iumad.data.files import (
    FileDataset,
    Scan,
    category_folders,
    find_folder,
    image_files,
    masks_by_image,
    require_plain_name,
    split_folders,
    subfolders,
    visible_entries,
)
from iumad.data.images import IMAGE_SUFFIXES, read_mask
from iumad.data.sample import GOOD, Dataset, Reader, Sample, read_yaml_mapping
from iumad.errors import DataError

BAD = "bad"

# category: (train, validation, good test images, {defect: test images})
MVTEC_3D_AD: dict[str, tuple[int, int, int, dict[str, int]]] = {
    "bagel": (244, 22, 22, {"combined": 23, "contamination": 22, "crack": 22, "hole": 21}),
    "cable_gland": (223, 23, 21, {"bent": 21, "cut": 22, "hole": 22, "thread": 22}),
    "carrot": (
        286,
        29,
        27,
        {"combined": 27, "contamination": 27, "crack": 26, "cut": 26, "hole": 26},
    ),
    "cookie": (210, 22, 28, {"combined": 25, "contamination": 25, "crack": 27, "hole": 26}),
    "dowel": (288, 34, 26, {"bent": 27, "combined": 26, "contamination": 26, "cut": 25}),
    "foam": (236, 27, 20, {"color": 20, "combined": 20, "contamination": 20, "cut": 20}),
    "peach": (361, 42, 26, {"combined": 25, "contamination": 27, "cut": 25, "hole": 29}),
    "potato": (300, 33, 22, {"combined": 23, "contamination": 23, "cut": 23, "hole": 23}),
    "rope": (298, 33, 32, {"contamination": 25, "cut": 27, "open": 17}),
    "tire": (210, 29, 25, {"combined": 5, "contamination": 28, "cut": 27, "hole": 27}),
}
# category: (good, bad) of test_public; train 1000 and val 100 for all
EYECANDIES: dict[str, tuple[int, int]] = {
    "CandyCane": (25, 25),
    "ChocolateCookie": (25, 25),
    "ChocolatePraline": (25, 25),
    "Confetto": (25, 25),
    "GummyBear": (26, 24),
    "HazelnutTruffle": (25, 25),
    "LicoriceSandwich": (25, 25),
    "Lollipop": (34, 16),
    "Marshmallow": (25, 25),
    "PeppermintCandy": (25, 25),
}
_KEYS = ["category", "split", "defect"]


def published_counts(dataset: str) -> pd.DataFrame:
    """Return the published sizes of ``"mvtec3d"`` or ``"eyecandies"``.

    Returns
    -------
    DataFrame
        Columns category, split, defect, published.
    """
    rows: list[tuple[str, str, str, int]] = []
    if dataset == "mvtec3d":
        for category, (train, validation, good, defects) in MVTEC_3D_AD.items():
            rows += [(category, "train", GOOD, train), (category, "validation", GOOD, validation)]
            rows += [
                (category, "test", defect, n) for defect, n in ({GOOD: good} | defects).items()
            ]
    elif dataset == "eyecandies":
        for category, (good, bad) in EYECANDIES.items():
            rows += [(category, "train", GOOD, 1000), (category, "validation", GOOD, 100)]
            rows += [(category, "test", GOOD, good), (category, "test", BAD, bad)]
    return pd.DataFrame(rows, columns=[*_KEYS, "published"])


def compare_with_published(index: pd.DataFrame, dataset: str) -> pd.DataFrame | None:
    """List where the copy on disk differs from the published data set.

    Parameters
    ----------
    index
        Index of the data set on disk.
    dataset
        ``"mvtec3d"`` or ``"eyecandies"``.

    Returns
    -------
    DataFrame or None
        Columns category, split, defect, published, found, one row for each count that differs,
        categories that are missing as a whole included; empty for a complete copy. None where most
        categories of the index are not published ones: then it is another data set in the same
        layout.
    """
    published = published_counts(dataset)
    known = pd.Series(index["category"].unique()).isin(published["category"])
    if published.empty or known.mean() < 0.5:
        return None
    defect = index["defect"]
    if dataset == "eyecandies":
        defect = defect.where(defect == GOOD, BAD)
    found = index.assign(defect=defect).groupby(_KEYS).size().rename("found").reset_index()
    both = published.merge(found, how="outer", on=_KEYS).fillna({"published": 0, "found": 0})
    both = both.astype({"published": int, "found": int})
    return both[both["published"] != both["found"]].reset_index(drop=True)


MASK_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
SUFFIXES = {"xyz": (".tif", ".tiff", ".npy"), "gt": MASK_SUFFIXES}
MODALITY = {"xyz": "depth", "gt": "mask", "ir": "infrared"}  # where a folder's name is another

# the names of MVTec 3D-AD; contamination is matter on the surface, thick or thin: unknown
_GEOMETRIC = {
    **dict.fromkeys(("bent", "combined", "crack", "cut", "hole", "open", "thread"), True),
    "color": False,
}


def geometric_by_name(defect: str) -> bool | None:
    """Say whether a defect of MVTec 3D-AD's names changes the surface; None where unknown.

    ``color`` does not, ``combined`` holds at least one that does, ``contamination`` may or may not.
    """
    return _GEOMETRIC.get(defect.casefold())


class MVTec3D(FileDataset):
    """A folder in the layout of MVTec 3D-AD.

    Parameters
    ----------
    root
        The folder that holds one folder per category.
    categories
        Selection and order; None for all in natural order.
    remove_plane
        Set the background plane of every point cloud to invalid and return the foreground.
    problems
        As for `FileDataset`.

    Raises
    ------
    DataError
        Any file is missing, misplaced, of another size or of an unreadable header.
    """

    name = "mvtec3d"

    def __init__(
        self,
        root: Path,
        categories: tuple[str, ...] | None = None,
        remove_plane: bool = False,
        problems: list[str] | None = None,
    ) -> None:
        scan = scan_mvtec3d(root, categories)
        super().__init__(scan, categories, Reader(remove_plane=remove_plane), problems)


class MVTec(FileDataset):
    """A folder in the layout of MVTec AD, colour only; parameters and errors as `MVTec3D`."""

    name = "mvtec"

    def __init__(
        self,
        root: Path,
        categories: tuple[str, ...] | None = None,
        problems: list[str] | None = None,
    ) -> None:
        super().__init__(scan_mvtec(root, categories), categories, Reader(), problems)


def scan_mvtec3d(root: Path, categories: tuple[str, ...] | None = None) -> Scan:
    """Find all samples of the MVTec 3D-AD layout by headers only, and every problem."""
    scan = Scan(root)
    with scan.collecting():
        folders = category_folders(scan, categories)
        kinds = _sensor_folders(scan, folders)
        for category, folder in folders.items():
            for split, defect, defect_folder in _defect_folders(scan, category, folder):
                with scan.collecting():
                    _scan_sensors(scan, (category, split, defect), defect_folder, kinds)
    return scan


def scan_mvtec(root: Path, categories: tuple[str, ...] | None = None) -> Scan:
    """Find all samples of the MVTec AD layout by headers only, and every problem."""
    scan = Scan(root)
    with scan.collecting():
        for category, folder in category_folders(scan, categories).items():
            for split, defect, defect_folder in _defect_folders(scan, category, folder):
                with scan.collecting():
                    _scan_images(scan, (category, split, defect), defect_folder)
    return scan


def _sensor_folders(scan: Scan, categories: Mapping[str, Path]) -> list[str]:
    """Names (any case) of the folders that each ``train/good`` has with images in it, masks apart."""
    found: list[dict[str, None]] = []
    for folder in categories.values():
        with scan.collecting():
            train = find_folder(folder, "train")
            good = find_folder(train, GOOD) if train else None
            if good is not None:
                kinds = {name.casefold(): path for name, path in subfolders(good).items()}
                found.append(
                    dict.fromkeys(name for name, path in kinds.items() if _holds_images(path))
                )
    everywhere = [name for name in (found[0] if found else {}) if all(name in f for f in found)]
    extra = {name for kinds in found for name in kinds} - set(everywhere) - {"rgb", "xyz", "gt"}
    for name in sorted(extra):
        scan.notes.append(
            f"{scan.root}: folders {name!r} are left out, not all categories have one"
        )
    usual = ["rgb", *(["xyz"] if any("xyz" in kinds for kinds in found) else [])]
    others = [name for name in everywhere if name not in ("rgb", "xyz", "gt")]
    for name in others:
        if not MODALITY_NAME.fullmatch(name):
            raise DataError(
                f"{scan.root}: a folder {name!r} in every train/good would be a modality; its name needs "
                "letters, digits and _ only"
            )
    return usual + others


def _holds_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in visible_entries(folder))


def _defect_folders(scan: Scan, category: str, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield (split, defect, folder); note missing splits and defects outside the test split."""
    for split, split_folder in split_folders(scan, category, folder):
        with scan.collecting():
            if split != "test" and find_folder(split_folder, GOOD) is None:
                raise DataError(f"{split_folder}: category {category!r} has no {split}/{GOOD}")
            defects = subfolders(split_folder)
            if not defects:
                raise DataError(f"{split_folder}: category {category!r} has no images in {split}")
            for name, defect_folder in defects.items():
                defect = GOOD if name.casefold() == GOOD else name
                if split != "test" and defect != GOOD:
                    scan.problems.append(f"{defect_folder}: {split} may hold good samples only")
                    continue
                with scan.collecting():
                    require_plain_name(defect, "defect", defect_folder)
                    yield split, defect, defect_folder


def _scan_sensors(scan: Scan, place: tuple[str, str, str], folder: Path, kinds: list[str]) -> None:
    """Add the samples of one defect folder of the MVTec 3D-AD layout."""
    category, split, defect = place
    folders = {kind: find_folder(folder, kind) for kind in (*kinds, "gt")}
    for kind in kinds:
        if folders[kind] is None:
            raise DataError(f"{folder}: has no {kind} folder")
    files = {
        kind: image_files(path, SUFFIXES.get(kind, IMAGE_SUFFIXES))
        for kind, path in folders.items()
        if path is not None
    }
    rgb = files["rgb"]
    _require_images(rgb, folder, *place)
    if defect != GOOD and "gt" not in files:
        _note_no_masks(scan, folder, len(rgb))
    required = [kind for kind in files if kind != "gt" or defect != GOOD]
    for kind in files:
        _note_missing(scan, files[kind], rgb, f"no RGB image of the same name in {folders['rgb']}")
    for kind in required:
        what = "a defect without a mask" if kind == "gt" else f"no {kind} file"
        _note_missing(scan, rgb, files[kind], f"{what} of the same name in {folders[kind]}")
    for stem in (stem for stem in rgb if all(stem in files[kind] for kind in required)):
        with scan.collecting():
            scan.add(
                category,
                split,
                defect,
                stem,
                {MODALITY.get(kind, kind): files[kind].get(stem) for kind in files},
                geometric_by_name(defect),
            )


def _scan_images(scan: Scan, place: tuple[str, str, str], folder: Path) -> None:
    """Add the samples of one defect folder of the MVTec AD layout."""
    category, split, defect = place
    rgb = image_files(folder)
    _require_images(rgb, folder, *place)
    masks: dict[str, Path] | None = {}
    if defect != GOOD:
        truth = find_folder(folder.parent.parent, "ground_truth")
        mask_folder = find_folder(truth, defect.casefold()) if truth else None
        masks = None
        if mask_folder is None:
            _note_no_masks(scan, folder, len(rgb))
        else:
            found = image_files(mask_folder, MASK_SUFFIXES)
            masks = masks_by_image(found)
            _note_missing(scan, rgb, masks, f"a defect without a mask in {mask_folder}")
            _note_missing(scan, masks, rgb, f"no image for this mask in {folder}")
    for stem in (stem for stem in rgb if defect == GOOD or masks is None or stem in masks):
        with scan.collecting():
            files = {"rgb": rgb[stem], "mask": (masks or {}).get(stem)}
            scan.add(category, split, defect, stem, files)


def _note_no_masks(scan: Scan, folder: Path, count: int) -> None:
    scan.notes.append(
        f"{folder}: {count} defects without masks; they count in image scores, not in pixel scores"
    )


def _require_images(
    images: Mapping[str, Path], folder: Path, category: str, split: str, defect: str
) -> None:
    if not images:
        raise DataError(f"{folder}: category {category!r} has no images in {split}/{defect}")


def _note_missing(
    scan: Scan, have: Mapping[str, Path], need: Mapping[str, Path], text: str
) -> None:
    scan.problems.extend(f"{path}: {text}" for stem, path in have.items() if stem not in need)


SPLIT_FOLDERS = {"train": "train", "validation": "val", "test": "test_public"}
KINDS = ("bumps", "dents", "colors", "normals")


class Eyecandies(FileDataset):
    """The ten candies of Eyecandies, or any set in its layout.

    Parameters
    ----------
    root
        The folder that holds ``CandyCane``, ``ChocolateCookie`` and so on.
    categories
        Selection and order; None for all in natural order.
    light
        Which ``image_<light>.png`` is the colour image: 0 all spotlights, 1 bottom, 2 right, 3 top,
        4 left, 5 global.
    problems
        As for `FileDataset`.

    Raises
    ------
    DataError
        Any file that a sample needs is missing, of another size or of an unreadable header.
    """

    name = "eyecandies"

    def __init__(
        self,
        root: Path,
        categories: tuple[str, ...] | None = None,
        light: int = 4,
        problems: list[str] | None = None,
    ) -> None:
        scan = scan_eyecandies(root, categories, light)
        super().__init__(scan, categories, Reader(eyecandies=True), problems)


def scan_eyecandies(root: Path, categories: tuple[str, ...] | None = None, light: int = 4) -> Scan:
    """Find all samples, and every problem; decodes nothing but the masks of defective samples."""
    scan = Scan(root)
    with scan.collecting():
        for category, folder in category_folders(scan, categories).items():
            for split, name in SPLIT_FOLDERS.items():
                with scan.collecting():
                    _scan_split(scan, category, split, _data_folder(folder, name), light)
    return scan


def _data_folder(category: Path, split: str) -> Path:
    folder = find_folder(category, split)
    if folder is None:
        raise DataError(f"{category}: category {category.name!r} has no {split} folder")
    data = find_folder(folder, "data")
    if data is None:
        raise DataError(f"{folder}: has no data folder")
    return data


def _scan_split(scan: Scan, category: str, split: str, folder: Path, light: int) -> None:
    samples: dict[str, dict[str, Path]] = {}
    for path in visible_entries(folder):
        match = re.fullmatch(r"([0-9]+)_(.+)", path.name)
        if match:
            samples.setdefault(match[1], {})[match[2]] = path
    if not samples:
        raise DataError(f"{folder}: category {category!r} has no images in {split}")

    for number, items in sorted(samples.items()):
        with scan.collecting():
            rgb = _need(items, folder, number, f"image_{light}.png")
            depth = _need(items, folder, number, "depth.png")
            _need(items, folder, number, "info_depth.yaml")
            defect, geometric, mask = GOOD, None, None
            if split == "test":
                mask = _need(items, folder, number, "mask.png")
                defect, geometric = _defect(items, folder, number)
            files = {"rgb": rgb, "depth": depth, "mask": mask}
            scan.add(category, split, defect, number, files, geometric)


def _defect(items: dict[str, Path], folder: Path, number: str) -> tuple[str, bool | None]:
    path = _need(items, folder, number, "metadata.yaml")
    anomalous = read_yaml_mapping(path).get("anomalous")
    if anomalous not in (0, 1):
        raise DataError(f"{path}: needs anomalous: 0 or 1, got {anomalous!r}")
    if not anomalous:
        return GOOD, None
    masks = {kind: _need(items, folder, number, f"{kind}_mask.png") for kind in KINDS}
    present = [kind for kind, mask in masks.items() if read_mask(mask).any()]
    if not present:
        raise DataError(f"{path}: says anomalous, but the masks of all kinds are empty")
    return present[0] if len(present) == 1 else "combined", _is_geometric(present)


def _is_geometric(kinds: list[str]) -> bool | None:
    """Bumps and dents move the surface, colors do not; normals change the shading, depth maybe."""
    if "bumps" in kinds or "dents" in kinds:
        return True
    return None if "normals" in kinds else False


def _need(items: dict[str, Path], folder: Path, number: str, item: str) -> Path:
    if item not in items:
        raise DataError(f"{folder / f'{number}_{item}'}: is missing")
    return items[item]


def export_mvtec3d(
    dataset: Dataset, root: Path, advance: Callable[[], object] | None = None
) -> Path:
    """Write ``<category>/<split>/<defect>/{rgb,xyz,gt}/NNN.*`` for every sample.

    ``rgb`` is PNG, ``xyz`` a float32 TIFF in metres with (0, 0, 0) where invalid, ``gt`` (test only)
    an 8-bit PNG with 255 on the defect. Numbers count within each folder from 000, in the order of
    the index. The tree grows in a temporary folder beside `root`, named ``.<name>-unfinished-...``,
    and takes its place when complete: a tree called `root` is always whole.

    Parameters
    ----------
    dataset
        With depth.
    root
        A folder that does not exist or is empty.
    advance
        Called after each sample, e.g. the update of a progress bar.

    Returns
    -------
    Path
        `root`.

    Raises
    ------
    DataError
        The data set has no depth, `root` is a file or holds something, or cannot be written.
    """
    if "depth" not in dataset.modalities:
        raise DataError(f"data set {dataset.name!r} has no depth, which MVTec 3D-AD's layout needs")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: export needs a folder that is empty or does not exist yet")

    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{root.name}-unfinished-"
        with TemporaryDirectory(prefix=prefix, dir=root.parent) as unfinished:
            tree = Path(unfinished) / root.name
            tree.mkdir()
            groups = dataset.index.groupby(["category", "split", "defect"], sort=False)
            for (category, split, defect), group in groups:
                for number, sample_id in enumerate(group["sample_id"]):
                    folder = tree / category / split / defect
                    write_sample(dataset.load(sample_id), folder, f"{number:03d}")
                    if advance is not None:
                        advance()
            tree.replace(root)
    except OSError as error:
        raise DataError(f"{root}: cannot be written ({error})") from error
    return root


def write_sample(sample: Sample, folder: Path, stem: str) -> None:
    """Write ``rgb/<stem>.png``, ``xyz/<stem>.tiff`` and, for test samples, ``gt/<stem>.png``."""
    for kind in ("rgb", "xyz", "gt"):
        if kind != "gt" or sample.split == "test":
            (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample.rgb).save(folder / "rgb" / f"{stem}.png")
    tifffile.imwrite(folder / "xyz" / f"{stem}.tiff", sample.xyz, photometric="rgb")
    if sample.split == "test" and sample.mask is not None:
        mask = np.where(sample.mask, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(folder / "gt" / f"{stem}.png")
