"""Error-bounded codes on a device."""

import numpy as np
import pytest
from device import to_device, to_host
from on_device import check_same, frame_of

from collcomp.codecs import as_codec


def mixed(count, real):
    """Blocks whose differences are narrower and blocks where they are not, of both grids, raw, and of zeros."""
    rng = np.random.default_rng(count)
    x = np.cumsum(rng.uniform(-1, 3, count))
    for b, start in enumerate(range(0, count, 256)):
        part = x[start : start + 256]
        if b % 5 == 2:
            part[:] = rng.uniform(-30, 30, part.size)
        if b % 7 == 4:
            part *= 100
        if b % 9 == 6:
            part[part.size // 2] = (np.nan, np.inf)[b % 2]
        if b % 9 == 7:
            part[:] = -0.0
    return x.astype(real)


@pytest.mark.parametrize(
    ("spec", "real", "count"),
    [
        ("bounded:abs=0.1", np.float32, 256 * 10 + 77),
        ("bounded:rel=1e-4", np.float32, 256),
        ("bounded", np.float64, 256 * 2 + 1),
        ("hbound:abs=0.1", np.float64, 100),
        ("bounded", np.float32, 0),
        ("bounded:abs=0.1", np.float32, 1),
    ],
)
def test_payloads(spec, real, count):
    check_same(as_codec(spec), mixed(count, real), residual=np.linspace(-1, 1, count).astype(real))


def test_the_blocks_tried_are_of_all_kinds():
    """Those of the longest message above."""
    codec, x = as_codec("bounded:abs=0.1"), mixed(256 * 10 + 77, np.float32)
    payload = np.zeros(codec.max_payload_nbytes(x.size, x.dtype), np.uint8)
    codec._encode(x, payload, 0)
    codes = codec._sections(payload, x.size, x.dtype).codes.tolist()
    kinds = {"raw" if code == 63 else (code >> 6, "empty" if code == 0 else "") for code in codes}
    assert kinds == {"raw", (0, ""), (0, "empty"), (1, ""), (2, ""), (3, "")}


def test_sums_of_integers():
    rng = np.random.default_rng(0)
    x, *others = (np.cumsum(rng.uniform(-1, 1, 300)).astype(np.float32) for _ in range(3))
    check_same(as_codec("hbound:abs=0.1"), x, sums=others)


@pytest.mark.parametrize("fault", ["bound", "width", "size", "own"])
def test_sums_of_what_has_no_integers(fault):
    """The operand of this rank is left as it is."""
    codec = as_codec("hbound:abs=0.1")
    x = np.linspace(0, 90, 300).astype(np.float32)
    payload = np.zeros(codec.max_payload_nbytes(x.size, x.dtype), np.uint8)
    nbytes, extra = codec._encode(x, payload, 0)
    if fault == "own":
        x[299] = np.inf
    else:
        payload[: 8 if fault == "bound" else 10] = 62
    frame = frame_of(codec, x, to_device(payload), (nbytes - 32 * (fault == "size"), extra))
    own, room = to_device(x), to_device(payload)
    assert codec._encode_sum([frame], own, 0, 2, own, room, 0) is None
    assert np.array_equal(to_host(own), x)


def test_damaged_payloads():
    """What cannot be decoded is NaN, and nothing is read where nothing lies."""
    codec, x = as_codec("bounded:abs=0.1"), mixed(256 * 5, np.float64)
    payload = np.zeros(codec.max_payload_nbytes(x.size, x.dtype), np.uint8)
    nbytes, extra = codec._encode(x, payload, 0)

    def decoded(nbytes, where=slice(0), byte=0):
        damaged, dst = payload.copy(), to_device(np.zeros_like(x))
        damaged[where] = byte
        codec._decode(frame_of(codec, x, to_device(damaged), (nbytes, extra)), dst)
        return to_host(dst)

    complete, cut = decoded(nbytes), decoded(nbytes - 33)
    assert np.array_equal(cut[:1024], complete[:1024])
    assert np.isnan(cut[-1])
    no_width, all_raw, no_bound = decoded(nbytes, 8, 33), decoded(nbytes, slice(8, 13), 63), decoded(nbytes, 7, 255)
    assert np.isnan(no_width[:256]).all()
    assert np.isnan(all_raw[-1])
    assert np.isnan(no_bound[:256]).all()
