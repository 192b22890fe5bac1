"""Loops over all elements of a message in which each is its own: four at once, so that loads need not wait for stores.

A store may change what a later load reads, as far as a compiler knows: with one element at a time, a thread would
wait for memory once an element.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.jit import THREADS, fine_grid, inlined

__all__ = ["sweeping", "tiles"]

#: Elements that a thread block takes at once.
_TILE = 4 * THREADS


def tiles(count: int) -> int:
    """How many thread blocks to launch for so many elements."""
    return fine_grid(-(-count // _TILE))


def sweeping(get: Callable, put: Callable) -> Callable:
    """A function of (arrays, count), for kernels: ``put(arrays, i, get(arrays, i), first)`` for each i below `count`.

    i is a uint64. `first` is where its tile begins, the same for all in it; 1024 is a multiple of a tile. `get` only
    reads, `put` may write what `get` reads for its own i.
    """

    @inlined
    def sweep(arrays, count):
        for first in range(cuda.blockIdx.x * _TILE, count, cuda.gridDim.x * _TILE):
            start = first + cuda.threadIdx.x
            if first + _TILE <= count:
                # Unsigned, or numba looks whether they are negative.
                i0, i1 = np.uint64(start), np.uint64(start + THREADS)
                i2, i3 = np.uint64(start + 2 * THREADS), np.uint64(start + 3 * THREADS)
                a, b, c, d = get(arrays, i0), get(arrays, i1), get(arrays, i2), get(arrays, i3)
                put(arrays, i0, a, first)
                put(arrays, i1, b, first)
                put(arrays, i2, c, first)
                put(arrays, i3, d, first)
            else:
                for i in range(start, count, THREADS):
                    put(arrays, np.uint64(i), get(arrays, np.uint64(i)), first)

    return sweep
