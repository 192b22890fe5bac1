"""Floats of 16 bits and fewer: their formats, and conversions from and to float32, for scalars and vectors alike.

`emit_round` and `emit_widen` write generic LLVM IR into the intrinsics that use them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from collcomp.kernels.cpu.vectors import constant

__all__ = ["BFLOAT16", "E2M1", "E4M3", "E5M2", "FLOAT16", "Format", "emit_round", "emit_widen"]

_I32, _F32 = ir.IntType(32), ir.FloatType()
_INFINITY = 0x7F800000


class Format(NamedTuple):
    """A sign, an exponent, and stored bits of a mantissa; subnormal numbers as IEEE 754 has them.

    Codes without their sign are ordered as magnitudes are; those above `largest` are infinity and NaN.
    """

    nbits: int
    mantissa: int
    bias: int
    largest: int

    @property
    def shift(self) -> int:
        """Bits of a float32 mantissa that go."""
        return 23 - self.mantissa

    @property
    def smallest_normal(self) -> int:
        """The smallest normal number, as bits of float32."""
        return (128 - self.bias) << 23

    @property
    def exponent(self) -> int:
        """Of the largest number."""
        return (self.largest >> self.mantissa) - self.bias


FLOAT16 = Format(nbits=16, mantissa=10, bias=15, largest=0x7BFF)
BFLOAT16 = Format(nbits=16, mantissa=7, bias=127, largest=0x7F7F)
#: OCP 8-bit floating point, "fn": no infinities, one NaN.
E4M3 = Format(nbits=8, mantissa=3, bias=7, largest=0x7E)
E5M2 = Format(nbits=8, mantissa=2, bias=15, largest=0x7B)
#: OCP Microscaling: every code is a finite number.
E2M1 = Format(nbits=4, mantissa=1, bias=1, largest=0x7)


def emit_round(builder: Any, x: Any, form: Format, noise: Any = None, *, limit: int | None = None) -> Any:
    """Codes (int32) of float32 `x`, scalar or vector, none of it NaN.

    Rounded to nearest, ties to even, or, with `noise` (32 random bits each), up or down with the probabilities that
    make the mean of the result `x`. Codes above `limit`, the largest number by default, become it.
    """
    kind = x.type
    i32 = ir.VectorType(_I32, kind.count) if isinstance(kind, ir.VectorType) else _I32

    def c(value: int) -> Any:
        return constant(i32, value)

    def aligned(magic: int) -> Any:
        # The adder shifts the mantissa of a subnormal number to where the one of `magic` is, and rounds it there.
        total = builder.fadd(builder.bitcast(a, kind), builder.bitcast(c(magic), kind))
        return builder.sub(builder.bitcast(total, i32), c(magic))

    shift, smallest = form.shift, form.smallest_normal
    bits = builder.bitcast(x, i32)
    a = builder.and_(bits, c(0x7FFFFFFF))
    sign = builder.and_(builder.lshr(bits, c(32 - form.nbits)), c(1 << (form.nbits - 1)))
    is_small = builder.icmp_unsigned("<", a, c(smallest))
    rebiased = builder.sub(a, c(smallest - (1 << 23)))
    if noise is None:
        odd = builder.and_(builder.lshr(a, c(shift)), c(1))
        normal = builder.lshr(builder.add(builder.add(rebiased, c((1 << (shift - 1)) - 1)), odd), c(shift))
        code = builder.select(is_small, aligned(smallest + (shift << 23)), normal)
    else:
        fixed = builder.select(is_small, aligned(smallest), rebiased)
        code = builder.lshr(builder.add(fixed, builder.lshr(noise, c(32 - shift))), c(shift))
    most = c(form.largest if limit is None else limit)
    code = builder.select(builder.icmp_unsigned("<", code, most), code, most)
    return builder.or_(code, sign)


def emit_widen(builder: Any, code: Any, form: Format) -> Any:
    """The float32 values of `code` (int32, only the lowest bits set), scalar or vector, exactly."""
    i32 = code.type
    kind = ir.VectorType(_F32, i32.count) if isinstance(i32, ir.VectorType) else _F32

    def c(value: int) -> Any:
        return constant(i32, value)

    smallest = form.smallest_normal
    a = builder.and_(code, c((1 << (form.nbits - 1)) - 1))
    sign = builder.shl(builder.and_(code, c(1 << (form.nbits - 1))), c(32 - form.nbits))
    shifted = builder.shl(a, c(form.shift))
    normal = builder.add(shifted, c(smallest - (1 << 23)))
    # A subnormal number lies as far above 0 as a normal one with the same mantissa above the smallest.
    above = builder.bitcast(builder.add(shifted, c(smallest)), kind)
    subnormal = builder.bitcast(builder.fsub(above, builder.bitcast(c(smallest), kind)), i32)
    bits = builder.select(builder.icmp_unsigned("<", a, c(1 << form.mantissa)), subnormal, normal)
    if form.largest < (1 << (form.nbits - 1)) - 1:
        is_special = builder.icmp_unsigned(">", a, c(form.largest))
        bits = builder.select(is_special, builder.or_(shifted, c(_INFINITY)), bits)
    return builder.bitcast(builder.or_(bits, sign), kind)
