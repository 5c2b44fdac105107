"""The studies of the book's pages for other data: same comparisons, with another params file's data and sizes.

From mvtec3d.yaml and the settings.yaml, ablation.yaml, ... beside it: mvtec3d/settings.yaml, mvtec3d/ablation.yaml

A profile is a folder of params files with fixed names, one for each study of the book's pages.

params/           what the published pages show
params/mvtec3d/   the same studies on other data (`iumad study derive`)
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from iumad.config.methods import PRESETS
from iumad.config.sections import ReconstructionConfig
from iumad.config.study import StudyConfig, load_params
from iumad.config.validation import build
from iumad.data import categories_of
from iumad.errors import ConfigError
from iumad.study.results import write_text
from iumad.study.steps import steps_of

COMMON = "mini"  # the study of the notebooks that have none of their own
MEASURED = "efficiency"  # by `iumad study efficiency`; nothing is trained
COMPARED = (  # by the notebooks with a study of their own; all are trained
    "settings",
    "settings_many",
    "spurious",
    "unified",
    "ablation",
    "protection",
    "switches",
    "fusion",
    "bottleneck",
    "baselines",
)
STUDIES = (COMMON, *COMPARED, MEASURED)
_SMOKE = "smoke.yaml"  # which notebooks without a study of their own name


def own_study(notebook: Path) -> Path | None:
    """The params file that a notebook's parameters cell names; None if it is the common one."""
    text = notebook.read_text(encoding="utf-8")
    found = re.search(r"params_file = \\?[\"'](.*?)\\?[\"']", text)
    if found is None or Path(found[1]).name == _SMOKE:
        return None
    return notebook.parent / found[1]


def notebook_parameters(notebook: Path, params: Path) -> dict[str, Any]:
    """What a notebook has to be told to show a params file, or its own study of the same profile.

    A notebook without a study of its own gets the content of `params`. Another gets the file of its study in the
    folder of `params`; nothing, and so its default, if that is the same file or there is none.
    """
    own = own_study(notebook)
    if own is None:
        study = load_params(params)
        content: dict[str, Any] = yaml.safe_load(params.read_text(encoding="utf-8"))
        return {"profile": study.profile, **content}
    beside = params.with_name(own.name)
    if not beside.exists() or beside.resolve() == own.resolve():
        return {}
    return {"params_file": seen_from(notebook, beside)}


def seen_from(notebook: Path, path: Path) -> str:
    """A path as the notebook's kernel finds it: relative, so that pages do not name the machine."""
    return os.path.relpath(path.resolve(), notebook.resolve().parent)


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
        See `iumad.config.study.load_params`; changes in `params`.

    Returns
    -------
    list of Path
        One params file for each of `iumad.config.files.STUDIES`.

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
