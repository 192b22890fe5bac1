"""Selecting the elements of largest magnitude, and putting them back.

Magnitudes are compared on their bits, so NaN counts as larger than infinity; among equals the first wins, so the
selection depends on the values only.

Shapes: `x`, `addend`, `dst`, `acc` (count,) float32 or float64; `indices` (k,) uint32, ascending; `values` (k,).
"""

import math

import numpy as np

from collcomp.kernels.cpu.bits import count_ones, count_trailing_zeros, hash32, magnitude, magnitudes_above
from collcomp.kernels.cpu.jit import kernel

__all__ = ["are_ascending", "clear", "largest", "scatter", "scatter_add"]

_LANES = 64
#: Elements that stay in the first cache between the addition and the comparison.
_TILE = 1024
#: Elements that are sampled at one place: one cache line of float32.
_RUN = 16
_SAMPLED = 1 / 256
_MIN_SAMPLE = 8192
_DIGIT = 11


def largest(x, addend, indices, values):
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
    indices, values : ndarray, shape (k,)
        Where the selection goes, ``0 < k <= count``.
    """
    k = indices.size
    if x.size < 2 * _MIN_SAMPLE:
        if addend is not None:
            x += addend
        _select(x, None, *_kth_largest(x, k), indices, values)
        return
    capacity = min(x.size, 4 * k + 2 * _MIN_SAMPLE)
    candidates, their_values = np.empty(capacity + _LANES, np.uint32), np.empty(capacity + _LANES, x.dtype)
    threshold = _sampled_threshold(x, addend, k)
    found = _collect(x, addend, threshold, candidates, their_values)
    if k <= found <= capacity:
        candidates, their_values = candidates[:found], their_values[:found]
        _select(their_values, candidates, *_kth_largest(their_values, k), indices, values)
    elif found < k <= _count_from(x, threshold):
        _select(x, None, threshold, k - found, indices, values)
    else:
        _select(x, None, *_kth_largest(x, k), indices, values)


def _sampled_threshold(x, addend, k):
    size = max(_MIN_SAMPLE, int(x.size * _SAMPLED)) // _RUN * _RUN
    sample = np.empty(size, x.dtype)
    _sample(x, addend, sample)
    expected = k * size / x.size
    # Neighbours are alike, so a run of them says less than as many independent elements: a wide margin.
    rank = min(size, math.ceil(expected + 6 * math.sqrt(expected) + 4))
    return _kth_largest(sample, rank)[0]


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


def _kth_largest(x, k):
    """The magnitude of rank `k` from above, by radix selection, and how many elements equal to it rank up to `k`."""
    return _radix_select(x, k, np.empty(1 << _DIGIT, np.int64))


@kernel
def _radix_select(x, k, counts):
    prefix = np.int64(0)
    shift = 8 * x.itemsize - 1
    while shift > 0:
        below = max(shift - _DIGIT, 0)
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
def _collect(x, addend, threshold, indices, values):
    """Collect the elements above `threshold`; return how many there are in all.

    Nothing more is written when fewer than 64 places are left in `indices` and `values`.
    """
    last = indices.size - _LANES
    found = 0
    for begin in range(0, x.size, _TILE):
        end = min(begin + _TILE, x.size)
        if addend is not None:
            tile, added = x[begin:end], addend[begin:end]
            for i in range(tile.size):
                tile[i] += added[i]
        start = begin
        while start + _LANES <= end:
            lanes = magnitudes_above(x, start, threshold)
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
            start += _LANES
        for i in range(start, end):
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
    """Select the elements above `threshold` and the first `ties` of those equal to it; `labels` are their indices."""
    found = 0
    for i in range(x.size):
        m = magnitude(x[i])
        if m >= threshold:
            if m == threshold:
                if ties == 0:
                    continue
                ties -= 1
            indices[found] = i if labels is None else labels[i]
            values[found] = x[i]
            found += 1


@kernel
def are_ascending(indices, count):
    """Whether `indices` rise strictly and stay below `count`, so that scattering by them is safe."""
    wrong = 0
    for i in range(indices.size - 1):
        wrong |= indices[i] >= indices[i + 1]
    return wrong == 0 and (indices.size == 0 or indices[indices.size - 1] < count)


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
def clear(indices, x):
    """``x[indices] = 0``."""
    for i in range(indices.size):
        x[indices[i]] = 0
