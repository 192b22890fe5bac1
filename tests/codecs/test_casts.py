"""The casts against NumPy's and ml_dtypes' own."""

import dataclasses
import zlib

import ml_dtypes
import numpy as np
import pytest
from checks import decode, encode, normal

from collcomp.codecs import BF16, FP16

EDGES = [0.0, -0.0, 1.0, -2.5, 65504.0, 65519.99, 65520.0, -65536.0, 6e-8, 2.9e-8, 3e-8, 1e-40, 1e-45, 3.38e38, 3.4e38]
STOCHASTIC = pytest.mark.parametrize(
    ("codec", "narrow"), [(FP16(rounding="stochastic"), np.float16), (BF16(rounding="stochastic"), ml_dtypes.bfloat16)]
)
CASES = pytest.mark.parametrize(("codec", "narrow"), [(FP16(), np.float16), (BF16(), ml_dtypes.bfloat16)])


@CASES
def test_float32_is_rounded_as_numpy_does(codec, narrow):
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    x = np.concatenate([np.array(EDGES, np.float32), bits.view(np.float32)])
    with np.errstate(all="ignore"):
        expected = x.astype(narrow).astype(np.float32)
    got = decode(codec, encode(codec, x), np.float32)
    np.testing.assert_array_equal(got, expected)
    finite = ~np.isnan(x)
    assert (np.signbit(got) == np.signbit(expected))[finite].all()


@CASES
def test_all_codes_decode(codec, narrow):
    x = np.arange(65536, dtype=np.uint16).view(narrow).astype(np.float32)
    np.testing.assert_array_equal(decode(codec, encode(codec, x), np.float32), x)


@CASES
def test_float64_is_rounded_once(codec, narrow):
    """Values just beside a tie, which float32 cannot tell from it."""
    rng = np.random.default_rng(1)
    values = rng.integers(0x0400, 0x7B00, 20_000, dtype=np.uint16).view(np.float16).astype(float)
    if narrow is not np.float16:
        values = rng.integers(0x0080, 0x7F00, 20_000, dtype=np.uint16).view(narrow).astype(float)
    following = (values.astype(narrow).view(np.uint16) + 1).view(narrow).astype(float)
    ties = (values + following) / 2
    for x, expected in ((ties * (1 + 2.0**-45), following), (ties * (1 - 2.0**-45), values)):
        np.testing.assert_array_equal(decode(codec, encode(codec, x), np.float64), expected)
    for x in (np.array([np.nan, np.inf, -np.inf, 1e300, -1e300]),):
        np.testing.assert_array_equal(
            decode(codec, encode(codec, x), np.float64), [np.nan, np.inf, -np.inf, np.inf, -np.inf]
        )


@pytest.mark.parametrize(
    ("codec", "relative", "absolute"), [(FP16(), 2.0**-11, 2.0**-25), (BF16(), 2.0**-8, 2.0**-134)]
)
def test_error_bound(codec, relative, absolute):
    x = normal(50_000, np.float64)
    error = np.abs(decode(codec, encode(codec, x), np.float64) - x)
    assert (error <= np.maximum(np.abs(x) * relative, absolute)).all()


@CASES
def test_feedback_forgets_what_is_not_finite(codec, narrow):
    x = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    residual = np.zeros(4, np.float32)
    codec.encode_feedback(x, residual, np.empty(1024, np.uint8))
    assert not residual.any()


@pytest.mark.parametrize("cls", [FP16, BF16])
@pytest.mark.parametrize(
    ("error", "parameter", "value"),
    [
        (TypeError, "feedback", 1),
        (TypeError, "feedback", "yes"),
        (TypeError, "feedback", None),
        (ValueError, "rounding", "up"),
        (ValueError, "seed", -1),
        (TypeError, "seed", 0.5),
    ],
)
def test_parameters_are_checked(cls, error, parameter, value):
    with pytest.raises(error, match=f"{parameter}.*{value!r}"):
        cls(**{parameter: value})


