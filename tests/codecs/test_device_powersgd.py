"""PowerSGD on a device."""

import numpy as np
import pytest
from device import to_device
from on_device import assert_same_bits

from collcomp.kernels import cpu, cuda


@pytest.mark.parametrize(
    ("count", "columns", "rank", "real"),
    [
        (2700, 150, 4, np.float32),  # more than a stride of columns
        (31 * 33 - 4, 33, 5, np.float32),  # the last row is not full
        (77 * 40 + 1, 40, 1, np.float64),  # more than a tile of rows, and one element of another
        (7, 3, 1, np.float32),  # less than four whole rows
    ],
)
def test_products(count, columns, rank, real):
    there, here = cuda.load("powersgd"), cpu.load("powersgd")
    rng = np.random.default_rng(count)
    rows = -(-count // columns)
    x, addend = rng.standard_normal((2, count)).astype(real)
    p, q = rng.standard_normal((rows, rank)).astype(real), rng.standard_normal((rank, columns)).astype(real)
    x[::7], addend[::7] = 0, -0.0
    sums, room = np.empty(4 * here.LANES, real), np.empty(here.TILE, real)
    x_there, p_there, q_there, addend_there = map(to_device, (x, p, q, addend))

    for added, added_there in ((None, None), (addend, addend_there)):
        here.project(x, added, q, p, sums)
        there.project(x_there, added_there, q_there, p_there)
        assert_same_bits(x_there, x)
        assert_same_bits(p_there, p)
    here.project_back(x, p, q)
    there.project_back(x_there, p_there, q_there)
    assert_same_bits(q_there, q)
    here.multiply_add(p, q, x, room)
    there.multiply_add(p_there, q_there, x_there)
    assert_same_bits(x_there, x)
    here.multiply(p, q, x)
    there.multiply(p_there, q_there, x_there)
    assert_same_bits(x_there, x)
