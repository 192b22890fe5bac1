"""Lossless homomorphic compression: exact sums from sketches, whatever can be read from them."""

import math

import numpy as np
import pytest
from checks import WORKING, decode, encode, normal, same_bits
from lockstep import reduce_in_lockstep

from collcomp.codecs import LHC, Nonzeros
from collcomp.errors import FrameError
from collcomp.kernels import cpu

each_dtype = pytest.mark.parametrize("dtype", WORKING, ids=str)
COUNT = 20_000
#: Words before the index, with a bit for each exponent.
HEAD = {np.dtype(np.float32): 4, np.dtype(np.float64): 32}


def sparse_normal(number, dtype=np.float32, density=0.01, count=COUNT, seed=0):
    """Normal values over many scales, independently set to zero."""
    masks = np.random.default_rng(seed).random((number, count)) < density
    return [normal(count, dtype, seed=100 * seed + rank) * mask.astype(dtype) for rank, mask in enumerate(masks)]


def integers(number, dtype=np.float32, density=0.01, count=COUNT, most=1000, seed=0):
    """Integers, of which most are zero."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(-most, most + 1, count) * (rng.random(count) < density)).astype(dtype) for _ in range(number)]


def plain_sum(operands):
    """The sum in rank order, in the operands' own dtype."""
    total = operands[0].copy()
    with np.errstate(all="ignore"):
        for x in operands[1:]:
            total += x
    return total


def step(operands):
    """What the operands are rounded to multiples of, at most."""
    bits = 28 if operands[0].dtype == np.float32 else 60
    return len(operands) * max(float(np.abs(x).max()) for x in operands) * 2.0**-bits


def recovered(nonzeros, load, shift=0, seed=0):
    """Share of the elements that is read from a sketch, all of them rightly."""
    kernels = cpu.load("lhc")
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.choice(100 * nonzeros, nonzeros, replace=False)).astype(np.uint32)
    values = rng.integers(-(2**31), 2**31, nonzeros).astype(np.int32)
    rows = math.ceil(load * nonzeros / (1 << shift))
    cells = np.empty((nonzeros, 3), np.uint32)
    kernels.place(positions, shift, rows, cells)
    counters = np.empty(rows << shift, np.int32)
    kernels.sketch(values, cells, counters)
    links, queue = np.empty((counters.size, 2), np.uint32), np.empty(counters.size + 1, np.uint32)
    totals, found = np.empty_like(values), np.empty(nonzeros, np.bool_)
    kernels.peel(cells, counters, links, queue, totals, found)
    np.testing.assert_array_equal(totals[found], values[found])
    if found.all():
        assert not counters.any()
    return found.mean()


@pytest.mark.parametrize(
    ("key", "seed", "expected"),
    [
        (b"\x00\x00\x00\x00", 0, 0x2362F9DE),
        (b"\xff\xff\xff\xff", 0, 0x76293B50),
        (b"\x21\x43\x65\x87", 0, 0xF55B516B),
        (b"\x21\x43\x65\x87", 0x5082EDEE, 0x2362F9DE),
        (b"test", 0, 0xBA6BD213),
        (b"test", 0x9747B28C, 0x704B81DC),
        (b"aaaa", 0x9747B28C, 0x5A97808A),
    ],
)
def test_murmur3(key, seed, expected):
    murmur3 = cpu.load("lhc").murmur3
    assert murmur3(np.uint32(int.from_bytes(key, "little")), np.uint32(seed)) == expected


@pytest.mark.parametrize("seed", range(3))
def test_threshold(seed):
    """Below 1.22 counters a non-zero, peeling stops about half way; above, it ends."""
    assert 0.3 < recovered(100_000, 1.20, seed=seed) < 0.7
    assert recovered(100_000, 1.25, seed=seed) == 1
    assert recovered(100_000, 1.30, seed=seed) == 1


def test_threshold_with_lanes():
    assert recovered(100_000, 1.4, shift=4) == 1
    assert recovered(100_000, 1.1, shift=4) < 0.7


def test_few_are_left_in_small_sketches():
    codec, left = LHC(lanes=1), 0
    for nonzeros in (1, 3, 10, 30, 100, 300, 1000):
        for seed in range(30):
            rows = codec._rows(np.arange(nonzeros))
            left += round((1 - recovered(nonzeros, rows / nonzeros, seed=seed)) * nonzeros)
    # 43,320 in all; without the root in `_rows`, more than a thousand.
    assert left < 400


