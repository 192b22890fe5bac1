"""Point-to-point messages with a codec."""

import numpy as np
import pytest
from helpers import F32, F64, same_bits, through, uniform
from mpi4py import MPI

from collcomp import FrameError

pytestmark = pytest.mark.mpi

SIZE, RANK = MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()
RIGHT, LEFT = (RANK + 1) % SIZE, (RANK - 1) % SIZE


@pytest.mark.parametrize("codec", ["identity", "bf16", "int8", "int4", "topk:ratio=0.1"])
@pytest.mark.parametrize("count", [0, 1, 1000, 300_000])
def test_round_the_ring(comm, codec, count):
    x, status = uniform(count, seed=RANK), MPI.Status()
    expected = through(codec, uniform(count, seed=LEFT))
    request = comm.Isend(x, RIGHT, 3, codec=codec)
    comm.Recv(recv := np.full(count, 7, F32), LEFT, 3, status, codec=codec)
    request.Wait()
    assert same_bits(recv, expected)
    assert (status.Get_source(), status.Get_tag(), status.Get_count(MPI.FLOAT)) == (LEFT, 3, count)
    comm.Sendrecv(x, RIGHT, 4, recv := np.full(count, 7, F32), LEFT, 4, status, codec=codec)
    assert same_bits(recv, expected)
    assert (status.Get_source(), status.Get_tag(), status.Get_count(MPI.FLOAT)) == (LEFT, 4, count)


def test_wildcards(comm):
    status = MPI.Status()
    request = comm.Isend(uniform(10, seed=RANK), 0, 20 + RANK, codec="int8")
    if RANK == 0:
        seen = set()
        for _ in range(SIZE):
            comm.Recv(recv := np.zeros(12, F32), status=status, codec="int8")
            source = status.Get_source()
            seen.add(source)
            assert status.Get_tag() == 20 + source
            assert status.Get_count(MPI.FLOAT) == 10
            assert same_bits(recv[:10], through("int8", uniform(10, seed=source)))
        assert seen == set(range(SIZE))
    request.Wait()


def test_wildcards_of_irecv_and_sendrecv(comm):
    status = MPI.Status()
    receive = comm.Irecv(recv := np.zeros(10, F32), codec="int8")
    comm.Send(uniform(10, seed=RANK), RIGHT, 6, codec="int8")
    receive.Wait(status)
    assert (status.Get_source(), status.Get_tag(), status.Get_count(MPI.FLOAT)) == (LEFT, 6, 10)
    comm.Barrier()
    comm.Sendrecv(uniform(10, seed=RANK), RIGHT, 7, recv, status=status, codec="int8")
    assert (status.Get_source(), status.Get_tag()) == (LEFT, 7)


def test_several_tags_received_in_another_order(comm):
    sends = [comm.Isend(uniform(100, seed=tag), RIGHT, tag, codec="int8") for tag in range(5)]
    buffers = [np.zeros(100, F32) for _ in range(5)]
    receives = [comm.Irecv(buffers[tag], LEFT, tag, codec="int8") for tag in reversed(range(5))]
    MPI.Request.Waitall(sends + receives)
    assert all(same_bits(buffers[tag], through("int8", uniform(100, seed=tag))) for tag in range(5))


def test_large_both_ways_at_once(comm):
    x = uniform(500_000, seed=RANK)
    send = comm.Isend(x, RIGHT, codec="int8")
    receive = comm.Irecv(recv := np.zeros_like(x), LEFT, codec="int8")
    MPI.Request.Waitall([receive, send])
    assert same_bits(recv, through("int8", uniform(500_000, seed=LEFT)))


def test_process_null(comm):
    x = uniform(10)
    comm.Send(x, MPI.PROC_NULL, codec="int8")
    status = MPI.Status()
    comm.Recv(x, MPI.PROC_NULL, status=status, codec="int8")
    assert status.Get_source() == MPI.PROC_NULL
    comm.Isend(x, MPI.PROC_NULL, codec="int8").Wait()
    comm.Irecv(x, MPI.PROC_NULL, codec="int8").Wait()
    comm.Sendrecv(x, MPI.PROC_NULL, 0, x.copy(), MPI.PROC_NULL, codec="int8")


@pytest.mark.parametrize(
    ("count", "dtype", "codec"),
    [(10, F32, "int8"), (1000, F64, "int8"), (1000, F32, "int4"), (1000, F32, "int8:block=64"), (1000, F32, "bf16")],
)
@pytest.mark.parametrize("blocking", [True, False])
def test_what_does_not_fit(comm, count, dtype, codec, blocking):
    """Too long for the buffer, another dtype, another codec: FrameError, and the next message arrives."""
    request = comm.Isend(uniform(1000), RIGHT, 1, codec="int8")
    recv = np.zeros(count, dtype)
    with pytest.raises(FrameError):  # noqa: PT012
        if blocking:
            comm.Recv(recv, LEFT, 1, codec=codec)
        else:
            comm.Irecv(recv, LEFT, 1, codec=codec).Wait()
    request.Wait()
    comm.Barrier()
    request = comm.Isend(uniform(1000), RIGHT, 1, codec="int8")
    comm.Recv(recv := np.zeros(1000, F32), LEFT, 1, codec="int8")
    request.Wait()
    assert same_bits(recv, through("int8", uniform(1000)))


def test_frames_and_plain_messages(comm):
    """A plain message where a frame is expected is told from one."""
    request = comm.Isend(np.zeros(100, F32), RIGHT, 2)
    with pytest.raises(FrameError, match="magic"):
        comm.Recv(np.zeros(1000, F32), LEFT, 2, codec="int8")
    request.Wait()


@pytest.mark.parametrize("method", ["Send", "Recv", "Isend", "Irecv"])
def test_wrong_arguments(comm, method):
    with pytest.raises(TypeError, match="dtype: int32"):
        getattr(comm, method)(np.zeros(3, "i"), RIGHT, codec="int8")
    with pytest.raises(ValueError, match="codec: unknown codec 'int5'"):
        getattr(comm, method)(np.zeros(3, "f"), RIGHT, codec="int5")
