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
from collcomp.kernels.cuda.operands import with_nan_of

__all__ = ["LIMIT", "rotate", "unrotate", "unrotate_add", "unrotate_subtract"]

#: As in `kernels.cpu.rotation`.
LIMIT = 2.0**90


def rotate(src: Any, residual: Any, diagonal: Any, dst: Any, plain: Any, first: int) -> None:
    """Rotate the blocks of `src` into `dst`; zeros are added to the last, bits of `plain` are set which are zero yet.

    Unless `residual` is None, `src` is added to it first, and it is rotated then.
    """
    steps = _rotating(dst.dtype.type, residual is not None)
    _transform(steps, False, src, src if residual is None else residual, diagonal, dst, plain, first)


def unrotate(y: Any, diagonal: Any, plain: Any, first: int) -> None:
    """Undo `rotate`, in place."""
    _transform(_unrotating(y.dtype.type, "in place"), True, y, y, diagonal, y, plain, first)


def unrotate_add(src: Any, diagonal: Any, plain: Any, first: int, acc: Any) -> None:
    """Undo `rotate` and add the values to `acc`; `src` is overwritten."""
    _transform(_unrotating(src.dtype.type, "add"), True, src, acc, diagonal, src, plain, first)


def unrotate_subtract(src: Any, diagonal: Any, plain: Any, first: int, residual: Any) -> None:
    """Undo `rotate` and leave in `residual` what differs, or 0 where that value is not finite; `src` is overwritten."""
    _transform(_unrotating(src.dtype.type, "subtract"), True, src, residual, diagonal, src, plain, first)


def _transform(
    steps: Steps, back: bool, src: Any, other: Any, diagonal: Any, rotated: Any, plain: Any, first: int
) -> None:
    transform(steps, (src, other, rotated, plain, first), diagonal, back, rotated.size, other.size, rotated)


# ---------------------------------------------------------------------- steps: arguments as in `_transform`


@inlined
def _is_plain(arguments, b):
    bit = arguments[4] + b
    return (np.int64(arguments[3][bit >> 5]) >> (bit & 31)) & 1 != 0


@inlined
def _set_plain(arguments, b):
    bit = arguments[4] + b
    cuda.atomic.or_(arguments[3], bit >> 5, np.uint32(1 << (bit & 31)))


@functools.cache
def _rotating(real, adds):
    limit, zero = real(LIMIT), real(0)

    @inlined
    def load(arguments, b, i):
        x = arguments[0][np.uint64(i)]
        return with_nan_of(x, x + arguments[1][np.uint64(i)]) if adds else x

    @inlined
    def note(arguments, b, i, x):
        if adds:
            arguments[1][np.uint64(i)] = x
        if not abs(x) < limit and not _is_plain(arguments, b):
            _set_plain(arguments, b)

    @inlined
    def fetch(arguments, b, i):
        return zero

    @inlined
    def leave(arguments, b, i, y, fetched, stays):
        if stays:
            values = arguments[1]
            y = values[i] if i < values.size else zero
        arguments[2][np.uint64(i)] = y

    return Steps(load, note, _is_plain, fetch, leave)


@functools.cache
def _unrotating(real, how):
    infinity, zero = real(np.inf), real(0)

    @inlined
    def load(arguments, b, i):
        return arguments[0][np.uint64(i)]

    @inlined
    def note(arguments, b, i, x):
        pass

    @inlined
    def fetch(arguments, b, i):
        return zero if how == "in place" else arguments[1][np.uint64(i)]

    @inlined
    def leave(arguments, b, i, y, fetched, stays):
        x = arguments[0][i] if stays else y
        if how == "add":
            x = fetched + x
        elif how == "subtract":
            x = fetched - x if abs(x) < infinity else zero
        arguments[1][np.uint64(i)] = x

    return Steps(load, note, _is_plain, fetch, leave)
