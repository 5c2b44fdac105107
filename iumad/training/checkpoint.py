"""A model that meets new categories: its logits grow, everything else is taken over.

A detector's parameters whose first axis counts categories are the last linear layers of its classifiers and of
the bottleneck's heads. Old categories keep their rows, new ones begin as in a new model.

Checkpoints: one file of tensors and plain values, written atomically, read without running code.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iumad.errors import CheckpointError, DamagedFileError
from iumad.machine import read_sealed, write_sealed


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a sealed file in one step: after a failure it is the old one, and damage is found when it is read."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_sealed(path, buffer.getvalue())


def load_checkpoint(path: Path, key: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint (tensors and plain values only) and compare its key.

    Raises
    ------
    CheckpointError
        The file cannot be read, or was written for another configuration.
    """
    try:
        content = io.BytesIO(read_sealed(path))
        state = torch.load(content, map_location="cpu", weights_only=True)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error
    except Exception as error:  # torch raises many kinds for other files
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {reason}") from error
    if not isinstance(state, dict) or state.get("key") != key:
        found = state.get("key") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"{path}: checkpoint of another configuration: it has {found}, needed is {key}"
        )
    return state


def load_grown(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load the state of a model with as many or fewer categories; rows of new categories stay as they are.

    Parameters
    ----------
    model : newly made, with all logits that it shall have
    state : of a model that differs in nothing but the number of logits

    Raises
    ------
    CheckpointError
        A tensor is missing or unknown, has more rows than the model's, or differs in another axis.
    """
    own = model.state_dict()
    if own.keys() != state.keys():
        differing = sorted(own.keys() ^ state.keys())
        raise CheckpointError(
            f"checkpoint of another model: only one of the two has {differing[0]}"
        )
    grown = {}
    for name, old in state.items():
        new = own[name]
        if isinstance(old, Tensor) and old.shape != new.shape:
            if old.ndim == 0 or old.shape[1:] != new.shape[1:] or len(old) > len(new):
                raise CheckpointError(
                    f"{name}: needs at most {tuple(new.shape)} with only the first axis smaller, "
                    f"the checkpoint has {tuple(old.shape)}"
                )
            old = torch.cat([old.to(new), new[len(old) :]])
        grown[name] = old
    model.load_state_dict(grown)


def with_rows(x: Tensor, rows: int) -> Tensor:
    """`x` with zeros below, so that it has `rows` rows: what is remembered of categories not met yet."""
    if x.ndim == 0 or len(x) == rows:
        return x
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])
