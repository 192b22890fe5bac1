"""Blocks of small floats with one power of two as their scale (see `kernels.cpu.microscaled`, and there the formats).

Shapes, for messages of `count` elements in n blocks of `block`, a multiple of 32: `src`, `dst`, `acc`, `kept`,
`residual` (count,) float32 or float64; `scales` (n,); `codes` one for each element, their number rounded up to a
multiple of 32, or half as many for e2m1; `places` (n,) int32; `counters` int32.

To encode, a warp takes a block, or four of 32 elements at once: it has four rows of 32 elements on their way before it
looks at the first. Elements are read twice, the second time from the cache.

Raw blocks are left to others, as in `quantised`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from collcomp.kernels.cpu.minifloats import E2M1, E4M3, E5M2
from collcomp.kernels.cpu.minifloats import Format as Float
from collcomp.kernels.cuda.bits import hash32, integer_of, magnitude, random32
from collcomp.kernels.cuda.jit import LANES, THREADS, fine_grid, inlined, kernel, launch
from collcomp.kernels.cuda.minifloats import narrow_to_odd, rounding, widening
from collcomp.kernels.cuda.operands import IN_PLACE, fetching, settling, storing
from collcomp.kernels.cuda.primitives import float_of, largest_of_lanes, meet, product, value_of_lane
from collcomp.kernels.cuda.raw_blocks import RAW_BYTE, locate, raw_test
from collcomp.kernels.cuda.raw_blocks import copy_raw as copy_padded
from collcomp.kernels.cuda.sweeps import sweeping, tiles

__all__ = ["copy_raw", "decode", "decode_add", "encode", "encode_feedback", "encode_keep", "encode_sum", "locate"]

_WARPS = THREADS // LANES
#: Half a row: how far apart elements are whose codes stand in one byte.
_HALF = LANES // 2
_FLOATS = {
    (np.float32, np.uint8): E4M3,
    (np.float32, np.int8): E5M2,
    (np.uint8, np.uint8): E4M3,
    (np.uint8, np.int8): E2M1,
}


class _Format(NamedTuple):
    """What kernels are compiled for."""

    real: Any
    float: Float
    #: Scales are biased exponents, of one byte.
    bytes: bool
    block: int

    @classmethod
    def of(cls, elements: Any, scales: Any, codes: Any, block: int) -> _Format:
        kind = scales.dtype.type
        return cls(elements.dtype.type, _FLOATS[kind, codes.dtype.type], kind is np.uint8, block)

    @property
    def planes(self) -> int:
        """Codes in a byte: those of elements half a row apart."""
        return 8 // self.float.nbits

    @property
    def together(self) -> int:
        """Blocks that a warp encodes at once."""
        return 4 if self.block == LANES else 1


def encode(src: Any, scales: Any, codes: Any, block: int, key: int | None, counters: Any) -> None:
    """Encode `src`; `key` is that of the random stream, None rounds to nearest."""
    _encode("encode", src, src, (), 0, 1, scales, codes, block, key, counters)


def encode_keep(src: Any, kept: Any, scales: Any, codes: Any, block: int, key: int | None, counters: Any) -> None:
    """`encode`, and write what `decode` will give into `kept`, which may be `src`; raw blocks as they are."""
    _encode("keep", src, kept, (), 0, 1, scales, codes, block, key, counters)


def encode_feedback(
    src: Any, residual: Any, scales: Any, codes: Any, block: int, key: int | None, counters: Any
) -> None:
    """Encode ``src + residual`` and leave in `residual` what was rounded off, raw blocks until they are cleared."""
    _encode("feedback", src, residual, (), 0, 1, scales, codes, block, key, counters)


def encode_sum(
    scales_of_others: tuple[Any, ...],
    codes_of_others: tuple[Any, ...],
    own: Any,
    position: int,
    divisor: float,
    kept: Any,
    scales: Any,
    codes: Any,
    block: int,
    key: int | None,
    counters: Any,
) -> None:
    """Encode the sum over all ranks, in rank order; the operands of the others have no raw blocks.

    Parameters as for the CPU, but `kept` is always given: sums are formed there. It may be `own`.
    """
    others = (scales_of_others, tuple(one.view(np.uint8) for one in codes_of_others))
    _encode("sum", own, kept, others, position, divisor, scales, codes, block, key, counters)


def decode(scales: Any, codes: Any, raw: Any, block: int, dst: Any, places: Any = None) -> None:
    """Decode into `dst`."""
    _decode(False, scales, codes, raw, block, dst, places)


def decode_add(scales: Any, codes: Any, raw: Any, block: int, acc: Any, places: Any = None) -> None:
    """Decode and add to `acc`."""
    _decode(True, scales, codes, raw, block, acc, places)


def copy_raw(src: Any, scales: Any, places: Any, block: int, raw: Any, clear: bool) -> None:
    """Copy the raw blocks of `src` to `raw`, the last one filled up with zeros; `clear` them in `src` then."""
    copy_padded(src, scales, places, block, LANES, raw, clear)


def _encode(
    mode: str,
    src: Any,
    dst: Any,
    others: tuple[Any, ...],
    position: int,
    divisor: float,
    scales: Any,
    codes: Any,
    block: int,
    key: int | None,
    counters: Any,
) -> None:
    form = _Format.of(src, scales, codes, block)
    encoder = _encoder(form, mode, key is not None)
    arrays = (src, dst, *others, position, form.real(divisor), block)
    blocks = fine_grid(-(-len(scales) // (_WARPS * form.together)))
    launch(encoder, blocks, arrays, scales, codes.view(np.uint8), np.uint64(key or 0), counters)


def _decode(adds: bool, scales: Any, codes: Any, raw: Any, block: int, dst: Any, places: Any) -> None:
    decoder = _decoder(_Format.of(dst, scales, codes, block), adds, places is not None)
    others = (codes.view(np.uint8), dst) if places is None else (codes.view(np.uint8), dst, raw, places)
    launch(decoder, tiles(codes.size), scales, others)


# ---------------------------------------------------------------------- kernels


@functools.cache
def _placing(planes):
    """A function of k: the first element of those whose codes stand in byte k of a message's codes."""
    if planes == 1:

        @inlined
        def place(k):
            return k

    else:

        @inlined
        def place(k):
            return 2 * k - (k & (_HALF - 1))

    return place


