"""Numba kernels of the selective scan: 16 channels walk through time side by side.

The recurrence is sequential in time and independent between channels. A *task* is one sample and
one block of `LANES` channels of one group. Every task writes to its own part of each output, and
what has to be summed over tasks is returned per task, so the results do not depend on the number of
threads. The backward kernel computes the states again; the scan keeps none, and one task's states
stay in the processor's cache.

The module has two halves. The first teaches numba a vector type, `Lanes`: LLVM's own vectoriser
gives up on the loops of the scan, because it cannot prove that the work arrays do not overlap, so
`row` and `put` move `LANES` numbers between an array and a register, and + - * / and a few
functions work on registers. LLVM splits a register where the processor's are narrower. The second
half is the scan. Works for float32 and float64.

Arrays (all contiguous, of one dtype; b batch, d dim, l length, g group, n state)::

    u, delta, y   b × d × l        A   d × n        D, bias   d        B, C   b × g × n × l
"""

import operator
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model
from numba.np.arrayobj import make_array

LANES = 16
# "contract" allows a fused multiply-add. Nothing else is relaxed, so that NaN and inf survive.
FUSED = ("contract",)


class Lanes(types.Type):
    """Numba type of `LANES` floating numbers in a register."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.bits = dtype.bitwidth
        self.scalar = ir.DoubleType() if self.bits == 64 else ir.FloatType()
        self.vector = ir.VectorType(self.scalar, LANES)
        self.integers = ir.VectorType(ir.IntType(self.bits), LANES)
        super().__init__(f"Lanes({dtype})")

    def constant(self, value: float) -> ir.Constant:
        """Return a vector that holds `value`, rounded to the dtype, in all lanes."""
        rounded = float(value if self.bits == 64 else np.float32(value))
        return ir.Constant(self.vector, [rounded] * LANES)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, lanes.vector)


def _copy_to_all(builder: Any, lanes: Lanes, scalar: Any) -> Any:
    empty, index = ir.Constant(lanes.vector, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(empty, scalar, ir.Constant(index, 0))
    order = ir.Constant(ir.VectorType(index, LANES), [0] * LANES)
    return builder.shuffle_vector(first, empty, order)


def _define_operator(op: Any, instruction: str) -> None:
    """Make `op` work on two Lanes, or on one and a scalar that is copied to all lanes."""

    @infer_global(op)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:  # noqa: ARG002
            lanes = next((x for x in args if isinstance(x, Lanes)), None)
            if lanes is None or not all(isinstance(x, Lanes | types.Float) for x in args):
                return None
            return signature(lanes, *(x if x == lanes else lanes.dtype for x in args))

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        x, y = (
            value if isinstance(kind, Lanes) else _copy_to_all(builder, sig.return_type, value)
            for kind, value in zip(sig.args, args, strict=True)
        )
        return getattr(builder, instruction)(x, y, flags=FUSED)

    for kinds in ((Lanes, Lanes), (Lanes, types.Float), (types.Float, Lanes)):
        lower_builtin(op, *kinds)(lower)


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")
_define_operator(operator.truediv, "fdiv")


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    start = builder.mul(index, ir.Constant(index.type, LANES))
    place = builder.gep(make_array(kind)(context, builder, array).data, [start])
    return builder.bitcast(place, Lanes(kind.dtype).vector.as_pointer())


@intrinsic
def row(typing: Any, array: Any, index: Any) -> Any:  # noqa: ARG001
    """Read row `index` of a contiguous array of shape (rows, LANES)."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], *args)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, types.intp), lower


@intrinsic
def put(typing: Any, array: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    """Write `value` to row `index` of a contiguous array of shape (rows, LANES)."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> None:
        pointer = _pointer(context, builder, sig.args[0], *args[:2])
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)

    return types.void(array, types.intp, value), lower


@intrinsic
def fill(typing: Any, array: Any, value: Any) -> Any:  # noqa: ARG001
    """Return lanes of the array's dtype that all hold the scalar `value`."""
    lanes = Lanes(array.dtype)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return _copy_to_all(builder, lanes, args[1])

    return lanes(array, array.dtype), lower


def _call(builder: Any, name: str, lanes: Lanes, result: Any, args: list, **options: Any) -> Any:
    kind = ir.FunctionType(result, [x.type for x in args])
    name = f"llvm.{name}.v{LANES}f{lanes.bits}"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args, **options)


