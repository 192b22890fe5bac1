"""Rotated values rounded at random to a lattice of integers, so that sums of codes are codes of sums.

A block of norm N is rotated, multiplied by ``sqrt(d) / N`` for its d elements (then it has about standard normal
values), clamped to -t ... t, and mapped to 0 ... g. There each value becomes one of the two integers of a table around
it, at random such that the mean is the value. Adding these integers over ranks adds the values, where all ranks use one
norm. Frames carry the numbers of the integers in the table, packed by width, 256 together.

A block is *raw* when its norm is not finite, or so large or small that the arithmetic could leave the normal float32
range. Its norm is then NaN.

Shapes, for n elements in blocks of `block`: `src`, `dst`, `kept`, `residual` (n,) float32 or float64; `norms`
(ceil(n / block),) float32; `words` (8 * width * m / 256,) uint32 and `sums` (m,) unsigned integers for m elements of
rotated blocks; `raw` at least as many elements as the raw blocks have. The last block is as long as what is left, and
once it is rotated as long as `last`.

Parameters that all functions share:

diagonal, last : ndarray
    Of the rotations of the whole blocks and of the last one (empty if that is whole).
tile : ndarray
    Scratch, as long as a block, of the dtype of `src`.
codes : ndarray
    Scratch, (256,) int32.
reach : float
    t / (g / 2): what a step of the lattice is worth before it is scaled back.
"""

import numpy as np

from collcomp.kernels.cpu.bits import from_magnitude, hash32, high14, low14, magnitude
from collcomp.kernels.cpu.blocks import accumulate, block_key, copy, largest_magnitude, sum_of_squares
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.packing import BLOCK, LANES, pack, unpack
from collcomp.kernels.cpu.rotation import LIMIT, rotate_block, unrotate_block

__all__ = ["decode", "decode_sums", "encode", "measure", "quantise"]

_SMALLEST = 2.0**-100
_RAW = np.float32(np.nan)
_HALF = BLOCK // 2


@inlined
def _norm(x, largest):
    """The Euclidean norm of block `x`; NaN where it has to be raw."""
    if from_magnitude(largest) == 0:
        return np.float32(0)
    if not from_magnitude(largest) < LIMIT:
        return _RAW
    norm = np.sqrt(sum_of_squares(x))
    if norm < _SMALLEST:
        return _RAW
    return np.float32(norm)


@inlined
def _fixed_point(x, factor, middle, top):
    """Where `x` lies in the lattice, in units of 2**-14, as int32."""
    place = min(max(np.float32(x * factor) + middle, np.float32(0)), top)
    # Adding 512 makes the adder round at 2**-14 and leaves the result in the low bits.
    return np.int32(magnitude(np.float32(place + np.float32(512))) & 0x7FFFFF)


@inlined
def _goes_up(place, cell, noise):
    """1 with the probability of the distance to the integer below, else 0, as int32."""
    beyond = np.int32(place - np.int32((cell >> 16) << 14))
    return np.int32(np.int32(np.int32(2 * noise + 1) * (cell >> 8 & 255)) < np.int32(2 * beyond))


@inlined
def _integers(x, factor, cells, key, first, codes):
    """The integers for 256 rotated values."""
    top = np.float32(cells.size - 1)
    middle = top / np.float32(2)
    for i in range(_HALF):
        noise = hash32(key, np.uint32(first + i))
        place = _fixed_point(x[i], factor, middle, top)
        cell = cells[np.uint32(place >> 14)]
        codes[i] = (cell >> 16) + _goes_up(place, cell, low14(noise)) * (cell >> 8 & 255)
        place = _fixed_point(x[_HALF + i], factor, middle, top)
        cell = cells[np.uint32(place >> 14)]
        codes[_HALF + i] = (cell >> 16) + _goes_up(place, cell, high14(noise)) * (cell >> 8 & 255)


@inlined
def _numbers(x, factor, cells, key, first, codes):
    """The numbers in the table of the integers for 256 rotated values."""
    top = np.float32(cells.size - 1)
    middle = top / np.float32(2)
    for i in range(_HALF):
        noise = hash32(key, np.uint32(first + i))
        place = _fixed_point(x[i], factor, middle, top)
        cell = cells[np.uint32(place >> 14)]
        codes[i] = (cell & 255) + _goes_up(place, cell, low14(noise))
        place = _fixed_point(x[_HALF + i], factor, middle, top)
        cell = cells[np.uint32(place >> 14)]
        codes[_HALF + i] = (cell & 255) + _goes_up(place, cell, high14(noise))


@inlined
def _factor(norm, size, reach):
    """From rotated values to the lattice."""
    return np.sqrt(np.float64(size)) / (np.float64(norm) * reach) if norm > 0 else 0.0


@inlined
def _step(norm, size, reach):
    """From the lattice to rotated values."""
    return np.float64(norm) * reach / np.sqrt(np.float64(size))


@inlined
def _subtract(y, x):
    for i in range(x.size):
        x[i] -= y[i]


