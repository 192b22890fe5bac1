"""One block of floats to codes of a few bits and back: what the kernels of all block codecs are made of.

A block of `block` elements is cut into planes, as many as codes go into a byte: element j of every plane shares byte j,
so that all planes are read and written in order; plane p stands in the bits from ``p * width`` on. `planes` is a tuple,
``(0, 1, ...)``, because the length of a tuple is a part of its type: kernels are compiled for each number of planes.

======  ========================================  =====================================
planes  symmetric (`scales` is (n,))              asymmetric (`scales` is (n, 2))
======  ========================================  =====================================
1       -127 ... 127, times the scale             0 ... 255, times the scale + offset
2       -7 ... 7, times the scale                 0 ... 15, times the scale + offset
4       -1, 0, 1, times the scale                 0 ... 3, times the scale + offset
8       signs, times the mean magnitude
======  ========================================  =====================================

A block is *raw* when no scale fits it: its scale is then NaN, its codes are zero, and its elements stand in `raw`, one
such block after another.
"""

import numpy as np
from numba.extending import overload

from collcomp.kernels.cpu.bits import (
    fixed_point,
    from_magnitude,
    from_ordered,
    hash32,
    high14,
    low14,
    magnitude,
    nearest,
    ordered,
    sign_bit,
    signed_field,
    sum_of_magnitudes,
    unsigned_field,
    with_sign,
)
from collcomp.kernels.cpu.common import LARGEST, SMALLEST, copy, random32
from collcomp.kernels.cpu.jit import INLINED, inlined

__all__ = ["add_block", "add_to_block", "decode_block", "encode_block", "is_raw", "subtract_block"]

_RAW = np.float32(np.nan)
#: Keeps the largest element times the rounded inverse of the scale from rounding up past the last level.
_SHRINK = 1 - 2.0**-21


# ---------------------------------------------------------------------- the scale of a block


@inlined
def _fitting(peak, levels):
    """The scale that puts `peak` on the last of `levels`; NaN where it would leave the normal float32 range."""
    if peak == 0:
        return np.float32(0)
    if SMALLEST <= peak < LARGEST:
        return np.float32(peak / levels)
    return _RAW


@inlined
def _added(x, addend, i):
    """``x[i]``, to which ``addend[i]`` is added in place where there is an addend."""
    if addend is None:
        return x[i]
    total = x[i] + addend[i]
    x[i] = total
    return total


@inlined
def _largest(x, addend):
    largest = magnitude(x.dtype.type(0))
    for i in range(x.size):
        largest = max(largest, magnitude(_added(x, addend, i)))
    return from_magnitude(largest)


@inlined
def _range(x, addend):
    """The least and the largest element; one of them is NaN where any is."""
    low, high = ordered(x.dtype.type(np.inf)), ordered(x.dtype.type(-np.inf))
    for i in range(x.size):
        bits = ordered(_added(x, addend, i))
        low = min(low, bits)
        high = max(high, bits)
    return from_ordered(low), from_ordered(high)


@inlined
def _not_above(x):
    """The float32 next to `x`, from below."""
    narrow = np.float32(x)
    return np.nextafter(narrow, np.float32(-np.inf)) if narrow > x else narrow


@inlined
def _scale_and_offset(x, addend, levels):
    low, high = _range(x, addend)
    offset = _not_above(low)
    if not (offset > -LARGEST and high < LARGEST):
        return _RAW, np.float32(0)
    return _fitting(high - x.dtype.type(offset), levels), offset


@inlined
def _mean_magnitude(x, addend, used):
    total = sum_of_magnitudes(x[:used], addend)
    mean = total / x.dtype.type(used)
    return _RAW if mean == 0 and total > 0 else _fitting(mean, np.float32(1))


def _grid(x, addend, used, planes, scales):
    raise NotImplementedError


