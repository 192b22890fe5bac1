"""Dithering: each element becomes one of two neighbouring levels at random, such that the mean is the element.

A block has one scale. Levels are spaced evenly: code c stands for ``(c - levels) * scale``; or as powers of two: for
``+-2**(|c - levels| - levels) * scale``, and 0 where c is `levels`. Codes are packed by width, 256 together; a block
is a multiple of that, but the last one is as long as what is left, and zeros fill its codes.

A block is *raw* when its largest magnitude is not finite, or its scale would leave the normal float32 range: its scale
is then NaN, its codes are zero, and its elements stand in `raw`, one such block after another.

Shapes, for n elements in blocks of `block`: `src`, `dst`, `acc`, `kept`, `residual` (n,) float32 or float64; `scales`
(ceil(n / block),) float32; `words` (8 * width * ceil(n / 256),) uint32; `raw` at least as many elements as the raw
blocks have, of the dtype of `src`; `codes` (256,) int32 is scratch. `natural` is None where the levels are spaced
evenly, so that kernels are compiled for one spacing.
"""

import numpy as np

from collcomp.kernels.cpu.bits import fixed_point, from_magnitude, hash32, high14, high23, low14, magnitude
from collcomp.kernels.cpu.common import (
    LARGEST,
    SMALLEST,
    accumulate,
    copy,
    largest_magnitude,
    random32,
    sum_of_squares,
)
from collcomp.kernels.cpu.jit import inlined, kernel
from collcomp.kernels.cpu.packing import BLOCK, LANES, pack, unpack

__all__ = ["decode", "decode_add", "encode"]

_RAW = np.float32(np.nan)
#: Keeps the largest element times the rounded inverse of the scale from rounding up past the last level.
_SHRINK = 1 - 2.0**-21


@inlined
def _scale(x, largest, euclidean, clip, steps):
    """The scale of block `x`: what the last level stands for, over the steps to there; NaN where it has to be raw."""
    peak = np.float64(from_magnitude(largest))
    if peak == 0:
        return np.float32(0)
    if not peak < LARGEST:
        return _RAW
    if euclidean:
        peak = np.sqrt(sum_of_squares(x))
    elif clip > 0:
        peak = min(peak, clip * np.sqrt(sum_of_squares(x) / x.size))
    if SMALLEST <= peak < LARGEST:
        return np.float32(peak / steps)
    return _RAW


@inlined
def _dither(x, inverse, levels, natural, key, first, codes):
    """The codes of up to 256 elements, number `first` and on of their block; `inverse` is that of the scale."""
    if natural is None:
        limit = np.float32(levels)
        half = x.size // 2
        low, high, low_codes, high_codes = x[:half], x[half : 2 * half], codes[:half], codes[half : 2 * half]
        for i in range(half):
            noise = hash32(key, np.uint32(first + i))
            a = min(max(np.float32(low[i] * inverse), -limit), limit)
            b = min(max(np.float32(high[i] * inverse), -limit), limit)
            low_codes[i] = (np.int32(fixed_point(a) + low14(noise)) >> 14 & 511) - (256 - levels)
            high_codes[i] = (np.int32(fixed_point(b) + high14(noise)) >> 14 & 511) - (256 - levels)
        if x.size % 2:
            noise = hash32(key, np.uint32(first + half))
            a = min(max(np.float32(x[2 * half] * inverse), -limit), limit)
            codes[2 * half] = (np.int32(fixed_point(a) + low14(noise)) >> 14 & 511) - (256 - levels)
    else:
        # The exponent is rounded up with the probability of the mantissa. Below the smallest level, which is added
        # there, the mantissa is the share of that level.
        smallest = from_magnitude(np.int32((128 - levels) << 23))
        for i in range(x.size):
            a = np.float32(x[i] * inverse)
            noise = high23(hash32(key, np.uint32(first + i)))
            m = from_magnitude(magnitude(a))
            is_level = np.int32(m >= smallest)
            t = m if m >= smallest else m + smallest
            k = np.int32(np.int32(magnitude(t) + noise) >> 23) + is_level - (128 - levels)
            codes[i] = levels - k if a < 0 else levels + k


