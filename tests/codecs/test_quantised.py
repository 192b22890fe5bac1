"""Block quantisation: error bounds, values that do not fit a scale, stochastic rounding."""

import numpy as np
import pytest
from checks import WORKING, check_decode_add, check_encode_keep, decode, encode, normal, same_bits

from collcomp.codecs import Int4, Int8
from collcomp.frame import HEADER_NBYTES, Frame

LEVELS = {Int8: 127, Int4: 7}
each_width = pytest.mark.parametrize("cls", [Int8, Int4])
each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
each_rounding = pytest.mark.parametrize("rounding", ["nearest", "stochastic"])


def peaks(x, block):
    """The largest magnitude of the block of each element, in float64."""
    padded = np.zeros(-(-x.size // block) * block)
    padded[: x.size] = np.abs(x.astype(float))
    return padded.reshape(-1, block).max(1, initial=0).repeat(block)[: x.size]


@each_width
@each_dtype
@each_rounding
@pytest.mark.parametrize("block", [16, 18, 256, 1000])
def test_error_bound(cls, dtype, rounding, block):
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
    codec = cls(block=256, rounding=rounding)
    x = normal(count, dtype)
    start = count // 256 * 256 - 256 if count % 256 == 0 else count // 256 * 256
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
    x[inside] = share + 1
    error = decode(codec, encode(codec, x, 5), dtype)[inside] - (share + 1)
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


@pytest.mark.parametrize(("cls", "limit"), [(Int8, 1.017 / 4), (Int4, 0.517 / 4)])
def test_frames_are_small(cls, limit):
    x = normal(1 << 18)
    assert encode(cls(), x).nbytes <= limit * x.nbytes + HEADER_NBYTES


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
    ],
)
def test_parameters_are_checked(cls, error, parameter, value):
    with pytest.raises(error, match=f"{parameter}: .*{value!r}"):
        cls(**{parameter: value})
