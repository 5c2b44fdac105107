"""One's own captures: folders become an index (`iumad data new`), and the index is read as a data set.

``iumad_dataset.yaml`` holds the depth scale and, where known, the camera's intrinsics; ``iumad_dataset.csv`` one
line per sample with its files, relative to the folder of the index. A column after the known ones is a further
registered image, such as ``infrared``; its name is that of the modality. An engineer's export rarely has a
benchmark's layout: a mapping says which folder holds what, and the index that is written can be read, edited and
checked. Two layouts are known and need no mapping:

VisA as distributed (Zou et al., ECCV 2022): ``<category>/Data/{Images,Masks}/...`` and the splits in
``split_csv/1cls.csv``. MulSen-AD as distributed (Li et al., 2024):
``<category>/{RGB,Infrared,Pointcloud}/{train,test/<defect>,GT/<defect>}/<number>.*``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import yaml
from pydantic import Field, model_validator

from iumad.config.files import read_yaml
from iumad.config.sections import MODALITY_NAME, Section, build
from iumad.data.files import (
    FileDataset,
    Scan,
    find_folder,
    image_files,
    masks_by_image,
    relative,
    require_folder,
    require_plain_name,
    subfolders,
)
from iumad.data.sample import GOOD, SPLITS, Intrinsics, Positive, Reader
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
        _refuse_twins(scan, dict.fromkeys(chosen["category"]), "categories")
        for category, lines in chosen.groupby("category", sort=False):
            defects = dict.fromkeys([GOOD, *lines["defect"]])
            _refuse_twins(scan, defects, f"{category}: defects")
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


def _refuse_twins(scan: Scan, names: dict[str, None], what: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(name.casefold(), name)
        if twin != name:
            scan.problems.append(
                f"{scan.root / SAMPLES_FILE}: {what} {twin!r} and {name!r} differ in case only"
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


Share = Annotated[float, Field(ge=0, lt=1)]


class GoodFolders(Section):
    """Folders of registered captures; files of one capture share their name."""

    rgb: Path | None = None
    depth: Path | None = None
    others: dict[str, Path] = Field(
        {}, description="further registered images by the name of their modality, e.g. infrared"
    )

    @property
    def images(self) -> dict[str, Path]:
        """Modality -> folder."""
        usual = {"rgb": self.rgb, "depth": self.depth}
        return {name: path for name, path in usual.items() if path is not None} | self.others

    @model_validator(mode="after")
    def _has_images(self) -> "GoodFolders":
        if not self.images:
            raise ValueError("needs rgb, depth or others, got none of them")
        for name in self.others:
            if not MODALITY_NAME.fullmatch(name) or name in (*COLUMNS, "xyz", "gt"):
                raise ValueError(
                    f"others: a modality needs a name of lower-case letters, digits and _ that is not taken, "
                    f"got {name!r}"
                )
        return self


class DefectFolders(GoodFolders):
    """Captures of one defect type with their masks (non-zero = defective), if there are any."""

    mask: Path | None = Field(None, description="without it they count in image scores only")
    geometric: bool | None = Field(None, description="does the defect change the surface?")


class CategoryFolders(Section):
    """One object class."""

    good: GoodFolders
    defects: dict[str, DefectFolders] = Field(default_factory=dict)


class Mapping(Camera):
    """Which folders make up a data set; paths are relative to the data set's root or absolute."""

    validation_share: Share = Field(0.1, description="of the good captures")
    test_share: Share = Field(0.2, description="of the good captures")
    categories: dict[str, CategoryFolders] = Field(min_length=1)

    @model_validator(mode="after")
    def _leaves_training(self) -> "Mapping":
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must be below 1")
        return self


def read_mapping(path: Path) -> Mapping:
    """Read a mapping from a YAML file.

    Raises
    ------
    ConfigError
        The file cannot be read, or a key or value is wrong; the text names it.
    """
    return build(Mapping, read_yaml(path), str(path))


