"""Differences of neighbours, and their sums."""

import numpy as np
import pytest

from collcomp.kernels.cpu.differences import differences, prefix_sum, width_of
from collcomp.kernels.cpu.jit import kernel
from collcomp.kernels.cpu.packing import BLOCK

INT32 = np.iinfo(np.int32)


@kernel
def subtracted(x, before, y):
    return width_of(differences(x, before, y))


@kernel
def summed(x, before):
    return prefix_sum(x, before)


@kernel
def width_of_one(x):
    return width_of(np.int32(x ^ (x << 1)))


@pytest.mark.parametrize("largest", [1, 100, 2**20, INT32.max])
def test_there_and_back(largest):
    rng = np.random.default_rng(largest)
    x = rng.integers(-largest, largest, BLOCK, endpoint=True, dtype=np.int32)
    before = rng.integers(-largest, largest, endpoint=True, dtype=np.int32)
    y = np.full(BLOCK + 8, 7, np.int32)
    width = subtracted(x, before, y)
    expected = np.diff(np.concatenate([[before], x]).astype(np.int64)).astype(np.int32)  # wraps around
    np.testing.assert_array_equal(y[:BLOCK], expected)
    assert (y[BLOCK:] == 7).all()
    assert width == max(width_of_one(d) for d in expected)
    assert summed(y, before) == x[-1]
    np.testing.assert_array_equal(y[:BLOCK], x)
    assert (y[BLOCK:] == 7).all()


@pytest.mark.parametrize("width", range(1, 33))
def test_widths_are_those_of_twos_complement(width):
    half = 1 << (width - 1)
    assert width_of_one(np.int32(-half)) == width
    assert width_of_one(np.int32(half - 1)) == (width if half > 1 else 0)
    if width < 32:
        assert width_of_one(np.int32(half)) == width_of_one(np.int32(-half - 1)) == width + 1
