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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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


def _forward_cpu(*inputs: Any) -> Tensor:
    from iumad.models.scan import cpu  # here and below: numba and Triton take long to import

    return cpu.forward(*inputs)


def _backward_cpu(*inputs: Any) -> tuple[Tensor, ...]:
    from iumad.models.scan import cpu

    return cpu.backward(*inputs)


def _forward_triton(*inputs: Any) -> Tensor:
    from iumad.models.scan import triton

    return triton.forward(*inputs)


def _backward_triton(*inputs: Any) -> tuple[Tensor, ...]:
    from iumad.models.scan import triton

    return triton.backward(*inputs)


scan_numba = define("selective_scan", ("cpu",), _forward_cpu, _backward_cpu)
scan_triton = define("selective_scan_triton", ("cuda", "cpu"), _forward_triton, _backward_triton)
