"""Allreduce of any size, count, codec, dtype and op: within its bound, the same bits everywhere and every time."""

import itertools

import numpy as np
import pytest
from helpers import (
    F32,
    F64,
    FLOATS,
    assert_within,
    laid_out,
    operands,
    outcomes,
    peak,
    reduction_bound,
    reference,
    run,
    same_bits,
    simulated_allreduce,
)

from collcomp import IN_PLACE

ALGORITHMS = ("direct", "ring", "hierarchical", "gathered")
NEAREST = ("identity", "fp16", "bf16", "int8", "int8:block=32", "int4")
STOCHASTIC = ("int8:rounding=stochastic", "int4:block=64,rounding=stochastic")
DENSE = (*NEAREST, *STOCHASTIC)
ORDERED = ("identity", "fp16", "bf16")
COUNTS = (0, 1, 3, 1000)

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def allreduce(comm, x, op="sum", *, in_place=False, **how):
    """The result of an allreduce, done in place or into memory full of junk."""
    if in_place:
        recv = x.copy()
        comm.allreduce(IN_PLACE, recv, op, **how)
    else:
        recv = np.full(x.size, 77, x.dtype)
        before = x.copy()
        comm.allreduce(x, recv, op, **how)
        assert same_bits(x, before), "an operand may not change"
    return recv


def cases(size, codec):
    """Every count with every dtype; ops and in-place take turns, so that every pair of them occurs."""
    ops = ("sum", "avg", "max", "min") if codec in ORDERED else ("sum", "avg")
    turns = itertools.cycle(itertools.product(ops, (False, True)))
    for (count, dtype), (op, in_place) in zip(
        itertools.product(COUNTS, FLOATS), itertools.islice(turns, size, None), strict=False
    ):
        yield count, dtype, op, in_place


def all_cases(comm, codec, algorithm):
    return [
        allreduce(comm, operands(comm.size, n, dtype)[comm.rank], op, in_place=there, codec=codec, algorithm=algorithm)
        for n, dtype, op, there in cases(comm.size, codec)
    ]


@pytest.mark.parametrize("size", range(1, 8))
@pytest.mark.parametrize("codec", DENSE)
@each_algorithm
def test_within_bounds_and_bit_identical(size, codec, algorithm):
    found = run(size, all_cases, codec, algorithm, **laid_out(algorithm, size))
    again = run(size, all_cases, codec, algorithm, **laid_out(algorithm, size))
    for i, (count, dtype, op, in_place) in enumerate(cases(size, codec)):
        what = f"{count} x {dtype}, {op}, in_place={in_place}"
        xs = operands(size, count, dtype)
        results = [results[i] for results in found]
        assert results[0].dtype == dtype
        assert same_bits(*results), f"{what}: ranks differ"
        assert same_bits(results[0], again[0][i]), f"{what}: runs differ"
        assert_within(results[0], reference(xs, op), reduction_bound(codec, xs, op, algorithm, dtype), what)
        if codec in NEAREST:
            assert same_bits(results[0], simulated_allreduce(codec, xs, op, algorithm)), f"{what}: not as documented"


