"""Codecs on a device against themselves on the host: the same payloads, and the same values from them."""

import numpy as np
from device import to_device, to_host

from collcomp.frame import Frame

STREAM = 5


def check_same(codec, x, residual=None, sums=()):
    """Every method of `codec` gives the same on a device, for values `x` (float32 or float64).

    With a `residual`, `_encode_feedback` too; with other ranks' operands in `sums`, `_encode_sum` too, as their sum in
    which `x` comes second, and last.
    """
    payload, outcome = _payload(codec, "_encode", x)
    made, found = _payload_on_device(codec, "_encode", to_device(x))
    assert found == outcome
    assert np.array_equal(made, payload)

    kept, device_kept = np.empty_like(x), to_device(np.empty_like(x))
    _payload(codec, "_encode_keep", x, kept)
    made, found = _payload_on_device(codec, "_encode_keep", to_device(x), device_kept)
    assert found == outcome
    assert np.array_equal(made, payload)
    assert_same_bits(device_kept, kept)

    for name in ("_decode", "_decode_add"):
        host, device = np.ones_like(x), to_device(np.ones_like(x))
        getattr(codec, name)(frame_of(codec, x, payload, outcome), host)
        getattr(codec, name)(frame_of(codec, x, to_device(payload), outcome), device)
        assert_same_bits(device, host)

    if residual is not None:
        host, device = residual.copy(), to_device(residual)
        payload, outcome = _payload(codec, "_encode_feedback", x, host, state={})
        made, found = _payload_on_device(codec, "_encode_feedback", to_device(x), device, state={})
        assert found == outcome
        assert np.array_equal(made, payload)
        assert_same_bits(device, host)
    if sums:
        _check_sum(codec, x, sums, 1, 3)
        _check_sum(codec, x, sums, len(sums), 1)


def frame_of(codec, x, payload, outcome):
    """A checked frame with this payload."""
    nbytes, extra = outcome
    return Frame(codec.number, x.dtype, codec.digest, 0, x.size, extra, x.size, payload[:nbytes])


def assert_same_bits(device, host):
    """The device's array holds what the host's does, whatever its NaN are."""
    found = to_host(device)
    assert found.dtype == host.dtype
    numbers = ~np.isnan(host)
    assert np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found[numbers].view(np.uint8), host[numbers].view(np.uint8))


def _payload(codec, method, *arrays, **options):
    x = arrays[0]
    room = np.zeros(codec.max_payload_nbytes(x.size, x.dtype), np.uint8)
    outcome = getattr(codec, method)(*arrays, room, STREAM, **options)
    return room[: outcome[0]], outcome


def _payload_on_device(codec, method, *arrays, **options):
    x = arrays[0]
    # What no encoder writes would show.
    room = to_device(np.full(codec.max_payload_nbytes(x.size, x.dtype), 0xCD, np.uint8))
    outcome = getattr(codec, method)(*arrays, room, STREAM, **options)
    return to_host(room)[: outcome[0]], outcome


def _check_sum(codec, x, sums, position, divisor):
    made = [_payload(codec, "_encode", other) for other in sums]
    frames = [frame_of(codec, x, *one) for one in made]
    on_device = [frame_of(codec, x, to_device(payload), outcome) for payload, outcome in made]
    kept, device_kept = np.empty_like(x), to_device(np.empty_like(x))
    room = np.zeros(codec.max_payload_nbytes(x.size, x.dtype), np.uint8)
    device_room = to_device(np.full(room.size, 0xCD, np.uint8))
    outcome = codec._encode_sum(frames, x, position, divisor, kept, room, STREAM)
    found = codec._encode_sum(on_device, to_device(x), position, divisor, device_kept, device_room, STREAM)
    assert outcome is not None
    assert found == outcome
    assert np.array_equal(to_host(device_room)[: found[0]], room[: outcome[0]])
    assert_same_bits(device_kept, kept)


def check_frames(codec, x):
    """The public methods give the same for values on a device, with frames beside them and on the host."""
    frame = np.zeros(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    nbytes = codec.encode(x, frame, stream=STREAM)
    values, staged, beside = to_device(x), np.zeros_like(frame), to_device(np.zeros_like(frame))
    assert codec.encode(values, staged, stream=STREAM) == nbytes
    assert codec.encode(values, beside, stream=STREAM) == nbytes
    assert np.array_equal(staged[:nbytes], frame[:nbytes])
    assert np.array_equal(to_host(beside)[:nbytes], frame[:nbytes])
    decoded, found = np.zeros_like(x), [to_device(np.zeros_like(x)) for _ in range(2)]
    codec.decode(Frame.read(frame[:nbytes]), decoded)
    codec.decode(Frame.read(staged[:nbytes]), found[0])
    codec.decode(Frame.read(beside[:nbytes]), found[1])
    for one in found:
        assert np.array_equal(to_host(one).view(np.uint8), decoded.view(np.uint8))
