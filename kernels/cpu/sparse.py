"""Selecting the elements of largest magnitude, and putting them back.

Magnitudes are compared on their bits, so NaN counts as larger than infinity; among equals the first wins, so the
selection depends on the values only.

Shapes: `x`, `addend`, `dst`, `acc` (count,) float32 or float64; `indices` (k,) uint32, ascending; `values` (k,).
"""

import math

import numpy as np

from collcomp.kernels.cpu.bits import (
    count_ones,
    count_trailing_zeros,
    hash32,
    magnitude,
    magnitudes_above,
    nonzeros,
    sums_above,
)
from collcomp.kernels.cpu.jit import kernel

__all__ = [
    "clear",
    "collect",
    "collect_nonzeros",
    "count_nonzeros",
    "gather",
    "kth_largest",
    "largest",
    "merge",
    "room_for",
    "sampled",
    "scatter",
    "scatter_add",
]

_LANES = 64
#: Places for candidates beyond those that are of interest.
_SLACK = _LANES
#: Elements that are sampled at one place: one cache line of float32.
_RUN = 16
_SAMPLED = 1 / 256
_MIN_SAMPLE = 8192
#: Bits of a digit in radix selection among few and among many elements: with long digits, the first pass leaves few
#: elements for the second, whose branch is then predicted.
_SHORT_DIGIT = 11
_LONG_DIGIT = 16
_MANY = 1 << 15


def largest(x, addend, k, values):
    """Select the `k` elements of `x` with the largest magnitude, exactly.

    A sample gives a threshold that somewhat more than `k` elements exceed, one pass collects these, and the exact
    selection is made among them. Where the sample was wrong, or nearly all elements are equal, a radix selection on
    all elements follows.

    Parameters
    ----------
    x : ndarray, shape (count,)
        The elements; with an `addend`, updated to ``x + addend`` in the first pass.
    addend : ndarray, shape (count,), or None
        What is added first.
    k : int
        How many, ``0 < k <= count``.
    values : ndarray, shape (k,)
        Gets the selected elements.

    Returns
    -------
    ndarray of uint32, shape (k,)
        Their indices.
    """
    if x.size < 2 * _MIN_SAMPLE:
        if addend is not None:
            x += addend
        return _select_from_all(x, *kth_largest(x, k), values)
    capacity = min(x.size, 4 * k + 2 * _MIN_SAMPLE)
    candidates, their_values = room_for(capacity, x.dtype)
    threshold = _sampled_threshold(x, addend, k)
    found = collect(x, addend, threshold, candidates, their_values)
    if k <= found <= capacity:
        their_values = their_values[:found]
        # In place: fresh memory costs more than the selection.
        _select(their_values, candidates[:found], *kth_largest(their_values, k), candidates[:k], values)
        return candidates[:k]
    if found < k <= _count_from(x, threshold):
        return _select_from_all(x, threshold, k - found, values)
    return _select_from_all(x, *kth_largest(x, k), values)


def room_for(count, dtype):
    """Indices and values for `collect` to write `count` elements to.

    One block of memory: what several blocks take together, the C library would give back after every call, and fresh
    pages cost more than the selection.
    """
    count += _SLACK
    block = np.empty(count * (dtype.itemsize + 4), np.uint8)
    split = count * dtype.itemsize
    return block[split:].view(np.uint32), block[:split].view(dtype)


def _select_from_all(x, threshold, ties, values):
    indices = np.empty(values.size, np.uint32)
    _select(x, None, threshold, ties, indices, values)
    return indices


def _sampled_threshold(x, addend, k):
    sample = sampled(x, addend, max(_MIN_SAMPLE, int(x.size * _SAMPLED)))
    expected = k * sample.size / x.size
    # Neighbours are alike, so a run of them says less than as many independent elements: a wide margin.
    rank = min(sample.size, math.ceil(expected + 6 * math.sqrt(expected) + 4))
    return kth_largest(sample, rank)[0]


