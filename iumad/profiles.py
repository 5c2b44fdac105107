"""A profile is a folder of params files with fixed names, one for each study of the book's pages.

params/           what the published pages show
params/mvtec3d/   the same studies on other data (`iumad study derive`)
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from iumad.config import load_params

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
