"""`iumad model`: what a run's model is made of.

`iumad study` and `iumad cache`: whole grids of runs, and the cache of features.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from iumad.cli.output import console, print_summary, print_table
from iumad.config.files import load_params
from iumad.config.schema import StudyConfig
from iumad.errors import ConfigError

study_app = typer.Typer(no_args_is_help=True, help="Grids of runs described by a params file.")
cache_app = typer.Typer(
    no_args_is_help=True, help="The cache of prepared images and frozen features."
)

Params = Annotated[Path, typer.Argument(help="params file (YAML); keys: `iumad params`")]
Results = Annotated[Path, typer.Option(help="results folder")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]


def run_and_print(config: StudyConfig, results: Path, device: str) -> None:
    """Run a study and print its summary."""
    from iumad.study import runner as study

    print_summary(study.run_study(config, results, device))


@study_app.command("run")
def study_run(
    params: Params,
    results: Results = Path("results"),
    device: Device = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(
            "-j",
            "--jobs",
            min=1,
            help="runs at the same time; default: one per core on CPU, else one",
        ),
    ] = None,
) -> None:
    """Run the whole grid; what is finished is skipped, what was interrupted goes on."""
    from iumad.study.parallel import default_jobs, run_parallel

    config = load_params(params)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and jobs is not None:
        raise ConfigError("--jobs and torchrun cannot be combined: use one of them")
    if not several:
        run_parallel(config, results, device, jobs or default_jobs(device))
    run_and_print(config, results, device)


@study_app.command("plan")
def study_plan(params: Params, results: Results = Path("results")) -> None:
    """List the grid's runs, what of each is done, and how long the rest may take."""
    from iumad.study.parallel import plan

    table, seconds = plan(load_params(params), results)
    print_table(table)
    estimate = (
        "unknown (nothing comparable has been run here)"
        if seconds is None
        else f"{seconds / 3600:.2f} h"
    )
    console.print(
        f"{len(table)} runs, {int((table['done'] == table['steps']).sum())} finished; time left: {estimate}"
    )


@study_app.command("efficiency")
def study_efficiency(
    params: Params, results: Results = Path("results"), device: Device = "auto"
) -> None:
    """Measure time and memory of the grid's methods, with random weights; nothing is trained."""
    from iumad.study.efficiency import measure_study

    table = measure_study(load_params(params), results, device)
    console.print(f"{len(table)} numbers; notebook 09_efficiency shows them")


@study_app.command("publish")
def study_publish(
    params: Annotated[list[Path], typer.Argument(help="params files (YAML) of the studies")],
    profile: Annotated[str, typer.Option(help="name of the folder of the tables")] = "mini",
    results: Results = Path("results"),
) -> None:
    """Write the numbers of finished runs into the committed tables, RESULTS/PROFILE."""
    from iumad.study.publish import publish

    counts = publish([load_params(path) for path in params], results, profile)
    said = ", ".join(f"{count} {what}" for what, count in counts.items())
    console.print(f"{results / profile}: {said}", highlight=False)


@study_app.command("notebook")
def study_notebook(
    notebook: Annotated[Path, typer.Argument(help="e.g. notebooks/05_settings.ipynb")],
    params: Params,
    out: Annotated[Path, typer.Option(help="folder of the executed notebook")] = Path("build"),
    results: Annotated[
        Path | None, typer.Option(help="results folder; default: the notebook's own")
    ] = None,
) -> None:
    """Execute one notebook with a params file; one that compares runs takes the file of its study beside it."""
    from iumad.report.book import execute_notebook

    console.print(str(execute_notebook(notebook, params, out, results)), highlight=False)


@cache_app.command("info")
def cache_info() -> None:
    """Show where the cache lies and how large it is."""
    from iumad.features.cache import cache_size, default_cache

    console.print(str(default_cache()), highlight=False)
    for kind, (count, size) in cache_size(default_cache()).items():
        console.print(f"{kind:10} {count:8} entries {size / 1e6:10.1f} MB")


@cache_app.command("prune")
def cache_prune(
    max_gb: Annotated[
        float, typer.Option(min=0, help="keep at most this much, newest read first; 0: empty it")
    ],
) -> None:
    """Delete the entries that were read longest ago."""
    from iumad.features.cache import default_cache, prune_cache

    freed = prune_cache(default_cache(), int(max_gb * 1e9))
    console.print(f"freed {freed / 1e6:.1f} MB")


def show_model(
    params: Annotated[Path, typer.Argument(help="params file (YAML)")],
    method: Annotated[str | None, typer.Option(help="default: the last one with a network")] = None,
    modality: Annotated[str | None, typer.Option(help="default: the last")] = None,
    categories: Annotated[int, typer.Option(min=1, help="number of logits")] = 10,
) -> None:
    """Show the parts of a method's model: parameters, and operations for one image. Needs no data."""
    from iumad.study.efficiency import model_card, network_run

    wanted = {"methods": method, "modalities": modality}
    chosen = load_params(params).select(**{key: [name] for key, name in wanted.items() if name})
    print_table(model_card(network_run(chosen), categories))