@functools.cache
def _stepping(in_bytes):
    """A function of a scale: what codes are multiplied by, as float32."""
    if not in_bytes:

        @inlined
        def step_of(scale):
            return scale

        return step_of

    @inlined
    def step_of(scale):
        bits = np.int32(np.int32(scale) << 23)
        return float_of(bits if bits else np.int32(1 << 22))  # 0 is the subnormal number 2**-127

    return step_of


@functools.cache
def _fitting(form, stochastic):
    """A function of the largest magnitude of a block, as bits: its scale's exponent, biased by 127."""
    mantissa, bias = (23, 127) if form.real is np.float32 else (52, 1023)
    small = form.float
    limit, offset = (bias + 127) << mantissa, bias - 127 + small.exponent
    # OCP's rule lets numbers between the largest of the format and the next power of two saturate. The other one,
    # which unbiased rounding needs too, gives them the next scale.
    saturates = form.bytes and not stochastic
    fraction = (small.largest & ((1 << small.mantissa) - 1)) << (mantissa - small.mantissa)
    carry = 0 if saturates else (1 << mantissa) - 1 - fraction

    @inlined
    def fitting(largest):
        if largest >= limit:
            return np.int32(RAW_BYTE)
        return np.int32(max(((np.int64(largest) + carry) >> mantissa) - offset, 1))

    return fitting


def _measuring(form, fetch, store, fitting):
    """A function of (arrays, start, lane): the exponent of the scale of the block that begins at `start`.

    Of blocks that are taken together, lane l gets that of the l-th. All elements are fetched and stored once.
    """
    block, integer = form.block, integer_of(form.real)
    zero, together = integer(0), form.together > 1

    @inlined
    def one(arrays, i, stop):
        if i < stop:
            x = fetch(arrays, np.uint64(i))
            store(arrays, np.uint64(i), x)
            return magnitude(x)
        return zero

    @inlined
    def four(arrays, start, stop, lane):
        """The magnitudes of this lane's elements in four rows."""
        i = start + lane
        if start + 4 * LANES <= stop:
            i0, i1, i2, i3 = np.uint64(i), np.uint64(i + LANES), np.uint64(i + 2 * LANES), np.uint64(i + 3 * LANES)
            a, b, c, d = fetch(arrays, i0), fetch(arrays, i1), fetch(arrays, i2), fetch(arrays, i3)
            store(arrays, i0, a)
            store(arrays, i1, b)
            store(arrays, i2, c)
            store(arrays, i3, d)
            return magnitude(a), magnitude(b), magnitude(c), magnitude(d)
        return (
            one(arrays, i, stop),
            one(arrays, i + LANES, stop),
            one(arrays, i + 2 * LANES, stop),
            one(arrays, i + 3 * LANES, stop),
        )

    if together:

        @inlined
        def measure(arrays, start, lane):
            a, b, c, d = four(arrays, start, arrays[1].size, lane)
            a, b, c, d = largest_of_lanes(a), largest_of_lanes(b), largest_of_lanes(c), largest_of_lanes(d)
            low, high = b if lane & 1 else a, d if lane & 1 else c
            return fitting(high if lane & 2 else low)

        return measure

    @inlined
    def measure(arrays, start, lane):
        stop = min(start + block, arrays[1].size)
        largest = zero
        for row in range(start, stop, 4 * LANES):
            a, b, c, d = four(arrays, row, stop, lane)
            largest = max(largest, max(max(a, b), max(c, d)))
        return fitting(largest_of_lanes(largest))

    return measure