@overload(_grid, jit_options=INLINED)
def _grid_overload(x, addend, used, planes, scales):
    """Scale and offset (None without one) of block `x`, of which the elements from `used` on are padding."""
    width = 8 // len(planes)
    if width == 1:
        return lambda x, addend, used, planes, scales: (_mean_magnitude(x, addend, used), None)
    if scales.ndim == 1:
        levels = np.float32(2 ** (width - 1) - 1)
        return lambda x, addend, used, planes, scales: (_fitting(_largest(x, addend), levels), None)
    levels = np.float32(2**width - 1)
    return lambda x, addend, used, planes, scales: _scale_and_offset(x, addend, levels)


def _step_and_origin(scales, b, weight):
    raise NotImplementedError


@overload(_step_and_origin, jit_options=INLINED)
def _step_and_origin_overload(scales, b, weight):
    """`weight` times scale and offset (None without one) of block `b`, of the dtype of `weight`."""
    if scales.ndim == 1:
        return lambda scales, b, weight: (weight * scales[b], None)
    return lambda scales, b, weight: (weight * scales[b, 0], weight * scales[b, 1])


@inlined
def is_raw(scales, b):
    """Whether block `b` travels as it is."""
    step, _ = _step_and_origin(scales, b, np.float32(1))
    return np.isnan(step)


@inlined
def _set_scale(scales, b, scale, offset):
    if offset is None:
        scales[b] = scale
    else:
        scales[b, 0] = scale
        scales[b, 1] = offset


# ---------------------------------------------------------------------- elements to codes


@inlined
def _scaled(x, offset, inverse):
    if offset is None:
        return np.float32(x * inverse)
    return np.float32((x - offset) * inverse)


@inlined
def _round(low, high, i, offset, inverse, key):
    """The codes of ``low[i]`` and ``high[i]`` in the lowest bits of two int32.

    With a `key`, rounded up with the probability of the fraction: add 14 random bits below the point and cut off.
    """
    if key is None:
        return nearest(_scaled(low[i], offset, inverse)), nearest(_scaled(high[i], offset, inverse))
    noise = hash32(key, np.uint32(i))
    a = np.int32(fixed_point(_scaled(low[i], offset, inverse)) + low14(noise))
    b = np.int32(fixed_point(_scaled(high[i], offset, inverse)) + high14(noise))
    return np.int32(a >> 14), np.int32(b >> 14)


def _put(x, offset, inverse, codes, planes, key):
    raise NotImplementedError


@overload(_put, jit_options=INLINED)
def _put_overload(x, offset, inverse, codes, planes, key):
    """Round `x` to codes. Elements j and j + block / 2 share a random number, whatever the width."""
    if len(planes) == 1:

        def put(x, offset, inverse, codes, planes, key):
            half = x.size // 2
            low, high = x[:half], x[half:]
            for i in range(half):
                codes[i], codes[half + i] = _round(low, high, i, offset, inverse, key)
    elif len(planes) == 2:

        def put(x, offset, inverse, codes, planes, key):
            half = x.size // 2
            low, high = x[:half], x[half:]
            for i in range(half):
                a, b = _round(low, high, i, offset, inverse, key)
                codes[i] = (a & 15) | (b << 4)
    elif len(planes) == 4:

        def put(x, offset, inverse, codes, planes, key):
            half, quarter = x.size // 2, x.size // 4
            low, high = x[:half], x[half:]
            for i in range(quarter):
                a, c = _round(low, high, i, offset, inverse, key)
                b, d = _round(low, high, quarter + i, offset, inverse, key)
                codes[i] = (a & 3) | ((b & 3) << 2) | ((c & 3) << 4) | (d << 6)
    else:

        def put(x, offset, inverse, codes, planes, key):
            n = codes.size
            for i in range(n):
                byte = sign_bit(x[i])
                for p in range(1, 8):
                    byte |= sign_bit(x[p * n + i]) << p
                codes[i] = byte

    return put


