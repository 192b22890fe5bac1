"""What PyTorch asks of a process group that is written in Python: the same answers as gloo's, by every way to it."""

import os
import subprocess
import sys
import textwrap
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from spawn import run
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.distributed_c10d import _abort_process_group, _resolve_process_group
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

import collcomp.torch
from collcomp.torch.options import _COLLECTIVES as OPERATIONS

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool]


def operand(rank, *shape, dtype=torch.float32):
    """Values that every dtype has, and whose sums are exact."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * (rank + 1)) % 7).reshape(shape).to(dtype)


# Each calls one function of torch.distributed, and returns what the rank gets.


def all_reduce(rank, size, dtype):
    tensor = operand(rank, 3, 5, dtype=dtype)
    dist.all_reduce(tensor)
    return tensor


def all_reduce_max(rank, size, dtype):
    tensor = operand(rank, 3, 5, dtype=dtype)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def all_reduce_strided(rank, size, dtype):
    tensor = operand(rank, 4, 6, dtype=dtype)
    dist.all_reduce(tensor.as_strided((6, 4), (1, 6)))  # dense, but the transpose of what is contiguous
    return tensor


def all_reduce_empty(rank, size, dtype):
    tensor = torch.empty(0, dtype=dtype)
    dist.all_reduce(tensor)
    return tensor


def all_reduce_async(rank, size, dtype):
    tensor = operand(rank, 100, dtype=dtype)
    work = dist.all_reduce(tensor, async_op=True)
    assert work.wait()
    assert work.is_completed()
    return tensor


def all_reduce_future(rank, size, dtype):
    tensor = operand(rank, 100, dtype=dtype)
    future = dist.all_reduce(tensor, async_op=True).get_future()
    return future.then(lambda done: done.value()[0] + done.value()[0]).wait()


def all_reduce_many(rank, size, dtype):
    """Several under way at once, waited for in another order."""
    tensors = [operand(rank, n, dtype=dtype) for n in (1, 1000, 10)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work in reversed(works):
        work.wait()
    return tensors


def all_reduce_coalesced(rank, size, dtype):
    tensors = [operand(rank, n, dtype=dtype) for n in (3, 5)]
    with pytest.warns(FutureWarning):
        dist.all_reduce_coalesced(tensors)
    return tensors


def broadcast(rank, size, dtype):
    tensor = operand(rank, 9, dtype=dtype)
    dist.broadcast(tensor, src=size - 1)
    return tensor


def reduce(rank, size, dtype):
    tensor = operand(rank, 9, dtype=dtype)
    dist.reduce(tensor, dst=1)
    return tensor if rank == 1 else None


def all_gather(rank, size, dtype):
    tensors = [torch.empty(4, dtype=dtype) for _ in range(size)]
    dist.all_gather(tensors, operand(rank, 4, dtype=dtype))
    return tensors


def all_gather_into_tensor(rank, size, dtype):
    whole = torch.empty(size * 4, dtype=dtype)
    dist.all_gather_single(whole, operand(rank, 4, dtype=dtype))
    return whole


def all_gather_coalesced(rank, size, dtype):
    parts = [operand(rank, n, dtype=dtype) for n in (3, 5)]
    return [part.clone() for part in functional.all_gather_single_coalesced(parts, dist.group.WORLD)]


def gather(rank, size, dtype):
    tensors = [torch.empty(4, dtype=dtype) for _ in range(size)] if rank == 1 else None
    dist.gather(operand(rank, 4, dtype=dtype), tensors, dst=1)
    return tensors


def scatter(rank, size, dtype):
    tensor = torch.empty(4, dtype=dtype)
    dist.scatter(tensor, [operand(part, 4, dtype=dtype) for part in range(size)] if rank == 1 else None, src=1)
    return tensor


def reduce_scatter(rank, size, dtype):
    tensor = torch.empty(4, dtype=dtype)
    dist.reduce_scatter(tensor, [operand(rank + part, 4, dtype=dtype) for part in range(size)])
    return tensor


def reduce_scatter_tensor(rank, size, dtype):
    tensor = torch.empty(4, dtype=dtype)
    dist.reduce_scatter_single(tensor, operand(rank, size * 4, dtype=dtype))
    return tensor


def reduce_scatter_coalesced(rank, size, dtype):
    parts = [operand(rank, size * n, dtype=dtype) for n in (3, 5)]
    scattered = functional.reduce_scatter_single_coalesced(parts, "sum", [0, 0], dist.group.WORLD)
    return [part.clone() for part in scattered]


def all_to_all_single(rank, size, dtype):
    tensor = torch.empty(size * 2, 3, dtype=dtype)
    dist.all_to_all_single(tensor, operand(rank, size * 2, 3, dtype=dtype))
    return tensor


def all_to_all_uneven(rank, size, dtype):
    """Rank r sends i + 1 rows to rank i."""
    counts = [part + 1 for part in range(size)]
    tensor = torch.empty(size * (rank + 1), 3, dtype=dtype)
    dist.all_to_all_single(tensor, operand(rank, sum(counts), 3, dtype=dtype), [rank + 1] * size, counts)
    return tensor


def send_recv(rank, size, dtype):
    tensor = operand(rank, 6, dtype=dtype)
    if rank == 0:
        dist.send(tensor, 1, tag=3)
    elif rank == 1:
        assert dist.recv(tensor, 0, tag=3) == 0
    return tensor


def recv_anysource(rank, size, dtype):
    tensor = operand(rank, 6, dtype=dtype)
    if rank == 1:
        dist.send(tensor, 0, tag=5)
    elif rank == 0:
        assert dist.recv(tensor, tag=5) == 1
    return tensor


def batch_isend_irecv(rank, size, dtype):
    tensor = torch.empty(6, dtype=dtype)
    following = dist.P2POp(dist.isend, operand(rank, 6, dtype=dtype), (rank + 1) % size)
    previous = dist.P2POp(dist.irecv, tensor, (rank - 1) % size)
    for work in dist.batch_isend_irecv([following, previous]):
        work.wait()
    return tensor


def objects(rank, size, dtype):
    gathered = [None] * size
    dist.all_gather_object(gathered, {"rank": rank, "values": operand(rank, 3, dtype=dtype)})
    first = [f"from {rank}"]
    dist.broadcast_object_list(first, src=0)
    return [gathered[-1]["values"]], first


def functional_all_reduce(rank, size, dtype):
    return functional.all_reduce(operand(rank, 9, dtype=dtype), "sum", dist.group.WORLD) + 0


def functional_all_gather(rank, size, dtype):
    return functional.all_gather_single(operand(rank, 2, 3, dtype=dtype), 1, dist.group.WORLD) + 0


def functional_reduce_scatter(rank, size, dtype):
    return functional.reduce_scatter_single(operand(rank, 2 * size, dtype=dtype), "sum", 0, dist.group.WORLD) + 0


def functional_all_to_all(rank, size, dtype):
    return functional.all_to_all_single(operand(rank, 2 * size, dtype=dtype), None, None, dist.group.WORLD) + 0


def functional_broadcast(rank, size, dtype):
    return functional.broadcast(operand(rank, 9, dtype=dtype), 1, dist.group.WORLD) + 0


COLLECTIVES = [
    all_reduce, all_reduce_max, all_reduce_strided, all_reduce_empty, all_reduce_async, all_reduce_future,
    all_reduce_many, all_reduce_coalesced, broadcast, reduce, all_gather, all_gather_into_tensor, all_gather_coalesced,
    gather, scatter, reduce_scatter, reduce_scatter_tensor, reduce_scatter_coalesced, all_to_all_single,
    all_to_all_uneven, send_recv, recv_anysource, batch_isend_irecv, objects, functional_all_reduce,
    functional_all_gather, functional_reduce_scatter, functional_all_to_all, functional_broadcast,
]  # fmt: skip


def answers(rank, size, dtype, collectives):
    found = {collective.__name__: collective(rank, size, dtype) for collective in collectives}
    return tree_map_only(torch.Tensor, lambda tensor: (tensor.dtype, tensor.tolist()), found)


def lossless(rank, function, *args):
    """What `function` returns where the engine does every operation that it knows."""
    collcomp.torch.set_codec(None, dict.fromkeys(OPERATIONS, "planes"), min_nbytes=0)
    result = function(rank, *args)
    assert any(record.codec == "planes" for record in collcomp.torch.records())
    return result


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_collectives_answer_as_gloo(size, dtype):
    expected = run(size, answers, size, dtype, COLLECTIVES, backend="gloo")
    assert run(size, answers, size, dtype, COLLECTIVES) == expected
    from_named_ranks = [collective for collective in COLLECTIVES if collective is not recv_anysource]
    for ours, theirs in zip(run(size, lossless, answers, size, dtype, from_named_ranks), expected, strict=True):
        assert ours == {name: theirs[name] for name in ours}


# Groups.


def names(rank):
    world = dist.group.WORLD
    assert dist.get_backend() == "collcomp"
    assert (dist.get_rank(), dist.get_world_size()) == (rank, world.size())
    assert world.group_desc == "default_pg"
    assert _resolve_process_group(world.group_name) is world
    pair = dist.new_group([0, 2], group_desc="ends")
    if rank != 1:
        assert dist.get_backend(pair) == "collcomp"
        assert (pair.rank(), pair.size(), pair.group_desc) == (rank // 2, 2, "ends")
        assert type(pair) is type(world)
        assert _resolve_process_group(pair.group_name) is pair
        assert pair.group_name != world.group_name


def test_groups_have_names():
    run(3, names)


def subgroups(rank):
    """Collectives of several groups interleave, also with ones that some ranks are not in."""
    everybody, pair, self = torch.ones(10), torch.ones(10), torch.ones(10)
    ends, alone = dist.new_group([0, 2]), dist.new_group([rank], use_local_synchronization=True)
    works = [dist.all_reduce(everybody, async_op=True)]
    if rank != 1:
        works.append(dist.all_reduce(pair, group=ends, async_op=True))
    works.append(dist.all_reduce(self, group=alone, async_op=True))
    for work in works:
        work.wait()
    if rank != 1:
        dist.broadcast(everybody, src=2, group=ends)
        dist.destroy_process_group(ends)
    dist.barrier()
    return [float(tensor[0]) for tensor in (everybody, pair, self)]


def test_subgroups():
    assert run(3, subgroups) == [[3, 2, 1], [3, 1, 1], [3, 2, 1]]


def lives(rank):
    """Groups can be made anew after all were destroyed or aborted."""
    root = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]))
    for life, end in enumerate([dist.destroy_process_group, _abort_process_group, dist.destroy_process_group]):
        dist.init_process_group("collcomp", store=dist.PrefixStore(str(life), root), rank=rank, world_size=2)
        tensor = torch.ones(10)
        dist.all_reduce(tensor)
        assert float(tensor[0]) == 2
        dist.barrier()
        end()
    return life


def test_groups_end_and_begin_again():
    assert run(2, lives, backend=None) == [2, 2]


@pytest.mark.parametrize("end", ["", "dist.destroy_process_group()", "dist.group.WORLD.shutdown()"])
def test_interpreter_ends(end):
    """Whether or not the program ends its group, no thread of it keeps the interpreter or makes it crash."""
    program = f"""
        import torch, torch.distributed as dist, collcomp.torch
        dist.init_process_group("collcomp", store=dist.HashStore(), rank=0, world_size=1)
        tensor = torch.ones(1000)
        dist.all_reduce(tensor, async_op=True).wait()
        assert float(tensor[0]) == 1
        {end}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def timeouts(rank):
    """What nobody answers raises on the rank that waits, in the time of its group."""
    group = dist.new_group(timeout=timedelta(seconds=1))
    if rank == 0:
        start = time.monotonic()
        with pytest.raises(RuntimeError):
            dist.all_reduce(torch.ones(10), group=group)
        assert 0.5 < time.monotonic() - start < 10
    dist.barrier()


