"""What the data sets on disk share: listing folders that people have made, a scan with a list of problems, index.

Names are kept as text in Unicode's composed form. Where two differ in case or Unicode form only, a file system may
take them for one, so they are refused.

What is worked out once from files, hashes of their content and ranges of their depth, is kept in one small
database in the cache folder. It only saves time: without it, or when it is damaged, the same answers are worked
out again.
"""

import glob
import hashlib
import json
import os
import re
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Bool

from iumad.config.schema import require_name
from iumad.data.images import (
    IMAGE_SUFFIXES,
    Header,
    read_header,
    read_mask,
    require_rgb_header,
    require_same_size,
)
from iumad.data.sample import GOOD, SPLITS, Dataset, Reader, Sample, build_index
from iumad.errors import DataError
from iumad.machine import cache_folder

MEMO_FILE = "data.sqlite"
_RECENT = 2.0  # seconds in which a file could change again without another time of change
_LOCK_SECONDS = 30.0
_Answer = TypeVar("_Answer")


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Return a hash of the content of every file; unchanged ones (path, size, time) are not read again.

    Raises
    ------
    DataError
        A file cannot be read.
    """
    keys, recent = {}, set()
    for path in paths:
        with _named(path):
            state = path.stat()
            keys[path] = f"file {path.resolve()} {state.st_size} {state.st_mtime_ns}"
        if time.time() - state.st_mtime < _RECENT:
            recent.add(keys[path])
    known = recall(keys.values())
    made = {}
    for path, key in keys.items():
        if key not in known:
            with _named(path), path.open("rb") as file:
                made[key] = hashlib.file_digest(file, hashlib.blake2b).hexdigest()[:32]
    keep({key: digest for key, digest in made.items() if key not in recent})
    known |= made
    return {path: known[key] for path, key in keys.items()}


def recall(keys: Iterable[str]) -> dict[str, Any]:
    """Return what is known of these keys."""
    wanted = list(keys)

    def look_up(database: sqlite3.Connection) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = database.execute(f"SELECT key, value FROM memo WHERE key IN ({marks})", part)
            found |= {key: json.loads(value) for key, value in rows}
        return found

    return _with_database(look_up) or {}


def keep(values: Mapping[str, Any]) -> None:
    """Keep values (numbers, texts, lists of them) under their keys."""
    rows = [(key, json.dumps(value)) for key, value in values.items()]
    if rows:
        insert = "INSERT OR REPLACE INTO memo VALUES (?, ?)"
        _with_database(lambda database: database.executemany(insert, rows) and None)


def _with_database(work: Callable[[sqlite3.Connection], _Answer]) -> _Answer | None:
    """Do something with the open database; None where it cannot be used."""
    path = cache_folder() / MEMO_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_LOCK_SECONDS)) as database, database:
            database.execute("PRAGMA synchronous=OFF")
            database.execute("CREATE TABLE IF NOT EXISTS memo (key TEXT PRIMARY KEY, value TEXT)")
            return work(database)
    except (OSError, sqlite3.OperationalError):  # a full disk, no permission, locked for long
        return None
    except (sqlite3.DatabaseError, ValueError):  # damaged
        path.unlink(missing_ok=True)
        return None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


_NOT_DATA = {"thumbs.db", "desktop.ini", "__macosx"}
RESERVED = ("mean",)  # the name of a mean over categories in tables of results


def natural_key(text: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key that puts image2 before image10."""
    parts = re.split(r"([0-9]+)", text.casefold())
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders in `folder` by name (Unicode NFC), in natural order; hidden ones are left out.

    Raises
    ------
    DataError
        The folder cannot be listed, two names can be taken for one, or a link is broken or leads above itself.
    """
    entries = [entry for entry in visible_entries(folder) if _checked_link(entry).is_dir()]
    named = {unicodedata.normalize("NFC", entry.name): entry for entry in _told_apart(entries)}
    return dict(sorted(named.items(), key=lambda item: natural_key(item[0])))


def find_folder(folder: Path, name: str) -> Path | None:
    """Return the subfolder `name` in any case (``good``, ``Good``), None where there is none."""
    for key, path in subfolders(folder).items():
        if key.casefold() == name:
            return path
    return None


def _told_apart(entries: Iterable[Path], by_stem: bool = False) -> Iterator[Path]:
    """Yield the entries; raise DataError where two names differ in case or Unicode form only."""
    seen: dict[str, Path] = {}
    for entry in entries:
        name = entry.stem if by_stem else entry.name
        twin = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), entry)
        if twin is not entry:
            raise DataError(
                f"{entry}: shares its name with {twin.name!r}, but for the type, case or Unicode form; "
                "keep or rename one of them"
            )
        yield entry


def require_plain_name(name: str, what: str, where: Path | str) -> None:
    """Raise DataError for a name that cannot stand in paths and tables, or that tables use themselves."""
    try:
        require_name(name, what)
        if what == "category" and name.casefold() in RESERVED:
            raise ValueError(f"category: {name!r} is what tables call the mean over categories")
    except ValueError as error:
        raise DataError(f"{where}: {error}; rename it") from error


def image_files(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Return the image files in `folder` by stem (Unicode NFC), in natural order.

    Raises
    ------
    DataError
        Two files share a stem, a link is broken, or a visible file is not of the given types.
    """
    entries = sorted(visible_entries(folder), key=lambda entry: natural_key(entry.name))
    entries = [entry for entry in entries if not _checked_link(entry).is_dir()]
    for entry in entries:
        if entry.suffix.lower() not in suffixes:
            raise DataError(f"{entry}: needs one of the types {', '.join(suffixes)}; move it away")
        if not entry.name.isprintable():
            raise DataError(
                f"{entry.parent / repr(entry.name)}: rename it, its name cannot be printed"
            )
    return {unicodedata.normalize("NFC", entry.stem): entry for entry in _told_apart(entries, True)}


