"""With a codec: the same bits on every rank, within bounds, over shared memory and over MPI's messages."""

import numpy as np
import pytest
from helpers import (
    BF16,
    F16,
    F32,
    F64,
    assert_within,
    loss,
    operands,
    peak,
    reduction_bound,
    reference,
    same_bits,
    simulated_allreduce,
    through,
    uniform,
)
from mpi4py import MPI

from collcomp import Communicator, FrameError
from collcomp.transports.mpi import MpiTransport

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD
SIZE, RANK = WORLD.Get_size(), WORLD.Get_rank()
ROOT = SIZE - 1
NEAREST = ("identity", "fp16", "bf16", "int8", "int4")
each_codec = pytest.mark.parametrize("codec", [*NEAREST, "int8:rounding=stochastic"])


def check_same_everywhere(x):
    everything = WORLD.allgather(x.tobytes())
    assert all(other == everything[0] for other in everything), "ranks differ"


def arrived(codec, x):
    return x if SIZE == 1 else through(codec, x).astype(x.dtype)


@pytest.mark.parametrize("count", [0, 1, 3, 1000, 300_001])
@pytest.mark.parametrize("algorithm", ["direct", "ring", "gathered"])
@each_codec
def test_allreduce(linked, codec, algorithm, count):
    for dtype in (F32, F64, F16, BF16) if count < 1000 else (F32,):
        for average in (False, True):
            for in_place in (False, True):
                xs = operands(SIZE, count, dtype)
                recv = xs[RANK].copy() if in_place else np.full(count, 7, dtype)
                send = MPI.IN_PLACE if in_place else xs[RANK]
                linked.Allreduce(send, recv, codec=codec, algorithm=algorithm, average=average)
                check_same_everywhere(recv)
                op = "avg" if average else "sum"
                assert_within(recv, reference(xs, op), reduction_bound(codec, xs, op, algorithm, dtype))
                if codec in NEAREST:
                    assert same_bits(recv, simulated_allreduce(codec, xs, op, algorithm))


@pytest.mark.parametrize("op", ["max", "min"])
def test_order(linked, op):
    xs = operands(SIZE, 1000)
    linked.Allreduce(xs[RANK], recv := np.empty(1000, F32), MPI.MAX if op == "max" else MPI.MIN, codec="bf16")
    assert same_bits(recv, simulated_allreduce("bf16", xs, op, "direct"))


@each_codec
def test_other_reductions(linked, codec):
    xs = operands(SIZE, 1200 * SIZE)
    x, true = xs[RANK], reference(xs)
    linked.Reduce(x, recv := np.zeros_like(x), root=ROOT, codec=codec)
    if RANK == ROOT:
        assert_within(recv, true, reduction_bound(codec, xs, "sum", "direct", F32))
    bound = reduction_bound(codec, xs, "sum", "reduce_scatter", F32)
    linked.Reduce_scatter_block(x, recv := np.zeros(1200, F32), codec=codec)
    assert_within(recv, true[1200 * RANK :][:1200], bound)
    counts = [0] * (SIZE - 1) + [x.size]
    linked.Reduce_scatter(x, recv := np.zeros(counts[RANK], F32), counts, codec=codec)
    assert_within(recv, true[: counts[RANK]], bound)
    linked.Reduce_scatter(x, recv := np.zeros(counts[RANK], F32), codec=codec)
    assert_within(recv, true[: counts[RANK]], bound)


