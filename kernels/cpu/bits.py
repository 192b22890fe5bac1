"""Operations on the bits of numbers that numba itself would widen to 64 bits or not vectorise.

Written as generic LLVM IR: every target has them, and each becomes one or a few vector instructions in a loop.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from collcomp.kernels.cpu.vectors import constant, element_pointer, load, same, splat, store, undefined

__all__ = [
    "bfloat16_to_float32",
    "count_ones",
    "count_trailing_zeros",
    "emit_hash32",
    "emit_narrow_to_odd",
    "fixed_point",
    "float16_to_float32",
    "float32_to_bfloat16",
    "float32_to_float16",
    "from_magnitude",
    "from_ordered",
    "hash32",
    "high14",
    "high23",
    "low14",
    "magnitude",
    "magnitudes_above",
    "narrow_to_odd",
    "nearest",
    "nonzeros",
    "ordered",
    "sign_bit",
    "signed_field",
    "sum_of_magnitudes",
    "sums_above",
    "unsigned_field",
    "with_sign",
]

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))
_F32, _F64 = ir.FloatType(), ir.DoubleType()
#: numba's float type -> its integer twin, LLVM's types of both, and the mask that clears the sign.
_TWINS: dict[Any, Any] = {
    types.float32: (types.int32, _I32, _F32, 0x7FFFFFFF),
    types.float64: (types.int64, _I64, _F64, 0x7FFFFFFFFFFFFFFF),
}
_TWIN_OF_MAGNITUDE: dict[Any, Any] = {twin[0]: kind for kind, twin in _TWINS.items()}
_INFINITY = 0x7F800000


def _c32(value: int) -> ir.Constant:
    return ir.Constant(_I32, value)


@intrinsic
def magnitude(typing_context, x):
    """The bits of float `x` without its sign, as a signed integer: ordered as magnitudes are, NaN above infinity."""
    result, bits, _, mask = _TWINS[x]

    def generate(context, builder, signature, args):
        return builder.and_(builder.bitcast(args[0], bits), ir.Constant(bits, mask))

    return result(x), generate


@intrinsic
def from_magnitude(typing_context, bits):
    """The float that `magnitude` gave `bits` for."""
    result = _TWIN_OF_MAGNITUDE[bits]

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], _TWINS[result][2])

    return result(bits), generate


def _flip_negative(builder, bits):
    """Turn around the order of negative floats' bits; undoes itself."""
    sign = builder.ashr(bits, ir.Constant(bits.type, bits.type.width - 1))
    return builder.xor(bits, builder.and_(sign, ir.Constant(bits.type, (1 << (bits.type.width - 1)) - 1)))


@intrinsic
def ordered(typing_context, x):
    """The bits of float `x` as a signed integer, ordered as floats are; NaN above or below all, by its sign."""
    result, bits, _, _ = _TWINS[x]

    def generate(context, builder, signature, args):
        return _flip_negative(builder, builder.bitcast(args[0], bits))

    return result(x), generate


@intrinsic
def from_ordered(typing_context, bits):
    """The float that `ordered` gave `bits` for."""
    result = _TWIN_OF_MAGNITUDE[bits]

    def generate(context, builder, signature, args):
        return builder.bitcast(_flip_negative(builder, args[0]), _TWINS[result][2])

    return result(bits), generate


@intrinsic
def sign_bit(typing_context, x):
    """The sign of float `x` as int32: 1 for negative numbers and -0.0."""
    _, bits, _, _ = _TWINS[x]

    def generate(context, builder, signature, args):
        sign = builder.lshr(builder.bitcast(args[0], bits), ir.Constant(bits, bits.width - 1))
        return builder.trunc(sign, _I32) if bits is _I64 else sign

    return types.int32(x), generate


@intrinsic
def unsigned_field(typing_context, byte, shift, width):
    """The `width` bits of uint8 `byte` from bit `shift` on, as int32."""

    def generate(context, builder, signature, args):
        shift, width = (builder.trunc(arg, _I32) for arg in args[1:])
        mask = builder.sub(builder.shl(_c32(1), width), _c32(1))
        return builder.and_(builder.lshr(builder.zext(args[0], _I32), shift), mask)

    return types.int32(types.uint8, types.int64, types.int64), generate


