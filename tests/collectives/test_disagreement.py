"""Ranks that do not call the same thing: an error on each, no hang, and the communicator works afterwards."""

import threading

import numpy as np
import pytest
from helpers import F32, F64, operands, outcomes, run, same_bits

from collcomp.errors import CollcompError, DeadlineError, FrameError

#: What rank 1 says, and what the others say.
DIFFERENT = {
    "codecs": ({"codec": "int4"}, {"codec": "int8"}),
    "lossless and lossy": ({"codec": "identity"}, {"codec": "int8"}),
    "lossy and lossless": ({"codec": "int8"}, {"codec": "identity"}),
    "none and lossy": ({}, {"codec": "int8"}),
    "16 bits and 16 bits": ({"codec": "bf16"}, {"codec": "fp16"}),
    "block": ({"codec": "int8:block=64"}, {"codec": "int8"}),
    "rounding": ({"codec": "int8:rounding=stochastic"}, {"codec": "int8"}),
    "seed": ({"codec": "int8:rounding=stochastic,seed=1"}, {"codec": "int8:rounding=stochastic"}),
    "ratio": ({"codec": "topk:ratio=0.1"}, {"codec": "topk:ratio=0.2"}),
    "feedback": ({"codec": "int4:feedback", "key": "w"}, {"codec": "int4"}),
    "dense and sparse": ({"codec": "topk", "algorithm": "direct"}, {"codec": "int8"}),
    "fewer": ({"codec": "int8", "count": 999}, {"codec": "int8"}),
    "more": ({"codec": "int8", "count": 1001}, {"codec": "int8"}),
    "none at all": ({"codec": "int8", "count": 0}, {"codec": "int8"}),
    "many more": ({"codec": "int8", "count": 500_000}, {"codec": "int8"}),
    "many fewer": ({"codec": "int8"}, {"codec": "int8", "count": 500_000}),
    "fewer, lossless": ({"codec": "identity", "count": 999}, {"codec": "identity"}),
    "none at all, lossless": ({"codec": "identity", "count": 0}, {"codec": "identity"}),
    "many more, lossless": ({"codec": "identity", "count": 500_000}, {"codec": "identity"}),
    "dtype": ({"codec": "int8", "dtype": F64}, {"codec": "int8"}),
    "narrow dtype": ({"codec": "int8", "dtype": np.dtype("f2")}, {"codec": "int8"}),
    "dtype, lossless": ({"codec": "identity", "dtype": F64}, {"codec": "identity"}),
    "dtype of one size": ({"codec": "identity", "dtype": np.dtype("i4")}, {"codec": "identity"}),
}


def call(comm, name, *, count=1000, dtype=F32, **how):
    x = np.ones(count * (comm.size if name in ("alltoall", "reduce_scatter") else 1), dtype)
    recv = np.ones(count * (comm.size if name in ("allgather", "alltoall") else 1), dtype)
    getattr(comm, name)(x, recv, **how)


@pytest.mark.parametrize("case", DIFFERENT)
@pytest.mark.parametrize("name", ["allreduce", "allgather", "reduce_scatter", "alltoall"])
def test_every_rank_of_a_symmetric_collective_knows(case, name):
    def program(comm):
        with pytest.raises(FrameError) as caught:
            call(comm, name, **DIFFERENT[case][comm.rank != 1])
        x = operands(comm.size, 1000)[comm.rank]
        comm.allreduce(x, result := np.empty_like(x), codec="int8")
        return str(caught.value), result

    found = run(3, program)
    assert same_bits(*(result for _, result in found))
    assert any("codec" in text or "count" in text or "dtype" in text or "frame" in text for text, _ in found)


