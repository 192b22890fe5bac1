"""Which part of a message each warp takes, and sums over what comes before it.

A message is cut into one part for each warp of the grid, in order. So that all warps meet equally often, all take as
many steps, the last ones perhaps none with anything in it. One kernel counts, and leaves what each warp found in an
array; the next one, on as many thread blocks, sums up what others found before it, and knows where to write.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.jit import LANES, THREADS, grid, inlined
from collcomp.kernels.cuda.primitives import lane_sums_before

__all__ = ["STEP", "WARPS", "blocks_for", "sums_before", "total_before", "walking", "warp_part"]

#: Warps of a thread block.
WARPS = THREADS // LANES
#: Elements that a warp takes at once: as many loads are under way before anything is stored.
STEP = 4 * LANES


def blocks_for(steps: int) -> int:
    """How many thread blocks to launch for so many steps of a warp."""
    return grid(-(-steps // WARPS))


@inlined
def warp_part(count, step):
    """The first of this warp's elements, that of its thread block's, and how many steps of `step` elements it takes."""
    steps = (count + step * (cuda.gridsize(1) // LANES) - 1) // (step * (cuda.gridsize(1) // LANES))
    return cuda.grid(1) // LANES * steps * step, cuda.blockIdx.x * WARPS * steps * step, steps


@inlined
def sums_before(value):
    """The sum of an int64 over the threads of the thread block before this one, and over all."""
    totals = cuda.shared.array(WARPS, np.int64)
    before, in_warp = lane_sums_before(value)
    warp = cuda.threadIdx.x // LANES
    if cuda.threadIdx.x % LANES == 0:
        totals[warp] = in_warp
    cuda.syncthreads()
    total = np.int64(0)
    for other in range(WARPS):
        if other == warp:
            before += total
        total += totals[other]
    cuda.syncthreads()
    return before, total


@inlined
def total_before(numbers, first, place):
    """The sum of ``numbers[:place]``, for warps whose thread block has `first` <= `place` in common."""
    value = np.int64(0)
    for i in range(cuda.threadIdx.x, min(first, numbers.size), THREADS):
        value += np.int64(numbers[i])
    _, total = sums_before(value)
    value = np.int64(0)
    for i in range(first + cuda.threadIdx.x % LANES, min(place, numbers.size), LANES):
        value += np.int64(numbers[i])
    _, rest = lane_sums_before(value)
    return total + rest


def walking(get: Callable, visit: Callable) -> Callable:
    """A function of (arrays, count, state), for kernels, that takes this warp through its part and returns the state.

    Each lane calls ``state = visit(arrays, i, get(arrays, i, count), count, state)`` for elements i, i + 32, ... of its
    warp, all lanes equally often: i may be `count` or more.
    """

    @inlined
    def walk(arrays, count, state):
        first, _, steps = warp_part(count, STEP)
        for step in range(steps):
            i = first + step * STEP + cuda.threadIdx.x % LANES
            a = get(arrays, i, count)
            b = get(arrays, i + LANES, count)
            c = get(arrays, i + 2 * LANES, count)
            d = get(arrays, i + 3 * LANES, count)
            state = visit(arrays, i, a, count, state)
            state = visit(arrays, i + LANES, b, count, state)
            state = visit(arrays, i + 2 * LANES, c, count, state)
            state = visit(arrays, i + 3 * LANES, d, count, state)
        return state

    return walk
