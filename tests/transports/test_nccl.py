"""NCCL's transport, on a stand-in for NCCL: what it says to whom, in which order. Ranks are threads."""

import threading
from functools import partial

import numpy as np
import pytest
import stand_in_cupy
import stand_in_nccl
from device import to_device, to_host
from gpu import has_gpu
from helpers import laid_out, operands, outcomes, run

from collcomp import FrameError
from collcomp.transports.cards import Card
from collcomp.transports.local import local_transports
from collcomp.transports.nccl import NcclTransport, Transfer, nccl

several_ranks = pytest.mark.skipif(has_gpu(), reason="real NCCL refuses several ranks on one GPU")
COUNT = 210


@pytest.fixture(autouse=True)
def available(monkeypatch):
    """NCCL is there, and every rank has a GPU of its own."""
    monkeypatch.setattr(stand_in_nccl, "available", True)


def test_one_rank_and_itself():
    """What real NCCL can be asked on a single GPU."""
    if nccl() is None:
        pytest.skip("NCCL is not installed")
    (host,) = local_transports(1)
    transport = NcclTransport(host, nccl().get_unique_id())
    sent, room = to_device(np.arange(100, dtype=np.uint8)), to_device(np.zeros(100, np.uint8))
    transport._move([Transfer(sent, 0, 0)], [Transfer(room, 0, 0)])
    for _ in transport._moved():
        pass
    assert np.array_equal(to_host(room), to_host(sent))
    transport.close()


@pytest.fixture
def moved(monkeypatch):
    """Bytes that NCCL sent so far, one number a message."""
    sizes = []
    send = stand_in_nccl.NcclCommunicator.send

    def counting(self, sendbuf, count, *rest):
        sizes.append(count)
        send(self, sendbuf, count, *rest)

    monkeypatch.setattr(stand_in_nccl.NcclCommunicator, "send", counting)
    return sizes


def allreduce(comm, xs, place, **how):
    send, recv = place(xs[comm.rank]), place(np.zeros_like(xs[0]))
    comm.allreduce(send, recv, **how)
    return recv


def check(size, program, **options):
    expected = run(size, partial(program, place=np.copy), **options)
    found = run(size, partial(program, place=to_device), **options)
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(to_host(a).view(np.uint8), b.view(np.uint8))


@several_ranks
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("codec", "algorithm"),
    [("int8", "direct"), ("int8", "ring"), ("identity", "hierarchical"), ("int4", "gathered"), ("identity", "direct")],
)
def test_allreduce(size, codec, algorithm, moved):
    check(
        size,
        partial(allreduce, xs=operands(size, COUNT), codec=codec, algorithm=algorithm),
        **laid_out(algorithm, size),
    )
    assert moved, "nothing went by NCCL"


@several_ranks
@pytest.mark.parametrize("odd", [0, np.inf])
def test_factors_go_by_the_host_and_values_by_nccl(odd, moved):
    xs = operands(3, COUNT)
    xs[1][5] += odd
    check(3, partial(allreduce, xs=xs, codec="powersgd:rank=1,feedback", key="x", op="avg"))
    assert bool(moved) == bool(odd)


@several_ranks
def test_records_count_what_nccl_sent(moved):
    def program(comm):
        allreduce(comm, operands(3, COUNT), to_device, codec="int8")
        return [*comm.records][-1]

    records = run(3, program)
    assert sum(record.wire_nbytes for record in records) == sum(moved)
    assert {record.reason for record in records} == {""}


@several_ranks
def test_every_collective():
    """One after another, some of which end on some ranks earlier than on others."""

    def program(comm, place):
        x = operands(3, 240)[comm.rank]
        part, whole, out = place(x[:80]), place(x), place(np.zeros(240, np.float32))
        comm.bcast(whole, root=2, codec="int8")
        comm.gather(part, out if comm.rank == 1 else None, root=1, codec="int4")
        comm.scatter(out if comm.rank == 1 else None, part, root=1, codec="int8")
        comm.reduce_scatter(whole, part, codec="int8")
        comm.allgather(part, whole, codec="int8")
        comm.alltoall(whole, out, codec="int8")
        comm.reduce(out, whole if comm.rank == 0 else None, codec="int8")
        comm.bcast(whole, codec="none")
        return whole

    check(3, program)


@several_ranks
def test_nonblocking_and_blocking_calls_keep_their_order():
    def program(comm, place):
        xs = operands(2, COUNT)
        first, second = place(xs[comm.rank]), place(xs[comm.rank])
        totals = [place(np.zeros(COUNT, np.float32)) for _ in range(2)]
        comm.allreduce(first, totals[0], codec="int8")
        request = comm.iallreduce(first, totals[0], codec="int8")
        comm.allreduce(second, totals[1], codec="int4")
        request.wait()
        totals[0] += totals[1]
        return totals[0]

    check(2, program)


