"""Block quantisation: error bounds, values that do not fit a scale, stochastic rounding."""

import json
import zlib

import numpy as np
import pytest
from checks import (
    WORKING,
    check_decode_add,
    check_encode_keep,
    check_raw_last_block,
    decode,
    encode,
    normal,
    peaks,
    same_bits,
)

from collcomp.codecs import Int2, Int4, Int8, as_codec
from collcomp.frame import HEADER_NBYTES, Envelope, Frame

LEVELS = {Int8: 127, Int4: 7, Int2: 1}
each_width = pytest.mark.parametrize("cls", [Int8, Int4, Int2])
each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
each_rounding = pytest.mark.parametrize("rounding", ["nearest", "stochastic"])


@each_width
@each_dtype
@each_rounding
@pytest.mark.parametrize("block", [16, 18, 256, 1000])
def test_error_bound(cls, dtype, rounding, block):
    block += block % 4 if cls is Int2 else 0
    codec = cls(block=block, rounding=rounding)
    x = normal(20_011, dtype)
    x[:block] = np.linspace(-1, 1, block)
    error = np.abs(decode(codec, encode(codec, x), dtype).astype(float) - x)
    step = peaks(x, block) / LEVELS[cls]
    assert (error <= step * (0.5 if rounding == "nearest" else 1) * (1 + 2.0**-13)).all()


@each_width
@each_dtype
@each_rounding
@pytest.mark.parametrize("exponent", [-119, -100, 0, 100, 126])
def test_every_scale_keeps_the_largest(cls, dtype, rounding, exponent):
    """Rounding never leaves the levels, whatever the mantissa of the largest element."""
    mantissas = 1 + np.random.default_rng(0).random((500, 1))
    x = (mantissas * [[1, -1] + [0.5] * 14] * 2.0**exponent).astype(dtype).ravel()
    decoded = decode(cls(block=16, rounding=rounding), encode(cls(block=16, rounding=rounding), x), dtype)
    largest = np.abs(x.reshape(-1, 16)[:, :2].astype(float))
    np.testing.assert_array_less(
        np.abs(decoded.reshape(-1, 16)[:, :2] - x.reshape(-1, 16)[:, :2]).astype(float),
        largest / LEVELS[cls] * (1 if rounding == "stochastic" else 1e-5) * (1 + 2.0**-13),
    )
    assert (np.sign(decoded) == np.sign(x)).reshape(-1, 16)[:, :2].all()


@each_width
@each_dtype
@each_rounding
@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf, 2.0**127, -3e38, 2.0**-120, 1e-40], ids=lambda value: f"{value:.3g}"
)
@pytest.mark.parametrize("count", [256, 511, 700, 1000])
def test_what_fits_no_scale_travels_as_it_is(cls, dtype, rounding, value, count):
    check_raw_last_block(cls(block=256, rounding=rounding), value, count, dtype)


@each_width
@each_dtype
def test_all_blocks_raw(cls, dtype):
    x = np.full(777, np.nan, dtype)
    frame = encode(cls(), x)
    assert frame.extra == 4
    assert frame.nbytes == cls().max_encoded_nbytes(777, np.dtype(dtype))
    assert same_bits(decode(cls(), frame, dtype), x)


@each_width
@each_dtype
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.77])
def test_stochastic_rounding_is_unbiased(cls, dtype, share):
    """The mean error of many roundings of one value is that of independent, fair ones."""
    codec = cls(rounding="stochastic", seed=3)
    x = np.zeros(256 * 400, dtype)
    x[::256] = LEVELS[cls]
    x[1::256] = -LEVELS[cls]
    inside = np.arange(x.size) % 256 > 1
    below = min(1, LEVELS[cls] - 1)
    x[inside] = share + below
    error = decode(codec, encode(codec, x, 5), dtype)[inside] - (share + below)
    spread = np.sqrt(share * (1 - share) / error.size)
    assert abs(error.mean()) <= 4.5 * spread + 2.0**-15
    assert abs(error.var() - share * (1 - share)) < 0.02


