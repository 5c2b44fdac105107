"""Params files and the pages made from them."""

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
import yaml

from iumad.cli.options import Params
from iumad.cli.output import console, print_table
from iumad.config.files import base_chain, load_params
from iumad.config.schema import StudyConfig
from iumad.errors import ConfigError


def params(
    file: Annotated[
        Path | None, typer.Argument(help="params file; none: the defaults of all keys")
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="check a params file and list its runs")
    ] = None,
) -> None:
    """Check a params file and list its files and runs, or print every key with its default.

    The settings must fit the categories, which needs the data where they lie on disk.
    """
    from iumad.data import data_of

    file = check or file
    if file is None:
        console.print(_all_defaults(), highlight=False, markup=False)
        return
    study = load_params(file)
    runs = study.runs()
    categories = data_of(study.data).categories
    steps = [len(run.steps_of(categories)) for run in runs]
    table = pd.DataFrame(
        [(r.run_id, r.method, r.modality, r.setting, r.seed) for r in runs],
        columns=["run_id", "method", "modality", "setting", "seed"],
    )
    print_table(table.assign(steps=steps))
    print_table(pd.DataFrame(study.notes.items(), columns=["method", "what it is"]))
    chain = " <- ".join(str(path) for path in base_chain(file))
    console.print(f"{chain}: valid, {len(runs)} runs", markup=False, highlight=False)


def book(
    params: Annotated[
        Path | None, typer.Argument(help="params file; none: the published notebooks")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for executed notebooks and pages")] = Path(
        "build"
    ),
    execute: Annotated[
        bool,
        typer.Option(
            "--execute",
            help="execute the published notebooks anew first, from the published tables alone",
        ),
    ] = False,
) -> None:
    """Execute the notebooks for a params file and build the book; without one, build the published book."""
    from iumad.report.book import make_book

    if params is not None and execute:
        raise ConfigError("--execute is for the published book: leave it out, or the params file")
    page = make_book(params, out / (params.stem if params else "published"), execute=execute)
    console.print(f"open {page.resolve()}", markup=False, highlight=False)


def notebook(
    notebook: Annotated[Path, typer.Argument(help="e.g. notebooks/05_settings.ipynb")],
    params: Params,
    out: Annotated[Path, typer.Option(help="folder of the executed notebook")] = Path("build"),
    results: Annotated[
        Path | None, typer.Option(help="results folder; default: the notebook's own")
    ] = None,
) -> None:
    """Execute one notebook with a params file, or with the file of its own study beside that."""
    from iumad.report.book import execute_notebook

    console.print(str(execute_notebook(notebook, params, out, results)), highlight=False)


def _all_defaults() -> str:
    defaults = StudyConfig().runs()[0].model_dump(mode="json")
    return yaml.safe_dump(json.loads(json.dumps(defaults)), sort_keys=False)
