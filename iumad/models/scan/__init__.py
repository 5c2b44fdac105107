"""Selective scan (S6): the recurrence of Mamba, with one function over several backends.

Glossary, with the letters of the Mamba paper (Gu & Dao 2023, arXiv:2312.00752, Eq. 2, Alg. 2)::

    u      input sequence                       batch × dim × length
    Δ      step size, positive                  batch × dim × length   (argument `delta`)
    A      decay rates, usually negative        dim × state
    B, C   input and output maps of the state   batch × [group ×] state × length
    D      skip weight                          dim
    z      gate                                 batch × dim × length
    h      hidden state, h_0 = 0                batch × dim × state

    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t
    y_t = <C_t, h_t> + D u_t
    out_t = y_t silu(z_t)

Not included: complex A, a B or C that does not vary in time, returning the last state.
"""

import functools
import importlib.util
import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from iumad.errors import ConfigError
from iumad.models.scan.operators import scan_numba, scan_triton


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Scan `u` along its last axis; arguments and meaning as in mamba-ssm's `selective_scan_fn`.

    Half precision inputs are computed in float32, autocast or not.

    Parameters
    ----------
    u, delta : Tensor, batch × dim × length
        Input and step size. The step size is ``delta + delta_bias``, through softplus if asked.
    A : Tensor, dim × state
        Decay rates.
    B, C : Tensor, batch × state × length or batch × group × state × length
        With groups, channel d uses group ``d // (dim / group)``.
    D, delta_bias : Tensor, dim, optional
    z : Tensor, batch × dim × length, optional
    delta_softplus : bool
        Pass the step size through ``log(1 + exp(.))``.
    backend : {"auto", "cpu", "triton", "mamba-ssm", "vectorised", "reference"}
        ``cpu`` is compiled by numba, ``triton`` by Triton for CUDA, ``mamba-ssm`` calls the package of
        that name (extra ``cuda``). In plain torch, on any device: ``reference`` is a loop over time,
        ``vectorised`` works on all steps at once and needs memory for all states. ``auto`` takes the
        compiled one of the device, on CUDA the faster of two (timed once for each size, Triton's while
        a graph is recorded), else ``vectorised``; the latter too while a model is exported, and
        ``reference`` for float64.

    Returns
    -------
    Tensor, batch × dim × length
        In the dtype of `u`.

    Raises
    ------
    ValueError
        If a shape does not fit; the text names the argument.
    TypeError
        If an argument is not a real floating tensor.
    ConfigError
        If the backend is unknown, not installed, or not for the device of `u`.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"scan backend: need one of {', '.join(BACKENDS)}, got {backend!r}")
    _check(u, {"delta": delta, "z": z}, A, {"B": B, "C": C}, {"D": D, "delta_bias": delta_bias})
    chosen, dtype = _choose(backend, u, A.shape[-1]), u.dtype
    B, C = (x.unsqueeze(1) if x.ndim == 3 else x for x in (B, C))
    wide = torch.promote_types(dtype, torch.float32)
    # None: as it is; Triton reads half precision and computes in float32
    like_u = {"triton": None, "mamba-ssm": dtype}.get(chosen, wide)
    with torch.autocast(u.device.type, enabled=False):
        tensors = (u, delta, A, B, C, D, z, delta_bias)
        dtypes = (like_u, like_u, wide, like_u, like_u, wide, like_u, wide)
        return RUN[chosen](*map(_cast, tensors, dtypes), delta_softplus).to(dtype)


