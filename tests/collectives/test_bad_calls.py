"""Wrong arguments: named before anything is sent, the other ranks are told, and the next call works."""

import numpy as np
import pytest
from helpers import F32, F64, operands, outcomes, same_bits

import collcomp
from collcomp import IN_PLACE
from collcomp.errors import FrameError
from collcomp.policies import Fixed
from collcomp.transports.local import LocalTransport

N = 12
SIZE = 3


def ones(count=N, dtype=F32):
    return np.ones(count, dtype)


def locked(count=N):
    x = ones(count)
    x.flags.writeable = False
    return x


def overlapping():
    x = ones(N + 1)
    return x[:-1], x[1:]


# What the wrong rank calls, what it gets, and what the message names.
WRONG = {
    "unknown codec": ("allreduce", lambda: (ones(), ones()), {"codec": "int5"}, ValueError, "codec: .*'int5'"),
    "empty spec": ("allreduce", lambda: (ones(), ones()), {"codec": ""}, ValueError, "codec: "),
    "no codec at all": ("allreduce", lambda: (ones(), ones()), {"codec": 8}, TypeError, "codec: .*int"),
    "unknown parameter": ("allreduce", lambda: (ones(), ones()), {"codec": "int8:size=3"}, ValueError, "'size'"),
    "wrong value": ("allreduce", lambda: (ones(), ones()), {"codec": "int8:block=3"}, ValueError, "block: .*3"),
    "wrong type": ("allreduce", lambda: (ones(), ones()), {"codec": "int8:block=x"}, TypeError, "block: .*'x'"),
    "ratio": ("allreduce", lambda: (ones(), ones()), {"codec": "topk:ratio=2"}, ValueError, "ratio: .*2"),
    "unknown algorithm": ("allreduce", lambda: (ones(), ones()), {"algorithm": "tree"}, ValueError, "'tree'"),
    "algorithm of another": ("bcast", lambda: (ones(),), {"algorithm": "ring"}, ValueError, "'ring' cannot do bcast"),
    "native with codec": (
        "allreduce",
        lambda: (ones(), ones()),
        {"algorithm": "native", "codec": "int8"},
        ValueError,
        "native.*int8",
    ),
    "unknown op": ("allreduce", lambda: (ones(), ones(), "prod"), {"codec": "int8"}, ValueError, "op: prod"),
    "unknown op, no codec": ("allreduce", lambda: (ones(), ones(), "prod"), {}, ValueError, "op: prod"),
    "max with int8": ("allreduce", lambda: (ones(), ones(), "max"), {"codec": "int8"}, ValueError, "op: max.*'int8'"),
    "min with topk": ("reduce", lambda: (ones(), ones(), "min"), {"codec": "topk"}, ValueError, "op: min.*'topk:ratio"),
    "feedback, no key": ("allreduce", lambda: (ones(), ones()), {"codec": "int4:feedback"}, ValueError, "key: None"),
    "integers": ("allreduce", lambda: (ones(dtype="i4"),) * 1 + (ones(dtype="i4"),), {"codec": "int8"}, TypeError,
                 "dtype: int32.*int8"),
    "booleans": ("bcast", lambda: (ones(dtype=bool),), {"codec": "fp16"}, TypeError, "dtype: bool.*fp16"),
    "complex": ("allreduce", lambda: (ones(dtype="c8"), ones(dtype="c8")), {}, TypeError, "dtype: complex64"),
    "two dtypes": ("allreduce", lambda: (ones(), ones(dtype=F64)), {"codec": "int8"}, TypeError,
                   "recvbuf: dtype float64.*float32"),
    "two counts": ("allreduce", lambda: (ones(), ones(N + 1)), {"codec": "int8"}, ValueError,
                   "recvbuf: 13 elements, sendbuf has 12"),
    "read-only": ("allreduce", lambda: (ones(), locked()), {"codec": "int8"}, ValueError, "recvbuf: .*read-only"),
    "read-only bcast": ("bcast", lambda: (locked(),), {"codec": "int8"}, ValueError, "buf: .*read-only"),
    "overlap": ("allreduce", overlapping, {"codec": "int8"}, ValueError, "sendbuf, recvbuf: .*overlap"),
    "same buffer": ("allreduce", lambda: (x := ones(), x), {"codec": "int8"}, ValueError, "overlap"),
    "no buffer": ("allreduce", lambda: (None, ones()), {"codec": "int8"}, TypeError, "sendbuf: NoneType"),
    "root": ("bcast", lambda: (ones(), 3), {"codec": "int8"}, ValueError, "root: 3"),
    "negative root": ("reduce", lambda: (ones(), ones(), "sum", -1), {"codec": "int8"}, ValueError, "root: -1"),
    "IN_PLACE not at the root": ("reduce", lambda: (IN_PLACE, ones(), "sum", 0), {}, ValueError, "IN_PLACE"),
    "gather IN_PLACE": ("gather", lambda: (IN_PLACE, ones()), {}, ValueError, "sendbuf: IN_PLACE is for the root"),
    "scatter IN_PLACE": ("scatter", lambda: (ones(), IN_PLACE), {}, ValueError, "recvbuf: IN_PLACE is for the root"),
    "recvcounts": ("reduce_scatter", lambda: (ones(), ones(4), [4, 4, 5]), {}, ValueError, "recvcounts: .*4, 4, 5"),
    "too few recvcounts": ("reduce_scatter", lambda: (ones(), ones(4), [6, 6]), {}, ValueError, "recvcounts: "),
    "negative recvcounts": ("reduce_scatter", lambda: (ones(), ones(9), [9, 9, -6]), {}, ValueError, "recvcounts: "),
    "small recvbuf": ("reduce_scatter", lambda: (ones(), ones(3)), {}, ValueError, "recvbuf: 3 elements, 4 are"),
    "indivisible": ("reduce_scatter", lambda: (ones(13), ones(9)), {}, ValueError, "sendbuf: 13 elements.*3 equal"),
    "allgather recvbuf": ("allgather", lambda: (ones(4), ones(13)), {}, ValueError, "recvbuf: 13 elements.*3 equal"),
    "allgather block": ("allgather", lambda: (ones(5), ones(12)), {}, ValueError, "sendbuf: 5 elements.*4"),
    "allgather counts": ("allgather", lambda: (ones(4), [ones(12), [4, 8]]), {}, ValueError, "2 counts given for 3"),
    "alltoall self": (
        "alltoall",
        lambda: ([ones(), [4, 4, 4]], [ones(), [4, 5, 3]]),
        {},
        ValueError,
        "sendbuf: 4 elements for this rank itself, recvbuf has 5",
    ),
}  # fmt: skip

