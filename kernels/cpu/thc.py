"""Rotated values rounded at random to a lattice of integers, so that sums of codes are codes of sums.

A block of norm N is rotated, multiplied by ``sqrt(d) / N`` for its d elements (then it has about standard normal
values), clamped to -t ... t, and mapped to 0 ... g. There each value becomes one of the two integers of a table around
it, at random such that the mean is the value. Adding these integers over ranks adds the values, where all ranks use one
norm. Frames carry the numbers of the integers in the table, packed by width, 256 together.

A block is *raw* when its norm is not finite, or so large or small that the arithmetic could leave the normal float32
range. Its norm is then NaN.

Shapes, for n elements in blocks of `block`: `src`, `dst`, `kept`, `residual` (n,) float32 or float64; `norms`
(ceil(n / block),) float32; `packed` (8 * width * m / 256,) uint32 and `sums` (m,) unsigned integers for m elements of
rotated blocks; `raw` at least as many elements as the raw blocks have. The last block is as long as what is left, and
once it is rotated as long as `last`.

Parameters that functions share:

diagonal, last : ndarray
    Of the rotations of the whole blocks and of the last one (empty if that is whole).
tile, words, octets : ndarray
    Scratch: as long as a block, of the dtype of `src`; (2, 256) int32; (4, 256) uint8.
tables : ndarray of uint8, shape (4, 2, number of integers)
    For `_climb`: from 0 ... g to the integer of the table below, to the distance from there to the next, and to the
    number of that integer; from that number to the integer.
top, reach : int, float
    g, and what a step of the lattice is worth before it is scaled back: 2 t / g.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from collcomp.kernels.cpu.bits import from_magnitude, hash32, high14, low14, magnitude
from collcomp.kernels.cpu.common import accumulate, copy, largest_magnitude, random32, sum_of_squares
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.packing import BLOCK, LANES, pack, unpack
from collcomp.kernels.cpu.rotation import LIMIT, rotate_block, unrotate_block
from collcomp.kernels.cpu.vectors import element_pointer, load, same, splat, store

__all__ = ["decode", "decode_sums", "encode", "measure", "quantise"]

_SMALLEST = 2.0**-100
_RAW = np.float32(np.nan)
_HALF = BLOCK // 2
_I64 = ir.IntType(64)


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


@intrinsic
def _climb(typing_context, x, steps, y):
    """``y[i]`` = sum of those ``steps[1]`` whose ``steps[0]`` is at most ``x[i]``; (256,), (2, n), (256,) uint8.

    A table of n values that are looked up by comparing: gathering takes longer.
    """
    lanes, count = 64, BLOCK // 64
    byte = ir.IntType(8)

    def generate(context, builder, signature, args):
        def vectors(number):
            start = element_pointer(context, builder, signature.args[number], args[number], ir.Constant(_I64, 0))
            return [builder.gep(start, [ir.Constant(_I64, lanes * i)]) for i in range(count)]

        values = [load(builder, pointer, byte, lanes) for pointer in vectors(0)]
        sums = [cgutils.alloca_once_value(builder, same(byte, lanes, 0)) for _ in range(count)]
        table = context.make_array(signature.args[1])(context, builder, args[1])
        number = cgutils.unpack_tuple(builder, table.shape, 2)[1]
        with cgutils.for_range(builder, number) as loop:
            threshold = splat(builder, builder.load(builder.gep(table.data, [loop.index])), lanes)
            step = splat(builder, builder.load(builder.gep(table.data, [builder.add(loop.index, number)])), lanes)
            for value, total in zip(values, sums, strict=True):
                added = builder.select(builder.icmp_unsigned(">=", value, threshold), step, same(byte, lanes, 0))
                builder.store(builder.add(builder.load(total), added), total)
        for total, pointer in zip(sums, vectors(2), strict=True):
            store(builder, builder.load(total), pointer)
        return context.get_dummy_value()

    return types.void(x, steps, y), generate


@inlined
def _round(x, factor, top, tables, key, first, words, octets):
    """The integers for 256 rotated values, into ``octets[3]``."""
    places, cells, lower, gaps, integers = words[0], octets[0], octets[1], octets[2], octets[3]
    limit = np.float32(top)
    middle = limit / np.float32(2)
    for i in range(BLOCK):
        place = min(max(np.float32(x[i] * factor) + middle, np.float32(0)), limit)
        # Adding 512 makes the adder round at 2**-14 and leaves the result in the low bits.
        places[i] = magnitude(np.float32(place + np.float32(512))) & 0x7FFFFF
        cells[i] = places[i] >> 14
    _climb(cells, tables[0], lower)
    _climb(cells, tables[1], gaps)
    for i in range(_HALF):
        noise = hash32(key, np.uint32(first + i))
        integers[i] = _rounded(places[i], np.int32(lower[i]), np.int32(gaps[i]), low14(noise))
        j = _HALF + i
        integers[j] = _rounded(places[j], np.int32(lower[j]), np.int32(gaps[j]), high14(noise))


@inlined
def _rounded(place, lower, gap, noise):
    """`lower`, or the next integer with the probability of the distance of `place` from `lower`."""
    beyond = np.int32(place - np.int32(lower << 14))
    goes_up = np.int32(np.int32(np.int32(2 * noise) + 1) * gap) < np.int32(2 * beyond)
    return np.int32(lower + gap) if goes_up else lower


@inlined
def _pack(tables, words, octets, dst, start, width):
    """The numbers of ``octets[3]`` in the table, packed."""
    _climb(octets[3], tables[2], octets[0])
    copy(octets[0], words[1])
    pack(words[1], 0, dst, start, width)


@inlined
def _unpack(src, start, width, tables, words, octets):
    """Undo `_pack`."""
    unpack(src, start, words[1], 0, width)
    copy(words[1], octets[0])
    _climb(octets[0], tables[3], octets[3])


@inlined
def _scale_back(integers, half, step, y):
    for i in range(y.size):
        y[i] = (y.dtype.type(integers[i]) - half) * step


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
def encode(
    src, residual, kept, norms, packed, raw, diagonal, last, tile, tables, words, octets, top, reach, width, key
):
    """Encode `src`.

    Parameters
    ----------
    residual : ndarray or None
        Is added to `src` before; gets what was rounded off (nothing in raw blocks).
    kept : ndarray or None
        Gets what `decode` will give; may be `src`.
    key : int
        Of the random stream.
    """
    block, half = diagonal.size, tile.dtype.type(top) / tile.dtype.type(2)
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
                packed[i] = 0
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
        random = random32(key, b)
        for first in range(0, d.size, BLOCK):
            part = y[first : first + BLOCK]
            _round(part, factor, top, tables, random, first, words, octets)
            _pack(tables, words, octets, packed, start, width)
            start += LANES * width
            if kept is not None or residual is not None:
                _scale_back(octets[3], half, step, part)
        if kept is not None:
            unrotate_block(y, d)
            copy(y[: x.size], kept[b * block : b * block + block])
        if residual is not None:
            unrotate_block(y, d)
            _subtract(y, x)


@kernel
def decode(norms, packed, raw, diagonal, last, tile, tables, words, octets, top, reach, width, adds, dst):
    """Decode into `dst`, or add to it; `raw` has the elements of as many blocks as `norms` has NaN."""
    block, half = diagonal.size, tile.dtype.type(top) / tile.dtype.type(2)
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
                _unpack(packed, start, width, tables, words, octets)
                start += LANES * width
                _scale_back(octets[3], half, step, y[first : first + BLOCK])
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
def quantise(src, residual, norms, sums, diagonal, last, tile, tables, words, octets, top, reach, key):
    """Write the integers for `src` to `sums`, for norms that all ranks share; zeros where they are infinite.

    If there is a residual, it holds the values instead of `src`, and gets what was rounded off.
    """
    block = diagonal.size
    half = tile.dtype.type(top) / tile.dtype.type(2)
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
        random = random32(key, b)
        for first in range(0, d.size, BLOCK):
            part, integers = y[first : first + BLOCK], out[first : first + BLOCK]
            _round(part, factor, top, tables, random, first, words, octets)
            copy(octets[3], integers)
            if residual is not None:
                _scale_back(octets[3], half, step, part)
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
        _scale_back(integers, tile.dtype.type(offset), step, y)
        unrotate_block(y, d)
        copy(y[: x.size], x)
