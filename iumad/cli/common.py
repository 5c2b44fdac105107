"""What commands share: arguments and options, the choice of runs that they describe, tables and messages."""

import sys
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

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
    """The study of a params file with its changes, each of which has an effect, or a part of its grid."""
    study = load_params(params, assignments=change or [])
    wanted = {"methods": method, "modalities": modality, "settings": setting, "seeds": seed}
    part = study.select(**{axis: values for axis, values in wanted.items() if values})
    part.require_effect()
    return part


SUMMARY = ("i_auroc", "p_auroc", "aupro", "accuracy", "fm_i_auroc", "fm_aupro")
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def say(text: str) -> None:
    """Print a line as it is: nothing in it is markup, and nothing is coloured."""
    console.print(text, markup=False, highlight=False)


def print_summary(rows: pd.DataFrame) -> None:
    """Means over categories after the last step, and forgetting, of every run."""
    from iumad.study.results import final_table

    keys = ["method", "modality", "setting", "seed"]
    table = final_table(rows)
    table = table[table["metric"].isin(SUMMARY)]
    print_table(
        table.pivot_table(index=keys, columns="metric", values="value", sort=False).reset_index()
    )


def print_table(frame: pd.DataFrame) -> None:
    """Print a table, whole where the output is not a terminal."""
    table = Table(*[str(column) for column in frame.columns], box=None, header_style="bold")
    for row in frame.itertuples(index=False):
        table.add_row(*[_cell(value) for value in row])
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.4f}"
    return escaped(str(value))


def escaped(text: str) -> str:
    """Text in which square brackets are not markup."""
    return text.replace("[", r"\[")
