"""Frames that are damaged or forged: refused, or decoded to the right size, but never out of bounds."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from checks import WORKING, check_hostile, encode, normal
from codec_specs import SPECS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collcomp.codecs import as_codec
from collcomp.errors import FrameError
from collcomp.frame import HEADER_NBYTES, Envelope, Frame

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
each_codec = pytest.mark.parametrize("spec", SPECS)


def values(count, dtype, odd):
    """Values of which some blocks have to travel raw."""
    x = normal(count, dtype)
    if odd and count:
        x[count // 2] = np.nan
        x[-1] = np.inf
    return x


@each_codec
@quick
@given(data=st.data())
def test_random_payload(spec, data):
    codec = as_codec(spec)
    dtype = data.draw(st.sampled_from(WORKING))
    count = data.draw(st.integers(0, 600))
    nbytes = data.draw(st.integers(0, codec.max_encoded_nbytes(count, dtype) - HEADER_NBYTES))
    fill = data.draw(st.sampled_from(["random", "zero", "ones"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    payload = rng.integers(0, 256, nbytes, dtype=np.uint8)
    payload[:] = {"random": payload, "zero": 0, "ones": 255}[fill]
    extra = data.draw(st.one_of(st.integers(0, 700), st.integers(0, 2**64 - 1)))
    check_hostile(codec, Frame(codec.number, dtype, codec.digest, 0, count, extra, count, payload), dtype)


@each_codec
@quick
@given(data=st.data())
def test_mutated_payload(spec, data):
    codec = as_codec(spec)
    dtype = data.draw(st.sampled_from(WORKING))
    frame = encode(codec, values(data.draw(st.integers(1, 600)), dtype, data.draw(st.booleans())))
    payload = frame.payload.copy()
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, payload.size - 1))
        payload[at] = data.draw(st.integers(0, 255))
    extra = frame.extra + data.draw(st.integers(-frame.extra, 2))
    keep = data.draw(st.one_of(st.just(payload.size), st.integers(0, payload.size)))
    check_hostile(codec, dataclasses.replace(frame, payload=payload[:keep], extra=extra), dtype)


@each_codec
@quick
@given(data=st.data())
def test_mutated_and_truncated_bytes(spec, data):
    """As it arrives, header included: the checksum finds every changed bit of the header."""
    codec = as_codec(spec)
    x = values(data.draw(st.integers(0, 300)), np.dtype(np.float32), data.draw(st.booleans()))
    buffer = np.zeros(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    buffer = buffer[: codec.encode(x, buffer)]
    at = data.draw(st.integers(0, HEADER_NBYTES - 1))
    damaged = buffer.copy()
    damaged[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FrameError):
        Frame.read(damaged)
    with pytest.raises(FrameError):
        Frame.read(buffer[: data.draw(st.integers(0, max(0, buffer.size - 1)))])


@each_codec
@quick
@given(data=st.data())
def test_forged_header(spec, data):
    """A valid checksum over wrong numbers."""
    codec = as_codec(spec)
    x = values(data.draw(st.integers(0, 300)), np.dtype(np.float32), data.draw(st.booleans()))
    buffer = np.zeros(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    buffer = buffer[: codec.encode(x, buffer)]
    envelope = Envelope(data.draw(st.sampled_from([*WORKING, np.dtype(np.int32)])), x.size)
    count = data.draw(st.one_of(st.integers(0, 700), st.integers(0, 2**64 - 1)))
    extra = data.draw(st.one_of(st.integers(0, 700), st.integers(0, 2**64 - 1)))
    codec.write_header(buffer, envelope, count, buffer.size - HEADER_NBYTES, extra)
    frame = Frame.read(buffer)
    out = np.zeros(x.size, x.dtype)
    try:
        codec.decode(frame, out)
    except FrameError:
        assert not out.any()


@each_codec
def test_nothing_is_allocated_from_a_frames_numbers(spec):
    codec = as_codec(spec)
    frame = encode(codec, normal(1000))
    out = np.zeros(1000, np.float32)
    codec.decode(frame, out)
    tracemalloc.start()
    for wrong in ({"count": 2**62}, {"extra": 2**62}, {"count": 2**62, "extra": 2**62}):
        if codec.lossless and "count" not in wrong:
            continue  # it has no use for `extra`
        with pytest.raises(FrameError):
            codec.decode(dataclasses.replace(frame, **wrong), out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 17
