"""Sparse sums merged by the owners of chunks: the bits of ``gathered``, in fewer bytes where selections overlap."""

import numpy as np
import pytest
from helpers import BF16, F16, F32, F64, operands, outcomes, run, same_bits

from collcomp import IN_PLACE
from collcomp.codecs import as_codec
from collcomp.collectives import merged
from collcomp.collectives.direct import chunks

#: Added as lists, in dense vectors, and sent as all elements.
CODECS = ("topk:k=3", "topk:ratio=0.1", "topk:ratio=0.9", "threshold:ratio=0.05,method=dgc")
ALGORITHMS = ("gathered", "merged")


def both(comm, given, op="sum", **how):
    """The result by both algorithms."""
    results = []
    for algorithm in ALGORITHMS:
        comm.allreduce(given, result := np.full_like(given, 7), op, algorithm=algorithm, **how)
        results.append(result)
    return results


@pytest.mark.parametrize("size", range(1, 8))
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("op", ["sum", "avg"])
def test_same_bits_as_gathered(size, codec, dtype, op):
    for count in (0, 1, 3, 1000):
        xs = operands(size, count, dtype)
        found = run(size, lambda comm, xs=xs: both(comm, xs[comm.rank], op, codec=codec))
        assert same_bits(*(result for results in found for result in results))


@pytest.mark.parametrize("codec", ["randomk:ratio=0.2", "randomblock:ratio=0.2", "randomk:ratio=0.2,scaled"])
def test_random_selections(codec):
    """Ranks draw elements of their own here; the sum is that of what they sent."""

    def program(comm):
        x = np.full(1000, 1 + comm.rank, F32)
        comm.allreduce(x, result := np.empty_like(x), codec=codec, algorithm="merged")
        return result

    results = run(3, program)
    assert same_bits(*results)
    k, factor = as_codec(codec).selected(1000), 5 if "scaled" in codec else 1
    assert set(np.unique(results[0])) <= {factor * v for v in range(7)}
    assert results[0].sum() == k * factor * (1 + 2 + 3)


def test_in_place():
    def program(comm):
        xs = operands(comm.size, 1000)
        x, y = xs[comm.rank], xs[comm.rank].copy()
        comm.allreduce(x, result := np.empty_like(x), codec="topk:ratio=0.1", algorithm="merged")
        comm.allreduce(IN_PLACE, y, codec="topk:ratio=0.1", algorithm="merged")
        return result, y

    assert same_bits(*(x for results in run(3, program) for x in results))


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("op", ["sum", "avg"])
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_reduce(size, op, dtype):
    def program(comm):
        x = operands(comm.size, 1000, dtype)[comm.rank]
        results = []
        for algorithm in ALGORITHMS:
            result = np.full_like(x, 7)
            comm.reduce(x, result, op, root=1, codec="topk:ratio=0.1", algorithm=algorithm)
            results.append(result)
        return results

    found = run(size, program)
    assert same_bits(*found[1])
    assert all((result == 7).all() for rank, results in enumerate(found) if rank != 1 for result in results)


@pytest.mark.parametrize("codec", ["topk:ratio=0.05,feedback", "threshold:ratio=0.05,feedback"])
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_feedback_keeps_what_gathered_keeps(codec, dtype):
    """Residuals of 16-bit messages have 32 bits: what is sent of them is not rounded."""

    def program(comm):
        results = []
        for step in range(4):
            x = operands(comm.size, 900, dtype, seed=step)[comm.rank]
            for algorithm in ALGORITHMS:
                comm.allreduce(x, result := np.empty_like(x), codec=codec, algorithm=algorithm, key=algorithm)
                results.append(result)
        residuals = comm.residuals.state_dict()["residuals"]
        return results, [residuals[key] for key in ALGORITHMS]

    found = run(3, program)
    for results, residuals in found:
        assert same_bits(*residuals)
        for step in range(4):
            assert same_bits(*results[2 * step : 2 * step + 2], *found[0][0][2 * step : 2 * step + 2])


def test_special_values():
    def program(comm):
        x = operands(comm.size, 2000)[comm.rank]
        x[300:1400] = -0.0
        if comm.rank == 1:
            x[[5, 1500]], x[[700, 1999]], x[900] = np.nan, np.inf, -np.inf
        if comm.rank == 2:
            x[700], x[900] = -np.inf, 3
        return both(comm, x, codec="topk:ratio=0.6")

    found = run(3, program)
    assert same_bits(*(result for results in found for result in results))
    result = found[0][0]
    assert np.flatnonzero(~np.isfinite(result)).tolist() == [5, 700, 900, 1500, 1999]


def sent_bytes(codec, given, size=4):
    """What each rank sent by both algorithms, headers excluded."""

    def program(comm):
        both(comm, given(comm.rank), codec=codec)
        return [comm.records[-2].wire_nbytes, comm.records[-1].wire_nbytes]

    return run(size, program)


def test_equal_selections_are_sent_once_more_whatever_the_number_of_ranks():
    """Selections that overlap: two frames' bytes, where gathering takes one a peer."""
    x = operands(1, 40_000)[0]
    for size in (4, 7):
        for by_gathering, by_merging in sent_bytes("topk:ratio=0.02", lambda rank: x, size):
            frame = by_gathering / (size - 1)
            assert by_merging < 1.15 * 2 * (size - 1) / size * frame + 64 * 2 * size


def test_dense_unions_cost_no_more_than_all_elements():
    count, size = 8000, 4
    for _, by_merging in sent_bytes("topk:ratio=0.9", lambda rank: operands(size, count)[rank], size):
        assert by_merging <= 2 * (size - 1) * (4 * count / size + 64)


def test_lists_at_every_border():
    """Selections that are all in one chunk, at its first or last element, or nowhere else."""
    count, size = 1000, 3
    for part in chunks(count, size):
        for place in (part.start, part.stop - 1):

            def program(comm, place=place):
                x = np.zeros(count, F32)
                x[place] = comm.rank + 1
                return both(comm, x, codec="topk:k=1")

            expected = np.zeros(count, F32)
            expected[place] = 6
            assert same_bits(expected, *(result for results in run(size, program) for result in results))


def test_error_norm_is_what_the_selection_lost():
    def program(comm):
        both(comm, operands(comm.size, 5000)[comm.rank], codec="topk:ratio=0.1")
        return comm.records[-2].error_norm, comm.records[-1].error_norm

    for by_gathering, by_merging in run(3, program, measure_error=True):
        assert by_gathering == by_merging > 0


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3])
def test_lists_and_dense_vectors_add_to_the_same_bits(share, monkeypatch):
    rng = np.random.default_rng(0)
    lists = []
    for _ in range(5):
        indices = np.flatnonzero(rng.random(20_000) < share).astype(np.uint32)
        values = rng.standard_normal(indices.size).astype(F32)
        values[::5], values[1::7] = -0.0, np.nan
        lists.append((indices, values))
    totals = []
    for cost in (0, 10**9):
        monkeypatch.setattr(merged, "_LIST_COST", cost)
        indices, values = merged._sum(lists, 20_000, lambda count: np.empty(count, F32))
        assert (indices is None) == (cost > 0)
        total = np.full(20_000, 7, F32)
        merged._write(indices, values, total)
        totals.append(total)
    assert same_bits(*totals)


def test_only_sparse_codecs():
    def program(comm):
        x = np.ones(10, F32)
        comm.allreduce(x, x.copy(), codec="int8", algorithm="merged")

    for outcome in outcomes(2, program):
        assert isinstance(outcome, ValueError)
        assert "merged" in str(outcome)
        assert "int8" in str(outcome)
