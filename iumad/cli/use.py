"""One's own images: fit a model file, look at it, predict with it, teach it a new product."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import pandas as pd
import typer
from tqdm import tqdm

from iumad.cli.common import (
    Method,
    Modality,
    Params,
    Results,
    Seed,
    Set,
    Setting,
    chosen_study,
    print_table,
    say,
)
from iumad.errors import ConfigError, DataError

if TYPE_CHECKING:
    from iumad.inspection.outputs import Scored
    from iumad.inspection.predictor import Predictor

ModelFile = Annotated[Path, typer.Argument(help="model file (.iumad)")]
Folder = Annotated[
    Path, typer.Argument(help="folder of images, in any layout of `iumad data check`")
]
Rate = Annotated[
    float, typer.Option("--false-alarms", help="share of good images that may be called anomalous")
]
SOME_ANOMALOUS = 3  # exit code of `predict`
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
SHOWN = 50  # lines of predictions that are printed
BATCH = 16  # images prepared and scored together


def fit(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", "-o", help="model file to write")],
    method: Annotated[str, typer.Option(help="method; see `iumad params`")] = "",
    false_alarms: Rate = 0.01,
    params: Annotated[
        Path | None,
        typer.Option(help="params file with sizes and training; its grid does not count"),
    ] = None,
    change: Set = None,
) -> None:
    """Make a model file from the good images of a folder, with a threshold for every category."""
    from iumad.inspection.fit import METHOD, fit_folder, own_run
    from iumad.inspection.model_file import promise, save_model
    from iumad.study.runner import terminal_bar

    _require_place(out)
    run = own_run(folder, method or METHOD, params, change or [])
    fitted = fit_folder(folder, run, false_alarms, terminal_bar)
    save_model(fitted.model, out)
    print_table(fitted.table)
    for name, threshold in fitted.model.card.thresholds.items():
        say(f"{name}: {promise(threshold)}")
    _said(out, fitted.model.card.seconds)


def pack(
    params: Params,
    out: Annotated[Path, typer.Option("--out", "-o", help="model file to write")],
    results: Results = Path("results"),
    method: Method = None,
    modality: Modality = None,
    setting: Setting = None,
    seed: Seed = None,
    false_alarms: Rate = 0.01,
    change: Set = None,
) -> None:
    """Make a model file of a finished run of a study: of the last one, or the last of a part."""
    from iumad.inspection.fit import pack_run
    from iumad.inspection.model_file import save_model

    _require_place(out)
    chosen = chosen_study(params, change, method, modality, setting, seed)
    fitted = pack_run(chosen.runs()[-1], results, false_alarms)
    save_model(fitted.model, out)
    print_table(fitted.table)
    _said(out, fitted.model.card.seconds)


def info(model: ModelFile) -> None:
    """Print what a model file says of itself."""
    from iumad.inspection.model_file import promise, read_card

    card = read_card(model)
    run = card.run
    print_table(
        pd.DataFrame(
            [
                (name, card.n_train[name], t.value, t.source, promise(t))
                for name, t in card.thresholds.items()
            ],
            columns=["category", "train", "threshold", "from", "false alarms"],
        )
    )
    data = run["data"]
    lines = {
        "method": f"{run['method']} ({run['model']['kind']})",
        "modalities": " + ".join(card.modalities),
        "images": f"{data['image_size']} pixels, {_ranges(card.preparation.scaling)}",
        "backbone": f"{run['features']['backbone']}, grid {run['features']['grid']}",
        "made": f"{card.created} by iumad {card.iumad}, torch {card.torch}, in {card.seconds} s",
        "size": f"{model.stat().st_size / 1e6:.1f} MB",
    }
    for name, text in lines.items():
        say(f"{name}: {text}")


def _ranges(scaling: Mapping[str, object]) -> str:
    """What becomes 0 and 1 of each image with more than 8 bits."""
    found = [f"{name} {limits}" for name, limits in scaling.items()]
    return f"range of {', '.join(found)}" if found else "8 bits"


def predict(
    model: ModelFile,
    paths: Annotated[
        list[Path], typer.Argument(help="images, or folders of images (searched to the bottom)")
    ],
    second: Annotated[
        list[Path] | None,
        typer.Option("--second", help="depth or other second image of each image, in order"),
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="of all images; `folder`: each image's folder names it")
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            help="another threshold, for images that have all modalities: SCORE or CATEGORY=SCORE (repeatable)"
        ),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="judge images without their second image by colour alone (banks)",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="table to write (.csv or .json)")
    ] = None,
    overlays: Annotated[Path | None, typer.Option(help="folder for pictures")] = None,
    maps: Annotated[Path | None, typer.Option(help="folder for raw maps (.npy)")] = None,
    report: Annotated[Path | None, typer.Option(help="folder for a page to look at")] = None,
) -> None:
    """Score images with a model file. Exit code 0: all good, 3: some are anomalous.

    A folder may hold pairs as MVTec 3D-AD has them (rgb/ and xyz/ or depth/ beside each other). Without --category
    the model recognises the category of each image itself, where its method can.
    """
    from iumad.inspection.outputs import keys_of
    from iumad.inspection.predictor import Predictor

    predictor = Predictor.load(model, _thresholds(model, threshold or []), allow_missing)
    pairs = _pairs(paths, second or [], predictor.modalities, allow_missing)
    given = [path_category(path, predictor.categories, category) for path, _ in pairs]
    keys = keys_of([path for path, _ in pairs])
    scored = list(_scored(predictor, pairs, given, keys))
    _write(scored, out, overlays, maps, report, model.stem)
    unsure = [each for each in scored if each.prediction.unsure]
    if unsure:
        say(
            f"{len(unsure)} images: the category was hard to tell, first {unsure[0].path}; "
            "give --category"
        )
    bad = sum(each.prediction.is_anomalous for each in scored)
    say(f"{bad} of {len(scored)} images are anomalous")
    if bad:
        raise typer.Exit(SOME_ANOMALOUS)


def threshold(
    model: ModelFile,
    defects: Annotated[
        list[Path], typer.Argument(help="images of defects, or folders of them, as for predict")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="model file to write")],
    miss_cost: Annotated[
        float | None,
        typer.Option(
            help="lowest cost, if a missed defect costs this and a false alarm 1; default: highest F1"
        ),
    ] = None,
    category: Annotated[
        str, typer.Option(help="of all images; `folder`: each image's folder names it")
    ] = "folder",
) -> None:
    """Set thresholds from examples of defects, which must not be those that the model is judged by."""
    from iumad.inspection.model_file import promise, save_model, threshold_from_defects
    from iumad.inspection.predictor import Predictor

    _require_place(out)
    predictor = Predictor.load(model)
    pairs = _pairs(defects, [], predictor.modalities, allow_missing=False)
    scores: dict[str, list[float]] = {}
    for path, pair in pairs:
        name = path_category(path, predictor.categories, category) or category
        scores.setdefault(name, []).append(predictor(path, pair, name).score)
    card = predictor.model.card
    new = {
        name: threshold_from_defects(card.thresholds[name].good_scores, found, miss_cost)
        for name, found in scores.items()
    }
    card = card.model_copy(update={"thresholds": card.thresholds | new})
    save_model(replace(predictor.model, card=card), out)
    for name, found in new.items():
        missed = sum(score <= found.value for score in scores[name])
        say(
            f"{name}: threshold {found.value:.4f}, {missed} of {len(scores[name])} defects lie below it; "
            f"{promise(found)}"
        )


def export(
    model: ModelFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="file to write; JSON is put beside it")],
    kind: Annotated[
        Literal["onnx", "torch"], typer.Option("--format", help="torch: that of torch.export")
    ] = "onnx",
    category: Annotated[
        str | None, typer.Option(help="for methods that are told the category of an image")
    ] = None,
) -> None:
    """Write a model as a graph for other programs, and compare it with the model on ten images."""
    from iumad.inspection.export import export_model
    from iumad.inspection.model_file import load_model

    _require_place(out)
    if out.suffix == ".json":
        raise ConfigError(
            f"{out}: .json is the file beside it, with inputs and thresholds; name another"
        )
    made = export_model(load_model(model), out, kind, category)
    ratio = made.milliseconds / made.reference_milliseconds
    say(
        f"{made.images} images: largest difference {made.difference:.2g} of maps that reach {made.highest:.3g}\n"
        f"{made.milliseconds:.1f} ms an image with one thread, the model itself "
        f"{made.reference_milliseconds:.1f} ms (ratio {ratio:.2f})\n{out}: {out.stat().st_size / 1e6:.1f} MB; "
        f"inputs and thresholds: {out.with_suffix('.json')}"
    )


def learn(
    model: ModelFile,
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", "-o", help="model file to write")],
    false_alarms: Rate = 0.01,
) -> None:
    """Teach a model new categories from their good images; says what the earlier ones lost."""
    from iumad.inspection.fit import learn_folder
    from iumad.inspection.model_file import load_model, save_model
    from iumad.study.runner import terminal_bar

    _require_place(out)
    fitted, lost = learn_folder(load_model(model), folder, false_alarms, terminal_bar)
    save_model(fitted.model, out)
    print_table(fitted.table)
    say("earlier categories, on their kept good images:")
    print_table(lost)
    _said(out, fitted.model.card.seconds)


def path_category(path: Path, categories: Sequence[str], given: str | None) -> str | None:
    """The category of an image as given: a name, or with `folder` the nearest folder above it that names one."""
    if given != "folder":
        return given
    for part in reversed(path.resolve().parts[:-1]):
        if part in categories:
            return part
    raise ConfigError(
        f"{path}: none of its folders is named after a category; the model knows: {', '.join(categories)}"
    )


def _said(out: Path, seconds: float) -> None:
    size = out.stat().st_size / 1e6
    say(f"{out}: {size:.1f} MB, made in {seconds:.0f} s")


def _require_place(out: Path) -> None:
    if out.exists() and not out.is_file():
        raise ConfigError(f"{out}: is a folder; --out needs the name of a file")
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"{out}: the folder {out.resolve().parent} does not exist")


def _thresholds(model: Path, texts: Sequence[str]) -> dict[str, float]:
    from iumad.inspection.model_file import read_card

    categories = read_card(model).categories
    found: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError as error:
            raise ConfigError(
                f"--threshold {text}: needs SCORE or CATEGORY=SCORE, e.g. 4.2 or tire=4.2"
            ) from error
        if not 0 < value < float("inf"):
            raise ConfigError(f"--threshold {text}: a score is a positive number")
        if equals and name not in categories:
            raise ConfigError(
                f"--threshold {text}: unknown category {name!r}; the model knows: {', '.join(categories)}"
            )
        found |= {name: value} if equals else dict.fromkeys(categories, value)
    return found


def _pairs(
    paths: Sequence[Path], second: Sequence[Path], modalities: Sequence[str], allow_missing: bool
) -> list[tuple[Path, dict[str, Path]]]:
    """Images and, where the model has further modalities, those of each by name."""
    from iumad.data.files import find_second, second_folders

    further = [name for name in modalities if name != "rgb"]
    apart = {folder for name in (*further, "depth") for folder in second_folders(name)}
    images = [image for path in paths for image in _images(path, apart)]
    if not images:
        raise DataError(f"{', '.join(map(str, paths))}: no image was found")
    if second:
        if len(further) != 1:
            raise ConfigError(f"--second: the model takes {', '.join(modalities)}")
        if len(second) != len(images):
            raise ConfigError(f"--second: {len(images)} images need as many, got {len(second)}")
        return [(image, {further[0]: each}) for image, each in zip(images, second, strict=True)]
    pairs = []
    for image in images:
        found = {name: find_second(image, name) for name in further}
        absent = [name for name, path in found.items() if path is None]
        if absent and not allow_missing:
            folders = "/, ".join(second_folders(absent[0]))
            raise DataError(
                f"{image}: the model needs its {absent[0]} image, named alike in a folder {folders}/ beside that "
                "of the image, or given by --second; --allow-missing judges such images by colour alone, where "
                "the method can"
            )
        pairs.append((image, {name: path for name, path in found.items() if path is not None}))
    return pairs


def _images(path: Path, apart: set[str]) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        matches = sorted(path.parent.glob(path.name)) if path.name else []
        if not matches:
            raise DataError(f"{path}: there is no such file or folder")
        return [image for match in matches for image in _images(match, apart)]
    found = [each for each in sorted(path.rglob("*")) if each.suffix.lower() in IMAGES]
    inside = apart | {"gt", "ground_truth"}
    return [each for each in found if not inside & set(each.relative_to(path).parts[:-1])]


def _scored(
    predictor: "Predictor",
    pairs: Sequence[tuple[Path, dict[str, Path]]],
    given: Sequence[str | None],
    keys: Sequence[str],
) -> Iterator["Scored"]:
    from iumad.inspection.outputs import Scored

    with tqdm(total=len(pairs), desc="predict", unit="img", disable=len(pairs) == 1) as bar:
        for start in range(0, len(pairs), BATCH):
            part = slice(start, start + BATCH)
            predictions = predictor.batch(pairs[part], given[part])
            for (path, _), key, prediction in zip(
                pairs[part], keys[part], predictions, strict=True
            ):
                yield Scored(path, key, prediction)
            bar.update(len(predictions))


def _write(
    scored: Sequence["Scored"],
    out: Path | None,
    overlays: Path | None,
    maps: Path | None,
    report: Path | None,
    name: str,
) -> None:
    import numpy as np

    from iumad.inspection.outputs import overlay, report_page, table_of, write_png, write_table
    from iumad.machine import replacing

    table = table_of(scored)
    if out is not None:
        write_table(table, out)
        say(f"table: {out}")
    elif not any((overlays, maps, report)) or len(scored) == 1:
        shown = ["file", "category", "score", "normalised", "anomalous", "ms"]
        print_table(table[shown].head(SHOWN))
        if len(table) > SHOWN:
            say(f"{len(table) - SHOWN} more; --out writes all")
    for each in scored:
        if overlays is not None:
            write_png(overlay(each.prediction), overlays / f"{each.key}.png")
        if maps is not None:
            with replacing(maps / f"{each.key}.npy") as file:
                np.save(file, each.prediction.anomaly_map)
    if report is not None:
        with replacing(report / "index.html") as file:
            file.write(report_page(scored, f"Predictions of {name}").encode())
        say(f"open {(report / 'index.html').resolve()}")
