"""Collectives that move data: one rounding, and every rank that gets a block gets the same bits."""

import numpy as np
import pytest
from helpers import BF16, F16, F32, F64, assert_within, loss, peak, run, same_bits, through, uniform

from collcomp import IN_PLACE

NEAREST = ("identity", "fp16", "bf16", "int8", "int4", "topk:ratio=0.1")
CODECS = (*NEAREST, "int4:rounding=stochastic")
COUNTS = (0, 1, 3, 1000)
each_codec = pytest.mark.parametrize("codec", CODECS)
each_size = pytest.mark.parametrize("size", range(1, 8))


def arrived(codec, x, size):
    """What another rank gets of `x`."""
    return x if size == 1 else through(codec, x).astype(x.dtype)


def check(codec, got, given, size, what):
    """`got` is what arrives of `given`, to the bit, or within the codec's bound where chance rounds."""
    assert got.dtype == given.dtype
    if codec in NEAREST:
        assert same_bits(got, arrived(codec, given, size)), what
    else:
        bound = 0 if size == 1 else loss(codec, peak(given), given.dtype)
        if given.dtype in (F16, BF16):
            bound += 2.0**-8 * peak(given)
        assert_within(got, given.astype(F64), bound, what)


def block(source, dest, count, dtype=F32):
    """What rank `source` has for rank `dest` (0 where all get the same)."""
    return uniform(count, dtype, 100 * source + dest)


def uneven(rank, size, count):
    """A count of each rank's own: none for the first."""
    return rank * count // max(1, size - 1)


@each_size
@each_codec
def test_bcast(size, codec):
    calls = [
        (count, dtype, (i + j) % size) for i, count in enumerate(COUNTS) for j, dtype in enumerate((F32, F64, F16))
    ]

    def program(comm):
        found = []
        for count, dtype, root in calls:
            buf = block(0, 0, count, dtype) if comm.rank == root else np.full(count, 7, dtype)
            comm.bcast(buf, root, codec=codec)
            found.append(buf)
        return found

    found, again = run(size, program), run(size, program)
    for i, (count, dtype, _) in enumerate(calls):
        results = [results[i] for results in found]
        assert same_bits(*results, again[0][i]), calls[i]
        given = block(0, 0, count, dtype)
        if codec.startswith("topk") and size > 1:  # each part has a selection of its own
            kept = results[0] != 0
            assert same_bits(results[0][kept], given[kept])
            assert kept.sum() >= 0.1 * count
        elif codec in ("int8", "int4") and size > 2:  # blocks begin anew with each part
            bound = loss(codec, peak(given), dtype) + (2.0**-11 if dtype == F16 else 0)
            assert_within(results[0], given.astype(F64), bound, calls[i])
        else:
            check(codec, results[0], given, size, calls[i])


@each_size
@each_codec
@pytest.mark.parametrize("vector", [False, True])
def test_allgather(size, codec, vector):
    calls = [(count, dtype, bool((i + j) % 2)) for i, count in enumerate(COUNTS) for j, dtype in enumerate((F32, BF16))]

    def program(comm):
        found = []
        for count, dtype, in_place in calls:
            counts = [uneven(r, size, count) if vector else count for r in range(size)]
            gap = 2 if vector else 0  # elements between the blocks that stay as they are
            starts = np.cumsum([0, *(c + gap for c in counts)]).tolist()
            recv = np.full(starts[-1], 7, dtype)
            send = block(comm.rank, 0, counts[comm.rank], dtype)
            if in_place:
                recv[starts[comm.rank] :][: send.size] = send
            spec = [recv, counts, starts[:-1]] if vector else recv
            comm.allgather(IN_PLACE if in_place else send, spec, codec=codec)
            blocks = [recv[start : start + count] for start, count in zip(starts, counts, strict=False)]
            between = [recv[start + count : start + count + gap] for start, count in zip(starts, counts, strict=False)]
            assert all((values == 7).all() for values in between)
            found.append([b.copy() for b in blocks])
        return found

    found, again = run(size, program), run(size, program)
    for i, call in enumerate(calls):
        for source in range(size):
            copies = [results[i][source] for results in found]
            assert same_bits(*copies, again[0][i][source]), call
            check(codec, copies[0], block(source, 0, copies[0].size, call[1]), size, call)


@each_size
@each_codec
@pytest.mark.parametrize("vector", [False, True])
def test_gather(size, codec, vector):
    calls = [(count, i % size, bool(i % 2)) for i, count in enumerate((*COUNTS, *COUNTS[::-1]))]

    def program(comm):
        found = []
        for count, root, in_place in calls:
            counts = [uneven(r, size, count) if vector else count for r in range(size)]
            send = block(comm.rank, 0, counts[comm.rank])
            if comm.rank != root:
                comm.gather(send, None, root, codec=codec)
                found.append(None)
                continue
            recv = np.full(sum(counts), 7, F32)
            blocks = np.split(recv, np.cumsum(counts)[:-1])
            if in_place:
                blocks[root][...] = send
            comm.gather(IN_PLACE if in_place else send, [recv, counts] if vector else recv, root, codec=codec)
            found.append(blocks)
        return found

    found, again = run(size, program), run(size, program)
    for i, call in enumerate(calls):
        root = call[1]
        for source, got in enumerate(found[root][i]):
            assert same_bits(got, again[root][i][source])
            check(codec, got, block(source, 0, got.size), 1 if source == root else size, call)


