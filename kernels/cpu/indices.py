"""Ascending indices in few bytes: as gaps packed by width, or as a bitmap.

A gap is the number of elements left out before an index. Gaps are packed in blocks of 256 with a width of their own
(see `packing`); the last block, if shorter, as one stream of bits, lowest first, in words of 32 bits.

Shapes: `indices` (k,) uint32, strictly ascending; `widths` (number of blocks,) uint8; `words` uint32; `bitmap` uint64.
"""

import numpy as np

from collcomp.kernels.cpu.bits import count_ones, count_trailing_zeros
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.packing import BLOCK, LANES, pack, unpack

__all__ = [
    "are_ascending",
    "from_bitmap",
    "measure",
    "ones",
    "pack_gaps",
    "packed_size",
    "to_bitmap",
    "unpack_gaps",
]


@inlined
def _gaps(indices, start, gaps):
    """Gaps before ``indices[start : start + gaps.size]``, and all their bits combined."""
    part = indices[start : start + gaps.size]
    gaps[0] = part[0] - (indices[start - 1] + 1 if start else 0)
    for i in range(1, gaps.size):
        gaps[i] = part[i] - part[i - 1] - 1
    bits = np.uint32(0)
    for i in range(gaps.size):
        bits |= gaps[i]
    return np.int64(bits)


@inlined
def _words(size, width):
    """Words that a block takes."""
    return LANES * width if size == BLOCK else (size * width + 31) // 32


@kernel
def measure(indices, widths, gaps):
    """Find the width of each block of gaps; return the number of words that all take. `gaps` is room for a block."""
    total = 0
    for b in range(widths.size):
        size = min(BLOCK, indices.size - b * BLOCK)
        bits = _gaps(indices, b * BLOCK, gaps[:size])
        width = 0
        while bits >> width:
            width += 1
        widths[b] = width
        total += _words(size, width)
    return total


@kernel
def pack_gaps(indices, widths, gaps, words):
    """Pack the gaps; `widths` are those that `measure` found, `words` as many as it counted."""
    at = 0
    for b in range(widths.size):
        size = min(BLOCK, indices.size - b * BLOCK)
        width = np.int64(widths[b])
        _gaps(indices, b * BLOCK, gaps[:size])
        if size == BLOCK:
            pack(gaps, 0, words, at, width)
        else:
            _pack_bits(gaps[:size], width, words, at)
        at += _words(size, width)


@inlined
def _pack_bits(gaps, width, words, at):
    pending, filled = np.uint64(0), 0
    for i in range(gaps.size):
        pending |= np.uint64(gaps[i]) << np.uint64(filled)
        filled += width
        if filled >= 32:
            words[at] = pending & np.uint64(0xFFFFFFFF)
            at += 1
            pending >>= np.uint64(32)
            filled -= 32
    if filled:
        words[at] = pending


@inlined
def _unpack_bits(words, at, width, gaps):
    mask = np.uint64((1 << width) - 1)
    pending, filled = np.uint64(0), 0
    for i in range(gaps.size):
        if filled < width:
            pending |= np.uint64(words[at]) << np.uint64(filled)
            at += 1
            filled += 32
        gaps[i] = pending & mask
        pending >>= np.uint64(width)
        filled -= width


@kernel
def packed_size(widths, k):
    """Number of words that `k` gaps of these widths take; -1 where a width is above 32."""
    total = 0
    for b in range(widths.size):
        if widths[b] > 32:
            return -1
        total += _words(min(BLOCK, k - b * BLOCK), np.int64(widths[b]))
    return total


@kernel
def unpack_gaps(widths, words, indices):
    """Undo `pack_gaps`; return the last index as it would be without the limit of 32 bits, -1 where there is none.

    The indices ascend if that is below 2**32, whatever the words are. `words` are as many as `packed_size` counted.
    """
    at = 0
    last = np.int64(-1)
    for b in range(widths.size):
        size = min(BLOCK, indices.size - b * BLOCK)
        width = np.int64(widths[b])
        part = indices[b * BLOCK : b * BLOCK + size]
        if size == BLOCK:
            unpack(words, at, indices, b * BLOCK, width)
        else:
            _unpack_bits(words, at, width, part)
        at += _words(size, width)
        for i in range(size):
            last += np.int64(part[i]) + 1
            part[i] = last
    return last


@kernel
def to_bitmap(indices, bitmap):
    """One bit for each element, set for `indices`."""
    bitmap[:] = 0
    for i in range(indices.size):
        bitmap[indices[i] >> 6] |= np.uint64(1) << np.uint64(indices[i] & 63)


@kernel
def ones(bitmap):
    """Number of bits that are set."""
    total = 0
    for i in range(bitmap.size):
        total += count_ones(bitmap[i])
    return total


@kernel
def from_bitmap(bitmap, indices):
    """Undo `to_bitmap`; `indices` are as many as there are `ones`."""
    found = 0
    for i in range(bitmap.size):
        bits = bitmap[i]
        while bits != 0:
            indices[found] = 64 * i + count_trailing_zeros(bits)
            found += 1
            bits &= bits - np.uint64(1)


@kernel
def are_ascending(indices, count):
    """Whether `indices` rise strictly and stay below `count`, so that scattering by them is safe."""
    wrong = 0
    for i in range(indices.size - 1):
        wrong |= indices[i] >= indices[i + 1]
    return wrong == 0 and (indices.size == 0 or indices[indices.size - 1] < count)