def masks_by_image(files: Mapping[str, Path]) -> dict[str, Path]:
    """Return mask files by the stem of their image: `007.png` and `007_mask.png` go with image `007`.

    Raises
    ------
    DataError
        Both are there.
    """
    masks: dict[str, Path] = {}
    for stem, path in files.items():
        other = masks.setdefault(stem.removesuffix("_mask"), path)
        if other != path:
            raise DataError(f"{path}: is a second mask of one image, beside {other.name}")
    return masks


def require_folder(path: Path) -> Path:
    """Return the path; raise DataError unless it is a folder."""
    if not path.exists():
        raise DataError(f"{path}: does not exist, needs a folder")
    if not path.is_dir():
        raise DataError(f"{path}: needs a folder, got a file")
    return path


def visible_entries(folder: Path) -> list[Path]:
    """Return all entries but hidden ones and those that desktops leave behind, in any order."""
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error})") from error
    return [
        entry
        for entry in entries
        if not entry.name.startswith(".") and entry.name.casefold() not in _NOT_DATA
    ]


def _checked_link(entry: Path) -> Path:
    if not entry.is_symlink():
        return entry
    try:
        target = entry.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a circle of links is a RuntimeError before 3.13
        raise DataError(f"{entry}: is a link that leads nowhere or in a circle") from error
    if entry.parent.resolve().is_relative_to(target):
        raise DataError(f"{entry}: is a link to a folder above itself, an endless loop")
    return entry