@several_ranks
def test_ranks_that_differ_all_raise_and_go_on():
    def program(comm):
        x = np.ones(COUNT, np.float32)
        with pytest.raises(FrameError):
            comm.allreduce(to_device(x[: COUNT - comm.rank]), to_device(x[: COUNT - comm.rank]), codec="int8")
        return to_host(allreduce(comm, [x] * 2, to_device, codec="int8"))

    for outcome in outcomes(2, program):
        if isinstance(outcome, BaseException):
            raise outcome
        assert (outcome == 2).all()


@several_ranks
def test_ranks_that_share_a_gpu_are_staged(monkeypatch, moved):
    monkeypatch.setattr(stand_in_cupy.cuda.runtime, "deviceGetPCIBusId", lambda device: "0000:01:00.0")

    def program(comm):
        recv = allreduce(comm, operands(2, COUNT), to_device, codec="int8")
        return to_host(recv), [*comm.records][-1].reason

    for _, reason in run(2, program):
        assert reason == "ranks 0 and 1 share a GPU, which NCCL refuses"
    assert not moved


def test_a_rank_without_nccl_is_named():
    cards = np.stack([Card.own(), Card.own()])
    cards[1, :8] = 0
    assert Card.problem(cards) == "NCCL is not installed on rank 1"


@several_ranks
class TestGraphs:
    """While a graph is captured, nothing is said by the host: rounds are those of the call before."""

    @pytest.fixture(autouse=True)
    def captures(self, monkeypatch):
        """What begins and ends a capture on the calling thread."""
        state = threading.local()
        monkeypatch.setattr(stand_in_cupy._Stream, "is_capturing", lambda self: getattr(state, "on", False))
        self.state = state

    def capture(self, comm, xs, before=None, **how):
        """What this rank has after a captured call, with these operands `before` in one that is not."""
        if before is not None:
            allreduce(comm, before, to_device, **how)
        send, recv = to_device(xs[comm.rank]), to_device(np.zeros_like(xs[0]))
        self.state.on = True
        try:
            comm.allreduce(send, recv, **how)
        finally:
            self.state.on = False
        return to_host(recv)

    @pytest.mark.parametrize(
        ("codec", "algorithm"), [("int8", "direct"), ("int4:feedback", "direct"), ("sign", "ring")]
    )
    def test_the_same_bits(self, codec, algorithm):
        how = {"codec": codec, "algorithm": algorithm, "key": "x"}
        xs = operands(2, COUNT)

        def twice(comm):
            allreduce(comm, xs, np.copy, **how)
            return allreduce(comm, xs, np.copy, **how)

        for found, expected in zip(run(2, partial(self.capture, xs=xs, before=xs, **how)), run(2, twice), strict=True):
            assert np.array_equal(found, expected)

    def test_blocks_that_no_scale_fits_arrive_as_nan(self):
        before, xs = operands(2, COUNT), operands(2, COUNT)
        xs[1][3] = np.inf
        for found in run(2, partial(self.capture, xs=xs, before=before, codec="int8:block=64")):
            assert np.isnan(found[:64]).all()
            assert np.isfinite(found[64:]).all()

    def test_the_call_has_to_be_made_once_before(self):
        for outcome in outcomes(2, partial(self.capture, xs=operands(2, COUNT), codec="int8")):
            assert isinstance(outcome, ValueError | FrameError)
            assert "once on this communicator before" in str(outcome)

    def test_other_calls_may_come_in_between(self):
        def program(comm):
            xs, ys = operands(2, COUNT), operands(2, 64, seed=1)
            for x in (xs, ys):
                allreduce(comm, x, to_device, codec="int8")
            return [self.capture(comm, x, codec="int8") for x in (xs, ys)]

        for outcomes_of_rank in run(2, program):
            for found, x in zip(outcomes_of_rank, (operands(2, COUNT), operands(2, 64, seed=1)), strict=True):
                assert np.allclose(found, sum(x), atol=0.1)

    def test_what_a_graph_cannot_do_is_refused(self):
        def program(comm):
            send, recv = (to_device(np.ones(COUNT, np.float32)) for _ in range(2))
            comm.allreduce(send, recv, codec="int8")
            self.state.on = True
            try:
                with pytest.raises(ValueError, match="capture: a nonblocking call goes on in another thread"):
                    comm.iallreduce(send, recv, codec="int8")
                with pytest.raises(ValueError, match="'x' is new; make the same call once before"):
                    comm.allreduce(send, recv, codec="int4:feedback", key="x")
            finally:
                self.state.on = False

        run(2, program)

    def test_codecs_whose_frames_depend_on_values_are_refused(self):
        def program(comm):
            with pytest.raises(ValueError, match=r"capture: frames of 'topk.*' have no fixed size"):
                self.capture(comm, operands(2, COUNT), codec="topk")

        run(2, program)
