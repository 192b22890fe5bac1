"""Checks that hold for every codec; each module of this folder says with which codecs and data."""

import ml_dtypes
import numpy as np

from collcomp import codecs
from collcomp.codecs import as_codec, from_config
from collcomp.codecs.base import working_dtype
from collcomp.errors import FrameError
from collcomp.frame import Frame

COUNTS = (0, 1, 3, 16, 255, 256, 257, 1000, 4099)
WORKING = (np.dtype(np.float32), np.dtype(np.float64))
DTYPES = (*WORKING, np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def frozen_name(spec, dtype):
    """The file with a frozen frame of `spec`."""
    return f"{spec.replace(':', '-').replace('=', '_').replace(',', '-')}-{dtype}.bin"


def normal(count, dtype=np.float32, seed=0):
    """Normal values whose scale changes over their length."""
    rng = np.random.default_rng([seed, count])
    scales = 10.0 ** rng.integers(-3, 3, -(-count // 100))
    return (rng.standard_normal(count) * scales.repeat(100)[:count]).astype(dtype)


def peaks(x, block):
    """The largest magnitude of the block of each element, in float64."""
    padded = np.zeros(-(-x.size // block) * block)
    padded[: x.size] = np.abs(x.astype(float))
    return padded.reshape(-1, block).max(1, initial=0).repeat(block)[: x.size]


def encode(codec, x, stream=0):
    """The frame of `x`, as it arrives."""
    buffer = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    nbytes = codec.encode(x, buffer, stream=stream)
    assert nbytes <= buffer.size
    return Frame.read(buffer[:nbytes])


def decode(codec, frame, dtype):
    """The values of `frame`, checked not to be written beside."""
    return _guarded(lambda dst: codec.decode(frame, dst), np.zeros(frame.count, dtype))


def _guarded(write, given):
    """What `write` makes of a copy of `given`, surrounded by elements that must stay as they are."""
    margin = 64
    memory = np.full(given.size + 2 * margin, 7, given.dtype)
    middle = memory[margin : margin + given.size]
    middle[:] = given
    write(middle)
    assert (memory[:margin] == 7).all()
    assert (memory[margin + given.size :] == 7).all()
    return middle.copy()


def same_bits(x, y):
    """Whether the arrays are equal in every bit, NaN and signs of zero included."""
    return x.dtype == y.dtype and x.tobytes() == y.tobytes()


def check_configuration(codec):
    """Spec, configuration, repr, equality and hash all describe the codec."""
    assert as_codec(codec.spec) == codec
    assert from_config(codec.get_config()) == codec
    assert eval(repr(codec), vars(codecs).copy()) == codec
    assert hash(as_codec(codec.spec)) == hash(codec)
    assert as_codec(codec.spec).digest == codec.digest


def check_deterministic(codec, x):
    """Equal values and streams give equal frames."""
    assert same_bits(encode(codec, x, 3).payload, encode(codec, x.copy(), 3).payload)


def check_decode_add(codec, x):
    """`decode_add` is `decode`, then an addition, in every bit."""
    dtype = working_dtype(x.dtype)
    frame = encode(codec, x)
    acc = normal(x.size, dtype, seed=1)
    with np.errstate(all="ignore"):
        expected = acc + decode(codec, frame, dtype)
    got = _guarded(lambda dst: codec.decode_add(frame, dst), acc)
    np.testing.assert_array_equal(got, expected)


def check_encode_keep(codec, x):
    """`encode_keep` gives the frame of `encode` and what it decodes to, also in place."""
    frame = encode(codec, x)
    expected = decode(codec, frame, x.dtype)
    for kept in (np.empty_like(x), x.copy()):
        src = kept if kept.tobytes() == x.tobytes() else x
        buffer = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
        nbytes = codec.encode_keep(src, kept, buffer)
        assert same_bits(Frame.read(buffer[:nbytes]).payload, frame.payload)
        assert same_bits(kept, expected)


def check_feedback(codec, x, rounds=4):
    """What was sent in all, and what is left, is what was given."""
    dtype = working_dtype(x.dtype)
    residual = np.zeros(x.size, dtype)
    sent = np.zeros(x.size)
    given = np.zeros(x.size)
    buffer = np.empty(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    for stream in range(rounds):
        scaled = (x * x.dtype.type(stream + 1)).astype(x.dtype)
        before = residual + scaled.astype(dtype)
        nbytes = codec.encode_feedback(scaled, residual, buffer, stream=stream)
        decoded = decode(codec, Frame.read(buffer[:nbytes]), dtype)
        assert same_bits(residual + 0, before - decoded + 0)
        sent += decoded
        given += scaled.astype(float)
    largest = np.abs(given).max(initial=0)
    np.testing.assert_allclose(sent + residual, given, rtol=0, atol=16 * rounds * np.finfo(dtype).eps * largest)


def check_raw_last_block(codec, value, count, dtype):
    """A block with a `value` that no scale fits travels as it is, the others as usual, and it leaves no residual."""
    x = normal(count, dtype)
    start = (count - 1) // codec.block * codec.block
    x[start:] = 0
    x[count - 3] = value
    x[count - 1] = -0.0
    frame = encode(codec, x)
    assert frame.extra == 1
    decoded = decode(codec, frame, dtype)
    assert same_bits(decoded[start:], x[start:])
    assert np.isfinite(decoded[:start]).all()
    check_decode_add(codec, x)
    check_encode_keep(codec, x)
    residual = np.zeros(count, dtype)
    buffer = np.empty(codec.max_encoded_nbytes(count, dtype), np.uint8)
    nbytes = codec.encode_feedback(x, residual, buffer)
    assert not residual[start:].any()
    np.testing.assert_array_equal(decode(codec, Frame.read(buffer[:nbytes]), dtype), decoded)


def check_hostile(codec, frame, dtype):
    """A frame of any content is refused, or decodes to the right number of values without touching any other."""
    for write in (codec.decode, codec.decode_add):
        try:
            with np.errstate(all="ignore"):
                _guarded(lambda dst, write=write: write(frame, dst), np.zeros(frame.count, dtype))
        except FrameError:
            pass
