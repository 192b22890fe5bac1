"""Operations on the bits of numbers, and random numbers: those of `kernels.cpu.bits` and `kernels.cpu.common`.

numba makes an int64 of what it computes with smaller integers, and a float64 of a uint64 and a literal: hence the
constants with types, and `np.int32` around what a float is made of.
"""

import functools

import numpy as np

from collcomp.kernels.cuda.jit import inlined
from collcomp.kernels.cuda.primitives import bits_of, float_of, product32

__all__ = ["LARGEST", "SMALLEST", "fixed_point", "hash32", "integer_of", "magnitude", "nearest", "ordering", "random32"]

#: Magnitudes between them have float32 scales that are normal numbers.
SMALLEST, LARGEST = 2.0**-119, 2.0**127

_LOW = np.uint64(0xFFFFFFFF)
_WEYL, _MIX = np.uint32(0x9E3779B9), np.uint32(0x846CA68B)
_GOLDEN, _FIRST_MIX, _SECOND_MIX = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_15, _16 = np.uint32(15), np.uint32(16)
_27, _30, _32 = np.uint64(27), np.uint64(30), np.uint64(32)
_ADDEND_OF_NEAREST, _ADDEND_OF_FIXED_POINT = np.float32(1.5 * 2**23), np.float32(768)


def integer_of(real):
    """The signed integer type as wide as the float type `real`."""
    return {np.float32: np.int32, np.float64: np.int64}[real]


@inlined
def magnitude(x):
    """The bits of float `x` without its sign: ordered as magnitudes are, NaN above infinity."""
    return bits_of(abs(x))


@functools.cache
def ordering(real):
    """Two functions: floats to integers that are ordered alike (NaN above or below all, by its sign), and back."""
    integer = integer_of(real)
    flip = integer(np.iinfo(integer).max)

    @inlined
    def ordered(x):
        bits = bits_of(x)
        return bits if bits >= 0 else integer(bits ^ flip)

    @inlined
    def from_ordered(bits):
        return float_of(bits if bits >= 0 else integer(bits ^ flip))

    return ordered, from_ordered


@inlined
def nearest(x):
    """Float32 `x` rounded to an integer, ties to even, as int32 whose lowest 16 bits count, for -32767 <= x <= 32767.

    Adding 1.5 * 2**23 makes the adder round at 1.
    """
    return bits_of(x + _ADDEND_OF_NEAREST)


@inlined
def fixed_point(x):
    """``x * 2**14`` rounded, as int32 whose lowest 8 + 14 bits count, for -128 < x < 128 or 0 <= x < 256."""
    return bits_of(x + _ADDEND_OF_FIXED_POINT)


@inlined
def random32(key, index):
    """The number below 2**32 at place `index` of random stream `key` (SplitMix64), as uint64."""
    z = np.uint64(key) + np.uint64(index) * _GOLDEN
    z = (z ^ (z >> _30)) * _FIRST_MIX
    z = (z ^ (z >> _27)) * _SECOND_MIX
    return z >> _32


@inlined
def hash32(base, counter):
    """The 32-bit hash of two numbers below 2**32 (uint64, and any integer), as uint64."""
    h = np.uint32(base + np.uint64(product32(np.uint32(counter), _WEYL)) & _LOW)
    h = product32(np.uint32(h ^ (h >> _15)), _MIX)
    return np.uint64(h ^ (h >> _16))