@dataclass
class Scan:
    """What was found under a folder, and every problem met on the way, in the order of discovery.

    Attributes
    ----------
    rows
        One mapping a sample, for `iumad.data.sample.build_index`.
    files
        Sample id -> modality or ``"mask"`` -> file.
    problems, notes
        What makes samples unusable; what a user should know.
    """

    root: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, Path]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _stored: dict[str, tuple[np.dtype, Path]] = field(default_factory=dict)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Note a DataError as a problem instead of stopping the scan."""
        try:
            yield
        except DataError as error:
            self.problems.append(str(error))

    def categories(self) -> tuple[str, ...]:
        """Return the categories that have rows, in the order found."""
        return tuple(dict.fromkeys(row["category"] for row in self.rows))

    def modalities(self) -> tuple[str, ...]:
        """Return the modalities found: ``rgb``, ``depth``, then others in the order found."""
        found = dict.fromkeys(kind for files in self.files.values() for kind in files)
        others = [kind for kind in found if kind not in ("rgb", "depth", "mask")]
        return (*(kind for kind in ("rgb", "depth") if kind in found), *others)

    def add(
        self,
        category: str,
        split: str,
        defect: str,
        stem: str,
        files: Mapping[str, Path | None],
        geometric: bool | None = None,
    ) -> None:
        """Check the headers of one sample's files against each other and add its row.

        Parameters
        ----------
        category, split, defect, stem, geometric
            As in the index; together they make the sample's id.
        files
            Modality or ``"mask"`` -> file, or None.

        Raises
        ------
        DataError
            A header is unreadable, sizes differ, the id is taken, the colour image has not 8 bits, or another
            image is not stored as those before it.
        """
        paths = {kind: path for kind, path in files.items() if path is not None}
        headers = {kind: read_header(path) for kind, path in paths.items()}
        if "rgb" in headers:
            require_rgb_header(paths["rgb"], headers["rgb"])
        first = next(iter(headers.values()))
        for kind, header in headers.items():
            require_same_size(
                paths[kind], (header.height, header.width), (first.height, first.width)
            )
            self._require_stored_alike(kind, paths[kind], header)
        sample_id = f"{category}/{split}/{defect}/{stem}"
        if sample_id in self.files:
            raise DataError(f"{next(iter(paths.values()))}: {sample_id} is given twice")
        self.files[sample_id] = paths
        self.rows.append(
            {
                "sample_id": sample_id,
                "category": category,
                "split": split,
                "defect": defect,
                "label": int(defect != GOOD),
                "geometric": geometric,
                "masked": defect == GOOD or "mask" in paths,
                "height": first.height,
                "width": first.width,
            }
        )

    def _require_stored_alike(self, kind: str, path: Path, header: Header) -> None:
        """8 and 16 bits in one modality would be two scales."""
        if kind in ("rgb", "depth", "mask"):
            return
        dtype, other = self._stored.setdefault(kind, (header.dtype, path))
        if header.dtype != dtype:
            raise DataError(
                f"{path}: {kind} needs one type, got {header.dtype} here and {dtype} in {other}"
            )


class FileDataset(Dataset):
    """A data set whose samples are files under one folder.

    Parameters
    ----------
    scan
        What was found.
    categories
        Selection and order; None for all in the order found.
    reader
        How the files become images.
    problems
        A list that receives every problem of the scan, so that the samples without one can be used
        all the same; None to raise the first.

    Raises
    ------
    DataError
        The scan met a problem and `problems` is None, or a category has no samples.
    """

    def __init__(
        self,
        scan: Scan,
        categories: tuple[str, ...] | None,
        reader: Reader,
        problems: list[str] | None,
    ) -> None:
        if problems is not None:
            problems.extend(scan.problems)
        elif scan.problems:
            others = len(scan.problems) - 1
            more = (
                f" (and {others} more; `iumad data check {scan.root}` lists them)" if others else ""
            )
            raise DataError(scan.problems[0] + more)
        if not scan.rows:
            raise DataError(f"{scan.root}: holds no samples")
        self.root, self.reader = scan.root, reader
        self.categories = scan.categories() if categories is None else tuple(categories)
        self.modalities = scan.modalities()
        self.notes = tuple(scan.notes)
        self.index: pd.DataFrame = build_index(scan.rows, self.categories)
        self._rows = self.index.set_index("sample_id").to_dict("index")
        self._files = scan.files
        self._digests: dict[tuple[str, tuple[str, ...]], str] = {}

    def row(self, sample_id: str) -> dict[str, Any]:
        """Return the index row of a sample; raise DataError for an unknown id."""
        if sample_id not in self._rows:
            example = next(iter(self._rows))
            raise DataError(f"no sample {sample_id!r} in {self.root}; ids look like {example!r}")
        return self._rows[sample_id]

    def files(self, sample_id: str) -> dict[str, Path]:
        """Return the files of a sample by modality, the mask as ``"mask"``."""
        self.row(sample_id)
        return self._files[sample_id]

    def load(self, sample_id: str) -> Sample:
        """Read and check one sample.

        Raises
        ------
        DataError
            The id is unknown, or a file is damaged or does not fit the others.
        """
        row, files = self.row(sample_id), self.files(sample_id)
        images = self.reader.read({kind: files[kind] for kind in files if kind != "mask"})
        return Sample(
            sample_id=sample_id,
            category=row["category"],
            split=row["split"],
            defect=row["defect"],
            rgb=images.rgb,
            xyz=images.xyz,
            mask=self._mask(sample_id, images.rgb.shape[:2]),
            geometric=None if pd.isna(row["geometric"]) else bool(row["geometric"]),
            foreground=images.foreground,
            others=images.others,
        )

    def fingerprint(self, sample_id: str) -> str:
        """Return a hash of the sample's id, the content of its files, and how they are read."""
        return self._fingerprint(sample_id, file_digests(self._all_files(sample_id)))

    def digest(self, split: str, categories: Iterable[str]) -> str:
        """Return a hash of the content of all samples of a split and some categories; of none an empty text."""
        key = (split, tuple(categories))
        if key not in self._digests:
            ids = sorted(self.ids(split, key[1]))
            digests = file_digests(path for each in ids for path in self._all_files(each))
            whole = "|".join(self._fingerprint(each, digests) for each in ids)
            self._digests[key] = hashlib.sha256(whole.encode()).hexdigest()[:16] if ids else ""
        return self._digests[key]

    def _all_files(self, sample_id: str) -> list[Path]:
        files = self.files(sample_id)
        return [*(files[kind] for kind in sorted(files)), *self.reader.files_beside(files)]

    def _fingerprint(self, sample_id: str, digests: Mapping[Path, str]) -> str:
        contents = [digests[path] for path in self._all_files(sample_id)]
        kinds = ",".join(sorted(self.files(sample_id)))
        return hashlib.sha256(
            "|".join([self.reader.model_dump_json(), sample_id, kinds, *contents]).encode()
        ).hexdigest()

    def _mask(self, sample_id: str, size: tuple[int, int]) -> Bool[np.ndarray, "h w"] | None:
        """The ground truth; of a good sample it may only be empty, or missing."""
        path, row = self.files(sample_id).get("mask"), self.row(sample_id)
        if path is None:
            return np.zeros(size, dtype=bool) if row["masked"] else None
        mask = read_mask(path)
        require_same_size(path, mask.shape, size)
        if row["defect"] == GOOD and mask.any():
            raise DataError(f"{path}: belongs to a good sample but marks {mask.sum()} pixels")
        return mask


