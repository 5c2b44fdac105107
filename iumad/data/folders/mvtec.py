"""The folder layouts of MVTec 3D-AD (one folder for each sensor) and MVTec AD (RGB), any categories.

MVTec 3D-AD: ``<category>/{train,validation,test}/<defect>/{rgb,xyz,gt}/<name>.*``;
MVTec AD: ``<category>/{train,test}/<defect>/<name>.*`` and
``<category>/ground_truth/<defect>/<name>_mask.*``. Folder names may be in any case. ``validation``
may be missing, ``gt`` as well for good samples, and for defects of which no mask is known.

Beside ``rgb`` and ``xyz`` there may be folders of further registered images, such as ``infrared``; where every
category's ``train/good`` has one, it is a modality of that name.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from iumad.config.sections import MODALITY_NAME
from iumad.data.files import (
    FileDataset,
    Scan,
    category_folders,
    find_folder,
    image_files,
    require_plain_name,
    split_folders,
    subfolders,
    visible_entries,
)
from iumad.data.images import IMAGE_SUFFIXES
from iumad.data.reader import Reader
from iumad.data.sample import GOOD
from iumad.errors import DataError

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
            masks = {stem.removesuffix("_mask"): path for stem, path in found.items()}
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
