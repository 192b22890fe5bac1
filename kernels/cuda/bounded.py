"""Error-bounded codes (see `kernels.cpu.bounded`): one warp a block, in several passes.

Encoding measures all blocks, chooses their codes and scans their sizes, then packs them. Decoding scans the sizes, then
where chains of differences begin and what they come to, then unpacks: a block's first integer may depend on all blocks
before. Whatever the codes are, nothing is read beyond `words`: what would lie there is NaN.

Shapes, for messages of `count` elements in n blocks: `src`, `kept`, `residual`, `dst`, `acc` (count,) float32 or
float64; `total` (count,) int32; `codes` (n,), `words`, `values` and `grid` (3, 2) as for the CPU; `room`
(`room_of(n)`,) int64; `bound` (1,) float64; `counters` int32. Encoders count raw blocks in ``counters[0]``, rows of 8
words in ``counters[1]``.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from numba import cuda

from collcomp.kernels.cuda import jit
from collcomp.kernels.cuda.bits import integer_of, magnitude, ordering
from collcomp.kernels.cuda.chains import STARTS, item_of, scan, sum_before, tops_of, wrapped
from collcomp.kernels.cuda.differences import neighbours, spread, sums_from, width_of
from collcomp.kernels.cuda.jit import LANES, THREADS, inlined, kernel, launch
from collcomp.kernels.cuda.operands import with_nan_of
from collcomp.kernels.cuda.packing import BLOCK, ROW, packed_word, unpacked
from collcomp.kernels.cuda.primitives import (
    bits_of,
    float_of,
    largest_of_lanes,
    meet,
    product,
    smallest_of_lanes,
    sum_by_halves,
    union_of_lanes,
    votes,
)
from collcomp.kernels.cuda.scans import WARPS

__all__ = [
    "add_integers",
    "decode",
    "decode_add",
    "encode",
    "encode_feedback",
    "encode_integers",
    "encode_keep",
    "extremes",
    "fit",
    "quantise",
    "relative",
    "room_of",
]

#: As for the CPU.
_RAW, _DIFFERENCES, _COARSE, _TRIALS = 63, 64, 128, 4
#: Of a thread block.
_INTEGERS = WARPS * BLOCK


def room_of(blocks: int) -> int:
    """How many int64 the work on so many blocks needs."""
    return 2 * (blocks + tops_of(blocks))


def extremes(src: Any, found: Any) -> None:
    """Lower ``found[0]`` to the least finite element and raise ``found[1]`` to the greatest.

    They are integers of the dtype's size that are ordered alike.
    """
    launch(_ranger(src.dtype.type), jit.grid(-(-src.size // THREADS)), src, found)


def relative(found: Any, rel: float, real: Any, bound: Any) -> None:
    """Write `bound`, that share of the range of `found`, the `extremes` of floats of type `real`."""
    launch(_relation_in_float64(real), 1, found, rel, bound, threads=1)


def fit(bound: Any, shares: tuple[float, float], reaches: tuple[float, float], grid: Any) -> None:
    """Write the steps, inverses and limits of the fine and the coarse grid; NaN where `bound` is no bound.

    Parameters
    ----------
    shares : tuple of float
        By which twice the bound is divided for a step.
    reaches : tuple of float
        How many steps a grid reaches.
    """
    launch(_fitter_in_float64(grid.dtype.type), 1, bound, shares, reaches, grid, threads=1)


def encode(src: Any, grid: Any, codes: Any, words: Any, values: Any, room: Any, counters: Any) -> None:
    """Encode `src`."""
    _measure(src, src, False, grid, codes, room)
    _write(src, src, "encode", grid, codes, words, values, room, counters)


def encode_keep(src: Any, kept: Any, grid: Any, codes: Any, words: Any, values: Any, room: Any, counters: Any) -> None:
    """`encode`, and write what `decode` will give into `kept`, which may be `src`."""
    _measure(src, src, False, grid, codes, room)
    _write(src, kept, "keep", grid, codes, words, values, room, counters)


def encode_feedback(
    src: Any, residual: Any, grid: Any, codes: Any, words: Any, values: Any, room: Any, counters: Any
) -> None:
    """Encode `residual`, to which `src` is added first unless it is None, and leave in it what was rounded off."""
    _measure(residual if src is None else src, residual, src is not None, grid, codes, room)
    _write(residual, residual, "feedback", grid, codes, words, values, room, counters)


def decode(dst: Any, grid: Any, codes: Any, words: Any, values: Any, room: Any) -> None:
    """Decode into `dst`."""
    _decode("put", codes, words, room, dst, grid, values)


def decode_add(acc: Any, grid: Any, codes: Any, words: Any, values: Any, room: Any) -> None:
    """`decode`, and add to `acc`."""
    _decode("add", codes, words, room, acc, grid, values)


def quantise(src: Any, grid: Any, total: Any, counters: Any) -> None:
    """The integers of `src` on the fine grid; raises ``counters[0]`` for elements that do not keep its limit."""
    launch(_quantiser(src.dtype.type), jit.grid(-(-src.size // THREADS)), src, grid, total, counters)


def add_integers(total: Any, codes: Any, words: Any, bound: Any, expected: float, room: Any, counters: Any) -> None:
    """Add the integers of a message to `total`; raises ``counters[0]`` where its bound is another, or it has others."""
    bits = int(np.array(expected, np.float64).view(np.int64))
    _decode("integers", codes, words, room, total, bound.view(np.int64), bits, counters)


def encode_integers(total: Any, kept: Any, grid: Any, codes: Any, words: Any, room: Any, counters: Any) -> None:
    """Encode integers, unless ``counters[0]`` was raised; `kept` gets their multiples of the step of the fine grid."""
    _measure(total, total, False, grid, codes, room)
    _write(total, kept, "keep", grid, codes, words, words, room, counters)


def _measure(src: Any, held: Any, adds: bool, grid: Any, codes: Any, room: Any) -> None:
    real, (sums, tops, facts, _) = grid.dtype.type, _parts(room, len(codes))
    firsts, lasts = _halves(facts)
    launch(_measurer(real, adds, _integral(held)), _warps(codes), src, held, grid, codes, sums, firsts, lasts)
    # Floats of a last block that is cut off are encoded by a call of their own on the CPU.
    separate = not _integral(held) and held.size % BLOCK != 0
    scan(_choice(real), (codes, sums, firsts, lasts, int(separate)), sums, tops)


def _write(
    held: Any, dst: Any, mode: str, grid: Any, codes: Any, words: Any, values: Any, room: Any, counters: Any
) -> None:
    sums, tops, facts, _ = _parts(room, len(codes))
    _, lasts = _halves(facts)
    writer = _writer(grid.dtype.type, mode, _integral(held))
    launch(writer, _warps(codes), held, dst, grid, codes, words, values, lasts, sums, tops, counters)


def _decode(mode: str, codes: Any, words: Any, room: Any, *arrays: Any) -> None:
    real = None if mode == "integers" else arrays[0].dtype.type
    sums, tops, ends, end_tops = _parts(room, len(codes))
    scan(_sizes(real), (codes,), sums, tops)
    launch(_chainer(real), _warps(codes), codes, words, sums, tops, ends)
    scan(item_of, (ends,), ends, end_tops)
    launch(_decoder(real, mode), _warps(codes), codes, words, sums, tops, ends, end_tops, arrays)


def _parts(room: Any, blocks: int) -> tuple[Any, Any, Any, Any]:
    """Two arrays for blocks, each with its tops."""
    stops = (0, blocks, blocks + tops_of(blocks), 2 * blocks + tops_of(blocks), room_of(blocks))
    sums, tops, others, other_tops = (room[first:stop] for first, stop in itertools.pairwise(stops))
    return sums, tops, others, other_tops


def _halves(facts: Any) -> tuple[Any, Any]:
    """The first and the last integers of blocks, in the room of int64."""
    integers = facts.view(np.int32)
    return integers[: len(facts)], integers[len(facts) :]


def _warps(codes: Any) -> int:
    """Thread blocks for a warp a block."""
    return jit.grid(-(-len(codes) // WARPS))


def _integral(held: Any) -> bool:
    return held.dtype == np.int32


# ---------------------------------------------------------------------- the grid


@functools.cache
def _ranger(real):
    integer = integer_of(real)
    limits = np.iinfo(integer)
    most, least = integer(limits.max), integer(limits.min)
    infinity = _infinity(real)
    ordered, _ = ordering(real)

    @kernel
    def ranger(src, found):
        low, high = most, least
        for i in range(cuda.grid(1), src.size, cuda.gridsize(1)):
            x = src[i]
            if magnitude(x) < infinity:
                low = min(low, ordered(x))
                high = max(high, ordered(x))
        low, high = smallest_of_lanes(low), largest_of_lanes(high)
        # Few have to ask for the addresses that all would wait for.
        if cuda.threadIdx.x % LANES == 0:
            if low < found[0]:
                cuda.atomic.min(found, 0, low)
            if high > found[1]:
                cuda.atomic.max(found, 1, high)

    return ranger


def _infinity(real):
    """The bits of infinity."""
    return int(np.array(np.inf, real).view(integer_of(real)))


@functools.cache
def _relation_in_float64(real):
    _, from_ordered = ordering(real)
    largest = np.finfo(np.float64).max

    @kernel
    def relation(found, rel, bound):
        low, high = found[0], found[1]
        span = np.float64(0)
        if low <= high:
            span = np.float64(from_ordered(high)) - np.float64(from_ordered(low))
        bound[0] = min(rel * span, largest)

    return relation


@functools.cache
def _fitter_in_float64(real):
    info = np.finfo(real)
    # Steps and inverses are normal numbers, and no multiple overflows.
    largest, least, limit = 2.0 ** (info.maxexp - 3), 2.0 ** (info.minexp + 2), 2.0 ** (info.maxexp - 1)

    @kernel
    def fitter(bound, shares, reaches, grid):
        for column in range(2):
            for row in range(3):
                grid[row, column] = real(0 if 0 <= bound[0] < np.inf else np.nan)
            wide = min(2 * bound[0] / shares[column], largest)
            if wide >= least:
                step = real(wide)
                grid[0, column] = step
                grid[1, column] = real(1) / step
                grid[2, column] = real(min(np.float64(step) * reaches[column], limit))

    return fitter


# ---------------------------------------------------------------------- one block


@functools.cache
def _rounding(real, integral):
    """A function of (x, inverse): the integer of `x` on a grid, as int32."""
    if integral:

        @inlined
        def integer(x, inverse):
            return x

        return integer
    # In it the last place is 1.
    offset = real(1.5 * 2 ** np.finfo(real).nmant)
    bits = int(offset.view(integer_of(real)))

    @inlined
    def integer(x, inverse):
        return np.int32(np.int64(bits_of(product(x, inverse) + offset)) - bits)

    return integer


@functools.cache
def _rows(real):
    """A function of a block's code: its length in rows, 0 where the code has no meaning; raw ones need a `real`."""
    raw = BLOCK * np.dtype(real).itemsize // (4 * ROW) if real else 0

    @inlined
    def rows(code):
        if code == _RAW:
            return np.int64(raw)
        width = np.int64(code & _RAW)
        return width if width <= 32 else np.int64(0)

    return rows


