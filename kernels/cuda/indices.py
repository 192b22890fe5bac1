"""Ascending indices in few bytes, by gaps or as a bitmap (see `kernels.cpu.indices`): one warp a block.

Shapes: `indices` (k,) uint32, strictly ascending; `widths` (number of blocks,) uint8; `words` uint32; `bitmap` uint64;
`totals` (number of blocks,) and `counts` (`counts_size(bitmap.size)`,) int64; `counters` int32.

Nothing that arrived is trusted: reading stays within `words`, writing within `indices`, and where the sender's indices
make no sense some become `NOWHERE`, which is not below any number of elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from collcomp.kernels.cpu import PACKED, PACKED_LANES
from collcomp.kernels.cuda.jit import LANES, THREADS, grid, inlined, kernel, launch
from collcomp.kernels.cuda.primitives import bit_length, lane_sums_before, union_of_lanes
from collcomp.kernels.cuda.scans import WARPS, blocks_for, total_before, warp_part

__all__ = [
    "NOWHERE",
    "are_ascending",
    "counts_size",
    "from_bitmap",
    "measure",
    "ones",
    "pack_gaps",
    "to_bitmap",
    "unpack_gaps",
]

#: An index that no element has.
NOWHERE = 0xFFFFFFFF
#: Of a word, and of the number of a lane of whole blocks.
_BITS, _LANE_BITS = 32, PACKED_LANES.bit_length() - 1


def measure(indices: Any, widths: Any, counters: Any) -> None:
    """Find the width of each block of gaps; add the number of words that all take to `counters`."""
    launch(_measure, blocks_for(widths.size), indices, widths, counters)


def pack_gaps(indices: Any, widths: Any, words: Any) -> None:
    """Pack the gaps; `widths` are those that `measure` found, `words` as many as it counted."""
    launch(_pack, blocks_for(widths.size), indices, widths, words)


def unpack_gaps(widths: Any, words: Any, indices: Any, totals: Any) -> None:
    """Undo `pack_gaps`."""
    launch(_unpack, blocks_for(widths.size), widths, words, indices, totals)
    launch(_add_totals, blocks_for(widths.size), totals, indices)


def to_bitmap(indices: Any, bitmap: Any) -> None:
    """One bit for each element, set for `indices`."""
    bitmap.fill(0)
    launch(_set_bits, grid(-(-indices.size // THREADS)), indices, bitmap.view(np.uint32))


def counts_size(words: int) -> int:
    """How many numbers `counts` has for a bitmap of so many words."""
    return WARPS * _blocks_for_bitmap(words)


def ones(bitmap: Any, counts: Any) -> None:
    """Count the bits that are set, for `from_bitmap`."""
    launch(_ones, _blocks_for_bitmap(bitmap.size), bitmap.view(np.uint32), counts)


def from_bitmap(bitmap: Any, indices: Any, counts: Any) -> None:
    """Undo `to_bitmap`."""
    indices.fill(NOWHERE)
    launch(_places_of_ones, _blocks_for_bitmap(bitmap.size), bitmap.view(np.uint32), counts, indices)


def are_ascending(indices: Any, count: int, counters: Any) -> None:
    """Add to `counters` how many of `indices` do not rise strictly or are not below `count`."""
    launch(_are_ascending, grid(-(-indices.size // THREADS)), indices, count, counters)


def _blocks_for_bitmap(words: int) -> int:
    return blocks_for(-(-2 * words // LANES))


# ---------------------------------------------------------------------- kernels


@inlined
def _gap(indices, i):
    """How many elements are left out before index number i."""
    if i == 0:
        return np.int64(indices[0])
    return np.int64(indices[i]) - np.int64(indices[i - 1]) - 1


@inlined
def _shape(k, b):
    """How many gaps block b of `k` gaps has, and the logarithm of the number of lanes that they stand in."""
    size = max(min(PACKED, k - b * PACKED), 0)
    return size, _LANE_BITS if size == PACKED else 0


@inlined
def _words(size, width):
    """Words that a block takes."""
    return (size * width + _BITS - 1) // _BITS


@kernel
def _measure(indices, widths, counters):
    lane = cuda.threadIdx.x % LANES
    first, _, steps = warp_part(widths.size, 1)
    total = np.int64(0)
    for b in range(first, first + steps):
        size, _ = _shape(indices.size, b)
        bits = np.int64(0)
        for i in range(lane, size, LANES):
            bits |= _gap(indices, b * PACKED + i)
        width = bit_length(union_of_lanes(bits))
        if lane == 0 and size > 0:
            widths[b] = width
        total += _words(size, width)
    if lane == 0:
        cuda.atomic.add(counters, 0, np.int32(total))


@kernel
def _pack(indices, widths, words):
    lane = cuda.threadIdx.x % LANES
    first, of_block, steps = warp_part(widths.size, 1)
    at = total_before(widths, of_block, first) * (PACKED // _BITS)
    for b in range(first, min(first + steps, widths.size)):
        size, lane_bits = _shape(indices.size, b)
        width = np.int64(widths[b])
        used = _words(size, width)
        for j in range(lane, used, LANES):
            # A word of the bits of one lane, in which row r begins at bit r * width.
            begin = (j >> lane_bits) * _BITS
            first_gap = j & ((1 << lane_bits) - 1)
            row = begin // width
            word = np.int64(0)
            while row * width < begin + _BITS and (row << lane_bits) + first_gap < size:
                gap = _gap(indices, b * PACKED + (row << lane_bits) + first_gap)
                shift = row * width - begin
                word |= gap << shift if shift >= 0 else gap >> -shift
                row += 1
            words[at + j] = np.uint32(word & 0xFFFFFFFF)
        at += used


@inlined
def _unpacked(words, at, i, lane_bits, width):
    """Gap number i of the block whose words begin at `at`."""
    bit = (i >> lane_bits) * width
    shift = bit % _BITS
    place = at + (bit // _BITS << lane_bits) + (i & ((1 << lane_bits) - 1))
    following = place + (1 << lane_bits)
    gap = np.int64(0)
    if place < words.size:
        gap = np.int64(words[place]) >> shift
    if shift + width > _BITS and following < words.size:
        gap |= np.int64(words[following]) << (_BITS - shift)
    return gap & ((np.int64(1) << width) - 1)


@kernel
def _unpack(widths, words, indices, totals):
    """Indices as if each block were the first, and how far each block reaches."""
    lane = cuda.threadIdx.x % LANES
    first, of_block, steps = warp_part(widths.size, 1)
    at = total_before(widths, of_block, first) * (PACKED // _BITS)
    for b in range(first, first + steps):
        size, lane_bits = _shape(indices.size, b)
        width = np.int64(widths[b]) if b < widths.size else np.int64(0)
        reached = np.int64(0)
        for row in range(0, PACKED, LANES):
            i = row + lane
            step = np.int64(0)
            if i < size:
                step = 1 + (_unpacked(words, at, i, lane_bits, width) if width <= _BITS else np.int64(NOWHERE))
            before, in_row = lane_sums_before(step)
            if i < size:
                indices[b * PACKED + i] = min(reached + before + step - 1, NOWHERE)
            reached += in_row
        if lane == 0 and size > 0:
            totals[b] = min(reached, NOWHERE)
        at += _words(size, width)


@kernel
def _add_totals(totals, indices):
    lane = cuda.threadIdx.x % LANES
    first, of_block, steps = warp_part(totals.size, 1)
    reached = total_before(totals, of_block, first)
    for b in range(first, min(first + steps, totals.size)):
        size, _ = _shape(indices.size, b)
        for i in range(b * PACKED + lane, b * PACKED + size, LANES):
            indices[i] = min(reached + np.int64(indices[i]), NOWHERE)
        reached += totals[b]


@kernel
def _set_bits(indices, words):
    for j in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        i = np.int64(indices[j])
        cuda.atomic.or_(words, i // _BITS, np.uint32(1 << (i % _BITS)))


@kernel
def _ones(words, counts):
    lane = cuda.threadIdx.x % LANES
    first, _, steps = warp_part(words.size, LANES)
    found = np.int64(0)
    for i in range(first + lane, min(first + steps * LANES, words.size), LANES):
        found += cuda.popc(words[i])
    _, total = lane_sums_before(found)
    if lane == 0:
        counts[cuda.grid(1) // LANES] = total


@kernel
def _places_of_ones(words, counts, indices):
    lane = cuda.threadIdx.x % LANES
    first, _, steps = warp_part(words.size, LANES)
    at = total_before(counts, cuda.blockIdx.x * WARPS, cuda.grid(1) // LANES)
    for i in range(first + lane, first + steps * LANES, LANES):
        word = words[i] if i < words.size else np.uint32(0)
        before, found = lane_sums_before(np.int64(cuda.popc(word)))
        place = at + before
        while word != 0 and place < indices.size:
            indices[place] = i * _BITS + cuda.ffs(word) - 1
            place += 1
            word = np.uint32(word & (word - np.uint32(1)))
        at += found


@kernel
def _are_ascending(indices, count, counters):
    wrong = np.int64(0)
    for i in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        index = np.int64(indices[i])
        if index >= count or (i > 0 and index <= np.int64(indices[i - 1])):
            wrong += 1
    _, wrong_in_warp = lane_sums_before(wrong)
    if cuda.threadIdx.x % LANES == 0:
        cuda.atomic.add(counters, 0, np.int32(wrong_in_warp))
