"""The command `iumad`: errors that a user can mend are one line and exit code 2."""

import json
import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
import yaml
from rich.console import Console

from iumad.cli.data import data_app
from iumad.cli.output import console, escaped, print_table
from iumad.cli.study import cache_app, run_and_print, show_model, study_app
from iumad.config.files import load_params
from iumad.config.schema import RunConfig, StudyConfig
from iumad.errors import ConfigError, IumadError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Incremental unified multimodal anomaly detection: train, evaluate, predict, and study IB-IUMAD.",
)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")
app.add_typer(cache_app, name="cache")
app.command("model")(show_model)

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
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="change one key: KEY=VALUE, e.g. data.root=my/folder (repeatable)"),
]
Seed = Annotated[list[int] | None, typer.Option("--seed", help="only this seed (repeatable)")]
TRAINING = {"filelock", "numba", "timm", "torch", "torchvision"}  # packages of the extra `train`


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except (IumadError, OSError) as error:  # of the system: no space, no permission, not a folder
        Console(stderr=True, soft_wrap=True).print(
            f"[red]error:[/] {escaped(str(error))}", highlight=False
        )
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in TRAINING:
            raise
        Console(stderr=True, soft_wrap=True).print(
            f"[red]error:[/] this command needs {error.name}, which comes with the extra `train`: "
            'pip install "iumad\\[train]"; reading results and building the book need none',
            highlight=False,
        )
        sys.exit(2)


@app.command()
def run(
    params: Params,
    results: Results = Path("results"),
    device: Device = "auto",
    method: Method = None,
    modality: Modality = None,
    setting: Setting = None,
    seed: Seed = None,
    change: Set = None,
) -> None:
    """Train and evaluate the runs of a params file, or a part of them; finished ones are loaded."""
    chosen = _select(load_params(params, assignments=change or []), method, modality, setting, seed)
    run_and_print(chosen, results, device)


@app.command()
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
    from iumad.study import runner as study
    from iumad.study.steps import is_trained

    chosen = _select(load_params(params, assignments=change or []), method, modality, setting, seed)
    unfinished = [each for each in chosen.runs() if not is_trained(each, results)]
    if unfinished:
        raise ConfigError(
            f"{results}: not trained yet: {_name(unfinished[0])}; train it with `iumad run {params}`"
        )
    rows = study.run_study(chosen, results)
    last = tables.last_step(rows)
    keys = ["method", "modality", "setting", "seed", "category"]
    print_table(
        last.pivot_table(index=keys, columns="metric", values="value", sort=False).reset_index()
    )
    if csv is not None:
        tables.write_table(rows, csv)
        console.print(f"{len(rows)} rows written to {csv}")


@app.command()
def predict(
    image: Annotated[Path, typer.Argument(help="RGB image")],
    depth: Annotated[
        Path | None, typer.Argument(help="xyz TIFF, or a depth map (PNG, TIFF, NPY)")
    ] = None,
    params: Annotated[Path, typer.Option(help="params file of the trained run")] = Path(
        "params/smoke.yaml"
    ),
    results: Results = Path("results"),
    method: Annotated[str, typer.Option(help="method of the run")] = "ib-iumad",
    modality: Annotated[
        str | None, typer.Option(help="modality of the run; default: the first")
    ] = None,
    setting: Annotated[
        str | None, typer.Option(help="setting of the run; default: the first")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the run; default: the first")] = None,
    category: Annotated[str | None, typer.Option(help="only per-category methods need it")] = None,
    depth_scale: Annotated[float, typer.Option(help="metres per unit of a depth map")] = 0.001,
    out: Annotated[Path, typer.Option(help="folder for the map (PNG and NPY)")] = Path(
        "predictions"
    ),
    device: Device = "auto",
    change: Set = None,
) -> None:
    """Score one image with a trained model; writes the anomaly map as a picture and as an array."""
    from iumad.study.predict import predict_files

    study_config = load_params(params, assignments=change or [])
    chosen = study_config.select(
        methods=[method],
        modalities=[modality or study_config.modalities[0]],
        settings=[setting or study_config.settings[0]],
        seeds=[study_config.seeds[0] if seed is None else seed],
    )
    prediction = predict_files(
        chosen.runs()[0], results, image, depth, category, depth_scale, device
    )
    picture, array = prediction.save(out, image.stem)
    console.print(f"score {prediction.score:.4f}  map {picture}  array {array}")


@app.command()
def params(
    file: Annotated[
        Path | None, typer.Argument(help="params file; none: the defaults of all keys")
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="check a params file and list its runs")
    ] = None,
) -> None:
    """Check a params file and list its runs, or print every key with its default."""
    file = check or file
    if file is None:
        console.print(_all_defaults(), highlight=False, markup=False)
        return
    runs = load_params(file).runs()
    table = pd.DataFrame(
        [(r.run_id, r.method, r.modality, r.setting, r.seed) for r in runs],
        columns=["run_id", "method", "modality", "setting", "seed"],
    )
    print_table(table)
    console.print(f"{file}: valid, {len(runs)} runs")


@app.command()
def book(
    params: Annotated[
        Path | None, typer.Argument(help="params file; none: the published notebooks")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for executed notebooks and pages")] = Path(
        "build"
    ),
) -> None:
    """Execute the notebooks for a params file and build the book; without one, build the published book."""
    from iumad.report.book import make_book

    page = make_book(params, out / (params.stem if params else "published"))
    console.print(f"open {page.resolve()}", highlight=False)


def _select(
    study: StudyConfig,
    method: list[str] | None,
    modality: list[str] | None,
    setting: list[str] | None,
    seed: list[int] | None,
) -> StudyConfig:
    wanted = {"methods": method, "modalities": modality, "settings": setting, "seeds": seed}
    return study.select(**{key: values for key, values in wanted.items() if values})


def _all_defaults() -> str:
    defaults = StudyConfig().runs()[0].model_dump(mode="json")
    return yaml.safe_dump(json.loads(json.dumps(defaults)), sort_keys=False)


def _name(run: RunConfig) -> str:
    return f"{run.method} {run.modality} {run.setting} seed {run.seed}"
