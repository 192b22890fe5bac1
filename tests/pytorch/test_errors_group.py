"""What goes wrong in a process group is told to all ranks, in time, and names what was wrong."""

# ruff: noqa: E402

import multiprocessing
import os
import subprocess
import sys
import time
from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
from spawn import run

from collcomp.errors import CollcompError, DeadlineError
from collcomp.torch import AllGather, Options, ReduceScatter, ddp_hook, records, set_codec, use_codec

EVERYTHING = ("all_reduce", "reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "gather", "scatter")
#: Of what a rank is told by another one: far less than the deadline of the groups, which is 30 s.
PROMPT_S = 15


def works(group=None):
    """The group still does what it is asked for."""
    tensor = torch.ones(1000)
    dist.all_reduce(tensor, group=group)
    assert tensor.tolist() == [dist.get_world_size(group)] * 1000


def wrong_arguments(rank, size):
    """A wrong argument raises on the rank that gave it, and the others learn of it; then all goes on."""
    set_codec(None, dict.fromkeys(EVERYTHING, "int8"), min_nbytes=0)
    works()
    tensor, room = torch.ones(6), torch.empty(6 * size)
    calls = {
        "recvbuf": lambda: dist.reduce_scatter_single(torch.empty(5 if rank == 1 else 6), room),
        "sendbuf": lambda: dist.all_gather_single(room, torch.ones(5) if rank == 1 else tensor),
        "sendbuf: 6 elements": lambda: dist.all_gather([torch.empty(6)] * (size - 1 if rank == 1 else size), tensor),
        "sendbuf: ": lambda: dist.all_gather([] if rank == 1 else [torch.empty(6)] * size, tensor),
        "recvcounts": lambda: dist.reduce_scatter(torch.empty(6), [] if rank == 1 else [tensor] * size),
        "counts": lambda: dist.all_to_all(
            [torch.empty(6)] * (size - 1 if rank == 1 else size), [tensor] * (size - 1 if rank == 1 else size)
        ),
    }
    for name, call in calls.items():
        started = time.monotonic()
        if rank == 1:
            with pytest.raises((ValueError, TypeError), match=name):
                call()
        else:
            with pytest.raises(CollcompError, match=r"rank 1 gave up on this operation: (ValueError|TypeError)"):
                call()
        assert time.monotonic() - started < PROMPT_S, name
        works()
    # One that is found before the engine sees the call.
    parts = [tensor] * (size - 1) + [object() if rank == 1 else tensor]
    with pytest.raises(AttributeError if rank == 1 else CollcompError):
        dist.group.WORLD.reduce_scatter([torch.empty(6)], [parts]).wait()
    works()
    # What is only found out when the ranks meet: their counts differ.
    started = time.monotonic()
    with pytest.raises(CollcompError):
        dist.all_reduce(torch.ones(5 if rank == 1 else 6))
    assert time.monotonic() - started < PROMPT_S
    works()
    # By way of a future, too.
    work = dist.all_reduce(torch.ones(5 if rank == 1 else 6), async_op=True)
    with pytest.raises(Exception, match=r"count"):
        work.get_future().wait()
    with pytest.raises(CollcompError, match="count"):
        work.wait()
    assert work.is_completed()
    assert not work.is_success()
    assert isinstance(work.exception(), CollcompError)
    works()


def unlike_codecs(rank, size):
    for ours, what in ((("int8", "int4"), "codec"), (("int8", "int8:block=64"), "param"), (("thc", "topk"), "")):
        with use_codec(ours[rank % 2], key="w", min_nbytes=0):
            started = time.monotonic()
            with pytest.raises(CollcompError, match=what):
                dist.all_reduce(torch.ones(1000))
            assert time.monotonic() - started < PROMPT_S
    set_codec(None, "int8", min_nbytes=0)
    works()
    # DDP's reducer, which is no Python, understands a future that failed.
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1000, 10))
    with use_codec(("int8", "int4")[rank], min_nbytes=0), pytest.raises(RuntimeError, match=r"FrameError.*codec"):
        model(torch.ones(1000)).sum().backward()
    works()


def names(rank, size):
    """What is not known is named, before anything is sent or changed."""
    set_codec(None, "int8", min_nbytes=0)
    for codec, error, text in (
        ("int7", ValueError, "int7"),
        ("int8:size=3", ValueError, "size"),
        ("int8:block=-3", ValueError, "block"),
        ({"allreduce": "int8"}, ValueError, "'allreduce' is no operation"),
        ({"all_reduce": "int7"}, ValueError, "int7"),
        (7, TypeError, "codec: expected a spec string .* got int"),
        ("int4:feedback", ValueError, "remembers tensors by name"),
        ("powersgd", ValueError, "remembers tensors by name"),
        ({"reduce_scatter": "loco"}, ValueError, "remembers tensors by name"),
    ):
        with pytest.raises(error, match=text):
            set_codec(None, codec)
        with pytest.raises(error, match=text), use_codec(codec):
            pass
        if "remembers" not in text:
            with pytest.raises(error, match=text):
                Options(codec)
        works()
        assert records()[-1].codec == "int8"
    with pytest.raises(ValueError, match="remembers tensors by name"):
        dist.new_group(pg_options=Options("int4:feedback"))
    with pytest.raises(TypeError, match="pg_options"):
        dist.new_group(pg_options=dist.ProcessGroupGloo._Options())
    with pytest.raises(ValueError, match=r"key: None"):
        ReduceScatter("int4:feedback")
    with pytest.raises(ValueError, match="int7"):
        AllGather("int7")
    with pytest.raises(ValueError, match="int7"):
        ddp_hook({"*.weight": "int7"})
    with pytest.raises(ValueError, match=r"start_step: .*-1"):
        ddp_hook("int8", start_step=-1)
    with pytest.raises(TypeError):
        Options("int8", min_nbyte=3)
    gloo = dist.new_group(backend="gloo")
    assert len(records(gloo)) == 0
    with pytest.raises(TypeError, match="group: its backend is 'gloo'"):
        set_codec(gloo, "int8")
    with pytest.raises(TypeError, match="gloo"), use_codec("int8", group=gloo):
        pass


