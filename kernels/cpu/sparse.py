"""Selecting the elements of largest magnitude, and putting them back.

Magnitudes are compared on their bits, so NaN counts as larger than infinity; among equals the first wins, so the
selection depends on the values only.

Shapes: `x`, `addend`, `dst`, `acc` (count,) float32 or float64; `indices` (k,) uint32, ascending; `values` (k,).
"""

import math

import numpy as np

from collcomp.kernels.cpu.bits import count_trailing_zeros, hash32, magnitude, magnitudes_above
from collcomp.kernels.cpu.jit import kernel

__all__ = ["are_ascending", "clear", "largest", "scatter", "scatter_add"]

_LANES = 64
#: Elements that stay in the first cache between the addition and the comparison.
_TILE = 4096
#: Elements that are sampled at one place: one cache line of float32.
_RUN = 16
_SAMPLED = 1 / 256
_MIN_SAMPLE = 8192
_TWINS = {np.dtype(np.float32): np.dtype(np.int32), np.dtype(np.float64): np.dtype(np.int64)}


def largest(x, addend, indices, values):
    """Select the `k` elements of `x` with the largest magnitude, exactly.

    A sample gives a threshold that somewhat more than `k` elements exceed, one pass collects these, and the exact
    selection is made among them. Where the sample was wrong, bisection on the threshold goes on, for 63 passes at most.

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
        _select_among(x, None, indices, values)
        return
    capacity = min(x.size, 4 * k + 2 * _MIN_SAMPLE)
    candidates, their_values = np.empty(capacity, np.uint32), np.empty(capacity, x.dtype)
    twin = _TWINS[x.dtype].type
    # Invariant: more than `below` are at least k elements, more than `above` fewer than k.
    below, above = -1, int(np.iinfo(twin).max)
    threshold = _sampled_threshold(x, addend, k)
    while above - below > 1:
        found = _collect(x, addend, twin(threshold), candidates, their_values)
        addend = None
        if k <= found <= capacity:
            _select_among(their_values[:found], candidates[:found], indices, values)
            return
        if found < k:
            # Many equal elements are the likeliest cause, and then the next smaller threshold settles it.
            first_miss = above == np.iinfo(twin).max
            above, threshold = threshold, threshold - 1
            if not first_miss:
                threshold = (below + above) // 2
        else:
            below, threshold = threshold, (threshold + above) // 2
        threshold = max(threshold, below + 1)
    if addend is not None:
        x += addend
    _select(x, None, twin(above), k - _collect(x, None, twin(above), candidates, their_values), indices, values)


def _sampled_threshold(x, addend, k):
    size = max(_MIN_SAMPLE, int(x.size * _SAMPLED)) // _RUN * _RUN
    sample = np.empty(size, _TWINS[x.dtype])
    _sample(x, addend, sample)
    expected = k * size / x.size
    # Neighbours are alike, so a run of them says less than as many independent elements: a wide margin.
    rank = min(size, math.ceil(expected + 6 * math.sqrt(expected) + 4))
    return int(np.partition(sample, size - rank)[size - rank])


def _select_among(x, labels, indices, values):
    twin = _TWINS[x.dtype]
    magnitudes = x.view(twin) & np.iinfo(twin).max
    threshold = np.partition(magnitudes, x.size - indices.size)[x.size - indices.size]
    ties = indices.size - np.count_nonzero(magnitudes > threshold)
    _select(x, labels, threshold, ties, indices, values)


@kernel
def _sample(x, addend, sample):
    """The magnitudes of runs at one random place of each of equally many parts of `x`."""
    runs = sample.size // _RUN
    part = x.size // runs
    for r in range(runs):
        start = r * part + np.int64(hash32(np.uint32(r), np.uint32(0))) % (part - _RUN + 1)
        for i in range(_RUN):
            if addend is None:
                sample[r * _RUN + i] = magnitude(x[start + i])
            else:
                sample[r * _RUN + i] = magnitude(x[start + i] + addend[start + i])


@kernel
def _collect(x, addend, threshold, indices, values):
    """Collect the elements above `threshold` until `indices` is full; return how many there are in all."""
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
            while lanes != 0:
                i = start + count_trailing_zeros(lanes)
                if found < indices.size:
                    indices[found] = i
                    values[found] = x[i]
                found += 1
                lanes &= lanes - np.uint64(1)
            start += _LANES
        for i in range(start, end):
            if magnitude(x[i]) > threshold:
                if found < indices.size:
                    indices[found] = i
                    values[found] = x[i]
                found += 1
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
