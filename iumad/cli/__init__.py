"""The command `iumad`: errors that a user can mend are one line and exit code 2."""

import io
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from iumad.cli.common import escaped, say
from iumad.cli.data import cache_app, data_app
from iumad.cli.study import (
    book,
    compare,
    efficiency,
    evaluate,
    measure,
    model,
    notebook,
    params,
    plan,
    publish,
    run,
)
from iumad.cli.use import export, fit, info, learn, pack, predict, threshold
from iumad.config.sections import one_line
from iumad.errors import IumadError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Incremental unified multimodal anomaly detection: train, evaluate, predict, and study IB-IUMAD.",
)
STUDY, USE, BOOK = "Studies", "Your own images", "Pages"
STUDY_COMMANDS: list[Callable[..., None]] = [
    *(run, plan, evaluate, compare, measure, efficiency, model, publish)
]
USE_COMMANDS: list[Callable[..., None]] = [fit, predict, learn, threshold, info, export, pack]
for command in STUDY_COMMANDS:
    app.command(rich_help_panel=STUDY)(command)
for command in USE_COMMANDS:
    app.command(rich_help_panel=USE)(command)
app.add_typer(data_app, name="data", rich_help_panel=USE)
app.add_typer(cache_app, name="cache", rich_help_panel=USE)
app.command(rich_help_panel=BOOK)(params)
app.command(rich_help_panel=BOOK)(book)
app.command(rich_help_panel=BOOK)(notebook)
EXTRAS = dict.fromkeys(["filelock", "numba", "timm", "torch", "torchvision"], "train")
EXTRAS |= dict.fromkeys(["onnx", "onnxruntime", "onnxscript"], "export")  # package -> its extra


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # names that a terminal's encoding lacks are no errors
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (IumadError, OSError) as error:  # of the system: no space, no permission, not a folder
        _refuse(str(error))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        _refuse(
            f"this command needs {error.name}, which comes with the extra `{extra}`: "
            f'pip install "iumad[{extra}]"; reading results and building the book need none'
        )


def _refuse(message: str) -> None:
    text = re.sub(r"(\S{500})\S{500,}", r"\1...", one_line(" ".join(message.split("\n"))))
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escaped(text)}", highlight=False)
    sys.exit(2)


def _show_version(wanted: bool | None) -> None:
    if wanted:
        say(f"iumad {version('iumad')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool | None,
        typer.Option("--version", callback=_show_version, is_eager=True, help="show the version"),
    ] = None,
) -> None:
    pass