@pytest.mark.parametrize(("what", "size"), [(wrong_arguments, 3), (unlike_codecs, 2), (names, 2)])
def test_what_is_wrong(what, size):
    run(size, what, size)


# Ranks that do not come.


def absent(rank, size):
    set_codec(None, "int8", min_nbytes=0)
    works()  # kernels are loaded now, which may take a while
    set_codec(None, None)
    group = dist.new_group(timeout=timedelta(seconds=3))
    set_codec(group, dict.fromkeys((*EVERYTHING, "send"), "int8"), min_nbytes=0)
    works(group)
    dist.send(torch.ones(3), 1, group) if rank == 0 else dist.recv(torch.empty(3), 0, group)
    patient = dist.new_group()
    set_codec(patient, "int8", min_nbytes=0)
    works(patient)
    if rank == 0:
        started = time.monotonic()
        work = dist.all_reduce(torch.ones(1000), group=patient, async_op=True)
        with pytest.raises(DeadlineError, match=r"0\.2 s"):
            work.wait(timedelta(seconds=0.2))
        assert not work.is_completed()
        for call in (
            lambda: dist.recv(torch.empty(10), 1, group=group),
            lambda: dist.all_reduce(torch.ones(1000), group=group),
        ):
            started = time.monotonic()
            with pytest.raises(DeadlineError):
                call()
            assert 1 < time.monotonic() - started < PROMPT_S
    dist.barrier()
    if rank == 0:
        work.wait()  # the others have come by now
    else:
        dist.all_reduce(torch.ones(1000), group=patient)
    # Nobody of a group that was never connected.
    late = dist.new_group(timeout=timedelta(seconds=3))
    set_codec(late, "int8", min_nbytes=0)
    if rank == size - 1:
        with pytest.raises(CollcompError):
            dist.all_reduce(torch.ones(1000), group=late)
    dist.barrier()


def test_absent():
    run(2, absent, 2)


def dying(connection, rank, size, port):
    store = dist.TCPStore("127.0.0.1", port)
    dist.init_process_group("collcomp", store=store, rank=rank, world_size=size)
    set_codec(None, "int8", min_nbytes=0)
    tensor = torch.ones(1000)
    dist.all_reduce(tensor)
    store.set(f"done {rank}", "")
    if rank == 1:
        store.wait([f"done {other}" for other in range(size)])
        os._exit(7)
    started = time.monotonic()
    try:
        for _ in range(3):  # the one that it died in may have been complete for this rank
            dist.all_reduce(tensor)
        told = "nothing"
    except CollcompError as error:
        told = str(error)
    connection.send((told, time.monotonic() - started))
    os._exit(0)


def test_dying():
    """The others learn at once that a rank has died; the group's deadline is half an hour."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    found, ranks = {}, []
    for rank in range(3):
        ours, theirs = context.Pipe()
        ranks.append(context.Process(target=dying, args=(theirs, rank, 3, store.port), daemon=True))
        ranks[-1].start()
        theirs.close()
        found[rank] = ours
    try:
        for rank in (0, 2):
            assert found[rank].poll(60), f"rank {rank} hangs"
            told, seconds = found[rank].recv()
            assert "rank 1" in told, rank
            assert seconds < PROMPT_S, rank
    finally:
        for process in ranks:
            process.kill()
            process.join()
    assert ranks[1].exitcode == 7


# The end.

ENDS = {
    "by destroy, under way": """
cc.set_codec(None, "int8", min_nbytes=0)
work = dist.all_reduce(x, async_op=True)
dist.destroy_process_group()
work.wait()
assert x[0] == 2""",
    "by nothing": """
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(300, 300))
model.register_comm_hook(None, cc.ddp_hook("int8"))
model(x).sum().backward()
cc.set_codec(None, {"send": "int8", "all_reduce": "int8"}, min_nbytes=0)
other = dist.get_rank() ^ 1
dist.batch_isend_irecv([dist.P2POp(dist.isend, x, other), dist.P2POp(dist.irecv, x, other)])[1].wait()
dist.all_reduce(torch.ones(3_000_000), async_op=True).get_future().then(lambda done: None)""",
}


@pytest.mark.parametrize("end", ENDS)
def test_end(end):
    """Processes end with status 0 and say nothing, whether they end their groups or not."""
    program = f"""
import sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist, collcomp.torch as cc
store = dist.TCPStore("127.0.0.1", int(sys.argv[2]))
dist.init_process_group("collcomp", store=store, rank=int(sys.argv[1]), world_size=2)
x = torch.ones(300)
{ENDS[end]}
"""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [
        subprocess.Popen([sys.executable, "-c", program, str(rank), str(store.port)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = []
    for rank in ranks:
        try:
            said.append(rank.communicate(timeout=60)[1])
        except subprocess.TimeoutExpired:
            rank.kill()
            said.append("hangs")
    assert [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)] == [(0, "")] * 2
