"""Reduce and reduce_scatter: within their bounds, equal from run to run."""

import numpy as np
import pytest
from helpers import (
    BF16,
    F32,
    F64,
    assert_within,
    operands,
    reduction_bound,
    reference,
    run,
    same_bits,
    simulated_allreduce,
    through,
)

from collcomp import IN_PLACE
from collcomp.codecs.base import working_dtype

CODECS = ("identity", "fp16", "bf16", "int8", "int4", "int8:rounding=stochastic")
COUNTS = (0, 1, 3, 1000)
each_codec = pytest.mark.parametrize("codec", CODECS)
each_size = pytest.mark.parametrize("size", range(1, 8))


@each_size
@each_codec
@pytest.mark.parametrize("algorithm", ["direct", "gathered"])
def test_reduce(size, codec, algorithm):
    calls = [
        (count, dtype, "avg" if count == 3 else "sum", (i + size) % size, bool(i % 2))
        for i, (count, dtype) in enumerate((count, dtype) for count in COUNTS for dtype in (F32, F64, BF16))
    ]

    def program(comm):
        found = []
        for count, dtype, op, root, in_place in calls:
            x = operands(size, count, dtype)[comm.rank]
            recv = np.full(count, 7, dtype)
            if comm.rank != root:
                comm.reduce(x, recv if in_place else None, op, root, codec=codec, algorithm=algorithm)
                assert (recv == 7).all(), "only the root receives"
            elif in_place:
                recv = x.copy()
                comm.reduce(IN_PLACE, recv, op, root, codec=codec, algorithm=algorithm)
            else:
                comm.reduce(x, recv, op, root, codec=codec, algorithm=algorithm)
            found.append(recv)
        return found

    found, again = run(size, program), run(size, program)
    for i, (count, dtype, op, root, _) in enumerate(calls):
        xs = operands(size, count, dtype)
        result = found[root][i]
        assert same_bits(result, again[root][i])
        assert_within(result, reference(xs, op), reduction_bound(codec, xs, op, algorithm, dtype), calls[i])
        if algorithm == "gathered" and "stochastic" not in codec:
            assert same_bits(result, simulated_allreduce(codec, xs, op, algorithm))


def test_reduce_topk_is_gathered():
    def program(comm):
        x = operands(comm.size, 1000)[comm.rank]
        comm.reduce(x, recv := np.empty_like(x), root=1, codec="topk:ratio=0.1")
        return comm.records[-1].algorithm, recv

    found = run(3, program)
    assert {algorithm for algorithm, _ in found} == {"gathered"}
    expected = simulated_allreduce("topk:ratio=0.1", operands(3, 1000), "sum", "gathered")
    assert same_bits(found[1][1], expected)


@pytest.mark.parametrize("op", ["max", "min"])
def test_reduce_keeps_order(op):
    def program(comm):
        x = operands(comm.size, 100)[comm.rank]
        comm.reduce(x, recv := np.empty_like(x), op, codec="bf16")
        return recv

    xs = operands(3, 100)
    assert_within(run(3, program)[0], reference(xs, op), reduction_bound("bf16", xs, op, "direct", F32))


def simulated_reduce_scatter(codec, xs, op, counts):
    """One part a rank: every operand but the owner's own is rounded."""
    size, working = len(xs), working_dtype(xs[0].dtype)
    results = []
    for owner, (start, count) in enumerate(zip(np.cumsum([0, *counts]), counts, strict=False)):
        part = slice(start, start + count)
        values = [x[part].astype(working) if r == owner else through(codec, x[part]) for r, x in enumerate(xs)]
        acc = values[0].copy()
        for value in values[1:]:
            acc += value
        results.append((acc / acc.dtype.type(size) if op == "avg" else acc).astype(xs[0].dtype))
    return results


def uneven(size, count):
    """`count` elements among `size` ranks, the first with none and the last with what is left."""
    counts = [i * count // (size * size) for i in range(size)]
    counts[-1] += count - sum(counts)
    return counts


@each_size
@each_codec
def test_reduce_scatter(size, codec):
    calls = []
    for i, (total, dtype) in enumerate((total, dtype) for total in COUNTS for dtype in (F32, F64, BF16)):
        op = "avg" if i % 4 == 3 else "sum"
        calls.append((dtype, op, uneven(size, total), bool(i % 2), False))
        calls.append((dtype, op, [total] * size, bool(i % 2), True))

    def program(comm):
        found = []
        for dtype, op, counts, in_place, equal in calls:
            x = operands(size, sum(counts), dtype)[comm.rank]
            recvcounts = None if equal else counts
            if in_place:
                recv = x.copy()
                comm.reduce_scatter(IN_PLACE, recv, recvcounts, op, codec=codec)
                assert same_bits(recv[counts[comm.rank] :], x[counts[comm.rank] :]), "the rest stays as it was"
            else:
                recv = np.full(counts[comm.rank], 7, dtype)
                comm.reduce_scatter(x, recv, recvcounts, op, codec=codec)
            found.append(recv[: counts[comm.rank]])
        return found

    found, again = run(size, program), run(size, program)
    for i, (dtype, op, counts, *_) in enumerate(calls):
        xs = operands(size, sum(counts), dtype)
        results = [results[i] for results in found]
        assert all(same_bits(a, b[i]) for a, b in zip(results, again, strict=True))
        bound = reduction_bound(codec, xs, op, "reduce_scatter", dtype)
        assert_within(np.concatenate(results), reference(xs, op), bound, calls[i])
        if "stochastic" not in codec and size > 1:
            expected = simulated_reduce_scatter(codec, xs, op, counts)
            assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True)), calls[i]


def test_reduce_scatter_of_many_segments():
    counts = [700_000, 0, 300_001]

    def program(comm):
        x = operands(3, 1_000_001)[comm.rank]
        comm.reduce_scatter(x, recv := np.empty(counts[comm.rank], F32), counts, codec="int8")
        return recv

    expected = simulated_reduce_scatter("int8", operands(3, 1_000_001), "sum", counts)
    assert all(same_bits(a, b) for a, b in zip(run(3, program), expected, strict=True))