def category_folders(scan: Scan, categories: tuple[str, ...] | None) -> dict[str, Path]:
    """Return the folders of the wanted categories; missing and misnamed ones become problems.

    Raises
    ------
    DataError
        The root is no folder, is itself a category, or holds no folders.
    """
    found = subfolders(require_folder(scan.root))
    if "train" in {name.casefold() for name in found}:
        raise DataError(f"{scan.root}: is one category; give the folder that holds the categories")
    if not found:
        raise DataError(f"{scan.root}: holds no category folders")
    wanted = tuple(found) if categories is None else categories
    for missing in (name for name in wanted if name not in found):
        scan.problems.append(f"{scan.root}: no category {missing!r}, only {', '.join(found)}")
    chosen = {name: found[name] for name in wanted if name in found}
    for name, folder in list(chosen.items()):
        try:
            require_plain_name(name, "category", folder)
        except DataError as error:
            scan.problems.append(str(error))
            del chosen[name]
    return chosen


def split_folders(scan: Scan, category: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (split, folder) of one category; a missing one for training becomes a problem."""
    for split in SPLITS:
        with scan.collecting():
            found = find_folder(folder, split)
            if found is not None:
                yield split, found
            elif split == "train":
                raise DataError(f"{folder}: category {category!r} has no {split} folder")


def relative(root: Path, path: Path | None) -> str:
    """Return the path as seen from the root with forward slashes, "" for None."""
    return "" if path is None else Path(os.path.relpath(path, root)).as_posix()


SECOND_FOLDERS = {"depth": ("xyz", "depth", "z"), "infrared": ("infrared", "ir")}


def second_folders(modality: str) -> tuple[str, ...]:
    """Names of folders that hold the images of a modality."""
    return SECOND_FOLDERS.get(modality, (modality,))


def find_second(image: Path, modality: str) -> Path | None:
    """The registered second image of a colour image, by name, in a folder beside `rgb` or beside it, or None.

    ``rgb/007.png`` goes with ``xyz/007.tiff``, ``depth/007.png`` and the like; ``007.png`` with ``007_depth.tiff``
    and the like.

    Raises
    ------
    DataError
        There is more than one.
    """
    names = second_folders(modality)
    folders = [image.parent.parent / name for name in names]
    stem = glob.escape(image.stem)
    found = []
    for folder in folders:
        matches = sorted(folder.glob(f"{stem}.*"))  # of 1.png also 1.2.tiff, which is another's
        found += [each for each in matches if each.stem == image.stem] or matches
    beside = [image.parent.glob(f"{stem}_{name}.*") for name in names]
    found += [each for matches in beside for each in sorted(matches)]
    if len(found) > 1:
        raise DataError(f"{image}: has several {modality} images: {', '.join(map(str, found))}")
    return found[0] if found else None
