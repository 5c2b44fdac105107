"""Which study a notebook shows, and how it is told to show another."""

import os
from pathlib import Path
from typing import Any

SMOKE = "smoke.yaml"  # what notebooks name that show the main job of any params file


def params_of(notebook: Path) -> Path:
    """The params file that a notebook's parameters cell names."""
    import papermill

    default = papermill.inspect_notebook(str(notebook))["params_file"]["default"]
    return notebook.parent / default.strip("\"'")


def own_study(notebook: Path) -> Path | None:
    """The params file of a notebook that has a study of its own; None if it shows the main job of any."""
    path = params_of(notebook)
    return None if path.name == SMOKE else path


def notebook_parameters(notebook: Path, params: Path) -> dict[str, Any]:
    """What a notebook has to be told to show a params file, or its own study of the same folder.

    A notebook without a study of its own shows `params`. Another shows the file of its study in the folder of
    `params`; its default, if that is the same file or there is none.
    """
    own = own_study(notebook)
    if own is None:
        return {"params_file": seen_from(notebook, params)}
    beside = params.with_name(own.name)
    if not beside.exists() or beside.resolve() == own.resolve():
        return {}
    return {"params_file": seen_from(notebook, beside)}


def seen_from(notebook: Path, path: Path) -> str:
    """A path as the notebook's kernel finds it: relative, so that pages do not name the machine."""
    return os.path.relpath(path.resolve(), notebook.resolve().parent)
