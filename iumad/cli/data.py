"""`iumad data` and `iumad cache`: data sets on disk and the cache of what is computed from them."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from iumad.cli.common import print_table, say
from iumad.config.sections import MiniCandiesConfig, build
from iumad.errors import ConfigError, DataError

data_app = typer.Typer(
    no_args_is_help=True, help="Data sets: export, check, show, set up one's own."
)
cache_app = typer.Typer(
    no_args_is_help=True, help="The cache of prepared images and frozen features."
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # of contact sheets
Root = Annotated[Path, typer.Argument(help="folder of the data set, in any known layout")]


@data_app.command()
def export(
    root: Annotated[Path, typer.Argument(help="new folder to write")],
    image_size: Annotated[
        int, typer.Option(help="side in pixels; shapes are drawn for 128 to 256")
    ] = 128,
    n_train: Annotated[int, typer.Option(help="good training images per category")] = 40,
    n_test_good: Annotated[int, typer.Option(help="good test images per category")] = 12,
    n_test_defect: Annotated[int, typer.Option(help="defective test images per category")] = 24,
    difficulty: Annotated[
        float, typer.Option(min=0, max=1, help="0 obvious defects, 1 subtle ones")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="seed of the data")] = 0,
) -> None:
    """Write MiniCandies in the folder layout of MVTec 3D-AD, for other programs to read."""
    from iumad.data.minicandies import MiniCandies
    from iumad.data.public import export_mvtec3d

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
    say(f"{len(dataset.index)} samples written to {root}")


@data_app.command()
def check(root: Root) -> None:
    """Read every file; print a table per category and every problem. Exit code 2 when there is an error."""
    from iumad.data.check import LAYOUTS, check_dataset

    report = check_dataset(root, lambda ids: tqdm(ids, desc="check", unit="img"))
    say(f"layout: {LAYOUTS[report.layout][1]} (data.name: {report.layout})")
    say(f"images: {' + '.join(report.modalities)}")
    print_table(report.table)
    if report.depth_range is not None:
        low, high = report.depth_range
        say(
            f"depth of all training images: {low:.4f} to {high:.4f} m; data.depth_scaling: measured takes that "
            "of the base step"
        )
    if report.differences is not None:
        if report.differences.empty:
            say("counts are those of the published data set")
        else:
            say("differences from the published counts:")
            print_table(report.differences)
    for text in report.warnings:
        say(f"warning: {text}")
    if not report.ok:
        for text in report.errors:
            say(f"error: {text}")
        raise DataError(f"{root}: {len(report.errors)} errors, listed above")
    say("no errors")


@data_app.command()
def show(
    root: Annotated[
        Path | None, typer.Argument(help="folder of the data set; none: MiniCandies")
    ] = None,
    out: Annotated[Path, typer.Option(help="picture to write")] = Path("contact_sheet.png"),
) -> None:
    """Write a contact sheet: per category a good image and its defects, colour and depth."""
    from iumad.data.check import contact_sheet, open_folder
    from iumad.data.minicandies import MiniCandies

    if out.suffix.lower() not in PICTURES:
        raise ConfigError(f"--out {out}: a picture's name ends in {', '.join(PICTURES)}")
    dataset = MiniCandies(MiniCandiesConfig()) if root is None else open_folder(root)
    contact_sheet(dataset).save(out)
    say(f"contact sheet written to {out}")


@data_app.command()
def new(
    root: Annotated[
        Path, typer.Argument(help="folder that receives the index of the new data set")
    ],
    mapping: Annotated[
        Path | None,
        typer.Option(help="YAML file: categories, their good and defect folders, depth scale"),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            help="a data set as distributed (VisA, MulSen-AD); default: ROOT, if it is one"
        ),
    ] = None,
) -> None:
    """Set up captures as a data set: from a mapping file, from a known data set, or by answering questions."""
    from iumad.data.own import (
        Mapping,
        foreign_layout,
        new_dataset,
        new_from_foreign,
        read_mapping,
        require_no_index,
    )

    if mapping is not None and source is not None:
        raise ConfigError("--mapping and --source: give one of the two")
    described = None if mapping is None else read_mapping(mapping)
    require_no_index(root)  # before any question
    layout = foreign_layout(source or root) if described is None else None
    if source is not None and layout is None:
        raise DataError(f"{source}: is neither VisA nor MulSen-AD as distributed")
    if layout is not None:
        path = new_from_foreign(layout, source or root, root)
        say(f"{layout.name}: {layout.note}")
    elif described is not None:
        path = new_dataset(described, root)
    else:
        path = new_dataset(build(Mapping, _ask(), "answers"), root)
    say(f"index written to {path}; look at it with `iumad data check {root}`")


def _ask() -> dict:
    """A mapping from questions on the terminal."""
    say("Folders may be absolute or relative to the data set's folder.")
    depth_scale = typer.prompt("metres per unit of the depth files", default=0.001, type=float)
    categories: dict[str, dict] = {}
    while name := typer.prompt("category (empty: done)", default="", show_default=False):
        good = _ask_folders(f"{name}: good")
        defects = {}
        while defect := typer.prompt(
            f"{name}: defect type (empty: done)", default="", show_default=False
        ):
            mask = _ask_folder(f"{name} {defect}: folder of masks (empty: none)")
            defects[defect] = _ask_folders(f"{name} {defect}") | ({"mask": mask} if mask else {})
        categories[name] = {"good": good, "defects": defects}
    return {"depth_scale": depth_scale, "categories": categories}


def _ask_folders(what: str) -> dict[str, str]:
    asked = {"rgb": "folder of RGB images", "depth": "folder of depth files"}
    folders = {kind: _ask_folder(f"{what}: {text} (empty: none)") for kind, text in asked.items()}
    return {kind: folder for kind, folder in folders.items() if folder}


def _ask_folder(question: str) -> str:
    return typer.prompt(question, default="", show_default=False)


@cache_app.command("info")
def cache_info() -> None:
    """Show where the cache lies and how large it is."""
    from iumad.features.cache import cache_size
    from iumad.machine import cache_folder

    say(str(cache_folder()))
    for kind, (count, size) in cache_size(cache_folder()).items():
        say(f"{kind:10} {count:8} entries {size / 1e6:10.1f} MB")


@cache_app.command("prune")
def cache_prune(
    max_gb: Annotated[
        float, typer.Option(min=0, help="keep at most this much, newest read first; 0: empty it")
    ],
) -> None:
    """Delete the entries that were read longest ago."""
    from iumad.features.cache import prune_cache
    from iumad.machine import cache_folder

    freed = prune_cache(
        cache_folder(), round(max_gb * 1e9) if math.isfinite(max_gb) else sys.maxsize
    )
    say(f"freed {freed / 1e6:.1f} MB")