@each_width
def test_streams_and_seeds_are_independent(cls):
    x = np.full(256 * 40, 0.5, np.float32)
    x[::256] = LEVELS[cls]

    def roundings(seed, stream):
        codec = cls(rounding="stochastic", seed=seed)
        up = decode(codec, encode(codec, x, stream), np.float32) > 0.5
        return up[np.arange(x.size) % 256 > 0]

    given = roundings(0, 0)
    assert (given == roundings(0, 0)).all()
    for other in (roundings(0, 1), roundings(1, 0), roundings(1, 1), roundings(2**40, 0)):
        assert abs((given == other).mean() - 0.5) < 0.03
    blocks = given.reshape(40, 255)
    assert abs((blocks[1:] == blocks[:-1]).mean() - 0.5) < 0.03
    assert abs((blocks[:, 1:] == blocks[:, :-1]).mean() - 0.5) < 0.03


@pytest.mark.parametrize(("cls", "bits"), [(Int8, 8), (Int4, 4), (Int2, 2)])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_frames_are_small(cls, bits, asymmetric):
    x = normal(1 << 18)
    bits += 32 * (2 if asymmetric else 1) / 256
    assert encode(cls(asymmetric=asymmetric), x).nbytes <= bits / 32 * x.nbytes + HEADER_NBYTES


def test_four_codes_a_byte_need_whole_bytes():
    with pytest.raises(ValueError, match=r"block: .*multiple of 4, got 18"):
        Int2(block=18)


@each_dtype
def test_zeros_beside_large_elements_stay_zero(dtype):
    x = normal(5000, dtype)
    x[np.arange(x.size) % 3 > 0] = 0
    for cls in LEVELS:
        assert not decode(cls(), encode(cls(), x), dtype)[x == 0].any()


# ---------------------------------------------------------------------- asymmetric


def ranges(x, block):
    """The largest less the least element of the block of each element, in float64."""
    padded = np.pad(x.astype(float), (0, -x.size % block), "edge").reshape(-1, block)
    return (padded.max(1) - padded.min(1)).repeat(block)[: x.size]


def slack(x, block):
    """What rounding the offset and the sums may add to the error of asymmetric codes."""
    return 2.0**-22 * peaks(x, block)


@each_width
@each_dtype
@each_rounding
@pytest.mark.parametrize("block", [16, 20, 256])
@pytest.mark.parametrize("shift", [0, 1, -100, 1e4])
def test_asymmetric_error_bound(cls, dtype, rounding, block, shift):
    codec = cls(block=block, rounding=rounding, asymmetric=True)
    x = normal(20_011, dtype)
    x[: 10 * block] = np.abs(x[: 10 * block])
    x += dtype.type(shift)
    error = np.abs(decode(codec, encode(codec, x, 3), dtype).astype(float) - x)
    step = ranges(x, block) / (2 * LEVELS[cls] + 1)
    assert (error <= step * (0.5 if rounding == "nearest" else 1) * (1 + 2.0**-13) + slack(x, block)).all()


@each_width
@each_dtype
def test_asymmetric_halves_the_error_of_what_has_one_sign(cls, dtype):
    x = np.abs(normal(50_000, dtype))
    symmetric, asymmetric = (
        np.abs(decode(codec, encode(codec, x), dtype).astype(float) - x).sum()
        for codec in (cls(), cls(asymmetric=True))
    )
    assert asymmetric < 0.55 * symmetric


@each_width
@each_dtype
@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, -7.5, 3e30])
@pytest.mark.parametrize("count", [1, 255, 256, 257])
def test_equal_elements_stay_what_they_are(cls, dtype, value, count):
    x = np.full(count, np.float32(value), dtype)
    frame = encode(cls(asymmetric=True), x)
    assert frame.extra == 0
    np.testing.assert_array_equal(decode(cls(asymmetric=True), frame, dtype), x)


@each_width
@each_dtype
def test_asymmetric_keeps_the_extremes(cls, dtype):
    """Least and largest are levels, whatever lies beside the last, padded block."""
    x = normal(300, dtype) + dtype.type(5)
    decoded = decode(cls(asymmetric=True), encode(cls(asymmetric=True), x), dtype)
    for part in (slice(0, 256), slice(256, 300)):
        for pick in (np.argmin, np.argmax):
            at = part.start + pick(x[part])
            assert abs(decoded[at] - x[at]) <= 2.0**-21 * np.abs(x[part]).max()