def new_dataset(mapping: Mapping, root: Path) -> Path:
    """Write the index of a new data set into `root` and return the path of its settings file.

    Good captures are dealt out by name in natural order: the first become training, then
    validation, the last test images. Neighbours of a recorded sequence, which are nearly equal,
    so stay in one split but at two seams.

    Raises
    ------
    DataError
        A folder is missing or empty, files do not pair up, or an index exists already.
    """
    require_no_index(root)
    rows: list[dict[str, str]] = []
    for category, folders in mapping.categories.items():
        require_plain_name(category, "category", root)
        good = _captures(root, category, GOOD, folders.good)
        splits = _deal_out(len(good), mapping, category)
        rows += [row | {"split": split} for row, split in zip(good, splits, strict=True)]
        for defect, defect_folders in folders.defects.items():
            require_plain_name(defect, "defect", root)
            if defect.casefold() == GOOD:
                raise DataError(f"{root}: category {category!r} has a defect named {defect!r}")
            captures = _captures(root, category, defect, defect_folders)
            rows += [row | {"split": "test"} for row in captures]
    camera = Camera(depth_scale=mapping.depth_scale, intrinsics=mapping.intrinsics)
    return write_index(root, rows, camera)


def new_from_foreign(layout: ForeignLayout, source: Path, root: Path) -> Path:
    """Write the index of a data set in a layout of its own; return the path of its settings file."""
    return write_index(root, layout.rows(source, root), Camera())


def write_index(root: Path, rows: list[dict[str, str]], camera: Camera) -> Path:
    """Write both files of an index, or none of them; return the path of the settings.

    Parameters
    ----------
    rows
        One mapping a sample with the columns of the table, files relative to the root; what is not given is "".
    """
    require_no_index(root)
    others = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    columns = [*COLUMNS, *others]
    table = pd.DataFrame([{name: row.get(name, "") for name in columns} for row in rows])
    samples, settings = root / SAMPLES_FILE, root / SETTINGS_FILE
    content = {"version": VERSION} | camera.model_dump(mode="json")
    try:
        table.to_csv(samples, index=False, lineterminator="\n")
        settings.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    except BaseException:  # no space, Ctrl-C: leave both files or none
        for path in (samples, settings):
            path.unlink(missing_ok=True)
        raise
    return settings


def require_no_index(root: Path) -> None:
    """Raise DataError unless the root is a folder without an index."""
    for path in (require_folder(root) / SETTINGS_FILE, root / SAMPLES_FILE):
        if path.exists():
            raise DataError(f"{path}: exists already; move it away to write a new index")


def _captures(root: Path, category: str, defect: str, folders: GoodFolders) -> list[dict[str, str]]:
    kinds, geometric = dict(folders.images), ""
    if isinstance(folders, DefectFolders):
        geometric = {value: text for text, value in GEOMETRIC.items()}[folders.geometric]
        if folders.mask is not None:
            kinds["mask"] = folders.mask
    files = {kind: image_files(require_folder(root / folder)) for kind, folder in kinds.items()}
    if "mask" in files:
        files["mask"] = masks_by_image(files["mask"])
    first_kind, first = next(iter(files.items()))
    if not first:
        raise DataError(f"{root / kinds[first_kind]}: holds no images")
    for kind, others in files.items():
        unpaired = [*(set(first) - set(others)), *(set(others) - set(first))]
        if unpaired:
            raise DataError(
                f"{root / kinds[kind]}: needs one file for each in {root / kinds[first_kind]}; "
                f"{sorted(unpaired)[0]!r} is in one of them only"
            )
    return [
        {"category": category, "defect": defect, "name": name, "geometric": geometric}
        | {kind: relative(root, others[name]) for kind, others in files.items()}
        for name in first
    ]


def _deal_out(count: int, mapping: Mapping, category: str) -> list[str]:
    n_test = round(count * mapping.test_share)
    n_validation = round(count * mapping.validation_share)
    n_train = count - n_test - n_validation
    if n_train < 1:
        raise DataError(f"category {category!r}: {count} good captures leave none for training")
    return ["train"] * n_train + ["validation"] * n_validation + ["test"] * n_test
