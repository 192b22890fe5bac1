"""Byte planes by zstd."""

import dataclasses

import numpy as np
import pytest
from checks import encode
from lossless import BFLOAT16, check_every_bit

zstandard = pytest.importorskip("zstandard")

from collcomp.bench.codecs import make_data  # noqa: E402
from collcomp.codecs import Planes  # noqa: E402
from collcomp.errors import FrameError  # noqa: E402

COUNT = 200_000


def plane_sizes(x, codec=None):
    payload = encode(codec or Planes(), x).payload
    return payload[: 8 * x.itemsize].view(np.int64).tolist()


def test_every_bit():
    check_every_bit(Planes(), counts=(0, 1, 33, 3000))


@pytest.mark.parametrize("level", [-7, 1, 19])
def test_levels(level):
    check_every_bit(Planes(level=level), counts=(3000,))


def test_only_exponents_of_gradients_are_compressed():
    sizes = plane_sizes(make_data("grad", COUNT))
    assert sizes[0] < COUNT / 2
    assert sizes[1:] == [COUNT] * 3


@pytest.mark.parametrize(("dtype", "least"), [(np.float32, 1.17), (BFLOAT16, 1.4)])
def test_ratio_of_gradients(dtype, least):
    x = make_data("normal", COUNT).astype(dtype)
    assert x.nbytes / encode(Planes(), x).payload.size > least


def test_constants_and_counters_nearly_vanish():
    for x in (np.full(COUNT, 1.5), np.arange(COUNT)):
        assert encode(Planes(), x).payload.size < x.nbytes / 50


def test_order_in_part_of_a_plane_is_found():
    x = np.random.default_rng(0).integers(0, 256, COUNT, dtype=np.uint8)
    x[COUNT // 3 : COUNT // 2] = 0
    assert encode(Planes(), x).payload.size < 0.9 * COUNT


def test_a_plane_that_tells_of_more_is_refused():
    """Nothing is allocated for what a frame of zstd's claims to hold."""
    x = np.zeros(4000, np.uint8)
    for size in (0, 3999, 4001, 1 << 26):
        other = np.frombuffer(zstandard.compress(bytes(size)), np.uint8)
        payload = np.concatenate([np.array([other.size]).view(np.uint8), other])
        with pytest.raises(FrameError, match="4000 bytes"):
            Planes().decode(dataclasses.replace(encode(Planes(), x), payload=payload), x)


@pytest.mark.parametrize("level", [-8, 23])
def test_level_is_checked(level):
    with pytest.raises(ValueError, match=f"level.*{level}"):
        Planes(level=level)
