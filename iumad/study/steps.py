"""Steps of a run and their files in a results folder; reads and runs nothing, needs no torch.

    results/steps/<step key>/   checkpoint.pt  log.csv  remembered-<hash>.pt  rows-<hash>.csv  provenance.json
                                partial.pt  unfinished.json (while it is trained)  lock

A step key covers all that decides the model after that step, so runs share what they have in common: settings
6-4 and 6-1 their base, all increment strategies theirs.
"""

from dataclasses import dataclass
from pathlib import Path

from iumad.config.schema import RunConfig, stable_hash
from iumad.data import AbsentData, Dataset, data_of


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
        """State of an unfinished training, between epochs."""
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
