"""Switches' fixed point on a GPU: as the CPU has it, faults included."""

import numpy as np
import pytest
from device import to_device, to_host

from collcomp.kernels import cpu, cuda

# NumPy's, of the simulator.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
on_cpu, on_device = cpu.load("fixed_point"), cuda.load("fixed_point")
ELEMENTS = 150
EXTREMES = [
    0.0, -0.0, 1e-45, -1e-40, 0.5, 1.0, -1.0, 1.5, 2.5, -213.0, 213.0, 213.00002, 2147.4836, -2147.4836, 2147.4838,
    2.0**126, -(2.0**127), 3.4e38, np.inf, -np.inf, np.nan,
]  # fmt: skip


def launch_all(real):
    """Every kernel once, for the compiler."""
    x, codes, scales = (to_device(np.zeros(100, dtype)) for dtype in (np.float32, np.int32, np.float32))
    exponents, flags = to_device(np.zeros(100, np.int8)), to_device(np.zeros(100, np.uint8))
    if real is np.float64:
        # The one kernel that is meant to compute in float64, as the CPU does, once a packet.
        on_device.block_scale(3, exponents, scales)
        return
    on_device.exponent(x, exponents, 1)
    on_device.quantise(x, scales, codes, 1)
    on_device.dequantise(codes, scales, x, 1)
    on_device.exceeds(x, flags, codes, 1)
    on_device.is_saturated(codes, flags, codes, 1)
    on_device.add_saturating(codes, codes)


def packets():
    """A message whose packets are of different sizes of numbers, one for each extreme, and its packets."""
    rng = np.random.default_rng(1)
    x = rng.standard_t(3, (len(EXTREMES), ELEMENTS)) * 10.0 ** rng.integers(-12, 3, (len(EXTREMES), 1))
    x[range(len(x)), rng.integers(0, 100, len(x))] = EXTREMES
    x[2:4] = np.where(x[2:4] == np.array(EXTREMES[2:4])[:, None], x[2:4], 0)
    x = x.astype(np.float32).reshape(-1)[:-17]
    return x, np.split(x, range(ELEMENTS, len(x), ELEMENTS))


def test_exponents_and_scales():
    x, parts = packets()
    exponents = to_device(np.zeros(len(parts), np.int8))
    on_device.exponent(to_device(x), exponents, ELEMENTS)
    assert to_host(exponents).tolist() == [on_cpu.exponent(part) for part in parts]
    every, scales = np.arange(-128, 128, dtype=np.int8), to_device(np.zeros(256, np.float32))
    for workers in (1, 3, 32):
        on_device.block_scale(workers, to_device(every), scales)
        expected = np.array([on_cpu.block_scale(workers, int(e)) for e in every], np.float32)
        assert to_host(scales).tobytes() == expected.tobytes()


@pytest.mark.parametrize("scale", [None, on_cpu.FACTOR])
def test_codes(scale):
    x, parts = packets()
    if scale is None:
        scales = np.array([on_cpu.block_scale(2, on_cpu.exponent(part) - i % 2) for i, part in enumerate(parts)], "f4")
    else:
        scales = np.full(len(parts), scale)
    device_x, device_scales, device_codes = to_device(x), to_device(scales), to_device(np.zeros(x.size, np.int32))
    codes, y = np.zeros(x.size, np.int32), np.zeros_like(x)
    on_device.quantise(device_x, device_scales, device_codes, ELEMENTS)
    on_device.dequantise(device_codes, device_scales, device_x, ELEMENTS)
    for p, part in enumerate(parts):
        place = slice(p * ELEMENTS, p * ELEMENTS + part.size)
        on_cpu.quantise(part, scales[p], codes[place])
        on_cpu.dequantise(codes[place], scales[p], y[place])
    assert np.array_equal(to_host(device_codes), codes)
    assert np.isnan(y).sum() < y.size / 2
    np.testing.assert_array_equal(to_host(device_x).view(np.int32)[~np.isnan(y)], y.view(np.int32)[~np.isnan(y)])
    assert np.isnan(to_host(device_x)[np.isnan(y)]).all()


def test_saturating_sums():
    ends = np.array([-(2**31), -(2**31) + 1, -(2**31) + 2, -1, 0, 1, 2**31 - 2, 2**31 - 1], np.int32)
    total, codes = np.repeat(ends, len(ends)), np.tile(ends, len(ends))
    device_total = to_device(total)
    on_device.add_saturating(device_total, to_device(codes))
    on_cpu.add_saturating(total, codes)
    assert np.array_equal(to_host(device_total), total)


def test_packets_that_are_too_large():
    x, parts = packets()
    assert flagged("exceeds", x) == [on_cpu.exceeds(part) for part in parts]
    total = np.ones(5 * ELEMENTS, np.int32)
    total[[0, 3 * ELEMENTS - 1, 4 * ELEMENTS]] = [-(2**31), -(2**31) + 1, 2**31 - 1]
    assert flagged("is_saturated", total) == [True, False, True, False, True]


def flagged(name, array):
    flags, counters = to_device(np.full(-(-array.size // ELEMENTS), 7, np.uint8)), to_device(np.zeros(4, np.int32))
    getattr(on_device, name)(to_device(array), flags, counters, ELEMENTS)
    assert to_host(counters).tolist() == [to_host(flags).sum(), 0, 0, 0]
    return to_host(flags).astype(bool).tolist()
