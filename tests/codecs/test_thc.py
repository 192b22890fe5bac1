"""THC: the table of the paper, sums of integers that are integers of sums, the error that its model promises."""

import math
from itertools import combinations

import numpy as np
import pytest
from checks import WORKING, check_raw_last_block, decode, encode, normal, same_bits
from lockstep import reduce_in_lockstep

from collcomp.codecs import THC
from collcomp.codecs.thc import clamp_limit, lookup_table
from collcomp.frame import HEADER_NBYTES

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
TABLE = (0, 3, 5, 7, 9, 11, 13, 14, 16, 17, 19, 21, 23, 25, 27, 30)
LIMIT = 2.15387469406
#: Mean squared errors of standard normal values: from clamping them, and from rounding what is left to `TABLE`.
TAIL = math.erfc(LIMIT / math.sqrt(2)) / 2
CLAMPING = 2 * ((1 + LIMIT**2) * TAIL - LIMIT * math.exp(-(LIMIT**2) / 2) / math.sqrt(2 * math.pi))
ROUNDING = 0.0130746


def rounding_error(table, limit):
    """Mean squared error of rounding clamped normal values at random to `table`, by a sum over a fine grid."""
    x = np.linspace(-limit, limit, 200_001)
    places = np.array(table) * 2 * limit / table[-1] - limit
    below = np.clip(np.searchsorted(places, x, side="right") - 1, 0, len(table) - 2)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return ((x - places[below]) * (places[below + 1] - x) * density).sum() * (x[1] - x[0])


def operands(size, count, dtype, seed=0):
    rng = np.random.default_rng([seed, size, count])
    return [rng.standard_normal(count).astype(dtype) for _ in range(size)]


def test_table_and_limit_are_those_of_the_paper():
    assert lookup_table(4, 30, 1 / 32) == TABLE == THC().table
    assert clamp_limit(1 / 32) == pytest.approx(LIMIT, abs=1e-11)


def test_constants_of_these_tests():
    assert rounding_error(TABLE, LIMIT) == pytest.approx(ROUNDING, rel=1e-4)
    assert pytest.approx(0.0205, rel=0.02) == CLAMPING + ROUNDING


@pytest.mark.parametrize(("bits", "granularity", "p"), [(1, 7, 0.1), (2, 9, 1 / 32), (3, 12, 0.01), (3, 13, 0.2)])
def test_no_symmetric_table_is_better(bits, granularity, p):
    limit = clamp_limit(p)
    half = 2 ** (bits - 1)
    errors = {}
    for chosen in combinations(range(1, (granularity + 1) // 2), half - 1):
        table = (0, *chosen, *(granularity - integer for integer in reversed(chosen)), granularity)
        errors[table] = rounding_error(table, limit)
    assert errors[lookup_table(bits, granularity, p)] == pytest.approx(min(errors.values()), rel=1e-6)


@pytest.mark.parametrize(("bits", "granularity"), [(1, 1), (2, 3), (4, 15), (8, 255), (4, 255), (5, 100)])
@pytest.mark.parametrize("p", [1e-12, 1 / 32, 0.5])
def test_tables_are_whole(bits, granularity, p):
    table = lookup_table(bits, granularity, p)
    assert len(table) == 2**bits
    assert (table[0], table[-1]) == (0, granularity)
    assert (np.diff(table) > 0).all()
    assert tuple(granularity - integer for integer in reversed(table)) == table


@each_dtype
def test_error_of_frames(dtype):
    (x,) = operands(1, 1 << 18, dtype)
    error = decode(THC(), encode(THC(), x), dtype) - x
    assert (error.astype(float) ** 2).mean() == pytest.approx(CLAMPING + ROUNDING, rel=0.02)


@pytest.mark.parametrize(("size", "measured"), [(1, 0.0205), (2, 0.0137), (4, 0.0100), (8, 0.0082)])
def test_error_of_means(size, measured):
    """Equal operands: the error of clamping is the same on all ranks, that of rounding averages out.

    Their sum follows from the density of the normal distribution, to 2% for 2**18 values. The other figures are of
    operands that are not quite equal: the largest of their norms is larger than theirs, so that less is clamped, and
    the error is up to 10% smaller.
    """
    (x,) = operands(1, 1 << 18, np.float32)
    results, _ = reduce_in_lockstep(THC(), [x] * size)
    error = ((results[0] / size - x).astype(float) ** 2).mean() / (x.astype(float) ** 2).mean()
    assert error == pytest.approx(CLAMPING + ROUNDING / size, rel=0.02)
    assert error == pytest.approx(measured, rel=0.1)


@each_dtype
@pytest.mark.parametrize("count", [1, 300, 1024, 5000])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 9])
def test_sums_of_integers_are_integers_of_sums(size, count, dtype):
    """What the ranks send adds up exactly to what each would have sent alone, for the norms that they share."""
    codec = THC()
    xs = operands(size, count, dtype)
    results, (norms, sums) = reduce_in_lockstep(codec, xs, shared=3)
    assert (norms[1], sums[1]) == ("max", "sum")
    assert sums[0].dtype == (np.uint8 if size <= 8 else np.uint16)
    alone = np.zeros(sums[0].size, np.int64)
    decoded = np.zeros(count)
    for rank, x in enumerate(xs):
        rounds = codec.reduction(x, out := np.empty_like(x), 1, shared=3, stream=3000 + rank, residual=None, state={})
        own_norms, _ = next(rounds)
        assert (own_norms <= norms[0]).all()
        own_norms[:] = norms[0]
        integers, _ = rounds.send(None)
        assert set(np.unique(integers)) <= set(TABLE)
        alone += integers
        assert next(rounds, None) is None
        decoded += out
    np.testing.assert_array_equal(sums[0], alone)
    scale = np.abs(decoded).max() + size
    for result in results:
        np.testing.assert_allclose(result, decoded, rtol=0, atol=64 * np.finfo(dtype).eps * scale)
        assert same_bits(result, results[0])


