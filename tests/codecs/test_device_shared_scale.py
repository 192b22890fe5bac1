"""Integers on a shared scale on a device."""

import numpy as np
import pytest
from device import to_device, to_host
from lockstep import reduce_in_lockstep
from on_device import assert_same_bits, check_same, frame_of

from collcomp import devices
from collcomp.codecs import SharedInt, shared_scale
from collcomp.frame import ALIGNMENT


def values(count, real, seed=0):
    x = (np.random.default_rng(seed).standard_normal(count) * 1e3).astype(real)
    x[::7] = -0.0
    return x


@pytest.mark.parametrize(
    ("bits", "real", "count"),
    [(8, np.float32, 600), (32, np.float32, 33), (16, np.float64, 130), (8, np.float32, 1), (8, np.float64, 0)],
)
def test_frames(bits, real, count):
    check_same(SharedInt(bits=bits), values(count, real), residual=values(count, real, seed=1))


@pytest.mark.parametrize("value", [np.nan, -np.inf, 2.0**127, 2.0**-96, 0.0])
def test_messages_without_a_scale_and_of_zeros(value):
    x = np.zeros(40, np.float32)
    x[17] = value
    check_same(SharedInt(), x, residual=np.zeros_like(x))


@pytest.mark.parametrize("peak", [1e4, np.nan])
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_sums(real, peak):
    operands = [values(50, real, seed) for seed in range(3)]
    operands[1][20] = peak
    residuals = [values(50, real, seed) for seed in range(3, 6)]
    on_device = [to_device(residual) for residual in residuals]
    codec = SharedInt()
    expected, sent = reduce_in_lockstep(codec, operands, residuals=residuals)
    found, sent_on_device = reduce_in_lockstep(codec, [to_device(x) for x in operands], residuals=on_device)
    for device, host in zip([*found, *on_device], [*expected, *residuals], strict=True):
        assert_same_bits(device, host)
    assert [array.dtype for array, _ in sent_on_device] == [array.dtype for array, _ in sent]


def test_values_without_a_scale_while_a_graph_is_captured(monkeypatch):
    """Nobody can wait for the news then."""
    monkeypatch.setattr(shared_scale, "read", lambda: [0])
    codec, x = SharedInt(), np.full(70, np.inf, np.float32)
    payload, dst = to_device(np.zeros(ALIGNMENT + x.nbytes, np.uint8)), to_device(x)
    outcome = codec._encode(to_device(x), payload, 0)
    codec._decode(frame_of(codec, x, payload, outcome), dst)
    assert outcome == (ALIGNMENT + x.size, 0)
    assert np.isnan(to_host(dst)).all()
    devices.read()  # what was counted is not for the next test