@functools.cache
def _choice(real):
    """For `scan`: chooses between the integers of a block and their differences, and tells its length.

    Until then a code is that of the integers, and the place of its sum holds the width of the differences but for the
    first.
    """
    rows_of = _rows(real)

    @inlined
    def choose(arrays, b, count):
        codes, inner, firsts, lasts, separate = arrays
        code, width, narrower = np.int64(0), np.int64(0), False
        if b < count:
            code = np.int64(codes[b])
            if code != _RAW:
                before = np.int64(lasts[b - 1]) if b > 0 else np.int64(0)
                width = max(inner[b], np.int64(width_of(spread(firsts[b] - before))))
                narrower = width < (code & _RAW)
        # Differences are tried in the first of four blocks, after a block where they are narrower, and in a last block
        # that is encoded separately.
        lane = cuda.threadIdx.x % LANES
        place = lane % _TRIALS
        needed = (2 << place) - 1
        if 0 < b < _TRIALS:  # the second block of all is tried in any case
            needed -= 1
        if separate and b == count - 1:
            needed = 1 << place
        four = np.int64(votes(narrower)) >> (lane - place)
        if narrower and (four & needed) == needed:
            code = width | _DIFFERENCES | (code & _COARSE)
        if b < count:
            codes[b] = code
        return rows_of(code)

    return choose


