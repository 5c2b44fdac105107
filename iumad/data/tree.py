"""Listing folders that people have made: natural order, any case, no surprises from links."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from iumad.data.decode import IMAGE_SUFFIXES
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
