"""Several processes train one model, each on its share of every batch: `torchrun -m iumad run ...`.

The first process writes all files, and decides what is there already; the others read them. All processes of a
run need the same results folder. Outside `process_group` everything here is what it is for a single process.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(days=1)  # others wait while the first process evaluates


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that torchrun started; without torchrun, nothing.

    Parameters
    ----------
    device : str
        As for `iumad.devices.pick_device`: gradients go over NCCL between CUDA devices, else over gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ:
        yield
        return
    on_cuda = device != "cpu" and torch.cuda.is_available()
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes files and shows progress."""
    return rank() == 0


def agree(answer: bool) -> bool:
    """The first process's answer, in all processes; also a point at which all wait for it."""
    if world_size() == 1:
        return answer
    said = torch.tensor(int(answer))
    distributed.broadcast(said, src=0)
    return bool(said)


def wait() -> None:
    """Return when all processes have come here."""
    if world_size() > 1:
        distributed.all_reduce(torch.zeros(()))


def average(values: dict[str, float]) -> dict[str, float]:
    """Mean over processes of numbers that all of them have."""
    if world_size() == 1:
        return values
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    distributed.all_reduce(total)
    return dict(zip(values, (total / world_size()).tolist(), strict=True))


@dataclass(frozen=True)
class Share:
    """Part of a batch that one process takes.

    Attributes
    ----------
    ids : samples of this process
    first, total : place of the first of them in the whole batch, and the size of that
    weight : factor of the share's mean loss, such that the mean over processes is the batch's mean loss
    """

    ids: Sequence[str]
    first: int
    total: int
    weight: float


def share(ids: Sequence[str]) -> Share:
    """Consecutive samples, as even as can be; with fewer samples than processes, all take the whole batch."""
    total, processes = len(ids), world_size()
    if processes == 1 or total < processes:
        return Share(ids, 0, total, 1.0)
    first, stop = (total * i // processes for i in (rank(), rank() + 1))
    return Share(ids[first:stop], first, total, processes * (stop - first) / total)


@torch.no_grad()
def whole_batch(rows: Tensor, first: int, total: int) -> Tensor:
    """Rows of all processes along the second dimension, in the batch's order, without gradient."""
    if rows.shape[1] == total:
        return rows.detach()
    whole = rows.new_zeros(rows.shape[0], total, *rows.shape[2:])
    whole[:, first : first + rows.shape[1]] = rows
    distributed.all_reduce(whole)
    return whole


class _Losses(nn.Module):
    """The loss terms of a detector as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        return self.detector.losses(*arguments)


def data_parallel(detector: nn.Module, every_parameter: bool) -> nn.Module:
    """A module that returns the detector's loss terms and averages gradients over processes.

    Batch norm takes its statistics over all processes on CUDA; on the CPU, where torch has no such layer, over the
    process's own share. On both, SimpleNet's noise scale, UniMMAD's balance losses and CND's importance loss
    are those of the share. Beyond rounding and dropout there is no other difference from a single process.

    Parameters
    ----------
    detector : nn.Module
        With a method `losses`.
    every_parameter : bool
        Whether the loss reaches all parameters, as it does but for ablations.
    """
    if world_size() == 1:
        return _Losses(detector)
    if next(detector.parameters()).device.type == "cuda":
        detector = nn.SyncBatchNorm.convert_sync_batchnorm(detector)
    return DistributedDataParallel(
        _Losses(detector), forward_sync_buffers=False, find_unused_parameters=not every_parameter
    )


def local_gradients(network: nn.Module, last: bool) -> AbstractContextManager:
    """Around the backward pass: gradients are averaged over processes at the last batch of an update only."""
    if last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()
