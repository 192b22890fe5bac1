"""A communicator with a codec of its own uses it where it can, and says why where it does not."""

import numpy as np
import pytest
from helpers import F32, operands, same_bits, simulated_allreduce, uniform
from mpi4py import MPI

from collcomp.mpi import Comm

pytestmark = pytest.mark.mpi

SIZE, RANK = MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()


@pytest.fixture
def ours(world):
    comm = Comm(world.Dup(), codec="int8", min_nbytes=4000, deadline=30.0)
    yield comm
    comm.Free()


def test_large_floats_are_compressed(ours):
    xs = operands(SIZE, 1000)
    ours.Allreduce(xs[RANK], recv := np.empty_like(xs[RANK]))
    assert same_bits(recv, simulated_allreduce("int8", xs, "sum", "direct"))
    record = ours.records[-1]
    assert (record.algorithm, record.codec, record.reason) == ("direct", "int8" if SIZE > 1 else "identity", "")
    assert SIZE == 1 or 0 < record.wire_nbytes < record.raw_nbytes


@pytest.mark.parametrize(
    ("count", "dtype", "op", "reason"),
    [
        (999, "f4", MPI.SUM, "3996 bytes are fewer than min_nbytes=4000"),
        (2000, "i4", MPI.SUM, "dtype: int32"),
        (2000, "f4", MPI.PROD, "op: "),
        (2000, "f4", MPI.MAX, "op: max"),
    ],
)
def test_what_the_codec_cannot_do_is_native(ours, count, dtype, op, reason):
    x = (np.arange(count) % 5 + RANK + 1).astype(dtype)
    ours.Allreduce(x, recv := np.empty_like(x), op)
    MPI.COMM_WORLD.Allreduce(x, expected := np.empty_like(x), op)
    assert same_bits(recv, expected)
    assert ours.records[-1].algorithm == "native"
    assert reason in ours.records[-1].reason
    request = ours.Iallreduce(x, recv := np.empty_like(x), op)
    request.Wait()
    assert same_bits(recv, expected)


def test_vector_collectives_stay_native(ours):
    counts = [2000 * r for r in range(SIZE)]
    mine = uniform(counts[RANK], seed=RANK)
    recv = np.zeros(sum(counts), F32) if RANK == 0 else None
    ours.Gatherv(mine, [recv, counts] if RANK == 0 else None)
    if RANK == 0:
        assert same_bits(recv, np.concatenate([uniform(c, seed=r) for r, c in enumerate(counts)]))
    assert "sizes" in ours.records[-1].reason


def test_a_call_may_ask_for_something_else(ours):
    xs = operands(SIZE, 1000)
    ours.Allreduce(xs[RANK], recv := np.empty_like(xs[RANK]), codec="int4")
    assert same_bits(recv, simulated_allreduce("int4", xs, "sum", "direct"))
    ours.Allreduce(xs[RANK], recv, algorithm="native")
    MPI.COMM_WORLD.Allreduce(xs[RANK], expected := np.empty_like(recv))
    assert same_bits(recv, expected)
    assert ours.records[-1].algorithm == "native"


def test_average_without_a_codec(comm):
    x = np.full(10, RANK, "d")
    comm.Allreduce(x, recv := np.empty_like(x), average=True)
    np.testing.assert_array_equal(recv, (SIZE - 1) / 2)


def test_messages_are_not_compressed_by_themselves(ours):
    x = uniform(5000, seed=RANK)
    ours.Sendrecv(x, (RANK + 1) % SIZE, 0, recv := np.empty_like(x), (RANK - 1) % SIZE, 0)
    assert same_bits(recv, uniform(5000, seed=(RANK - 1) % SIZE))


def test_derived_datatypes_are_mpis_business(ours):
    vector = MPI.FLOAT.Create_vector(1000, 1, 2)
    vector.Commit()
    x = np.zeros(2000, F32)
    if RANK == 0:
        x[::2] = 3
    ours.Bcast([x, 1, vector])
    assert x.sum() == 3000
    vector.Free()