@intrinsic
def signed_field(typing_context, byte, shift, width):
    """The `width` bits of uint8 `byte` from bit `shift` on, in two's complement, as int32."""

    def generate(context, builder, signature, args):
        shift, width = (builder.trunc(arg, _I32) for arg in args[1:])
        above = builder.sub(_c32(32), width)
        field = builder.shl(builder.zext(args[0], _I32), builder.sub(above, shift))
        return builder.ashr(field, above)

    return types.int32(types.uint8, types.int64, types.int64), generate


@intrinsic
def sum_of_magnitudes(typing_context, x, addend):
    """The sum of the magnitudes of contiguous array `x`, in an order of its own, which is the same on every CPU.

    Before, `addend` is added to `x` in place, unless it is None; it is at least as long.
    Lane k of 32 sums the elements k, k + 32, ...; then the upper half of the lanes is added to the lower until one is
    left, then what remains of `x` one by one.
    """
    _, bits, real, mask = _TWINS[x.dtype]
    lanes = 32

    def generate(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        data, size = array.data, builder.extract_value(array.shape, 0)
        other = None if addend == types.none else context.make_array(addend)(context, builder, args[1]).data

        def added(index, count):
            pointer = builder.gep(data, [index])
            row = load(builder, pointer, real, count)
            if other is not None:
                row = builder.fadd(row, load(builder, builder.gep(other, [index]), real, count))
                store(builder, row, pointer)
            cleared = builder.and_(builder.bitcast(row, ir.VectorType(bits, count)), same(bits, count, mask))
            return builder.bitcast(cleared, row.type)

        total = cgutils.alloca_once_value(builder, same(real, lanes, 0.0))
        whole = builder.udiv(size, ir.Constant(_I64, lanes))
        with cgutils.for_range(builder, whole) as loop:
            row = added(builder.mul(loop.index, ir.Constant(_I64, lanes)), lanes)
            builder.store(builder.fadd(builder.load(total), row), total)
        vector = builder.load(total)
        while vector.type.count > 1:
            half = vector.type.count // 2
            lower, upper = (
                builder.shuffle_vector(
                    vector,
                    undefined(real, vector.type.count),
                    ir.Constant(ir.VectorType(_I32, half), list(range(first, first + half))),
                )
                for first in (0, half)
            )
            vector = builder.fadd(lower, upper)
        scalar = cgutils.alloca_once_value(builder, builder.extract_element(vector, _c32(0)))
        start = builder.mul(whole, ir.Constant(_I64, lanes))
        with cgutils.for_range_slice(builder, start, size, ir.Constant(_I64, 1)) as (index, _):
            value = builder.extract_element(added(index, 1), _c32(0))
            builder.store(builder.fadd(builder.load(scalar), value), scalar)
        return builder.load(scalar)

    return x.dtype(x, addend), generate


@intrinsic
def with_sign(typing_context, size, x):
    """`size`, which is at least 0, with the sign of `x`."""
    _, bits, real, mask = _TWINS[x]

    def generate(context, builder, signature, args):
        sign = builder.and_(builder.bitcast(args[1], bits), ir.Constant(bits, ~mask))
        return builder.bitcast(builder.or_(builder.bitcast(args[0], bits), sign), real)

    return x(x, x), generate


def emit_hash32(builder: Any, base: Any, counter: Any) -> Any:
    """The code of `hash32`, for int32 scalars or vectors."""

    def c(value: int) -> Any:
        return constant(base.type, value)

    h = builder.add(base, builder.mul(counter, c(0x9E3779B9)))
    h = builder.mul(builder.xor(h, builder.lshr(h, c(15))), c(0x846CA68B))
    return builder.xor(h, builder.lshr(h, c(16)))


@intrinsic
def hash32(typing_context, base, counter):
    """A 32-bit hash of the pair (both uint32), good enough for rounding where `base` is itself well mixed.

    A Weyl sequence, which in a loop costs one addition, and one round of multiply and xor-shift.
    """

    def generate(context, builder, signature, args):
        return emit_hash32(builder, *args)

    return types.uint32(types.uint32, types.uint32), generate


@intrinsic
def fixed_point(typing_context, x):
    """``x * 2**14`` rounded to an integer, as int32 whose lowest 8 + 14 bits count, for -128 < x < 128 or 0 <= x < 256.

    Adding 768 makes the adder round at 2**-14 and leaves the result in the low bits: no conversion is needed.
    """

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.fadd(args[0], ir.Constant(_F32, 768)), _I32)

    return types.int32(types.float32), generate


