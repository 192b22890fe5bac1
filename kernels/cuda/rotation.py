"""The randomised Walsh-Hadamard transform (see `kernels.cpu.rotation`), by `kernels.cuda.butterflies`.

Blocks have the size of `diagonal`; the last one of `src`, `acc` or `residual` may be cut off, those of rotated values
are whole. Which blocks are *plain* is said by bits of the uint32 numbers in `plain`: block b by bit ``first + b``.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.butterflies import Steps, transform
from collcomp.kernels.cuda.jit import inlined
from collcomp.kernels.cuda.primitives import product

__all__ = ["LIMIT", "rotate", "unrotate", "unrotate_add", "unrotate_subtract"]

#: As in `kernels.cpu.rotation`.
LIMIT = 2.0**90


def rotate(src: Any, residual: Any, diagonal: Any, dst: Any, plain: Any, first: int) -> None:
    """Rotate the blocks of `src` into `dst`; zeros are added to the last, bits of `plain` are set which are zero yet.

    Unless `residual` is None, `src` is added to it first, and it is rotated then.
    """
    steps = _rotating(dst.dtype.type, residual is not None)
    _transform(steps, src, src if residual is None else residual, diagonal, dst, plain, first)


def unrotate(y: Any, diagonal: Any, plain: Any, first: int) -> None:
    """Undo `rotate`, in place."""
    _transform(_unrotating(y.dtype.type, "in place"), y, y, diagonal, y, plain, first)


def unrotate_add(src: Any, diagonal: Any, plain: Any, first: int, acc: Any) -> None:
    """Undo `rotate` and add the values to `acc`; `src` is overwritten."""
    _transform(_unrotating(src.dtype.type, "add"), src, acc, diagonal, src, plain, first)


def unrotate_subtract(src: Any, diagonal: Any, plain: Any, first: int, residual: Any) -> None:
    """Undo `rotate` and leave in `residual` what differs, or 0 where that value is not finite; `src` is overwritten."""
    _transform(_unrotating(src.dtype.type, "subtract"), src, residual, diagonal, src, plain, first)


def _transform(steps: Steps, src: Any, other: Any, diagonal: Any, rotated: Any, plain: Any, first: int) -> None:
    size = diagonal.size
    arguments = (src, other, diagonal, rotated, plain, first, size.bit_length() - 1)
    transform(steps, arguments, size, 0, rotated.size, rotated)


# ---------------------------------------------------------------------- steps: arguments as in `_transform`


@inlined
def _is_plain(arguments, i):
    bit = arguments[5] + (i >> arguments[6])
    return (np.int64(arguments[4][bit >> 5]) >> (bit & 31)) & 1 != 0


@inlined
def _set_plain(arguments, i):
    bit = arguments[5] + (i >> arguments[6])
    cuda.atomic.or_(arguments[4], bit >> 5, np.uint32(1 << (bit & 31)))


@inlined
def _factor(arguments, i):
    diagonal = arguments[2]
    return diagonal[i & (diagonal.size - 1)]


@functools.cache
def _rotating(real, adds):
    limit, zero = real(LIMIT), real(0)

    @inlined
    def load(arguments, i):
        src = arguments[0]
        if i >= src.size:
            return zero
        return src[i] + arguments[1][i] if adds else src[i]

    @inlined
    def enter(arguments, i, x):
        if adds and i < arguments[1].size:
            arguments[1][i] = x
        if not abs(x) < limit and not _is_plain(arguments, i):
            _set_plain(arguments, i)
        return product(x, _factor(arguments, i))

    @inlined
    def fetch(arguments, i):
        return zero

    @inlined
    def leave(arguments, i, y, fetched):
        if _is_plain(arguments, i):
            held = arguments[1]
            y = held[i] if i < held.size else zero
        arguments[3][i] = y

    return Steps(load, enter, _is_plain, fetch, leave)


@functools.cache
def _unrotating(real, how):
    infinity, zero = real(np.inf), real(0)

    @inlined
    def load(arguments, i):
        return arguments[0][i]

    @inlined
    def enter(arguments, i, x):
        return x

    @inlined
    def fetch(arguments, i):
        other = arguments[1]
        return other[i] if how != "in place" and i < other.size else zero

    @inlined
    def leave(arguments, i, y, fetched):
        other = arguments[1]
        x = arguments[0][i] if _is_plain(arguments, i) else product(y, _factor(arguments, i))
        if i < other.size:
            if how == "add":
                x = fetched + x
            elif how == "subtract":
                x = fetched - x if abs(x) < infinity else zero
            other[i] = x

    return Steps(load, enter, _is_plain, fetch, leave)
