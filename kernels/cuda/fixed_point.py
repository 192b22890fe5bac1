"""Floats as int32 that switches add (see `kernels.cpu.fixed_point`): one warp a packet.

The packets of a message: n of `elements`, one after another, the last one cut off where the message ends. So `x`, `y`
(count,) float32, `codes`, `total` (count,) int32 are here those of the message, and what is one number or answer for
each packet lies on the device: `exponents` (n,) int8 or wider, `scales` (n,) float32 (all of them `FACTOR` for ATP's
packets), `flags` (n,) uint8. `counters` int32.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from collcomp.kernels.cpu.fixed_point import FACTOR, LARGEST, LOWEST_EXPONENT, SATURATED
from collcomp.kernels.cuda.bits import magnitude
from collcomp.kernels.cuda.jit import LANES, THREADS, grid, inlined, kernel, launch
from collcomp.kernels.cuda.primitives import float_of, largest_of_lanes, rint
from collcomp.kernels.cuda.significands import INFINITY
from collcomp.kernels.cuda.sweeps import sweeping, tiles

__all__ = [
    "FACTOR",
    "LARGEST",
    "LOWEST_EXPONENT",
    "SATURATED",
    "add_saturating",
    "block_scale",
    "dequantise",
    "exceeds",
    "exponent",
    "is_saturated",
    "quantise",
]

_WARPS = THREADS // LANES
_OUTSIDE = -(2**31)
_LIMIT = np.float32(2.0**31)


def exponent(x: Any, exponents: Any, elements: int) -> None:
    """The least e of each packet with ``2**e`` above all magnitudes; faults as on the CPU."""
    launch(_measurer(), _blocks(exponents), x, exponents, elements)


def block_scale(workers: int, exponents: Any, scales: Any) -> None:
    """By what floats below ``2**exponent`` are multiplied, so that sums of so many of them fit int32."""
    launch(_scaler(), grid(-(-len(scales) // THREADS)), np.float32(workers), exponents, scales)


def quantise(x: Any, scales: Any, codes: Any, elements: int) -> None:
    """``x * scale`` rounded to nearest, ties to even; ``-2**31`` for NaN and what int32 has no room for."""
    launch(_converter("quantise"), _blocks(scales), (x, codes), scales, elements)


def dequantise(codes: Any, scales: Any, y: Any, elements: int) -> None:
    """``codes / scale``, rounded once for each of the two steps."""
    launch(_converter("dequantise"), _blocks(scales), (codes, y), scales, elements)


def exceeds(x: Any, flags: Any, counters: Any, elements: int) -> None:
    """Flag the packets of which an element is beyond `LARGEST`, or NaN; their number is added to ``counters[0]``."""
    launch(_finder("exceeds"), _blocks(flags), x, flags, counters, elements)


def is_saturated(total: Any, flags: Any, counters: Any, elements: int) -> None:
    """Flag the packets of which an element is at an end of its range; their number is added to ``counters[0]``."""
    launch(_finder("is_saturated"), _blocks(flags), total, flags, counters, elements)


def add_saturating(total: Any, codes: Any) -> None:
    """``total += codes``, except where `total` is at an end of its range, where it stays."""
    launch(_saturating_adder(), tiles(total.size), total, codes)


def _blocks(packets: Any) -> int:
    return grid(-(-len(packets) // _WARPS))


# ---------------------------------------------------------------------- kernels


@functools.cache
def _measurer():
    @kernel
    def measurer(x, exponents, elements):
        lane = cuda.threadIdx.x % LANES
        for packet in range(cuda.grid(1) // LANES, len(exponents), cuda.gridsize(1) // LANES):
            i, end = packet * elements + lane, min((packet + 1) * elements, x.size)
            largest = np.int32(0)
            while i < end:
                bits = magnitude(x[np.uint64(i)])
                largest = max(largest, bits if bits <= INFINITY else np.int32(0))
                i += LANES
            largest = np.int64(largest_of_lanes(largest))
            if lane == 0:
                exponents[packet] = (((largest >> 23) - 126 + 128) & 255) - 128

    return measurer


@functools.cache
def _scaler():
    @kernel
    def scaler(workers, exponents, scales):
        for packet in range(cuda.grid(1), len(scales), cuda.gridsize(1)):
            power = float_of((np.int64(exponents[packet]) + 1023) << 52)
            most = workers * np.float32(power)
            scales[packet] = np.float32(np.float64(SATURATED) / np.float64(most))

    return scaler


@functools.cache
def _converter(name):
    """Of floats to codes, or back, by what a packet is multiplied by; four at once, as in `sweeps`."""
    if name == "quantise":

        @inlined
        def converted(x, scale):
            value = rint(x * scale)
            fits = abs(value) < _LIMIT
            return np.int32(value if fits else np.float32(0)) if fits else np.int32(_OUTSIDE)

    else:

        @inlined
        def converted(code, scale):
            return np.float32(code) / scale

    @kernel
    def converter(arrays, scales, elements):
        src, dst = arrays
        for packet in range(cuda.grid(1) // LANES, len(scales), cuda.gridsize(1) // LANES):
            i, end = packet * elements + cuda.threadIdx.x % LANES, min((packet + 1) * elements, src.size)
            scale = scales[packet]
            while i + 3 * LANES < end:
                a, b = src[np.uint64(i)], src[np.uint64(i + LANES)]
                c, d = src[np.uint64(i + 2 * LANES)], src[np.uint64(i + 3 * LANES)]
                dst[np.uint64(i)], dst[np.uint64(i + LANES)] = converted(a, scale), converted(b, scale)
                dst[np.uint64(i + 2 * LANES)], dst[np.uint64(i + 3 * LANES)] = converted(c, scale), converted(d, scale)
                i += 4 * LANES
            while i < end:
                dst[np.uint64(i)] = converted(src[np.uint64(i)], scale)
                i += LANES

    return converter


@functools.cache
def _finder(name):
    if name == "exceeds":

        @inlined
        def found(x):
            return not abs(x) <= LARGEST

    else:

        @inlined
        def found(total):
            return abs(np.int64(total)) >= SATURATED

    @kernel
    def finder(x, flags, counters, elements):
        lane = cuda.threadIdx.x % LANES
        for packet in range(cuda.grid(1) // LANES, len(flags), cuda.gridsize(1) // LANES):
            i, end = packet * elements + lane, min((packet + 1) * elements, x.size)
            some = np.int32(0)
            while i < end:
                some |= np.int32(found(x[np.uint64(i)]))
                i += LANES
            some = largest_of_lanes(some)
            if lane == 0:
                flags[packet] = some
                if some:
                    cuda.atomic.add(counters, 0, 1)

    return finder


@functools.cache
def _saturating_adder():
    @inlined
    def get(arrays, i):
        return arrays[0][i], arrays[1][i]

    @inlined
    def put(arrays, i, addends, first):
        value = np.int64(addends[0])
        value += np.int64(addends[1]) if abs(value) < SATURATED else np.int64(0)
        arrays[0][i] = min(max(value, _OUTSIDE), SATURATED)

    sweep = sweeping(get, put)

    @kernel
    def adder(total, codes):
        sweep((total, codes), total.size)

    return adder
