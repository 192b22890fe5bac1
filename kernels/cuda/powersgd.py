"""Products of a large matrix with thin factors.

Shapes as in `kernels.cpu.powersgd`: matrices are flat, their last row may be shorter. There, a dot product of a row is
the sum of 16 chains, and one of a column a chain of sums of four products each; so what can go on at once here are the
chains, and the sums of four. Up to four rows of q share each element that is read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.jit import LANES, fine_grid, grid, inlined, kernel, launch
from collcomp.kernels.cuda.operands import with_nan_of
from collcomp.kernels.cuda.primitives import product, sum_of_half_by_halves
from collcomp.kernels.cuda.scans import WARPS

__all__ = ["multiply", "multiply_add", "project", "project_back"]

# Rows of q that are read for together.
_DOTS = 4
# Of `project`, half a warp takes two rows: a chain a lane, so many elements of each ahead.
_CHAINS = 16
_PAIR = 2
_STEPS = 8
_HELD = _PAIR * _STEPS
_STRIDE = _CHAINS * _STEPS
# Of `project_back`, bytes of each column that a thread is ahead: sums of four rows.
_AHEAD_NBYTES = 64
# Of `multiply`, rows and columns that a warp takes at once: two columns a lane.
_TALL, _WIDE = 8, 2 * LANES


def project(x: Any, addend: Any, q: Any, p: Any) -> None:
    """``p = x @ q.T``; with an `addend`, of ``x += addend``."""
    (rows, rank), columns = p.shape, q.shape[1]
    for first, dots in _shares(rank):
        adds = addend is not None and first == 0
        arrays = (x, addend if adds else x, q[first : first + dots].reshape(-1), p.reshape(-1)[first:])
        blocks = fine_grid(-(-rows // (2 * _PAIR * WARPS)))
        launch(_projector(x.dtype.type, dots, adds), blocks, *arrays, rows, columns, rank)


def project_back(x: Any, p: Any, q: Any) -> None:
    """``q = p.T @ x``."""
    (rows, rank), columns = p.shape, q.shape[1]
    for first, dots in _shares(rank):
        arrays = (x, p.reshape(-1)[first:], q[first : first + dots].reshape(-1))
        launch(_back_projector(x.dtype.type, dots), grid(-(-columns // LANES)), *arrays, rows, columns, rank)


def multiply(p: Any, q: Any, dst: Any) -> None:
    """``dst = p @ q``."""
    _multiply(p, q, dst, False)


def multiply_add(p: Any, q: Any, acc: Any) -> None:
    """``acc += p @ q``."""
    _multiply(p, q, acc, True)


def _multiply(p: Any, q: Any, dst: Any, adds: bool) -> None:
    (rows, rank), columns = p.shape, q.shape[1]
    parts = -(-rows // _TALL) * -(-columns // _WIDE)
    arrays = (p.reshape(-1), q.reshape(-1), dst)
    launch(_multiplier(dst.dtype.type, adds), fine_grid(-(-parts // WARPS)), *arrays, rows, columns, rank)


def _shares(rank: int) -> Iterator[tuple[int, int]]:
    """The rows of q that are read for together: the first, and how many."""
    for first in range(0, rank, _DOTS):
        yield first, min(_DOTS, rank - first)


@functools.cache
def _adding_dots(real, dots, adds, checks):
    """A function that adds the products of a stride of two rows to their chains; it `checks` where the rows end."""

    @inlined
    def add_dots(x, addend, q, row, column, columns, held, sums):
        last = x.size - 1
        for k in range(_HELD):
            at = (row + k // _STEPS) * columns + column + k % _STEPS * _CHAINS
            held[k] = x[np.uint64(min(at, last) if checks else at)]
        if adds:
            for k in range(_HELD):
                at = (row + k // _STEPS) * columns + column + k % _STEPS * _CHAINS
                y = addend[np.uint64(min(at, last) if checks else at)]
                held[k] = with_nan_of(y, held[k] + y)
            for k in range(_HELD):
                at = (row + k // _STEPS) * columns + column + k % _STEPS * _CHAINS
                if not checks or (column + k % _STEPS * _CHAINS < columns and at <= last):
                    x[np.uint64(at)] = held[k]
        for step in range(_STEPS):
            j = column + step * _CHAINS
            for d in range(dots):
                y = q[np.uint64(d * columns + (min(j, columns - 1) if checks else j))]
                for r in range(_PAIR):
                    if not checks or (j < columns and (row + r) * columns + j <= last):
                        sums[r * dots + d] += product(held[r * _STEPS + step], y)

    return add_dots


@functools.cache
def _projector(real, dots, adds):
    add_whole, add_rest = (_adding_dots(real, dots, adds, checks) for checks in (False, True))
    chains, zero = _PAIR * dots, real(0)

    @kernel
    def projector(x, addend, q, p, rows, columns, rank):
        held, sums = cuda.local.array(_HELD, real), cuda.local.array(chains, real)
        lane = cuda.threadIdx.x % LANES
        half, chain = lane // _CHAINS, lane % _CHAINS
        for group in range(cuda.grid(1) // LANES, (rows + 2 * _PAIR - 1) // (2 * _PAIR), cuda.gridsize(1) // LANES):
            row = (2 * group + half) * _PAIR
            for k in range(chains):
                sums[k] = zero
            for start in range(0, columns, _STRIDE):
                if start + _STRIDE <= columns and (row + _PAIR) * columns <= x.size:
                    add_whole(x, addend, q, row, start + chain, columns, held, sums)
                else:
                    add_rest(x, addend, q, row, start + chain, columns, held, sums)
            for k in range(chains):
                total = sum_of_half_by_halves(sums[k])
                if chain == 0 and row + k // dots < rows:
                    p[np.uint64((row + k // dots) * rank + k % dots)] = total

    return projector


@functools.cache
def _back_projector(real, dots):
    """A thread block takes a column a lane: each warp sums by fours other rows, some warps add these sums in order."""
    ahead = _AHEAD_NBYTES // np.dtype(real).itemsize
    fours = ahead // 4
    tile, turns = WARPS * fours, -(-dots // WARPS)
    own_sums, room_of_tile, zero = fours * dots, tile * dots * LANES, real(0)
    rooms = 2 * room_of_tile

    @inlined
    def fetch(x, first, count, column, columns, held):
        for k in range(ahead):
            held[k] = x[np.uint64((4 * min(first + k // 4, count - 1) + k % 4) * columns + column)]

    @inlined
    def sum_fours(p, first, count, rank, held, own):
        for k in range(own_sums):
            four = k // dots
            at = 4 * min(first + four, count - 1) * rank + k % dots
            total = product(p[np.uint64(at)], held[4 * four])
            for r in range(1, 4):
                total += product(p[np.uint64(at + r * rank)], held[4 * four + r])
            own[k] = total

    @kernel
    def back_projector(x, p, q, rows, columns, rank):
        sums, totals = cuda.shared.array(rooms, real), cuda.local.array(turns, real)
        held, own = cuda.local.array(ahead, real), cuda.local.array(own_sums, real)
        lane, warp = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
        count = x.size // columns // 4
        # One half of `sums` is written while the other is read.
        room = 0
        for start in range(cuda.blockIdx.x * LANES, columns, cuda.gridDim.x * LANES):
            column = min(start + lane, columns - 1)
            for turn in range(turns):
                totals[turn] = zero
            if count > 0:
                fetch(x, warp * fours, count, column, columns, held)
            for first in range(0, count, tile):
                sum_fours(p, first + warp * fours, count, rank, held, own)
                fetch(x, first + tile + warp * fours, count, column, columns, held)
                for k in range(own_sums):
                    sums[room + (warp * own_sums + k) * LANES + lane] = own[k]
                cuda.syncthreads()
                for turn in range(turns):
                    d = warp + turn * WARPS
                    if d < dots:
                        for k in range(min(tile, count - first)):
                            totals[turn] += sums[room + (k * dots + d) * LANES + lane]
                room = room_of_tile - room
            for turn in range(turns):
                d = warp + turn * WARPS
                if d < dots and start + lane < columns:
                    for i in range(4 * count, rows):
                        at = i * columns + column
                        if at < x.size:
                            totals[turn] += product(p[np.uint64(i * rank + d)], x[np.uint64(at)])
                    q[np.uint64(d * columns + column)] = totals[turn]

    return back_projector


@functools.cache
def _multiplier(real, adds):
    across = _WIDE // LANES
    values, zero = _TALL * across, real(0)

    @kernel
    def multiplier(p, q, dst, rows, columns, rank):
        held, sums = cuda.local.array(values, real), cuda.local.array(values, real)
        ys = cuda.local.array(across, real)
        lane = cuda.threadIdx.x % LANES
        stripes, last = (columns + _WIDE - 1) // _WIDE, dst.size - 1
        parts = (rows + _TALL - 1) // _TALL * stripes
        for part in range(cuda.grid(1) // LANES, parts, cuda.gridsize(1) // LANES):
            band = part // stripes
            row, column = band * _TALL, (part - band * stripes) * _WIDE + lane
            for k in range(values):
                sums[k] = zero
                if adds:
                    at = (row + k // across) * columns + column + k % across * LANES
                    held[k] = dst[np.uint64(min(at, last))]
            for d in range(rank):
                for c in range(across):
                    ys[c] = q[np.uint64(d * columns + min(column + c * LANES, columns - 1))]
                for r in range(_TALL):
                    a = p[np.uint64(min(row + r, rows - 1) * rank + d)]
                    for c in range(across):
                        sums[r * across + c] += product(a, ys[c])
            for k in range(values):
                j = column + k % across * LANES
                at = (row + k // across) * columns + j
                if j < columns and at <= last:
                    dst[np.uint64(at)] = held[k] + sums[k] if adds else sums[k]

    return multiplier
