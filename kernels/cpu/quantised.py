"""Block quantisation: each block of floats becomes one scale and as many small integers.

The dtype of `codes` tells their width. int8: one code an element, -127 ... 127. uint8: two 4-bit codes a byte,
-7 ... 7, element j of a block in the low half beside element j + block / 2 in the high half, so that both halves are
read and written in order.

A block is *raw* when its largest magnitude is not finite, or so large or small that its scale would leave the normal
float32 range: its scale is then NaN, its codes are zero, and its elements stand in `raw`, one such block after another.

Shapes, for n blocks of `block` elements (even): `src`, `dst`, `acc`, `kept`, `residual` (n * block,) float32 or
float64; `scales` (n,) float32; `codes` (n * block,) int8 or (n * block / 2,) uint8; `raw` at least as many elements
as the raw blocks have, of the dtype of `src`.

Results must not depend on the CPU: multiplications and additions are never contracted.
"""

import numpy as np
from numba import types
from numba.extending import overload

from collcomp.kernels.cpu.bits import fixed_point, from_magnitude, hash32, high14, low14, magnitude, nearest
from collcomp.kernels.cpu.jit import INLINED, inlined, kernel
from collcomp.kernels.cpu.random import random32

__all__ = ["count_raw", "decode", "decode_add", "encode", "encode_feedback", "encode_keep", "encode_sum"]

_SMALLEST = 2.0**-119
_LARGEST = 2.0**127
_RAW = np.float32(np.nan)
#: Keeps the largest element times the rounded inverse of the scale from rounding up past the last level.
_SHRINK = 1 - 2.0**-21


def _levels(codes):
    raise NotImplementedError


@overload(_levels, jit_options=INLINED)
def _levels_overload(codes):
    levels = np.float32(127 if codes.dtype == types.int8 else 7)
    return lambda codes: levels


def _put(codes, half, i, low, high):
    raise NotImplementedError


@overload(_put, jit_options=INLINED)
def _put_overload(codes, half, i, low, high):
    if codes.dtype == types.int8:

        def put(codes, half, i, low, high):
            codes[i] = low
            codes[half + i] = high
    else:

        def put(codes, half, i, low, high):
            codes[i] = (low & 15) | (high << 4)

    return put


def _split(codes, size):
    raise NotImplementedError


@overload(_split, jit_options=INLINED)
def _split_overload(codes, size):
    """Elements of a block of `size` that `_low` gives; `_high` gives the others."""
    if codes.dtype == types.int8:
        return lambda codes, size: size
    return lambda codes, size: size // 2


def _low(codes, i):
    raise NotImplementedError


@overload(_low, jit_options=INLINED)
def _low_overload(codes, i):
    if codes.dtype == types.int8:
        return lambda codes, i: codes[i]
    return lambda codes, i: np.int32(np.int32((codes[i] & 15) ^ 8) - 8)


def _high(codes, i):
    raise NotImplementedError


@overload(_high, jit_options=INLINED)
def _high_overload(codes, i):
    return lambda codes, i: np.int32(np.int32((codes[i] >> 4) ^ 8) - 8)


@inlined
def _largest(x):
    largest = magnitude(x[0])
    for i in range(x.size):
        largest = max(largest, magnitude(x[i]))
    return largest


@inlined
def _accumulate(x, y):
    """``y += x``, and the largest magnitude of the sums."""
    largest = magnitude(y[0] + x[0])
    for i in range(x.size):
        total = x[i] + y[i]
        y[i] = total
        largest = max(largest, magnitude(total))
    return largest


@inlined
def _scale(largest, levels):
    """The scale of a block with this largest magnitude; NaN where it has to travel raw."""
    peak = from_magnitude(largest)
    if peak == 0:
        return np.float32(0)
    if _SMALLEST <= peak < _LARGEST:
        return np.float32(peak / levels)
    return _RAW


@inlined
def _copy(x, y):
    for i in range(x.size):
        y[i] = x[i]


@inlined
def _quantise_nearest(x, scale, codes):
    half = x.size // 2
    low, high = x[:half], x[half:]
    inverse = x.dtype.type(1) / x.dtype.type(scale) if scale > 0 else x.dtype.type(0)
    for i in range(half):
        _put(codes, half, i, nearest(np.float32(low[i] * inverse)), nearest(np.float32(high[i] * inverse)))


@inlined
def _quantise_stochastic(x, scale, codes, key):
    """Round up with the probability of the fraction: add 14 random bits below the point and cut off."""
    half = x.size // 2
    low, high = x[:half], x[half:]
    inverse = x.dtype.type(_SHRINK) / x.dtype.type(scale) if scale > 0 else x.dtype.type(0)
    for i in range(half):
        noise = hash32(key, np.uint32(i))
        a = np.int32(fixed_point(np.float32(low[i] * inverse)) + low14(noise))
        b = np.int32(fixed_point(np.float32(high[i] * inverse)) + high14(noise))
        _put(codes, half, i, np.int32(a >> 14), np.int32(b >> 14))


@inlined
def _encode_block(x, largest, codes, raw, start, key, index):
    """Encode block `x`, into `raw` from `start` on where it must; return its scale."""
    scale = _scale(largest, _levels(codes))
    if np.isnan(scale):
        _copy(x, raw[start : start + x.size])
        for i in range(codes.size):
            codes[i] = 0
    elif key is None:
        _quantise_nearest(x, scale, codes)
    else:
        _quantise_stochastic(x, scale, codes, random32(key, index))
    return scale