@each_dtype
@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("count", [0, 1, 255, 1024, 3333])
def test_reductions(size, count, dtype):
    xs = [normal(count, dtype, seed=rank) for rank in range(size)]
    given = [x.copy() for x in xs]
    results, _ = reduce_in_lockstep(THC(), xs)
    exact = np.sum(np.array(xs, float), axis=0)
    for start in range(0, count, 1024):
        norms = [np.linalg.norm(x[start : start + 1024].astype(float)) for x in xs]
        error = results[0][start : start + 1024] - exact[start : start + 1024]
        assert np.linalg.norm(error) <= size * max(norms) * 0.35
    for result in results:
        assert same_bits(result, results[0])
    assert all(same_bits(x, y) for x, y in zip(xs, given, strict=True))
    in_place, _ = reduce_in_lockstep(THC(), xs, in_place=True)
    assert same_bits(in_place[0], results[0])


@pytest.mark.parametrize(
    ("granularity", "size", "dtype"),
    [(30, 8, "u1"), (30, 9, "u2"), (30, 2184, "u2"), (30, 2185, "u4"), (255, 1, "u1"), (255, 2, "u2")],
)
def test_sums_fit(granularity, size, dtype):
    assert THC(granularity=granularity).sum_dtype(size) == np.dtype(dtype)
    assert size * granularity <= np.iinfo(dtype).max


def test_random_streams():
    """Ranks round independently; each reduction draws another rotation."""
    x = normal(4096)
    _, (_, (sums, _)) = reduce_in_lockstep(THC(), [x, x])
    assert len(np.unique(sums)) > 30  # not only twice the table
    firsts = [reduce_in_lockstep(THC(), [x], shared=shared)[1][1][0] for shared in (0, 0, 1)]
    assert same_bits(firsts[0], firsts[1])
    assert not same_bits(firsts[1], firsts[2])


def test_rounding_is_unbiased():
    """Values that are not clamped: a block of one magnitude is rotated to about normal ones, of bounded size."""
    codec = THC(p=1e-5)
    x = np.where(np.random.default_rng(0).random(1024) < 0.5, -1, 1).astype(np.float32)
    decoded = np.array([decode(codec, encode(codec, x, stream), np.float32) for stream in range(2000)], float)
    spread = decoded.std(axis=0) / np.sqrt(2000)
    assert (np.abs(decoded.mean(0) - x) <= 5 * spread).all()
    assert np.abs(((decoded.mean(0) - x) / spread).mean()) <= 4 / np.sqrt(1024)


@each_dtype
@pytest.mark.parametrize("size", [1, 3])
def test_feedback_of_reductions_loses_nothing(size, dtype):
    """What was sent in all, and what is left on the ranks, is what was given."""
    count = 3000
    residuals = [np.zeros(count, dtype) for _ in range(size)]
    given, sent = np.zeros(count), np.zeros(count)
    for shared in range(20):
        xs = operands(size, count, dtype, seed=shared)
        results, _ = reduce_in_lockstep(THC(feedback=True), xs, shared=shared, residuals=residuals)
        given += np.sum(np.array(xs, float), axis=0)
        sent += results[0]
        left = np.sum(np.array(residuals, float), axis=0)
        np.testing.assert_allclose(sent + left, given, rtol=0, atol=200 * np.finfo(dtype).eps * np.abs(given).max())
        assert max(np.linalg.norm(residual) for residual in residuals) < 0.3 * np.sqrt(count)


