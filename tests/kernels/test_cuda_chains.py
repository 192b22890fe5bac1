"""Prefix sums on a device that start anew in places; `test_cuda_bounded` has them compiled."""

import numpy as np
import pytest
from device import to_device, to_host
from numba import cuda

from collcomp.kernels.cuda.chains import STARTS, item_of, scan, sum_before, tops_of, wrapped
from collcomp.kernels.cuda.jit import THREADS, kernel, launch


@kernel
def sums_before(sums, tops, found):
    for i in range(cuda.grid(1), found.size, cuda.gridsize(1)):
        found[i] = wrapped(sum_before(sums, tops, i))


@pytest.mark.parametrize("starts", [(), (0, 3, 31, 32, 40), (THREADS + 5, 2 * THREADS, 3 * THREADS - 1)])
def test_sums(starts):
    count = 4 * THREADS + 3
    items = np.random.default_rng(0).integers(0, 2**32, count)
    items[list(starts)] += STARTS
    sums, total = [0], 0
    for item in items.tolist():
        total = (total if item < STARTS else 0) + item
        sums.append(total % STARTS)
    tops, device = to_device(np.zeros(tops_of(count), np.int64)), to_device(items)
    found = to_device(np.zeros(count, np.int32))
    scan(item_of, (device,), device, tops)
    launch(sums_before, 2, device, tops, found)
    assert np.array_equal(to_host(found).view(np.uint32), sums[:-1])
