"""Integers on one scale: bounds, exact sums, what has no scale."""

import numpy as np
import pytest
from checks import WORKING, decode, encode, normal, same_bits
from lockstep import reduce_in_lockstep

from collcomp.codecs import SharedInt
from collcomp.frame import Frame

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
each_width = pytest.mark.parametrize("bits", [8, 16, 32])
SLACK = 1 + 2.0**-18


def bound(codec, operands):
    """What the docstring promises of the sum, and the rounding of the decoded sum itself."""
    peak = max(np.abs(x.astype(float)).max() for x in operands)
    levels = (2 ** (codec.bits - 1) - 1) // len(operands)
    working = 4 * np.finfo(operands[0].dtype).eps * len(operands) * peak
    return len(operands) * peak / (2 * levels) * SLACK + working


@each_dtype
@each_width
def test_error_of_a_frame(bits, dtype):
    codec = SharedInt(bits=bits)
    x = normal(5000, dtype)
    error = np.abs(decode(codec, encode(codec, x), dtype).astype(float) - x)
    assert error.max() <= bound(codec, [x])


@each_dtype
@each_width
@pytest.mark.parametrize("size", [2, 3, 8, 100])
def test_error_of_a_sum(bits, dtype, size):
    codec = SharedInt(bits=bits)
    operands = [normal(1000, dtype, seed=rank) for rank in range(size)]
    results, sent = reduce_in_lockstep(codec, operands)
    assert same_bits(results[0], results[-1])
    assert np.abs(results[0] - np.sum(operands, 0, dtype=float)).max() <= bound(codec, operands)
    assert [array.dtype.itemsize for array, _ in sent] == [8, bits // 8]


@each_dtype
@each_width
@pytest.mark.parametrize("size", [1, 2, 7, 63, 127])
@pytest.mark.parametrize("peak", [1.0, 2.0**-95, 1.999 * 2.0**126, 0.1, 1 + 2.0**-20])
def test_sums_never_leave_their_integers(bits, dtype, size, peak):
    """The worst case: all ranks hold the largest value."""
    operands = [np.array([peak, -peak, 0, peak / 3], dtype)] * size
    results, sent = reduce_in_lockstep(SharedInt(bits=bits), operands)
    codes = sent[1][0].astype(np.int64)
    levels = (2 ** (bits - 1) - 1) // size
    assert codes.tolist()[:3] == [codes[0], -codes[0], 0]
    assert size * (levels * (1 - 2.0**-19) - 1) <= codes[0] <= size * levels
    with np.errstate(over="ignore"):
        expected = np.array(operands).astype(float).sum(0)
        assert (np.abs(results[0].astype(float) - expected) <= bound(SharedInt(bits=bits), operands)).all() or (
            expected[0] > np.finfo(dtype).max
        )


@each_dtype
def test_sum_is_the_sum_of_the_decoded(dtype):
    """On the integers, exactly: quantise with the agreed scale, add, multiply once."""
    operands = [normal(1000, dtype, seed=rank) for rank in range(4)]
    results, sent = reduce_in_lockstep(SharedInt(), operands)
    peak = sent[0][0][0]
    scale = float(peak) / (127 // 4 * (1 - 2.0**-20))
    codes = sum(np.rint(x * dtype.type(1 / scale)).astype(np.int64) for x in operands)
    np.testing.assert_array_equal(results[0], codes.astype(dtype) * dtype.type(scale))


@each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**127, 1e-40])
def test_what_has_no_scale_is_summed_as_it_is(dtype, value):
    operands = [normal(100, dtype, seed=rank) for rank in range(3)]
    if value == 1e-40:
        for x in operands:
            x[...] = 0
    operands[1][7] = value
    results, _ = reduce_in_lockstep(SharedInt(), operands)
    np.testing.assert_array_equal(results[2], operands[0] + operands[1] + operands[2])
    frame = encode(SharedInt(), operands[1])
    assert same_bits(decode(SharedInt(), frame, dtype), operands[1])
    residuals = [np.zeros(100, dtype) for _ in range(3)]
    with_feedback, _ = reduce_in_lockstep(SharedInt(feedback=True), operands, residuals=residuals)
    np.testing.assert_array_equal(with_feedback[0], results[0])
    assert not any(residual.any() for residual in residuals)


def test_in_place_and_empty():
    operands = [normal(100, seed=rank) for rank in range(3)]
    apart, _ = reduce_in_lockstep(SharedInt(), operands)
    there, _ = reduce_in_lockstep(SharedInt(), operands, in_place=True)
    assert all(same_bits(apart[0], result) for result in there)
    assert reduce_in_lockstep(SharedInt(), [np.empty(0, np.float32)] * 3)[1] == []


def test_feedback_of_sums_loses_nothing():
    codec = SharedInt(feedback=True)
    residuals = [np.zeros(500) for _ in range(3)]
    total, true = np.zeros(500), np.zeros(500)
    for step in range(20):
        operands = [normal(500, np.float64, seed=10 * step + rank) for rank in range(3)]
        results, _ = reduce_in_lockstep(codec, operands, residuals=residuals)
        total += results[0]
        true += np.sum(operands, 0)
    assert np.abs(total - true).max() > 1
    np.testing.assert_allclose(total + np.sum(residuals, 0), true, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bits", [4, 64, 8.5, True, "8", None])
def test_bits_are_checked(bits):
    with pytest.raises(ValueError, match=f"bits: .*{bits!r}"):
        SharedInt(bits=bits)


def test_hostile_scale():
    frame = encode(SharedInt(), normal(100))
    for scale in (np.nan, np.inf, 1e300, -1.0):
        frame.payload[:8].view(np.float64)[0] = scale
        with np.errstate(all="ignore"):
            SharedInt().decode(Frame(**{f: getattr(frame, f) for f in Frame.__slots__}), np.empty(100, np.float32))