@each_dtype
@pytest.mark.parametrize("lanes", [1, 16, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_integers_are_summed_exactly(size, lanes, dtype):
    operands = integers(size, dtype)
    results, sent = reduce_in_lockstep(LHC(lanes=lanes), operands)
    assert all(same_bits(result, plain_sum(operands) + dtype.type(0)) for result in results)
    assert sum(array.nbytes for array, _ in sent) < operands[0].nbytes


@each_dtype
def test_fractions_are_summed_exactly(dtype):
    """Multiples of a power of two are integers of another scale."""
    operands = [x * dtype.type(2.0**-40) for x in integers(5, dtype)]
    results, _ = reduce_in_lockstep(LHC(), operands)
    np.testing.assert_array_equal(results[0], plain_sum(operands))


@each_dtype
@pytest.mark.parametrize("size", [1, 2, 7, 33])
@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
def test_error_bound(size, scale, dtype):
    operands = [x * dtype.type(scale) for x in sparse_normal(size, dtype)]
    results, sent = reduce_in_lockstep(LHC(load=0), operands)
    assert len(sent) == 2
    exact = plain_sum([x.astype(np.longdouble) for x in operands])
    rounding = np.abs(exact) * np.finfo(dtype).eps
    assert (np.abs(results[0] - exact) <= size * step(operands) / 2 + rounding).all()
    assert all(same_bits(result, results[0]) for result in results)


@each_dtype
def test_lanes_and_load_do_not_change_the_sum(dtype):
    operands = sparse_normal(3, dtype)
    expected, _ = reduce_in_lockstep(LHC(), operands)
    for lanes in (1, 2, 64):
        for load in (0, 0.1, 0.9, 1.2, 1.3, 3):
            results, sent = reduce_in_lockstep(LHC(lanes=lanes, load=load), operands, in_place=True)
            assert all(array.dtype.kind != "f" for array, _ in sent)
            assert same_bits(results[0], expected[0])


@pytest.mark.parametrize(("load", "rounds"), [(0, 2), (0.01, 3), (0.5, 3), (1.15, 3), (1.5, 2)])
def test_what_cannot_be_read_is_summed_one_by_one(load, rounds):
    operands = integers(3, density=0.1, count=100_000)
    results, sent = reduce_in_lockstep(LHC(load=load), operands)
    assert len(sent) == rounds
    np.testing.assert_array_equal(results[0], plain_sum(operands))
    union = np.logical_or.reduce([x != 0 for x in operands])
    if load == 0:
        assert sent[1][0].size == union.sum()
    elif rounds == 3:
        assert 0 < sent[2][0].size <= union.sum()


@pytest.mark.parametrize(("size", "density"), [(2, 0.020), (4, 0.039), (8, 0.077), (16, 0.149), (64, 0.474)])
def test_union_of_independent_nonzeros(size, density):
    operands = sparse_normal(size, count=100_000)
    results, sent = reduce_in_lockstep(LHC(lanes=1), operands)
    index = sent[0][0][HEAD[np.dtype(np.float32)] :]
    nonzeros = np.unpackbits(index.view(np.uint8)).sum()
    assert sent[0][1] == "or"
    assert nonzeros / 100_000 == pytest.approx(density, abs=0.003)
    counters = sent[1][0].size
    assert 1.3 * nonzeros <= counters <= 1.3 * nonzeros + np.sqrt(nonzeros) + 1
    np.testing.assert_allclose(results[0], plain_sum(operands), atol=size * step(operands))


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
@each_dtype
def test_zeros_take_one_round(count, dtype):
    results, sent = reduce_in_lockstep(LHC(), [np.zeros(count, dtype)] * 3)
    assert not results[0].any()
    assert len(sent) == (count > 0)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000, 1024, 1025, 4099])
@each_dtype
def test_any_count(count, dtype):
    for density in (0.01, 0.3, 0.7, 1.0):
        operands = integers(3, dtype, density, count)
        operands[1][-1] = 5
        results, _ = reduce_in_lockstep(LHC(lanes=4), operands)
        np.testing.assert_array_equal(results[0], plain_sum(operands))


@each_dtype
@pytest.mark.parametrize("load", [0, 1.3])
def test_dense_vectors_are_summed_plainly(load, dtype):
    operands = [normal(COUNT, dtype, seed=seed) for seed in range(3)]
    results, sent = reduce_in_lockstep(LHC(load=load), operands)
    assert [(array.dtype, op) for array, op in sent] == [(np.uint64, "or"), (dtype, "sum")]
    assert same_bits(results[0], plain_sum(operands))