@inlined
def _value(code, levels, natural):
    """What `code` stands for, in scales."""
    k = np.int32(code - levels)
    if natural is None:
        return np.float32(k)
    size = abs(k)
    power = from_magnitude(np.int32(np.int32(size + 127 - levels) << 23))
    power = power if size > 0 else np.float32(0)
    return -power if k < 0 else power


@inlined
def _write(codes, scale, levels, natural, y):
    for i in range(y.size):
        y[i] = y.dtype.type(_value(codes[i], levels, natural)) * scale


@inlined
def _add(codes, scale, levels, natural, y):
    for i in range(y.size):
        y[i] += y.dtype.type(_value(codes[i], levels, natural)) * scale


@kernel
def encode(src, residual, kept, scales, words, raw, codes, block, levels, width, natural, euclidean, clip, key):
    """Encode `src`.

    Parameters
    ----------
    residual : ndarray or None
        Is added to `src` before; gets what was rounded off (nothing in raw blocks).
    kept : ndarray or None
        Gets what `decode` will give; may be `src`.
    levels : int
        Positive levels, at most 127.
    euclidean : bool
        The last level stands for the block's Euclidean norm, else for its largest magnitude.
    clip : float
        Not 0: magnitudes above so many root mean squares of the block are clipped to that.
    key : int
        Of the random stream.
    """
    found = 0
    for b in range(scales.size):
        x = src[b * block : b * block + block]
        if residual is None:
            largest = largest_magnitude(x)
        else:
            y = residual[b * block : b * block + block]
            largest = accumulate(x, y)
            x = y
        scale = _scale(x, largest, euclidean, clip, levels if natural is None else 1)
        scales[b] = scale
        start = b * (block // BLOCK) * LANES * width
        if np.isnan(scale):
            copy(x, raw[found : found + x.size])
            found += x.size
            for i in range(start, start + (x.size + BLOCK - 1) // BLOCK * LANES * width):
                words[i] = 0
            if kept is not None:
                copy(x, kept[b * block : b * block + block])
            if residual is not None:
                for i in range(x.size):
                    x[i] = 0
            continue
        step = src.dtype.type(scale)
        inverse = src.dtype.type(_SHRINK) / step if scale > 0 else src.dtype.type(0)
        random = random32(key, b)
        for first in range(0, x.size, BLOCK):
            part = x[first : first + BLOCK]
            if part.size < BLOCK:
                codes[:] = 0
            _dither(part, inverse, levels, natural, random, first, codes)
            pack(codes, 0, words, start, width)
            start += LANES * width
            if kept is not None:
                _write(codes, step, levels, natural, kept[b * block + first : b * block + first + part.size])
            if residual is not None:
                _add(codes, -step, levels, natural, part)


@kernel
def decode(scales, words, raw, codes, block, levels, width, natural, dst):
    """Decode into `dst`; `raw` has the elements of as many blocks as `scales` has NaN."""
    found = 0
    for b in range(scales.size):
        y = dst[b * block : b * block + block]
        if np.isnan(scales[b]):
            copy(raw[found : found + y.size], y)
            found += y.size
            continue
        start = b * (block // BLOCK) * LANES * width
        for first in range(0, y.size, BLOCK):
            unpack(words, start, codes, 0, width)
            start += LANES * width
            _write(codes, dst.dtype.type(scales[b]), levels, natural, y[first : first + BLOCK])


@kernel
def decode_add(scales, words, raw, codes, block, levels, width, natural, acc):
    """Decode and add to `acc`; `raw` as for `decode`."""
    found = 0
    for b in range(scales.size):
        y = acc[b * block : b * block + block]
        if np.isnan(scales[b]):
            for i in range(y.size):
                y[i] += raw[found + i]
            found += y.size
            continue
        start = b * (block // BLOCK) * LANES * width
        for first in range(0, y.size, BLOCK):
            unpack(words, start, codes, 0, width)
            start += LANES * width
            _add(codes, acc.dtype.type(scales[b]), levels, natural, y[first : first + BLOCK])
