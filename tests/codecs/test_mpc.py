"""MPC against a slow model of the paper's code."""

import numpy as np
import pytest
from checks import decode, encode, normal
from lossless import check_every_bit

from collcomp.codecs import MPC

each_dim = pytest.mark.parametrize("dim", [1, 2, 3, 31, 32])


def model(words, dim):
    """The words that the paper's code gives for `words` (uint32), less the one at the end that it never reads."""
    n = words.size
    header, bitmaps, kept = [0x63706D00 - 1 + dim, n], [], []
    for start in range(0, n, 1024):
        x = words[start : start + 1024].tolist()
        d = [(v - x[i - dim]) % 2**32 if i >= dim else v for i, v in enumerate(x)]
        d += [0] * (-len(d) % 32)
        planes = []
        for group in range(0, len(d), 32):
            for bit in range(32):
                planes.append(sum((d[group + i] >> bit & 1) << i for i in range(32)))
        t = [(v - planes[i - 1]) % 2**32 if i else v for i, v in enumerate(planes)]
        for group in range(0, len(t), 32):
            bitmaps.append(sum((t[group + i] != 0) << i for i in range(32)))
        kept += [v for v in t if v]
    return np.array(header + bitmaps + kept, np.uint32)


@each_dim
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100, 1023, 1024, 1025, 2500])
def test_the_words_are_the_models(dim, count):
    for x in (normal(count), np.sin(np.arange(count) / 50).astype(np.float32), np.ones(count, np.float32)):
        np.testing.assert_array_equal(encode(MPC(dim=dim), x).payload.view(np.uint32), model(x.view(np.uint32), dim))


def test_other_dtypes_are_words_too():
    for x in (normal(333, np.float64), normal(1001, np.float16), np.arange(7, dtype=np.uint8)):
        padded = np.frombuffer(x.tobytes() + bytes(-x.nbytes % 4), np.uint32)
        np.testing.assert_array_equal(encode(MPC(), x).payload.view(np.uint32), model(padded, 1))


@each_dim
def test_every_bit(dim):
    check_every_bit(MPC(dim=dim), counts=(0, 1, 33, 1025, 3000))


def test_the_bound_is_reached():
    """Words whose planes all differ from the one before: nothing is zero."""
    x = np.full(1, 0x55555555, np.uint32)
    codec = MPC()
    assert encode(codec, x).payload.size == codec.max_payload_nbytes(1, x.dtype)


N = 1 << 18


@pytest.mark.parametrize(
    ("ratio", "x"),
    [
        (1.10, np.random.default_rng(0).standard_normal(N)),
        (1.74, np.random.default_rng(0).standard_normal(N) * (np.random.default_rng(1).random(N) < 0.05)),
        (3.19, np.sin(np.arange(N) * 1e-4)),
        (30.1, np.full(N, 1.5)),
    ],
    ids=["normal", "95% zero", "sine", "constant"],
)
def test_ratio(ratio, x):
    x = x.astype(np.float32)
    assert x.nbytes / encode(MPC(), x).payload.size == pytest.approx(ratio, rel=0.02)


def test_ratio_of_rounded_values():
    x = (np.random.default_rng(0).standard_normal(N, dtype=np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert x.nbytes / encode(MPC(), x).payload.size == pytest.approx(2.29, rel=0.02)


def test_the_right_dim_pays():
    """Three fields, interleaved."""
    fields = np.sin(np.arange(30_000)[:, None] * 1e-4 + np.array([0, 1, 2])) * np.array([1, 100, 1e4])
    x = fields.astype(np.float32).ravel()
    sizes = {dim: encode(MPC(dim=dim), x).payload.size for dim in (1, 2, 3, 4)}
    assert min(sizes, key=sizes.get) == 3
    np.testing.assert_array_equal(decode(MPC(dim=3), encode(MPC(dim=3), x), x.dtype), x)


@pytest.mark.parametrize("dim", [0, 33, -1])
def test_dim_is_checked(dim):
    with pytest.raises(ValueError, match=f"dim.*{dim}"):
        MPC(dim=dim)


def test_dim_has_to_be_an_integer():
    with pytest.raises(TypeError, match=r"dim.*1\.5"):
        MPC(dim=1.5)