@each_size
@each_codec
@pytest.mark.parametrize("vector", [False, True])
def test_scatter(size, codec, vector):
    calls = [(count, i % size, bool(i % 2)) for i, count in enumerate((*COUNTS, *COUNTS[::-1]))]

    def program(comm):
        found = []
        for count, root, in_place in calls:
            counts = [uneven(r, size, count) if vector else count for r in range(size)]
            recv = np.full(counts[comm.rank], 7, F32)
            if comm.rank != root:
                comm.scatter(None, recv, root, codec=codec)
            else:
                send = np.concatenate([block(root, dest, c) for dest, c in enumerate(counts)])
                before = send.copy()
                comm.scatter([send, counts] if vector else send, IN_PLACE if in_place else recv, root, codec=codec)
                assert same_bits(send, before)
                if in_place:
                    recv = block(root, root, counts[root])
            found.append(recv)
        return found

    found, again = run(size, program), run(size, program)
    for i, call in enumerate(calls):
        root = call[1]
        for dest in range(size):
            got = found[dest][i]
            assert same_bits(got, again[dest][i])
            check(codec, got, block(root, dest, got.size), 1 if dest == root else size, call)


@each_size
@each_codec
@pytest.mark.parametrize("vector", [False, True])
def test_alltoall(size, codec, vector):
    calls = [(count, dtype, bool((i + j) % 2)) for i, count in enumerate(COUNTS) for j, dtype in enumerate((F32, F64))]

    def program(comm):
        found = []
        for count, dtype, in_place in calls:
            # Both directions of a pair have equal counts, so that the call can be done in place too.
            counts = [uneven((comm.rank + r) % size, size, count) if vector else count for r in range(size)]
            given = np.concatenate([block(comm.rank, dest, c, dtype) for dest, c in enumerate(counts)])
            recv = given.copy() if in_place else np.full(given.size, 7, dtype)
            send = IN_PLACE if in_place else ([given, counts] if vector else given)
            comm.alltoall(send, [recv, counts] if vector else recv, codec=codec)
            found.append(np.split(recv, np.cumsum(counts)[:-1]))
        return found

    found, again = run(size, program), run(size, program)
    for i, call in enumerate(calls):
        for dest in range(size):
            for source, got in enumerate(found[dest][i]):
                assert same_bits(got, again[dest][i][source])
                check(codec, got, block(source, dest, got.size, call[1]), 1 if source == dest else size, call)


@pytest.mark.parametrize("codec", ["identity", "int8"])
def test_many_segments(codec):
    """A million elements a block: every collective is cut into segments."""
    count = 1_000_001

    def program(comm):
        x = block(comm.rank, 0, count)
        comm.allgather(x, everything := np.empty((comm.size, count), F32), codec=codec)
        comm.gather(x, collected := np.empty((comm.size, count), F32), 1, codec=codec)
        comm.scatter(everything, part := np.empty(count, F32), 2, codec="identity")
        comm.alltoall(np.tile(x, comm.size), exchanged := np.empty((comm.size, count), F32), codec=codec)
        buf = x.copy()
        comm.bcast(buf, 2, codec=codec)
        return everything, collected, part, exchanged, buf

    found = run(3, program)
    expected = [arrived(codec, block(rank, 0, count), 3) for rank in range(3)]
    for rank, (everything, collected, part, exchanged, buf) in enumerate(found):
        assert same_bits(everything, np.stack(expected))
        if rank == 1:
            assert all(same_bits(collected[r], expected[r]) for r in (0, 2))
        assert same_bits(part, expected[rank])
        assert all(same_bits(exchanged[r], expected[r]) for r in range(3) if r != rank)
        assert same_bits(exchanged[rank], block(rank, 0, count))
        assert same_bits(buf, found[0][4])
        assert_within(buf, block(2, 0, count).astype(F64), loss(codec, 1, F32))


@each_codec
def test_nan_and_infinity_arrive(codec):
    def program(comm):
        x = block(comm.rank, 0, 1000)
        x[[3, 500, 999]] = np.nan, np.inf, -np.inf
        comm.allgather(x, everything := np.empty((comm.size, 1000), F32), codec=codec)
        comm.bcast(x, 0, codec=codec)
        return everything[:, [3, 500, 999]], x[[3, 500, 999]]

    for everything, buf in run(3, program):
        for values in (*everything, buf):
            np.testing.assert_array_equal(values, np.array([np.nan, np.inf, -np.inf], F32))


def test_integers_without_a_codec():
    def program(comm):
        x = np.arange(5) + 100 * comm.rank
        comm.allgather(x, everything := np.empty((comm.size, 5), x.dtype))
        comm.alltoall(everything, exchanged := np.empty_like(everything))
        return everything, exchanged

    for rank, (everything, exchanged) in enumerate(run(3, program)):
        np.testing.assert_array_equal(everything, np.arange(5) + 100 * np.arange(3)[:, None])
        np.testing.assert_array_equal(exchanged, np.tile(np.arange(5) + 100 * rank, (3, 1)))


def test_receive_buffers_with_gaps():
    def program(comm):
        buf = np.zeros((50, 2), F32)
        if comm.rank == 1:
            buf[:, 0] = block(0, 0, 50)
        comm.bcast(buf[:, 0], 1, codec="int8")
        assert not buf[:, 1].any()
        recv = np.zeros((comm.size, 50, 2), F32)
        comm.allgather(block(comm.rank, 0, 50), recv[:, :, 1], codec="bf16")
        assert not recv[:, :, 0].any()
        return buf[:, 0].copy(), recv[:, :, 1].copy()

    found = run(2, program)
    for buf, everything in found:
        assert same_bits(buf, arrived("int8", block(0, 0, 50), 2))
        assert same_bits(everything, np.stack([arrived("bf16", block(r, 0, 50), 2) for r in range(2)]))
