"""Selecting the elements of largest magnitude, and putting them back (see `kernels.cpu.sparse`).

The selection is that of the CPU: magnitudes are compared on their bits, and among equals the first wins. Where the CPU
samples to read a message once, a device reads it once for each digit of a radix selection, which needs no luck and no
waiting. Elements are written in order: one kernel counts what each warp will write, and one writes.

Shapes: `x`, `addend`, `dst`, `acc` (count,) float32 or float64, `bits` unsigned integers; `indices` (k,) uint32,
ascending; `values` (k,); `scratch` (`scratch_size(count)`,) int64, zeros at first; `counters` int32. Functions that put
elements back skip those whose index is not below the number of elements.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from collcomp.kernels.cuda.bits import hash32, integer_of
from collcomp.kernels.cuda.jit import LANES, THREADS, grid, inlined, kernel, launch
from collcomp.kernels.cuda.operands import with_nan_of
from collcomp.kernels.cuda.primitives import bits_of, lane_sums_before, votes
from collcomp.kernels.cuda.scans import STEP, WARPS, blocks_for, sums_before, total_before, walking

__all__ = [
    "clear",
    "collect",
    "collect_nonzeros",
    "count_above",
    "count_nonzeros",
    "gather",
    "largest",
    "sample_size",
    "sampled",
    "scatter",
    "scatter_add",
    "scratch_size",
]

#: Elements that are sampled at one place.
_RUN = 16
_DIGIT_BITS = 11
_DIGITS = 1 << _DIGIT_BITS
#: Numbers at the start of `scratch`: of the radix selection, and how often each digit occurs, two in an int64.
_STATE = 4
_COUNTS = _STATE + _DIGITS // 2


def scratch_size(count: int) -> int:
    """How many numbers `scratch` has for `count` elements."""
    return _COUNTS + WARPS * _blocks(count)


def largest(x: Any, addend: Any, k: int, indices: Any, values: Any, scratch: Any) -> None:
    """Select the `k` elements of `x` with the largest magnitude, exactly, ``0 < k <= count``.

    With an `addend`, `x` becomes ``x + addend`` first.
    """
    form, blocks = x.dtype.type, _blocks(x.size)
    state, digits = scratch[:_STATE], scratch[_STATE:_COUNTS].view(np.uint32)
    bits = 8 * x.itemsize - 1
    adds = addend is not None
    for shift in range(bits, 0, -_DIGIT_BITS):
        below = max(shift - _DIGIT_BITS, 0)
        terms = (x, addend) if adds and shift == bits else (x,)
        launch(_digit_finder(form, len(terms) == 2), blocks, terms, k, shift, below, state, digits)
    found = scratch[_COUNTS:]
    launch(_counter(form, False, False), blocks, (x,), state, found, found)
    launch(_writer(form), blocks, x, state, found, indices, values)


def count_above(x: Any, addend: Any, threshold: int, scratch: Any, counters: Any) -> None:
    """Count the elements of ``x + addend``, which `x` becomes, above the magnitude `threshold`, for `collect`."""
    terms = (x,) if addend is None else (x, addend)
    found = scratch[_COUNTS:]
    launch(_counter(x.dtype.type, addend is not None, True), _blocks(x.size), terms, (threshold, 0), found, counters)


def collect(x: Any, threshold: int, indices: Any, values: Any, scratch: Any) -> None:
    """Collect the elements that `count_above` has counted, as many as `indices` and `values` have places."""
    launch(_writer(x.dtype.type), _blocks(x.size), x, (threshold, 0), scratch[_COUNTS:], indices, values)


def count_nonzeros(bits: Any, scratch: Any, counters: Any) -> None:
    """Count the integers that are not 0, for `collect_nonzeros`."""
    count_above(bits, None, 0, scratch, counters)


def collect_nonzeros(bits: Any, indices: Any, values: Any, scratch: Any) -> None:
    """Collect the integers that are not 0, as many as `indices` and `values` have places."""
    collect(bits, 0, indices, values, scratch)


def sample_size(count: int, size: int) -> int:
    """How many elements `sampled` takes of `count` where `size` are asked for."""
    return count if count < 2 * size else size // _RUN * _RUN


def sampled(x: Any, addend: Any, sample: Any) -> None:
    """Elements of ``x + addend``, those that the CPU's `sampled` takes; `sample` has `sample_size` places."""
    run = sample.size if sample.size == x.size else _RUN
    terms = (x,) if addend is None else (x, addend)
    launch(_sampler(addend is not None), grid(-(-sample.size // THREADS)), terms, sample, run)


def scatter(indices: Any, values: Any, dst: Any) -> None:
    """``dst[indices] = values``, the others zero."""
    dst.fill(0)
    _each(_scatter, indices, values, dst)


def scatter_add(indices: Any, values: Any, acc: Any) -> None:
    """``acc[indices] += values``."""
    _each(_scatter_add, indices, values, acc)


def gather(indices: Any, x: Any, values: Any) -> None:
    """``values = x[indices]``."""
    _each(_gather, indices, values, x)


def clear(indices: Any, x: Any) -> None:
    """``x[indices] = 0``."""
    _each(_clear, indices, x)


def _blocks(count: int) -> int:
    return blocks_for(-(-count // STEP))


def _each(function: Any, indices: Any, *arrays: Any) -> None:
    if indices.size:
        launch(function, grid(-(-indices.size // THREADS)), indices, *arrays)


# ---------------------------------------------------------------------- kernels


@functools.cache
def _ranking(form):
    """The type of ranks, and a function from elements to them: magnitudes, of unsigned integers 0 and 1."""
    if issubclass(form, np.floating):
        integer = integer_of(form)
        magnitude = integer(np.iinfo(integer).max)

        @inlined
        def rank(x):
            return integer(bits_of(x) & magnitude)  # not of abs(x), which may change the bits of NaN

        return integer, rank

    @inlined
    def rank(x):
        return np.int32(x != 0)

    return np.int32, rank


@inlined
def _sum(terms, i):
    """Element i of the sum of two arrays; NaN as the first of them that is."""
    x, y = terms[0][i], terms[1][i]
    return with_nan_of(x, with_nan_of(y, x + y))


@functools.cache
def _loading(form, adds):
    """Element i of the sum of ``arrays[0]``, 0 where there is none."""

    @inlined
    def get(arrays, i, count):
        if i >= count:
            return form(0)
        if adds:
            return _sum(arrays[0], i)
        return arrays[0][0][i]

    return get


@functools.cache
def _digit_finder(form, adds):
    """One digit of a radix selection: all thread blocks count, and the last one to end decides.

    Until the last digit, `state` has the digits of the threshold so far, how many elements are larger than those that
    begin like it, whether that is all (see below), and how many thread blocks have ended. Then it has the threshold,
    and how many of the elements that equal it are selected; where all that begin like it are, a threshold below them.
    """
    _, rank = _ranking(form)

    @inlined
    def visit(arrays, i, value, count, state):
        terms, digits, shift, below, prefix = arrays
        if i < count:
            if adds:
                terms[0][i] = value
            m = np.int64(rank(value))
            if m >> shift == prefix:
                cuda.atomic.add(digits, (m >> below) & ((1 << (shift - below)) - 1), 1)
        return state

    walk = walking(_loading(form, adds), visit)

    @kernel
    def find_digit(terms, k, shift, below, state, counts):
        digits = cuda.shared.array(_DIGITS, np.uint32)
        is_last = cuda.shared.array(1, np.int32)
        if state[2] != 0:
            return
        thread = cuda.threadIdx.x
        for digit in range(thread, _DIGITS, THREADS):
            digits[digit] = 0
        cuda.syncthreads()
        walk((terms, digits, shift, below, state[0]), terms[0].size, 0)
        cuda.syncthreads()
        for digit in range(thread, _DIGITS, THREADS):
            if digits[digit] != 0:
                cuda.atomic.add(counts, digit, digits[digit])
        cuda.threadfence()
        cuda.syncthreads()
        if thread == 0:
            is_last[0] = cuda.atomic.add(state, 3, 1) == cuda.gridDim.x - 1
        cuda.syncthreads()
        if is_last[0] == 0:
            return
        cuda.threadfence()
        # From the largest digit downward, each thread has as many neighbours.
        each = _DIGITS // THREADS
        digit = _DIGITS - 1 - thread * each
        here = np.int64(0)
        for d in range(digit - each + 1, digit + 1):
            here += np.int64(counts[d])
        left = k - state[1]
        before, _ = sums_before(here)
        if before < left and left <= before + here:
            while before + np.int64(counts[digit]) < left:
                before += np.int64(counts[digit])
                digit -= 1
            prefix = (state[0] << (shift - below)) | digit
            if below == 0:
                state[0], state[1] = prefix, left - before
            elif np.int64(counts[digit]) == left - before:
                state[0], state[1], state[2] = (prefix << below) - 1, 0, 1
            else:
                state[0], state[1] = prefix, k - left + before
        for d in range(thread * each, (thread + 1) * each):
            counts[_DIGITS - 1 - d] = 0
        if thread == 0:
            state[3] = 0

    return find_digit


@functools.cache
def _counter(form, adds, reports):
    """What each warp finds above ``limit[0]``, and in the upper half of the number what equals it."""
    integer, rank = _ranking(form)

    @inlined
    def visit(arrays, i, value, count, found):
        if i < count:
            if adds:
                arrays[0][0][i] = value
            m = rank(value)
            if m > arrays[1]:
                found += 1
            elif m == arrays[1]:
                found += 1 << 32
        return found

    walk = walking(_loading(form, adds), visit)

    @kernel
    def count(terms, limit, counts, counters):
        found = walk((terms, integer(limit[0])), terms[0].size, np.int64(0))
        _, in_warp = lane_sums_before(found)
        if cuda.threadIdx.x % LANES == 0:
            counts[cuda.grid(1) // LANES] = in_warp
            if reports:
                cuda.atomic.add(counters, 0, np.int32(in_warp & 0x7FFFFFFF))

    return count


@functools.cache
def _writer(form):
    """Write what is above ``limit[0]``, and the first ``limit[1]`` of the elements that equal it."""
    integer, rank = _ranking(form)
    none = integer(-1)

    @inlined
    def visit(arrays, i, value, count, found):
        threshold, ties, indices, values = arrays[1:]
        above, equal = found
        m = rank(value) if i < count else none
        is_above, is_equal = votes(m > threshold), votes(m == threshold)
        before = np.uint32((1 << (cuda.threadIdx.x % LANES)) - 1)
        equal_before = equal + cuda.popc(np.uint32(is_equal & before))
        if m > threshold or (m == threshold and equal_before < ties):
            place = above + cuda.popc(np.uint32(is_above & before)) + min(equal_before, ties)
            if place < indices.size:
                indices[place] = i
                values[place] = value
        return above + cuda.popc(is_above), equal + cuda.popc(is_equal)

    walk = walking(_loading(form, False), visit)

    @kernel
    def write(x, limit, counts, indices, values):
        found = total_before(counts, cuda.blockIdx.x * WARPS, cuda.grid(1) // LANES)
        arrays = ((x,), integer(limit[0]), np.int64(limit[1]), indices, values)
        walk(arrays, x.size, (found & 0xFFFFFFFF, (found >> 32) & 0xFFFFFFFF))

    return write


@functools.cache
def _sampler(adds):
    @kernel
    def sample(terms, sampled, run):
        part = terms[0].size // (sampled.size // run)
        for j in range(cuda.grid(1), sampled.size, cuda.gridsize(1)):
            r = j // run
            i = r * part + np.int64(hash32(np.uint64(r), 0)) % (part - run + 1) + j % run
            if adds:
                sampled[j] = _sum(terms, i)
            else:
                sampled[j] = terms[0][i]

    return sample


@kernel
def _scatter(indices, values, dst):
    for j in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        i = np.int64(indices[j])
        if i < dst.size:
            dst[i] = values[j]


@kernel
def _scatter_add(indices, values, acc):
    for j in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        i = np.int64(indices[j])
        if i < acc.size:
            acc[i] += values[j]


@kernel
def _gather(indices, values, x):
    for j in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        values[j] = x[np.int64(indices[j])]


@kernel
def _clear(indices, x):
    for j in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        x[np.int64(indices[j])] = 0
