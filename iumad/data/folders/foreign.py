"""Data sets that users have in layouts of their own, from which `iumad data new` writes an index.

VisA as distributed (Zou et al., ECCV 2022): ``<category>/Data/{Images,Masks}/...`` and the splits in
``split_csv/1cls.csv``. MulSen-AD as distributed (Li et al., 2024):
``<category>/{RGB,Infrared,Pointcloud}/{train,test/<defect>,GT/<defect>}/<number>.*``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from iumad.data.files import find_folder, image_files, relative, subfolders
from iumad.data.sample import GOOD
from iumad.errors import DataError
from iumad.machine import read_table

VISA_SPLITS = "split_csv/1cls.csv"
_VISA_COLUMNS = ["object", "split", "label", "image", "mask"]


@dataclass(frozen=True)
class ForeignLayout:
    """A layout that is read through an index.

    Attributes
    ----------
    name
        Of the data set.
    note
        What a user should know.
    rows
        From the folder of the data set and that of the index to the rows of the table.
    """

    name: str
    note: str
    rows: Callable[[Path, Path], list[dict[str, str]]]

    def advice(self, root: Path) -> str:
        """What to do with such a folder."""
        return (
            f"looks like {self.name} as distributed; `iumad data new {root}` writes an index, which is read "
            f"with data.name: folder ({self.note})"
        )


def foreign_layout(root: Path) -> ForeignLayout | None:
    """Recognise a folder; None where it is in none of these layouts."""
    if (root / VISA_SPLITS).is_file():
        return VISA
    for category in subfolders(root).values():
        rgb = find_folder(category, "rgb")
        if rgb and find_folder(category, "infrared") and find_folder(rgb, "train"):
            return MULSEN
    return None


def _visa_rows(source: Path, root: Path) -> list[dict[str, str]]:
    table = read_table(source / VISA_SPLITS)
    if list(table.columns) != _VISA_COLUMNS:
        raise DataError(
            f"{source / VISA_SPLITS}: needs the columns {', '.join(_VISA_COLUMNS)}, "
            f"got {', '.join(table.columns)}"
        )
    rows = []
    for line in table.itertuples():
        good = line.label == "normal"
        image = Path(str(line.image))
        rows.append(
            {
                "category": str(line.object),
                "split": str(line.split),
                "defect": GOOD if good else str(line.label),
                "name": image.stem,
                "rgb": relative(root, source / image),
                "mask": relative(root, source / str(line.mask)) if not good and line.mask else "",
            }
        )
    return rows


def _mulsen_rows(source: Path, root: Path) -> list[dict[str, str]]:
    rows = []
    for category, folder in subfolders(source).items():
        sensors = {name: find_folder(folder, name) for name in ("rgb", "infrared")}
        rgb, infrared = sensors["rgb"], sensors["infrared"]
        if rgb is None or infrared is None:
            raise DataError(f"{folder}: needs the folders RGB and Infrared")
        for split, defect, images in _mulsen_folders(rgb):
            others = image_files(infrared / images.relative_to(rgb))
            truth = find_folder(rgb, "gt")
            mask_folder = find_folder(truth, defect.casefold()) if truth else None
            masks = image_files(mask_folder, (".png",)) if mask_folder and defect != GOOD else {}
            for name, path in image_files(images).items():
                if name not in others:
                    raise DataError(f"{path}: has no infrared image of the same name")
                unmarked = defect != GOOD and name not in masks
                rows.append(
                    {
                        "category": category,
                        "split": split,
                        "defect": f"{defect}_nomask" if unmarked else defect,
                        "name": name,
                        "rgb": relative(root, path),
                        "infrared": relative(root, others[name]),
                        "mask": relative(root, masks.get(name)),
                    }
                )
    return rows


def _mulsen_folders(rgb: Path) -> list[tuple[str, str, Path]]:
    """(split, defect, folder of images) of one category."""
    train, test = (find_folder(rgb, split) for split in ("train", "test"))
    if train is None or test is None:
        raise DataError(f"{rgb}: needs the folders train and test")
    good = find_folder(train, GOOD) or train
    tested = subfolders(test).items()
    return [
        ("train", GOOD, good),
        *(("test", GOOD if n.casefold() == GOOD else n, path) for n, path in tested),
    ]


VISA = ForeignLayout("VisA", "splits of its 1cls.csv; colour only", _visa_rows)
MULSEN = ForeignLayout(
    "MulSen-AD",
    "RGB and infrared; the point clouds are of another view and are left out. The two images are not registered: "
    "shifts of several pixels are usual, so mind pixel-wise fusion; masks are those of the RGB images",
    _mulsen_rows,
)
