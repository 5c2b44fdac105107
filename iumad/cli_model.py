"""`iumad model`: what a run's model is made of."""

from pathlib import Path
from typing import Annotated

import typer

from iumad.cli_output import print_table
from iumad.config import load_params
from iumad.errors import ConfigError


def show_model(
    params: Annotated[Path, typer.Argument(help="params file (YAML)")],
    method: Annotated[str | None, typer.Option(help="default: the last one with a network")] = None,
    modality: Annotated[str | None, typer.Option(help="default: the last")] = None,
    categories: Annotated[int, typer.Option(min=1, help="number of logits")] = 10,
) -> None:
    """Show the parts of a method's model: parameters, and operations for one image. Needs no data."""
    from iumad.model_card import model_card

    study = load_params(params)
    networks = [run.method for run in study.runs() if run.model.kind == "reconstruction"]
    if not networks:
        raise ConfigError(f"{params}: no method has a network")
    chosen = study.select(
        methods=[method or networks[-1]], modalities=[modality or study.modalities[-1]]
    )
    print_table(model_card(chosen.runs()[0], categories))
