"""Casts on a device."""

import numpy as np
import pytest
from device import to_device
from on_device import check_frames, check_same, frame_of

from collcomp.codecs import as_codec
from collcomp.errors import FrameError

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinities, as scalars meet them

EDGES = [0.0, -0.0, 65504, 65519.99, 65520, -65536, 6e-8, 2.9e-8, -3e-8, 1e-40, -1e-45, 3.38e38, 3.4e38]


def hostile(count, real):
    """All exponents, what is not finite, ties, and what is next to them, which float32 cannot tell from a tie."""
    rng = np.random.default_rng(count)
    bits = rng.integers(0, 2**32, count, dtype=np.uint32)
    bits[::9] = bits[::9] & 0xFFFF0000 | 0x8000
    bits[1::9] = bits[1::9] & 0xFFFFE000 | 0x1000
    bits[:40] = 0x7F800001 + rng.integers(0, 2**23 - 1, 40, dtype=np.uint32) | bits[:40] & 0x80000000
    x = bits.view(np.float32).astype(real)
    x[60 : 60 + len(EDGES)] = EDGES
    x[-3:] = np.inf, -np.inf, np.nan
    if real is np.float64:
        x[::2] *= 1 + 2.0**-45
        x[1::3] *= 1 - 2.0**-45
        x[50:56] = 1e300, -1e300, 1e-300, -1e-320, 1 + 2.0**-8 + 2.0**-50, 1 + 2.0**-11 - 2.0**-50
    return x


@pytest.mark.parametrize(
    ("spec", "real", "count"),
    [
        ("fp16", np.float32, 301),
        ("fp16", np.float64, 301),
        ("bf16", np.float32, 256),
        ("bf16", np.float64, 301),
        ("fp16:rounding=stochastic", np.float32, 1300),
        ("bf16:rounding=stochastic,seed=3", np.float64, 301),
    ],
)
def test_casts(spec, real, count):
    residual = np.random.default_rng(1).standard_normal(count).astype(real)
    check_same(as_codec(spec), hostile(count, real), residual=residual)


@pytest.mark.parametrize("count", [0, 1])
def test_short_messages(count):
    check_same(as_codec("fp16"), np.full(count, 1.1, np.float32), residual=np.ones(count, np.float32))


def test_frames():
    check_frames(as_codec("bf16"), np.linspace(-3, 1, 70).astype(np.float16))


def test_payloads_of_another_size_are_refused():
    codec, x = as_codec("bf16"), np.zeros(10, np.float32)
    with pytest.raises(FrameError, match="18 bytes are not 10"):
        codec._decode(frame_of(codec, x, to_device(np.zeros(18, np.uint8)), (18, 0)), to_device(x))