@pytest.mark.parametrize("codec", [*NEAREST, "topk:ratio=0.2"])
@pytest.mark.parametrize("count", [0, 3, 1000, 300_001])
def test_movement(linked, codec, count):
    mine, blocks = uniform(count, seed=RANK), [uniform(count, seed=r) for r in range(SIZE)]
    sent = [arrived(codec, block) for block in blocks]
    linked.Allgather(mine, recv := np.zeros((SIZE, count), F32), codec=codec)
    assert same_bits(recv, np.stack(sent))
    linked.Gather(mine, recv := np.zeros((SIZE, count), F32) if RANK == ROOT else None, ROOT, codec=codec)
    if RANK == ROOT:
        assert same_bits(recv, np.stack([*sent[:ROOT], mine]))
    linked.Scatter(np.stack(blocks) if RANK == ROOT else None, recv := np.zeros(count, F32), ROOT, codec=codec)
    assert same_bits(recv, mine if RANK == ROOT else sent[RANK])
    linked.Alltoall(np.tile(mine, SIZE), recv := np.zeros((SIZE, count), F32), codec=codec)
    assert same_bits(recv, np.stack([blocks[r] if r == RANK else sent[r] for r in range(SIZE)]))
    buf = uniform(count, seed=99) if RANK == ROOT else np.zeros(count, F32)
    linked.Bcast(buf, ROOT, codec=codec)
    check_same_everywhere(buf)
    if not codec.startswith("topk"):
        assert_within(buf, uniform(count, seed=99).astype(F64), loss(codec, 1, F32))


