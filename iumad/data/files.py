"""What the data sets on disk share: scanning with a list of problems, index, fingerprints.

Listing folders that people have made: natural order, any case, no surprises from links.
"""

import hashlib
import os
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, UInt8

from iumad.data.depth import remove_plane
from iumad.data.images import (
    IMAGE_SUFFIXES,
    read_header,
    read_mask,
    require_rgb_header,
    require_same_size,
)
from iumad.data.sample import GOOD, Sample, build_index
from iumad.errors import DataError

_NOT_DATA = {"thumbs.db", "desktop.ini", "__macosx"}


def natural_key(text: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key that puts image2 before image10."""
    parts = re.split(r"([0-9]+)", text.casefold())
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders in `folder` by name (Unicode NFC), in natural order.

    Hidden folders are left out.

    Raises
    ------
    DataError
        The folder cannot be listed, or holds a link that is broken or leads back above itself.
    """
    entries = {
        _name(entry): entry for entry in visible_entries(folder) if _checked_link(entry).is_dir()
    }
    return dict(sorted(entries.items(), key=lambda item: natural_key(item[0])))


def find_folder(folder: Path, name: str) -> Path | None:
    """Return the subfolder `name` in any case (``good``, ``Good``), None where there is none.

    Raises
    ------
    DataError
        Two subfolders differ in case only.
    """
    matches = [path for key, path in subfolders(folder).items() if key.casefold() == name]
    if len(matches) > 1:
        raise DataError(f"{matches[1]}: differs only in case from {matches[0].name}; keep one")
    return matches[0] if matches else None


def image_files(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Return the image files in `folder` by stem (Unicode NFC), in natural order.

    Raises
    ------
    DataError
        Two files share a stem, a link is broken, or a visible file is not of the given types.
    """
    files: dict[str, Path] = {}
    for entry in sorted(visible_entries(folder), key=lambda entry: natural_key(entry.name)):
        if _checked_link(entry).is_dir():
            continue
        if entry.suffix.lower() not in suffixes:
            raise DataError(f"{entry}: needs one of the types {', '.join(suffixes)}; move it away")
        stem = unicodedata.normalize("NFC", entry.stem)
        if stem in files:
            raise DataError(f"{entry}: shares its name with {files[stem].name}; keep one of them")
        files[stem] = entry
    return files


def require_folder(path: Path) -> Path:
    """Return the path; raise DataError unless it is a folder."""
    if not path.exists():
        raise DataError(f"{path}: does not exist, needs a folder")
    if not path.is_dir():
        raise DataError(f"{path}: needs a folder, got a file")
    return path


def _name(entry: Path) -> str:
    return unicodedata.normalize("NFC", entry.name)


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
    """Rows found under a folder, and every problem met on the way, in the order of discovery."""

    root: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

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

    def add(self, **row: Any) -> None:
        """Check the headers of one sample's files against each other and add its row.

        Parameters
        ----------
        row
            category, split, defect, stem, geometric and the paths rgb, xyz, mask (or None).

        Raises
        ------
        DataError
            A header is unreadable, sizes differ, or the colour image has not 8 bits.
        """
        paths = {kind: row[kind] for kind in ("rgb", "xyz", "mask")}
        headers = {kind: read_header(path) for kind, path in paths.items() if path is not None}
        if "rgb" in headers:
            require_rgb_header(paths["rgb"], headers["rgb"])
        height, width = next((header.height, header.width) for header in headers.values())
        for kind, header in headers.items():
            require_same_size(paths[kind], (header.height, header.width), (height, width))
        self.rows.append(
            {
                "sample_id": f"{row['category']}/{row['split']}/{row['defect']}/{row['stem']}",
                "category": row["category"],
                "split": row["split"],
                "defect": row["defect"],
                "label": int(row["defect"] != GOOD),
                "geometric": row["geometric"],
                "height": height,
                "width": width,
                **{kind: relative(self.root, path) for kind, path in paths.items()},
            }
        )


class FileDataset:
    """Index, look-up and fingerprint of a data set whose samples are files under one folder.

    Parameters
    ----------
    root
        The folder; paths in the index are relative to it.
    scan
        What was found there.
    categories
        Selection and order; None for all in the order found.
    options
        Whatever else changes what `load` returns; part of the fingerprint.
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
        root: Path,
        scan: Scan,
        categories: tuple[str, ...] | None,
        options: str,
        problems: list[str] | None,
    ) -> None:
        if problems is not None:
            problems.extend(scan.problems)
        elif scan.problems:
            others = len(scan.problems) - 1
            more = f" (and {others} more; `iumad data check {root}` lists them)" if others else ""
            raise DataError(scan.problems[0] + more)
        if not scan.rows:
            raise DataError(f"{root}: holds no samples")
        self.root = root
        self.categories = scan.categories() if categories is None else tuple(categories)
        self.index: pd.DataFrame = build_index(scan.rows, self.categories)
        self._rows = self.index.set_index("sample_id").to_dict("index")
        self._options = options

    def row(self, sample_id: str) -> dict[str, Any]:
        """Return the index row of a sample; raise DataError for an unknown id."""
        if sample_id not in self._rows:
            example = next(iter(self._rows))
            raise DataError(f"no sample {sample_id!r} in {self.root}; ids look like {example!r}")
        return self._rows[sample_id]

    def path(self, sample_id: str, kind: str) -> Path | None:
        """Return the path of a sample's ``rgb``, ``xyz`` or ``mask`` file, None without a file."""
        relative_path = self.row(sample_id)[kind]
        return self.root / relative_path if relative_path else None

    def fingerprint(self, sample_id: str) -> str:
        """Return a hash of the options and of every file's path, size and time of change."""
        row = self.row(sample_id)
        digest = hashlib.sha256(f"{self._options}|{sample_id}|{row['defect']}".encode())
        for path in self.files(sample_id):
            try:
                state = path.stat()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
            digest.update(f"|{path}|{state.st_size}|{state.st_mtime_ns}".encode())
        return digest.hexdigest()

    def files(self, sample_id: str) -> list[Path]:
        """Return all files that `load` reads for a sample."""
        paths = (self.path(sample_id, kind) for kind in ("rgb", "xyz", "mask"))
        return [path for path in paths if path is not None]

    def mask_or_zeros(self, sample_id: str, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """Return the ground truth of a sample, all False where it has no mask file.

        Raises
        ------
        DataError
            The mask is damaged, has another size, or marks pixels of a good sample.
        """
        path = self.path(sample_id, "mask")
        if path is None:
            return np.zeros(size, dtype=bool)
        mask = read_mask(path)
        require_same_size(path, mask.shape, size)
        if self.row(sample_id)["defect"] == GOOD and mask.any():
            raise DataError(f"{path}: belongs to a good sample but marks {mask.sum()} pixels")
        return mask

    def sample(
        self,
        sample_id: str,
        rgb: UInt8[np.ndarray, "h w 3"],
        xyz: Float32[np.ndarray, "h w 3"] | None,
        foreground: Bool[np.ndarray, "h w"] | None = None,
    ) -> Sample:
        """Put the images and the index row of one sample together, with its mask."""
        row = self.row(sample_id)
        return Sample(
            sample_id=sample_id,
            category=row["category"],
            split=row["split"],
            defect=row["defect"],
            rgb=rgb,
            xyz=xyz,
            mask=self.mask_or_zeros(sample_id, rgb.shape[:2]),
            geometric=None if pd.isna(row["geometric"]) else bool(row["geometric"]),
            foreground=foreground,
        )


def category_folders(scan: Scan, categories: tuple[str, ...] | None) -> dict[str, Path]:
    """Return the folders of the wanted categories; missing ones become problems.

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
    if categories is None:
        return found
    for missing in (name for name in categories if name not in found):
        scan.problems.append(f"{scan.root}: no category {missing!r}, only {', '.join(found)}")
    return {name: found[name] for name in categories if name in found}


def cut_out(
    xyz: Float32[np.ndarray, "h w 3"], sample_id: str
) -> tuple[Float32[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Remove the background plane with random numbers that depend on the points only; the id is for errors."""
    try:
        return remove_plane(xyz, np.random.default_rng(zlib.crc32(np.ascontiguousarray(xyz).data)))
    except DataError as error:
        raise DataError(f"{sample_id}: {error}") from error


def relative(root: Path, path: Path | None) -> str:
    """Return the path as seen from the root with forward slashes, "" for None."""
    return "" if path is None else Path(os.path.relpath(path, root)).as_posix()


SECOND_FOLDERS = ("xyz", "depth", "z", "infrared", "ir")


def find_second(image: Path) -> Path:
    """The aligned second image of a colour image, by name: in a folder beside `rgb`, or beside it with a suffix.

    ``rgb/007.png`` goes with ``xyz/007.tiff``, ``depth/007.png`` and the like; ``007.png`` with ``007_depth.tiff``
    and the like.

    Raises
    ------
    DataError
        There is none, or more than one.
    """
    folders = [image.parent.parent / name for name in SECOND_FOLDERS]
    found = [each for folder in folders for each in sorted(folder.glob(f"{image.stem}.*"))]
    beside = [image.parent.glob(f"{image.stem}_{name}.*") for name in SECOND_FOLDERS]
    found += [each for matches in beside for each in sorted(matches)]
    if len(found) != 1:
        names = ", ".join(str(each) for each in found) or "none"
        raise DataError(
            f"{image}: the model needs its second image, named alike in a folder {'/, '.join(SECOND_FOLDERS)}/ "
            f"beside that of the image, or given by --second; found: {names}"
        )
    return found[0]
