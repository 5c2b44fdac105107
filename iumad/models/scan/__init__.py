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

import importlib.util
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from iumad.errors import ConfigError
from iumad.models.scan.cpu import scan_cpu

BACKENDS = ("auto", "cpu", "cuda", "reference")


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
    backend : {"auto", "cpu", "cuda", "reference"}
        `reference` is a loop over time in plain torch, on any device. `cpu` is compiled by numba.
        `cuda` calls mamba-ssm (extra ``cuda``). `auto` takes the compiled one of the device where
        there is one, and `reference` for float64 and for CUDA without mamba-ssm.

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
    chosen = _choose(backend, u)
    B, C = (x.unsqueeze(1) if x.ndim == 3 else x for x in (B, C))
    run: Callable[..., Tensor] = {
        "cpu": _scan_cpu,
        "cuda": _scan_cuda,
        "reference": _scan_reference,
    }[chosen]
    with torch.autocast(u.device.type, enabled=False):
        tensors = (u, delta, A, B, C, D, z, delta_bias)
        dtype = torch.promote_types(u.dtype, torch.float32)
        # mamba-ssm's kernels read half precision and compute in float32 themselves
        wide = [x if x is None or chosen == "cuda" else x.to(dtype) for x in tensors]
        return run(*wide, delta_softplus).to(u.dtype)


@cache
def _has_mamba_ssm() -> bool:
    return importlib.util.find_spec("mamba_ssm") is not None


def _choose(backend: str, u: Tensor) -> str:
    """Replace "auto" by a backend; raise if the one asked for cannot be used."""
    device = u.device.type
    if backend == "auto":
        if u.dtype == torch.float64 or (device == "cuda" and not _has_mamba_ssm()):
            return "reference"
        return device if device in ("cpu", "cuda") else "reference"
    if backend == "cuda" and not _has_mamba_ssm():
        raise ConfigError(
            "scan backend 'cuda' needs the package mamba-ssm, which is not installed; "
            "install the extra iumad[cuda] on a CUDA machine or choose 'auto'"
        )
    if backend in ("cpu", "cuda") and device != backend:
        raise ConfigError(f"scan backend {backend!r} needs tensors on {backend}, got {u.device}")
    return backend


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


def _scan_reference(
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
    """Loop over time in plain torch: slow, differentiable, any device and precision."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    repeats = u.shape[1] // B.shape[1]
    h = u.new_zeros(u.shape[0], *A.shape)
    y = []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        B_t = B[..., t].repeat_interleave(repeats, dim=1)
        C_t = C[..., t].repeat_interleave(repeats, dim=1)
        h = torch.exp(step * A) * h + step * B_t * u[:, :, t, None]
        y.append((h * C_t).sum(dim=-1))
    out = torch.stack(y, dim=-1)
    if D is not None:
        out = out + D[:, None] * u
    return out if z is None else out * F.silu(z)


def _scan_cpu(
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
    """Compiled scan; the gate is left to torch, as few models use it."""
    nothing = u.new_zeros(u.shape[1])
    D = nothing if D is None else D
    delta_bias = nothing if delta_bias is None else delta_bias
    out = scan_cpu(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return out if z is None else out * F.silu(z)


def _scan_cuda(
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
    """Call mamba-ssm, which wants A, D and the bias in float32 and all else in the dtype of u."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    delta, B, C = (x.to(u.dtype) for x in (delta, B, C))
    D, delta_bias = (None if x is None else x.float() for x in (D, delta_bias))
    z = None if z is None else z.to(u.dtype)
    return selective_scan_fn(u, delta, A.float(), B, C, D, z, delta_bias, delta_softplus)
