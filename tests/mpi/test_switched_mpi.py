"""Sums of MPI ranks through a switch, which rank 0 looks after."""

import numpy as np
import pytest
from helpers import BF16, F16, F32, F64, operands, same_bits
from mpi4py import MPI
from switches import compile_kernels, serving

from collcomp.errors import CollcompError, DeadlineError
from collcomp.mpi import Comm

compile_kernels()  # not in a test, whose time is limited
WORLD = MPI.COMM_WORLD
SIZE, RANK = WORLD.Get_size(), WORLD.Get_rank()

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(SIZE > 3, reason="2 and 3 ranks show as much, in less time")]


@pytest.fixture(scope="module", params=[0.0, 0.03], ids=["safe", "lossy"])
def address(request):
    """Of a switch that all ranks know."""
    if RANK:
        yield WORLD.bcast(None)
        WORLD.Barrier()
        return
    with serving(loss=request.param, seed=4) as switch:
        yield WORLD.bcast(switch.address)
        WORLD.Barrier()


@pytest.fixture
def comm(address):
    ours = Comm(WORLD.Dup(), deadline=30.0, switch=address)
    yield ours
    ours.Free()


def near(dtype, count):
    """Operands of all ranks whose float64 sum is exact."""
    generator = np.random.default_rng(count)
    return [(generator.integers(-(1 << 20), 1 << 20, count) / 2.0**12).astype(dtype) for _ in range(SIZE)]


def exact_sum(xs):
    return np.sum([x.astype(F64) for x in xs], axis=0).astype(xs[0].dtype)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("count", [0, 1, 5001, 200_000])
def test_sums(comm, dtype, count):
    xs = near(dtype, count)
    comm.Allreduce(xs[RANK], recv := np.full_like(xs[0], 7), algorithm="switched")
    assert same_bits(recv, exact_sum(xs))
    recv[...] = xs[RANK]
    comm.Allreduce(MPI.IN_PLACE, recv, algorithm="switched")
    assert same_bits(recv, exact_sum(xs))


def test_other_operations(comm):
    xs = [np.arange(1000, dtype=np.int64) * (-1) ** rank for rank in range(SIZE)]
    for op, function in ((MPI.SUM, np.sum), (MPI.MAX, np.max), (MPI.MIN, np.min)):
        comm.Allreduce(xs[RANK], recv := np.empty_like(xs[0]), op, algorithm="switched")
        np.testing.assert_array_equal(recv, function(xs, axis=0))
    x = np.full(10, RANK, F32)
    comm.Allreduce(x, recv := np.empty_like(x), algorithm="switched", average=True)
    np.testing.assert_allclose(recv, (SIZE - 1) / 2)


@pytest.mark.parametrize("codec", ["shared_int:bits=16", "lhc"])
def test_codecs(comm, codec):
    xs = operands(SIZE, 5000)
    xs[RANK][20:] = 0  # `lhc` is for such
    results = []
    for algorithm in ("switched", "summed"):
        comm.Allreduce(xs[RANK], recv := np.empty_like(xs[0]), codec=codec, algorithm=algorithm)
        results.append(recv)
    assert same_bits(*results)


def test_nonblocking_and_persistent(comm):
    xs = near(F32, 30_000)
    recvs = [np.empty_like(xs[0]) for _ in range(4)]
    requests = [comm.Iallreduce(xs[RANK], recv, algorithm="switched") for recv in recvs[:2]]
    comm.Allreduce(xs[RANK], recvs[2], algorithm="switched")
    MPI.Request.Waitall(requests)
    persistent = comm.Allreduce_init(xs[RANK], recvs[3], algorithm="switched")
    persistent.Start()
    persistent.Wait()
    assert same_bits(exact_sum(xs), *recvs)


def test_children_go_through_the_same_switch(comm):
    """Two halves of the ranks are two jobs at once."""
    half = comm.Split(RANK % 2, RANK)
    members = range(RANK % 2, SIZE, 2)
    x = np.full(100, RANK, F32)
    for _ in range(3):
        half.Allreduce(x, recv := np.empty_like(x), algorithm="switched")
        assert (recv == sum(members)).all()
    assert half.records[-1].algorithm == ("switched" if len(members) > 1 else "direct")
    half.Free()


def test_calls_that_differ(comm):
    x = np.ones(100 + (RANK == SIZE - 1), F32)
    if SIZE > 1:
        with pytest.raises(CollcompError):
            comm.Allreduce(x, np.empty_like(x), algorithm="switched")
    xs = near(F32, 100)
    comm.Allreduce(xs[RANK], recv := np.empty_like(xs[0]), algorithm="switched")
    assert same_bits(recv, exact_sum(xs))


def test_a_rank_that_does_not_come(address):
    if SIZE == 1:
        pytest.skip("there is nobody to wait for")
    ours = Comm(WORLD.Dup(), deadline=1.0, switch=address)
    x = np.ones(5, F32)
    error = None
    if RANK:
        with pytest.raises(CollcompError) as caught:
            ours.Allreduce(x, np.empty_like(x), algorithm="switched")
        error = caught.value
    errors = WORLD.allgather(f"{type(error).__name__}: {error}")
    late = [text for text in errors[1:] if text.startswith(DeadlineError.__name__)]
    assert late, errors
    ours.Free()


def test_float64_is_refused(comm):
    if SIZE > 1:
        with pytest.raises(TypeError, match="float32, float16, bfloat16, int8"):
            comm.Allreduce(np.ones(5), np.empty(5), algorithm="switched")


def test_without_a_switch(monkeypatch):
    monkeypatch.delenv("COLLCOMP_SWITCH", raising=False)
    ours = Comm(WORLD.Dup())
    with pytest.raises(ValueError, match="needs a switch"):
        ours.Allreduce(np.ones(5, F32), np.empty(5, F32), algorithm="switched")
    ours.Free()
