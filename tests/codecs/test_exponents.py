"""The exponent coder: every bit, sizes, and what does not shrink."""

import dataclasses

import numpy as np
import pytest
from checks import check_decode_add, encode, same_bits
from lossless import ALL_DTYPES, BFLOAT16, check_every_bit

from collcomp.bench.codecs import make_data
from collcomp.codecs import Exponents
from collcomp.errors import FrameError

CODEC = Exponents()
FLOATS = (BFLOAT16, np.dtype(np.float32), np.dtype(np.float64))
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def gaussian(count, dtype):
    return np.random.default_rng(count).standard_normal(count).astype(dtype)


def ratio(x):
    return x.nbytes / encode(CODEC, x).payload.size


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_bit(dtype):
    check_every_bit(CODEC, dtypes=[dtype])


@each_float
@pytest.mark.parametrize("count", [512, 513, 1024, 5000])
def test_every_bit_of_what_is_coded(dtype, count):
    x = gaussian(count, dtype)
    x[[3, 100, 101, 200, 511]] = [np.nan, np.inf, -np.inf, -0.0, 1e-30]
    frame = encode(CODEC, x)
    assert frame.payload.size < x.nbytes
    assert frame.extra >= 4
    decoded = np.zeros_like(x)
    CODEC.decode(frame, decoded)
    assert same_bits(decoded, x)
    check_decode_add(CODEC, gaussian(count, dtype))


@pytest.mark.parametrize(("dtype", "low", "high"), [(BFLOAT16, 1.34, 1.43), (np.float32, 1.15, 1.18)])
@pytest.mark.parametrize("data", ["grad", "normal"])
def test_ratio_of_gradients(data, dtype, low, high):
    assert low <= ratio(make_data(data, 1 << 20).astype(dtype)) <= high


@each_float
def test_equal_exponents_need_no_escapes(dtype):
    x = np.linspace(1, 1.9, 4096).astype(dtype)
    assert encode(CODEC, x).extra == 0


@each_float
def test_a_few_zeros_cost_only_themselves(dtype):
    x = gaussian(1 << 16, dtype)
    escapes = encode(CODEC, x).extra
    x[::4] = 0
    assert encode(CODEC, x).extra <= x.size / 4 + escapes


@each_float
def test_mostly_zeros_are_coded(dtype):
    x = gaussian(1 << 16, dtype)
    x[np.arange(x.size) % 16 != 0] = 0
    assert encode(CODEC, x).extra == x.size // 16


@each_float
def test_what_does_not_shrink_travels_as_it_is(dtype):
    x = np.random.default_rng(0).integers(0, 256, 4096 * dtype.itemsize, dtype=np.uint8).view(dtype)
    frame = encode(CODEC, x)
    assert frame.payload.tobytes() == x.tobytes()
    assert frame.extra == 0


@each_float
def test_escapes_have_to_fit_the_codes(dtype):
    frame = encode(CODEC, gaussian(2048, dtype))
    size = 2 if dtype == np.float64 else 1
    shorter = dataclasses.replace(frame, payload=frame.payload[:-size], extra=frame.extra - 1)
    with pytest.raises(FrameError, match="escapes"):
        CODEC.decode(shorter, np.zeros(2048, dtype))
