"""THC on a device."""

import numpy as np
import pytest
from device import to_device, to_host
from lockstep import reduce_in_lockstep
from on_device import assert_same_bits, check_same, frame_of

from collcomp.codecs import THC
from collcomp.kernels.cuda import butterflies

LARGE = 2 * butterflies.TILE

# Kernels compute with what is not finite as with all else.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def message(count, real, raw, seed=0):
    """Blocks that are ordinary, all zeros, and, if `raw`, without a norm."""
    x = np.random.default_rng([seed, count]).standard_normal(count).astype(real)
    x[300:560] = -0.0
    if raw:
        x[-1] = np.nan
        x[256:512] *= real(1e-35)
        x[:3] = -np.inf
    return x


@pytest.mark.parametrize(
    ("codec", "real", "count", "raw"),
    [
        (THC(block=256), np.float32, 1100, True),
        (THC(block=512, bits=3, granularity=20), np.float64, 1024, False),
        (THC(bits=8, granularity=255, seed=3), np.float32, 301, False),
        (THC(block=LARGE, bits=1, granularity=1), np.float32, butterflies.TILE + 300, False),
    ],
)
def test_frames(codec, real, count, raw):
    check_same(codec, message(count, real, raw), residual=message(count, real, raw=False, seed=1))


@pytest.mark.parametrize("count", [0, 1, 63])
def test_short_messages(count):
    check_same(THC(), np.full(count, 0.3, np.float32), residual=np.ones(count, np.float32))


def test_damaged_payloads():
    """What says which blocks are raw contradicts the header; nothing is read that is not there."""
    codec, x = THC(block=256), message(700, np.float32, raw=False)
    payload = np.zeros(codec.max_payload_nbytes(x.size, x.dtype), np.uint8)
    nbytes, extra = codec._encode(x, payload, 0)
    payload[:nbytes] ^= 0x5A
    payload[:12].view(np.float32)[:] = np.nan, np.inf, -1
    out = to_device(x)
    codec._decode(frame_of(codec, x, to_device(payload), (nbytes, extra)), out)
    found = to_host(out)
    assert np.isnan(found[:256]).all()
    assert np.isfinite(found[512:]).all()


@pytest.mark.parametrize(
    ("real", "count", "feedback", "raw"),
    [(np.float32, 700, True, True), (np.float64, 512, False, False), (np.float32, 0, False, False)],
)
def test_reductions(real, count, feedback, raw):
    codec = THC(block=256)
    xs = [message(count, real, raw and not rank, seed=rank) for rank in range(2)]
    residuals = [message(count, real, raw=False, seed=7) if feedback else None for _ in xs]
    kept = [to_device(residual) for residual in residuals] if feedback else None
    device, sent_there = reduce_in_lockstep(codec, [to_device(x) for x in xs], residuals=kept, shared=2)
    host, sent = reduce_in_lockstep(codec, xs, residuals=residuals, shared=2)
    for (there, _), (here, _) in zip(sent_there, sent, strict=True):
        assert_same_bits(there, here)
    for rank in range(2):
        assert_same_bits(device[rank], host[rank])
        if feedback:
            assert_same_bits(kept[rank], residuals[rank])
