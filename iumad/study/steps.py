"""Steps of a run: their files in a results folder and where they came from; runs nothing, needs no torch.

    results/steps/<step key>/   checkpoint.pt  log.csv  remembered-<hash>.pt  rows-<hash>.csv  provenance.json
                                <kind>-<hash>.csv (`iumad.study.measured`)  lock
                                until checkpoint.pt is there: unfinished.json, and partial.pt, which is saved after
                                an epoch, at most once a minute

A step key covers all that decides the model after that step, so runs share what they have in common: settings
6-4 and 6-1 their base, all increment strategies theirs. The provenance has parameters, code, packages, machine,
time and memory.
"""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from iumad.config.schema import RunConfig, stable_hash
from iumad.data import AbsentData, Dataset, data_of
from iumad.errors import DamagedFileError
from iumad.machine import forget_peak_memory, peak_memory_mb, usable_cores
from iumad.study.results import write_text


@dataclass(frozen=True)
class Step:
    """One step of a run: what it learns, and where its files lie.

    Attributes
    ----------
    number : int
        0 is the base.
    categories, seen : tuple of str
        Learnt in this step; learnt so far.
    folder : Path
        Its name is the step's key.
    rows, remembered : Path
        The metrics as this run evaluates; what this run's protection keeps of the step.
    previous : Step or None
    """

    number: int
    categories: tuple[str, ...]
    seen: tuple[str, ...]
    folder: Path
    rows: Path
    remembered: Path
    previous: "Step | None"

    @property
    def key(self) -> str:
        """Hash of all that decides the model after the step."""
        return self.folder.name

    @property
    def checkpoint(self) -> Path:
        """The finished model."""
        return self.folder / "checkpoint.pt"

    @property
    def partial(self) -> Path:
        """State of an unfinished training after an epoch, saved at most once a minute."""
        return self.folder / "partial.pt"

    @property
    def unfinished(self) -> Path:
        """Time, memory and threads of an unfinished training."""
        return self.folder / "unfinished.json"

    @property
    def log(self) -> Path:
        """Loss terms of each epoch."""
        return self.folder / "log.csv"

    @property
    def provenance(self) -> Path:
        """Where the step came from."""
        return self.folder / "provenance.json"

    @property
    def lock(self) -> Path:
        """Held by the process that writes to the folder."""
        return self.folder / "lock"


def steps_of(
    run: RunConfig, results: str | Path, data: Dataset | AbsentData | None = None
) -> list[Step]:
    """Steps of a run in order, finished or not; `data` is the data set, where the caller has opened it."""
    data = data or data_of(run.data)
    learnt = run.steps_of(data.categories)
    evaluation = run.evaluation.model_dump(mode="json")
    protection = run.increment.model_dump(mode="json")
    steps: list[Step] = []
    for number in range(len(learnt)):
        seen = tuple(name for names in learnt[: number + 1] for name in names)
        key = run.step_key(learnt[: number + 1], data.digest("train", seen))
        tested = [data.digest("test", seen)]
        if checked := data.digest("validation", seen):
            tested.append(checked)
        if run.perturb.test:
            tested.append(run.perturb.model_dump_json(exclude={"where"}))
        folder = Path(results) / "steps" / key
        step = Step(
            number=number,
            categories=learnt[number],
            seen=seen,
            folder=folder,
            rows=folder / f"rows-{stable_hash([evaluation, *tested])}.csv",
            remembered=folder / f"remembered-{stable_hash([protection, run.seed])}.pt",
            previous=steps[-1] if steps else None,
        )
        steps.append(step)
    return steps


def is_trained(run: RunConfig, results: str | Path) -> bool:
    """Whether the model after the run's last step exists."""
    return steps_of(run, results)[-1].checkpoint.exists()


def is_evaluated(
    run: RunConfig, results: str | Path, data: Dataset | AbsentData | None = None
) -> bool:
    """Whether the rows of all steps of a run exist."""
    return all(step.rows.exists() for step in steps_of(run, results, data))


def run_name(run: RunConfig) -> str:
    """A run in words: "ib-iumad rgb+depth 6-1 seed 0"."""
    return f"{run.method} {run.modality} {run.setting} seed {run.seed}"


_REMEDY = "delete its folder; `iumad run` trains the step again"

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
    """Record that is stored beside the model of a step."""

    run_id: str
    params: dict[str, Any]  # the run's full configuration, as JSON types
    commit: str | None  # git commits of the code, "; " between them; None outside of a checkout
    modified: bool | None  # whether tracked files differed from a commit
    packages: dict[str, str]  # name -> version, of those installed
    python: str
    system: str
    cpu: str
    cores: int  # that this process may use
    threads: int  # of the libraries that compute; the last bits of a result depend on it
    memory_gb: float | None  # of the machine, 10^9 bytes
    device: str  # what the model ran on: "cpu" or the accelerator's name
    started: str  # ISO 8601 with time zone
    training_s: float  # all resumed parts together
    evaluation_s: float  # of the test images, the first time; 0 as long as it was not done
    peak_memory_mb: float | None  # see `iumad.machine.peak_memory_mb`, 10^6 bytes

    @property
    def duration_s(self) -> float:
        """Training and evaluation."""
        return self.training_s + self.evaluation_s