def _cast(x: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return x if x is None or dtype is None else x.to(dtype)


def _compiled(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Put zeros where an operator wants a tensor that is optional here."""

    def scan(*inputs: Any) -> Tensor:
        u, delta, A, B, C, D, z, delta_bias, delta_softplus = inputs
        nothing = A.new_zeros(len(A))
        D = nothing if D is None else D
        delta_bias = nothing if delta_bias is None else delta_bias
        return operator(u, delta, A, B, C, D, z, delta_bias, delta_softplus)

    return scan


def reference(
    u: Float[Tensor, "batch dim length"],
    delta: Float[Tensor, "batch dim length"],
    A: Float[Tensor, "dim state"],
    B: Float[Tensor, "batch group state length"],
    C: Float[Tensor, "batch group state length"],
    D: Float[Tensor, " dim"] | None,
    z: Float[Tensor, "batch dim length"] | None,
    delta_bias: Float[Tensor, " dim"] | None,
    delta_softplus: bool,
) -> Float[Tensor, "batch dim length"]:
    """Loop over time in plain torch: slow, near to the equations, and with any number of derivatives."""
    delta = _step_size(delta, delta_bias, delta_softplus)
    repeats = u.shape[1] // B.shape[1]
    h = u.new_zeros(u.shape[0], *A.shape)
    y = []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        B_t = B[..., t].repeat_interleave(repeats, dim=1)
        C_t = C[..., t].repeat_interleave(repeats, dim=1)
        h = torch.exp(step * A) * h + step * B_t * u[:, :, t, None]
        y.append((h * C_t).sum(dim=-1))
    return _finish(torch.stack(y, dim=-1), u, D, z)


def vectorised(
    u: Float[Tensor, "batch dim length"],
    delta: Float[Tensor, "batch dim length"],
    A: Float[Tensor, "dim state"],
    B: Float[Tensor, "batch group state length"],
    C: Float[Tensor, "batch group state length"],
    D: Float[Tensor, " dim"] | None,
    z: Float[Tensor, "batch dim length"] | None,
    delta_bias: Float[Tensor, " dim"] | None,
    delta_softplus: bool,
) -> Float[Tensor, "batch dim length"]:
    """All steps at once, in ⌈log2 length⌉ rounds: for short sequences, and for export to other programs.

    Two neighbouring steps h → a h + x are one such step, with a = a_2 a_1 and x = a_2 x_1 + x_2. Round k joins
    every step with the one 2^k before it, so that after the last round every step reaches from the start. Nothing
    is divided, so no rate of decay is too large. The memory is that of all states, batch × dim × state × length.
    """
    repeats = u.shape[1] // B.shape[1]
    B, C = (x.repeat_interleave(repeats, dim=1) for x in (B, C))
    delta = _step_size(delta, delta_bias, delta_softplus)
    decay = torch.exp(delta[:, :, None] * A[..., None])
    h = (delta * u)[:, :, None] * B
    reach = 1
    while reach < u.shape[2]:
        joined = decay[..., reach:] * h[..., :-reach] + h[..., reach:]
        h = torch.cat([h[..., :reach], joined], dim=-1)
        decay = torch.cat([decay[..., :reach], decay[..., reach:] * decay[..., :-reach]], dim=-1)
        reach *= 2
    return _finish((h * C).sum(dim=2), u, D, z)


def _step_size(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    return F.softplus(delta) if delta_softplus else delta


def _finish(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    if D is not None:
        y = y + D[:, None] * u
    return y if z is None else y * F.silu(z)


def _mamba_ssm(*arguments: Tensor | bool | None) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(*arguments)


RUN: dict[str, Callable[..., Tensor]] = {
    "cpu": _compiled(scan_numba),
    "triton": _compiled(scan_triton),
    "mamba-ssm": _mamba_ssm,
    "vectorised": vectorised,
    "reference": reference,
}
BACKENDS = ("auto", *RUN)
NEEDED_DEVICE = {"cpu": "cpu", "triton": "cuda", "mamba-ssm": "cuda"}
INSTALLED = {
    backend: importlib.util.find_spec(package) is not None
    for backend, package in {"triton": "triton", "mamba-ssm": "mamba_ssm"}.items()
}


def _choose(backend: str, u: Tensor, d_state: int) -> str:
    """Replace "auto" by a backend; raise if the one asked for cannot be used."""
    device = u.device.type
    if backend == "auto":
        if torch.compiler.is_exporting():
            return "vectorised"
        if u.dtype == torch.float64:
            return "reference"
        if device == "cuda":
            names = tuple(name for name in INSTALLED if INSTALLED[name]) or ("vectorised",)
            if len(names) == 1 or torch.compiler.is_compiling():
                return names[0]
            if torch.cuda.is_current_stream_capturing():  # nothing may be timed in a graph
                return names[0]
            return fastest(names, u.device, u.dtype, tuple(u.shape), d_state)
        return "cpu" if device == "cpu" else "vectorised"
    if not INSTALLED.get(backend, True):
        raise ConfigError(
            f"scan backend {backend!r} needs the package {backend}, which is not installed; choose "
            "'auto' (Triton comes with torch for CUDA, mamba-ssm with the extra iumad[cuda])"
        )
    needed = NEEDED_DEVICE.get(backend, device)
    if device != needed and not (backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"):
        raise ConfigError(f"scan backend {backend!r} needs tensors on {needed}, got {u.device}")
    return backend


@functools.cache
def fastest(
    names: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    d_state: int,
) -> str:
    """The backend that takes the least time forward and backward on random inputs of a size, best of three."""
    generator = torch.Generator(device).manual_seed(0)
    best = dict.fromkeys(names, math.inf)
    plain = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), plain:
        draw = functools.partial(torch.rand, generator=generator, device=device)
        u, delta = (draw(shape, dtype=dtype).requires_grad_() for _ in range(2))
        a = -draw((shape[1], d_state))
        b, c = (draw((shape[0], 1, d_state, shape[2]), dtype=dtype) for _ in range(2))
        for name in names * 3:
            start = time.perf_counter()
            out = RUN[name](u, delta, a, b, c, None, None, None, False)
            torch.autograd.grad(out.sum(), (u, delta))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[name] = min(best[name], time.perf_counter() - start)
    return min(names, key=best.__getitem__)


def _check(
    u: Tensor,
    like_u: dict[str, Tensor | None],
    A: Tensor,
    maps: dict[str, Tensor],
    vectors: dict[str, Tensor | None],
) -> None:
    """Raise with the argument's name, what is needed and what came if anything does not fit."""
    for name, x in {"u": u, **like_u, "A": A, **maps, **vectors}.items():
        if x is not None and not x.is_floating_point():
            raise TypeError(f"{name} needs a real floating dtype, got {x.dtype}")
    if u.ndim != 3 or u.shape[2] == 0 or A.ndim != 2 or A.shape[0] != u.shape[1]:
        raise ValueError(
            "u needs shape (batch, dim, length ≥ 1) and A (dim, state), "
            f"got u {tuple(u.shape)} and A {tuple(A.shape)}"
        )
    batch, dim, length = u.shape
    state = A.shape[1]
    needs: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        **{name: (x, (batch, dim, length)) for name, x in like_u.items()},
        **{name: (x, (dim,)) for name, x in vectors.items()},
    }
    for name, (x, shape) in needs.items():
        if x is not None and tuple(x.shape) != shape:
            raise ValueError(f"{name} needs shape {shape}, got {tuple(x.shape)}")
    for name, x in maps.items():
        if x.ndim not in (3, 4) or (x.shape[0], *x.shape[-2:]) != (batch, state, length):
            raise ValueError(
                f"{name} needs shape {(batch, state, length)} or "
                f"({batch}, group, {state}, {length}), got {tuple(x.shape)}"
            )
    groups = {x.shape[1] if x.ndim == 4 else 1 for x in maps.values()}
    if len(groups) != 1 or 0 in groups or dim % groups.pop() != 0:
        raise ValueError(
            f"B and C need one number of groups that divides dim {dim}, "
            f"got B {tuple(maps['B'].shape)} and C {tuple(maps['C'].shape)}"
        )
