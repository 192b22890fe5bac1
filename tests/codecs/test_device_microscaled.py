"""Small floats with scales on a device."""

import numpy as np
import pytest
from checks import encode
from device import to_device, to_host
from on_device import check_frames, check_same

from collcomp.codecs import as_codec
from collcomp.codecs.base import frame_beside


def hostile(count, real):
    """Magnitudes from block to block and within, ties and what is next to them, and values that no scale fits."""
    rng = np.random.default_rng(count)
    x = rng.standard_t(3, count) * 2.0 ** rng.integers(-8, 3, count)
    x *= (10.0 ** rng.integers(-30, 30, count // 64 + 1)).repeat(64)[:count]
    x[::5] = 2.0 ** np.round(np.log2(np.abs(x[::5]) + 1e-40)) * 1.125
    x[::10] *= 1 + 2.0**-45
    x[1:32] = 0
    x[5::11] = -0.0
    x[64] = 1e-44
    if count > 256:
        x[count // 2] = np.nan
        x[-1] = -np.inf
        x[70] = 2.0**127
    return x.astype(real)


@pytest.mark.parametrize(
    ("spec", "real", "count"),
    [
        ("fp8_e4m3", np.float32, 601),
        ("fp8_e4m3:block=96,rounding=stochastic", np.float64, 250),
        ("fp8_e5m2:block=32", np.float64, 300),
        ("fp8_e5m2:rounding=stochastic", np.float32, 256),
        ("mxfp8", np.float64, 333),
        ("mxfp8:rounding=stochastic", np.float32, 289),
        ("mxfp4", np.float32, 333),
        ("mxfp4:rounding=stochastic", np.float64, 181),
    ],
)
def test_small_floats(spec, real, count):
    rng = np.random.default_rng(1)
    others = [rng.standard_normal(count).astype(real) for _ in range(2)]
    check_same(as_codec(spec), hostile(count, real), residual=others[0], sums=others)


@pytest.mark.parametrize("count", [0, 1, 40])
def test_short_messages(count):
    check_same(as_codec("mxfp4"), np.linspace(-1, 2, count).astype(np.float32), residual=np.ones(count, np.float32))


def test_frames():
    check_frames(as_codec("fp8_e4m3"), np.linspace(-3, 1, 70).astype(np.float16))


@pytest.mark.parametrize("spec", ["fp8_e4m3", "mxfp4"])
def test_more_raw_blocks_than_there_is_room_for(spec):
    """Those of which nothing was sent are NaN, nothing is read past the frame."""
    codec, x = as_codec(spec), np.ones(512, np.float32)
    x[-1] = np.inf
    frame = encode(codec, x)
    frame.payload[: codec._scale_nbytes(x.size)] = 0xFF
    for name in ("_decode", "_decode_add"):
        dst = to_device(np.zeros_like(x))
        getattr(codec, name)(frame_beside(frame, dst), dst)
        assert np.array_equal(to_host(dst)[: codec.block], x[-codec.block :])
        assert np.isnan(to_host(dst)[codec.block :]).all()