def sampled(x, addend, size):
    """About `size` elements of ``x + addend``; all where there are fewer than twice as many."""
    if x.size < 2 * size:
        return x.copy() if addend is None else x + addend
    sample = np.empty(size // _RUN * _RUN, x.dtype)
    _sample(x, addend, sample)
    return sample


@kernel
def _sample(x, addend, sample):
    """Runs of elements at one random place of each of equally many parts of `x`."""
    runs = sample.size // _RUN
    part = x.size // runs
    for r in range(runs):
        start = r * part + np.int64(hash32(np.uint32(r), np.uint32(0))) % (part - _RUN + 1)
        for i in range(_RUN):
            if addend is None:
                sample[r * _RUN + i] = x[start + i]
            else:
                sample[r * _RUN + i] = x[start + i] + addend[start + i]


def kth_largest(x, k):
    """The magnitude of rank `k` from above, by radix selection, and how many elements equal to it rank up to `k`."""
    digit = _SHORT_DIGIT if x.size < _MANY else _LONG_DIGIT
    return _radix_select(x, k, digit, np.empty(1 << digit, np.uint32))


@kernel
def _radix_select(x, k, digit_bits, counts):
    prefix = np.int64(0)
    shift = 8 * x.itemsize - 1
    while shift > 0:
        below = max(shift - digit_bits, 0)
        digits = 1 << (shift - below)
        for d in range(digits):
            counts[d] = 0
        for i in range(x.size):
            m = np.int64(magnitude(x[i]))
            if m >> shift == prefix:
                counts[(m >> below) & (digits - 1)] += 1
        digit = digits - 1
        while counts[digit] < k:
            k -= counts[digit]
            digit -= 1
        prefix = (prefix << (shift - below)) | digit
        shift = below
    return prefix, k


@kernel
def collect(x, addend, threshold, indices, values):
    """Collect the elements of ``x + addend``, which `x` becomes, above `threshold`; return how many there are in all.

    All are collected unless there are more than `indices` and `values` (of `room_for`) were made for.
    """
    last = indices.size - _LANES
    whole = x.size // _LANES * _LANES
    found = 0
    for start in range(0, whole, _LANES):
        lanes = magnitudes_above(x, start, threshold) if addend is None else sums_above(x, addend, start, threshold)
        total = found + count_ones(lanes)
        if found <= last:
            # Two writes without a branch, which could not be predicted, serve most groups.
            for _ in range(2):
                i = start + (count_trailing_zeros(lanes) & (_LANES - 1))
                indices[found] = i
                values[found] = x[i]
                found += 1
                lanes &= lanes - np.uint64(1)
            while lanes != 0:
                i = start + count_trailing_zeros(lanes)
                indices[found] = i
                values[found] = x[i]
                found += 1
                lanes &= lanes - np.uint64(1)
        found = total
    for i in range(whole, x.size):
        if addend is not None:
            x[i] += addend[i]
        if magnitude(x[i]) > threshold:
            if found < indices.size:
                indices[found] = i
                values[found] = x[i]
            found += 1
    return found


@kernel
def _count_from(x, threshold):
    """Number of elements of at least `threshold`."""
    found = 0
    for i in range(x.size):
        found += magnitude(x[i]) >= threshold
    return found


@kernel
def _select(x, labels, threshold, ties, indices, values):
    """Select the elements above `threshold` and the first `ties` of those equal to it.

    `labels` are their indices where `x` are not all elements; they may be in the memory of `indices`.
    """
    found = 0
    for i in range(x.size):
        m = magnitude(x[i])
        if m == threshold:
            if ties == 0:
                continue
            ties -= 1
        if found == indices.size:
            break
        # Written in any case and kept if it is counted: a branch could not be predicted.
        indices[found] = i if labels is None else labels[i]
        values[found] = x[i]
        found += m >= threshold


@kernel
def scatter(indices, values, dst):
    """``dst[indices] = values``, the others zero."""
    dst[:] = 0
    for i in range(indices.size):
        dst[indices[i]] = values[i]


@kernel
def scatter_add(indices, values, acc):
    """``acc[indices] += values``."""
    for i in range(indices.size):
        acc[indices[i]] += values[i]


@kernel
def gather(indices, x, values):
    """``values = x[indices]``."""
    for i in range(indices.size):
        values[i] = x[indices[i]]


@kernel
def clear(indices, x):
    """``x[indices] = 0``."""
    for i in range(indices.size):
        x[indices[i]] = 0


@kernel
def count_nonzeros(bits):
    """Number of integers that are not 0."""
    whole = bits.size // _LANES * _LANES
    found = 0
    for start in range(0, whole, _LANES):
        found += count_ones(nonzeros(bits, start))
    for i in range(whole, bits.size):
        found += bits[i] != 0
    return found


@kernel
def collect_nonzeros(bits, indices, values):
    """Collect the integers that are not 0, as many as `indices` and `values` have places."""
    whole = bits.size // _LANES * _LANES
    found = 0
    for start in range(0, whole, _LANES):
        lanes = nonzeros(bits, start)
        while lanes != 0:
            i = start + count_trailing_zeros(lanes)
            indices[found] = i
            values[found] = bits[i]
            found += 1
            lanes &= lanes - np.uint64(1)
    for i in range(whole, bits.size):
        if bits[i] != 0:
            indices[found] = i
            values[found] = bits[i]
            found += 1


@kernel
def merge(indices, values, others, their_values, merged, sums):
    """Add two selections with ascending indices; return the number of elements that either has.

    The sums are those of dense vectors, in every bit: what the first lacks is 0.0, what the second lacks adds nothing.

    Parameters
    ----------
    indices, values : ndarray
        The first.
    others, their_values : ndarray
        The second.
    merged, sums : ndarray
        Get the sum; they have places for the elements of both.
    """
    i, j, found = 0, 0, 0
    nothing, absent = sums.dtype.type(-0.0), sums.dtype.type(0.0)
    while i < indices.size and j < others.size:
        a, b = indices[i], others[j]
        # By selection, not by branches, which could not be predicted; x + -0.0 is x, whatever it is.
        merged[found] = min(a, b)
        sums[found] = (values[i] if a <= b else absent) + (their_values[j] if b <= a else nothing)
        i += a <= b
        j += b <= a
        found += 1
    while i < indices.size:
        merged[found] = indices[i]
        sums[found] = values[i]
        i += 1
        found += 1
    while j < others.size:
        merged[found] = others[j]
        sums[found] = absent + their_values[j]
        j += 1
        found += 1
    return found
