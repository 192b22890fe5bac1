"""Signs: what two levels a block can do, and what feedback makes of it."""

import numpy as np
import pytest
from checks import WORKING, check_decode_add, check_encode_keep, decode, encode, normal, same_bits

from collcomp.codecs import Sign
from collcomp.frame import HEADER_NBYTES, Frame

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)


def expected(x, block=256):
    """Sign times mean magnitude, in float64."""
    parts = [x[i : i + block].astype(float) for i in range(0, x.size, block)]
    return np.concatenate([np.where(np.signbit(part), -1, 1) * np.abs(part).mean() for part in parts])


@each_dtype
@pytest.mark.parametrize("count", [1, 2, 7, 31, 33, 255, 256, 257, 1000, 4099])
@pytest.mark.parametrize("block", [16, 24, 256, 1024])
def test_signs_times_the_mean_magnitude(dtype, count, block):
    """Also of a last block that fills no byte: what pads it does not count."""
    x = normal(count, dtype)
    decoded = decode(Sign(block=block), encode(Sign(block=block), x), dtype)
    np.testing.assert_allclose(decoded, expected(x, block), rtol=2.0**-21)


@each_dtype
def test_no_other_two_levels_are_closer(dtype):
    x = normal(256, dtype)
    decoded = decode(Sign(), encode(Sign(), x), dtype).astype(float)
    error = np.square(x - decoded).sum()
    assert error == pytest.approx(np.abs(x.astype(float)).var() * 256, rel=1e-5)
    for factor in (0.99, 1.01):
        assert error < np.square(x - decoded * factor).sum()


@each_dtype
def test_zeros_have_signs(dtype):
    x = np.array([0.0, -0.0, 2.0, -2.0] * 64, dtype)
    np.testing.assert_array_equal(decode(Sign(), encode(Sign(), x), dtype), [1, -1, 1, -1] * 64)
    zeros = np.array([0.0, -0.0] * 200, dtype)
    assert same_bits(decode(Sign(), encode(Sign(), zeros), dtype), zeros)


@pytest.mark.parametrize("bits", [0, 2**32 - 1, 0xDEADBEEF, 1, 2**31])
def test_every_pattern_of_signs(bits):
    signs = np.array([1 - 2 * (bits >> i & 1) for i in range(32)] * 8, np.float32)
    np.testing.assert_array_equal(decode(Sign(), encode(Sign(), signs), np.float32), signs)


@each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e-40, -1e-45])
@pytest.mark.parametrize("count", [256, 511, 700, 1000])
def test_what_fits_no_mean_travels_as_it_is(dtype, value, count):
    x = normal(count, dtype)
    start = (count - 1) // 256 * 256
    x[start:] = 0
    x[count - 3] = value
    x[count - 1] = -0.0
    frame = encode(Sign(), x)
    assert frame.extra == 1
    decoded = decode(Sign(), frame, dtype)
    assert same_bits(decoded[start:], x[start:])
    assert np.isfinite(decoded[:start]).all()
    check_decode_add(Sign(), x)
    check_encode_keep(Sign(), x)
    residual = np.zeros(count, dtype)
    nbytes = Sign().encode_feedback(x, residual, buffer := np.empty(32 * count, np.uint8))
    assert not residual[start:].any()
    np.testing.assert_array_equal(decode(Sign(), Frame.read(buffer[:nbytes]), dtype), decoded)


def test_sums_that_overflow():
    x = np.full(256, 3e38, np.float32)
    frame = encode(Sign(), x)
    assert frame.extra == 1
    assert same_bits(decode(Sign(), frame, np.float32), x)


def test_a_bit_an_element():
    x = normal(1 << 18)
    assert encode(Sign(), x).nbytes == x.size // 8 + x.size // 256 * 4 + HEADER_NBYTES
    assert encode(Sign(block=1024), x).nbytes == x.size // 8 + x.size // 1024 * 4 + HEADER_NBYTES


@each_dtype
def test_feedback_brings_the_mean_of_what_is_sent_to_what_is_given(dtype):
    x = normal(1000, dtype) + dtype.type(0.5)
    residual, total = np.zeros_like(x), np.zeros(x.size)
    buffer = np.empty(Sign().max_encoded_nbytes(x.size, dtype), np.uint8)
    for _ in range(400):
        nbytes = Sign().encode_feedback(x, residual, buffer)
        total += decode(Sign(), Frame.read(buffer[:nbytes]), dtype)
    once = np.abs(decode(Sign(), encode(Sign(), x), dtype) - x)
    assert np.abs(total / 400 - x).mean() < once.mean() / 10
    np.testing.assert_allclose(total + residual, 400.0 * x, rtol=0, atol=400 * np.finfo(dtype).eps * total.max())


@pytest.mark.parametrize(
    ("error", "parameter", "value"),
    [
        (ValueError, "block", 8),
        (ValueError, "block", 20),
        (TypeError, "block", 256.0),
        (TypeError, "feedback", 1),
    ],
)
def test_parameters_are_checked(error, parameter, value):
    with pytest.raises(error, match=f"{parameter}: .*{value!r}"):
        Sign(**{parameter: value})
