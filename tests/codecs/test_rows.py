"""Rows that repeat: found, put back, within the bound; references that cannot be are refused."""

import dataclasses

import numpy as np
import pytest
from checks import WORKING, check_decode_add, check_encode_keep, decode, encode, normal, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collcomp.codecs import HBound, Rows
from collcomp.errors import FrameError

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)


def batch(rows, distinct, dim, dtype=np.float32, seed=0):
    """`rows` embeddings of which `distinct` are different."""
    rng = np.random.default_rng(seed)
    table = rng.uniform(-1, 1, (distinct, dim)).astype(dtype)
    return table[np.concatenate([np.arange(distinct), rng.integers(0, distinct, rows - distinct)])].ravel()


@each_dtype
@pytest.mark.parametrize("repetition", [1, 4, 16])
@pytest.mark.parametrize("dim", [16, 64, 100])
def test_size_is_one_over_repetition(dtype, repetition, dim):
    codec = Rows(dim=dim, abs=0.01)
    x = batch(4096, 4096 // repetition, dim, dtype)
    frame = encode(codec, x)
    assert frame.extra <= 4096 // repetition * (1.2 if repetition > 1 else 1)  # a few hashes collide
    alone = encode(HBound(abs=0.01), x).payload.size
    assert frame.payload.size <= 1.2 * alone / repetition + 2 * 4096 + 64
    assert np.abs(decode(codec, frame, dtype).astype(float) - x).max() <= 0.01


@each_dtype
def test_nearly_equal_rows_repeat(dtype):
    codec = Rows(dim=32, abs=0.01)
    step = float(HBound(abs=0.01)._grid(0.01, dtype)[0, 0])
    x = np.random.default_rng(0).integers(-50, 50, (10, 32)).repeat(20, 0) * step
    x = (x + np.random.default_rng(1).uniform(-0.4, 0.4, x.shape) * step).astype(dtype).ravel()
    frame = encode(codec, x)
    assert frame.extra == 10
    decoded = decode(codec, frame, dtype)
    assert np.abs(decoded.astype(float) - x).max() <= 0.01
    assert len(np.unique(decoded.reshape(-1, 32), axis=0)) == 10


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_bound_on_hostile_values(data):
    dtype = data.draw(st.sampled_from(WORKING))
    dim, count = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 700))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    bound = 10.0 ** data.draw(st.floats(-300, 300))
    kind = data.draw(st.sampled_from(["bits", "near", "limit"]))
    with np.errstate(all="ignore"):
        if kind == "bits":
            x = rng.integers(0, 256, count * dtype.itemsize, dtype=np.uint8).view(dtype)
        else:
            scale = rng.choice([1, 2.0**16, 2.0**17, 2.0**20, 2.0**21], count) if kind == "limit" else 20
            x = (rng.uniform(-1, 1, count) * scale * bound).astype(dtype)
        source = rng.integers(0, max(1, count // dim), count // dim)
        full = count // dim * dim
        if full:
            x[:full] = x[:full].reshape(-1, dim)[source].ravel()
        codec = Rows(dim=dim, abs=bound)
        decoded = decode(codec, encode(codec, x), dtype)
        finite = np.isfinite(x)
        error = np.abs(decoded.astype(float) - x.astype(float))[finite]
    assert (error <= bound).all()
    assert same_bits(decoded[~finite], x[~finite])


@each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_rows_without_integers_arrive_as_they_are(dtype, value):
    codec = Rows(dim=16, abs=0.01)
    x = batch(200, 20, 16, dtype)
    for row in (3, 50, 120):
        x[16 * row : 16 * row + 16] = [value, -0.0, *range(14)]
    frame = encode(codec, x)
    assert frame.extra % 2**32 <= 21
    decoded = decode(codec, frame, dtype)
    for row in (3, 50, 120):
        assert same_bits(decoded[16 * row : 16 * row + 16], x[16 * row : 16 * row + 16])
    check_decode_add(codec, x)
    check_encode_keep(codec, x)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 1601])
def test_incomplete_rows(count):
    codec = Rows(dim=16, abs=0.01)
    x = np.resize(batch(10, 2, 16), count)
    assert np.abs(decode(codec, encode(codec, x), np.float32) - x).max() <= 0.01


def test_references_reach_back_65535_kept_rows():
    distinct = np.arange(65600, dtype=np.float32)
    for back in (65535, 65536):
        x = np.concatenate([distinct, distinct[65600 - back : 65601 - back]])
        codec = Rows(dim=1, abs=0.4)
        frame = encode(codec, x)
        np.testing.assert_allclose(decode(codec, frame, np.float32), x, atol=0.4)
        if back > 65535:
            assert frame.extra % 2**32 == x.size


def test_segments_begin_with_a_row():
    assert Rows(dim=48).block == 48
    assert Rows(dim=48) == Rows(dim=48)
    assert Rows(dim=48).spec == "rows:dim=48"


@pytest.mark.parametrize(("row", "reference"), [(0, 1), (1, 2), (5, 6), (99, 65535)])
def test_references_behind_the_first_row_are_refused(row, reference):
    codec = Rows(dim=4, abs=0.01)
    frame = encode(codec, batch(100, 100, 4))
    frame.payload[:200].view(np.uint16)[row] = reference
    out = np.zeros(400, np.float32)
    with pytest.raises(FrameError, match="reaches back"):
        codec.decode(frame, out)
    assert not out.any()


def test_kept_rows_are_counted():
    codec = Rows(dim=4, abs=0.01)
    frame = encode(codec, batch(100, 100, 4))
    frame.payload[:200].view(np.uint16)[7] = 3
    with pytest.raises(FrameError, match="99 rows are kept"):
        codec.decode(frame, np.zeros(400, np.float32))


def test_short_payloads_are_refused():
    codec = Rows(dim=4, abs=0.01)
    frame = encode(codec, normal(400))
    for nbytes in (0, 199, 255, 256, 263, frame.payload.size - 32):
        with pytest.raises(FrameError):
            codec.decode(dataclasses.replace(frame, payload=frame.payload[:nbytes]), np.zeros(400, np.float32))


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [(ValueError, "dim", 0), (TypeError, "dim", 1.5), (ValueError, "abs", 0), (TypeError, "abs", "x"),
     (TypeError, "feedback", 1)],
)  # fmt: skip
def test_parameters_are_checked(error, name, value):
    with pytest.raises(error, match=f"{name}: .*{value!r}"):
        Rows(**{name: value})
