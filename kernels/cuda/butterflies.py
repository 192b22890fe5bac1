"""Walsh-Hadamard transforms of all blocks of a message, with what is done to their elements before and after.

A thread block transforms a tile of 16 elements a thread in shared memory, up to four stages at a time in registers:
one or several blocks of the message, or a part of a block. Then the parts are left in scratch memory, and a second
kernel puts them together. Stages come in the order of `kernels.cpu.rotation`, the smallest distance first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.jit import THREADS, fine_grid, inlined, kernel, launch
from collcomp.kernels.cuda.primitives import product

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
    """What happens to element i, which is one of block b; `arguments` are those of `transform`.

    What is only read is read by functions of its own, for many elements before anything is written: a thread that
    waited for one element before it asks for the next would wait most of the time.

    Attributes
    ----------
    load : function of (arguments, b, i)
        The element.
    note : function of (arguments, b, i, x)
        May write what is known once the element is.
    stays : function of (arguments, b)
        Whether `leave` wants the elements as they were: they are not replaced in scratch memory, where they may stand.
    fetch : function of (arguments, b, i)
        What `leave` needs of the memory that it writes.
    leave : function of (arguments, b, i, y, fetched, stays)
        Writes what has become of the element.
    """

    load: Callable
    note: Callable
    stays: Callable
    fetch: Callable
    leave: Callable


def transform(
    steps: Steps, arguments: tuple[Any, ...], diagonal: Any, back: bool, count: int, used: int, scratch: Any
) -> None:
    """Transform `count` elements in blocks as long as `diagonal`, a power of two from 256 to 65536.

    Of the last block, only elements up to number `used` are part of the message. Those after it are zeros, multiplied
    by `diagonal` as all are before they are transformed. When blocks are rotated `back`, elements are multiplied after
    it, and only those of the message leave. `scratch` has `count` elements where blocks are larger than `TILE`.
    """
    size, real = diagonal.size, diagonal.dtype.type
    blocks, shift = fine_grid(-(-count // TILE)), size.bit_length() - 1
    entering, leaving = (count, used) if back else (used, count)
    tiles = _tiles(steps, real, back, size <= TILE)
    launch(tiles, blocks, arguments, diagonal, shift, count, entering, leaving, scratch)
    if size > TILE:
        launch(_joined(steps, real, back), blocks, arguments, diagonal, shift, count, leaving, scratch)


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
def _tiles(steps, real, back, whole):
    load, note, stays, fetch, leave = steps
    middle, last = 4, _TILE_BITS - 4
    first_stages, middle_stages, last_stages = (_stages(window, _ROWS) for window in (0, middle, last))
    zero = real(0)

    @inlined
    def place(j):
        return np.uint64(j + (j >> 4))

    @kernel
    def tiles(arguments, diagonal, shift, count, entering, leaving, scratch):
        tile = cuda.shared.array(_ROOM, real)
        held = cuda.local.array(_ROWS, real)
        fetched = cuda.local.array(_ROWS, real)
        thread = cuda.threadIdx.x
        # Where a thread's elements begin in the three rounds; in the last one they lie as they do in memory.
        in_first = thread * _ROWS
        in_middle = (thread >> middle << (middle + 4)) + (thread & ((1 << middle) - 1))
        size = diagonal.size
        for start in range(cuda.blockIdx.x * TILE, count, cuda.gridDim.x * TILE):
            own = start + thread
            if start + TILE <= entering:
                for k in range(_ROWS):
                    held[k] = load(arguments, start + k * THREADS >> shift, own + k * THREADS)
            else:
                for k in range(_ROWS):
                    i = own + k * THREADS
                    held[k] = load(arguments, i >> shift, i) if i < entering else zero
            for k in range(_ROWS):
                x = held[k]
                if not back:
                    x = product(x, diagonal[np.uint64(thread + (start + k * THREADS & size - 1))])
                tile[place(thread + k * THREADS)] = x
            for k in range(_ROWS):
                i = own + k * THREADS
                if i < entering:
                    note(arguments, i >> shift, i, held[k])
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
            if not whole:
                for k in range(_ROWS):
                    if not stays(arguments, start >> shift):
                        scratch[np.uint64(own + k * THREADS)] = held[k]
                continue
            if start + TILE <= leaving:
                for k in range(_ROWS):
                    fetched[k] = fetch(arguments, start + k * THREADS >> shift, own + k * THREADS)
            else:
                for k in range(_ROWS):
                    i = own + k * THREADS
                    fetched[k] = fetch(arguments, i >> shift, i) if i < leaving else zero
            staying = 0
            for k in range(_ROWS):
                if stays(arguments, min(start + k * THREADS, count - 1) >> shift):
                    staying |= 1 << k
                if back:
                    held[k] = product(held[k], diagonal[np.uint64(thread + (start + k * THREADS & size - 1))])
            for k in range(_ROWS):
                i = own + k * THREADS
                if i < leaving:
                    leave(arguments, start + k * THREADS >> shift, i, held[k], fetched[k], staying >> k & 1 != 0)

    return tiles


@functools.cache
def _joined(steps, real, back):
    _, _, stays, fetch, leave = steps
    stages = _stages(0, _PARTS)
    zero = real(0)

    @kernel
    def joined(arguments, diagonal, shift, count, leaving, scratch):
        held = cuda.local.array(_PARTS, real)
        fetched = cuda.local.array(_PARTS, real)
        parts = diagonal.size // TILE
        for column in range(cuda.grid(1), count // parts, cuda.gridsize(1)):
            b, place = column // TILE, column % TILE
            own = (b << shift) + place
            stay = stays(arguments, b)
            for k in range(_PARTS):
                held[k] = scratch[np.uint64(own + k * TILE)] if k < parts else zero
            for k in range(_PARTS):
                i = own + k * TILE
                fetched[k] = fetch(arguments, b, i) if k < parts and i < leaving else zero
            stages(held, parts)
            for k in range(_PARTS):
                i = own + k * TILE
                if k < parts and i < leaving:
                    y = product(held[k], diagonal[np.uint64(place + k * TILE)]) if back else held[k]
                    leave(arguments, b, i, y, fetched[k], stay)

    return joined
