"""Numba kernels of the selective scan: 16 channels walk through time side by side.

The recurrence is sequential in time and independent between channels. A *task* is one sample and
one block of `LANES` channels of one group. Every task writes to its own part of each output, and
what has to be summed over tasks is returned per task, so the results do not depend on the number of
threads. The backward kernel computes the states again; the scan keeps none, and one task's states
stay in the processor's cache.

Arrays (all contiguous, of one dtype; b batch, d dim, l length, g group, n state)::

    u, delta, y   b × d × l        A   d × n        D, bias   d        B, C   b × g × n × l
"""

from typing import Any, no_type_check

import numpy as np
from numba import njit

from iumad.models.scan_lanes import (
    LANES,
    absolute,
    atanh_ratio,
    exp2,
    fill,
    put,
    row,
    total,
    where_negative,
)

# a change of scan_lanes.py must change this file, or numba would run the old code from its cache
LANES_SHA256 = "ef98fc2a5880da680f3524b528084f2044c09136e136f09fd656135c85cb6f79"
LOG2_E = float(np.log2(np.e))
LN_2 = float(np.log(2))


def _kernel(function: Any) -> Any:
    """Compile at the first call; keep the machine code on disk where a folder can be written."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # numba found no folder for its cache
        return njit(nogil=True, error_model="numpy")(function)


# no_type_check, here and below: run-time checks of annotations would hide the code from numba
@_kernel
@no_type_check
def _gather(source, b, d, rows, out):
    """Put channels d to d + rows of sample b into the lanes of `out`, length × LANES."""
    for k in range(LANES):
        for t in range(source.shape[2]):
            out[t, k] = source[b, d + k, t] if k < rows else 0


@_kernel
@no_type_check
def _scatter(lanes, out, b, d, rows):
    """Undo `_gather`."""
    for k in range(rows):
        for t in range(out.shape[2]):
            out[b, d + k, t] = lanes[t, k]


@_kernel
@no_type_check
def _gather_weights(A, D, bias, d, rows, out):
    """Put A · log2 e, D and bias of channels d to d + rows into `out`, (state + 2) × LANES."""
    states = A.shape[1]
    for k in range(LANES):
        for n in range(states):
            out[n, k] = A[d + k, n] * LOG2_E if k < rows else 0
        out[states, k] = D[d + k] if k < rows else 0
        out[states + 1, k] = bias[d + k] if k < rows else 0


def number_of_blocks(dim: int, groups: int) -> int:
    """Blocks of channels of one sample; a block holds channels of one group only."""
    return groups * -(-(dim // groups) // LANES)


@_kernel
@no_type_check
def _locate(task, groups, dim):
    """Return sample, group, block of all groups, first channel and number of channels."""
    per_group = dim // groups
    blocks = -(-per_group // LANES)
    b, block = divmod(task, groups * blocks)
    g, k = divmod(block, blocks)
    return b, g, block, g * per_group + k * LANES, min(LANES, per_group - k * LANES)


@_kernel
@no_type_check
def _softplus(step, slope, bias):
    """Replace x = step + bias by log(1 + exp(x)) in place, and put its derivative into `slope`."""
    for t in range(step.shape[0]):
        x = row(step, t) + bias
        e = exp2(absolute(x) * -LOG2_E)  # exp(-|x|) ≤ 1
        s = e / (e + 2.0)  # log(1 + e) = 2 atanh(s), s ≤ 1/3
        put(step, t, where_negative(x, fill(step, 0.0), x) + 2.0 * s * atanh_ratio(s * s))
        put(slope, t, where_negative(x, e, fill(step, 1.0)) / (e + 1.0))


@_kernel
@no_type_check
def _add(step, slope, bias):
    """Replace step by step + bias in place; the derivative, 1, goes into `slope`."""
    for t in range(step.shape[0]):
        put(step, t, row(step, t) + bias)
        put(slope, t, fill(slope, 1.0))


@_kernel
@no_type_check
def forward(u, delta, A, B, C, D, bias, softplus, y, start, stop):
    """Run tasks `start` to `stop` of the scan and write their part of `y`."""
    dim, length = u.shape[1:]
    groups, states = B.shape[1:3]
    weights = np.empty((states + 2, LANES), u.dtype)
    work = np.empty((3, length, LANES), u.dtype)
    step, x, out = work[0], work[1], work[2]
    for task in range(start, stop):
        b, g, _, d, rows = _locate(task, groups, dim)
        _gather_weights(A, D, bias, d, rows, weights)
        _gather(delta, b, d, rows, step)
        _gather(u, b, d, rows, x)
        if softplus:
            _softplus(step, out, row(weights, states + 1))
        else:
            _add(step, out, row(weights, states + 1))
        skip = row(weights, states)
        for t in range(length):
            put(out, t, skip * row(x, t))
            put(x, t, row(step, t) * row(x, t))
        for n in range(states):
            rate = row(weights, n)
            h = fill(work, 0.0)
            for t in range(length):
                h = exp2(rate * row(step, t)) * h + B[b, g, n, t] * row(x, t)
                put(out, t, C[b, g, n, t] * h + row(out, t))
        _scatter(out, y, b, d, rows)


@_kernel
@no_type_check
def backward(
    u, delta, A, B, C, D, bias, softplus, gy, gu, gdelta, gA, gB, gC, gD, gbias, start, stop
):
    """Write the gradients of tasks `start` to `stop`, given `gy`, the gradient of y.

    gA b × d × n and gD, gbias b × d are to be summed over b; gB, gC b × blocks × n × l over the
    blocks of each group.
    """
    dim, length = u.shape[1:]
    groups, states = B.shape[1:3]
    weights = np.empty((states + 2, LANES), u.dtype)
    summed = np.empty((states + 2, LANES), u.dtype)
    work = np.empty((9, length, LANES), u.dtype)
    step, slope, value, x = work[0], work[1], work[2], work[3]
    gout, gx, gstep = work[4], work[5], work[6]
    decay, before = work[7], work[8]
    for task in range(start, stop):
        b, g, block, d, rows = _locate(task, groups, dim)
        _gather_weights(A, D, bias, d, rows, weights)
        _gather(delta, b, d, rows, step)
        _gather(u, b, d, rows, value)
        _gather(gy, b, d, rows, gout)
        if softplus:
            _softplus(step, slope, row(weights, states + 1))
        else:
            _add(step, slope, row(weights, states + 1))
        skip = row(weights, states)
        zero = fill(work, 0.0)
        for t in range(length):
            put(x, t, row(step, t) * row(value, t))
            put(gx, t, zero)
            put(gstep, t, zero)
        for n in range(states):
            rate = row(weights, n)
            h = zero
            for t in range(length):
                a = exp2(rate * row(step, t))
                put(decay, t, a)
                put(before, t, h)
                h = a * h + B[b, g, n, t] * row(x, t)
                gC[b, block, n, t] = total(row(gout, t) * h)
            gh = zero  # gradient of h_t; of h_{t-1} after the multiplication by the decay
            grate = zero
            for t in range(length - 1, -1, -1):
                gh = C[b, g, n, t] * row(gout, t) + gh
                gB[b, block, n, t] = total(gh * row(x, t))
                put(gx, t, B[b, g, n, t] * gh + row(gx, t))
                gh = gh * row(decay, t)
                gexponent = gh * row(before, t)
                put(gstep, t, gexponent * rate + row(gstep, t))
                grate = gexponent * row(step, t) + grate
            put(summed, n, grate)
        gskip, gshift = zero, zero
        for t in range(length):
            gskip = row(gout, t) * row(value, t) + gskip
            # A came times log2 e, hence the ln 2; x = step · u
            change = (LN_2 * row(gstep, t) + row(gx, t) * row(value, t)) * row(slope, t)
            gshift = gshift + change
            put(gstep, t, change)
            put(gx, t, row(gx, t) * row(step, t) + skip * row(gout, t))
        put(summed, states, gskip)
        put(summed, states + 1, gshift)
        for k in range(rows):
            for n in range(states):
                gA[b, d + k, n] = summed[n, k]
            gD[b, d + k] = summed[states, k]
            gbias[b, d + k] = summed[states + 1, k]
        _scatter(gx, gu, b, d, rows)
        _scatter(gstep, gdelta, b, d, rows)
