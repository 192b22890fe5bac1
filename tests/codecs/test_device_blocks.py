"""Block codecs on a device."""

import numpy as np
import pytest
from device import to_device
from on_device import check_frames, check_same

from collcomp.codecs import as_codec


def hostile(count, real, raw):
    """Magnitudes that differ from block to block, zeros of both signs, and values that no scale fits."""
    rng = np.random.default_rng(count)
    x = (rng.standard_t(3, count) * 10.0 ** rng.integers(-6, 6, count)).astype(real)
    x[:40] = 0
    x[5::11] = -0.0
    if raw:
        x[count // 2] = np.nan
        x[-1] = np.inf
        x[70] = 2.0**127
    return x


@pytest.mark.parametrize(
    ("spec", "real", "count"),
    [
        ("int8", np.float32, 333),
        ("int4:asymmetric,block=64", np.float32, 131),
        ("int2:rounding=stochastic,block=64", np.float32, 130),
        ("sign", np.float32, 301),
        ("int8:rounding=stochastic,asymmetric,block=48", np.float64, 144),
        ("int4", np.float64, 257),
        ("sign:block=64", np.float64, 97),
    ],
)
def test_block_codecs(spec, real, count):
    codec = as_codec(spec)
    rng = np.random.default_rng(1)
    others = [rng.standard_normal(count).astype(real) for _ in range(2)]
    check_same(codec, hostile(count, real, raw=True), residual=others[0], sums=others)


@pytest.mark.parametrize("count", [0, 1, 17])
def test_short_messages(count):
    check_same(as_codec("int4"), np.linspace(-1, 2, count).astype(np.float32), residual=np.ones(count, np.float32))


@pytest.mark.parametrize("dtype", ["f4", "f2", "bfloat16"])
@pytest.mark.parametrize("spec", ["int8", "identity"])
def test_frames(spec, dtype):
    check_frames(as_codec(spec), np.linspace(-3, 1, 70).astype(np.dtype(dtype)))


def test_a_codec_without_kernels_for_devices_says_so():
    codec, x = as_codec("loco"), to_device(np.ones(20, np.float32))
    with pytest.raises(TypeError, match=r"'loco' has kernels for the CPU only, the values are on cuda:0"):
        codec.encode(x, np.zeros(codec.max_encoded_nbytes(20, x.dtype), np.uint8))
