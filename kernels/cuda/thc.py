"""Rotated values rounded at random to a lattice of integers (see `kernels.cpu.thc`).

What functions share:

diagonal, last : arrays
    As for the CPU.
tile, words, octets : arrays
    Scratch: (`tile_size`,) of the dtype of `src`; (2 * number of blocks,) uint32; uint8, for `encode` as many as there
    are elements in rotated blocks.
tables : array of int32, shape (512,)
    From 0 ... g to the integer of the table below, plus 2**8 times the distance from there to the next, plus 2**16
    times the number of that integer; from that number to the integer, in the second half.
top, reach : int, float
    As for the CPU.

Norms and what depends on them are float64 in all kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.bits import hash32, integer_of, magnitude, random32
from collcomp.kernels.cuda.butterflies import TILE, Steps, transform
from collcomp.kernels.cuda.jit import LANES, THREADS, grid, inlined, kernel, launch
from collcomp.kernels.cuda.operands import with_nan_of
from collcomp.kernels.cuda.packing import BLOCK, ROW, packed_word, unpacked
from collcomp.kernels.cuda.primitives import bits_of, float_of, largest_of_lanes, meet, product, sum_by_halves
from collcomp.kernels.cuda.raw_blocks import locate
from collcomp.kernels.cuda.rotation import LIMIT

__all__ = ["decode", "decode_sums", "encode", "measure", "quantise", "tile_size"]

_SMALLEST = 2.0**-100
_WARPS = THREADS // LANES
_HALF = BLOCK // 2
#: Elements that `sum_of_squares` takes at once, and how many a thread loads, two of each, before any is added.
_STRIDE, _AHEAD = 64, 8


def tile_size(blocks: int, count: int, block: int) -> int:
    """Elements of `tile` for so many blocks, which have `count` elements when they are rotated."""
    return 2 * blocks + (count if block > TILE else 0)


def encode(
    src: Any,
    residual: Any,
    kept: Any,
    norms: Any,
    packed: Any,
    raw: Any,
    diagonal: Any,
    last: Any,
    tile: Any,
    tables: Any,
    words: Any,
    octets: Any,
    top: int,
    reach: float,
    width: int,
    key: int,
    counters: Any,
) -> None:
    """Encode `src`; parameters as for the CPU.

    Nothing is written to `raw`, nor cleared in `residual`, before the number of raw blocks is known: by `copy_raw`.
    """
    values = src if residual is None else residual
    _measure(src, residual, norms, diagonal.size, np.nan, counters)
    parts = list(_parts(norms, diagonal, last, tile, words, values.size, reach, key, sums=False))
    for part in parts:
        _quantise(part, values, octets, False, tables, top)
    launch(_packer(), grid(-(-packed.size // THREADS)), octets, width, packed)
    for part in parts:
        if kept is not None:
            _restore(part, "numbers", "write", "values", (octets, tables, width), top / 2, kept, values)
        if residual is not None:
            _restore(part, "numbers", "subtract", None, (octets, tables, width), top / 2, residual, values)


def decode(
    norms: Any,
    packed: Any,
    raw: Any,
    diagonal: Any,
    last: Any,
    tile: Any,
    tables: Any,
    words: Any,
    octets: Any,
    top: int,
    reach: float,
    width: int,
    adds: bool,
    dst: Any,
) -> None:
    """Decode into `dst`, or add to it; NaN where `raw` has no element for a raw block."""
    if raw.size:
        locate(norms, words[len(norms) :].view(np.int32))
    how = "add" if adds else "write"
    for part in _parts(norms, diagonal, last, tile, words, dst.size, reach, None, sums=False):
        _restore(part, "words", how, "raw", (packed, tables, width), top / 2, dst, raw)


def measure(src: Any, residual: Any, norms: Any, block: int) -> None:
    """The norms of the blocks of `src`, infinite where raw; of ``src + residual``, left there, if that is not None."""
    _measure(src, residual, norms, block, np.inf, norms)


def quantise(
    src: Any,
    residual: Any,
    norms: Any,
    sums: Any,
    diagonal: Any,
    last: Any,
    tile: Any,
    tables: Any,
    words: Any,
    octets: Any,
    top: int,
    reach: float,
    key: int,
) -> None:
    """Write the integers for `src` to `sums`, for norms that all ranks share; zeros where they are infinite.

    If there is a residual, it holds the values instead of `src`, and gets what was rounded off.
    """
    values = src if residual is None else residual
    for part in _parts(norms, diagonal, last, tile, words, values.size, reach, key, sums=True):
        _quantise(part, values, sums, True, tables, top)
        if residual is not None:
            _restore(part, "sums", "subtract", None, (sums, tables, 0), top / 2, residual, values)


def decode_sums(
    sums: Any,
    norms: Any,
    offset: float,
    diagonal: Any,
    last: Any,
    tile: Any,
    reach: float,
    dst: Any,
) -> None:
    """Write what sums of integers stand for, which are `offset` = ranks * g / 2 for 0; nothing for infinite norms."""
    for part in _parts(norms, diagonal, last, tile, None, dst.size, reach, None, sums=True):
        _restore(part, "sums", "write", None, (sums, sums, 0), offset, dst, dst)


def _measure(src: Any, residual: Any, norms: Any, block: int, raw_norm: float, counters: Any) -> None:
    measurer = _measurer(src.dtype.type, residual is not None, np.isnan(raw_norm))
    added = src if residual is None else residual
    launch(measurer, grid(-(-len(norms) // _WARPS)), src, added, norms, block, counters)


# ---------------------------------------------------------------------- blocks of one size


class _Part(NamedTuple):
    """All whole blocks, or the last one: where they lie in the message, and what is known of each block.

    Kernels number its elements and blocks from its first one.
    """

    values: slice
    rotated: slice
    block: int
    diagonal: Any
    factors: Any
    steps: Any
    keys: Any
    places: Any
    scratch: Any

    def transform(self, steps: Steps, arguments: tuple[Any, ...], back: bool) -> None:
        """Rotate its blocks."""
        count, used = (where.stop - where.start for where in (self.rotated, self.values))
        transform(steps, arguments, self.diagonal, back, count, used, self.scratch)


def _parts(
    norms: Any,
    diagonal: Any,
    last: Any,
    tile: Any,
    words: Any,
    count: int,
    reach: float,
    key: int | None,
    sums: bool,
) -> Iterator[_Part]:
    """The parts of a message. `words` is None where neither random keys are needed nor places of raw blocks."""
    blocks, size = len(norms), diagonal.size
    factors, steps = tile[:blocks], tile[blocks : 2 * blocks]
    keys, places = (norms, norms) if words is None else (words[:blocks], words[blocks:].view(np.int32))
    whole = count // size
    full = whole * size
    roots = math.sqrt(size), math.sqrt(last.size)
    preparer = _preparer(diagonal.dtype.type, sums, key is not None)
    numbers = (whole, *roots, reach, np.uint64(key or 0))
    launch(preparer, grid(-(-blocks // THREADS)), norms, *numbers, factors, steps, keys)
    for start, stop, rotated_stop, b, end, factors_of in (
        (0, full, full, 0, whole, diagonal),
        (full, count, full + last.size, whole, blocks, last),
    ):
        if start < stop:
            rotated = slice(start, rotated_stop)
            of_blocks = (array[b:end] for array in (factors, steps, keys, places))
            scratch = tile[2 * blocks :][rotated] if factors_of.size > TILE else tile
            yield _Part(slice(start, stop), rotated, size, factors_of, *of_blocks, scratch)


def _quantise(part: _Part, values: Any, dst: Any, direct: bool, tables: Any, top: int) -> None:
    """Write integers (`direct`) or their numbers in the table to `dst`."""
    steps = _quantising(values.dtype.type, direct)
    arrays = (values[part.values], dst[part.rotated], part.factors, part.keys, tables)
    numbers = (np.float32(top) / np.float32(2), np.float32(top), part.diagonal.size - 1)
    part.transform(steps, (*arrays, *numbers), back=False)


def _restore(
    part: _Part, source: str, how: str, plain: str | None, codes: tuple[Any, ...], half: float, dst: Any, raw: Any
) -> None:
    """Scale back and rotate back; write that to `dst`, add it or subtract it.

    Parameters
    ----------
    source : {"numbers", "sums", "words"}
        What comes first in `codes`: numbers of integers, integers, or packed numbers; then the tables, and the width.
    plain : {"values", "raw", None}
        What raw blocks become: the same elements of `raw`, those that lie there one block after another, or nothing.
    """
    held, tables, width = codes
    if source == "words":
        held = held[part.rotated.start // BLOCK * ROW * width : part.rotated.stop // BLOCK * ROW * width]
    else:
        held = held[part.rotated]
    real = dst.dtype.type
    raw = raw[part.values] if plain == "values" else raw
    arrays = (held, dst[part.values], raw, part.steps, part.places, tables)
    numbers = (real(half), width, part.block)
    part.transform(_restoring(real, source, how, plain), (*arrays, *numbers), back=True)


# ---------------------------------------------------------------------- kernels


@functools.cache
def _measurer(real, adds, counts):
    """Norms, NaN where raw, and `counts` them, or infinite."""
    integer = integer_of(real)
    limit, zero, raw_norm = real(LIMIT), real(0), np.float32(np.nan if counts else np.inf)

    @inlined
    def element(src, residual, i):
        return with_nan_of(src[i], src[i] + residual[i]) if adds else src[i]

    @kernel
    def measure_in_float64(src, residual, norms, block, counters):
        """By one warp a block, in the order of `kernels.cpu.common.sum_of_squares`: 4 chains of 16 lanes.

        Half a warp takes two chains. What is left behind the last whole stride is added one by one.
        """
        lane = cuda.threadIdx.x % LANES
        first_chain = lane // 16 * 32 + lane % 16
        x = cuda.local.array(_AHEAD, real)
        for b in range(cuda.grid(1) // LANES, len(norms), cuda.gridsize(1) // LANES):
            start = b * block
            stop = min(start + block, src.size)
            whole = stop - (stop - start) % _STRIDE
            largest = integer(0)
            total, other = np.float64(0), np.float64(0)
            for row in range(start, whole, _AHEAD // 2 * _STRIDE):
                for k in range(_AHEAD):
                    i = row + first_chain + k // 2 * _STRIDE + k % 2 * 16
                    x[k] = element(src, residual, i) if i < whole else zero
                for k in range(_AHEAD):
                    i = row + first_chain + k // 2 * _STRIDE + k % 2 * 16
                    if adds and i < whole:
                        residual[i] = x[k]
                    largest = max(largest, magnitude(x[k]))
                    wide = np.float64(x[k])
                    if k % 2:
                        other += product(wide, wide)
                    else:
                        total += product(wide, wide)
            for i in range(whole + lane, stop, LANES):
                value = element(src, residual, i)
                if adds:
                    residual[i] = value
                largest = max(largest, magnitude(value))
            peak = float_of(largest_of_lanes(largest))
            squares = sum_by_halves(total + other)
            meet()
            for i in range(whole, stop):
                wide = np.float64(residual[i])
                squares += product(wide, wide)
            if lane == 0:
                norm = math.sqrt(squares)
                raw = not peak < limit or (norm < _SMALLEST and peak > zero)
                norms[b] = raw_norm if raw else np.float32(norm)
                if counts and raw:
                    cuda.atomic.add(counters, 0, 1)

    return measure_in_float64


@functools.cache
def _preparer(real, sums, draws):
    raw = real(np.nan)

    @kernel
    def prepare_in_float64(norms, whole, root, last_root, reach, key, factors, steps, keys):
        """For each block: from rotated values to the lattice, and back, both NaN where it is raw; and a random key."""
        for b in range(cuda.grid(1), len(norms), cuda.gridsize(1)):
            norm = np.float64(norms[b])
            length = root if b < whole else last_root
            wide = product(norm, reach)
            factors[b] = real(length / wide) if norm > 0 else real(0)
            steps[b] = real(wide / length)
            if math.isinf(norm) if sums else np.isnan(norm):
                factors[b] = steps[b] = raw
            if draws:
                keys[b] = np.uint32(random32(key, b))

    return prepare_in_float64


@functools.cache
def _packer():
    @kernel
    def packer(numbers, width, packed):
        """A word a thread."""
        for word in range(cuda.grid(1), packed.size, cuda.gridsize(1)):
            block = word // ROW // width
            packed[word] = np.uint32(packed_word(numbers, block * BLOCK, word - block * ROW * width, width))

    return packer


@inlined
def _never(arguments, b):
    return False


@inlined
def _nothing(arguments, b, i, x):
    pass


@functools.cache
def _quantising(real, direct):
    """Steps for (values, integers or their numbers, factors, keys, tables, middle, limit, last place of a block)."""
    zero, narrow_zero, addend = real(0), np.float32(0), np.float32(512)

    @inlined
    def load(arguments, b, i):
        return arguments[0][np.uint64(i)]

    @inlined
    def fetch(arguments, b, i):
        return zero

    @inlined
    def leave(arguments, b, i, y, fetched, stays):
        _, dst, factors, keys, tables, middle, limit, last = arguments
        factor = factors[b]
        if np.isnan(factor):
            dst[i] = 0
            return
        place = min(max(np.float32(product(y, factor)) + middle, narrow_zero), limit)
        # Adding 512 makes the adder round at 2**-14 and leaves the result in the low bits.
        bits = np.int64(bits_of(np.float32(place + addend))) & 0x7FFFFF
        cell = np.int64(tables[bits >> 14])
        lower, gap, number = cell & 0xFF, cell >> 8 & 0xFF, cell >> 16
        # Elements that are 128 apart in 256 share a random number: its low 14 bits and its high ones.
        j = i & last
        noise = np.int64(hash32(np.uint64(keys[b]), j & ~_HALF))
        noise = noise >> 18 if j & _HALF else noise & 0x3FFF
        up = (2 * noise + 1) * gap < 2 * (bits - (lower << 14))
        if direct:
            dst[i] = lower + gap if up else lower
        else:
            dst[i] = number + 1 if up else number

    return Steps(load, _nothing, _never, fetch, leave)


@functools.cache
def _restoring(real, source, how, plain):
    """Steps for (codes, dst, raw, steps, places, tables, half, width, elements of a whole block)."""
    zero, raw_value = real(0), real(np.nan)

    @inlined
    def integer(arguments, i):
        held, tables, width = arguments[0], arguments[5], arguments[7]
        if source == "sums":
            return held[np.uint64(i)]
        if source == "numbers":
            return tables[256 + np.int64(held[np.uint64(i)])]
        code = unpacked(held, (i // BLOCK) * ROW * width, i % BLOCK, width) & ((1 << width) - 1)
        return tables[256 + code]

    @inlined
    def load(arguments, b, i):
        return product(real(integer(arguments, i)) - arguments[6], arguments[3][b])

    @inlined
    def fetch(arguments, b, i):
        return zero if how == "write" else arguments[1][np.uint64(i)]

    @inlined
    def raw_element(arguments, b, i):
        raw = arguments[2]
        if plain == "values":
            return raw[i]
        block = arguments[8]
        at = np.int64(arguments[4][b]) * block + (i & (block - 1))
        return raw[at] if 0 <= at < raw.size else raw_value

    @inlined
    def leave(arguments, b, i, y, fetched, stays):
        if np.isnan(arguments[3][b]):
            if plain is None:
                return
            y = raw_element(arguments, b, i)
        if how == "add":
            y = fetched + y
        elif how == "subtract":
            y = fetched - y
        arguments[1][np.uint64(i)] = y

    return Steps(load, _nothing, _never, fetch, leave)
