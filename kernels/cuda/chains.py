"""Prefix sums over a message, some of whose items may start anew: two launches, whatever its length.

An item is an int64: a number in the low 32 bits (they wrap around), and `STARTS` where it begins a sum of its own. A
scan of `count` items leaves in `sums` the sums up to each, item included, as far back as its tile goes, and in `tops`
the sums up to the ends of tiles; `sum_before` puts both together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.jit import LANES, THREADS, grid, inlined, kernel, launch
from collcomp.kernels.cuda.primitives import bit_length, lane_sums_before, value_of_lane, votes
from collcomp.kernels.cuda.scans import WARPS

__all__ = ["STARTS", "item_of", "scan", "sum_before", "tops_of", "wrapped"]

#: The bit of an item that starts a sum.
STARTS = 1 << 32
_LOW = STARTS - 1
_SIGN = 1 << 31


def tops_of(count: int) -> int:
    """How many tiles there are of so many items."""
    return -(-count // THREADS)


def scan(load: Callable, arrays: tuple[Any, ...], sums: Any, tops: Any) -> None:
    """Scan the items that `load` gives.

    Parameters
    ----------
    load : function
        For kernels, of (arrays, i, count): item i, 0 for those from `count` on. All threads of a thread block call it
        together, neighbours for neighbouring items.
    arrays : tuple of arrays
        What `load` reads, and may write for its own i; ``sums[i]`` is written after that.
    sums, tops : array of int64, shape (count,) and (tops_of(count),)
    """
    launch(_scanner(load, False), grid(len(tops)), sums, tops, arrays)
    launch(_scanner(item_of, True), 1, tops, tops, (tops,))


@inlined
def item_of(arrays, i, count):
    """Item i where they lie in ``arrays[0]``."""
    return arrays[0][i] if i < count else np.int64(0)


@inlined
def wrapped(number):
    """The low 32 bits of an int64, as int32."""
    return np.int32(((number & _LOW) ^ _SIGN) - _SIGN)


@inlined
def sum_before(sums, tops, i):
    """The sum before item i of a finished scan, as int64; more than its low 32 bits mean nothing."""
    if i == 0:
        return np.int64(0)
    item = sums[i - 1]
    total = item & _LOW
    tile = (i - 1) // THREADS
    if tile > 0 and item < STARTS:
        total += tops[tile - 1] & _LOW
    return total


# ---------------------------------------------------------------------- kernels


@functools.cache
def _scanner(load, onwards):
    """Each thread block scans tiles; one that goes `onwards` takes the sum of a tile along to the next."""

    @kernel
    def scanner(sums, tops, arrays):
        totals = cuda.shared.array(WARPS, np.int64)
        started = cuda.shared.array(WARPS, np.int32)
        thread = cuda.threadIdx.x
        lane, warp = thread % LANES, thread // LANES
        count, tiles = sums.size, (sums.size + THREADS - 1) // THREADS
        carry, carried = np.int64(0), np.int32(0)
        for tile in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            i = tile * THREADS + thread
            item = load(arrays, i, count)
            number = item & _LOW
            before, _ = lane_sums_before(number)
            starts = np.int64(votes(item >= STARTS)) & ((2 << lane) - 1)
            # The lane from which on this one's sum counts, -1 for one of another warp.
            since = bit_length(starts) - 1
            skipped = value_of_lane(before, max(since, 0))
            total, own = before + number, np.int32(since >= 0)
            if own:
                total -= skipped
            if lane == LANES - 1:
                totals[warp] = total
                started[warp] = own
            cuda.syncthreads()
            if not onwards:
                carry, carried = np.int64(0), np.int32(0)
            for other in range(WARPS):
                if other == warp and not own:
                    total += carry
                    own = carried
                carry = totals[other] if started[other] else carry + totals[other]
                carried |= started[other]
            if i < count:
                sums[i] = (total & _LOW) + (STARTS if own else 0)
            if not onwards and thread == 0:
                tops[tile] = (carry & _LOW) + (STARTS if carried else 0)
            cuda.syncthreads()

    return scanner