@STOCHASTIC
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stochastic_rounding_takes_a_neighbour(codec, narrow, dtype):
    """What the format holds stays; anything else becomes one of the two numbers beside it."""
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    x = np.concatenate([np.array(EDGES, np.float32), bits.view(np.float32)])
    x = x[np.abs(x) <= float(ml_dtypes.finfo(narrow).max)].astype(dtype)
    x[::3] = x[::3].astype(narrow).astype(dtype)
    got = decode(codec, encode(codec, x), dtype)
    nearest = x.astype(narrow)
    held = nearest.astype(dtype) == x
    np.testing.assert_array_equal(got[held], x[held])
    assert (np.signbit(got) == np.signbit(x)).all()
    towards = np.where(nearest.astype(dtype) < x, np.inf, -np.inf).astype(narrow)
    beside = np.nextafter(nearest, towards).astype(dtype)
    assert ((got == nearest.astype(dtype)) | (got == beside)).all()
    assert (got != nearest.astype(dtype))[~held].mean() > 0.02


@STOCHASTIC
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("low", [1.0, -3.0, 0.0], ids=["normal", "negative", "subnormal"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.77])
def test_stochastic_rounding_is_unbiased(codec, narrow, dtype, low, share):
    high = float(np.nextafter(narrow(low), narrow(np.inf)))
    value = dtype(low + share * (high - low))
    share = (float(value) - low) / (high - low)
    x = np.full(200_001, value)
    up = (decode(codec, encode(codec, x, 7), dtype).astype(float) - low) / (high - low)
    assert set(np.unique(up)) <= {0.0, 1.0}
    assert abs(up.mean() - share) <= 4.5 * np.sqrt(share * (1 - share) / up.size) + 2.0**-13


@STOCHASTIC
def test_stochastic_rounding_keeps_what_is_not_finite(codec, narrow):
    bits = np.random.default_rng(0).integers(0x7F800001, 0x7FFFFFFF, 5000, dtype=np.uint32)
    x = np.concatenate([np.array([np.inf, -np.inf, np.nan], np.float32), bits.view(np.float32)])
    np.testing.assert_array_equal(decode(codec, encode(codec, x), np.float32), x)
    x = np.array([1e300, -1e300, np.nan, np.inf])
    np.testing.assert_array_equal(decode(codec, encode(codec, x), np.float64), [np.inf, -np.inf, np.nan, np.inf])


@STOCHASTIC
def test_streams_and_seeds_are_independent(codec, narrow):
    x = np.full(20_000, (1 + float(np.nextafter(narrow(1), narrow(2)))) / 2, np.float32)

    def roundings(seed, stream):
        changed = dataclasses.replace(codec, seed=seed)
        return decode(changed, encode(changed, x, stream), np.float32) > 1

    given = roundings(0, 0)
    assert (given == roundings(0, 0)).all()
    for other in (roundings(0, 1), roundings(1, 0), roundings(1, 1), roundings(2**40, 0), given[::-1]):
        assert abs((given == other).mean() - 0.5) < 0.03
    for lag in (1, 2, 16, 1024):
        assert abs((given[lag:] == given[:-lag]).mean() - 0.5) < 0.03


@STOCHASTIC
def test_only_rounding_to_nearest_keeps_order(codec, narrow):
    assert not codec.monotone
    assert dataclasses.replace(codec, rounding="nearest").monotone


@STOCHASTIC
def test_frames_of_another_rounding_are_refused(codec, narrow):
    """Parameters that were added later leave the digest of older frames as it was, but are part of it."""
    nearest = dataclasses.replace(codec, rounding="nearest")
    assert nearest.digest == zlib.crc32(f'{{"codec": "{codec.codec_id}", "feedback": false}}'.encode())
    assert len({codec.digest, nearest.digest, dataclasses.replace(codec, seed=1).digest}) == 3
