"""Integers packed by width."""

import numpy as np
import pytest

from collcomp.kernels.cpu.jit import kernel
from collcomp.kernels.cpu.packing import BLOCK, LANES, pack, pack_signed, unpack, unpack_signed


@kernel
def packed(values, words, width):
    pack(values, 0, words, 0, width)


@kernel
def unpacked(words, values, width):
    unpack(words, 0, values, 0, width)


@kernel
def packed_signed(values, words, width):
    pack_signed(values, 0, words, 0, width)


@kernel
def unpacked_signed(words, values, width):
    unpack_signed(words, 0, values, 0, width)


@pytest.mark.parametrize("width", range(33))
def test_every_width(width):
    rng = np.random.default_rng(width)
    values = rng.integers(0, 1 << width, BLOCK, dtype=np.uint64).astype(np.uint32)
    words = np.full(LANES * width + 8, 0xABABABAB, np.uint32)
    packed(values, words, width)
    assert (words[LANES * width :] == 0xABABABAB).all()
    bits = np.unpackbits(words[: LANES * width].view(np.uint8), bitorder="little").reshape(width, LANES, 32)
    lanes = bits.transpose(1, 0, 2).reshape(LANES, 32, width)  # each lane's bits one after another
    expected = (lanes.astype(np.uint64) << np.arange(width, dtype=np.uint64)).sum(2).T.ravel()
    np.testing.assert_array_equal(expected, values)
    back = np.full(BLOCK + 8, 7, np.uint32)
    unpacked(words, back, width)
    np.testing.assert_array_equal(back[:BLOCK], values)
    assert (back[BLOCK:] == 7).all()


@pytest.mark.parametrize("width", range(33))
def test_every_width_of_signed_integers(width):
    """In two's complement: packed as the unsigned integers of the same bits are."""
    half = 1 << width >> 1
    values = np.random.default_rng(width).integers(-half, max(half, 1), BLOCK).astype(np.int32)
    if width:
        values[:2] = -half, half - 1
    words, expected = np.full(LANES * width + 8, 0xABABABAB, np.uint32), np.zeros(LANES * width, np.uint32)
    packed_signed(values, words, width)
    assert (words[LANES * width :] == 0xABABABAB).all()
    packed((values.astype(np.int64) & ((1 << width) - 1)).astype(np.uint32), expected, width)
    np.testing.assert_array_equal(words[: LANES * width], expected)
    back = np.full(BLOCK + 8, 7, np.int32)
    unpacked_signed(words, back, width)
    np.testing.assert_array_equal(back[:BLOCK], values)
    assert (back[BLOCK:] == 7).all()


@pytest.mark.parametrize("width", [-1, 33, 1 << 40])
def test_other_widths_do_nothing(width):
    words = np.zeros(8, np.uint32)
    packed(np.ones(BLOCK, np.uint32), words, width)
    assert not words.any()
