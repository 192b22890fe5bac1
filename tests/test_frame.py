"""The header is read back as it was written, or refused."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collcomp.errors import FrameError
from collcomp.frame import DTYPES, HEADER_NBYTES, Envelope, Frame, align, dtype_code

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
dtypes = st.sampled_from(list(DTYPES.values()))


def frame_bytes(payload=b"payload", envelope=None, *, codec=3, config=7, count=5, extra=11):
    buffer = np.zeros(HEADER_NBYTES + len(payload), np.uint8)
    buffer[HEADER_NBYTES:] = np.frombuffer(payload, np.uint8)
    envelope = envelope or Envelope(np.dtype("f4"), 9, 13)
    Frame.write_header(buffer, envelope, codec=codec, config=config, count=count, nbytes=len(payload), extra=extra)
    return buffer


@given(dtypes, U64, U32, U16, U32, U64, U64, st.binary(max_size=100))
def test_round_trip(dtype, total, sequence, codec, config, count, extra, payload):
    envelope = Envelope(dtype, total, sequence)
    buffer = frame_bytes(payload, envelope, codec=codec, config=config, count=count, extra=extra)
    frame = Frame.read(buffer)
    assert (frame.dtype, frame.total, frame.sequence) == (dtype, total, sequence)
    assert (frame.codec, frame.config, frame.count, frame.extra) == (codec, config, count, extra)
    assert frame.payload.tobytes() == payload
    assert frame.nbytes == buffer.size
    assert not payload or np.shares_memory(frame.payload, buffer)


def test_payload_apart_from_its_header():
    buffer = frame_bytes(b"12345678")
    head, payload = buffer[:HEADER_NBYTES].copy(), buffer[HEADER_NBYTES:].copy()
    assert Frame.read(head, payload).payload is payload
    with pytest.raises(FrameError, match="8 payload bytes, 7 arrived"):
        Frame.read(head, payload[:7])


@pytest.mark.parametrize("position", range(HEADER_NBYTES))
def test_every_damaged_bit_of_the_header_is_noticed(position):
    for bit in range(8):
        buffer = frame_bytes()
        buffer[position] ^= 1 << bit
        with pytest.raises(FrameError):
            Frame.read(buffer)


@given(st.binary(min_size=1, max_size=HEADER_NBYTES), st.integers(0, HEADER_NBYTES - 1))
def test_overwritten_header(junk, start):
    buffer = frame_bytes()
    before = buffer.tobytes()
    end = min(HEADER_NBYTES, start + len(junk))
    buffer[start:end] = np.frombuffer(junk, np.uint8)[: end - start]
    if buffer.tobytes() == before:
        assert Frame.read(buffer).count == 5
    else:
        with pytest.raises(FrameError):
            Frame.read(buffer)


@pytest.mark.parametrize("nbytes", range(HEADER_NBYTES + 7))
def test_truncated(nbytes):
    with pytest.raises(FrameError):
        Frame.read(frame_bytes()[:nbytes])


@given(st.binary(min_size=1, max_size=200))
def test_extended(more):
    buffer = np.concatenate([frame_bytes(), np.frombuffer(more, np.uint8)])
    with pytest.raises(FrameError, match="7 payload bytes"):
        Frame.read(buffer)


@given(st.binary(max_size=300))
def test_random_bytes(junk):
    with pytest.raises(FrameError):
        Frame.read(np.frombuffer(junk, np.uint8))


@given(st.binary(min_size=60, max_size=60))
def test_random_header_with_a_right_checksum(junk):
    """Somebody who computes checksums may still write nonsense."""
    body = b"CCF1" + junk[4:]
    buffer = np.frombuffer(body + struct.pack("<I", zlib.crc32(body)) + b"payload", np.uint8)
    try:
        frame = Frame.read(buffer)
    except FrameError:
        return
    assert frame.dtype in DTYPES.values()
    assert frame.payload.size == 7


@pytest.mark.parametrize("nbytes", [2**40, 2**63, 2**64 - 1])
def test_huge_sizes_allocate_nothing(nbytes):
    buffer = np.zeros(HEADER_NBYTES, np.uint8)
    Frame.write_header(buffer, Envelope(np.dtype("f4"), 2**60), codec=1, config=0, count=2**60, nbytes=nbytes, extra=0)
    with pytest.raises(FrameError, match=f"{nbytes} payload bytes"):
        Frame.read(buffer)


@pytest.mark.parametrize("dtype", ["c8", "U4", "M8[s]", "f4,f4", "O"])
def test_dtypes_that_cannot_travel(dtype):
    with pytest.raises(TypeError, match=r"dtype: .*cannot travel"):
        dtype_code(np.dtype(dtype))


def test_dtype_codes_are_frozen():
    names = ["float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64"]
    names += ["uint8", "uint16", "uint32", "uint64", "bool"]
    assert {code: dtype.name for code, dtype in DTYPES.items()} == dict(enumerate(names, 1))


def test_align():
    assert [align(n) for n in (0, 1, 63, 64, 65)] == [0, 64, 64, 64, 128]