@intrinsic
def nearest(typing_context, x):
    """`x` rounded to an integer, ties to even, as int32 whose lowest 16 bits count, for -32767 <= x <= 32767.

    Adding 1.5 * 2**23 makes the adder round at 1 and leaves the result in the low bits: no conversion is needed.
    """

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.fadd(args[0], ir.Constant(_F32, 1.5 * 2**23)), _I32)

    return types.int32(types.float32), generate


@intrinsic
def low14(typing_context, h):
    """The lowest 14 bits of uint32 `h`, as int32."""

    def generate(context, builder, signature, args):
        return builder.and_(args[0], _c32(0x3FFF))

    return types.int32(types.uint32), generate


@intrinsic
def high14(typing_context, h):
    """The highest 14 bits of uint32 `h`, as int32."""

    def generate(context, builder, signature, args):
        return builder.lshr(args[0], _c32(18))

    return types.int32(types.uint32), generate


@intrinsic
def high23(typing_context, h):
    """The highest 23 bits of uint32 `h`, as int32."""

    def generate(context, builder, signature, args):
        return builder.lshr(args[0], _c32(9))

    return types.int32(types.uint32), generate


@intrinsic
def float32_to_bfloat16(typing_context, x):
    """The bits of `x` rounded to bfloat16, ties to even; NaN stays NaN."""

    def generate(context, builder, signature, args):
        bits = builder.bitcast(args[0], _I32)
        upper = builder.lshr(bits, _c32(16))
        odd = builder.and_(upper, _c32(1))
        rounded = builder.lshr(builder.add(builder.add(bits, _c32(0x7FFF)), odd), _c32(16))
        is_nan = builder.icmp_unsigned(">", builder.and_(bits, _c32(0x7FFFFFFF)), _c32(_INFINITY))
        return builder.trunc(builder.select(is_nan, builder.or_(upper, _c32(0x40)), rounded), _I16)

    return types.int16(types.float32), generate


