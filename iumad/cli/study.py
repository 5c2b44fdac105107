"""Commands on params files: check, train, list, look at, measure, publish, and make the pages."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from iumad.cli.common import (
    Device,
    Jobs,
    Method,
    Modality,
    Params,
    Results,
    Seed,
    Set,
    Setting,
    chosen_study,
    print_summary,
    print_table,
    say,
)
from iumad.config.files import base_chain, load_params
from iumad.config.listing import all_keys
from iumad.errors import ConfigError


def run(
    params: Params,
    results: Results = Path("results"),
    device: Device = "auto",
    jobs: Jobs = None,
    threads: Annotated[
        int,
        typer.Option(min=1, help="threads that each run computes with; the last bits depend on it"),
    ] = 1,
    method: Method = None,
    modality: Modality = None,
    setting: Setting = None,
    seed: Seed = None,
    change: Set = None,
) -> None:
    """Train and evaluate the runs of a params file, or a part of them.

    What is finished is loaded, what was interrupted goes on. `iumad measure` follows, which trains the last step
    of each trained method once more, with the first seed, to watch it.
    """
    from iumad.study.measure import measure as measured
    from iumad.study.parallel import default_jobs, run_parallel
    from iumad.study.runner import check_study, run_study

    study = chosen_study(params, change, method, modality, setting, seed)
    for text in check_study(study, device):
        say(f"warning: {text}")
    run_parallel(study, results, device, jobs or default_jobs(device), threads)
    print_summary(run_study(study, results, device, threads))
    measured(study, results, device=device, whole=load_params(params, assignments=change or []))


def plan(
    params: Params,
    results: Results = Path("results"),
    method: Method = None,
    modality: Modality = None,
    setting: Setting = None,
    seed: Seed = None,
    change: Set = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="time each method here, on random images")
    ] = False,
    device: Device = "auto",
) -> None:
    """List the runs of a params file, what of each is done, and how long the rest may take."""
    from iumad.study.load import needs
    from iumad.study.load import plan as planned

    study, speeds = chosen_study(params, change, method, modality, setting, seed), None
    if measure:
        from iumad.study.efficiency import measure_speeds

        speeds, features, size = measure_speeds(study, device)
    table, seconds = planned(study, results, speeds)
    print_table(table)
    if measure:
        for line in needs(study, features, size, speeds):
            say(line)
    estimate = (
        "unknown (nothing comparable has been run here or published)"
        if seconds is None
        else f"{seconds / 3600:.2f} h"
    )
    say(
        f"{len(table)} runs, {int((table['done'] == table['steps']).sum())} finished; time left: {estimate}"
    )


def evaluate(
    params: Params,
    results: Results = Path("results"),
    method: Method = None,
    modality: Modality = None,
    setting: Setting = None,
    seed: Seed = None,
    change: Set = None,
    csv: Annotated[Path | None, typer.Option(help="write the tidy rows to this file")] = None,
) -> None:
    """Show every category's metrics after the last step of finished runs; trains nothing."""
    from iumad.study import results as tables
    from iumad.study.load import load_rows, progress
    from iumad.study.steps import run_name

    study = chosen_study(params, change, method, modality, setting, seed)
    rows = load_rows(study, results)
    finished = progress(study, results)["finished"]
    absent = [run_name(run) for run, done in zip(study.runs(), finished, strict=True) if not done]
    if rows.empty:
        raise ConfigError(
            f"{results}: none of the {len(absent)} runs is trained, here or in the published tables; "
            f"the first is {absent[0]}; train it with `iumad run {params}`"
        )
    last = tables.last_step(rows)
    keys = ["method", "modality", "setting", "seed", "category"]
    print_table(
        last.pivot_table(index=keys, columns="metric", values="value", sort=False).reset_index()
    )
    if absent:
        say(f"not trained: {'; '.join(absent)}")
    if csv is not None:
        tables.write_table(rows, csv)
        say(f"{len(rows)} rows written to {csv}")


def measure(
    params: Params,
    results: Results = Path("results"),
    kind: Annotated[
        list[str] | None, typer.Option(help="only this kind (repeatable); default: all")
    ] = None,
    method: Method = None,
    modality: Modality = None,
    setting: Setting = None,
    seed: Seed = None,
    change: Set = None,
    device: Device = "auto",
) -> None:
    """Measure what pages show of finished models beside their rows: scores, maps, evaluation details.

    As a rule of the last setting and modality and the first seed, of the whole study or of a part of it.
    """
    from iumad.study.measure import measure as measured
    from iumad.study.measured import KINDS

    unknown = [name for name in kind or () if name not in KINDS]
    if unknown:
        raise ConfigError(f"--kind {unknown[0]}: no such kind; known: {', '.join(KINDS)}")
    study = chosen_study(params, change, method, modality, setting, seed)
    written = measured(study, results, kind or tuple(KINDS), device)
    say(f"{results}: {written} tables measured")


