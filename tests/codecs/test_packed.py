"""Integers packed by width: any integers, any dtype, back as they were."""

import numpy as np
import pytest
from checks import check_decode_add, check_hostile, decode, encode, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from collcomp.codecs import Packed
from collcomp.frame import HEADER_NBYTES

INTEGERS = tuple(map(np.dtype, ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")))
each_integer = pytest.mark.parametrize("dtype", INTEGERS, ids=str)


@each_integer
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_integers(dtype, data):
    x = data.draw(arrays.arrays(dtype, st.integers(0, 600)))
    assert same_bits(decode(Packed(), encode(Packed(), x), dtype), x)


@each_integer
@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_extremes(dtype, count):
    limits = np.iinfo(dtype)
    for value in (limits.min, limits.max, 0, 1):
        x = np.full(count, value, dtype)
        x[count // 2] = limits.max if value <= 0 else limits.min
        assert same_bits(decode(Packed(), encode(Packed(), x), dtype), x)
        check_decode_add(Packed(), x)


@each_integer
def test_sums_wrap_around(dtype):
    x = np.full(300, np.iinfo(dtype).max, dtype)
    acc = np.full(300, 3, dtype)
    Packed().decode_add(encode(Packed(), x), acc)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(acc, x + dtype.type(3))


@pytest.mark.parametrize(("low", "high", "bits"), [(0, 1, 0), (-1, 1, 1), (-4, 4, 3), (-128, 128, 8)])
def test_size_follows_the_widest(low, high, bits):
    x = np.random.default_rng(0).integers(low, high, 256 * 50).astype(np.int32)
    x[::256] = high - 1 if high > 1 else low
    assert encode(Packed(), x).payload.size == 64 + 50 * 32 * bits


def test_64_bit_integers_that_need_them():
    x = np.arange(1024, dtype=np.int64)
    small = encode(Packed(), x).nbytes
    x[300] = 2**40
    assert encode(Packed(), x).nbytes - small == 2048 - 32 * 10
    assert same_bits(decode(Packed(), encode(Packed(), x), x.dtype), x)


def test_floats_travel_too():
    x = np.array([1.5, -0.0, np.nan, np.inf] * 100, np.float32)
    assert same_bits(decode(Packed(), encode(Packed(), x), x.dtype), x)
    assert encode(Packed(), np.zeros(1 << 16, np.float64)).nbytes == 256 + HEADER_NBYTES


@each_integer
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_hostile_integers(dtype, data):
    """Widths that the dtype cannot have, or that the payload is too short for."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x = rng.integers(0, 100, data.draw(st.integers(1, 600))).astype(dtype)
    frame = encode(Packed(), x)
    for _ in range(data.draw(st.integers(1, 4))):
        frame.payload[data.draw(st.integers(0, frame.payload.size - 1))] = data.draw(st.integers(0, 255))
    check_hostile(Packed(), frame, dtype)
