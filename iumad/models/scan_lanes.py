"""A vector type for numba: `LANES` numbers that are worked on together in one register.

LLVM's own vectoriser gives up on the loops of the scan, because it cannot prove that the work
arrays do not overlap. Here the vectors are explicit: `row` and `put` move them between an array and
a register, and the operators + - * / and the functions below act on registers. LLVM splits a vector
where the processor's registers are narrower. Works for float32 and float64.

numba's cache on disk watches only the file that holds a kernel, so `scan_kernels.py` carries a
checksum of this file (`LANES_SHA256`), which a test compares.
"""

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
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
