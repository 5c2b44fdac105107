"""What this process may use, and how it reads and writes files.

Files are written in one step: a reader, or a killed writer, never leaves or sees half of one. A sealed file ends
with a checksum of its content and its place (folder and name), so that a damaged or misplaced one is found when it
is read.
"""

import gzip
import hashlib
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import pandas as pd
import platformdirs

from iumad.errors import DamagedFileError, DataError

_MARK = b"# sha256 "
_SEAL_LENGTH = len(_MARK) + 64 + 1
_STALE = 3600.0  # seconds after which a temporary file belongs to no living writer


def usable_cores() -> int:
    """Cores of the machine, or fewer where Linux keeps this process to some of them; at least 1."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_folder() -> Path:
    """Folder of what can be worked out again: `$IUMAD_CACHE`, else the user's cache folder of this system."""
    return Path(os.environ.get("IUMAD_CACHE") or platformdirs.user_cache_dir("iumad"))


def read_table(
    source: Path | bytes,
    numbers: Mapping[str, type] | None = None,
    name: str = "",
    needed: Iterable[str] = (),
    remedy: str = "",
) -> pd.DataFrame:
    """Read a CSV table in which everything is text, but for the columns of numbers.

    A category may be called 001, NA or true, so nothing is guessed from looks.

    Parameters
    ----------
    source : Path or bytes
        The file, unpacked if its name ends with .gz; or its content.
    numbers : column -> int or float, optional
        Columns that it has or may lack. An empty cell of a float is missing; all digits are read as written.
    name : str
        What errors call the table, by default the path.
    needed : iterable of str
        Columns that it has to have.
    remedy : str
        What errors end with.

    Raises
    ------
    DataError
        The table cannot be read, lacks a column, or a number is none.
    """
    name = name or (str(source) if isinstance(source, Path) else "the table")
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
        if isinstance(source, Path) and source.suffix == ".gz":
            content = gzip.decompress(content)
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8")
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first column for names
            raise ValueError("its lines have more cells than its head names columns")
        for column, kind in (numbers or {}).items():
            if column in table:
                values = [kind(text or "nan") for text in table[column]]
                table[column] = pd.Series(values, table.index, dtype=kind)
        lacks = [column for column in needed if column not in table]
        if lacks:
            raise ValueError(f"it lacks the column {lacks[0]}")
    except (OSError, EOFError, ValueError) as error:  # the parser's errors are ValueErrors
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: cannot be read as a table ({reason}){remedy}") from error
    return table


def forget_peak_memory() -> None:
    """Let `peak_memory_mb` start anew, so that it is that of what follows; Linux only."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process in 10^6 bytes; None on Windows.

    On Linux since `forget_peak_memory`, elsewhere since the process began.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(peak.split()[1]) * 1024 / 1e6, 1)
    if sys.platform == "win32":
        return None
    import resource  # exists on Unix only

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` that takes its place at the end; after an error the old one is still there.

    The folder is made if it is missing. The file has the permissions of any new file. A full disk and the like are
    an `OSError` that names `path`.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def remove_stale(folder: Path, older_than: float = _STALE) -> None:
    """Delete temporary files that killed writers left in a folder, at least so many seconds ago."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


def write_sealed(path: Path, content: bytes) -> None:
    """Write a file with its checksum at the end, and make sure that it is on the disk."""
    with replacing(path) as file:
        file.write(content)
        file.write(_seal(path, content))
        file.flush()
        os.fsync(file.fileno())


def read_sealed(path: Path) -> bytes:
    """Content of a file that `write_sealed` wrote.

    Raises
    ------
    DamagedFileError
        The file was changed, cut, copied from another place, or never sealed.
    """
    if path.exists() and not path.is_file():
        raise DamagedFileError(f"{path}: a folder or device where a file was written; {REMEDY}")
    whole = path.read_bytes()
    content, seal = whole[:-_SEAL_LENGTH], whole[-_SEAL_LENGTH:]
    if not seal.startswith(_MARK):
        raise DamagedFileError(f"{path}: damaged, it does not end with its checksum; {REMEDY}")
    if seal != _seal(path, content):
        raise DamagedFileError(
            f"{path}: damaged or from another place, its checksum does not fit; {REMEDY}"
        )
    return content


REMEDY = "delete it; `iumad run` makes it again"


def _seal(path: Path, content: bytes) -> bytes:
    digest = hashlib.sha256(f"{path.parent.name}/{path.name}\n".encode() + content)
    return _MARK + digest.hexdigest().encode() + b"\n"