class Effort:
    """What the training of a step takes; the parts into which interruptions divide it add up in a small file.

    Parameters
    ----------
    path : Path
        The file; whoever has saved the model deletes it.
    threads : int
        For a new step. One that was begun keeps its number, since the last bits of a sum depend on it.
    """

    _SECONDS = 10.0  # between two updates of the file: a kill loses the count of no more

    def __init__(self, path: Path, threads: int) -> None:
        self._path = path
        commit, modified = _git_state()
        self._record: dict[str, Any] = {
            "threads": threads,
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "seconds": 0.0,
            "peak_memory_mb": None,
            "commit": commit,
            "modified": modified,
        }
        if path.exists():
            earlier = _read_json(path)
            self._record |= {key: earlier[key] for key in self._record}
            codes = dict.fromkeys(code for code in (earlier["commit"], commit) if code)
            self._record["commit"] = "; ".join(codes) or None
            self._record["modified"] = bool(earlier["modified"]) or modified
        self._before = self._record["seconds"]
        self._peak_before = self._record["peak_memory_mb"]
        self._clock = self._saved = time.monotonic()
        forget_peak_memory()
        self._save()

    @property
    def threads(self) -> int:
        """Threads to compute with."""
        return self._record["threads"]

    def update(self) -> None:
        """Called often while the step is trained."""
        if time.monotonic() - self._saved > self._SECONDS:
            self._save()

    def finish(self) -> dict[str, Any]:
        """Write the file with the last part, and return what it holds: the fields of a record."""
        self._save()
        return self._record

    def _save(self) -> None:
        self._saved = time.monotonic()
        peaks = [peak for peak in (self._peak_before, peak_memory_mb()) if peak is not None]
        self._record["seconds"] = self._before + self._saved - self._clock
        self._record["peak_memory_mb"] = max(peaks, default=None)
        write_text(json.dumps(self._record) + "\n", self._path)


def record_provenance(
    run_id: str, params: dict[str, Any], device: str, effort: dict[str, Any]
) -> Provenance:
    """Describe this process, its code and its machine.

    Parameters
    ----------
    run_id : str
        Hash of the run's configuration.
    params : dict
        The configuration in JSON types.
    device : str
        "cpu", or the name of the accelerator.
    effort : dict
        What `Effort.finish` returned.
    """
    return Provenance(
        run_id=run_id,
        params=params,
        commit=effort["commit"],
        modified=effort["modified"],
        packages=_installed_versions(),
        python=platform.python_version(),
        system=platform.platform(),
        cpu=cpu_model(),
        cores=usable_cores(),
        threads=effort["threads"],
        memory_gb=_memory_gb(),
        device=device,
        started=effort["started"],
        training_s=round(effort["seconds"], 3),
        evaluation_s=0.0,
        peak_memory_mb=effort["peak_memory_mb"],
    )


def code_and_machine() -> dict[str, str]:
    """What a page says of its execution: commit ("+" if files outside the book were changed), processor, cores."""
    commit, modified = _git_state()
    cores = usable_cores()
    machine = f"{cpu_model()}, {cores} core{'s' * (cores > 1)}"
    return {"commit": f"{commit[:7]}{'+' * bool(modified)}" if commit else "", "machine": machine}


def add_evaluation(path: Path, seconds: float, peak_mb: float | None) -> None:
    """Put the time and memory of the first evaluation into a step's record."""
    record = read_provenance(path)
    if record.evaluation_s == 0:
        peaks = [peak for peak in (record.peak_memory_mb, peak_mb) if peak is not None]
        changed = replace(
            record, evaluation_s=round(seconds, 3), peak_memory_mb=max(peaks, default=None)
        )
        write_provenance(changed, path)


def write_provenance(provenance: Provenance, path: Path) -> None:
    """Write the record as JSON in one step."""
    write_text(json.dumps(asdict(provenance), indent=2) + "\n", path)


def read_provenance(path: Path) -> Provenance:
    """Read a record that `write_provenance` wrote; `DamagedFileError` if it is none."""
    try:
        return Provenance(**_read_json(path))
    except TypeError as error:
        raise DamagedFileError(f"{path}: damaged, {error}; {_REMEDY}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path}: damaged, no JSON: {error}; {_REMEDY}") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path}: damaged, no record; {_REMEDY}")
    return content


def _git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that tracks this file, and whether tracked files outside the book were changed."""
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    commit = _git("rev-parse", "HEAD")
    if tracked is None or commit is None:  # installed from a wheel, or no git
        return None, None
    tracked_files = ("--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)book")
    return commit, bool(_git("status", *tracked_files))


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


def cpu_model() -> str:
    """The processor's name; empty where it is not known."""
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