GOOD = {
    "allreduce": lambda: (ones(), ones()),
    "reduce": lambda: (ones(), ones()),
    "reduce_scatter": lambda: (ones(), ones(4)),
    "bcast": lambda: (ones(),),
    "allgather": lambda: (ones(4), ones()),
    "gather": lambda: (ones(4), ones()),
    "scatter": lambda: (ones(), ones(4)),
    "alltoall": lambda: (ones(), ones()),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("nonblocking", [False, True])
def test_wrong_call_on_one_rank(case, nonblocking, monkeypatch):
    name, arguments, how, error, says = WRONG[case]
    sent = []
    isend = LocalTransport.isend

    def recording(self, *args):
        sent.append(self.rank)
        return isend(self, *args)

    def call(comm, args, how):
        if nonblocking:
            getattr(comm, "i" + name)(*args, **how).wait()
        else:
            getattr(comm, name)(*args, **how)

    def program(comm):
        caught = None
        if comm.rank == 1:
            with pytest.raises(error, match=says):
                call(comm, arguments(), how)
            assert 1 not in sent, "the wrong rank has sent something"
        else:
            try:
                call(comm, GOOD[name](), {})
            except FrameError as frame_error:
                caught = str(frame_error)
        x = operands(comm.size, 1000)[comm.rank]
        comm.allreduce(x, result := np.empty_like(x), codec="int8")
        return caught, result

    monkeypatch.setattr(LocalTransport, "isend", recording)
    found = outcomes(SIZE, program)
    for outcome in found:
        if isinstance(outcome, BaseException):
            raise outcome
    assert same_bits(*(result for _, result in found)), "the communicator works afterwards"
    told = [found[rank][0] for rank in (0, 2)]
    if name in ("allreduce", "allgather", "alltoall", "reduce_scatter"):
        assert all(told), "a rank that waits for the wrong one is told"
    for text in filter(None, told):
        assert "rank 1" in text
        assert error.__name__ in text


def test_wrong_root_buffer_of_those_that_only_wait():
    """All others wait for the root alone."""

    def program(comm):
        if comm.rank == 0:
            with pytest.raises(TypeError, match="buf: object is not a buffer"):
                comm.bcast(object(), 0, codec="int8")
        else:
            with pytest.raises(FrameError, match=r"rank 0 gave up .*TypeError: buf: object is not a buffer"):
                comm.bcast(ones(), 0, codec="int8")

    assert outcomes(4, program) == [None] * 4


def test_a_root_may_broadcast_what_it_cannot_write_to():
    def program(comm):
        buf = locked() if comm.rank == 0 else ones()
        comm.bcast(buf, 0, codec="int8")
        return buf[0]

    values = outcomes(3, program)
    assert values[1] == values[2] == pytest.approx(values[0], rel=1 / 254)


def test_wrong_on_every_rank():
    def program(comm):
        for _ in range(3):
            with pytest.raises(ValueError, match="'int5'"):
                comm.allreduce(ones(), ones(), codec="int5")
        comm.allreduce(ones(), result := ones(), codec="int8")
        return result[0]

    assert outcomes(3, program) == [pytest.approx(3)] * 3


@pytest.mark.parametrize("options", [{"deadline": 0}, {"deadline": -1}, {"deadline": float("nan")}])
def test_wrong_deadline(options):
    with pytest.raises(ValueError, match="deadline: "):
        collcomp.local.communicators(2, **options)


def test_codec_beside_a_policy():
    with pytest.raises(ValueError, match="codec: 'int8' given beside a policy"):
        collcomp.local.communicators(1, codec="int8", policy=Fixed())


def test_unknown_keyword():
    comm = collcomp.local.communicators(1)[0]
    with pytest.raises(TypeError, match="compression"):
        comm.allreduce(ones(), ones(), compression="int8")
