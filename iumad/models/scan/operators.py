"""The selective scan as operators of torch, one for each compiled implementation.

Operators rather than an `autograd.Function`, because `torch.compile` and `torch.export` keep them as
opaque nodes, where they would try to trace through the Python code of a Function. They are defined
by schema: `torch.library.custom_op` would load all of `torch._dynamo` at the first call, which
takes seconds.

Inputs (b batch, d dim, l length, g group, n state)::

    u, delta, z   b × d × l        A   d × n        D, delta_bias   d        B, C   b × g × n × l

`iumad::selective_scan` is compiled by numba for the CPU (all tensors of one dtype, float32 or
float64), `iumad::selective_scan_triton` by Triton for CUDA (A, D and the bias in float32).
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SHARES = 4  # parts of the work per thread; several, so that a slow core gets fewer of them
INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor? z, "
    "Tensor delta_bias, bool delta_softplus"
)
GRADIENTS = ", ".join(["Tensor"] * 8)  # of the tensors, in order; that of z is empty without z


def define(
    name: str, devices: tuple[str, ...], forward: Callable[..., Tensor], backward: Callable
) -> Callable[..., Tensor]:
    """Define the operators `iumad::name` and `iumad::name_backward`; returns the first.

    Parameters
    ----------
    name : str
    devices : tuple of str
        Types of device that the functions work on.
    forward, backward : callable
        Take `INPUTS`, the second one after the gradient of the output; return the output, and
        `GRADIENTS`.
    """
    scan, scan_backward = f"iumad::{name}", f"iumad::{name}_backward"
    torch.library.define(scan, f"({INPUTS}) -> Tensor")
    torch.library.define(scan_backward, f"(Tensor grad, {INPUTS}) -> ({GRADIENTS})")
    torch.library.impl(scan, devices, forward)
    torch.library.impl(scan_backward, devices, backward)
    torch.library.register_fake(scan, _contiguous_like)
    torch.library.register_fake(scan_backward, _fake_gradients)

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = (*ctx.saved_tensors, ctx.delta_softplus)
        gradients = list(getattr(torch.ops.iumad, f"{name}_backward")(grad, *inputs))
        if inputs[6] is None:
            gradients[6] = None
        return *gradients, None

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            "compiled scans have no second derivatives; use backend='vectorised' for them"
        )

    torch.library.register_autograd(scan, differentiate, setup_context=_save_inputs)
    torch.library.register_autograd(scan_backward, refuse)
    return getattr(torch.ops.iumad, name)


def _save_inputs(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ARG001
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _contiguous_like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_gradients(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(grad.new_empty(0) if x is None else _contiguous_like(x) for x in inputs[:8])


def _forward_cpu(
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
    """The compiled scan of tensors on the CPU; the gate is left to torch, as few models use it.

    The kernels run without the GIL in plain Python threads, as many as `torch.get_num_threads()`. numba's own
    parallel loops are not used: its default thread layer must not be entered from two threads at once, its OpenMP
    layer ends a process that was forked, and parallel loops take long to compile.
    """
    from iumad.models.scan import kernels  # here and below: numba and Triton take long to import

    inputs = _arrays(u, delta, A, B, C, D, delta_bias)
    y = np.empty_like(inputs[0])
    blocks = kernels.number_of_blocks(u.shape[1], B.shape[1])
    _run(kernels.forward, u.shape[0] * blocks, *inputs, delta_softplus, y)
    out = torch.from_numpy(y)
    return out if z is None else out * F.silu(z)


def _backward_cpu(
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
    from iumad.models.scan import kernels

    gz = grad.new_empty(0)
    if z is not None:
        y = _forward_cpu(u, delta, A, B, C, D, None, delta_bias, delta_softplus)
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


def _forward_triton(*inputs: Any) -> Tensor:
    from iumad.models.scan import triton

    return triton.forward(*inputs)


def _backward_triton(*inputs: Any) -> tuple[Tensor, ...]:
    from iumad.models.scan import triton

    return triton.backward(*inputs)


scan_numba = define("selective_scan", ("cpu",), _forward_cpu, _backward_cpu)
scan_triton = define("selective_scan_triton", ("cuda", "cpu"), _forward_triton, _backward_triton)
