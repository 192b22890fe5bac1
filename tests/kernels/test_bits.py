"""The bit operations against NumPy."""

import numba
import numpy as np
import pytest

from collcomp.kernels.cpu import bits

BITS = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32)


@numba.njit
def magnitudes(x, out):
    for i in range(x.size):
        out[i] = bits.magnitude(x[i])


@numba.njit
def lanes_above(x, threshold):
    return bits.magnitudes_above(x, 0, threshold)


@numba.njit
def sums_above(x, addend, threshold):
    return bits.sums_above(x, addend, 0, threshold)


@numba.njit
def nonzeros(x):
    return bits.nonzeros(x, 0)


@numba.njit
def hashes(base, out):
    for i in range(out.size):
        out[i] = bits.hash32(np.uint32(base), np.uint32(i))


@numba.njit
def fixed_points(x, out):
    for i in range(x.size):
        out[i] = bits.fixed_point(x[i])


@pytest.mark.parametrize(("dtype", "twin"), [(np.float32, np.int32), (np.float64, np.int64)])
def test_magnitude_orders_floats(dtype, twin):
    x = np.array([0, -0.0, 1e-40, -1, 1, 2, np.inf, -np.inf, np.nan], dtype)
    out = np.empty(x.size, twin)
    magnitudes(x, out)
    np.testing.assert_array_equal(out, x.view(twin) & np.iinfo(twin).max)
    assert (np.diff(out) >= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_magnitudes_above(dtype):
    x = np.random.default_rng(1).standard_normal(64).astype(dtype)
    threshold = int(np.array(1, dtype).view(f"i{x.itemsize}"))
    expected = sum(1 << i for i in range(64) if abs(x[i]) > 1)
    assert int(lanes_above(x, threshold)) & (2**64 - 1) == expected
    assert int(lanes_above(x, -1)) & (2**64 - 1) == 2**64 - 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_above(dtype):
    x, addend = np.random.default_rng(1).standard_normal((2, 70)).astype(dtype)
    addend[3] = np.nan
    total = x + addend
    total[64:] = x[64:]
    threshold = int(np.array(1, dtype).view(f"i{x.itemsize}"))
    expected = sum(1 << i for i in range(64) if not abs(total[i]) <= 1)
    assert int(sums_above(x, addend, threshold)) & (2**64 - 1) == expected
    assert x.tobytes() == total.tobytes()


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8"])
def test_nonzeros(dtype):
    x = np.random.default_rng(1).integers(0, 3, 64).astype(dtype)
    x[5] = np.iinfo(dtype).max
    assert int(nonzeros(x)) & (2**64 - 1) == sum(1 << i for i in range(64) if x[i])


def test_hash_is_uniform_and_uncorrelated():
    """Both halves, of neighbouring counters and of all counters of a block."""
    out = np.empty((3000, 128), np.uint32)
    for base, row in zip(BITS, out, strict=False):
        hashes(base, row)
    for half in ((out & 0x3FFF) / 2.0**14, (out >> 18) / 2.0**14):
        centred = half - 0.5
        assert abs(centred.mean()) < 5 * np.sqrt(1 / 12 / out.size)
        for lag in range(1, 20):
            correlation = 12 * (centred[:, lag:] * centred[:, :-lag]).mean()
            assert abs(correlation) < 5 / np.sqrt(centred[:, lag:].size)
        assert 0.9 < 12 * 128 * centred.mean(axis=1).var() < 1.1
    low, high = (out & 0x3FFF) / 2.0**14 - 0.5, (out >> 18) / 2.0**14 - 0.5
    assert abs(12 * (low * high).mean()) < 5 / np.sqrt(out.size)


def test_fixed_point():
    x = np.linspace(-127, 127, 10_001, dtype=np.float32)
    out = np.empty(x.size, np.int32)
    fixed_points(x, out)
    signed = out << 10 >> 10  # the lowest 22 bits
    assert np.abs(signed - x * 2.0**14).max() <= 0.5


@numba.njit
def there_and_back(x, keys, out):
    for i in range(x.size):
        keys[i] = bits.ordered(x[i])
        out[i] = bits.from_ordered(keys[i])


@pytest.mark.parametrize(("dtype", "twin"), [(np.float32, np.int32), (np.float64, np.int64)])
def test_ordered_is_the_order_of_floats(dtype, twin):
    x = np.array([-np.nan, -np.inf, -3e38, -1, -1e-40, -0.0, 0.0, 1e-40, 1, 3e38, np.inf, np.nan], dtype)
    keys, out = np.empty(x.size, twin), np.empty_like(x)
    there_and_back(x, keys, out)
    assert (np.diff(keys.astype(object)) > 0).all()
    assert out.tobytes() == x.tobytes()


@numba.njit
def fields(byte, shift, width):
    return bits.unsigned_field(np.uint8(byte), shift, width), bits.signed_field(np.uint8(byte), shift, width)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_fields_of_a_byte(width):
    for byte in range(256):
        for shift in range(0, 8, width):
            unsigned = byte >> shift & ((1 << width) - 1)
            assert fields(byte, shift, width) == (unsigned, unsigned - (unsigned >> (width - 1) << width))


@numba.njit
def signs(x, sizes, out):
    for i in range(x.size):
        out[i] = bits.sign_bit(x[i])
        sizes[i] = bits.with_sign(sizes[i], x[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_signs(dtype):
    x = np.array([0.0, -0.0, 2.5, -2.5, np.inf, -np.inf, np.nan, -np.nan], dtype)
    sizes, out = np.arange(8, dtype=dtype), np.empty(8, np.int32)
    expected = np.copysign(sizes, x)
    signs(x, sizes, out)
    np.testing.assert_array_equal(out, np.signbit(x))
    assert sizes.tobytes() == expected.tobytes()


@numba.njit
def total_magnitude(x, addend):
    return bits.sum_of_magnitudes(x, addend)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 100, 1000])
def test_sum_of_magnitudes(dtype, count):
    """In the documented order, so in the same bits everywhere."""
    x, y = np.random.default_rng(count).standard_normal((2, count)).astype(dtype)

    def expected(x):
        whole = count // 32 * 32
        lanes = np.zeros(32, dtype)
        for row in np.abs(x[:whole]).reshape(-1, 32):
            lanes += row
        while lanes.size > 1:
            lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
        total = lanes[0]
        for value in np.abs(x[whole:]):
            total += value
        return total

    assert total_magnitude(x, None) == expected(x)
    summed = x + y
    assert total_magnitude(x, y) == expected(summed)
    np.testing.assert_array_equal(x, summed)
