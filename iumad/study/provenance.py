"""Where a result came from: parameters, code, packages, machine, time and memory.

Nothing here imports torch: versions come from the installed packages' metadata.
"""

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from iumad.errors import DataError
from iumad.machine import usable_cores
from iumad.study.results import write_text

PACKAGES = (
    "iumad",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "numba",
)


@dataclass(frozen=True)
class Provenance:
    """Record that is stored beside the rows of a run."""

    run_id: str
    params: dict[str, Any]  # the run's full configuration, as JSON types
    commit: str | None  # git commit of the code; None if it does not lie in a checkout
    modified: bool | None  # whether tracked files differed from that commit
    packages: dict[str, str]  # name -> version, of those installed
    python: str
    system: str
    cpu: str
    cores: int  # that this process may use
    threads: int  # of the libraries that compute; the last bits of a result depend on it
    memory_gb: float | None  # of the machine, 10^9 bytes
    device: str  # what the model ran on: "cpu" or the accelerator's name
    started: str  # ISO 8601 with time zone
    duration_s: float  # training and evaluation, all resumed parts together
    peak_memory_mb: float | None  # largest resident memory of the process, 10^6 bytes


def record_provenance(
    run_id: str,
    params: dict[str, Any],
    started: datetime,
    duration_s: float,
    device: str,
    threads: int,
) -> Provenance:
    """Describe this process, its code and its machine.

    Parameters
    ----------
    run_id : str
        Hash of the run's configuration.
    params : dict
        The configuration in JSON types.
    started : datetime
        With time zone.
    duration_s : float
        Seconds that the run took.
    device : str
        "cpu", or the name of the accelerator.
    threads : int
        See `Provenance`.
    """
    commit, modified = _git_state()
    return Provenance(
        run_id=run_id,
        params=params,
        commit=commit,
        modified=modified,
        packages=_installed_versions(),
        python=platform.python_version(),
        system=platform.platform(),
        cpu=_cpu_model(),
        cores=usable_cores(),
        threads=threads,
        memory_gb=_memory_gb(),
        device=device,
        started=started.astimezone().isoformat(timespec="seconds"),
        duration_s=round(duration_s, 3),
        peak_memory_mb=peak_memory_mb(),
    )


def write_provenance(provenance: Provenance, path: Path) -> None:
    """Write the record as JSON in one step."""
    write_text(json.dumps(asdict(provenance), indent=2) + "\n", path)


def read_provenance(path: Path) -> Provenance:
    """Read a record that `write_provenance` wrote; `DataError` if it is none."""
    try:
        return Provenance(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as a provenance record: {error}") from error


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far in 10^6 bytes; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource  # exists on Unix only

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that tracks this file and whether tracked files were changed."""
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    commit = _git("rev-parse", "HEAD")
    if tracked is None or commit is None:  # installed from a wheel, or no git
        return None, None
    return commit, bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _installed_versions() -> dict[str, str]:
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # the record lists what is there
    return installed


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    if sys.platform == "win32":
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