@each_width
@each_dtype
@pytest.mark.parametrize(
    "values",
    [[np.nan], [-np.nan], [np.inf], [-np.inf], [3e38], [-3e38], [1e38, -1e38], [1e-40], [-1e-40]],
    ids=str,
)
@pytest.mark.parametrize("count", [256, 300])
def test_asymmetric_blocks_that_travel_as_they_are(cls, dtype, values, count):
    codec = cls(asymmetric=True)
    x = np.zeros(count, dtype)
    x[-5 : -5 + len(values)] = values
    x[-1] = -0.0
    frame = encode(codec, x)
    assert frame.extra == 1
    start = count // 256 * 256 % count
    assert same_bits(decode(codec, frame, dtype)[start:], x[start:])
    check_decode_add(codec, x)
    check_encode_keep(codec, x)


@each_width
@each_dtype
@pytest.mark.parametrize("share", [0.0, 0.25, 0.77])
def test_asymmetric_stochastic_rounding_is_unbiased(cls, dtype, share):
    codec = cls(rounding="stochastic", seed=3, asymmetric=True)
    levels = 2 * LEVELS[cls] + 1
    x = np.zeros(256 * 400, dtype)
    x[::256] = levels
    inside = np.arange(x.size) % 256 > 1
    x[inside] = share + levels // 2
    error = decode(codec, encode(codec, x, 5), dtype)[inside] - (share + levels // 2)
    spread = np.sqrt(share * (1 - share) / error.size)
    assert abs(error.mean()) <= 4.5 * spread + 2.0**-13
    assert abs(error.var() - share * (1 - share)) < 0.02


@each_width
def test_parameters_that_came_later_leave_old_frames_valid(cls):
    assert cls().digest == zlib.crc32(
        json.dumps(
            {"block": 256, "codec": cls.codec_id, "feedback": False, "rounding": "nearest", "seed": 0}, sort_keys=True
        ).encode()
    )
    assert cls(asymmetric=True).digest != cls().digest


# ---------------------------------------------------------------------- sums in one pass


@pytest.mark.parametrize(
    "spec", ["int8", "int4", "int2", "int4:asymmetric", "int8:rounding=stochastic", "int2:asymmetric", "sign", "loco"]
)
@each_dtype
@pytest.mark.parametrize("count", [1, 255, 1000])
@pytest.mark.parametrize("others", [1, 3])
def test_encode_sum_is_decoding_adding_and_encoding(spec, dtype, count, others):
    """In every bit, at every place in the order, whether the result is kept or not."""
    codec = as_codec(spec)
    xs = [normal(count, dtype, seed=rank) for rank in range(others + 1)]
    own = xs.pop()
    frames = [encode(codec, x, rank) for rank, x in enumerate(xs)]
    arrived = [decode(codec, frame, dtype) for frame in frames]
    for position in range(others + 1):
        operands = [*arrived[:position], own, *arrived[position:]]
        total = operands[0].copy()
        for operand in operands[1:]:
            total += operand
        total /= dtype.type(3)
        expected = encode(codec, total, 9)
        for kept in (None, np.empty_like(own)):
            buffer = np.empty(codec.max_encoded_nbytes(count, dtype), np.uint8)
            nbytes = codec.encode_sum(frames, own, position, 3, kept, buffer, Envelope(dtype, count), 9)
            assert same_bits(Frame.read(buffer[:nbytes]).payload, expected.payload)
            assert kept is None or same_bits(kept, decode(codec, expected, dtype))


def test_encode_sum_leaves_raw_frames_to_others():
    x = np.full(256, np.nan, np.float32)
    frame = encode(Int8(), x)
    buffer = np.empty(4096, np.uint8)
    assert Int8().encode_sum([frame], x, 1, 1, None, buffer, Envelope(x.dtype, 256)) is None


@each_width
@pytest.mark.parametrize(
    ("error", "parameter", "value"),
    [
        (ValueError, "block", 15),
        (ValueError, "block", 17),
        (ValueError, "block", 0),
        (ValueError, "block", -256),
        (TypeError, "block", 256.0),
        (TypeError, "block", True),
        (TypeError, "block", "256"),
        (ValueError, "rounding", "up"),
        (ValueError, "rounding", None),
        (ValueError, "seed", -1),
        (TypeError, "seed", 0.5),
        (TypeError, "feedback", 1),
        (TypeError, "asymmetric", 1),
    ],
)
def test_parameters_are_checked(cls, error, parameter, value):
    with pytest.raises(error, match=f"{parameter}: .*{value!r}"):
        cls(**{parameter: value})