@pytest.mark.parametrize("codec", NEAREST)
def test_vector_forms(linked, codec):
    counts = [100 * r for r in range(SIZE)]
    displs = [101 * r * (r - 1) // 2 + r for r in range(SIZE)]
    mine = uniform(counts[RANK], seed=RANK)
    sent = [arrived(codec, uniform(c, seed=r)) for r, c in enumerate(counts)]
    total = displs[-1] + counts[-1] + 3
    recv = np.full(total, 7, F32)
    linked.Allgatherv(mine, [recv, counts, displs, MPI.FLOAT], codec=codec)
    for r in range(SIZE):
        assert same_bits(recv[displs[r] :][: counts[r]], sent[r])
    assert (recv == 7).sum() == total - sum(counts)
    linked.Gatherv(mine, [recv, counts, displs, MPI.FLOAT] if RANK == ROOT else None, ROOT, codec=codec)
    part = np.zeros(counts[RANK], F32)
    linked.Scatterv([recv, counts, displs, MPI.FLOAT] if RANK == ROOT else None, part, ROOT, codec=codec)
    assert_within(part, mine.astype(F64), 2 * loss(codec, 1.1, F32))
    back = np.zeros(100 * SIZE * RANK, F32)
    linked.Alltoallv(
        [np.tile(uniform(max(counts), seed=RANK), SIZE), counts, [max(counts) * r for r in range(SIZE)], MPI.FLOAT],
        [back, [counts[RANK]] * SIZE, MPI.FLOAT],
        codec=codec,
    )
    for r in range(SIZE):
        given = uniform(max(counts), seed=r)[: counts[RANK]]
        assert same_bits(back[counts[RANK] * r :][: counts[RANK]], given if r == RANK else arrived(codec, given))


def test_large_message(linked):
    xs = operands(SIZE, 1_000_001)
    for _ in range(2):
        linked.Allreduce(xs[RANK], recv := np.empty_like(xs[RANK]), codec="int8")
        assert same_bits(recv, simulated_allreduce("int8", xs, "sum", "direct"))


@pytest.mark.parametrize("codec", ["int8", "topk", "bf16"])
def test_nan_and_infinity(linked, codec):
    x = uniform(3000, seed=RANK)
    if RANK == 0:
        x[[5, 1500, 2999]] = np.nan, np.inf, -np.inf
    linked.Allreduce(x, recv := np.empty_like(x), codec=codec)
    check_same_everywhere(recv)
    np.testing.assert_array_equal(recv[[5, 1500, 2999]], np.array([np.nan, np.inf, -np.inf], F32))


def test_feedback(linked):
    total = np.zeros(500)
    for step in range(5):
        x = operands(SIZE, 500, seed=step)[RANK]
        linked.Allreduce(x, recv := np.empty_like(x), codec="int4:feedback", key="w")
        total += recv
    residual = np.zeros(500) if SIZE == 1 else linked._connect().residuals.state_dict()["residuals"]["w"].astype(F64)
    held = WORLD.allreduce(residual)
    true = sum(x.astype(F64) for step in range(5) for x in operands(SIZE, 500, seed=step))
    assert peak(total + held - true) < 1e-4
    assert SIZE == 1 or peak(total - true) > 1e-2


# ---------------------------------------------------------------------- requests


def test_nonblocking_beside_native_ones(linked):
    xs = [uniform(50_000, seed=10 * s + RANK) for s in range(4)]
    results = [np.empty_like(x) for x in xs]
    requests = [linked.Iallreduce(xs[0], results[0], codec="int8")]
    requests.append(linked.Iallreduce(xs[1], results[1]))
    requests.append(linked.Iallreduce(xs[2], results[2], codec="bf16"))
    linked.Allreduce(xs[3], results[3], codec="int8")
    requests.append(linked.Iallgather(xs[0], everything := np.empty((SIZE, 50_000), F32), codec="int4"))
    assert all(isinstance(request, MPI.Request) for request in requests)
    MPI.Request.Waitall(requests)
    assert all(request == MPI.REQUEST_NULL for request in requests)
    for s, codec in enumerate(("int8", "identity", "bf16", "int8")):
        ranks = [uniform(50_000, seed=10 * s + r) for r in range(SIZE)]
        bound = reduction_bound(codec, ranks, "sum", "direct", F32)
        assert_within(results[s], reference(ranks), bound)
    check_same_everywhere(everything)


@pytest.mark.parametrize("wait", ["Wait", "wait", "Test", "test", "Waitall", "Testall", "Waitany"])
def test_every_way_to_wait(linked, wait):
    xs = operands(SIZE, 1000)
    request = linked.Iallreduce(xs[RANK], recv := np.empty_like(xs[RANK]), codec="int8")
    if wait == "Wait":
        assert request.Wait() is True
    elif wait == "wait":
        assert request.wait() is None
    elif wait == "Waitall":
        MPI.Request.Waitall([request])
    elif wait == "Waitany":
        assert MPI.Request.Waitany([request]) == 0
    elif wait == "Testall":
        while not MPI.Request.Testall([request]):
            pass
    elif wait == "Test":
        while not request.Test():
            pass
    else:
        while not request.test()[0]:
            pass
    assert same_bits(recv, simulated_allreduce("int8", xs, "sum", "direct"))


NONBLOCKING = {
    "Ireduce": lambda x: (x, np.zeros_like(x), MPI.SUM, 0),
    "Ireduce_scatter_block": lambda x: (x, np.zeros(x.size // SIZE, F32)),
    "Ireduce_scatter": lambda x: (x, np.zeros(x.size // SIZE, F32), [x.size // SIZE] * SIZE),
    "Ibcast": lambda x: (x, 0),
    "Iallgather": lambda x: (x, np.zeros(x.size * SIZE, F32)),
    "Iallgatherv": lambda x: (x, [np.zeros(x.size * SIZE, F32), [x.size] * SIZE]),
    "Igather": lambda x: (x, np.zeros(x.size * SIZE, F32)),
    "Igatherv": lambda x: (x, [np.zeros(x.size * SIZE, F32), [x.size] * SIZE]),
    "Iscatter": lambda x: (x, np.zeros(x.size // SIZE, F32)),
    "Iscatterv": lambda x: ([x, [x.size // SIZE] * SIZE], np.zeros(x.size // SIZE, F32)),
    "Ialltoall": lambda x: (x, np.zeros_like(x)),
    "Ialltoallv": lambda x: ([x, [x.size // SIZE] * SIZE], [np.zeros_like(x), [x.size // SIZE] * SIZE]),
}


@pytest.mark.parametrize("method", NONBLOCKING)
def test_nonblocking_is_as_blocking(linked, method):
    arguments = [NONBLOCKING[method](uniform(120 * SIZE, seed=RANK)) for _ in range(2)]
    getattr(linked, method[1:].capitalize())(*arguments[0], codec="int8")
    getattr(linked, method)(*arguments[1], codec="int8").Wait()
    buffers = [[part[0] if isinstance(part, list) else part for part in args] for args in arguments]
    for a, b in zip(*buffers, strict=True):
        if isinstance(a, np.ndarray):
            assert same_bits(a, b)


def test_errors_are_raised_by_wait(linked):
    if SIZE == 1:
        pytest.skip("one rank agrees with itself")
    x = uniform(1000)
    for wait in ("Wait", "Test"):
        request = linked.Iallreduce(x, x.copy(), codec="int8" if RANK else "int4")
        with pytest.raises(FrameError):  # noqa: PT012
            while not getattr(request, wait)():
                pass
    linked.Allreduce(x, recv := np.empty_like(x), codec="int8")
    check_same_everywhere(recv)


def test_persistent(linked):
    send, recv = np.empty(1000, F32), np.empty(1000, F32)
    request = linked.Allreduce_init(send, recv, codec="int8")
    for step in range(3):
        xs = operands(SIZE, 1000, seed=step)
        send[:] = xs[RANK]
        request.Start()
        request.Wait()
        assert request.Test()
        assert same_bits(recv, simulated_allreduce("int8", xs, "sum", "direct"))
    request.Free()


# ---------------------------------------------------------------------- disagreement and bad input


@pytest.mark.skipif(SIZE == 1, reason="one rank agrees with itself")
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (("int8", 1000, F32), ("int4", 1000, F32)),
        (("identity", 1000, F32), ("int8", 1000, F32)),
        (("int8:block=64", 1000, F32), ("int8", 1000, F32)),
        (("int8", 1000, F32), ("int8", 1001, F32)),
        (("int8", 100_000, F32), ("int8", 1000, F32)),
        (("identity", 100_000, F32), ("identity", 1000, F32)),
        (("int8", 1000, F64), ("int8", 1000, F32)),
    ],
)
def test_ranks_that_disagree(linked, mine, theirs):
    codec, count, dtype = mine if RANK == 0 else theirs
    x = np.ones(count, dtype)
    with pytest.raises(FrameError):
        linked.Allreduce(x, x.copy(), codec=codec)
    y = uniform(1000, seed=RANK)
    linked.Allreduce(y, recv := np.empty_like(y), codec="int8")
    check_same_everywhere(recv)


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"codec": "int5"}, ValueError, "codec: .*'int5'"),
        ({"codec": "int8", "algorithm": "tree"}, ValueError, "'tree'"),
        ({"codec": "int4:feedback"}, ValueError, "key: None"),
        ({"codec": "int8", "op": MPI.PROD}, ValueError, "op: "),
        ({"codec": "int8", "op": MPI.MAX}, ValueError, "op: max"),
        ({"codec": "int8", "average": True, "op": MPI.MAX}, ValueError, "average: "),
        ({"compression": "int8"}, TypeError, "'compression'"),
    ],
)
def test_wrong_arguments(linked, wrong, error, says):
    x = uniform(1000, seed=RANK)
    with pytest.raises(error, match=says):
        linked.Allreduce(x, x.copy(), **wrong)
    linked.Allreduce(x, recv := np.empty_like(x), codec="int8")
    check_same_everywhere(recv)


@pytest.mark.skipif(SIZE == 1, reason="nobody is told")
def test_wrong_on_one_rank(linked):
    x = uniform(1000, seed=RANK)
    if RANK == 0:
        with pytest.raises(TypeError, match="dtype: int32"):
            linked.Allreduce(np.ones(5, "i"), np.ones(5, "i"), codec="int8")
    else:
        with pytest.raises(FrameError, match=r"rank 0 gave up .*TypeError: dtype: int32"):
            linked.Allreduce(x, x.copy(), codec="int8")
    linked.Allreduce(x, recv := np.empty_like(x), codec="int8")
    check_same_everywhere(recv)


def test_communicator_over_a_transport_of_ones_own(world):
    comm = Communicator(MpiTransport(world.Dup()), deadline=30.0)
    xs = operands(SIZE, 1000)
    comm.allreduce(xs[RANK], recv := np.empty_like(xs[RANK]), codec="int4")
    assert same_bits(recv, simulated_allreduce("int4", xs, "sum", "direct"))
    comm.close()