@functools.cache
def _sizes(real):
    """For `scan`: the length of a block."""
    rows_of = _rows(real)

    @inlined
    def size(arrays, b, count):
        return rows_of(np.int64(arrays[0][b])) if b < count else np.int64(0)

    return size


# ---------------------------------------------------------------------- kernels


@functools.cache
def _measurer(real, adds, integral):
    integer = integer_of(real)
    integer_on_grid = _rounding(real, integral)

    @kernel
    def measurer(src, held, grid, codes, inner, firsts, lasts):
        lane = cuda.threadIdx.x % LANES
        for b in range(cuda.grid(1) // LANES, len(codes), cuda.gridsize(1) // LANES):
            start = b * BLOCK
            used = min(BLOCK, held.size - start)
            code, inverse = 0, grid[1, 0]
            if not integral:
                largest = integer(0)
                for i in range(lane, used, LANES):
                    if adds:
                        x = src[start + i]
                        held[start + i] = with_nan_of(x, held[start + i] + x)
                    largest = max(largest, magnitude(held[start + i]))
                peak = float_of(largest_of_lanes(largest))
                if not peak <= grid[2, 0]:
                    inverse = grid[1, 1]
                    code = _COARSE if peak <= grid[2, 1] else _RAW
            if adds:
                meet()
            carry = np.int32(0)
            plain, steps = np.int64(0), np.int64(0)
            for i in range(lane, BLOCK, LANES):
                number = np.int32(0)
                if code != _RAW:
                    number = integer_on_grid(held[start + min(i, used - 1)], inverse)
                before, carry = neighbours(number, carry)
                if integral:
                    plain |= spread(number)
                if i > 0:
                    steps |= spread(np.int64(number) - before)
                else:
                    firsts[b] = number
                if i == BLOCK - 1:
                    lasts[b] = number
            steps = union_of_lanes(steps)
            if integral:
                plain = union_of_lanes(plain)
            elif code != _RAW:
                plain = spread(integer_on_grid(peak, inverse))
            if lane == 0:
                codes[b] = code + width_of(plain)
                inner[b] = width_of(steps)

    return measurer


@functools.cache
def _writer(real, mode, integral):
    keeps, feeds = mode == "keep", mode == "feedback"
    values_in_row = 4 * ROW // np.dtype(real).itemsize
    integer_on_grid, rows_of = _rounding(real, integral), _rows(real)

    @kernel
    def writer(held, dst, grid, codes, words, values, lasts, sums, tops, counters):
        numbers = cuda.shared.array(_INTEGERS, np.int32)
        if integral and counters[0] != 0:
            return
        lane, mine = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES * BLOCK
        for b in range(cuda.grid(1) // LANES, len(codes), cuda.gridsize(1) // LANES):
            start = b * BLOCK
            used = min(BLOCK, held.size - start)
            code, position = np.int64(codes[b]), sum_before(sums, tops, b)
            padding = held[start + used - 1]
            meet()  # before that changes, and until all have packed the block before
            if code == _RAW:
                for i in range(lane, BLOCK, LANES):
                    x = held[start + i] if i < used else padding
                    values[position * values_in_row + i] = x
                    if i < used and keeps:
                        dst[start + i] = x
                    if i < used and feeds:
                        dst[start + i] = 0
                if lane == 0:
                    cuda.atomic.add(counters, 0, 1)
            else:
                step, inverse = grid[0, code >> 7], grid[1, code >> 7]
                carry = lasts[b - 1] if b > 0 else np.int32(0)
                for i in range(lane, BLOCK, LANES):
                    x = held[start + i] if i < used else padding
                    number = integer_on_grid(x, inverse)
                    before, carry = neighbours(number, carry)
                    numbers[mine + i] = number - before if code & _DIFFERENCES else number
                    if i < used and keeps:
                        dst[start + i] = product(real(number), step)
                    if i < used and feeds:
                        dst[start + i] = x - product(real(number), step)
                meet()
                width = code & _RAW
                for j in range(lane, ROW * width, LANES):
                    words[ROW * position + j] = packed_word(numbers, mine, j, width)
            if b == len(codes) - 1 and lane == 0:
                counters[1] += position + rows_of(code)

    return writer


@functools.cache
def _fitting(real):
    """A function of (code, position, words): whether a block that is not raw lies within them."""
    rows_of = _rows(real)

    @inlined
    def fits(code, position, words):
        return (code & _RAW) <= 32 and (position + rows_of(code)) * ROW <= words.size

    return fits


@functools.cache
def _chainer(real):
    fits = _fitting(real)

    @kernel
    def chainer(codes, words, sums, tops, ends):
        """The last integer of a block; where that takes the block before, what is added to it."""
        lane = cuda.threadIdx.x % LANES
        for b in range(cuda.grid(1) // LANES, len(codes), cuda.gridsize(1) // LANES):
            code, position = np.int64(codes[b]), sum_before(sums, tops, b)
            total = np.int64(0)
            if fits(code, position, words):
                if code & _DIFFERENCES:
                    for i in range(lane, BLOCK, LANES):
                        total += unpacked(words, ROW * position, i, code & _RAW)
                elif lane == 0:
                    total = unpacked(words, ROW * position, BLOCK - 1, code & _RAW)
            total = sum_by_halves(total)
            if lane == 0:
                ends[b] = (total & (STARTS - 1)) | (0 if code & _DIFFERENCES else STARTS)

    return chainer


@functools.cache
def _placing(real, mode):
    """Two functions for what becomes of a block: of each of its integers, and of one that has none."""
    if mode == "integers":

        @inlined
        def place(arrays, code, i, number):
            total, bound, expected, counters = arrays
            total[i] += number
            if i == 0 and bound[0] != expected:
                cuda.atomic.add(counters, 0, 1)

        @inlined
        def instead(arrays, code, position, start, i):
            cuda.atomic.add(arrays[3], 0, 1)

        return place, instead
    values_in_row = 4 * ROW // np.dtype(real).itemsize

    @inlined
    def put(dst, i, x):
        if mode == "add":
            dst[i] += x
        else:
            dst[i] = x

    @inlined
    def place(arrays, code, i, number):
        put(arrays[0], i, product(real(number), arrays[1][0, code >> 7]))

    @inlined
    def instead(arrays, code, position, start, i):
        """Raw, or what no encoder has written."""
        values, at = arrays[2], position * values_in_row + i
        put(arrays[0], start + i, values[at] if code == _RAW and at < values.size else real(np.nan))

    return place, instead


@functools.cache
def _decoder(real, mode):
    fits, (place, instead) = _fitting(real), _placing(real, mode)

    @kernel
    def decoder(codes, words, sums, tops, ends, end_tops, arrays):
        lane, count = cuda.threadIdx.x % LANES, arrays[0].size
        for b in range(cuda.grid(1) // LANES, len(codes), cuda.gridsize(1) // LANES):
            start = b * BLOCK
            used = min(BLOCK, count - start)
            code, position = np.int64(codes[b]), sum_before(sums, tops, b)
            if fits(code, position, words):
                carry = sum_before(ends, end_tops, b)
                for i in range(lane, BLOCK, LANES):
                    number = unpacked(words, ROW * position, i, code & _RAW)
                    if code & _DIFFERENCES:
                        number, carry = sums_from(number, carry)
                    if i < used:
                        place(arrays, code, start + i, wrapped(number))
            else:
                for i in range(lane, used, LANES):
                    instead(arrays, code, position, start, i)

    return decoder


@functools.cache
def _quantiser(real):
    integer_on_grid = _rounding(real, False)

    @kernel
    def quantiser(src, grid, total, counters):
        inverse, limit, wrong = grid[1, 0], grid[2, 0], False
        for i in range(cuda.grid(1), src.size, cuda.gridsize(1)):
            x = src[i]
            if abs(x) <= limit:
                total[i] = integer_on_grid(x, inverse)
            else:
                wrong = True
        if wrong:
            cuda.atomic.add(counters, 0, 1)

    return quantiser
