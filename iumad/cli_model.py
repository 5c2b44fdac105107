"""`iumad model`: what a run's model is made of."""

from pathlib import Path
from typing import Annotated

import typer

from iumad.cli_output import print_table
from iumad.config import load_params


def show_model(
    params: Annotated[Path, typer.Argument(help="params file (YAML)")],
    method: Annotated[str | None, typer.Option(help="default: the last one with a network")] = None,
    modality: Annotated[str | None, typer.Option(help="default: the last")] = None,
    categories: Annotated[int, typer.Option(min=1, help="number of logits")] = 10,
) -> None:
    """Show the parts of a method's model: parameters, and operations for one image. Needs no data."""
    from iumad.model_card import model_card, network_run

    wanted = {"methods": method, "modalities": modality}
    chosen = load_params(params).select(**{key: [name] for key, name in wanted.items() if name})
    print_table(model_card(network_run(chosen), categories))
