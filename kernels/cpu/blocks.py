"""What kernels that encode blocks have in common: magnitudes, copies, keys of random streams."""

import numpy as np
from numba import types
from numba.extending import overload

from collcomp.kernels.cpu.bits import magnitude
from collcomp.kernels.cpu.jit import INLINED, inlined

__all__ = ["LARGEST", "SMALLEST", "accumulate", "block_key", "block_stream", "copy", "largest_magnitude"]

#: Magnitudes between them have float32 scales that are normal numbers.
SMALLEST, LARGEST = 2.0**-119, 2.0**127


@inlined
def largest_magnitude(x):
    """The largest `magnitude` in `x`, which has at least one element."""
    largest = magnitude(x[0])
    for i in range(x.size):
        largest = max(largest, magnitude(x[i]))
    return largest


@inlined
def accumulate(x, y):
    """``y += x``, and the largest magnitude of the sums."""
    largest = magnitude(y[0] + x[0])
    for i in range(x.size):
        total = x[i] + y[i]
        y[i] = total
        largest = max(largest, magnitude(total))
    return largest


@inlined
def copy(x, y):
    """``y[: x.size] = x``."""
    for i in range(x.size):
        y[i] = x[i]


@inlined
def block_key(key, index):
    """A uint32 of its own for each block of each random stream (SplitMix64)."""
    z = np.uint64(key) + np.uint64(index) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint32(z >> np.uint64(32))


def block_stream(key, index):
    """`block_key`, or None where `key` is None: rounding to nearest."""
    raise NotImplementedError


@overload(block_stream, jit_options=INLINED)
def _block_stream_overload(key, index):
    if key == types.none:
        return lambda key, index: None
    return lambda key, index: block_key(key, index)
