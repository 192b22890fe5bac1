"""Blocks that travel as they are, one after another, because no scale fits them.

Shapes: `scales` (n,), or (n, 2) with offsets, in which NaN, or 255 where scales are bytes, marks such blocks; `places`
(n,) int32, how many of them come before each block; `src` (count,); `raw` room for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.jit import LANES, THREADS, grid, inlined, kernel, launch
from collcomp.kernels.cuda.primitives import lane_sums_before, meet

__all__ = ["RAW_BYTE", "copy_raw", "locate", "marking", "padded"]

#: The scale of a raw block where scales are bytes.
RAW_BYTE = 255
_WARPS = THREADS // LANES


def locate(scales: Any, places: Any) -> None:
    """Write to `places` how many raw blocks come before each."""
    launch(_locator(_kind(scales)), 1, scales, places)


def copy_raw(src: Any, scales: Any, places: Any, block: int, multiple: int, raw: Any, clear: bool) -> None:
    """Copy the raw blocks of `src` to `raw`, the last one `padded` as for coding; `clear` them in `src` then."""
    copier = _copier(_kind(scales), src.dtype.type, clear)
    launch(copier, grid(-(-len(scales) // _WARPS)), src, scales, places, block, multiple, raw)


def _kind(scales: Any) -> str:
    if scales.ndim == 2:
        return "with offsets"
    return "bytes" if scales.dtype == np.uint8 else "floats"


@inlined
def padded(used, multiple):
    """The length of a block with so many elements: a multiple of what is coded together."""
    return (used + multiple - 1) // multiple * multiple


@functools.cache
def marking(kind: str) -> Callable:
    """A function of (scales, b): whether block b is raw."""
    if kind == "with offsets":

        @inlined
        def is_raw(scales, b):
            return np.isnan(scales[b, 0])

    elif kind == "bytes":

        @inlined
        def is_raw(scales, b):
            return scales[b] == RAW_BYTE

    else:

        @inlined
        def is_raw(scales, b):
            return np.isnan(scales[b])

    return is_raw


@functools.cache
def _locator(kind):
    is_raw = marking(kind)

    @kernel
    def locator(scales, places):
        """By one thread block: each warp counts its 32 of every `THREADS` scales, then adds what the others counted."""
        found = cuda.shared.array(_WARPS, np.int32)
        thread = cuda.threadIdx.x
        lane, warp = thread % LANES, thread // LANES
        total = 0
        for first in range(0, len(scales), THREADS):
            b = first + thread
            raw = np.int32(0)
            if b < len(scales):
                raw = np.int32(is_raw(scales, b))
            before, in_warp = lane_sums_before(raw)
            if lane == 0:
                found[warp] = in_warp
            cuda.syncthreads()
            in_block = 0
            for other in range(_WARPS):
                if other == warp:
                    before += in_block
                in_block += found[other]
            if b < len(scales):
                places[b] = total + before
            total += in_block
            cuda.syncthreads()

    return locator


@functools.cache
def _copier(kind, real, clear):
    is_raw, repeats_last = marking(kind), kind == "with offsets"

    @kernel
    def copier(src, scales, places, block, multiple, raw):
        lane = cuda.threadIdx.x % LANES
        for b in range(cuda.grid(1) // LANES, len(scales), cuda.gridsize(1) // LANES):
            if not is_raw(scales, b):
                continue
            start = b * block
            used = min(block, src.size - start)
            at = np.int64(places[b]) * block
            padding = src[start + used - 1] if repeats_last else real(0)
            meet()
            for i in range(lane, padded(used, multiple), LANES):
                raw[at + i] = src[start + i] if i < used else padding
                if clear and i < used:
                    src[start + i] = 0

    return copier
