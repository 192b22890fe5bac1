"""Blocks of 256 integers in as many bits each as the largest needs (see `kernels.cpu.packing`).

Integer i stands in lane i % 8, as number i // 8 of the 32 that are packed there; word k of all lanes in row k.
"""

import numpy as np

from collcomp.kernels.cpu import PACKED, PACKED_LANES
from collcomp.kernels.cuda.jit import inlined

__all__ = ["BLOCK", "ROW", "packed_word", "unpacked"]

BLOCK, ROW = PACKED, PACKED_LANES
_ROWS = BLOCK // ROW


@inlined
def packed_word(q, first, j, width):
    """Word j of the block whose integers are ``q[first : first + 256]``, packed by `width` bits, as int64."""
    lane, begin = j % ROW, j // ROW * 32
    # The quotient is below 1024 and 1/64 or more away from the next integer: float32 is precise enough.
    number = np.int64((np.float32(begin) + np.float32(0.5)) * (np.float32(1) / np.float32(width)))
    mask = (np.int64(1) << width) - 1
    word = np.int64(0)
    shift = number * width - begin
    while shift < 32 and number < _ROWS:
        value = np.int64(q[first + number * ROW + lane]) & mask
        word |= value << shift if shift >= 0 else value >> -shift
        number += 1
        shift += width
    return word & 0xFFFFFFFF


@inlined
def unpacked(words, first, i, width):
    """Integer i of the block at ``words[first : first + 8 * width]``, as int64; width 0 ... 32."""
    if width == 0:
        return np.int64(0)
    begin = i // ROW * width
    at, shift = first + begin // 32 * ROW + i % ROW, begin % 32
    bits = np.int64(words[at]) >> shift
    if shift + width > 32:
        bits |= np.int64(words[at + ROW]) << (32 - shift)
    sign = np.int64(1) << (width - 1)
    return ((bits & ((sign << 1) - 1)) ^ sign) - sign
