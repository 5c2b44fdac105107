"""What is worked out once from the files of a data set and kept: hashes of their content, ranges of their depth.

One small database in the cache folder. It only saves time: without it, or when it is damaged, the same answers are
worked out again.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from iumad.errors import DataError
from iumad.machine import cache_folder

FILE = "data.sqlite"
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
    path = cache_folder() / FILE
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
