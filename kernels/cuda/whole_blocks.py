"""Blocks that are whole, and of a length known to the compiler: each warp keeps one in registers.

Every element is read once, and all loads of a lane are on the way before the first is used. Lane l has the elements
l, l + 32, ... of a block: where a plane is a multiple of 32 long, those are also the elements that stand in its bytes.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.bits import random32
from collcomp.kernels.cuda.blocks import coding, decoding, inverse_of, measuring_whole, scale_places
from collcomp.kernels.cuda.jit import LANES, inlined
from collcomp.kernels.cuda.operands import fetching, settling, with_nan_of

__all__ = ["decoding_whole", "encoding_whole", "fit_registers", "placing"]

#: Elements that a lane keeps at most.
_MOST_ROWS = 16


def fit_registers(form, block):
    """Whether blocks of this length are kept in registers."""
    return block % (LANES * form.planes) == 0 and block <= _MOST_ROWS * LANES


@functools.cache
def _operand(form, mode, block):
    """A function of (arrays, b, lane, k): the k-th element that lane `lane` has of block b."""
    if mode != "sum":
        fetch = fetching(mode, None)

        @inlined
        def operand(arrays, b, lane, k):
            return fetch(arrays, np.uint64(b * block + lane + k * LANES))

        return operand
    planes, value_of, (_, scale_of) = form.planes, decoding(form), scale_places(form.asymmetric)
    width = block // planes
    rows_of_plane = width // LANES

    @inlined
    def part(scales, codes, b, lane, k):
        scale, offset = scale_of(scales, b)
        byte = codes[np.uint64(b * width + lane + k % rows_of_plane * LANES)]
        return value_of(byte, k // rows_of_plane, scale, offset)

    @inlined
    def operand(arrays, b, lane, k):
        own, _, scales, codes, position, divisor, _ = arrays
        x = own[np.uint64(b * block + lane + k * LANES)]
        total = part(scales[0], codes[0], b, lane, k)
        if position < 2:  # either order of two operands gives the same sum
            total = x + total
        for rank in range(1, len(scales)):
            total += part(scales[rank], codes[rank], b, lane, k)
            if rank + 1 == position:
                total += x
        if divisor != 1:
            total /= divisor
        return with_nan_of(x, total)

    return operand


@functools.cache
def encoding_whole(form, mode, stochastic, block):
    """A function of (arrays, b, lane, scales, codes, key, counters) that encodes block b."""
    real, planes, writes = form.real, form.planes, mode != "encode"
    rows, width, half = block // LANES, block // planes, block // 2
    rows_of_plane = rows // planes
    operand, measure, settle = _operand(form, mode, block), measuring_whole(form, block), settling(mode)
    code_of, inverse_of_scale, value_of = coding(form, stochastic), inverse_of(form, stochastic), decoding(form)
    put_scale, _ = scale_places(form.asymmetric)

    @inlined
    def encode(arrays, b, lane, scales, codes, key, counters):
        x = cuda.local.array(rows, real)
        for k in range(rows):
            x[k] = operand(arrays, b, lane, k)
        scale, offset = measure(x)
        raw = np.isnan(scale)
        if lane == 0:
            put_scale(scales, b, scale, offset)
            if raw:
                cuda.atomic.add(counters, 0, 1)
        inverse = inverse_of_scale(scale)
        noise = random32(key, b) if stochastic else np.uint64(0)
        start, first = b * block + lane, b * width + lane
        for m in range(rows_of_plane):
            byte = 0
            for plane in range(planes):
                k = plane * rows_of_plane + m
                code = code_of(x[k], k * LANES + lane, half, offset, inverse, noise)
                byte |= code << (plane * (8 // planes))
            if raw:
                byte = 0
            codes[np.uint64(first + m * LANES)] = byte
            if writes:
                for plane in range(planes):
                    k = plane * rows_of_plane + m
                    at = np.uint64(start + k * LANES)
                    if raw:
                        arrays[1][at] = x[k]
                    else:
                        settle(arrays[1], at, x[k], value_of(byte, plane, scale, offset))

    return encode


@functools.cache
def placing(adds):
    """A function of (dst, i, value) that writes or adds."""
    if adds:

        @inlined
        def place(dst, i, value):
            dst[i] += value

    else:

        @inlined
        def place(dst, i, value):
            dst[i] = value

    return place


@functools.cache
def decoding_whole(form, adds, block):
    """A function of (codes, dst, b, lane, scale, offset) that decodes block b, which is not raw."""
    real, planes, value_of = form.real, form.planes, decoding(form)
    rows, width = block // LANES, block // planes
    rows_of_plane = rows // planes

    @inlined
    def decode(codes, dst, b, lane, scale, offset):
        start, first = b * block + lane, b * width + lane
        held, y = cuda.local.array(rows_of_plane, np.uint8), cuda.local.array(rows, real)
        for m in range(rows_of_plane):
            held[m] = codes[np.uint64(first + m * LANES)]
        if adds:
            for k in range(rows):
                y[k] = dst[np.uint64(start + k * LANES)]
        for k in range(rows):
            value = value_of(held[k % rows_of_plane], k // rows_of_plane, scale, offset)
            dst[np.uint64(start + k * LANES)] = y[k] + value if adds else value

    return decode
