"""The layouts of sparse frames: sizes, round trips, and what is refused."""

import dataclasses

import numpy as np
import pytest
from checks import WORKING, decode, encode, normal

from collcomp.codecs import TopK, as_codec, selection
from collcomp.errors import FrameError
from collcomp.frame import Frame, align
from collcomp.kernels import cpu

PLAIN, PACKED, BITMAP = range(3)


def written(indices, count, itemsize=4):
    """Frame of the elements at `indices`, whose values are their places in it."""
    dtype = np.dtype(f"f{itemsize}")
    payload = np.full(selection.max_nbytes(indices.size, dtype), 0xAB, np.uint8)
    selection.values_in(payload, indices.size, dtype)[:] = np.arange(indices.size)
    nbytes, extra = selection.finish(payload, indices, itemsize, count)
    assert nbytes <= payload.size
    assert (payload[nbytes:] == 0xAB).all()
    return Frame(0, dtype, 0, 0, count, extra, count, payload[:nbytes])


def packed_nbytes(indices):
    """Bytes of the packed gaps, by their definition."""
    gaps = np.diff(indices.astype(np.int64), prepend=-1) - 1
    nbytes = 4 * -(-indices.size // 1024)
    for start in range(0, indices.size, 256):
        block = gaps[start : start + 256]
        nbytes += 4 * -(-block.size * int(block.max()).bit_length() // 32)
    return nbytes


def bitmap_nbytes(count):
    return 8 * -(-count // 64)


def spread(k, count, seed=0):
    """`k` of `count` indices, each set equally likely."""
    return np.sort(np.random.default_rng([seed, k, count]).choice(count, k, replace=False)).astype(np.uint32)


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000, 20_000])
@pytest.mark.parametrize("density", [0, 0.001, 0.01, 0.1, 0.3, 0.9, 1])
def test_every_density(density, count, itemsize):
    indices = spread(int(density * count), count)
    frame = written(indices, count, itemsize)
    k = indices.size
    smaller = min(packed_nbytes(indices), bitmap_nbytes(count))
    assert frame.payload.size == align(k * itemsize) + smaller
    assert frame.extra == (BITMAP if bitmap_nbytes(count) < packed_nbytes(indices) else PACKED) << 32 | k
    got, values = selection.read(frame, frame.dtype, k, k)
    np.testing.assert_array_equal(got, indices)
    np.testing.assert_array_equal(values, np.arange(k))


@pytest.mark.parametrize("k", [1, 2, 31, 255, 256, 257, 511, 512, 513, 1024, 1025])
@pytest.mark.parametrize("count", [2**16, 2**31, 2**32 - 1])
def test_gaps_of_every_width(k, count):
    """The last block is packed bit by bit; the widest gap is the message itself."""
    rng = np.random.default_rng([k, count])
    for indices in (
        np.unique(((count - 1) * rng.random(k) ** rng.integers(1, 30)).astype(np.uint32)),
        np.arange(count - k, count).astype(np.uint32),
        np.arange(k, dtype=np.uint32),
    ):
        frame = written(indices, count)
        np.testing.assert_array_equal(selection.read(frame, frame.dtype, 0, k)[0], indices)


def test_two_thirds_of_the_bytes_at_one_percent():
    frame = written(spread(10_000, 1_000_000), 1_000_000)
    assert frame.payload.size < 5.4 * 10_000
    assert frame.extra >> 32 == PACKED


def plain(indices, values, count):
    """Payload and `extra` as before version 1."""
    payload = np.zeros(align(4 * indices.size) + values.nbytes, np.uint8)
    payload[: 4 * indices.size] = indices.view(np.uint8)
    payload[align(4 * indices.size) :] = values.view(np.uint8)
    return payload, indices.size


@pytest.mark.parametrize("dtype", WORKING, ids=str)
def test_plain_indices_are_still_read(dtype):
    codec = TopK(k=300)
    x = normal(1000, dtype)
    frame = encode(codec, x)
    payload, extra = plain(*codec.selection(frame), 1000)
    old = dataclasses.replace(frame, payload=payload, extra=extra)
    assert decode(codec, old, dtype).tobytes() == decode(codec, frame, dtype).tobytes()


@pytest.mark.parametrize("indices", [[5, 5, 6], [6, 5, 7], [0, 1, 1000], [0, 1, 2**32 - 1], [2, 1, 0]])
def test_plain_indices_that_do_not_ascend(indices):
    codec = TopK(k=3)
    payload, extra = plain(np.array(indices, np.uint32), np.ones(3, np.float32), 1000)
    frame = dataclasses.replace(encode(codec, normal(1000)), payload=payload, extra=extra)
    with pytest.raises(FrameError, match="ascend"):
        codec.decode_add(frame, np.zeros(1000, np.float32))


# ---------------------------------------------------------------------- what is refused


def refused(frame, match, count=None, extra=None, payload=None):
    """Check that the frame with these changes is refused."""
    changes = {"count": count, "extra": extra, "payload": payload}
    wrong = dataclasses.replace(frame, **{name: value for name, value in changes.items() if value is not None})
    with pytest.raises(FrameError, match=match):
        selection.read(wrong, frame.dtype, 0, 5000)


def changed(frame, at, value):
    """The payload with another byte."""
    payload = frame.payload.copy()
    payload[at] = value
    return payload


@pytest.mark.parametrize("k", [10, 256, 600])
def test_packed_gaps_that_are_wrong(k):
    count = 100_000
    frame = written(spread(k, count), count)
    start = align(4 * k)
    indices, _ = selection.read(frame, frame.dtype, 0, k)
    refused(frame, "index", count=int(indices[-1]))
    refused(frame, "more than 32 bits", payload=changed(frame, start, 33))
    refused(frame, "more than 32 bits", payload=changed(frame, start, 255))
    refused(frame, "expected", payload=changed(frame, start, frame.payload[start] + 4))
    refused(frame, "payload bytes", payload=frame.payload[:-4])
    refused(frame, "payload bytes", payload=frame.payload[:start])
    refused(frame, "payload bytes", payload=frame.payload[:0])
    ones = frame.payload.copy()
    ones[start + 4 * -(-k // 1024) :] = 255
    refused(frame, "index", payload=ones)


def test_gaps_whose_sum_wraps_around():
    """Gaps of 32 bits: the indices would come round to small ones again."""
    k = 600
    words = np.full(k, 2**32 - 1, np.uint32)
    widths = np.array([32, 32, 32, 0], np.uint8)
    payload = np.concatenate([np.zeros(align(4 * k), np.uint8), widths, words.view(np.uint8)])
    frame = Frame(0, np.dtype(np.float32), 0, 0, 1000, PACKED << 32 | k, 1000, payload)
    refused(frame, "index")


@pytest.mark.parametrize("count", [1000, 1024])
def test_bitmaps_that_are_wrong(count):
    k = 400
    frame = written(spread(k, count), count)
    assert frame.extra >> 32 == BITMAP
    start = align(4 * k)
    first = int(frame.payload[start])
    refused(frame, "bitmap", payload=changed(frame, start, first ^ 1))
    refused(frame, "payload bytes", payload=frame.payload[:-8])
    refused(frame, "payload bytes", count=count + 64)
    if count % 64:
        moved = changed(frame, start, first & (first - 1))
        moved[-1] = 0x80
        refused(frame, "bitmap", payload=moved)


@pytest.mark.parametrize("extra", [3 << 32 | 10, 2**63, 2**64 - 1, PACKED << 32 | 5001])
def test_unknown_layouts_and_numbers(extra):
    refused(written(spread(10, 1000), 1000), "layout", extra=extra)


@pytest.mark.parametrize("spec", ["topk:ratio=0.02", "topk:ratio=0.3"])
def test_no_layout_is_longer_than_its_bound(spec):
    """Old frames too: receivers make room by it."""
    codec = as_codec(spec)
    for count in (1, 100, 1000, 5000):
        k = codec.selected(count)
        assert codec.max_payload_nbytes(count, np.dtype(np.float32)) >= align(4 * k) + 4 * k


def test_messages_are_limited():
    with pytest.raises(ValueError, match=r"count: 4294967296 .* 4294967295"):
        selection.check_count(2**32)
    selection.check_count(2**32 - 1)


def test_kernels_agree_with_numpy():
    kernels = cpu.load("indices")
    indices = spread(300, 1000)
    bitmap = np.empty(16, np.uint64)
    kernels.to_bitmap(indices, bitmap)
    np.testing.assert_array_equal(np.flatnonzero(np.unpackbits(bitmap.view(np.uint8), bitorder="little")), indices)
    assert kernels.ones(bitmap) == 300
