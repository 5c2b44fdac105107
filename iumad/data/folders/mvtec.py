"""The folder layouts of MVTec 3D-AD (RGB and point clouds) and MVTec AD (RGB), any categories.

MVTec 3D-AD: ``<category>/{train,validation,test}/<defect>/{rgb,xyz,gt}/<name>.*``;
MVTec AD: ``<category>/{train,test}/<defect>/<name>.*`` and
``<category>/ground_truth/<defect>/<name>_mask.*``. Folder names may be in any case. ``validation``
may be missing, ``gt`` as well for good samples.
"""

from collections.abc import Iterator
from pathlib import Path

from iumad.data.files import (
    FileDataset,
    Scan,
    category_folders,
    cut_out,
    find_folder,
    image_files,
    subfolders,
)
from iumad.data.images import read_rgb, read_xyz, require_same_size
from iumad.data.sample import GOOD, SPLITS, Sample
from iumad.errors import DataError

XYZ_SUFFIXES = (".tif", ".tiff", ".npy")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
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
    modalities = ("rgb", "depth")

    def __init__(
        self,
        root: Path,
        categories: tuple[str, ...] | None = None,
        remove_plane: bool = False,
        problems: list[str] | None = None,
    ) -> None:
        scan = scan_mvtec3d(root, categories)
        super().__init__(root, scan, categories, f"plane={remove_plane}", problems)
        self._remove_plane = remove_plane

    def load(self, sample_id: str) -> Sample:
        """Read and check one sample.

        Raises
        ------
        DataError
            The id is unknown, or a file is damaged or does not fit the others.
        """
        rgb_path, xyz_path = (self.root / self.row(sample_id)[kind] for kind in ("rgb", "xyz"))
        rgb = read_rgb(rgb_path)
        xyz = read_xyz(xyz_path)
        require_same_size(xyz_path, xyz.shape[:2], rgb.shape[:2])
        if not self._remove_plane:
            return self.sample(sample_id, rgb, xyz)
        return self.sample(sample_id, rgb, *cut_out(xyz, sample_id))


class MVTec(FileDataset):
    """A folder in the layout of MVTec AD, colour only; parameters and errors as `MVTec3D`."""

    name = "mvtec"
    modalities = ("rgb",)

    def __init__(
        self,
        root: Path,
        categories: tuple[str, ...] | None = None,
        problems: list[str] | None = None,
    ) -> None:
        super().__init__(root, scan_mvtec(root, categories), categories, "", problems)

    def load(self, sample_id: str) -> Sample:
        """Read and check one sample; `Sample.xyz` is None. Errors as `MVTec3D.load`."""
        return self.sample(sample_id, read_rgb(self.root / self.row(sample_id)["rgb"]), None)


def scan_mvtec3d(root: Path, categories: tuple[str, ...] | None = None) -> Scan:
    """Find all samples of the MVTec 3D-AD layout by headers only, and every problem."""
    scan = Scan(root)
    with scan.collecting():
        for category, folder in category_folders(scan, categories).items():
            for split, defect, defect_folder in _defect_folders(scan, category, folder):
                with scan.collecting():
                    _scan_rgb_xyz_gt(scan, category, split, defect, defect_folder)
    return scan


def scan_mvtec(root: Path, categories: tuple[str, ...] | None = None) -> Scan:
    """Find all samples of the MVTec AD layout by headers only, and every problem."""
    scan = Scan(root)
    with scan.collecting():
        for category, folder in category_folders(scan, categories).items():
            for split, defect, defect_folder in _defect_folders(scan, category, folder):
                with scan.collecting():
                    _scan_images(scan, category, split, defect, defect_folder)
    return scan


def _defect_folders(scan: Scan, category: str, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield (split, defect, folder); note missing splits and defects outside the test split."""
    for split in SPLITS:
        with scan.collecting():
            split_folder = find_folder(folder, split)
            if split_folder is None and split == "validation":
                continue
            if split_folder is None:
                raise DataError(f"{folder}: category {category!r} has no {split} folder")
            if find_folder(split_folder, GOOD) is None and split != "test":
                raise DataError(f"{split_folder}: category {category!r} has no {split}/{GOOD}")
            for name, defect_folder in subfolders(split_folder).items():
                defect = GOOD if name.casefold() == GOOD else name
                if defect != GOOD and split != "test":
                    scan.problems.append(f"{defect_folder}: {split} may hold good samples only")
                    continue
                yield split, defect, defect_folder


def _scan_rgb_xyz_gt(scan: Scan, category: str, split: str, defect: str, folder: Path) -> None:
    found = {kind: find_folder(folder, kind) for kind in ("rgb", "xyz", "gt")}
    required = ("rgb", "xyz") if defect == GOOD else ("rgb", "xyz", "gt")
    for kind in required:
        if found[kind] is None:
            raise DataError(f"{folder}: has no {kind} folder")
    rgb = _images(found["rgb"])
    xyz = _images(found["xyz"], XYZ_SUFFIXES)
    gt = _images(found["gt"], MASK_SUFFIXES)
    _require_images(rgb, folder, category, split, defect)

    _note_missing(scan, rgb, xyz, f"no point cloud of the same name in {found['xyz']}")
    _note_missing(scan, xyz, rgb, f"no RGB image of the same name in {found['rgb']}")
    _note_missing(scan, gt, rgb, f"no RGB image of the same name in {found['rgb']}")
    if defect != GOOD:
        _note_missing(scan, rgb, gt, f"a defect without a mask of the same name in {found['gt']}")
    for stem in (stem for stem in rgb if stem in xyz and (defect == GOOD or stem in gt)):
        with scan.collecting():
            scan.add(
                category=category,
                split=split,
                defect=defect,
                stem=stem,
                geometric=geometric_by_name(defect),
                rgb=rgb[stem],
                xyz=xyz[stem],
                mask=gt.get(stem),
            )


def _scan_images(scan: Scan, category: str, split: str, defect: str, folder: Path) -> None:
    rgb = image_files(folder)
    _require_images(rgb, folder, category, split, defect)
    masks: dict[str, Path] = {}
    if defect != GOOD:
        truth = find_folder(folder.parent.parent, "ground_truth")
        mask_folder = find_folder(truth, defect.casefold()) if truth else None
        if mask_folder is None:
            raise DataError(f"{folder}: defects without masks, no ground_truth/{defect} folder")
        masks = {
            stem.removesuffix("_mask"): path
            for stem, path in image_files(mask_folder, MASK_SUFFIXES).items()
        }
        _note_missing(scan, rgb, masks, f"a defect without a mask in {mask_folder}")
        _note_missing(scan, masks, rgb, f"no image for this mask in {folder}")
    for stem in (stem for stem in rgb if defect == GOOD or stem in masks):
        with scan.collecting():
            scan.add(
                category=category,
                split=split,
                defect=defect,
                stem=stem,
                geometric=None,
                rgb=rgb[stem],
                xyz=None,
                mask=masks.get(stem),
            )


def _images(folder: Path | None, suffixes: tuple[str, ...] | None = None) -> dict[str, Path]:
    if folder is None:
        return {}
    return image_files(folder) if suffixes is None else image_files(folder, suffixes)


def _require_images(
    images: dict[str, Path], folder: Path, category: str, split: str, defect: str
) -> None:
    if not images:
        raise DataError(f"{folder}: category {category!r} has no images in {split}/{defect}")


def _note_missing(scan: Scan, have: dict[str, Path], need: dict[str, Path], text: str) -> None:
    scan.problems.extend(f"{path}: {text}" for stem, path in have.items() if stem not in need)
