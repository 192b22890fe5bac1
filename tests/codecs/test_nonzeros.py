"""Messages that are mostly zero: every bit arrives, in fewer bytes, and lists add as dense vectors do."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from checks import check_decode_add, check_encode_keep, check_hostile, decode, encode, normal, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from collcomp.codecs import Nonzeros
from collcomp.frame import DTYPES, Envelope, Frame
from collcomp.kernels import cpu

COUNTS = (1, 63, 64, 65, 1000, 20_000)


def mostly_zero(count, share, dtype=np.float32, seed=0):
    """Any bits at a `share` of the places."""
    rng = np.random.default_rng([seed, count])
    x = np.zeros(count, dtype)
    chosen = rng.random(count) < share
    if x.dtype == np.bool_:
        x[chosen] = True
    else:
        noise = rng.integers(0, 256, count * x.itemsize, dtype=np.uint8).view(x.dtype)
        x[chosen] = noise[chosen]
    return x


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("share", [0, 0.001, 0.05, 0.3, 0.9, 1])
def test_every_bit_arrives(dtype, count, share):
    x = mostly_zero(count, share, dtype)
    frame = encode(Nonzeros(), x)
    decoded = np.ones(count, dtype)
    Nonzeros().decode(frame, decoded)
    assert decoded.tobytes() == x.tobytes()
    assert frame.payload.size <= x.nbytes
    if share <= 0.05 and count >= 1000:
        assert frame.payload.size < (0.1 + 1.5 * share) * x.nbytes + 100


def test_negative_zero_and_nan_are_kept():
    x = np.zeros(1000, np.float32)
    x[[1, 5, 9]] = -0.0, np.nan, 1e-45
    frame = encode(Nonzeros(), x)
    assert frame.extra & 0xFFFFFFFF == 3
    assert decode(Nonzeros(), frame, np.float32).tobytes() == x.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32], ids=str)
@pytest.mark.parametrize("share", [0.05, 0.9])
def test_added_as_dense_values_are(dtype, share):
    x = normal(1000).astype(dtype)
    x[np.random.default_rng(0).random(1000) > share] = 0
    check_encode_keep(Nonzeros(), x)
    if x.dtype.kind != "i":
        check_decode_add(Nonzeros(), x)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_hostile_sparse_frames(data):
    x = mostly_zero(data.draw(st.integers(1, 2000)), data.draw(st.sampled_from([0.01, 0.2])), np.float32)
    frame = encode(Nonzeros(), x)
    payload = frame.payload.copy()
    for _ in range(data.draw(st.integers(1, 6))):
        if payload.size:
            payload[data.draw(st.integers(0, payload.size - 1))] = data.draw(st.integers(0, 255))
    extra = data.draw(st.sampled_from([frame.extra, frame.extra + 1, frame.extra & 0xFFFFFFFF, 3 << 32, 2**64 - 1]))
    keep = data.draw(st.one_of(st.just(payload.size), st.integers(0, payload.size)))
    check_hostile(Nonzeros(), dataclasses.replace(frame, payload=payload[:keep], extra=extra), np.dtype(np.float32))


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 1])
def test_a_list_is_encoded_as_the_vector_is(share):
    codec = Nonzeros()
    x = np.where(np.random.default_rng(0).random(3000) < share, normal(3000), 0).astype(np.float32)
    indices = np.flatnonzero(x).astype(np.uint32)
    buffer = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    nbytes = codec.encode_selection(indices, x[indices], x.size, buffer, Envelope(x.dtype, x.size))
    frame = Frame.read(buffer[:nbytes])
    expected = encode(codec, x)
    assert frame.extra == expected.extra
    assert same_bits(frame.payload, expected.payload)


# ---------------------------------------------------------------------- sums of lists


def selected(count, share, dtype, seed):
    """Indices and values, with awkward ones among them."""
    rng = np.random.default_rng(seed)
    indices = np.flatnonzero(rng.random(count) < share).astype(np.uint32)
    values = rng.standard_normal(indices.size).astype(dtype)
    values[::7], values[1::11], values[2::13], values[3::17] = -0.0, 0.0, np.inf, np.nan
    return indices, values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.0, 0.1), (0.1, 0.0), (0.0, 0.0), (1.0, 0.3), (0.01, 0.9), (1, 1)])
def test_merge_gives_the_bits_of_dense_sums(shares, dtype):
    kernels = cpu.load("sparse")
    count = 3000
    a, b = (selected(count, share, dtype, seed) for seed, share in enumerate(shares))
    dense = np.empty(count, dtype)
    kernels.scatter(*a, dense)
    with np.errstate(invalid="ignore"):
        kernels.scatter_add(*b, dense)
    room = a[0].size + b[0].size
    indices, sums = np.empty(room, np.uint32), np.empty(room, dtype)
    found = kernels.merge(*a, *b, indices, sums)
    np.testing.assert_array_equal(indices[:found], np.union1d(a[0], b[0]))
    got = np.zeros(count, dtype)
    got[indices[:found]] = sums[:found]
    assert got.tobytes() == dense.tobytes()
