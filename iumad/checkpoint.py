"""Checkpoints: one file of tensors and plain values, written atomically, read without running code."""

import os
from pathlib import Path
from typing import Any

import torch

from iumad.atomic import replacing
from iumad.errors import CheckpointError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: after a failure the file is the old one."""
    with replacing(path) as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path, key: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint (tensors and plain values only) and compare its key.

    Raises
    ------
    CheckpointError
        The file cannot be read, or was written for another configuration.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {reason}") from error
    if not isinstance(state, dict) or state.get("key") != key:
        found = state.get("key") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"{path}: checkpoint of another configuration: it has {found}, needed is {key}"
        )
    return state