@intrinsic
def total(typing: Any, x: Any) -> Any:  # noqa: ARG001
    """Sum of the lanes, always in the same order on one machine."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        zero = ir.Constant(x.scalar, -0.0)
        summands = [zero, args[0]]
        # "reassoc" makes it a tree of additions instead of a chain
        return _call(builder, "vector.reduce.fadd", x, x.scalar, summands, fastmath=("reassoc",))

    return x.dtype(x), lower


@intrinsic
def absolute(typing: Any, x: Any) -> Any:  # noqa: ARG001
    """Absolute value of each lane."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return _call(builder, "fabs", x, x.vector, list(args))

    return x(x), lower


def _interpolate(function: Any, low: float, high: float, degree: int) -> np.ndarray:
    """Coefficients, lowest first, of the polynomial through the interval's Chebyshev nodes."""
    fit = np.polynomial.Chebyshev.interpolate(function, degree, domain=(low, high))
    return fit.convert(kind=np.polynomial.Polynomial).coef


def _polynomial(builder: Any, lanes: Lanes, x: Any, coefficients: np.ndarray) -> Any:
    value = lanes.constant(coefficients[-1])
    for c in coefficients[-2::-1]:
        product = builder.fmul(value, x, flags=FUSED)
        value = builder.fadd(product, lanes.constant(c), flags=FUSED)
    return value


# by number of bits; the degree brings the error below the rounding of the dtype
EXP2 = {bits: _interpolate(np.exp2, -0.5, 0.5, degree) for bits, degree in ((32, 6), (64, 11))}
ATANH = {
    bits: _interpolate(lambda w: np.arctanh(np.sqrt(w)) / np.sqrt(w), 0.0, 1 / 9, degree)
    for bits, degree in ((32, 4), (64, 11))
}


@intrinsic
def exp2(typing: Any, x: Any) -> Any:  # noqa: ARG001
    """Two to the power of each lane, about one unit in the last place off; 2^-64 below x = -64.

    x = k + r with k whole and r in [-1/2, 1/2]; 2^r is a polynomial, 2^k goes into the exponent
    bits. The floor keeps products with the result out of the subnormal numbers, which cost a
    hundred times more; beside numbers of order one 2^-64 vanishes in float64, too.
    """

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        fraction, bias = (52, 1023) if x.bits == 64 else (23, 127)
        low, high = x.constant(-64.0), x.constant(bias + 1.0)
        value = builder.select(builder.fcmp_ordered("<", args[0], low), low, args[0])
        value = builder.select(builder.fcmp_ordered(">", value, high), high, value)
        whole = _call(builder, "rint", x, x.vector, [value])
        mantissa = _polynomial(builder, x, builder.fsub(value, whole), EXP2[x.bits])
        shift, offset = (ir.Constant(x.integers, [n] * LANES) for n in (fraction, bias))
        power = builder.shl(builder.add(builder.fptosi(whole, x.integers), offset), shift)
        return builder.fmul(mantissa, builder.bitcast(power, x.vector))

    return x(x), lower


@intrinsic
def atanh_ratio(typing: Any, w: Any) -> Any:  # noqa: ARG001
    """Return atanh(s) / s of each lane from w = s² ≤ 1/9."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return _polynomial(builder, w, args[0], ATANH[w.bits])

    return w(w), lower


@intrinsic
def where_negative(typing: Any, x: Any, yes: Any, no: Any) -> Any:  # noqa: ARG001
    """Take `yes` in the lanes where x < 0 and `no` elsewhere."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.select(builder.fcmp_ordered("<", args[0], x.constant(0.0)), *args[1:])

    return x(x, yes, no), lower


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