@inlined
def _decode_block(codes, scale, y):
    split = _split(codes, y.size)
    low, high = y[:split], y[split:]
    step = y.dtype.type(scale)
    for i in range(low.size):
        low[i] = y.dtype.type(_low(codes, i)) * step
    for i in range(high.size):
        high[i] = y.dtype.type(_high(codes, i)) * step


@inlined
def _add_block(codes, step, y):
    split = _split(codes, y.size)
    low, high = y[:split], y[split:]
    for i in range(low.size):
        low[i] += y.dtype.type(_low(codes, i)) * step
    for i in range(high.size):
        high[i] += y.dtype.type(_high(codes, i)) * step


@kernel
def encode(src, scales, codes, raw, block, key, first):
    """Encode `src`.

    Parameters
    ----------
    key : int or None
        Of the random stream; None rounds to nearest.
    first : int
        Number of the first block in its message, which counts the random stream on.

    Returns
    -------
    int
        Number of raw blocks.
    """
    width = block * codes.size // src.size
    found = 0
    for b in range(scales.size):
        x = src[b * block : b * block + block]
        scale = _encode_block(x, _largest(x), codes[b * width : b * width + width], raw, found * block, key, first + b)
        scales[b] = scale
        if np.isnan(scale):
            found += 1
    return found


@kernel
def encode_keep(src, kept, scales, codes, raw, block, key, first):
    """`encode`, and write what `decode` will give into `kept`, which may be `src`."""
    width = block * codes.size // src.size
    found = 0
    for b in range(scales.size):
        x = src[b * block : b * block + block]
        y = kept[b * block : b * block + block]
        c = codes[b * width : b * width + width]
        scale = _encode_block(x, _largest(x), c, raw, found * block, key, first + b)
        scales[b] = scale
        if np.isnan(scale):
            _copy(x, y)
            found += 1
        else:
            _decode_block(c, scale, y)
    return found


@kernel
def encode_sum(
    scales_of_others, codes_of_others, own, position, divisor, total, kept, scales, codes, raw, block, key, first
):
    """Encode the sum over all ranks, in rank order, in one pass; the operands of the others have no raw blocks.

    Parameters
    ----------
    scales_of_others, codes_of_others : tuples of ndarray
        Operands of the other ranks, by rank.
    own : ndarray
        This rank's operand; may share memory with `kept`.
    position : int
        This rank.
    divisor : float
        What the sum is divided by.
    total : ndarray
        Room for the sum of one block.
    kept : ndarray
        Gets what `decode` will give.

    Returns
    -------
    int
        Number of raw blocks.
    """
    width = block * codes.size // own.size
    found = 0
    for b in range(scales.size):
        x = own[b * block : b * block + block]
        if position == 0:
            _copy(x, total)
        for i in range(len(codes_of_others)):
            c = codes_of_others[i][b * width : b * width + width]
            if i == 0 and position > 0:
                _decode_block(c, scales_of_others[i][b], total)
            else:
                _add_block(c, total.dtype.type(scales_of_others[i][b]), total)
            if i + 1 == position:
                for j in range(block):
                    total[j] += x[j]
        if divisor != 1:
            for j in range(block):
                total[j] /= divisor
        y = kept[b * block : b * block + block]
        c = codes[b * width : b * width + width]
        scale = _encode_block(total, _largest(total), c, raw, found * block, key, first + b)
        scales[b] = scale
        if np.isnan(scale):
            _copy(total, y)
            found += 1
        else:
            _decode_block(c, scale, y)
    return found


@kernel
def encode_feedback(src, residual, scales, codes, raw, block, key, first):
    """Encode ``src + residual`` and leave in `residual` what was rounded off (nothing in raw blocks)."""
    width = block * codes.size // src.size
    found = 0
    for b in range(scales.size):
        x = src[b * block : b * block + block]
        e = residual[b * block : b * block + block]
        c = codes[b * width : b * width + width]
        largest = _accumulate(x, e)
        scale = _encode_block(e, largest, c, raw, found * block, key, first + b)
        scales[b] = scale
        if np.isnan(scale):
            for i in range(block):
                e[i] = 0
            found += 1
        else:
            _add_block(c, -e.dtype.type(scale), e)
    return found


@kernel
def count_raw(scales):
    """Number of NaN among `scales`."""
    found = 0
    for b in range(scales.size):
        found += np.isnan(scales[b])
    return found


@kernel
def decode(scales, codes, raw, block, dst):
    """Decode into `dst`; `raw` has as many blocks as `scales` has NaN."""
    width = block * codes.size // dst.size
    found = 0
    for b in range(scales.size):
        y = dst[b * block : b * block + block]
        if np.isnan(scales[b]):
            _copy(raw[found * block : found * block + block], y)
            found += 1
        else:
            _decode_block(codes[b * width : b * width + width], scales[b], y)


@kernel
def decode_add(scales, codes, raw, block, acc):
    """Decode and add to `acc`; `raw` as for `decode`."""
    width = block * codes.size // acc.size
    found = 0
    for b in range(scales.size):
        y = acc[b * block : b * block + block]
        if np.isnan(scales[b]):
            x = raw[found * block : found * block + block]
            for i in range(block):
                y[i] += x[i]
            found += 1
        else:
            _add_block(codes[b * width : b * width + width], y.dtype.type(scales[b]), y)
