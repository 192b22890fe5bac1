"""Walsh-Hadamard transforms of all blocks of a message, with what is done to their elements before and after.

A thread block transforms a tile of 16 elements a thread in shared memory, up to four stages at a time in registers:
one or several blocks of the message, or a part of a block. Then the parts are left in scratch memory, and a second
kernel puts them together. Stages come in the order of `kernels.cpu.rotation`, the smallest distance first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda

from collcomp.kernels.cuda.jit import THREADS, grid, inlined, kernel, launch

__all__ = ["TILE", "Steps", "transform"]

_ROWS = 16
#: Elements that are transformed in shared memory.
TILE = _ROWS * THREADS
_TILE_BITS = TILE.bit_length() - 1
#: Every 17th place is left out, so that threads that are 16 elements apart use different banks.
_ROOM = TILE + TILE // _ROWS
#: Parts of the largest block.
_PARTS = (1 << 16) // TILE


class Steps(NamedTuple):
    """What happens to element i; `arguments` are those of `transform`.

    What is only read is read by functions of its own, for many elements before any of them is written.

    Attributes
    ----------
    load : function of (arguments, i)
        The element; nothing is written yet.
    enter : function of (arguments, i, x)
        What is transformed instead of element x.
    stays : function of (arguments, i)
        Whether `leave` will load the element again: then it is not replaced in scratch memory, where it may stand.
    fetch : function of (arguments, i)
        What `leave` needs of the memory that it writes.
    leave : function of (arguments, i, y, fetched)
        Takes what has become of the element.
    """

    load: Callable
    enter: Callable
    stays: Callable
    fetch: Callable
    leave: Callable


def transform(steps: Steps, arguments: tuple[Any, ...], size: int, first: int, stop: int, scratch: Any) -> None:
    """Transform the elements from `first` to `stop`, in blocks of `size`: a power of two from 256 to 65536.

    `scratch`, of the type that is computed with, has at least `stop` elements where `size` is above `TILE`.
    """
    blocks, real = grid(-(-(stop - first) // TILE)), scratch.dtype.type
    launch(_tiles(steps, real, size <= TILE), blocks, arguments, scratch, size, first, stop)
    if size > TILE:
        launch(_joined(steps, real), blocks, arguments, scratch, size, first, stop)


@functools.cache
def _stages(window, rows):
    """A function of (held, size): the stages that combine elements k and k ^ 1, 2, 4, ... of the `rows` in `held`.

    Element k stands ``k << window`` behind the first in its block. The stages before the next multiple of four from
    `window` on were done already; those of distances from `size` on are not wanted.
    """
    done, end = -window % 4, rows.bit_length() - 1

    @inlined
    def stages(held, size):
        for stage in range(done, end):
            step = 1 << stage
            if step << window < size:
                for low in range(rows):
                    if low & step == 0:
                        a, b = held[low], held[low + step]
                        held[low], held[low + step] = a + b, a - b

    return stages


@functools.cache
def _tiles(steps, real, whole):
    load, enter, stays, fetch, leave = steps
    middle, last = 4, _TILE_BITS - 4
    first_stages, middle_stages, last_stages = (_stages(window, _ROWS) for window in (0, middle, last))
    zero = real(0)

    @inlined
    def place(j):
        return j + (j >> 4)

    @kernel
    def tiles(arguments, scratch, size, first, stop):
        tile = cuda.shared.array(_ROOM, real)
        held = cuda.local.array(_ROWS, real)
        fetched = cuda.local.array(_ROWS, real)
        thread = cuda.threadIdx.x
        # Where its elements begin in the three rounds; in the last as they lie in memory.
        in_first = thread * _ROWS
        in_middle = (thread >> middle << (middle + 4)) + (thread & ((1 << middle) - 1))
        for start in range(first + cuda.blockIdx.x * TILE, stop, cuda.gridDim.x * TILE):
            own = start + thread
            for k in range(_ROWS):
                i = own + k * THREADS
                held[k] = load(arguments, i) if i < stop else zero
            for k in range(_ROWS):
                i = own + k * THREADS
                tile[place(thread + k * THREADS)] = enter(arguments, i, held[k]) if i < stop else zero
            cuda.syncthreads()
            for k in range(_ROWS):
                held[k] = tile[place(in_first + k)]
            first_stages(held, size)
            for k in range(_ROWS):
                tile[place(in_first + k)] = held[k]
            cuda.syncthreads()
            for k in range(_ROWS):
                held[k] = tile[place(in_middle + (k << middle))]
            middle_stages(held, size)
            for k in range(_ROWS):
                tile[place(in_middle + (k << middle))] = held[k]
            cuda.syncthreads()
            for k in range(_ROWS):
                held[k] = tile[place(thread + k * THREADS)]
            last_stages(held, size)
            if whole:
                for k in range(_ROWS):
                    i = own + k * THREADS
                    fetched[k] = fetch(arguments, i) if i < stop else zero
                for k in range(_ROWS):
                    i = own + k * THREADS
                    if i < stop:
                        leave(arguments, i, held[k], fetched[k])
            else:
                for k in range(_ROWS):
                    i = own + k * THREADS
                    if not stays(arguments, i):
                        scratch[i] = held[k]

    return tiles


@functools.cache
def _joined(steps, real):
    _, _, _, fetch, leave = steps
    stages = _stages(0, _PARTS)
    zero = real(0)

    @kernel
    def joined(arguments, scratch, size, first, stop):
        held = cuda.local.array(_PARTS, real)
        fetched = cuda.local.array(_PARTS, real)
        parts = size // TILE
        for column in range(cuda.grid(1), (stop - first) // parts, cuda.gridsize(1)):
            own = first + column // TILE * size + column % TILE
            for k in range(_PARTS):
                held[k] = scratch[own + k * TILE] if k < parts else zero
            stages(held, parts)
            for k in range(_PARTS):
                fetched[k] = fetch(arguments, own + k * TILE) if k < parts else zero
            for k in range(_PARTS):
                if k < parts:
                    leave(arguments, own + k * TILE, held[k], fetched[k])

    return joined