@intrinsic
def bfloat16_to_float32(typing_context, bits):
    """The value of bfloat16 `bits` (int16), exactly."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.shl(builder.zext(args[0], _I32), _c32(16)), _F32)

    return types.float32(types.int16), generate


@intrinsic
def float32_to_float16(typing_context, x):
    """The bits of `x` rounded to IEEE float16, ties to even, to infinity from 65520 on; NaN stays NaN.

    In integer arithmetic, as fast as the conversion instruction here, because not every CPU has that instruction.
    """

    def generate(context, builder, signature, args):
        bits = builder.bitcast(args[0], _I32)
        a = builder.and_(bits, _c32(0x7FFFFFFF))
        sign = builder.and_(builder.lshr(bits, _c32(16)), _c32(0x8000))
        # Normal numbers: shift the exponent by the difference of the biases, round the 13 bits that go.
        odd = builder.and_(builder.lshr(a, _c32(13)), _c32(1))
        rebiased = builder.sub(a, _c32((112 << 23) - 0xFFF))
        normal = builder.lshr(builder.add(rebiased, odd), _c32(13))
        # Subnormal ones: adding 0.5 makes the adder round at 2**-24, float16's last place.
        half = 0x3F000000
        summed = builder.fadd(builder.bitcast(a, _F32), ir.Constant(_F32, 0.5))
        subnormal = builder.sub(builder.bitcast(summed, _I32), _c32(half))
        h = builder.select(builder.icmp_unsigned("<", a, _c32(113 << 23)), subnormal, normal)
        h = builder.select(builder.icmp_unsigned(">=", a, _c32(0x477FF000)), _c32(0x7C00), h)
        h = builder.select(builder.icmp_unsigned(">", a, _c32(_INFINITY)), _c32(0x7E00), h)
        return builder.trunc(builder.or_(h, sign), _I16)

    return types.uint16(types.float32), generate


@intrinsic
def float16_to_float32(typing_context, bits):
    """The value of IEEE float16 `bits` (uint16), exactly."""

    def generate(context, builder, signature, args):
        h = builder.zext(args[0], _I32)
        a = builder.and_(h, _c32(0x7FFF))
        sign = builder.shl(builder.and_(h, _c32(0x8000)), _c32(16))
        shifted = builder.shl(a, _c32(13))
        normal = builder.add(shifted, _c32(112 << 23))
        subnormal = builder.bitcast(builder.fmul(builder.sitofp(a, _F32), ir.Constant(_F32, 2.0**-24)), _I32)
        f = builder.select(builder.icmp_unsigned("<", a, _c32(0x400)), subnormal, normal)
        special = builder.or_(shifted, _c32(_INFINITY))
        f = builder.select(builder.icmp_unsigned(">=", a, _c32(0x7C00)), special, f)
        return builder.bitcast(builder.or_(f, sign), _F32)

    return types.float32(types.uint16), generate


def emit_narrow_to_odd(builder: Any, x: Any) -> Any:
    """The code of `narrow_to_odd`, for float64 scalars or vectors."""

    def like_x(kind: Any) -> Any:
        return ir.VectorType(kind, x.type.count) if isinstance(x.type, ir.VectorType) else kind

    i32, i64, f32, f64 = map(like_x, (_I32, _I64, _F32, _F64))
    narrow = builder.fptrunc(x, f32)
    bits = builder.bitcast(narrow, i32)
    mask = constant(i64, 0x7FFFFFFFFFFFFFFF)
    given = builder.and_(builder.bitcast(x, i64), mask)
    back = builder.and_(builder.bitcast(builder.fpext(narrow, f64), i64), mask)
    inexact = builder.zext(builder.icmp_unsigned("!=", back, given), i32)
    away = builder.zext(builder.icmp_unsigned(">", back, given), i32)
    odd = builder.bitcast(builder.or_(builder.sub(bits, away), inexact), f32)
    return builder.select(builder.fcmp_unordered("uno", x, x), narrow, odd)


@intrinsic
def narrow_to_odd(typing_context, x):
    """Float64 `x` as float32, inexact results rounded to the neighbour with an odd last bit; float32 as it is.

    Rounding the result once more, to a narrower format, gives what rounding `x` directly would have given.

    Source: Boldo and Melquiond, "When double rounding is odd", IMACS 2005.
    """
    if x == types.float32:
        return x(x), lambda context, builder, signature, args: args[0]

    def generate(context, builder, signature, args):
        return emit_narrow_to_odd(builder, args[0])

    return types.float32(x), generate


def _lanes_above(builder, values, threshold, kind):
    """Which of 64 floats have a magnitude above `threshold`, as the bits of an i64."""
    _, bits, _, mask = _TWINS[kind]
    lanes = builder.and_(builder.bitcast(values, ir.VectorType(bits, 64)), same(bits, 64, mask))
    limit = builder.trunc(threshold, bits) if bits is not _I64 else threshold
    return builder.bitcast(builder.icmp_signed(">", lanes, splat(builder, limit, 64)), _I64)


@intrinsic
def magnitudes_above(typing_context, x, start, threshold):
    """Which of ``x[start : start + 64]`` have a `magnitude` above `threshold`, as the bits of a uint64."""

    def generate(context, builder, signature, args):
        pointer = element_pointer(context, builder, signature.args[0], args[0], args[1])
        return _lanes_above(builder, load(builder, pointer, _TWINS[x.dtype][2], 64), args[2], x.dtype)

    return types.uint64(x, types.int64, types.int64), generate


@intrinsic
def nonzeros(typing_context, x, start):
    """Which of the integers ``x[start : start + 64]`` are not 0, as the bits of a uint64."""
    bits = ir.IntType(x.dtype.bitwidth)

    def generate(context, builder, signature, args):
        pointer = element_pointer(context, builder, signature.args[0], args[0], args[1])
        lanes = load(builder, pointer, bits, 64)
        return builder.bitcast(builder.icmp_unsigned("!=", lanes, same(bits, 64, 0)), _I64)

    return types.uint64(x, types.int64), generate


@intrinsic
def sums_above(typing_context, x, addend, start, threshold):
    """Add ``addend[start : start + 64]`` to those of `x`; `magnitudes_above` of the sums."""

    def generate(context, builder, signature, args):
        kind = _TWINS[x.dtype][2]
        pointer, other = (element_pointer(context, builder, signature.args[i], args[i], args[2]) for i in range(2))
        total = builder.fadd(load(builder, pointer, kind, 64), load(builder, other, kind, 64))
        store(builder, total, pointer)
        return _lanes_above(builder, total, args[3], x.dtype)

    return types.uint64(x, addend, types.int64, types.int64), generate


@intrinsic
def count_ones(typing_context, bits):
    """Number of set bits of uint64 `bits`."""

    def generate(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.uint64), generate


@intrinsic
def count_trailing_zeros(typing_context, bits):
    """Position of the lowest set bit of uint64 `bits`; 64 if there is none."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(_I1, 0))

    return types.int64(types.uint64), generate
