"""Steps of a run and where their files lie in a results folder; reads and runs nothing.

    results/steps/<step key>/   checkpoint.pt  log.csv  memory-<hash>.pt  rows-<hash>.csv  provenance.json

A step key covers all that decides the model after that step, so runs share what they have in common: settings
6-4 and 6-1 their base, all increment strategies theirs.
"""

from pathlib import Path

from iumad.config.schema import RunConfig, stable_hash
from iumad.config.settings import parse_setting
from iumad.data import categories_of

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
PROVENANCE = "provenance.json"


def steps_of(run: RunConfig, categories: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Categories that each step of a run learns; joint training has one step, whatever the setting."""
    steps = parse_setting(run.setting, categories)
    return (categories,) if run.increment.strategy == "joint" else steps


def step_keys(run: RunConfig, categories: tuple[str, ...]) -> list[str]:
    """Key of the model after each step of a run."""
    steps = steps_of(run, categories)
    return [run.step_key(steps[:end]) for end in range(1, len(steps) + 1)]


def step_folder(results: Path, run: RunConfig, steps: tuple[tuple[str, ...], ...]) -> Path:
    """Where the files of the last of these steps lie in a results folder."""
    return results / "steps" / run.step_key(steps)


def step_folders(run: RunConfig, results: Path, categories: tuple[str, ...]) -> list[Path]:
    """Folder of each step of a run, finished or not."""
    return [results / "steps" / key for key in step_keys(run, categories)]


def rows_file(step: Path, run: RunConfig) -> Path:
    """The table of metrics in the folder of a step, as this run evaluates."""
    return step / f"rows-{stable_hash(run.evaluation.model_dump(mode='json'))}.csv"


def row_files(run: RunConfig, results: Path, categories: tuple[str, ...]) -> list[Path]:
    """Tables of metrics of a run's steps, finished or not; the last one is written last."""
    return [rows_file(folder, run) for folder in step_folders(run, results, categories)]


def is_trained(run: RunConfig, results: str | Path) -> bool:
    """Whether the model after the run's last step exists."""
    last = step_folders(run, Path(results), categories_of(run.data))[-1]
    return (last / CHECKPOINT).exists()
