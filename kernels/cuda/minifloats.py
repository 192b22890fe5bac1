"""Floats of 16 bits and fewer on the device: the conversions of `kernels.cpu.minifloats`, from and to float32.

Functions are made for a `Format`. numba makes an int64 of any two integers: `np.int32` has it compute in 32 bits, which
devices do at twice the speed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from collcomp.kernels.cpu.minifloats import Format
from collcomp.kernels.cuda.jit import inlined
from collcomp.kernels.cuda.primitives import bits_of, float_of

__all__ = ["narrow_to_odd", "rounding", "widening"]

_INFINITY = 0x7F800000


@inlined
def narrow_to_odd(x):
    """Float64 `x`, not NaN, as float32; inexact results become the neighbour with an odd last bit."""
    narrow = np.float32(x)
    given, back = abs(x), abs(np.float64(narrow))
    if back == given:
        return narrow
    away = 1 if back > given else 0
    return float_of(np.int32((np.int64(bits_of(narrow)) - away) | 1))


def _float32(bits: int) -> np.float32:
    return np.int32(bits).view(np.float32)


@functools.cache
def rounding(form: Format, stochastic: bool, limit: int) -> Callable:
    """A function of (x, noise): the code of float32 `x`, not NaN; codes above `limit` become it.

    Rounded to nearest, ties to even, or `stochastic`, as the 32 random bits of `noise` (uint64) say.
    """
    shift, smallest = form.shift, form.smallest_normal
    top, rebias = 1 << (form.nbits - 1), smallest - (1 << 23)
    # The adder shifts the mantissa of a subnormal number to where the one of `magic` is, and rounds it there.
    magic = smallest if stochastic else smallest + (shift << 23)
    addend = _float32(magic)
    half, unused, most = (1 << (shift - 1)) - 1, np.uint64(32 - shift), np.int32(limit)

    @inlined
    def code_of(x, noise):
        bits = bits_of(x)
        a = np.int32(bits & 0x7FFFFFFF)
        small = a < smallest
        code = np.int32(bits_of(abs(x) + addend) - magic if small else a - rebias)
        if stochastic:
            code = np.int32(np.int32(code + np.int32(noise >> unused)) >> shift)
        elif not small:
            code = np.int32(np.int32(code + half + ((a >> shift) & 1)) >> shift)
        code = code if code < most else most
        return np.int32(code | top) if bits < 0 else code

    return code_of


@functools.cache
def widening(form: Format) -> Callable:
    """A function of a code, the lowest bits of an integer: its value as float32, exactly."""
    shift, smallest = form.shift, form.smallest_normal
    top, normal, largest = 1 << (form.nbits - 1), 1 << form.mantissa, form.largest
    least = _float32(smallest)
    special, rebias = largest < top - 1, smallest - (1 << 23)

    @inlined
    def value_of(code):
        a = np.int32(code & (top - 1))
        shifted = np.int32(a << shift)
        if a < normal:
            # A subnormal number lies as far above 0 as a normal one with the same mantissa above the smallest.
            value = float_of(np.int32(shifted + smallest)) - least
        elif special and a > largest:
            value = float_of(np.int32(shifted | _INFINITY))
        else:
            value = float_of(np.int32(shifted + rebias))
        return -value if code & top else value

    return value_of
