"""Random selections that every rank can draw again from a key."""

import numpy as np

from collcomp.kernels.cpu.bits import count_trailing_zeros
from collcomp.kernels.cpu.common import random32
from collcomp.kernels.cpu.jit import inlined, kernel

__all__ = ["draw", "draw_one"]


#: Place 0 of stream 0 is 0, which is no random number.
_FIRST = 1


@inlined
def _below(key, place, count):
    """A number below `count` < 2**32, all equally likely, and the place after those of the stream that it took.

    Source: Lemire, "Fast random integer generation in an interval", ACM TOMACS 2019.
    """
    count = np.uint64(count)
    product = np.uint64(random32(key, place)) * count
    place += 1
    low = product & np.uint64(0xFFFFFFFF)
    if low < count:
        limit = (np.uint64(1 << 32) - count) % count
        while low < limit:
            product = np.uint64(random32(key, place)) * count
            place += 1
            low = product & np.uint64(0xFFFFFFFF)
    return np.int64(product >> np.uint64(32)), place


@kernel
def draw_one(key, count):
    """A number below `count`."""
    return _below(key, _FIRST, count)[0]


@kernel
def draw(key, count, bitmap, indices):
    """Draw ``indices.size`` of `count` elements, each set of them equally likely; their indices ascend.

    Elements are drawn until enough different ones were; of more than half of them, those that are left out are drawn.

    Parameters
    ----------
    bitmap : ndarray of uint64
        Room for one bit for each element.
    """
    k = indices.size
    leave_out = 2 * k > count
    wanted = count - k if leave_out else k
    bitmap[:] = 0
    place = _FIRST
    found = 0
    while found < wanted:
        i, place = _below(key, place, count)
        bit = np.uint64(1) << np.uint64(i & 63)
        old = bitmap[i >> 6]
        bitmap[i >> 6] = old | bit
        found += (old & bit) == 0
    found = 0
    for w in range(bitmap.size):
        bits = bitmap[w]
        if leave_out:
            bits = ~bits
            if 64 * w + 64 > count:
                bits &= (np.uint64(1) << np.uint64(count - 64 * w)) - np.uint64(1)
        while bits != 0:
            indices[found] = 64 * w + count_trailing_zeros(bits)
            found += 1
            bits &= bits - np.uint64(1)
