"""Eyecandies as distributed: ``<Category>/{train,val,test_public}/data/<number>_<item>``.

Bonfiglioli et al., "The Eyecandies Dataset for Unsupervised Multimodal Anomaly Detection and
Localization", ACCV 2022. ``test_private`` has no labels and is not read. Samples of train and val
are good by the data set's definition; labels of test_public come from ``metadata.yaml``, the defect
type from the masks of the four kinds: the kind's name, or ``combined`` for more than one.
"""

import re
from pathlib import Path

from iumad.data.files import FileDataset, Scan, category_folders, find_folder, visible_entries
from iumad.data.images import read_mask
from iumad.data.reader import Reader, read_yaml_mapping
from iumad.data.sample import GOOD
from iumad.errors import DataError

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
