"""The selective scan for CUDA in Triton, which comes with torch: no compiler is needed.

As on the CPU (`iumad.models.scan.kernels`), a *program* is one sample and one block of channels of
one group. Here it is a single warp, which holds the states of its channels in registers and walks
through time. Time is read in tiles of four steps, because four neighbours in memory are one access.

The backward kernel keeps the states before every tile (a quarter of all, in a work array of its
own) and computes those within a tile again. Nothing but the inputs is saved between the two passes.
Sums over programs are made by torch afterwards, in one order: results are the same every time.

Everything is computed in float32; u, delta, B, C and z may be stored in bfloat16 or float16. A, D
and the bias are float32. With TRITON_INTERPRET=1 in the environment the same code runs on the CPU,
slowly, which is how it is tested where there is no card.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

FORWARD_BLOCK = 32  # channels of a program
BACKWARD_BLOCK = 16  # with more, the registers of a warp do not hold what it needs
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


# no_type_check, here and below: run-time checks of annotations would hide the code from Triton
@triton.jit
@no_type_check
def _columns(tile, ROWS: tl.constexpr):
    """Take a tile of four columns apart."""
    even, odd = tl.split(tl.reshape(tile, (ROWS, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
@no_type_check
def _tile(first, second, third, fourth, ROWS: tl.constexpr):
    """Undo `_columns`."""
    return tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), (ROWS, 4))


@triton.jit
@no_type_check
def _read(pointer, place, inside):
    return tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _step_size(raw, inside, SOFTPLUS: tl.constexpr):
    """Step size and its derivative; 0 where nothing is inside, which leaves the state as it is."""
    step, slope = raw, 1.0
    if SOFTPLUS:
        e = tl.exp2(-tl.abs(raw) * LOG2_E)  # exp(-|x|) ≤ 1
        s = e / (e + 2.0)  # log(1 + e) = 2 atanh(s), s ≤ 1/3: exact for small e, too
        w = s * s
        series = w * (1 / 7 + w * (1 / 9 + w * (1 / 11 + w * (1 / 13))))
        atanh = s * (1 + w * (1 / 3 + w * (1 / 5 + series)))
        step = tl.maximum(raw, 0.0) + 2.0 * atanh
        slope = tl.where(raw < 0, e, 1.0) / (1.0 + e)
    return tl.where(inside, step, 0.0), tl.where(inside, slope, 0.0)


@triton.jit
@no_type_check
def _row(pointer, t, n, length, states):
    """B_t or C_t, one number for each state."""
    return _read(pointer, t * states + n, (n < states) & (t < length))


@triton.jit
@no_type_check
def _advance(h, rate, step, x, b):
    """h_t from h_{t-1}; rate is A · log2 e, x = Δ u."""
    return tl.exp2(rate * step[None, :]) * h + x[None, :] * b[:, None]


@triton.jit
@no_type_check
def _retreat(h, gh, grate, rate, step, x, gy, B, C, gB, gC, t, n, length, states):
    """One step backwards in time, which writes the gradients of B_t and C_t.

    Takes h_{t-1} and the gradients of h_t (without that through y_t) and of the rates so far.
    Returns those of h_{t-1} and of the rates, then that of x, and that of Δ through the decay.
    """
    b, c = _row(B, t, n, length, states), _row(C, t, n, length, states)
    decay = tl.exp2(rate * step[None, :])
    exists = (n < states) & (t < length)
    gc = tl.sum(gy[None, :] * (decay * h + x[None, :] * b[:, None]), axis=1)
    tl.store(gC + t * states + n, gc, mask=exists)
    gh += gy[None, :] * c[:, None]
    tl.store(gB + t * states + n, tl.sum(gh * x[None, :], axis=1), mask=exists)
    gx = tl.sum(gh * b[:, None], axis=0)
    gh *= decay
    gexponent = gh * h
    gstep = LN_2 * tl.sum(gexponent * rate, axis=0)
    return gh, grate + gexponent * step[None, :], gx, gstep


@triton.jit
@no_type_check
def _locate(dim, groups, BLOCK: tl.constexpr):
    """Sample, its group of all groups, channels, and which of these exist."""
    b, per_group = tl.program_id(0).to(tl.int64), dim // groups
    blocks = tl.cdiv(per_group, BLOCK)
    g = tl.program_id(1) // blocks
    within = tl.program_id(1) % blocks * BLOCK + tl.arange(0, BLOCK)
    return b, b * groups + g, g * per_group + within, within < per_group


@triton.jit
@no_type_check
def _forward(
    u, delta, A, B, C, D, z, bias, y, dim, length, groups, states,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    b, g, d, real = _locate(dim, groups, BLOCK)
    n = tl.arange(0, STATES)
    rate = LOG2_E * _read(A, d * states + n[:, None], real & (n < states)[:, None])
    skip, shift = _read(D, d, real), _read(bias, d, real)
    B += g * length * states
    C += g * length * states
    h = tl.zeros((STATES, BLOCK), tl.float32)
    for t in range(0, length, 4):
        ts = t + tl.arange(0, 4)
        inside = real[:, None] & (ts < length)
        place = (b * dim + d[:, None]) * length + ts
        step, _ = _step_size(_read(delta, place, inside) + shift[:, None], inside, SOFTPLUS)
        value = _read(u, place, inside)
        s0, s1, s2, s3 = _columns(step, BLOCK)
        x0, x1, x2, x3 = _columns(step * value, BLOCK)

        h = _advance(h, rate, s0, x0, _row(B, t, n, length, states))
        y0 = tl.sum(h * _row(C, t, n, length, states)[:, None], axis=0)
        h = _advance(h, rate, s1, x1, _row(B, t + 1, n, length, states))
        y1 = tl.sum(h * _row(C, t + 1, n, length, states)[:, None], axis=0)
        h = _advance(h, rate, s2, x2, _row(B, t + 2, n, length, states))
        y2 = tl.sum(h * _row(C, t + 2, n, length, states)[:, None], axis=0)
        h = _advance(h, rate, s3, x3, _row(B, t + 3, n, length, states))
        y3 = tl.sum(h * _row(C, t + 3, n, length, states)[:, None], axis=0)

        out = _tile(y0, y1, y2, y3, BLOCK) + skip[:, None] * value
        if GATED:
            gate = _read(z, place, inside)
            out *= gate / (1.0 + tl.exp2(-gate * LOG2_E))
        tl.store(y + place, out, mask=inside)


@triton.jit
@no_type_check
def _backward(
    gout, u, delta, A, B, C, D, z, bias, before,
    gu, gdelta, gA, gB, gC, gD, gz, gbias, dim, length, groups, states,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    b, g, d, real = _locate(dim, groups, BLOCK)
    n = tl.arange(0, STATES)
    rate = LOG2_E * _read(A, d * states + n[:, None], real & (n < states)[:, None])
    skip, shift = _read(D, d, real), _read(bias, d, real)
    B += g * length * states
    C += g * length * states
    program = b * tl.num_programs(1) + tl.program_id(1)
    gB += program * length * states
    gC += program * length * states
    tiles = tl.cdiv(length, 4)
    before += program * tiles * STATES * BLOCK + n[:, None] * BLOCK + tl.arange(0, BLOCK)

    # forwards: keep the state before every tile
    h = tl.zeros((STATES, BLOCK), tl.float32)
    for tile in range(tiles):
        t = 4 * tile
        ts = t + tl.arange(0, 4)
        inside = real[:, None] & (ts < length)
        place = (b * dim + d[:, None]) * length + ts
        step, _ = _step_size(_read(delta, place, inside) + shift[:, None], inside, SOFTPLUS)
        s0, s1, s2, s3 = _columns(step, BLOCK)
        x0, x1, x2, x3 = _columns(step * _read(u, place, inside), BLOCK)
        tl.store(before + tile * STATES * BLOCK, h)
        h = _advance(h, rate, s0, x0, _row(B, t, n, length, states))
        h = _advance(h, rate, s1, x1, _row(B, t + 1, n, length, states))
        h = _advance(h, rate, s2, x2, _row(B, t + 2, n, length, states))
        h = _advance(h, rate, s3, x3, _row(B, t + 3, n, length, states))
    tl.debug_barrier()  # a state may be read by another thread than the one that wrote it

    # backwards, tile by tile
    gh = tl.zeros((STATES, BLOCK), tl.float32)  # gradient of the state after the tile
    grate = tl.zeros((STATES, BLOCK), tl.float32)
    gskip = tl.zeros((BLOCK,), tl.float32)
    gshift = tl.zeros((BLOCK,), tl.float32)
    for done in range(tiles):
        tile = tiles - 1 - done
        t = 4 * tile
        ts = t + tl.arange(0, 4)
        inside = real[:, None] & (ts < length)
        place = (b * dim + d[:, None]) * length + ts
        step, slope = _step_size(_read(delta, place, inside) + shift[:, None], inside, SOFTPLUS)
        value = _read(u, place, inside)
        gy = _read(gout, place, inside)
        s0, s1, s2, s3 = _columns(step, BLOCK)
        x0, x1, x2, x3 = _columns(step * value, BLOCK)
        h0 = tl.load(before + tile * STATES * BLOCK)
        h1 = _advance(h0, rate, s0, x0, _row(B, t, n, length, states))
        h2 = _advance(h1, rate, s1, x1, _row(B, t + 1, n, length, states))
        h3 = _advance(h2, rate, s2, x2, _row(B, t + 2, n, length, states))

        if GATED:  # out = y silu(z)
            h4 = _advance(h3, rate, s3, x3, _row(B, t + 3, n, length, states))
            y0 = tl.sum(h1 * _row(C, t, n, length, states)[:, None], axis=0)
            y1 = tl.sum(h2 * _row(C, t + 1, n, length, states)[:, None], axis=0)
            y2 = tl.sum(h3 * _row(C, t + 2, n, length, states)[:, None], axis=0)
            y3 = tl.sum(h4 * _row(C, t + 3, n, length, states)[:, None], axis=0)
            y = _tile(y0, y1, y2, y3, BLOCK) + skip[:, None] * value
            gate = _read(z, place, inside)
            sigmoid = 1.0 / (1.0 + tl.exp2(-gate * LOG2_E))
            tl.store(gz + place, gy * y * sigmoid * (1.0 + gate * (1.0 - sigmoid)), mask=inside)
            gy *= gate * sigmoid
        o0, o1, o2, o3 = _columns(gy, BLOCK)

        gh, grate, gx3, gs3 = _retreat(
            h3, gh, grate, rate, s3, x3, o3, B, C, gB, gC, t + 3, n, length, states
        )
        gh, grate, gx2, gs2 = _retreat(
            h2, gh, grate, rate, s2, x2, o2, B, C, gB, gC, t + 2, n, length, states
        )
        gh, grate, gx1, gs1 = _retreat(
            h1, gh, grate, rate, s1, x1, o1, B, C, gB, gC, t + 1, n, length, states
        )
        gh, grate, gx0, gs0 = _retreat(
            h0, gh, grate, rate, s0, x0, o0, B, C, gB, gC, t, n, length, states
        )

        gx = _tile(gx0, gx1, gx2, gx3, BLOCK)
        change = (_tile(gs0, gs1, gs2, gs3, BLOCK) + gx * value) * slope
        tl.store(gdelta + place, change, mask=inside)
        tl.store(gu + place, gx * step + skip[:, None] * gy, mask=inside)
        gskip += tl.sum(gy * value, axis=1)
        gshift += tl.sum(change, axis=1)
    place = (b * dim + d) * states + n[:, None]
    tl.store(gA + place, grate, mask=real & (n < states)[:, None])
    tl.store(gD + b * dim + d, gskip, mask=real)
    tl.store(gbias + b * dim + d, gshift, mask=real)


def forward(*inputs: Any) -> Tensor:
    """The scan of `iumad.models.scan.operators`, whose inputs these are."""
    u, delta, A, B, C, D, z, bias, options = _prepare(*inputs)
    y = torch.empty_like(u)
    grid, sizes = _sizes(u, B, FORWARD_BLOCK)
    with torch.cuda.device_of(u):  # Triton launches on the current card
        _forward[grid](u, delta, A, B, C, D, z, bias, y, *sizes, BLOCK=FORWARD_BLOCK, **options)
    return y


def backward(
    grad: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all tensors, given that of the output; that of z is empty where there is no z."""
    u, delta, A, B, C, D, z, bias, options = _prepare(*inputs)
    grid, sizes = _sizes(u, B, BACKWARD_BLOCK)
    (batch, dim, length), (groups, _, states) = u.shape, B.shape[1:]

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=u.device)

    tiles = triton.cdiv(length, 4)
    before = empty(*grid, tiles, options["STATES"], BACKWARD_BLOCK)
    gA, gD, gbias = empty(batch, dim, states), empty(batch, dim), empty(batch, dim)
    gB, gC = empty(*grid, length, states), empty(*grid, length, states)
    gu, gdelta = torch.empty_like(u), torch.empty_like(delta)
    gz = torch.empty_like(z) if options["GATED"] else u.new_empty(0)
    with torch.cuda.device_of(u):
        _backward[grid](
            *(grad.contiguous(), u, delta, A, B, C, D, z, bias, before),
            *(gu, gdelta, gA, gB, gC, gD, gz, gbias),
            *sizes,
            BLOCK=BACKWARD_BLOCK,
            **options,
        )
    gA, gD, gbias = (x.sum(dim=0) for x in (gA, gD, gbias))
    gB, gC = (x.unflatten(1, (groups, -1)).sum(dim=2).transpose(2, 3) for x in (gB, gC))
    gB, gC = (x.to(like.dtype).contiguous() for x, like in zip((gB, gC), inputs[3:5], strict=True))
    return gu, gdelta, gA, gB, gC, gD, gz, gbias


def _prepare(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    bias: Tensor,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, dict[str, int]]:
    """Tensors as the kernels read them, B and C with the states last; and the compiled options."""
    options = {
        "SOFTPLUS": softplus,
        "GATED": z is not None,
        "STATES": triton.next_power_of_2(A.shape[1]),
        "num_warps": 1,
    }
    B, C = B.transpose(2, 3), C.transpose(2, 3)
    tensors = (u, delta, A, B, C, D, u if z is None else z, bias)
    return *(x.contiguous() for x in tensors), options  # type: ignore[return-value]


def _sizes(u: Tensor, B: Tensor, block: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Grid of the programs, and the kernels' integer arguments."""
    (batch, dim, length), groups, states = u.shape, B.shape[1], B.shape[3]
    return (batch, groups * triton.cdiv(dim // groups, block)), (dim, length, groups, states)