@each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**91, 1e-35], ids=lambda value: f"{value:.3g}")
@pytest.mark.parametrize("count", [1024, 3000, 5000])
@np.errstate(all="ignore")
def test_blocks_that_fit_no_scale_are_summed_plainly(count, value, dtype):
    """One rank's such block is sent as it is by all, whatever theirs are; other blocks are not touched by it."""
    xs = [normal(count, dtype, seed=rank) for rank in range(3)]
    start = (count - 1) // 1024 * 1024
    xs[1][start:] = value
    residuals = [np.full(count, 0.25, dtype) for _ in range(3)]
    totals = [x + residual for x, residual in zip(xs, residuals, strict=True)] if value != 1e-35 else xs
    for codec in (THC(), THC(feedback=True)):
        if codec.feedback and value == 1e-35:
            continue  # with the residual it is a value like others
        kept = [residual.copy() for residual in residuals] if codec.feedback else None
        results, sent = reduce_in_lockstep(codec, xs, residuals=kept)
        operands_ = totals if codec.feedback else xs
        assert [op for _, op in sent] == ["max", "sum", "sum"]
        expected = (operands_[0] + operands_[1] + operands_[2])[start:]
        for result in results:
            np.testing.assert_array_equal(result[start:], expected)
            assert np.isfinite(result[:start]).all()
            assert same_bits(result, results[0])
        if kept:
            assert not any(residual[start:].any() for residual in kept)
            assert all(np.isfinite(residual).all() for residual in kept)
            assert all(residual[:start].any() for residual in kept) or not start


@each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**90, -3e38, 1e-32], ids=lambda value: f"{value:.3g}")
@pytest.mark.parametrize("count", [1024, 1500, 3001])
def test_frames_with_values_that_fit_no_scale(count, value, dtype):
    check_raw_last_block(THC(), value, count, dtype)


@each_dtype
@pytest.mark.parametrize("magnitude", [2.0**-99, 1e-20, 1e20, 2.0**89])
def test_extreme_norms(magnitude, dtype):
    (x,) = operands(1, 2048, dtype)
    x = (x / np.abs(x).max() * magnitude).astype(dtype)
    decoded = decode(THC(), encode(THC(), x), dtype)
    error = np.linalg.norm((decoded.astype(float) - x) / magnitude) / np.linalg.norm(x.astype(float) / magnitude)
    assert error < 0.2
    results, _ = reduce_in_lockstep(THC(), [x] * 4)
    assert np.isfinite(results[0]).all()


def test_blocks_of_zeros():
    results, sent = reduce_in_lockstep(THC(), [np.zeros(2000, np.float32)] * 3)
    assert len(sent) == 2
    assert not results[0].any()


def test_error_of_other_tables_is_what_their_choice_assumed():
    """Rounding to the table, and clamping, for any bits and granularity."""
    (x,) = operands(1, 1 << 16, np.float32)
    for codec in (THC(bits=1, granularity=7), THC(bits=3, granularity=20), THC(bits=8, granularity=255, p=1e-4)):
        limit = clamp_limit(codec.p)
        clamping = np.mean(np.maximum(np.abs(np.random.default_rng(1).standard_normal(1 << 20)) - limit, 0) ** 2)
        error = (decode(codec, encode(codec, x), np.float32) - x).astype(float)
        assert (error**2).mean() == pytest.approx(rounding_error(codec.table, limit) + clamping, rel=0.05)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_frames_are_small(bits):
    x = normal(1 << 18)
    codec = THC(bits=bits, granularity=255)
    assert encode(codec, x).nbytes == HEADER_NBYTES + (bits / 8 + 4 / 1024) * x.size


@pytest.mark.parametrize(
    ("error", "parameter", "value"),
    [
        (ValueError, "bits", 0),
        (ValueError, "bits", 9),
        (TypeError, "bits", 4.0),
        (ValueError, "granularity", 14),
        (ValueError, "granularity", 256),
        (ValueError, "p", 0),
        (ValueError, "p", 0.51),
        (ValueError, "p", 1e-13),
        (ValueError, "p", float("nan")),
        (TypeError, "p", "0.1"),
        (TypeError, "p", True),
        (ValueError, "block", 1000),
        (ValueError, "block", 128),
        (ValueError, "seed", -1),
        (TypeError, "feedback", 1),
    ],
)
def test_parameters_are_checked(error, parameter, value):
    with pytest.raises(error, match=f"{parameter}: .*{value!r}"):
        THC(**{parameter: value})
