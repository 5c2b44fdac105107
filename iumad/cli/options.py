"""Arguments and options that several commands share, and the choice of runs that they describe."""

from pathlib import Path
from typing import Annotated

import typer

from iumad.config.files import load_params
from iumad.config.schema import StudyConfig

Params = Annotated[Path, typer.Argument(help="params file (YAML); keys: `iumad params`")]
Results = Annotated[Path, typer.Option(help="results folder")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Method = Annotated[list[str] | None, typer.Option("--method", help="only this method (repeatable)")]
Modality = Annotated[
    list[str] | None, typer.Option("--modality", help="only this modality (repeatable)")
]
Setting = Annotated[
    list[str] | None, typer.Option("--setting", help="only this setting (repeatable)")
]
Seed = Annotated[list[int] | None, typer.Option("--seed", help="only this seed (repeatable)")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="change one key of all methods: KEY=VALUE, e.g. data.root=my/folder (repeatable)",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "-j",
        "--jobs",
        min=1,
        help="runs at the same time, one thread each; default: one per core on CPU, else one",
    ),
]


def chosen_study(
    params: Path,
    change: list[str] | None = None,
    method: list[str] | None = None,
    modality: list[str] | None = None,
    setting: list[str] | None = None,
    seed: list[int] | None = None,
) -> StudyConfig:
    """The study of a params file with its changes, or the part of its grid that is asked for."""
    study = load_params(params, assignments=change or [])
    wanted = {"methods": method, "modalities": modality, "settings": setting, "seeds": seed}
    return study.select(**{axis: values for axis, values in wanted.items() if values})
