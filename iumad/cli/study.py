"""Runs of params files: train, list, look at, publish, measure."""

from pathlib import Path
from typing import Annotated

import typer

from iumad.cli.options import (
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
)
from iumad.cli.output import console, print_summary, print_table
from iumad.config.files import load_params
from iumad.errors import ConfigError


def run(
    params: Params,
    results: Results = Path("results"),
    device: Device = "auto",
    jobs: Jobs = None,
    method: Method = None,
    modality: Modality = None,
    setting: Setting = None,
    seed: Seed = None,
    change: Set = None,
) -> None:
    """Train and evaluate the runs of a params file, or a part of them.

    What is finished is loaded, what was interrupted goes on.
    """
    from iumad.study.check import check_study
    from iumad.study.measure import measure as measured
    from iumad.study.parallel import default_jobs, run_parallel
    from iumad.study.runner import run_study

    study = chosen_study(params, change, method, modality, setting, seed)
    for text in check_study(study, device):
        console.print(f"warning: {text}", markup=False, highlight=False)
    run_parallel(study, results, device, jobs or default_jobs(device))
    print_summary(run_study(study, results, device))
    measured(study, results)


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
    from iumad.study.plan import needs
    from iumad.study.plan import plan as planned

    study, speeds = chosen_study(params, change, method, modality, setting, seed), None
    if measure:
        from iumad.study.efficiency import measure_speeds

        speeds, features, size = measure_speeds(study, device)
    table, seconds = planned(study, results, speeds)
    print_table(table)
    if measure:
        for line in needs(study, features, size):
            console.print(line, highlight=False)
    estimate = (
        "unknown (nothing comparable has been run here or published)"
        if seconds is None
        else f"{seconds / 3600:.2f} h"
    )
    console.print(
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

    study = chosen_study(params, change, method, modality, setting, seed)
    rows = load_rows(study, results)
    missing = progress(study, results).query("not finished")
    if rows.empty:
        first = missing.iloc[0]
        name = f"{first['method']} {first['modality']} {first['setting']} seed {first['seed']}"
        raise ConfigError(
            f"{results}: none of the {len(missing)} runs is trained, here or in the published tables; "
            f"the first is {name}; train it with `iumad run {params}`"
        )
    last = tables.last_step(rows)
    keys = ["method", "modality", "setting", "seed", "category"]
    print_table(
        last.pivot_table(index=keys, columns="metric", values="value", sort=False).reset_index()
    )
    absent = [f"{r.method} {r.modality} {r.setting} seed {r.seed}" for r in missing.itertuples()]
    if absent:
        console.print(f"not trained: {'; '.join(absent)}", markup=False, highlight=False)
    if csv is not None:
        tables.write_table(rows, csv)
        console.print(f"{len(rows)} rows written to {csv}", markup=False, highlight=False)


def measure(
    params: Params,
    results: Results = Path("results"),
    kind: Annotated[
        list[str] | None, typer.Option(help="only this kind (repeatable); default: all")
    ] = None,
    change: Set = None,
) -> None:
    """Measure what pages show of finished models beside their rows: scores, maps, evaluation details."""
    from iumad.study.measure import measure as measured
    from iumad.study.measured import KINDS

    unknown = [name for name in kind or () if name not in KINDS]
    if unknown:
        raise ConfigError(f"--kind {unknown[0]}: no such kind; known: {', '.join(KINDS)}")
    written = measured(chosen_study(params, change), results, kind or tuple(KINDS))
    console.print(f"{results}: {written} tables measured", highlight=False)


def efficiency(
    params: Params, results: Results = Path("results"), device: Device = "auto", change: Set = None
) -> None:
    """Measure time and memory of a params file's methods, with random weights; nothing is trained."""
    from iumad.study.efficiency import measure_study

    table = measure_study(chosen_study(params, change), results, device)
    console.print(f"{len(table)} numbers; the notebook on efficiency shows them")


def publish(
    params: Annotated[list[Path], typer.Argument(help="params files (YAML) of the studies")],
    profile: Annotated[str, typer.Option(help="name of the folder of the tables")] = "mini",
    results: Results = Path("results"),
) -> None:
    """Write the numbers of finished runs into the committed tables, RESULTS/PROFILE."""
    from iumad.study.publish import publish as published

    counts = published([load_params(path) for path in params], results, profile)
    said = ", ".join(f"{count} {what}" for what, count in counts.items())
    console.print(f"{results / profile}: {said}", highlight=False)


def model(
    params: Params,
    method: Annotated[str | None, typer.Option(help="default: the last one with a network")] = None,
    modality: Annotated[str | None, typer.Option(help="default: the last")] = None,
    categories: Annotated[int, typer.Option(min=1, help="number of logits")] = 10,
) -> None:
    """Show the parts of a method's model: parameters, and operations for one image. Needs no data."""
    from iumad.study.efficiency import model_card, network_run

    wanted = {"methods": method, "modalities": modality}
    chosen = load_params(params).select(**{key: [name] for key, name in wanted.items() if name})
    print_table(model_card(network_run(chosen), categories))
