"""Without a codec a group gives what a gloo group of the same processes gives, bit for bit.

`test_python_group.py` asks each function of torch.distributed once; here are operations, dtypes, and ranks that do not
come.
"""

# ruff: noqa: E402

import time
from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
from spawn import run
from torch.distributed.tensor import init_device_mesh
from torch.utils._pytree import tree_map_only
from values import bits

import collcomp.torch

OPS = ("SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool)


def values(rank, dtype, *shape):
    generator = torch.Generator().manual_seed(rank)
    return (torch.randn(shape, generator=generator) * 50).to(dtype)


def reductions(rank, size, group):
    """All that gloo takes: it refuses the others before anything is sent."""
    found = {}
    for op in OPS:
        for dtype in (*FLOATS, *INTEGERS, torch.complex64):
            if (dtype in INTEGERS and op == "AVG") or (dtype not in INTEGERS and op.startswith("B")):
                continue
            if dtype.is_complex and op not in ("SUM", "AVG"):
                continue
            chosen = getattr(dist.ReduceOp, op)
            whole, part = values(rank, dtype, 3 * size, 5), torch.zeros(3, 5, dtype=dtype)
            everywhere, somewhere = whole.clone(), whole.clone()
            dist.all_reduce(everywhere, chosen, group=group)
            dist.reduce(somewhere, size - 1, chosen, group=group)
            dist.reduce_scatter_single(part, whole, chosen, group=group)
            listed = torch.zeros(3, 5, dtype=dtype)
            dist.reduce_scatter(listed, list(whole.split(3)), chosen, group=group)
            found[op, dtype] = everywhere, somewhere if rank == size - 1 else None, part, listed
    return found


def moves(rank, size, group):
    found = {}
    for dtype in (*FLOATS, *INTEGERS):
        mine = values(rank, dtype, 4, 3)
        inside = torch.zeros(4 * size, 3, dtype=dtype)
        inside[4 * rank : 4 * (rank + 1)] = mine
        dist.all_gather_single(inside, inside[4 * rank : 4 * (rank + 1)], group=group)
        listed = [torch.zeros(2, 3, dtype=dtype) for _ in range(size)]
        dist.all_to_all(listed, [values(rank + i, dtype, 2, 3) for i in range(size)], group=group)
        across = [torch.zeros(3, 4, dtype=dtype) for _ in range(size)]
        dist.all_gather(across, mine.t(), group=group)
        gathered = torch.zeros(size, 4, 3, dtype=dtype)
        dist.all_gather_single(gathered, mine[None], group=group)
        found[dtype] = inside, listed, across, gathered
    return found


def messages(rank, size, group):
    following, previous = (rank + 1) % size, (rank - 1) % size
    first, second = torch.zeros(5), torch.zeros(7)
    works = [
        dist.irecv(second, previous, group, tag=2), dist.irecv(first, previous, group, tag=1),
        dist.isend(values(rank, torch.float32, 5), following, group, tag=1),
        dist.isend(values(rank, torch.float32, 7), following, group, tag=2),
    ]  # fmt: skip
    for work in works:
        work.wait()
    sources = []
    if rank == 0:
        room = torch.zeros(3)
        for _ in range(1, size):
            sources.append(dist.recv(room, group=group, tag=9))
            assert room.tolist() == [sources[-1]] * 3
    else:
        dist.send(torch.full((3,), float(rank)), 0, group, tag=9)
    return first, second, sorted(sources)


def objects(rank, size, group):
    gathered = [None] * size if rank == 1 else None
    dist.gather_object({"rank": rank}, gathered, dst=1, group=group)
    scattered = [None]
    dist.scatter_object_list(scattered, [f"for {i}" for i in range(size)] if rank == 1 else None, src=1, group=group)
    everywhere = [None] * size
    dist.all_gather_object(everywhere, ("a", rank), group=group)
    said = [rank, "said"]
    dist.broadcast_object_list(said, src=1, group=group)
    return gathered, scattered, everywhere, said


def works(rank, size, group):
    tensor = values(rank, torch.float32, 1000)
    work = dist.all_reduce(tensor, group=group, async_op=True)
    future = work.get_future().then(lambda done: done.value()[0] + 1)
    assert work.wait()
    assert work.is_completed()
    assert work.is_success()
    assert dist.barrier(group=group, async_op=True).wait()
    dist.monitored_barrier(group=group, timeout=timedelta(seconds=20))
    return tensor, future.wait()


WAYS = (reductions, moves, messages, objects, works)


def both(rank, size):
    """Each way by groups of both backends, over all ranks and over some, whose ranks differ."""
    gloo = dist.new_group(backend="gloo")
    assert dist.get_backend() == "collcomp"
    assert dist.get_backend(gloo) == "gloo"
    for way in WAYS:
        expected, found = way(rank, size, gloo), way(rank, size, dist.group.WORLD)
        plain = tree_map_only(torch.Tensor, bits_of, (expected, found))
        assert plain[0] == plain[1], way.__name__
    rows = init_device_mesh("cpu", (1, size), mesh_dim_names=("outer", "inner"))
    assert isinstance(rows.get_group("inner"), collcomp.torch.ProcessGroup)
    plain = tree_map_only(
        torch.Tensor, bits_of, (reductions(rank, size, rows.get_group("inner")), reductions(rank, size, gloo))
    )
    assert plain[0] == plain[1]
    assert rows.get_group("outer").size() == 1
    tensor = torch.full((5,), rank + 1.0)
    dist.all_reduce(tensor, group=rows.get_group("outer"))
    assert tensor.tolist() == [rank + 1.0] * 5
    # Nothing of all this was of the engine, which has connected nobody.
    assert dist.group.WORLD._engine is None


def bits_of(tensor):
    return tensor.dtype, tuple(tensor.shape), bits(torch.view_as_real(tensor) if tensor.is_complex() else tensor)


def absent(rank, size):
    """A barrier that says who has not come."""
    gloo = dist.new_group(backend="gloo")
    ours = dist.new_group()
    for group in (gloo, ours):
        if rank == 0:
            started = time.monotonic()
            with pytest.raises(RuntimeError, match=r"[Rr]ank 1 failed to pass monitoredBarrier"):
                dist.monitored_barrier(group, timedelta(seconds=1))
            assert time.monotonic() - started < 15
        elif rank == 2:
            with pytest.raises(RuntimeError):
                dist.monitored_barrier(group, timedelta(seconds=1))
        dist.barrier()
    with pytest.raises(TypeError):
        dist.monitored_barrier(ours, 1)


@pytest.mark.parametrize("size", [2, 3])
def test_as_gloo(size):
    run(size, both, size)


def test_a_rank_that_does_not_come():
    run(3, absent, 3)