def test_timeouts():
    run(2, timeouts)


# Training.


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 5))


def train(rank, network, optimizer, steps=3):
    torch.manual_seed(10 + rank)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()


def plain(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


def ddp(rank, options):
    model = DistributedDataParallel(network(), **options)
    with model.join():
        train(rank, model, torch.optim.SGD(model.parameters(), 0.1), steps=3 + rank)
    return plain(model)


def ddp_no_sync(rank):
    model = DistributedDataParallel(network())
    with model.no_sync():
        model(torch.full((8, 20), rank + 1.0)).square().mean().backward()
    train(rank, model, torch.optim.SGD(model.parameters(), 0.1))
    return plain(model)


def zero(rank):
    model = DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.1)
    train(rank, model, optimizer)
    return plain(model)


def fsdp(rank):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = network()
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(rank, model, torch.optim.Adam(model.parameters(), 0.1))
    return [parameter.full_tensor().detach() for parameter in model.parameters()]


def dtensor(rank):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    left = distribute_tensor(operand(0, 6, 8), mesh, [Shard(1)])
    right = distribute_tensor(operand(1, 8, 4), mesh, [Shard(0)])
    return [(left @ right).full_tensor(), left.redistribute(mesh, [Shard(0)]).to_local()]


def ddp_hook(rank, hook, state):
    model = DistributedDataParallel(network())
    model.register_comm_hook(state, hook)
    train(rank, model, torch.optim.SGD(model.parameters(), 0.1))
    return plain(model)


def assert_same(function, *args):
    """What gloo gives, to the last bit."""
    expected = run(2, function, *args, backend="gloo")
    for found in (run(2, function, *args), run(2, lossless, function, *args)):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"find_unused_parameters": True},
        {"bucket_cap_mb": 0.001},
    ],
    ids=str,
)
def test_ddp(options):
    assert_same(ddp, options)


@pytest.mark.parametrize("hook", [default_hooks.allreduce_hook, default_hooks.fp16_compress_hook])
def test_ddp_hooks(hook):
    assert_same(ddp_hook, hook, None)


@pytest.mark.parametrize("training", [ddp_no_sync, zero, fsdp, dtensor])
def test_training(training):
    assert_same(training)