def test_unbalanced_lanes():
    """All non-zeros in one of 16 lanes: the sketch would be larger than the vector."""
    operands = [x * (np.arange(COUNT) % 16 == 3) for x in integers(3, density=1)]
    for codec, size in ((LHC(lanes=16), COUNT), (LHC(lanes=1), COUNT / 10)):
        results, sent = reduce_in_lockstep(codec, operands)
        assert sent[1][0].size <= size
        np.testing.assert_array_equal(results[0], plain_sum(operands))


@each_dtype
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_summed_plainly(odd, dtype):
    operands = sparse_normal(3, dtype)
    operands[1][777] = odd
    residuals = [np.full_like(x, 1) for x in operands]
    results, sent = reduce_in_lockstep(LHC(feedback=True), operands, residuals=residuals)
    assert len(sent) == 2
    expected = plain_sum([x + 1 for x in operands])
    assert all(same_bits(result, expected) for result in results)
    assert not any(residual.any() for residual in residuals)


@each_dtype
def test_extreme_magnitudes(dtype):
    info = np.finfo(dtype)
    for value in (info.max, info.max / 4, info.tiny, info.smallest_subnormal):
        operands = [np.zeros(COUNT, dtype) for _ in range(3)]
        for x in operands:
            x[::100] = value
            x[50::100] = -value
        results, sent = reduce_in_lockstep(LHC(), operands)
        assert sent[1][0].dtype.kind == "i"
        np.testing.assert_array_equal(results[0], plain_sum(operands))


@pytest.mark.parametrize("size", [2, 63, 64, 65, 200])
def test_there_is_room_for_the_sum_of_the_largest(size):
    """All ranks have the largest value of its exponent: the sum stays within the integers."""
    x = np.zeros(1000, np.float32)
    x[7], x[9] = np.nextafter(np.float32(2), np.float32(0)), -np.nextafter(np.float32(2), np.float32(0))
    results, _ = reduce_in_lockstep(LHC(), [x] * size)
    np.testing.assert_allclose(results[0], size * x.astype(float), rtol=1e-6)


@each_dtype
def test_residuals_are_what_was_rounded_off(dtype):
    operands = sparse_normal(3, dtype, density=0.03)
    residuals = [np.zeros_like(x) for x in operands]
    sent = np.zeros(COUNT, np.longdouble)
    for _ in range(4):
        results, _ = reduce_in_lockstep(LHC(feedback=True), operands, residuals=residuals)
        sent += results[0]
    given = 4 * plain_sum([x.astype(np.longdouble) for x in operands])
    left = plain_sum([residual.astype(np.longdouble) for residual in residuals])
    # Each result is rounded to the dtype, and so is each sum of operand and residual.
    rounding = 16 * np.finfo(dtype).eps * plain_sum([np.abs(x).astype(np.longdouble) for x in operands])
    assert (np.abs(sent + left - given) <= rounding).all()
    assert all(np.abs(residual).max() <= step(operands) for residual in residuals)
    if dtype == np.float32:
        assert any(residual.any() for residual in residuals)


@each_dtype
@pytest.mark.parametrize("density", [0, 0.01, 0.5, 0.9])
def test_frames_are_those_of_nonzeros(density, dtype):
    (x,) = sparse_normal(1, dtype, density)
    x[[5, 1000, COUNT - 1]] = np.nan, -np.inf, np.finfo(dtype).smallest_subnormal
    frame = encode(LHC(), x)
    assert same_bits(frame.payload, encode(Nonzeros(), x).payload)
    assert same_bits(decode(LHC(), frame, dtype), x)


@pytest.mark.parametrize(
    ("error", "parameters"),
    [
        (ValueError, {"lanes": 0}),
        (ValueError, {"lanes": 12}),
        (ValueError, {"lanes": 2**17}),
        (TypeError, {"lanes": 1.5}),
        (ValueError, {"load": -0.1}),
        (ValueError, {"load": float("nan")}),
        (TypeError, {"load": "1.3"}),
        (TypeError, {"feedback": 1}),
    ],
)
def test_parameters_are_checked(error, parameters):
    name, value = next(iter(parameters.items()))
    with pytest.raises(error, match=f"{name}: .*{value!r}"):
        LHC(**parameters)


def test_hostile_index_of_a_sum():
    """Bits beyond the elements, which only a rank of another program can have set, are no positions."""
    x = np.zeros(100, np.float32)
    rounds = LHC().reduction(x, np.empty_like(x), 2, shared=0, stream=0, residual=None, state={})
    index, _ = next(rounds)
    index[-1] = np.uint64(1 << 63)
    with pytest.raises(FrameError, match="beyond"):
        next(rounds)