@inlined
def _quantise(x, scale, offset, codes, planes, key, index):
    one = x.dtype.type(1 if key is None else _SHRINK)
    inverse = one / x.dtype.type(scale) if scale > 0 else x.dtype.type(0)
    random = None if key is None else random32(key, index)
    origin = None if offset is None else x.dtype.type(offset)
    _put(x, origin, inverse, codes, planes, random)


@inlined
def encode_block(x, addend, used, codes, planes, scales, b, raw, start, key, index):
    """Encode block `x` as block `b`, into `raw` from `start` on where it must; return whether it had to.

    Parameters
    ----------
    addend : ndarray or None
        Added to `x` first.
    used : int
        The elements from there on are padding.
    key : int or None
        Of the random stream; None rounds to nearest.
    index : int
        Number of the block in its message, which tells its part of the random stream.
    """
    scale, offset = _grid(x, addend, used, planes, scales)
    _set_scale(scales, b, scale, offset)
    if np.isnan(scale):
        copy(x, raw[start : start + x.size])
        for i in range(codes.size):
            codes[i] = 0
        return True
    _quantise(x, scale, offset, codes, planes, key, index)
    return False


# ---------------------------------------------------------------------- codes to elements


def _level(byte, planes, p, scales):
    raise NotImplementedError


@overload(_level, jit_options=INLINED)
def _level_overload(byte, planes, p, scales):
    """The integer that the code of plane `p` in `byte` stands for."""
    width = 8 // len(planes)
    if width == 1:
        return lambda byte, planes, p, scales: signed_field(byte, p * width, 1) | np.int32(1)
    if scales.ndim == 2:
        return lambda byte, planes, p, scales: unsigned_field(byte, p * width, width)
    return lambda byte, planes, p, scales: signed_field(byte, p * width, width)


@inlined
def _value(level, step, origin):
    if origin is None:
        return level * step
    return level * step + origin


@inlined
def decode_block(codes, planes, scales, b, y):
    """Write block `b`, which is not raw, to `y`."""
    step, origin = _step_and_origin(scales, b, y.dtype.type(1))
    for p in range(len(planes)):
        plane = y[p * codes.size : (p + 1) * codes.size]
        for i in range(codes.size):
            plane[i] = _value(y.dtype.type(_level(codes[i], planes, p, scales)), step, origin)


@inlined
def add_block(codes, planes, scales, b, weight, y):
    """``y += weight * block``, for block `b`, which is not raw."""
    step, origin = _step_and_origin(scales, b, y.dtype.type(weight))
    for p in range(len(planes)):
        plane = y[p * codes.size : (p + 1) * codes.size]
        for i in range(codes.size):
            plane[i] += _value(y.dtype.type(_level(codes[i], planes, p, scales)), step, origin)


def subtract_block(codes, planes, scales, b, x):
    """``x -= block``, for block `b`, which `x` was encoded to and which is not raw."""
    raise NotImplementedError


@overload(subtract_block, jit_options=INLINED)
def _subtract_block_overload(codes, planes, scales, b, x):
    if len(planes) < 8:
        return lambda codes, planes, scales, b, x: add_block(codes, planes, scales, b, -1, x)

    def subtract(codes, planes, scales, b, x):  # the signs need not be unpacked: `x` still has them
        step = x.dtype.type(scales[b])
        for i in range(x.size):
            x[i] -= with_sign(step, x[i])

    return subtract


@inlined
def add_to_block(codes, planes, scales, b, x, y):
    """``y = x + block``, for block `b`, which is not raw."""
    step, origin = _step_and_origin(scales, b, y.dtype.type(1))
    for p in range(len(planes)):
        given = x[p * codes.size : (p + 1) * codes.size]
        plane = y[p * codes.size : (p + 1) * codes.size]
        for i in range(codes.size):
            plane[i] = given[i] + _value(y.dtype.type(_level(codes[i], planes, p, scales)), step, origin)
