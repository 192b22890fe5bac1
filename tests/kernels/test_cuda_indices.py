"""Packed indices on a device against those on the host."""

import numpy as np
import pytest
from device import to_device, to_host

from collcomp.kernels import cpu, cuda


def launch_all(real):
    """Every kernel once, for the compiler."""
    if real is np.float64:  # they know no floats
        return
    kernels, indices = cuda.load("indices"), to_device(np.arange(300, dtype=np.uint32))
    widths, words = to_device(np.zeros(2, np.uint8)), to_device(np.zeros(9, np.uint32))
    numbers, counters = to_device(np.zeros(300, np.int64)), to_device(np.zeros(1, np.int32))
    bitmap = to_device(np.zeros(5, np.uint64))
    kernels.measure(indices, widths, counters)
    kernels.pack_gaps(indices, widths, words)
    kernels.unpack_gaps(widths, words, indices, numbers)
    kernels.to_bitmap(indices, bitmap)
    kernels.ones(bitmap, numbers)
    kernels.from_bitmap(bitmap, indices, numbers)
    kernels.are_ascending(indices, 300, counters)


def _indices(k, gap):
    gaps = np.random.default_rng(k).geometric(1 / gap, k)
    return (gaps.cumsum() - 1).astype(np.uint32)


INDICES = {
    "many": _indices(900, 40),
    "one block": _indices(256, 3),
    "few": _indices(5, 1e6),
    "neighbours": np.arange(7, 307, dtype=np.uint32),
    "far apart": np.append(np.arange(256, dtype=np.uint32), [0x7FFFFFFF, 0xFFFFFFFE]).astype(np.uint32),
    "one": np.array([0xFFFFFFFE], np.uint32),
}


def _packed(indices):
    widths = np.empty(-(-indices.size // 256), np.uint8)
    total = cpu.load("indices").measure(indices, widths, np.empty(256, np.uint32))
    words = np.empty(total, np.uint32)
    cpu.load("indices").pack_gaps(indices, widths, np.empty(256, np.uint32), words)
    return widths, words


def _unpacked(widths, words, k):
    indices, totals = to_device(np.full(k, 7, np.uint32)), to_device(np.empty(widths.size, np.int64))
    cuda.load("indices").unpack_gaps(to_device(widths), to_device(words), indices, totals)
    return to_host(indices)


@pytest.mark.parametrize("name", INDICES)
def test_gaps(name):
    kernels, indices = cuda.load("indices"), INDICES[name]
    widths, words = _packed(indices)
    on_device, found = to_device(indices), to_device(np.full(widths.size, 7, np.uint8))
    counters, packed = to_device(np.zeros(1, np.int32)), to_device(np.full(words.size, 7, np.uint32))
    kernels.measure(on_device, found, counters)
    assert to_host(counters)[0] == words.size
    assert np.array_equal(to_host(found), widths)
    kernels.pack_gaps(on_device, found, packed)
    assert np.array_equal(to_host(packed), words)
    assert np.array_equal(_unpacked(widths, words, indices.size), indices)


@pytest.mark.parametrize("damage", ["cut off", "too wide", "too far"])
def test_what_makes_no_sense_is_nowhere(damage):
    indices = INDICES["many"]
    widths, words = _packed(indices)
    if damage == "cut off":
        words = words[:20]
    elif damage == "too wide":
        widths[1] = 33
    else:
        words[:] = 0xFFFFFFFF
        widths[:] = 32
    found = _unpacked(widths, words, indices.size)
    assert np.all(found[1:].astype(np.int64) - found[:-1] >= 0)
    if damage == "too wide":
        assert np.array_equal(found[:256], indices[:256])
        assert np.all(found[256:] == cuda.load("indices").NOWHERE)
    if damage == "too far":
        assert np.all(found == cuda.load("indices").NOWHERE)


@pytest.mark.parametrize("name", ["one block", "many"])
def test_bitmaps(name):
    kernels, indices = cuda.load("indices"), INDICES[name]
    bitmap = np.empty(int(indices[-1]) // 64 + 2, np.uint64)
    cpu.load("indices").to_bitmap(indices, bitmap)
    made = to_device(np.full(bitmap.size, 7, np.uint64))
    kernels.to_bitmap(to_device(indices), made)
    assert np.array_equal(to_host(made), bitmap)
    counts = to_device(np.empty(kernels.counts_size(bitmap.size), np.int64))
    kernels.ones(made, counts)
    assert to_host(counts).sum() == indices.size
    for k in (indices.size, indices.size - 3, indices.size + 3):
        found = to_device(np.full(k, 7, np.uint32))
        kernels.from_bitmap(made, found, counts)
        expected = np.append(indices, np.full(3, kernels.NOWHERE, np.uint32))
        assert np.array_equal(to_host(found), expected[:k])


def test_are_ascending():
    indices = INDICES["one block"].copy()
    count = int(indices[-1]) + 1
    counters = to_device(np.zeros(2, np.int32))
    cuda.load("indices").are_ascending(to_device(indices), count, counters)
    assert to_host(counters).tolist() == [0, 0]
    cuda.load("indices").are_ascending(to_device(indices), count - 1, counters)
    assert to_host(counters).tolist() == [1, 0]
    indices[100] = indices[99]
    cuda.load("indices").are_ascending(to_device(indices), count, counters)
    assert to_host(counters).tolist() == [2, 0]
