"""Point-to-point messages between threads."""

import threading

import numpy as np
import pytest
from helpers import F32, F64, outcomes, run, same_bits, through, uniform

from collcomp.errors import DeadlineError, FrameError

CODECS = ("identity", "bf16", "int8", "int4", "topk:ratio=0.1", "int8:feedback")


@pytest.mark.parametrize("codec", [None, *CODECS])
@pytest.mark.parametrize("count", [0, 1, 1000, 300_000])
def test_send_and_receive(codec, count):
    def program(comm):
        x = uniform(count)
        if comm.rank == 0:
            comm.send(x, 1, 5, codec=codec)
            return x
        received = comm.recv(recv := np.full(count + 3, 7, F32), 0, 5, codec=codec)
        assert (received.source, received.tag, received.count, received.nbytes) == (0, 5, count, 4 * count)
        assert (recv[count:] == 7).all()
        return recv[:count]

    x, got = run(2, program)
    assert same_bits(got, x if codec is None else through(codec, x))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_sendrecv_round_the_ring(size):
    def program(comm):
        x = uniform(200_000, seed=comm.rank)
        right, left = (comm.rank + 1) % size, (comm.rank - 1) % size
        received = comm.sendrecv(x, right, 1, recv := np.empty_like(x), left, 1, codec="int8")
        assert received.source == left
        return recv

    for rank, got in enumerate(run(size, program)):
        assert same_bits(got, through("int8", uniform(200_000, seed=(rank - 1) % size)))


def test_nonblocking_in_any_order():
    def program(comm):
        other = 1 - comm.rank
        buffers = [np.empty(100_000, F32) for _ in range(6)]
        receives = [comm.irecv(buffers[tag], other, tag, codec="int8") for tag in reversed(range(6))]
        sends = []
        for tag in range(6):
            x = uniform(100_000, seed=tag)
            sends.append(comm.isend(x, other, tag, codec="int8"))
            x[...] = 0  # it was encoded already
        assert [request.wait().tag for request in receives] == [5, 4, 3, 2, 1, 0]
        for request in sends:
            assert request.wait() is None
            assert request.test()
        return buffers

    for buffers in run(2, program):
        for tag, got in enumerate(buffers):
            assert same_bits(got, through("int8", uniform(100_000, seed=tag)))


def test_messages_under_one_tag_stay_in_order():
    def program(comm):
        if comm.rank == 0:
            for i in range(10):
                comm.send(np.full(5, i, F32), 1)
            return None
        got = []
        for _ in range(10):
            comm.recv(recv := np.empty(5, F32), 0)
            got.append(recv[0])
        return got

    assert run(2, program)[1] == list(range(10))


def test_messages_and_collectives_do_not_mix():
    def program(comm):
        x = uniform(1000, seed=comm.rank)
        send = comm.isend(x, 1 - comm.rank, 0, codec="int8")
        comm.allreduce(x, total := np.empty_like(x), codec="int8")
        comm.recv(recv := np.empty_like(x), 1 - comm.rank, 0, codec="int8")
        send.wait()
        return total, recv

    found = run(2, program)
    assert same_bits(found[0][0], found[1][0])
    assert same_bits(found[0][1], through("int8", uniform(1000, seed=1)))


@pytest.mark.parametrize(
    ("count", "dtype", "codec", "says"),
    [
        (999, F32, "int8", "999|longer|fit|count"),
        (10, F32, "int8", "fit"),
        (1000, F64, "int8", "dtype"),
        (1000, F32, "int4", "codec|fit"),
        (1000, F32, "int8:block=64", "parameters"),
        (1000, F32, "identity", "codec"),
    ],
)
@pytest.mark.parametrize("blocking", [True, False])
def test_what_does_not_fit(count, dtype, codec, says, blocking):
    def program(comm):
        if comm.rank == 0:
            comm.send(uniform(1000), 1, codec="int8")
            comm.send(uniform(1000), 1, codec="int8")
            return None
        recv = np.full(count, 7, dtype)
        with pytest.raises(FrameError, match=says):  # noqa: PT012
            if blocking:
                comm.recv(recv, 0, codec=codec)
            else:
                comm.irecv(recv, 0, codec=codec).wait()
        assert (recv == 7).all(), "nothing is written of a message that does not fit"
        comm.recv(recv := np.empty(1000, F32), 0, codec="int8")
        return recv

    assert same_bits(run(2, program)[1], through("int8", uniform(1000)))


def test_one_that_does_not_fit_leaves_the_others_alone():
    """Several transfers are under way; only the one that is wrong fails."""
    posted = threading.Event()

    def program(comm):
        if comm.rank == 0:
            posted.wait(60)
            for tag in (1, 2):
                comm.send(uniform(100_000), 1, tag, codec="int8")
            return None
        small = comm.irecv(np.empty(10, F32), 0, 1, codec="int8")
        right = comm.irecv(recv := np.empty(100_000, F32), 0, 2, codec="int8")
        posted.set()
        with pytest.raises(FrameError):
            small.wait()
        right.wait()
        return recv

    assert same_bits(run(2, program)[1], through("int8", uniform(100_000)))


@pytest.mark.parametrize("method", ["send", "recv", "isend", "irecv"])
def test_wrong_arguments(method):
    def program(comm):
        with pytest.raises(TypeError, match="dtype: int32"):
            getattr(comm, method)(np.zeros(3, "i4"), 0, codec="int8")
        with pytest.raises(ValueError, match="codec: unknown codec 'int5'"):
            getattr(comm, method)(np.zeros(3, F32), 0, codec="int5")
        with pytest.raises(TypeError, match="buf: NoneType is not a buffer"):
            getattr(comm, method)(None, 0)

    assert outcomes(1, program) == [None]


def test_nobody_sends():
    def program(comm):
        if comm.rank == 0:
            comm.recv(np.empty(3, F32), 1)

    found = outcomes(2, program, deadline=0.3)
    assert isinstance(found[0], DeadlineError)


def test_records():
    def program(comm):
        x = uniform(1000)
        comm.sendrecv(x, 0, 0, x.copy(), 0, 0, codec="int8")
        return {record.collective: record for record in comm.records}

    records = run(1, program)[0]
    assert set(records) == {"send", "recv"}
    assert records["send"].codec == "int8"
    assert records["send"].nbytes == records["recv"].nbytes == 4000
    assert 1000 < records["send"].wire_nbytes < 1300
    assert records["recv"].wire_nbytes == 0
