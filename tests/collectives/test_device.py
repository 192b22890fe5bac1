"""Collectives of buffers that lie on a device: the bits of those that lie on the host."""

from functools import partial

import numpy as np
import pytest
from device import to_device, to_host
from helpers import laid_out, operands, run

from collcomp import IN_PLACE
from collcomp.codecs import CODECS, as_codec
from collcomp.codecs.libraries import has_library
from collcomp.errors import FrameError

SIZE, COUNT = 3, 200
F32 = np.dtype(np.float32)


def allreduce(comm, xs, place, **how):
    """What this rank has after an allreduce of these operands, put where `place` puts them."""
    send, recv = place(xs[comm.rank]), place(np.zeros_like(xs[0]))
    comm.allreduce(send, recv, **how)
    return recv


def check(program, size=SIZE, **options):
    """The same bits on every rank, wherever the buffers lie."""
    expected = run(size, partial(program, place=np.copy), **options)
    found = run(size, partial(program, place=to_device), **options)
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(to_host(a).view(np.uint8), b.view(np.uint8))


@pytest.mark.parametrize("dtype", ["f4", "f2", "bfloat16"])
@pytest.mark.parametrize(
    ("codec", "algorithm"),
    [("int8", "direct"), ("int8", "ring"), ("identity", "direct"), ("identity", "ring"), ("int4", "gathered")],
)
def test_allreduce(codec, algorithm, dtype):
    check(partial(allreduce, xs=operands(SIZE, COUNT, np.dtype(dtype)), codec=codec, algorithm=algorithm, op="avg"))


FAMILIES = [
    "bf16", "mxfp4", "fp8_e4m3:rounding=stochastic", "hadamard+int4", "topk:ratio=0.1", "threshold:ratio=0.1",
    "randomk:ratio=0.1", "shared_int", "thc", "bounded:abs=1e-3", "hbound:abs=1e-3", "nonzeros",
    "powersgd:rank=1",
]  # fmt: skip


@pytest.mark.parametrize("codec", FAMILIES)
def test_each_family(codec):
    check(partial(allreduce, xs=operands(2, COUNT), codec=codec, key="x"), size=2)


def test_all_families_are_here():
    classes = {type(as_codec(spec)) for spec in [*FAMILIES, "identity", "int8", "int4"]}
    relatives = {"fp16", "int2", "sign", "fp8_e5m2", "mxfp8", "randomblock"}
    on_devices = {name for name, cls in CODECS.items() if has_library(cls.library) and cls().on_devices}
    assert on_devices - relatives == {cls.codec_id for cls in classes}


@pytest.mark.parametrize("codec", ["int8", "identity"])
def test_hierarchical(codec):
    how = {"codec": codec, "algorithm": "hierarchical"}
    check(partial(allreduce, xs=operands(SIZE, COUNT), **how), **laid_out("hierarchical", SIZE))


def test_extremes():
    check(partial(allreduce, xs=operands(SIZE, COUNT), codec="identity", op="max"))


def test_feedback():
    def program(comm, place):
        xs = operands(SIZE, COUNT)
        total = place(np.zeros(COUNT, F32))
        for _ in range(3):
            total += allreduce(comm, xs, place, codec="int4:feedback", key="x")
        return total

    check(program)


def test_residuals_move_with_the_tensor():
    def program(comm, place):
        xs = operands(SIZE, COUNT)
        allreduce(comm, xs, place, codec="int4:feedback", key="x")
        state = comm.residuals.state_dict()
        assert type(state["residuals"]["x"]) is np.ndarray
        comm.residuals.load_state_dict(state)
        return allreduce(comm, xs, place, codec="int4:feedback", key="x")

    check(program)


def _reduce(comm, send, recv):
    comm.reduce(send, recv if comm.rank == 1 else None, root=1, codec="int8")


def _alltoall(comm, send, recv):
    comm.alltoall(send, recv, codec="int8")


def _nonblocking(comm, send, recv):
    comm.iallreduce(send, recv, codec="int8").wait()


def _in_place(comm, send, recv):
    recv += send
    comm.allreduce(IN_PLACE, recv, codec="int8")


def _message(comm, send, recv):
    comm.sendrecv(send, (comm.rank + 1) % SIZE, 0, recv, (comm.rank - 1) % SIZE, 0, codec="int8")


@pytest.mark.parametrize("call", [_reduce, _alltoall, _nonblocking, _in_place, _message])
def test_calls(call):
    def program(comm, place):
        send, recv = place(operands(SIZE, COUNT - 2)[comm.rank]), place(np.zeros(COUNT - 2, F32))
        call(comm, send, recv)
        return recv

    check(program)


def _allgather(comm, part, whole):
    comm.allgather(part, whole, codec="int4")


def _gather(comm, part, whole):
    comm.gather(part, whole if comm.rank == 0 else None, codec="int4")


def _scatter(comm, part, whole):
    comm.scatter(whole if comm.rank == 0 else None, part, codec="int4")


def _bcast(comm, part, whole):
    comm.bcast(whole, codec="int4")


def _reduce_scatter(comm, part, whole):
    comm.reduce_scatter(whole, part, codec="int4")


@pytest.mark.parametrize("call", [_allgather, _gather, _scatter, _bcast, _reduce_scatter])
def test_parts(call):
    def program(comm, place):
        x = operands(SIZE, 4 * 40 * SIZE)[comm.rank]
        part, whole = place(x[: x.size // SIZE]), place(x)
        call(comm, part, whole)
        both = place(np.zeros(x.size + part.size, F32))
        both[: part.size], both[part.size :] = part, whole
        return both

    check(program)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"codec": "loco", "key": "x"}, "codec 'loco' has kernels for the CPU only"),
        ({"codec": "topk", "algorithm": "merged"}, "algorithm 'merged' has kernels for the CPU only"),
    ],
)
def test_what_devices_cannot_do_is_said_before_anything_is_sent(how, what):
    with pytest.raises((TypeError, FrameError), match=what):
        run(2, partial(allreduce, xs=operands(2, 40), place=to_device, **how))


def test_a_policy_that_chooses_such_a_codec_is_not_followed():
    def program(comm):
        found = allreduce(comm, operands(2, COUNT), to_device)
        return to_host(found), [*comm.records][-1].reason

    for total, reason in run(2, program, codec="exponents", min_nbytes=0):
        assert np.array_equal(total, sum(operands(2, COUNT)))
        assert reason == "buffer: on cuda:0, codec 'exponents' has kernels for the CPU only"
