"""Floats as int32 that switches add: block fixed point, as SwitchML has it, and fixed point, as ATP has it.

All arithmetic is float32's, as it is there, so that edges are the same, too. `x`, `y` (k,) float32, `codes`, `total`
(k,) int32.

Sources: Sapio et al., NSDI 2021, and its public worker (p4lang/p4app-switchML, `CpuExponentQuantizerPPP`); Lao et al.,
"ATP: In-network Aggregation for Multi-tenant Learning", NSDI 2021, and its public worker (in-ATP/ATP, `quantize.h`).
"""

import numpy as np

from collcomp.kernels.cpu.bits import magnitude
from collcomp.kernels.cpu.jit import kernel

__all__ = [
    "FACTOR",
    "LARGEST",
    "LOWEST_EXPONENT",
    "SATURATED",
    "add_saturating",
    "block_scale",
    "dequantise",
    "exceeds",
    "exponent",
    "is_saturated",
    "quantise",
]

#: ATP's factor; and the magnitude beyond which one of its workers has a packet summed as floats from the start, a
#: tenth of what int32 holds.
FACTOR, LARGEST = np.float32(1e6), np.float32(213.0)
#: Exponent of a packet that has none to tell.
LOWEST_EXPONENT = -128
#: Registers stop at plus and minus this; int32 has one more number below.
SATURATED = 2**31 - 1
_OUTSIDE = -(2**31)
_LIMIT = np.float32(2.0**31)
_INFINITY = 0x7F800000


@kernel
def exponent(x):
    """The least e with ``2**e`` above all magnitudes in `x`, as the int8 that it is sent in.

    -126 for zeros, subnormal numbers, and no elements. NaN is left out. What int8 has no room for wraps around: -128
    from magnitudes of ``2**127`` on, -127 for infinity.
    """
    largest = np.int32(0)
    for i in range(x.size):
        bits = magnitude(x[i])
        largest = max(largest, bits if bits <= _INFINITY else np.int32(0))
    return ((np.int64(largest) >> 23) - 126 + 128 & 255) - 128


@kernel
def block_scale(workers, exponent):
    """By what floats below ``2**exponent`` are multiplied, so that sums of so many of them fit int32.

    Infinity where ``workers * 2**exponent`` is ``2**-97`` or less: such chunks decode to zeros, of either sign. 0 where
    it is ``2**128`` or more: they decode to NaN.
    """
    most = np.float32(workers) * np.float32(2.0 ** np.float64(exponent))
    return np.float32(np.float64(SATURATED) / np.float64(most))


@kernel
def quantise(x, scale, codes):
    """``x * scale`` rounded to nearest, ties to even; ``-2**31`` for NaN and what int32 has no room for, as x86 has it.

    (SwitchML and ATP convert most of a packet by vector instructions, the rest by scalar ones that differ in ties and
    fractions; here all elements are treated as the former do.)
    """
    for i in range(x.size):
        value = np.rint(x[i] * scale)
        fits = abs(value) < _LIMIT
        codes[i] = np.int32(value if fits else np.float32(0)) if fits else np.int32(_OUTSIDE)


@kernel
def dequantise(codes, scale, y):
    """``codes / scale``, rounded once for each of the two steps."""
    for i in range(codes.size):
        y[i] = np.float32(codes[i]) / scale


@kernel
def exceeds(x):
    """Whether one of `x` is beyond `LARGEST`, or NaN.

    (ATP's workers do not look for NaN, which becomes ``-2**31``: whether sums are then found too large depends on the
    order of the packets.)
    """
    count = 0
    for i in range(x.size):
        count += not abs(x[i]) <= LARGEST
    return count > 0


@kernel
def add_saturating(total, codes):
    """``total += codes``, except where `total` is at an end of its range, where it stays."""
    for i in range(total.size):
        value = np.int64(total[i])
        free = abs(value) < SATURATED
        value += np.int64(codes[i]) if free else 0
        total[i] = np.int32(min(max(value, _OUTSIDE), SATURATED))


@kernel
def is_saturated(total):
    """Whether one of them is at an end of its range."""
    count = 0
    for i in range(total.size):
        count += abs(np.int64(total[i])) >= SATURATED
    return count > 0
