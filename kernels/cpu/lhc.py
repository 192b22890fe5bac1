"""Sums of sparse vectors as sketches: an index of bits, and counters from which the sums are read again.

The elements form rows of `lanes` (a power of two). Three hashes give each row three places among the rows of the
sketch, and a sign for each; an element is added to its lane's counter in all three. A counter that only one element
of the index was added to shows its value; taken out of its other two counters, it may uncover more (peeling).

Shapes: `x`, `addend`, `dst`, `acc`, `rest` (count,) float32 or float64; `words` (count / 64, rounded up) uint64, a bit
for each element; for the n non-zeros of the index `positions` (n,) uint32, `values`, `totals` (n,) int32 or int64,
`cells` (n, 3) uint32, `found` (n,) bool; `counters` (c,) of the dtype of `values`, `links` (c, 2) and `queue` (c + 1,)
uint32.

Source: Li et al., "Accelerating distributed deep learning using lossless homomorphic compression", arXiv 2402.07529.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from collcomp.kernels.cpu.bits import magnitude, magnitudes_above
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.vectors import element_pointer

__all__ = [
    "find_nonzeros",
    "murmur3",
    "peel",
    "place",
    "quantise",
    "scatter",
    "sketch",
]

_LANES = 64
#: Elements that stay in the first cache between the passes over them.
_TILE = 1024
#: How far ahead memory is asked for while peeling: counters, their elements, and the elements' other counters.
_AHEAD = (16, 8, 4)


@inlined
def _rotate(x, left):
    return np.uint32(x << np.uint32(left)) | np.uint32(x >> np.uint32(32 - left))


@kernel
def murmur3(key, seed):
    """MurmurHash3_x86_32 of the four bytes of `key`; both and the result are uint32."""
    k = np.uint32(np.uint32(key) * np.uint32(0xCC9E2D51))
    k = np.uint32(np.uint32(_rotate(k, 15)) * np.uint32(0x1B873593))
    h = np.uint32(_rotate(np.uint32(np.uint32(seed) ^ k), 13))
    h = np.uint32(np.uint32(h * np.uint32(5)) + np.uint32(0xE6546B64))
    h = np.uint32(h ^ np.uint32(4))  # the length
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@kernel
def find_nonzeros(x, addend, words):
    """Set the bit of each non-zero element; return the largest magnitude, as bits.

    With an `addend`, `x` is first updated to ``x + addend``.
    """
    largest = magnitude(x[0])
    for begin in range(0, x.size, _TILE):
        tile = x[begin : min(begin + _TILE, x.size)]
        if addend is not None:
            added = addend[begin : begin + tile.size]
            for i in range(tile.size):
                tile[i] += added[i]
        for i in range(tile.size):
            largest = max(largest, magnitude(tile[i]))
        whole = tile.size // _LANES * _LANES
        for start in range(0, whole, _LANES):
            words[(begin + start) // _LANES] = magnitudes_above(tile, start, 0)
        if whole < tile.size:
            bits = np.uint64(0)
            for i in range(whole, tile.size):
                bits |= np.uint64(magnitude(tile[i]) > 0) << np.uint64(i - whole)
            words[(begin + whole) // _LANES] = bits
    return largest


@kernel
def quantise(x, positions, scale, step, values, rest):
    """``values = x[positions] * scale`` rounded to integers, ties to even; what was rounded off goes to `rest` if any.

    `scale` and `step`, its inverse, are pairs of powers of two, whose product may be out of range.
    """
    for e in range(positions.size):
        v = x[positions[e]]
        whole = np.rint(np.float64(v) * scale[0] * scale[1])
        values[e] = np.int64(whole)
        if rest is not None:
            rest[positions[e]] = v - x.dtype.type(whole * step[0] * step[1])


@kernel
def scatter(positions, totals, step, dst):
    """``dst[positions] = totals * step``, the others zero."""
    dst[:] = 0
    for e in range(positions.size):
        dst[positions[e]] = np.float64(totals[e]) * step[0] * step[1]


@kernel
def place(positions, shift, rows, cells):
    """The three counters of each element in a sketch of `rows` rows of ``2**shift`` lanes, twice, plus 1 for minus."""
    lanes = np.int64(1) << shift
    last = np.int64(-1)
    target = (np.int64(0), np.int64(0), np.int64(0))
    for e in range(positions.size):
        row = np.int64(positions[e]) >> shift
        if row != last:
            last = row
            target = (_target(row, 0, rows, shift), _target(row, 1, rows, shift), _target(row, 2, rows, shift))
        lane = 2 * (np.int64(positions[e]) & (lanes - 1))
        cells[e, 0] = target[0] + lane
        cells[e, 1] = target[1] + lane
        cells[e, 2] = target[2] + lane


@inlined
def _target(row, seed, rows, shift):
    h = np.int64(murmur3(np.uint32(row), np.uint32(seed)))
    return (((h % rows) << shift) << 1) | (h >> 31)


@inlined
def _signed(value, cell):
    """`value` with the sign of `cell`, without a branch, which could not be predicted."""
    minus = np.int64(cell & 1)
    return (value ^ -minus) + minus


@kernel
def sketch(values, cells, counters):
    """Add `values` to their counters, which start from zero and wrap around."""
    counters[:] = 0
    for e in range(values.size):
        v = np.int64(values[e])
        for j in range(3):
            counters[cells[e, j] >> 1] += _signed(v, cells[e, j])


@intrinsic
def _prefetch(typing_context, x, index):
    """Ask for the memory of ``x[index]`` (int64), which will be changed soon; `x` as if it were flat."""

    def generate(context, builder, signature, args):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        pointer = builder.bitcast(element_pointer(context, builder, signature.args[0], args[0], args[1]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [pointer, *(ir.Constant(number, option) for option in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(x, types.int64), generate


@kernel
def peel(cells, counters, links, queue, totals, found):
    """Read the elements' sums from `counters`, which is used up; `found` tells which could be read.

    For each counter, `links` has the number of elements in it and their numbers xored: of one, its number. Nearly all
    the time goes into waiting for memory, so this is asked for ahead.
    """
    links[:] = 0
    found[:] = False
    for e in range(cells.shape[0]):
        ahead = min(e + 2 * _AHEAD[0], cells.shape[0] - 1)
        for j in range(3):
            _prefetch(links, 2 * np.int64(cells[ahead, j] >> 1))
            c = cells[e, j] >> 1
            links[c, 0] += 1
            links[c, 1] ^= e
    # The number of elements in a counter falls to one once at most: no more than all counters come into the queue.
    tail = 0
    for c in range(counters.size):
        queue[tail] = c
        tail += links[c, 0] == 1
    head = 0
    while head < tail:
        if head + _AHEAD[0] < tail:
            _prefetch_ahead(cells, counters, links, queue, head)
        c = queue[head]
        head += 1
        if links[c, 0] != 1:
            continue
        e = links[c, 1]
        minus = np.uint32(0)
        for j in range(3):
            minus |= cells[e, j] & np.uint32(cells[e, j] >> 1 == c)
        v = _signed(np.int64(counters[c]), minus)
        totals[e] = v
        found[e] = True
        for j in range(3):
            d = cells[e, j] >> 1
            counters[d] -= _signed(v, cells[e, j])
            links[d, 0] -= 1
            links[d, 1] ^= e
            queue[tail] = d
            tail += links[d, 0] == 1


@inlined
def _prefetch_ahead(cells, counters, links, queue, head):
    c = np.int64(queue[head + _AHEAD[0]])
    _prefetch(links, 2 * c)
    _prefetch(counters, c)
    e = links[queue[head + _AHEAD[1]], 1]
    if e < cells.shape[0]:  # which several numbers xored need not be
        _prefetch(cells, 3 * np.int64(e))
    e = links[queue[head + _AHEAD[2]], 1]
    if e < cells.shape[0]:
        for j in range(3):
            d = np.int64(cells[e, j] >> 1)
            _prefetch(links, 2 * d)
            _prefetch(counters, d)
