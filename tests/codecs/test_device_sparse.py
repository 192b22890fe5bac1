"""Sparse codecs on a device."""

import dataclasses

import numpy as np
import pytest
from device import to_device, to_host
from on_device import STREAM, assert_same_bits, check_same, frame_of

from collcomp import devices
from collcomp.codecs import as_codec
from collcomp.errors import FrameError


def hostile(count, real):
    """Heavy tails, equal magnitudes, and all values that are odd."""
    rng = np.random.default_rng(count)
    x = rng.standard_t(2, count).astype(real)
    x[::7] = np.round(x[::7])
    x[3::50] = -0.0
    if count > 100:
        x[40:44] = np.inf, np.nan, -np.inf, 1e-42
    return x


@pytest.mark.parametrize(
    ("spec", "real", "count"),
    [
        ("topk:ratio=0.02", np.float32, 300),
        ("topk:ratio=0.3", np.float64, 70),
        ("threshold:ratio=0.05", np.float64, 130),
        ("randomk:ratio=0.1", np.float32, 130),
        ("randomblock:ratio=0.4", np.float64, 130),
    ],
)
def test_sparse_codecs(spec, real, count):
    residual = np.random.default_rng(1).standard_normal(count).astype(real)
    check_same(as_codec(spec), hostile(count, real), residual=residual)


@pytest.mark.parametrize("spec", ["randomk:ratio=0.7,scaled", "randomblock:k=9,scaled"])
def test_scaled_codecs(spec):
    check_same(as_codec(spec), hostile(70, np.float32))


def test_several_blocks_of_gaps():
    x = np.zeros(520, np.float32)
    x[1::2] = np.arange(1, 261)
    check_same(as_codec("nonzeros"), x)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("spec", ["topk", "threshold", "randomk", "randomblock", "nonzeros"])
def test_short_messages(spec, count):
    residual = None if spec == "nonzeros" else np.ones(count, np.float32)
    check_same(as_codec(spec), np.full(count, 1.5, np.float32), residual)


@pytest.mark.parametrize("density", [0, 0.02, 0.4, 1])
def test_nonzeros(density):
    rng = np.random.default_rng(1)
    x = np.where(rng.random(130) < density, rng.standard_normal(130), 0).astype(np.float32)
    if density == 0.4:
        x[:4] = -0.0, np.nan, np.inf, 0
    check_same(as_codec("nonzeros"), x)


def test_nonzeros_of_integers():
    codec, x = as_codec("nonzeros"), (np.arange(300) % 50 == 3).astype(np.int16)
    payload = np.zeros(x.nbytes, np.uint8)
    outcome = codec._encode(x, payload, STREAM)
    room, decoded = to_device(np.zeros(x.nbytes, np.uint8)), to_device(np.ones_like(x))
    assert codec._encode(to_device(x), room, STREAM) == outcome
    assert np.array_equal(to_host(room), payload)
    codec._decode(frame_of(codec, x, room, outcome), decoded)
    assert np.array_equal(to_host(decoded), x)


@pytest.mark.parametrize("method", ["held", "sidco", "dgc"])
def test_what_a_threshold_remembers(method):
    codec = as_codec(f"threshold:ratio=0.2,method={method},feedback")
    states, residuals = ({}, {}), (np.zeros(90, np.float32), to_device(np.zeros(90, np.float32)))
    for scale in (1, 5):  # the second time, far too much is above what is remembered
        x = np.random.default_rng(1).standard_t(3, 90).astype(np.float32) * np.float32(scale)
        payloads = [np.zeros(codec.max_payload_nbytes(90, x.dtype), np.uint8) for _ in range(2)]
        payloads[1] = to_device(payloads[1])
        found = [
            codec._encode_feedback(values, residual, payload, STREAM, state)
            for values, residual, payload, state in zip((x, to_device(x)), residuals, payloads, states, strict=True)
        ]
        assert found[0] == found[1]
        assert np.array_equal(to_host(payloads[1])[: found[0][0]], payloads[0][: found[0][0]])
        assert_same_bits(residuals[1], residuals[0])
        assert states[0].keys() == states[1].keys()
        assert all(np.array_equal(states[0][name], states[1][name], equal_nan=True) for name in states[0])


def test_plain_indices():
    codec, x = as_codec("topk:k=3"), np.array([0, 5, 0, 0, 7, 0, -9], np.float32)
    payload = np.zeros(64 + 12, np.uint8)
    payload[:12].view(np.uint32)[:] = 1, 4, 6
    payload[64:].view(np.float32)[:] = 5, 7, -9
    decoded = to_device(np.ones_like(x))
    codec._decode(frame_of(codec, x, to_device(payload), (76, 3)), decoded)
    assert np.array_equal(to_host(decoded), x)
    payload[:12].view(np.uint32)[:] = 1, 4, 4
    with pytest.raises(FrameError, match="ascend"):
        codec._decode(frame_of(codec, x, to_device(payload), (76, 3)), decoded)


@pytest.mark.parametrize("spec", ["topk:k=20", "topk:k=100"])
def test_damaged_payloads_write_nothing_outside(spec):
    codec, x = as_codec(spec), hostile(300, np.float32)
    payload = np.zeros(codec.max_payload_nbytes(x.size, x.dtype), np.uint8)
    nbytes, extra = codec._encode(x, payload, STREAM)
    rng = np.random.default_rng(1)
    for _ in range(2):
        payload[80:nbytes] = rng.integers(0, 256, nbytes - 80)
        decoded = to_device(np.ones(x.size + 8, np.float32))
        with np.errstate(invalid="ignore"):
            codec._decode_add(frame_of(codec, x, to_device(payload), (nbytes, extra)), decoded[4:-4])
        assert np.array_equal(to_host(decoded)[[0, 3, -4, -1]], np.ones(4))
    frame = frame_of(codec, x, to_device(payload), (nbytes, extra))
    with pytest.raises(FrameError):
        codec._decode(dataclasses.replace(frame, payload=frame.payload[: nbytes - 1]), to_device(x))


def test_no_graph_can_wait_for_a_number(monkeypatch):
    codec, x = as_codec("topk:k=3"), to_device(np.ones(40, np.float32))
    monkeypatch.setattr(devices, "is_capturing", lambda array: True)
    with pytest.raises(ValueError, match="capture"):
        codec._encode(x, to_device(np.zeros(200, np.uint8)), STREAM)