@pytest.mark.parametrize("size", [1, 2, 5])
@each_algorithm
def test_lossless_is_exact_on_integers(size, algorithm):
    def program(comm):
        x = np.arange(1000, dtype=F32) * (comm.rank + 1)
        integers = np.arange(1000, dtype=np.int64) << (comm.rank + 20)
        return allreduce(comm, x, algorithm=algorithm), allreduce(comm, integers, algorithm=algorithm)

    for floats, integers in run(size, program, **laid_out(algorithm, size)):
        np.testing.assert_array_equal(floats, np.arange(1000) * (size * (size + 1) // 2))
        np.testing.assert_array_equal(integers, np.arange(1000) * sum(1 << (rank + 20) for rank in range(size)))


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("op", ["sum", "max", "min"])
def test_integers_without_a_codec(dtype, op):
    def program(comm):
        return allreduce(comm, (np.arange(101) % 7 + comm.rank).astype(dtype), op)

    combine = {"sum": np.add, "max": np.maximum, "min": np.minimum}[op].reduce
    expected = combine([(np.arange(101) % 7 + rank).astype(dtype) for rank in range(3)], dtype=dtype)
    for result in run(3, program):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("codec", [*DENSE, "topk"])
@pytest.mark.parametrize("size", [1, 4, 7])
def test_many_segments(codec, size):
    """A million elements: each chunk is cut into several segments, which overlap."""
    count = 1_000_001

    def program(comm):
        return allreduce(comm, operands(comm.size, count)[comm.rank], codec=codec, in_place=comm.size == 4)

    results = run(size, program)
    assert same_bits(*results)
    xs = operands(size, count)
    if codec == "topk":
        if size > 1:
            assert same_bits(results[0], sum_of_largest(xs, 0.01))
        return
    assert_within(results[0], reference(xs), reduction_bound(codec, xs, "sum", "direct", F32))
    if codec in NEAREST:
        assert same_bits(results[0], simulated_allreduce(codec, xs, "sum", "direct"))


@pytest.mark.parametrize(("algorithm", "size"), [("ring", 3), ("gathered", 3), ("hierarchical", 4)])
def test_many_segments_of_other_algorithms(algorithm, size):
    def program(comm):
        return allreduce(comm, operands(comm.size, 1_000_001)[comm.rank], codec="int8", algorithm=algorithm)

    results = run(size, program, **laid_out(algorithm, size))
    xs = operands(size, 1_000_001)
    assert same_bits(*results, simulated_allreduce("int8", xs, "sum", algorithm))


# ---------------------------------------------------------------------- sparse frames


def largest(x, k):
    """`x` with all but its `k` elements of largest magnitude set to zero; the first among equals."""
    kept = np.argsort(-np.abs(x.astype(F64)), kind="stable")[:k]
    result = np.zeros_like(x)
    result[kept] = x[kept]
    return result


def sum_of_largest(xs, ratio):
    acc = np.zeros_like(xs[0])
    for x in xs:
        acc += largest(x, int(np.ceil(ratio * x.size)))
    return acc


@pytest.mark.parametrize("size", range(1, 8))
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_topk_adds_the_largest_exactly(size, dtype, count):
    def program(comm):
        x = operands(comm.size, count, dtype)[comm.rank]
        return [allreduce(comm, x, in_place=there, codec="topk:ratio=0.1") for there in (False, True)]

    xs = operands(size, count, dtype)
    expected = xs[0] if size == 1 else sum_of_largest(xs, 0.1)
    for results in run(size, program):
        assert same_bits(*results, expected)


@pytest.mark.parametrize(("algorithm", "size"), [("direct", 3), ("ring", 3), ("hierarchical", 6)])
def test_topk_by_other_algorithms_sends_what_it_says(algorithm, size):
    def program(comm):
        return allreduce(comm, operands(comm.size, 1000)[comm.rank], codec="topk:ratio=0.1", algorithm=algorithm)

    results = run(size, program, **laid_out(algorithm, size))
    assert same_bits(*results, simulated_allreduce("topk:ratio=0.1", operands(size, 1000), "sum", algorithm))


# ---------------------------------------------------------------------- values that are no numbers


@pytest.mark.parametrize("codec", [*DENSE, "topk:ratio=0.1"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nan_and_infinity_arrive(codec, algorithm):
    """Rank 1 alone has them; beside them no element is worse than its bound."""
    size, count = 4 if algorithm == "hierarchical" else 3, 3000

    def given():
        xs = operands(size, count)
        xs[1][[5, 1500]], xs[1][[700, 2999]], xs[1][900] = np.nan, np.inf, -np.inf
        return xs

    def program(comm):
        return allreduce(comm, given()[comm.rank], codec=codec, algorithm=algorithm)

    results = run(size, program, **laid_out(algorithm, size))
    result = results[0]
    assert same_bits(*results)
    if "topk" in codec and algorithm != "gathered":
        special = [5, 700, 900, 1500, 2999]
    else:
        special = np.flatnonzero(~np.isfinite(result)).tolist()
        assert special == [5, 700, 900, 1500, 2999]
    np.testing.assert_array_equal(result[special], np.array([np.nan, np.inf, -np.inf, np.nan, np.inf], F32))
    if "topk" not in codec:
        xs = [np.delete(x, special) for x in given()]
        bound = reduction_bound(codec, xs, "sum", algorithm, F32)
        assert_within(np.delete(result, special), reference(xs), bound)


@pytest.mark.parametrize("codec", [*DENSE, "topk"])
@pytest.mark.parametrize("value", [0.0, -1.0, 1e-42, 3e38, -1e-38])
def test_constant_operands(codec, value):
    """All zero, all negative, subnormal, close to overflow: what is summed is 4 times the value or infinite."""

    def program(comm):
        return allreduce(comm, np.full(700, value, F32), codec=codec)

    if codec == "fp16" and value == 3e38:
        pytest.skip("beyond fp16")
    with np.errstate(over="ignore"):
        expected = np.full(700, value, F32) * F32.type(4)
    results = run(4, program)
    assert same_bits(*results)
    if codec == "topk":
        assert np.count_nonzero(results[0]) <= 7
        assert np.isin(results[0], [0, expected[0]]).all()
    elif np.isinf(expected[0]):
        assert not np.isfinite(results[0]).any() or (results[0] > 3e38).all()
    else:
        xs = [np.full(700, value, F32)] * 4
        assert_within(results[0], expected.astype(F64), reduction_bound(codec, xs, "sum", "direct", F32) + 1e-44)


# ---------------------------------------------------------------------- other buffers


@pytest.mark.parametrize("codec", [None, "identity", "int8"])
def test_buffers_with_gaps(codec):
    def program(comm):
        xs = operands(comm.size, 600)
        send = np.zeros((600, 2), F32)
        send[:, 1] = xs[comm.rank]
        recv = np.full((600, 3), 7, F32)
        comm.allreduce(send[:, 1], recv[:, 2], codec=codec)
        assert (recv[:, :2] == 7).all()
        return recv[:, 2].copy(), allreduce(comm, xs[comm.rank], codec=codec)

    for gaps, plain in run(3, program):
        assert same_bits(gaps, plain)


def test_bytes_and_specs():
    def program(comm):
        x = operands(comm.size, 100)[comm.rank]
        memory = bytearray(400)
        comm.allreduce([x.tobytes(), "f"], [memory, "f"], codec="int8")
        return np.frombuffer(memory, F32), allreduce(comm, x, codec="int8")

    for got, plain in run(2, program):
        assert same_bits(got, plain)


def test_matrix_is_one_message():
    def program(comm):
        x = operands(comm.size, 600)[comm.rank]
        result = np.empty((20, 30), F32)
        comm.allreduce(x.reshape(20, 30), result, codec="int4")
        return result.reshape(-1), allreduce(comm, x, codec="int4")

    for got, plain in run(3, program):
        assert same_bits(got, plain)


def test_one_rank_loses_nothing():
    def program(comm):
        x = operands(1, 1000)[0]
        return [same_bits(allreduce(comm, x, codec=codec), x) for codec in ("int4", "topk", "bf16")]

    assert run(1, program) == [[True] * 3]


def test_bounds_can_be_missed():
    """The bounds above are tight enough to tell when an operand was left out."""
    for codec in DENSE:
        xs = operands(4, 1000)
        missing = reference(xs[:3])
        assert peak(missing - reference(xs)) > reduction_bound(codec, xs, "sum", "direct", F32)


def test_ranks_in_different_order_of_arrival():
    """A rank that is late changes nothing: sums run in rank order."""
    import threading

    last = threading.Event()

    def program(comm):
        x = operands(comm.size, 1000)[comm.rank]
        if comm.rank == 0:
            last.wait(60)
        else:
            request = comm.iallreduce(x, result := np.empty_like(x), codec="int8")
            if comm.rank == comm.size - 1:
                last.set()
            request.wait()
            return result
        return allreduce(comm, x, codec="int8")

    found = outcomes(4, program)
    assert same_bits(*found, simulated_allreduce("int8", operands(4, 1000), "sum", "direct"))
