"""The compiled selective scan as a torch operator for tensors on the CPU.

Two custom operators (`iumad::selective_scan` and `iumad::selective_scan_backward`) wrap the numba
kernels. Operators rather than an `autograd.Function`, because `torch.compile` and `torch.export`
keep them as opaque nodes, where they would try to trace through the Python code of a Function. They
are defined by schema: `torch.library.custom_op` would load all of `torch._dynamo` at the first call,
which takes seconds.

The kernels run without the GIL in plain Python threads, as many as `torch.get_num_threads()`.
numba's own parallel loops are not used: its default thread layer must not be entered from two
threads at once, its OpenMP layer ends a process that was forked, and parallel loops take long to
compile. numba is imported at the first call.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SHARES = 4  # parts of the work per thread; several, so that a slow core gets fewer of them


INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor delta_bias, "
    "bool delta_softplus"
)
torch.library.define("iumad::selective_scan", f"({INPUTS}) -> Tensor")
torch.library.define(
    "iumad::selective_scan_backward",
    f"(Tensor grad, {INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def scan_cpu(
    u: Float[Tensor, "batch dim length"],
    delta: Float[Tensor, "batch dim length"],
    A: Float[Tensor, "dim state"],
    B: Float[Tensor, "batch group state length"],
    C: Float[Tensor, "batch group state length"],
    D: Float[Tensor, " dim"],
    delta_bias: Float[Tensor, " dim"],
    delta_softplus: bool,
) -> Float[Tensor, "batch dim length"]:
    """Scan on the CPU, differentiably; all tensors of one dtype, float32 or float64."""
    inputs = (u, delta, A, B, C, D, delta_bias, delta_softplus)
    return torch.ops.iumad.selective_scan(*inputs)


@torch.library.impl("iumad::selective_scan", "cpu")
def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    from iumad.models.scan import kernels as scan_kernels

    inputs = _arrays(u, delta, A, B, C, D, delta_bias)
    y = np.empty_like(inputs[0])
    blocks = scan_kernels.number_of_blocks(u.shape[1], B.shape[1])
    _run(scan_kernels.forward, u.shape[0] * blocks, *inputs, delta_softplus, y)
    return torch.from_numpy(y)


@torch.library.register_fake("iumad::selective_scan")
def _forward_fake(u, delta, A, B, C, D, delta_bias, delta_softplus):  # noqa: ARG001
    return torch.empty_like(u, memory_format=torch.contiguous_format)


@torch.library.impl("iumad::selective_scan_backward", "cpu")
def _backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from iumad.models.scan import kernels as scan_kernels

    gy, *inputs = _arrays(grad, u, delta, A, B, C, D, delta_bias)
    batch, dim, length = u.shape
    groups, states = B.shape[1:3]
    blocks = scan_kernels.number_of_blocks(dim, groups)

    def empty(*shape: int) -> np.ndarray:
        return np.empty(shape, gy.dtype)

    gu, gdelta = empty(batch, dim, length), empty(batch, dim, length)
    gA, gD, gbias = empty(batch, dim, states), empty(batch, dim), empty(batch, dim)
    gB, gC = (empty(batch, blocks, states, length) for _ in range(2))
    outputs = (gu, gdelta, gA, gB, gC, gD, gbias)
    _run(scan_kernels.backward, batch * blocks, *inputs, delta_softplus, gy, *outputs)

    # numpy adds in an order that does not depend on threads
    gB, gC = (x.reshape(batch, groups, -1, states, length).sum(axis=2) for x in (gB, gC))
    gA, gD, gbias = (x.sum(axis=0) for x in (gA, gD, gbias))
    gradients = (gu, gdelta, gA, gB, gC, gD, gbias)
    return tuple(torch.from_numpy(x) for x in gradients)  # type: ignore[return-value]


@torch.library.register_fake("iumad::selective_scan_backward")
def _backward_fake(grad, u, delta, A, B, C, D, delta_bias, delta_softplus):  # noqa: ARG001
    like = (u, delta, A, B, C, D, delta_bias)
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in like)


def _setup_context(ctx, inputs, output):  # noqa: ARG001
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad):
    inputs = (*ctx.saved_tensors, ctx.delta_softplus)
    return *torch.ops.iumad.selective_scan_backward(grad, *inputs), None


torch.library.register_autograd(
    "iumad::selective_scan", _differentiate, setup_context=_setup_context
)


def _refuse(ctx, *grads):
    raise NotImplementedError(
        "scan backend 'cpu' has no second derivatives; use backend='reference' for them"
    )


torch.library.register_autograd("iumad::selective_scan_backward", _refuse)


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
