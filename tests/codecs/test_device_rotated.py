"""Rotation on a device."""

import numpy as np
import pytest
from device import to_device
from on_device import assert_same_bits, check_same, frame_of

from collcomp.codecs import as_codec
from collcomp.kernels.cuda import butterflies

# Kernels compute with what is not finite as with all else.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def message(count, real, raw):
    x = np.random.default_rng(count).standard_t(3, count).astype(real)
    x[::9] = -0.0
    if raw:
        x[count // 2], x[-1] = np.nan, 2.0**100
    return x


@pytest.mark.parametrize(
    ("spec", "real", "count"),
    [
        ("hadamard:block=256+int4", np.float32, 700),
        ("hadamard:block=512,seed=3+int8:rounding=stochastic,block=64", np.float64, 1024),
        ("hadamard+sign", np.float32, 300),
        (f"hadamard:block={2 * butterflies.TILE}+int4", np.float32, butterflies.TILE + 300),
    ],
)
def test_same_as_on_the_host(spec, real, count):
    check_same(as_codec(spec), message(count, real, raw=True), residual=message(count, real, raw=False))


@pytest.mark.parametrize("count", [0, 1])
def test_short_messages(count):
    check_same(as_codec("hadamard"), np.full(count, 0.3, np.float32), residual=np.ones(count, np.float32))


def test_damaged_payloads():
    """Whatever says which blocks are plain, and whatever the inner payload is, values come as on the host."""
    codec, x = as_codec("hadamard:block=256"), message(600, np.float32, raw=False)
    payload = np.zeros(codec.max_payload_nbytes(x.size, x.dtype), np.uint8)
    outcome = codec._encode(x, payload, 0)
    payload[:64] = 0xFF
    payload[100:] ^= 0x5A
    host, device = np.empty_like(x), to_device(x)
    with np.errstate(all="ignore"):
        codec._decode(frame_of(codec, x, payload, outcome), host)
    codec._decode(frame_of(codec, x, to_device(payload), outcome), device)
    assert_same_bits(device, host)


def test_where_the_inner_codec_can_be_used():
    assert as_codec("hadamard+int4").on_devices
