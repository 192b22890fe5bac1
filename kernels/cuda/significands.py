"""Floats as integers times powers of two, and such integers as floats, rounded once.

The dtype of an array tells the format of its elements, as in `kernels.cpu.exact`: float32, uint16 for the bits of IEEE
float16, int16 for the bits of bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from collcomp.kernels.cpu.minifloats import BFLOAT16, FLOAT16, Format
from collcomp.kernels.cuda.jit import inlined
from collcomp.kernels.cuda.minifloats import widening
from collcomp.kernels.cuda.primitives import bit_length, bits_of, float_of

__all__ = ["INFINITY", "reading", "rounding", "signed", "significand", "smallest_exponent"]

#: The bits of float32 without their sign: those of infinity, below those of NaN.
INFINITY = 0x7F800000
_FORMATS = {
    np.float32: Format(nbits=32, mantissa=23, bias=127, largest=INFINITY - 1),
    np.uint16: FLOAT16,
    np.int16: BFLOAT16,
}


def smallest_exponent(kind: Any) -> int:
    """Of the smallest subnormal number."""
    form = _FORMATS[kind]
    return 1 - form.bias - form.mantissa


@functools.cache
def reading(kind: Any) -> Callable:
    """A function of (x, i): element i as float32, its bits (int64) without the sign, and whether that is set."""
    if kind is np.float32:

        @inlined
        def read(x, i):
            bits = np.int64(bits_of(x[i]))
            return bits & 0x7FFFFFFF, bits < 0

        return read
    value_of = widening(_FORMATS[kind])

    @inlined
    def read(x, i):
        code = np.int64(x[i]) & 0xFFFF
        return np.int64(bits_of(value_of(code & 0x7FFF))), code > 0x7FFF

    return read


@inlined
def signed(size, negative):
    """`size`, or minus that."""
    return -size if negative else size


@inlined
def significand(size):
    """A finite float32 without its sign, given by its bits: an integer of 24 bits (int64), and k, for 2**(k - 149)."""
    exponent = size >> 23
    leading = min(exponent, 1)
    return (size & 0x7FFFFF) | (leading << 23), exponent - leading


@functools.cache
def rounding(kind: Any) -> tuple[Callable, Callable]:
    """Two functions that give an element of an array.

    The first, of (size, unit, negative), gives ``size * 2**unit`` rounded to nearest, ties to even, infinity where that
    is too large; `size` is an int64 of at most 62 bits and not negative. The second, of (nan, negative), gives NaN (the
    positive quiet one without payload) or infinity.
    """
    form, smallest = _FORMATS[kind], smallest_exponent(kind)
    stored, infinity = form.mantissa, form.largest + 1
    quiet = infinity | 1 << (stored - 1)
    integer = np.int32 if kind is np.float32 else kind
    sign = np.iinfo(integer).min or 1 << 15

    if kind is np.float32:

        @inlined
        def element(code, negative):
            return float_of(np.int32(code + sign if negative else code))

    else:

        @inlined
        def element(code, negative):
            return integer(code + sign if negative else code)

    @inlined
    def nearest(size, unit, negative):
        if size == 0:
            return element(0, negative)
        # What is kept is a subnormal number, or has a leading one, which counts up the exponent.
        place = unit - smallest
        dropped = max(bit_length(size) - (stored + 1), -place)
        if dropped > 62:
            return element(0, negative)
        if dropped > 0:
            odd = (size >> dropped) & 1
            kept = (size + (np.int64(1) << (dropped - 1)) - 1 + odd) >> dropped
        else:
            kept = size << -dropped
        return element(min(((place + dropped) << stored) + kept, infinity), negative)

    @inlined
    def special(nan, negative):
        return element(quiet, False) if nan else element(infinity, negative)

    return nearest, special
