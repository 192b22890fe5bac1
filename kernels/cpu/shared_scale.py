"""Integers on one scale for a whole message, so that they can be added without decoding.

Shapes: `src`, `dst`, `residual` (count,) float32 or float64; `codes` (count,) int8, int16 or int32.
"""

import numpy as np

from collcomp.kernels.cpu.bits import from_magnitude
from collcomp.kernels.cpu.common import accumulate, largest_magnitude
from collcomp.kernels.cpu.jit import kernel

__all__ = ["add_largest", "decode", "decode_add", "encode", "encode_feedback", "largest"]


@kernel
def largest(x):
    """The largest magnitude of `x`, which is not empty; NaN where there is one."""
    return from_magnitude(largest_magnitude(x))


@kernel
def add_largest(src, residual):
    """``residual += src``, and the largest magnitude of the sums."""
    return from_magnitude(accumulate(src, residual))


@kernel
def encode(src, inverse, codes):
    """``src * inverse`` rounded to nearest, ties to even."""
    factor = src.dtype.type(inverse)
    for i in range(src.size):
        codes[i] = codes.dtype.type(np.int32(np.rint(src[i] * factor)))


@kernel
def encode_feedback(residual, inverse, scale, codes):
    """`encode` of `residual`, which keeps what was rounded off."""
    factor, step = residual.dtype.type(inverse), residual.dtype.type(scale)
    for i in range(residual.size):
        code = np.int32(np.rint(residual[i] * factor))
        codes[i] = codes.dtype.type(code)
        residual[i] -= residual.dtype.type(code) * step


@kernel
def decode(codes, scale, dst):
    """``codes * scale``."""
    step = dst.dtype.type(scale)
    for i in range(dst.size):
        dst[i] = dst.dtype.type(codes[i]) * step


@kernel
def decode_add(codes, scale, acc):
    """``acc += codes * scale``."""
    step = acc.dtype.type(scale)
    for i in range(acc.size):
        acc[i] += acc.dtype.type(codes[i]) * step
