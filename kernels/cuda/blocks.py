"""One block of floats to codes of a few bits and back, by one warp: the format is that of `kernels.cpu.blocks`.

Lane l of a warp takes the bytes l, l + 32, ... of a block's codes, and the elements of all planes that stand in them,
so that neighbours read and write neighbours. A block's elements are read twice, the second time from the cache.

Functions are made for a `Format`: what depends on it is decided when they are compiled.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from collcomp.kernels.cuda.bits import (
    LARGEST,
    SMALLEST,
    fixed_point,
    hash32,
    integer_of,
    magnitude,
    nearest,
    ordering,
)
from collcomp.kernels.cuda.jit import LANES, inlined
from collcomp.kernels.cuda.primitives import (
    bits_of,
    float_of,
    largest_of_lanes,
    product,
    smallest_of_lanes,
    sum_by_halves,
    value_of_lane,
)

__all__ = ["Format", "coding", "decoding", "inverse_of", "measuring", "measuring_whole", "scale_places"]

_RAW = np.float32(np.nan)
#: Keeps the largest element times the rounded inverse of the scale from rounding up past the last level.
_SHRINK = 1 - 2.0**-21


class Format(NamedTuple):
    """What kernels are compiled for.

    Attributes
    ----------
    real : type
        Of the elements: ``np.float32`` or ``np.float64``.
    planes : int
        Codes in a byte.
    asymmetric : bool
        There is an offset beside each scale.
    """

    real: Any
    planes: int
    asymmetric: bool

    @classmethod
    def of(cls, elements: Any, scales: Any, planes: tuple[int, ...]) -> Format:
        """The format of such arrays."""
        return cls(elements.dtype.type, len(planes), scales.ndim == 2)

    @property
    def width(self) -> int:
        """Bits of a code."""
        return 8 // self.planes

    @property
    def multiple(self) -> int:
        """What the length of a coded block is a multiple of: even, and whole bytes of codes."""
        return max(2, self.planes)


@functools.cache
def _fitting(real, levels):
    least, most, count = real(SMALLEST), real(LARGEST), np.float32(levels)

    @inlined
    def fitting(peak):
        """The scale that puts `peak` on the last of the levels; NaN where it would leave the normal float32 range."""
        if peak == 0:
            return np.float32(0)
        if least <= peak < most:
            return np.float32(peak / count)
        return _RAW

    return fitting


@functools.cache
def scale_places(asymmetric):
    """Two functions: ``put(scales, b, scale, offset)`` of block b, and ``get(scales, b)``, whose offset may be 0."""
    if asymmetric:

        @inlined
        def put(scales, b, scale, offset):
            scales[b, 0] = scale
            scales[b, 1] = offset

        @inlined
        def get(scales, b):
            return scales[b, 0], scales[b, 1]

    else:

        @inlined
        def put(scales, b, scale, offset):
            scales[b] = scale

        @inlined
        def get(scales, b):
            return scales[b], np.float32(0)

    return put, get


@functools.cache
def gathering(form):
    """What is gathered of a block's elements: three functions.

    ``begin()`` gives what one lane has gathered of no element, ``take(held, x)`` of one more, and
    ``finish(held, used)`` scale and offset (0 without one) of a block of so many, once all lanes have gathered theirs.
    """
    real, integer = form.real, integer_of(form.real)
    if form.width == 1:
        fitting = _fitting(real, 1)

        @inlined
        def begin():
            return real(0)

        @inlined
        def take(held, x):
            return held + abs(x)

        @inlined
        def finish(total, used):
            mean = total / real(used)
            scale = fitting(mean)
            return _RAW if mean == 0 and total > 0 else scale, np.float32(0)

        return begin, take, finish
    if not form.asymmetric:
        fitting = _fitting(real, 2 ** (form.width - 1) - 1)

        @inlined
        def begin():
            return integer(0)

        @inlined
        def take(held, x):
            return max(held, magnitude(x))

        @inlined
        def finish(held, used):
            return fitting(float_of(largest_of_lanes(held))), np.float32(0)

        return begin, take, finish
    fitting = _fitting(real, 2**form.width - 1)
    ordered, from_ordered = ordering(real)
    limits = np.iinfo(integer)
    least, most = integer(limits.min), integer(limits.max)
    limit = real(LARGEST)

    @inlined
    def begin():
        return most, least

    @inlined
    def take(held, x):
        bits = ordered(x)
        return min(held[0], bits), max(held[1], bits)

    @inlined
    def finish(held, used):
        lowest, highest = from_ordered(smallest_of_lanes(held[0])), from_ordered(largest_of_lanes(held[1]))
        offset = np.float32(lowest)
        if real(offset) > lowest:  # the float32 next to it, from below
            bits = magnitude(offset)
            if offset > 0:
                offset = float_of(np.int32(bits - 1))
            elif offset < 0:
                offset = -float_of(np.int32(bits + 1))
            else:
                offset = -float_of(np.int32(1))
        if not (real(offset) > -limit and highest < limit):
            return _RAW, np.float32(0)
        return fitting(highest - real(offset)), offset

    return begin, take, finish


@functools.cache
def measuring(form, element):
    """A function of (arrays, start, used, lane) that gives scale and offset (0 without one) of the block at `start`.

    Parameters
    ----------
    element : function
        Of (arrays, i): element i of the message, which it may store on the way. It is called once for each.
    """
    begin, take, finish = gathering(form)
    if form.width > 1:

        @inlined
        def measure(arrays, start, used, lane):
            held = begin()
            for i in range(lane, used, LANES):
                held = take(held, element(arrays, start + i))
            return finish(held, used)

        return measure

    @inlined
    def measure(arrays, start, used, lane):
        # The order of `kernels.cpu.bits.sum_of_magnitudes`: rows of 32 by lanes, lanes by halves, then the rest.
        held = begin()
        whole = used - used % LANES
        for i in range(lane, whole, LANES):
            held = take(held, element(arrays, start + i))
        total = sum_by_halves(held)
        rest = begin()
        if lane < used - whole:
            rest = take(rest, element(arrays, start + whole + lane))
        for i in range(used - whole):
            total += value_of_lane(rest, i)
        return finish(total, used)

    return measure


@functools.cache
def measuring_whole(form, block):
    """A function of (x): scale and offset of a block whose elements lane l has in order, those at l, l + 32, ..."""
    begin, take, finish = gathering(form)
    rows, sums = block // LANES, form.width == 1

    @inlined
    def measure(x):
        held = begin()
        for k in range(rows):
            held = take(held, x[k])
        if sums:
            held = sum_by_halves(held)
        return finish(held, block)

    return measure


@functools.cache
def coding(form, stochastic):
    """A function of (x, i, half, offset, inverse, key): the code of `x`, element i of its block, in the lowest bits.

    `half` is half the block's length, `key` the random number of the block, both for stochastic rounding: up with the
    probability of the fraction.
    """
    real, asymmetric = form.real, form.asymmetric
    mask = 2**form.width - 1
    if form.width == 1:

        @inlined
        def code(x, i, half, offset, inverse, key):
            return 1 if bits_of(x) < 0 else 0

        return code

    @inlined
    def scaled(x, offset, inverse):
        if asymmetric:
            return np.float32(product(x - real(offset), inverse))
        return np.float32(product(x, inverse))

    if not stochastic:

        @inlined
        def code(x, i, half, offset, inverse, key):
            return nearest(scaled(x, offset, inverse)) & mask

        return code

    @inlined
    def code(x, i, half, offset, inverse, key):
        # Elements i and i + half share a random number: its low 14 bits and its high ones.
        low = i < half
        noise = np.int64(hash32(key, i if low else i - half))
        below = noise & 0x3FFF if low else noise >> 18
        return ((np.int64(fixed_point(scaled(x, offset, inverse))) + below) >> 14) & mask

    return code


@functools.cache
def inverse_of(form, stochastic):
    """A function of a scale: what elements are multiplied by, 0 for 0."""
    real = form.real
    one = real(_SHRINK if stochastic else 1)

    @inlined
    def inverse(scale):
        return one / real(scale) if scale > 0 else real(0)

    return inverse


@functools.cache
def decoding(form):
    """A function of (byte, plane, scale, offset): the element that a code stands for."""
    real, width, asymmetric = form.real, form.width, form.asymmetric
    mask, half = 2**width - 1, 2 ** (width - 1)

    @inlined
    def value(byte, plane, scale, offset):
        level = (np.int32(byte) >> (plane * width)) & mask
        if asymmetric:
            return product(real(np.int32(level)), real(scale)) + real(offset)
        if width == 1:
            level = -1 if level else 1
        elif level >= half:
            level -= 2 * half
        return product(real(np.int32(level)), real(scale))

    return value
