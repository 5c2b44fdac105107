"""The studies of the book's pages for other data: same comparisons, with another params file's data and sizes.

From mvtec3d.yaml and the settings.yaml, ablation.yaml, ... beside it: mvtec3d/settings.yaml, mvtec3d/ablation.yaml
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from iumad.config import StudyConfig, load_params
from iumad.config_sections import ReconstructionConfig
from iumad.data import categories_of
from iumad.errors import ConfigError
from iumad.finished import steps_of
from iumad.presets import PRESETS
from iumad.profiles import STUDIES
from iumad.results import write_text
from iumad.validation import build

FULL = "baselines_full"  # the other systems with their authors' sizes and budgets, for any data at full size
GRID = ("methods", "modalities", "settings", "seeds")
SECTIONS = ("data", "features", "model", "training", "increment", "evaluation")
OWN = {"model", "training", "increment"}


def derive_studies(params: Path, out: Path, assignments: Sequence[str] = ()) -> list[Path]:
    """Write each study of the book's pages with the data, sizes and training of a params file.

    Methods, modalities, settings and seeds are those of the studies that lie beside the file, with four changes:
    the study of the other systems is ``baselines_full.yaml``; a method that `model` does not reach is as there,
    unless its study changes it; a width that a method sets grows like that of all methods; and a study that
    chooses categories takes as many, the first.

    Parameters
    ----------
    params : Path
        Params file whose sections the studies get.
    out : Path
        Folder to write to; its name and the study's become the profile.
    assignments : sequence of str
        See `iumad.config.load_params`; changes in `params`.

    Returns
    -------
    list of Path
        One params file for each of `iumad.profiles.STUDIES`.

    Raises
    ------
    ConfigError
        A study is missing or does not fit the data, or another file would be overwritten; then nothing is written.
    """
    given = load_params(params, assignments=assignments)
    full = load_params(params.with_name(f"{FULL}.yaml"))
    files = {}
    for name in STUDIES:
        source = params.with_name(f"{FULL if name == 'baselines' else name}.yaml")
        content = {"profile": f"{out.name}/{name}"} | _content(load_params(source), given, full)
        _check(build(StudyConfig, content, f"{source} with {params}"), f"{source} with {params}")
        taken = "data and features" if name == "baselines" else "data, sizes and training"
        title = (
            f"# {source.name} with the {taken} of {params.name}; made by `iumad study derive`.\n"
        )
        files[out / f"{name}.yaml"] = title + yaml.safe_dump(content, sort_keys=False, width=120)
    for path, text in files.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ConfigError(f"{path}: exists and differs; remove it, or choose another folder")
    for path, text in files.items():
        write_text(text, path)
    return list(files)


def _content(study: StudyConfig, given: StudyConfig, full: StudyConfig) -> dict[str, Any]:
    """The grid of one study with the sections of another."""
    sections, grid = _set_keys(given, SECTIONS), _set_keys(study, GRID)
    if study == full:
        sections |= _set_keys(full, tuple(OWN))
    if study.data.categories is not None:
        few = categories_of(given.data)[: len(study.data.categories)]
        sections["data"] = sections.get("data", {"name": given.data.name}) | {
            "categories": list(few)
        }
    growth = _width(given) / _width(study)
    known = _set_keys(full, ("methods",))["methods"]
    methods = {}
    for name, method in grid["methods"].items():
        preset = method.get("preset", name)
        if "kind" not in PRESETS[preset].get("model", {}):
            methods[name] = method if study == full else _widened(method, growth)
        else:
            methods[name] = method if OWN & set(method) else known.get(preset, {}) | method
    return sections | grid | {"methods": methods}


def _set_keys(study: StudyConfig, keys: tuple[str, ...]) -> dict[str, Any]:
    """What a params file sets of these keys, as YAML can hold it."""
    return study.model_dump(mode="json", exclude_unset=True, include=set(keys))


def _width(study: StudyConfig) -> int:
    return build(ReconstructionConfig, study.model, "model").dim


def _widened(method: dict[str, Any], growth: float) -> dict[str, Any]:
    """The method, if it sets a width, with one that is as much larger as that of all methods."""
    if "dim" not in method.get("model", {}):
        return method
    return method | {"model": method["model"] | {"dim": round(method["model"]["dim"] * growth)}}


def _check(study: StudyConfig, where: str) -> None:
    """Every setting must use up the categories."""
    try:
        for run in study.runs():
            steps_of(run, categories_of(study.data))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
