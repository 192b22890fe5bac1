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

from collcomp.kernels.cuda.jit import LANES, SIMULATED, THREADS, grid, inlined, kernel, launch
from collcomp.kernels.cuda.primitives import lane_sums_before, meet

__all__ = ["RAW_BYTE", "copy_raw", "locate", "padded", "raw_test"]

#: The scale of a raw block where scales are bytes.
RAW_BYTE = 255
_WARPS = THREADS // LANES
#: Threads of the one thread block that numbers them: as many as a thread block may have.
_LOCATORS = THREADS if SIMULATED else 1024
_LOCATOR_WARPS = _LOCATORS // LANES


def locate(scales: Any, places: Any) -> None:
    """Write to `places` how many raw blocks come before each."""
    launch(_locator(*_kind(scales)), 1, scales, places, threads=_LOCATORS)


def copy_raw(src: Any, scales: Any, places: Any, block: int, multiple: int, raw: Any, clear: bool) -> None:
    """Copy the raw blocks of `src` to `raw`, the last one `padded` as for coding; `clear` them in `src` then."""
    copier = _copier(*_kind(scales), src.dtype.type, clear)
    launch(copier, grid(-(-len(scales) // _WARPS)), src, scales, places, block, multiple, raw)


@inlined
def padded(used, multiple):
    """The length of a block with so many elements: a multiple of what is coded together."""
    return (used + multiple - 1) // multiple * multiple


@functools.cache
def raw_test(in_bytes: bool) -> Callable:
    """A function of a scale: whether it marks its block as raw."""
    if in_bytes:

        @inlined
        def is_raw(scale):
            return scale == RAW_BYTE

    else:

        @inlined
        def is_raw(scale):
            return np.isnan(scale)

    return is_raw


def _kind(scales: Any) -> tuple[bool, bool]:
    """Whether scales are bytes, and have offsets beside them."""
    return scales.dtype == np.uint8, scales.ndim == 2


@functools.cache
def _marking(in_bytes, with_offsets):
    """A function of (scales, b): whether block b is raw."""
    is_raw = raw_test(in_bytes)

    @inlined
    def marked(scales, b):
        return is_raw(scales[b, 0] if with_offsets else scales[b])

    return marked


@functools.cache
def _locator(in_bytes, with_offsets):
    marked = _marking(in_bytes, with_offsets)

    @kernel
    def locator(scales, places):
        """By one thread block: each warp counts its 32 of `_LOCATORS` scales, then adds what the others counted."""
        found = cuda.shared.array(_LOCATOR_WARPS, np.int32)
        thread = cuda.threadIdx.x
        lane, warp = thread % LANES, thread // LANES
        total = 0
        for first in range(0, len(scales), _LOCATORS):
            b = first + thread
            raw = np.int32(0)
            if b < len(scales):
                raw = np.int32(marked(scales, b))
            before, in_warp = lane_sums_before(raw)
            if lane == 0:
                found[warp] = in_warp
            cuda.syncthreads()
            in_block = 0
            for other in range(_LOCATOR_WARPS):
                if other == warp:
                    before += in_block
                in_block += found[other]
            if b < len(scales):
                places[b] = total + before
            total += in_block
            cuda.syncthreads()

    return locator


@functools.cache
def _copier(in_bytes, with_offsets, real, clear):
    marked = _marking(in_bytes, with_offsets)

    @kernel
    def copier(src, scales, places, block, multiple, raw):
        lane = cuda.threadIdx.x % LANES
        for b in range(cuda.grid(1) // LANES, len(scales), cuda.gridsize(1) // LANES):
            if not marked(scales, b):
                continue
            start = b * block
            used = min(block, src.size - start)
            at = np.int64(places[b]) * block
            padding = src[start + used - 1] if with_offsets else real(0)
            meet()
            for i in range(lane, padded(used, multiple), LANES):
                raw[at + i] = src[start + i] if i < used else padding
                if clear and i < used:
                    src[start + i] = 0

    return copier