@pytest.mark.parametrize("case", DIFFERENT)
@pytest.mark.parametrize("algorithm", ["ring", "gathered"])
def test_other_algorithms(case, algorithm):
    def program(comm):
        how = dict(DIFFERENT[case][comm.rank != 1], algorithm=algorithm)
        with pytest.raises(FrameError):
            call(comm, "allreduce", **how)
        x = operands(comm.size, 1000)[comm.rank]
        comm.allreduce(x, result := np.empty_like(x), codec="int8")
        return result

    assert same_bits(*run(3, program))


@pytest.mark.parametrize("case", DIFFERENT)
@pytest.mark.parametrize("name", ["bcast", "gather", "scatter", "reduce"])
def test_rooted_collectives_end(case, name):
    """Whoever only sends may not know; nobody hangs, and those who receive from rank 1 know."""

    def program(comm):
        how = dict(DIFFERENT[case][comm.rank != 1])
        count, dtype = how.pop("count", 1000), how.pop("dtype", F32)
        x, whole = np.ones(count, dtype), np.ones(count * comm.size, dtype)
        args = {"bcast": (x, 0), "gather": (x, whole, 0), "scatter": (whole, x, 0), "reduce": (x, x.copy())}[name]
        try:
            getattr(comm, name)(*args, **how)
        except CollcompError as error:
            caught = error
        else:
            caught = None
        return caught

    found = outcomes(3, program, deadline=1.0)
    assert all(error is None or isinstance(error, (FrameError, DeadlineError)) for error in found), found
    knows = 1 if name in ("bcast", "scatter") else 0
    assert found[knows] is not None


@pytest.mark.parametrize("case", ["codecs", "fewer", "dtype", "lossy and lossless"])
def test_the_message_names_the_sender(case):
    def program(comm):
        with pytest.raises(FrameError, match=r"from rank \d: |from rank \d, |rank \d gave up") as caught:
            call(comm, "allreduce", **DIFFERENT[case][comm.rank])
        return str(caught.value)

    run(2, program)


def test_different_collectives():
    def program(comm):
        with pytest.raises(FrameError):
            call(comm, "allreduce" if comm.rank else "allgather", codec="int8")

    run(2, program)


@pytest.mark.parametrize("codec", ["identity", "int8"])
@pytest.mark.parametrize("name", ["allreduce", "bcast", "gather"])
def test_a_rank_that_never_comes(codec, name):
    """Everybody who waits for it raises when the deadline is over, and not before."""

    def program(comm):
        if comm.rank == 2:
            return
        args = {"allreduce": (np.ones(5, F32), np.ones(5, F32)), "bcast": (np.ones(5, F32), 2)}
        args["gather"] = (np.ones(5, F32), np.ones(15, F32), 0)
        getattr(comm, name)(*args[name], codec=codec)
        return

    found = outcomes(3, program, deadline=0.5)
    assert any(isinstance(error, DeadlineError) for error in found)
    if name != "gather":
        assert all(isinstance(error, (DeadlineError, FrameError)) for error in found[:2])
    assert "0.5 s" in " ".join(map(str, found))


def test_a_rank_that_dies_on_the_way():
    """It dies between two collectives; the others' next one ends."""

    def program(comm):
        call(comm, "allreduce", codec="int8")
        if comm.rank == 0:
            raise KeyError("dead")
        call(comm, "allreduce", codec="int8")

    found = outcomes(4, program, deadline=0.5)
    assert isinstance(found[0], KeyError)
    assert all(isinstance(error, (DeadlineError, FrameError)) for error in found[1:])


def test_deadline_is_of_silence_not_of_the_whole():
    """Ranks that come one after another, each within the deadline, are waited for; the deadline starts at a call."""
    turns = [threading.Event() for _ in range(3)]
    turns[0].set()

    def program(comm):
        turns[comm.rank].wait(60)
        x = operands(comm.size, 1000)[comm.rank]
        request = comm.iallreduce(x, result := np.empty_like(x), codec="int8")
        if comm.rank + 1 < comm.size:
            turns[comm.rank + 1].set()
        request.wait()
        return result

    assert same_bits(*run(3, program, deadline=30.0))