def efficiency(
    params: Params, results: Results = Path("results"), device: Device = "auto", change: Set = None
) -> None:
    """Measure time and memory of a params file's methods, and how long a category takes to learn.

    Weights are random. What was measured before is kept: delete RESULTS/efficiency to measure again.
    """
    from iumad.study.efficiency import measure_study

    table = measure_study(chosen_study(params, change), results, device)
    say(f"{len(table)} numbers; the notebook on efficiency shows them")


def publish(
    params: Annotated[list[Path], typer.Argument(help="params files (YAML) of the studies")],
    profile: Annotated[str, typer.Option(help="name of the folder of the tables")] = "mini",
    results: Results = Path("results"),
    change: Set = None,
) -> None:
    """Write the numbers of finished runs into the committed tables, RESULTS/PROFILE."""
    from iumad.study.publish import publish as published

    counts = published([chosen_study(path, change) for path in params], results, profile)
    said = ", ".join(f"{count} {what}" for what, count in counts.items())
    say(f"{results / profile}: {said}")


def model(
    params: Params,
    method: Annotated[str | None, typer.Option(help="default: the last one with a network")] = None,
    modality: Annotated[str | None, typer.Option(help="default: the last")] = None,
    categories: Annotated[int, typer.Option(min=1, help="number of logits")] = 10,
    change: Set = None,
) -> None:
    """Show the parts of a method's model: parameters, and operations for one image. Needs no data."""
    from iumad.study.counting import model_card, network_run

    methods, modalities = ([name] if name else None for name in (method, modality))
    chosen = chosen_study(params, change, methods, modalities)
    print_table(model_card(network_run(chosen), categories))


def params(
    file: Annotated[Path | None, typer.Argument(help="params file; none: all keys")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="params file to list and to check as `run` does")
    ] = None,
) -> None:
    """List the files and runs of a params file, or print every key with its default and meaning.

    --check also looks the data over and makes every model once, as `iumad run` does before it trains.
    """
    from iumad.data import data_of

    if check is None and file is None:
        say(all_keys())
        return
    if check is not None and file is not None:
        raise ConfigError("params: one file, with or without --check")
    path = check or file
    assert path is not None
    study = load_params(path)
    runs = study.runs()
    categories = data_of(study.data).categories
    steps = [len(run.steps_of(categories)) for run in runs]
    table = pd.DataFrame(
        [(r.run_id, r.method, r.modality, r.setting, r.seed) for r in runs],
        columns=["run_id", "method", "modality", "setting", "seed"],
    )
    print_table(table.assign(steps=steps))
    print_table(pd.DataFrame(study.notes.items(), columns=["method", "what it is"]))
    chain = " <- ".join(str(path) for path in base_chain(path))
    say(f"{chain}: valid, {len(runs)} runs")
    if check is not None:
        from iumad.study.runner import check_study

        for text in check_study(study):
            say(f"warning: {text}")
        say("nothing speaks against running them")


def compare(
    first: Annotated[Path, typer.Argument(help="params file, or a results folder")],
    second: Annotated[Path, typer.Argument(help="another of the same kind")],
    params: Annotated[
        Path | None, typer.Option(help="params file of the study that two results folders hold")
    ] = None,
    results: Results = Path("results"),
    page: Annotated[
        Path | None, typer.Option(help="write the comparison to this html file")
    ] = None,
) -> None:
    """Show what differs between two studies: keys, numbers with their intervals, and the steps that they share."""
    from iumad.report.compare import compare as compared
    from iumad.report.compare import comparison_page, comparison_text

    folders = first.is_dir() and second.is_dir()
    if folders and params is None:
        raise ConfigError("two results folders need --params, the params file of their study")
    if not folders and params is not None:
        raise ConfigError(
            "--params is for two results folders; params files are compared as they are"
        )
    paths = (params, params) if params else (first, second)
    studies = [load_params(path) for path in paths]
    where = (first, second) if folders else (results, results)
    found = compared(studies[0], studies[1], *where)
    for frame in (found.keys, found.numbers, found.shared):
        if len(frame):
            print_table(frame)
            say("")
    for line in comparison_text(found, str(first), str(second)):
        say(line)
    if page is not None:
        page.write_text(comparison_page(found, str(first), str(second)), encoding="utf-8")
        say(f"open {page.resolve()}")


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
    say(f"open {page.resolve()}")


def notebook(
    notebook: Annotated[Path, typer.Argument(help="e.g. notebooks/14_settings.ipynb")],
    params: Params,
    out: Annotated[Path, typer.Option(help="folder of the executed notebook")] = Path("build"),
    results: Annotated[
        Path | None, typer.Option(help="results folder; default: the notebook's own")
    ] = None,
) -> None:
    """Execute one notebook with a params file, or with the file of its own study beside that."""
    from iumad.report.book import execute_notebook

    say(str(execute_notebook(notebook, params, out, results)))
