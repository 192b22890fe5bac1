"""Integers on one scale for a whole message (see `kernels.cpu.shared_scale`): one thread an element.

Shapes: `src`, `dst`, `residual`, `acc` (count,) float32 or float64; `codes` (count,) int8, int16 or int32; `peak` (1,)
the integers of the floats' size; `inverse`, `step` (1,) as `src`: NaN where there is no scale.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.bits import integer_of, magnitude
from collcomp.kernels.cuda.jit import LANES, inlined, kernel, launch
from collcomp.kernels.cuda.operands import with_nan_of
from collcomp.kernels.cuda.primitives import largest_of_lanes, product
from collcomp.kernels.cuda.sweeps import sweeping, tiles

__all__ = ["add_largest", "decode", "decode_add", "encode", "encode_feedback", "fit", "largest"]


def largest(x: Any, peak: Any) -> None:
    """Raise `peak` to the bits of the largest magnitude of `x`, which are above infinity's where there is a NaN."""
    launch(_measurer(x.dtype.type, False), tiles(x.size), x, x, peak)


def add_largest(src: Any, residual: Any, peak: Any) -> None:
    """``residual += src``, and raise `peak` to the bits of the largest magnitude of the sums."""
    launch(_measurer(src.dtype.type, True), tiles(src.size), src, residual, peak)


def fit(
    peak: Any, divisor: float, limits: tuple[float, float], scale: Any, step: Any, inverse: Any, counters: Any
) -> None:
    """Fit the scale to the largest magnitude.

    Parameters
    ----------
    peak, scale : array of float64, shape (1,)
        The scale is ``peak / divisor``.
    limits : tuple of float
        The least `peak` above 0 that has a scale, and the least above that which has none.
    step, inverse : array, shape (1,)
        Get the scale and its inverse, in the dtype of the values.
    counters : array of int32
        Counts one where there is no scale.
    """
    launch(_fitter_in_float64(step.dtype.type), 1, peak, divisor, limits, scale, step, inverse, counters, threads=1)


def encode(src: Any, inverse: Any, codes: Any) -> None:
    """``src * inverse`` rounded to nearest, ties to even; zeros where there is no scale."""
    launch(_encoder(src.dtype.type, codes.dtype.type, False), tiles(src.size), src, inverse, inverse, codes)


def encode_feedback(residual: Any, inverse: Any, step: Any, codes: Any) -> None:
    """`encode` of `residual`, which keeps what was rounded off, and all where there is no scale."""
    launch(_encoder(residual.dtype.type, codes.dtype.type, True), tiles(residual.size), residual, inverse, step, codes)


def decode(codes: Any, step: Any, dst: Any) -> None:
    """``codes * step``."""
    launch(_decoder(dst.dtype.type, False), tiles(dst.size), codes, step, dst)


def decode_add(codes: Any, step: Any, acc: Any) -> None:
    """``acc += codes * step``."""
    launch(_decoder(acc.dtype.type, True), tiles(acc.size), codes, step, acc)


# ---------------------------------------------------------------------- kernels


@functools.cache
def _measurer(real, adds):
    integer = integer_of(real)

    @kernel
    def measurer(src, residual, peak):
        found = integer(0)
        for i in range(cuda.grid(1), src.size, cuda.gridsize(1)):
            x = src[i]
            if adds:
                x = with_nan_of(x, x + residual[i])
                residual[i] = x
            found = max(found, magnitude(x))
        found = largest_of_lanes(found)
        # Few have to ask for the address that all would wait for.
        if cuda.threadIdx.x % LANES == 0 and found > peak[0]:
            cuda.atomic.max(peak, 0, found)

    return measurer


@functools.cache
def _fitter_in_float64(real):
    @kernel
    def fitter(peak, divisor, limits, scale, step, inverse, counters):
        scale[0] = np.nan
        step[0] = real(np.nan)
        inverse[0] = real(np.nan)
        if peak[0] == 0:
            scale[0] = 0.0
            step[0] = real(0)
            inverse[0] = real(0)
        elif limits[0] <= peak[0] < limits[1]:
            fitted = peak[0] / divisor
            scale[0] = fitted
            step[0] = real(fitted)
            inverse[0] = real(1.0 / fitted)
        else:
            counters[0] += 1

    return fitter


@functools.cache
def _encoder(real, integer, keeps):
    # Where the last place of a float is 1.
    whole = real(2 ** np.finfo(real).nmant)

    @inlined
    def get(arrays, i):
        return arrays[0][i]

    @inlined
    def put(arrays, i, value, first):
        values, codes, inverse, step = arrays
        code = np.int32(0)
        if not np.isnan(inverse):
            x = product(value, inverse)
            size = abs(x)
            if size < whole:
                size = (size + whole) - whole
            code = np.int32(size if x > 0 else -size)
        codes[i] = integer(code)
        if keeps and not np.isnan(step):
            values[i] = value - product(real(code), step)

    sweep = sweeping(get, put)

    @kernel
    def encoder(values, inverse, step, codes):
        sweep((values, codes, inverse[0], step[0]), values.size)

    return encoder


@functools.cache
def _decoder(real, adds):
    @inlined
    def get(arrays, i):
        return arrays[0][i], arrays[1][i] if adds else real(0)

    @inlined
    def put(arrays, i, read, first):
        code, before = read
        value = product(real(code), arrays[2])
        arrays[1][i] = before + value if adds else value

    sweep = sweeping(get, put)

    @kernel
    def decoder(codes, step, dst):
        sweep((codes, dst, step[0]), dst.size)

    return decoder
