"""`iumad data` and `iumad cache`: data sets on disk and the cache of what is computed from them."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from iumad.cli.output import console, print_table
from iumad.config.files import load_params
from iumad.config.sections import MiniCandiesConfig
from iumad.config.settings import parse_setting
from iumad.config.validation import build
from iumad.errors import DataError

data_app = typer.Typer(
    no_args_is_help=True, help="Data sets: export, check, show, set up one's own."
)
cache_app = typer.Typer(
    no_args_is_help=True, help="The cache of prepared images and frozen features."
)
Root = Annotated[Path, typer.Argument(help="folder of the data set, in any known layout")]


@data_app.command()
def export(
    root: Annotated[Path, typer.Argument(help="new folder to write")],
    image_size: Annotated[int, typer.Option(help="side in pixels, 128 to 256")] = 128,
    n_train: Annotated[int, typer.Option(help="good training images per category")] = 40,
    n_test_good: Annotated[int, typer.Option(help="good test images per category")] = 12,
    n_test_defect: Annotated[int, typer.Option(help="defective test images per category")] = 24,
    difficulty: Annotated[
        float, typer.Option(min=0, max=1, help="0 obvious defects, 1 subtle ones")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="seed of the data")] = 0,
) -> None:
    """Write MiniCandies in the folder layout of MVTec 3D-AD, for other programs to read."""
    from iumad.data.export import export_mvtec3d
    from iumad.data.minicandies import MiniCandies

    options = {
        "image_size": image_size,
        "n_train": n_train,
        "n_test_good": n_test_good,
        "n_test_defect": n_test_defect,
        "difficulty": difficulty,
        "seed": seed,
    }
    config = build(MiniCandiesConfig, options, "data export")
    dataset = MiniCandies(config)
    with tqdm(total=len(dataset.index), desc="export", unit="img") as bar:
        export_mvtec3d(dataset, root, bar.update)
    console.print(f"{len(dataset.index)} samples written to {root}", highlight=False)


@data_app.command()
def check(root: Root) -> None:
    """Read every file; print a table per category and every problem. Exit code 2 when there is an error."""
    from iumad.data.check import check_dataset

    report = check_dataset(root, lambda ids: tqdm(ids, desc="check", unit="img"))
    console.print(f"layout: {report.layout}")
    print_table(report.table)
    if report.differences is not None:
        if report.differences.empty:
            console.print("counts are those of the published data set")
        else:
            console.print("differences from the published counts:")
            print_table(report.differences)
    for text in report.warnings:
        console.print(f"warning: {text}", markup=False, highlight=False)
    if not report.ok:
        raise DataError(f"{root}: {len(report.errors)} errors\n" + "\n".join(report.errors))
    console.print("no errors")


@data_app.command("range")
def depth_range(
    params: Annotated[Path, typer.Argument(help="params file; its data and settings sections")],
) -> None:
    """Print one depth range for all images, from the training images of the base step.

    It is meant for `data.depth_scaling`. Where settings differ in their base step, the categories
    count that all of them begin with, so that no increment has a say.
    """
    from iumad.data import open_dataset
    from iumad.data.depth import training_range

    config = load_params(params)
    dataset = open_dataset(config.data)
    if "depth" not in dataset.modalities:
        raise DataError(f"{params}: data set {dataset.name!r} has no depth, so it has no range")
    bases = [parse_setting(setting, dataset.categories)[0] for setting in config.settings]
    categories = min(bases, key=len)
    index = dataset.index
    chosen = index[index["category"].isin(categories) & (index["split"] == "train")]
    ids = tqdm(chosen["sample_id"], desc="range", unit="img")
    low, high = training_range(cloud for i in ids if (cloud := dataset.load(i).xyz) is not None)
    low, high = math.floor(low * 1e4) / 1e4, math.ceil(high * 1e4) / 1e4
    console.print(f"# {len(chosen)} training images of {', '.join(categories)}", highlight=False)
    console.print(f"data:\n  depth_scaling: [{low}, {high}]  # metres", markup=False)


@data_app.command()
def show(
    root: Annotated[
        Path | None, typer.Argument(help="folder of the data set; none: MiniCandies")
    ] = None,
    out: Annotated[Path, typer.Option(help="picture to write")] = Path("contact_sheet.png"),
) -> None:
    """Write a contact sheet: per category a good image and its defects, colour and depth."""
    from iumad.data.check import open_folder
    from iumad.data.minicandies import MiniCandies
    from iumad.data.sheet import contact_sheet

    dataset = MiniCandies(MiniCandiesConfig()) if root is None else open_folder(root)
    contact_sheet(dataset).save(out)
    console.print(f"contact sheet written to {out}", highlight=False)


@data_app.command()
def new(
    root: Annotated[
        Path, typer.Argument(help="folder that receives the index of the new data set")
    ],
    mapping: Annotated[
        Path | None,
        typer.Option(help="YAML file: categories, their good and defect folders, depth scale"),
    ] = None,
) -> None:
    """Set up one's own captures as a data set, from a mapping file or by answering questions."""
    from iumad.data.folders.own import (
        Mapping,
        new_dataset,
        read_mapping,
        require_no_index,
        validated,
    )

    if mapping is None:
        require_no_index(root)  # before any question
        described = validated(Path("answers"), _ask(), Mapping)
    else:
        described = read_mapping(mapping)
    path = new_dataset(described, root)
    console.print(
        f"index written to {path}; look at it with `iumad data check {root}`", highlight=False
    )


def _ask() -> dict:
    """A mapping from questions on the terminal."""
    console.print("Folders may be absolute or relative to the data set's folder.")
    depth_scale = typer.prompt("metres per unit of the depth files", default=0.001, type=float)
    categories: dict[str, dict] = {}
    while name := typer.prompt("category (empty: done)", default="", show_default=False):
        good = _ask_folders(f"{name}: good")
        defects = {}
        while defect := typer.prompt(
            f"{name}: defect type (empty: done)", default="", show_default=False
        ):
            mask = typer.prompt(f"{name} {defect}: folder of masks")
            defects[defect] = _ask_folders(f"{name} {defect}") | {"mask": mask}
        categories[name] = {"good": good, "defects": defects}
    return {"depth_scale": depth_scale, "categories": categories}


def _ask_folders(what: str) -> dict[str, str]:
    folders = {"rgb": typer.prompt(f"{what}: folder of RGB images")}
    depth = typer.prompt(
        f"{what}: folder of depth files (empty: none)", default="", show_default=False
    )
    return folders | ({"depth": depth} if depth else {})


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

    freed = prune_cache(
        default_cache(), round(max_gb * 1e9) if math.isfinite(max_gb) else sys.maxsize
    )
    console.print(f"freed {freed / 1e6:.1f} MB")
