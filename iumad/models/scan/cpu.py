"""The compiled selective scan of tensors on the CPU.

The kernels run without the GIL in plain Python threads, as many as `torch.get_num_threads()`.
numba's own parallel loops are not used: its default thread layer must not be entered from two
threads at once, its OpenMP layer ends a process that was forked, and parallel loops take long to
compile.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from iumad.models.scan import kernels

SHARES = 4  # parts of the work per thread; several, so that a slow core gets fewer of them


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """The scan of `iumad.models.scan.operators`; the gate is left to torch, as few models use it."""
    inputs = _arrays(u, delta, A, B, C, D, delta_bias)
    y = np.empty_like(inputs[0])
    blocks = kernels.number_of_blocks(u.shape[1], B.shape[1])
    _run(kernels.forward, u.shape[0] * blocks, *inputs, delta_softplus, y)
    out = torch.from_numpy(y)
    return out if z is None else out * functional.silu(z)


def backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all tensors, given that of the output; that of z is empty where there is no z."""
    gz = grad.new_empty(0)
    if z is not None:
        y = forward(u, delta, A, B, C, D, None, delta_bias, delta_softplus)
        sigmoid = torch.sigmoid(z)
        gz = grad * y * sigmoid * (1 + z * (1 - sigmoid))
        grad = grad * z * sigmoid
    gy, *inputs = _arrays(grad, u, delta, A, B, C, D, delta_bias)
    batch, dim, length = u.shape
    groups, states = B.shape[1:3]
    blocks = kernels.number_of_blocks(dim, groups)

    def empty(*shape: int) -> np.ndarray:
        return np.empty(shape, gy.dtype)

    gu, gdelta = empty(batch, dim, length), empty(batch, dim, length)
    gA, gD, gbias = empty(batch, dim, states), empty(batch, dim), empty(batch, dim)
    gB, gC = (empty(batch, blocks, states, length) for _ in range(2))
    outputs = (gu, gdelta, gA, gB, gC, gD, gbias)
    _run(kernels.backward, batch * blocks, *inputs, delta_softplus, gy, *outputs)

    # numpy adds in an order that does not depend on threads
    gB, gC = (x.reshape(batch, groups, -1, states, length).sum(axis=2) for x in (gB, gC))
    gA, gD, gbias = (x.sum(axis=0) for x in (gA, gD, gbias))
    first = (gu, gdelta, gA, gB, gC, gD)
    return *(torch.from_numpy(x) for x in first), gz, torch.from_numpy(gbias)  # type: ignore[return-value]


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [x.detach().contiguous().numpy() for x in tensors]


@lru_cache(maxsize=1)
def _helpers(process: int, number: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Threads that help the calling one; a forked process has lost them and gets its own."""
    return ThreadPoolExecutor(number, thread_name_prefix="iumad-scan")


def _run(kernel: Callable[..., None], tasks: int, *arrays: np.ndarray | bool) -> None:
    """Call ``kernel(*arrays, start, stop)`` on parts of 0 … tasks, by torch's number of threads."""
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        kernel(*arrays, 0, tasks)
        return
    size = -(-tasks // (threads * SHARES))
    starts = list(range(0, tasks, size))

    def work() -> None:
        while True:
            try:
                start = starts.pop()  # atomic, so every part is done once
            except IndexError:
                return
            kernel(*arrays, start, min(start + size, tasks))

    pool = _helpers(os.getpid(), torch.get_num_threads() - 1)
    helping = [pool.submit(work) for _ in range(threads - 1)]
    work()
    for helper in helping:
        if not helper.cancel():  # one that has not begun yet has nothing left to do
            helper.result()
