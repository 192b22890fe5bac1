"""Differences of the neighbours in a block of integers, and back (see `kernels.cpu.differences`), by one warp.

Lane l has the integers l, l + 32, ... of a block: the warp goes through them row by row.
"""

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.jit import LANES, inlined
from collcomp.kernels.cuda.primitives import bit_length, lane_sums_before, value_of_lane

__all__ = ["neighbours", "spread", "sums_from", "width_of"]


@inlined
def neighbours(number, carry):
    """What comes before each lane's int32 `number`, `carry` before the first; and the carry for the next row."""
    lane = cuda.threadIdx.x % LANES
    turned = value_of_lane(number, (lane - 1) & (LANES - 1))
    return (turned if lane else carry), turned


@inlined
def sums_from(difference, carry):
    """The sum of the int64 differences up to each lane's, from `carry` on; and the carry for the next row."""
    before, total = lane_sums_before(difference)
    return carry + before + difference, carry + total


@inlined
def spread(number):
    """What `width_of` wants to know of an integer; bits of several may be united."""
    wide = np.int64(number)
    return (wide ^ (wide << 1)) & 0xFFFFFFFF


@inlined
def width_of(mask):
    """Bits that integers need in two's complement, `mask` being the union of their `spread`."""
    return bit_length(mask)