@functools.cache
def _part(form):
    """A function of (scales, codes, block, count, i): element i (uint64) of a message that another rank has encoded."""
    real, planes, value_of, step_of = form.real, form.planes, widening(form.float), _stepping(form.bytes)
    size, row, half, low = (np.uint64(n) for n in (form.block, LANES, _HALF, _HALF - 1))

    @inlined
    def part(scales, codes, block, count, i):
        if planes == 1:
            code = np.int32(codes[i])
        else:
            code = np.int32(codes[(i // row) * half + (i & low)]) >> (4 if i & half else 0)
        return product(real(value_of(code)), real(step_of(scales[i // size])))

    return part


@functools.cache
def _coding(form, stochastic):
    """A function of (x, inverse, i, noise): the code of `x`, the i-th element of its block."""
    code_of = rounding(form.float, stochastic, form.float.largest)
    narrow = narrow_to_odd if form.real is np.float64 and not stochastic else np.float32

    @inlined
    def code(x, inverse, i, noise):
        return code_of(narrow(product(x, inverse)), hash32(noise, i) if stochastic else noise)

    return code


@functools.cache
def _encoder(form, mode, stochastic):
    real, planes, block, together, in_bytes = form.real, form.planes, form.block, form.together, form.bytes
    sums, keeps = mode in IN_PLACE, mode == "keep"
    measure = _measuring(form, fetching(mode, _part(form)), storing(mode), _fitting(form, stochastic))
    settle, place = settling(mode), _placing(planes)
    code_of, value_of = _coding(form, stochastic), widening(form.float)
    width, zero, nan = block // planes, real(0), np.float32(np.nan)

    @kernel
    def encoder(arrays, scales, codes, key, counters):
        held = arrays[1] if sums else arrays[0]
        dst, count = arrays[1], held.size
        lane = cuda.threadIdx.x % LANES
        warps = cuda.gridsize(1) // LANES
        for first in range(cuda.grid(1) // LANES * together, len(scales), warps * together):
            exponent = measure(arrays, first * block, lane)
            if planes > 1 and sums:
                meet()  # lanes read what others have stored
            noise = np.int64(random32(key, first + lane % together)) if stochastic else np.int64(0)
            if lane < together and first + lane < len(scales):
                b = np.uint64(first + lane)
                if in_bytes:
                    scales[b] = exponent
                else:
                    scales[b] = nan if exponent == RAW_BYTE else float_of(np.int32(exponent << 23))
                if exponent == RAW_BYTE:
                    cuda.atomic.add(counters, 0, 1)
            for row in range(0, together * width, LANES):
                k = row + lane
                its_exponent, its_noise = exponent, noise
                if together > 1:
                    its_exponent = value_of_lane(exponent, k // width)
                    if stochastic:
                        its_noise = value_of_lane(noise, k // width)
                at = first * width + k
                if at >= codes.size:
                    continue
                raw = its_exponent == RAW_BYTE
                step = real(float_of(np.int32(its_exponent << 23)))
                inverse = real(float_of(np.int32((254 - its_exponent) << 23)))
                byte = np.int32(0)
                for plane in range(planes):
                    element = place(at) + plane * _HALF
                    i = np.uint64(element)
                    x = held[i] if element < count else zero
                    if not raw:
                        inside = element & (LANES - 1) if together > 1 else k
                        code = code_of(x, inverse, inside, np.uint64(its_noise))
                        byte |= code << (4 * plane)
                        if element < count:
                            settle(dst, i, x, product(real(value_of(code)), step))
                    elif keeps and element < count:
                        dst[i] = x
                codes[np.uint64(at)] = byte

    return encoder


@functools.cache
def _decoder(form, adds, with_raw):
    real, planes, block = form.real, form.planes, form.block
    value_of, step_of, is_raw, place = (
        widening(form.float),
        _stepping(form.bytes),
        raw_test(form.bytes),
        _placing(planes),
    )
    width, zero, nan = np.uint64(block // planes), real(0), real(np.nan)

    @inlined
    def get(arrays, k):
        scales, codes, dst = arrays[0], arrays[1][0], arrays[1][1]
        low, high, element = zero, zero, place(np.int64(k))
        if adds:
            if element < dst.size:
                low = dst[np.uint64(element)]
            if planes > 1 and element + _HALF < dst.size:
                high = dst[np.uint64(element + _HALF)]
        return codes[k], scales[k // width], low, high

    @inlined
    def raw_element(arrays, i):
        if not with_raw:
            return nan
        raw, places = arrays[1][2], arrays[1][3]
        b = i // block
        at = np.int64(places[b]) * block + (i - b * block)
        return raw[at] if at < raw.size else nan

    @inlined
    def put(arrays, k, read, first):
        dst = arrays[1][1]
        byte, scale, low, high = read
        for plane in range(planes):
            element = place(np.int64(k)) + plane * _HALF
            if element < dst.size:
                if is_raw(scale):
                    value = raw_element(arrays, element)
                else:
                    value = product(real(value_of(np.int32(byte) >> (4 * plane))), real(step_of(scale)))
                if adds:
                    value += high if plane else low
                dst[np.uint64(element)] = value

    sweep = sweeping(get, put)

    @kernel
    def decoder(scales, others):
        sweep((scales, others), others[0].size)

    return decoder
