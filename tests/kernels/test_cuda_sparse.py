"""Selections on a device against those on the host."""

import numpy as np
import pytest
from device import to_device, to_host

from collcomp.kernels import cpu, cuda


def launch_all(real):
    """Every kernel once, for the compiler."""
    kernels, x = cuda.load("sparse"), to_device(np.zeros(600, real))
    indices, values, counters = (to_device(np.zeros(9, kind)) for kind in (np.uint32, real, np.int32))
    scratch = _scratch(x)
    kernels.largest(x, x, 9, indices, values, scratch)
    kernels.count_above(x, x, 5, scratch, counters)
    kernels.collect(x, 5, indices, values, scratch)
    if real is np.float32:
        kernels.count_nonzeros(x.view(np.uint32), scratch, counters)
        kernels.collect_nonzeros(x.view(np.uint32), indices, values.view(np.uint32), scratch)
    kernels.sampled(x, x, values)
    kernels.scatter(indices, values, x)
    kernels.scatter_add(indices, values, x)
    kernels.gather(indices, x, values)
    kernels.clear(indices, x)


def _scratch(x):
    return to_device(np.zeros(cuda.load("sparse").scratch_size(x.size), np.int64))


def _room(count, real):
    return to_device(np.full(count, 7, np.uint32)), to_device(np.full(count, 7, real))


def _steps(count):
    """Few distinct values, among them all that are odd."""
    choice = [0.0, -0.0, 1.0, -1.0, 2.5, np.inf, np.nan, 1e-42]
    return np.random.default_rng(count).choice(choice, count)


def _scales(count):
    return np.random.default_rng(count).standard_t(2, count)


@pytest.mark.parametrize(
    ("data", "real", "count", "ks"),
    [
        (_scales, np.float32, 600, (33, 600)),
        (_steps, np.float32, 200, (20, 120)),
        (_scales, np.float64, 120, (40,)),
        (_steps, np.float64, 120, (70,)),
        (np.zeros, np.float32, 70, (33,)),
        (np.ones, np.float64, 3, (1,)),
    ],
)
def test_largest(data, real, count, ks):
    x = data(count).astype(real)
    for k in ks:
        values, addend = np.empty(k, real), np.full(count, 0.5, real)
        total, on_device = x.copy(), to_device(x)
        indices = cpu.load("sparse").largest(total, addend, k, values)
        found = _room(k, real)
        cuda.load("sparse").largest(on_device, to_device(addend), k, *found, _scratch(on_device))
        assert np.array_equal(to_host(found[0]), indices)
        assert to_host(found[1]).tobytes() == values.tobytes()
        assert to_host(on_device).tobytes() == total.tobytes()


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_collect(real):
    x = _scales(301).astype(real)
    threshold = int(np.array(1.5, real).view(f"i{x.itemsize}"))
    on_device, counters = to_device(x), to_device(np.zeros(4, np.int32))
    scratch = _scratch(on_device)
    kernels = cuda.load("sparse")
    kernels.count_above(on_device, on_device, threshold, scratch, counters)
    chosen = np.flatnonzero(np.abs(2 * x) > 1.5)
    assert to_host(counters).tolist() == [chosen.size, 0, 0, 0]
    for room in (chosen.size, 5):
        indices, values = _room(room, real)
        kernels.collect(on_device, threshold, indices, values, scratch)
        assert np.array_equal(to_host(indices), chosen[:room])
        assert np.array_equal(to_host(values), 2 * x[chosen[:room]])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint64])
def test_nonzeros(kind):
    bits = (np.random.default_rng(3).integers(0, 3, 210) << np.arange(210) % 2).astype(kind)
    bits[7] = np.iinfo(kind).max
    on_device, counters = to_device(bits), to_device(np.zeros(1, np.int32))
    scratch = _scratch(on_device)
    cuda.load("sparse").count_nonzeros(on_device, scratch, counters)
    chosen = np.flatnonzero(bits)
    assert to_host(counters)[0] == chosen.size
    found = _room(chosen.size, kind)
    cuda.load("sparse").collect_nonzeros(on_device, *found, scratch)
    assert np.array_equal(to_host(found[0]), chosen)
    assert np.array_equal(to_host(found[1]), bits[chosen])


@pytest.mark.parametrize(("count", "size"), [(700, 100), (700, 400)])
def test_sampled(count, size):
    x, addend = _scales(count).astype(np.float32), np.ones(count, np.float32)
    kernels = cuda.load("sparse")
    for other in (None, addend):
        expected = cpu.load("sparse").sampled(x, other, size)
        sample = to_device(np.empty(kernels.sample_size(count, size), np.float32))
        kernels.sampled(to_device(x), None if other is None else to_device(other), sample)
        assert np.array_equal(to_host(sample), expected)


def test_what_is_nowhere_is_skipped():
    kernels = cuda.load("sparse")
    indices = to_device(np.array([1, 4, 5, 0xFFFFFFFF], np.uint32))
    values = to_device(np.array([10, 20, 30, 40], np.float32))
    x = to_device(np.ones(5, np.float32))
    kernels.scatter_add(indices, values, x)
    assert to_host(x).tolist() == [1, 11, 1, 1, 21]
    kernels.scatter(indices, values, x)
    assert to_host(x).tolist() == [0, 10, 0, 0, 20]
    kernels.gather(indices[:2], x, values)
    assert to_host(values).tolist() == [10, 20, 30, 40]
    kernels.clear(indices[:1], x)
    assert to_host(x).tolist() == [0, 0, 0, 0, 20]
