"""What kernels of blocks share."""

import math

import numpy as np
import pytest

from collcomp.kernels.cpu.common import sum_of_squares
from collcomp.kernels.cpu.jit import kernel


@kernel
def squares(x):
    return sum_of_squares(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 5, 63, 64, 65, 128, 200, 1024, 5000])
def test_sum_of_squares(count, dtype):
    x = np.random.default_rng(count).standard_normal(count).astype(dtype)
    x[0] = dtype(2.0**100)
    for y in (x, x[1:], x[::-1].copy()):
        if y.size:
            assert squares(y) == pytest.approx(math.fsum(float(value) ** 2 for value in y), rel=1e-14)


def test_order_of_additions_is_fixed():
    """64 chains, added in pairs: numpy gives the very bits."""
    x = np.random.default_rng(0).standard_normal(64 * 40 + 3)
    lanes = np.zeros(64)
    for row in x[: 64 * 40].reshape(40, 64):
        lanes = lanes + row * row
    chains = lanes.reshape(4, 16)
    total = (chains[0] + chains[1]) + (chains[2] + chains[3])
    while total.size > 1:
        total = total[: total.size // 2] + total[total.size // 2 :]
    expected = total[0]
    for value in x[64 * 40 :]:
        expected += value * value
    assert squares(x) == expected