@kernel
def encode(src, residual, kept, norms, words, raw, diagonal, last, tile, codes, cells, table, reach, width, key):
    """Encode `src`.

    Parameters
    ----------
    residual : ndarray or None
        Is added to `src` before; gets what was rounded off (nothing in raw blocks).
    kept : ndarray or None
        Gets what `decode` will give; may be `src`.
    cells : ndarray of int32, shape (g + 1,)
        For each unit of the lattice: the integer of the table below, 16 bits up; the distance to the one above, 8
        bits up; the number of the one below.
    table : ndarray of float32
        The integers less g / 2.
    key : int
        Of the random stream.
    """
    block = diagonal.size
    found = 0
    for b in range(norms.size):
        x = src[b * block : b * block + block]
        if residual is None:
            largest = largest_magnitude(x)
        else:
            y = residual[b * block : b * block + block]
            largest = accumulate(x, y)
            x = y
        d = diagonal if x.size == block else last
        norm = _norm(x, largest)
        norms[b] = norm
        start = b * (block // BLOCK) * LANES * width
        if np.isnan(norm):
            copy(x, raw[found : found + x.size])
            found += x.size
            for i in range(start, start + d.size // BLOCK * LANES * width):
                words[i] = 0
            if kept is not None:
                copy(x, kept[b * block : b * block + block])
            if residual is not None:
                for i in range(x.size):
                    x[i] = 0
            continue
        y = tile[: d.size]
        rotate_block(x, d, y)
        factor = tile.dtype.type(_factor(norm, d.size, reach))
        step = tile.dtype.type(_step(norm, d.size, reach))
        random = block_key(key, b)
        for first in range(0, d.size, BLOCK):
            part = y[first : first + BLOCK]
            _numbers(part, factor, cells, random, first, codes)
            pack(codes, 0, words, start, width)
            start += LANES * width
            if kept is not None or residual is not None:
                for i in range(BLOCK):
                    part[i] = tile.dtype.type(table[np.uint32(codes[i])]) * step
        if kept is not None:
            unrotate_block(y, d)
            copy(y[: x.size], kept[b * block : b * block + block])
        if residual is not None:
            unrotate_block(y, d)
            _subtract(y, x)


@kernel
def decode(norms, words, raw, diagonal, last, tile, codes, table, reach, width, adds, dst):
    """Decode into `dst`, or add to it; `raw` has the elements of as many blocks as `norms` has NaN."""
    block = diagonal.size
    found = 0
    for b in range(norms.size):
        x = dst[b * block : b * block + block]
        d = diagonal if x.size == block else last
        y = tile[: d.size]
        if np.isnan(norms[b]):
            copy(raw[found : found + x.size], y)
            found += x.size
        else:
            start = b * (block // BLOCK) * LANES * width
            step = tile.dtype.type(_step(norms[b], d.size, reach))
            for first in range(0, d.size, BLOCK):
                unpack(words, start, codes, 0, width)
                start += LANES * width
                part = y[first : first + BLOCK]
                for i in range(BLOCK):
                    part[i] = tile.dtype.type(table[np.uint32(codes[i])]) * step
            unrotate_block(y, d)
        if adds:
            for i in range(x.size):
                x[i] += y[i]
        else:
            copy(y[: x.size], x)


@kernel
def measure(src, residual, norms, block):
    """The norms of the blocks of `src`, infinite where raw; of ``src + residual``, left there, if that is not None."""
    for b in range(norms.size):
        x = src[b * block : b * block + block]
        if residual is None:
            norm = _norm(x, largest_magnitude(x))
        else:
            y = residual[b * block : b * block + block]
            norm = _norm(y, accumulate(x, y))
        norms[b] = np.float32(np.inf) if np.isnan(norm) else norm


@kernel
def quantise(src, residual, norms, sums, diagonal, last, tile, codes, cells, reach, key):
    """Write the integers for `src` to `sums`, for norms that all ranks share; zeros where they are infinite.

    If there is a residual, it holds the values instead of `src`, and gets what was rounded off.
    """
    block = diagonal.size
    half = tile.dtype.type(cells.size - 1) / tile.dtype.type(2)
    for b in range(norms.size):
        x = src[b * block : b * block + block] if residual is None else residual[b * block : b * block + block]
        d = diagonal if x.size == block else last
        out = sums[b * block : b * block + d.size]
        if np.isinf(norms[b]):
            for i in range(out.size):
                out[i] = 0
            continue
        y = tile[: d.size]
        rotate_block(x, d, y)
        factor = tile.dtype.type(_factor(norms[b], d.size, reach))
        step = tile.dtype.type(_step(norms[b], d.size, reach))
        random = block_key(key, b)
        for first in range(0, d.size, BLOCK):
            part, integers = y[first : first + BLOCK], out[first : first + BLOCK]
            _integers(part, factor, cells, random, first, codes)
            for i in range(BLOCK):
                integers[i] = codes[i]
            if residual is not None:
                for i in range(BLOCK):
                    part[i] = (tile.dtype.type(codes[i]) - half) * step
        if residual is not None:
            unrotate_block(y, d)
            _subtract(y, x)


@kernel
def decode_sums(sums, norms, offset, diagonal, last, tile, reach, dst):
    """Write what sums of integers stand for, which are `offset` = ranks * g / 2 for 0; nothing for infinite norms."""
    block = diagonal.size
    for b in range(norms.size):
        x = dst[b * block : b * block + block]
        if np.isinf(norms[b]):
            continue
        d = diagonal if x.size == block else last
        y = tile[: d.size]
        step = tile.dtype.type(_step(norms[b], d.size, reach))
        integers = sums[b * block : b * block + d.size]
        for i in range(d.size):
            y[i] = (tile.dtype.type(integers[i]) - tile.dtype.type(offset)) * step
        unrotate_block(y, d)
        copy(y[: x.size], x)
