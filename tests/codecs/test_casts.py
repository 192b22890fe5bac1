"""The casts against NumPy's and ml_dtypes' own."""

import ml_dtypes
import numpy as np
import pytest
from checks import decode, encode, normal

from collcomp.codecs import BF16, FP16

EDGES = [0.0, -0.0, 1.0, -2.5, 65504.0, 65519.99, 65520.0, -65536.0, 6e-8, 2.9e-8, 3e-8, 1e-40, 1e-45, 3.38e38, 3.4e38]
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
@pytest.mark.parametrize("value", [1, "yes", None])
def test_parameters_are_checked(cls, value):
    with pytest.raises(TypeError, match=f"feedback.*{value!r}"):
        cls(feedback=value)
