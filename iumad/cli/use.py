"""A trained model on one's own images."""

from pathlib import Path
from typing import Annotated

import typer

from iumad.cli.options import Device, Results, Set
from iumad.cli.output import console
from iumad.config.files import load_params


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
