"""A process group of ranks that MPI started: nothing in the environment, and frames over MPI."""

# ruff: noqa: E402

import os

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import torch.distributed as dist
from helpers import F32, assert_within, operands, reduction_bound, reference
from torch.nn.parallel import DistributedDataParallel

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture
def group(world, monkeypatch):
    """The default group of all ranks."""
    import collcomp.torch

    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    torch.set_num_threads(1)
    dist.init_process_group("collcomp")
    collcomp.torch.set_codec(None, "int8", min_nbytes=0)
    yield dist.group.WORLD
    world.Barrier()
    dist.destroy_process_group()


def transports(engine):
    return engine._transport, engine.messages._transport


def over_mpi(engine):
    """Whether no frame goes over TCP."""
    from collcomp.transports.tcp import TcpTransport

    return not any(isinstance(transport, TcpTransport) for transport in transports(engine))


def check(tensor, xs, op):
    bound = reduction_bound("int8", xs, op, "direct", F32)
    assert_within(tensor.detach().numpy().reshape(-1), reference(xs, op), bound, op)


def test_process_group(group, world):
    from collcomp.torch import ddp_hook, records, set_codec, use_codec
    from collcomp.transports.mpi import MpiTransport

    rank, size = world.rank, world.size
    assert (dist.get_rank(), dist.get_world_size()) == (rank, size)
    assert over_mpi(group.engine)
    assert isinstance(transports(group.engine)[1], MpiTransport)
    assert "MASTER_PORT" not in os.environ

    xs = operands(size, 3000)
    tensor = torch.from_numpy(xs[rank].copy())
    dist.all_reduce(tensor)
    check(tensor, xs, "sum")
    assert len(set(world.allgather(tensor.numpy().tobytes()))) == 1
    assert records()[-1].codec == ("int8" if size > 1 else "identity")

    with use_codec({"send": "int8"}):
        found = torch.empty(3000)
        receive = dist.irecv(found, (rank - 1) % size) if size > 1 else None
        if receive is not None:
            dist.isend(torch.from_numpy(xs[rank]), (rank + 1) % size).wait()
            receive.wait()
            assert_within(found.numpy(), xs[rank - 1].astype(float), 1 / 127, "message")

    # Ranks of a group that are not MPI's first ones, in an order of their own.
    some = list(range(size))[::-1][: max(1, size - 1)]
    part = dist.new_group(some)
    if rank in some:
        set_codec(part, "int8", min_nbytes=0)
        assert over_mpi(part.engine)
        tensor = torch.from_numpy(xs[rank].copy())
        dist.all_reduce(tensor, dist.ReduceOp.AVG, group=part)
        check(tensor, [xs[i] for i in some], "avg")
        dist.destroy_process_group(part)
    dist.barrier()

    layer = torch.nn.Linear(60, 50, bias=False)
    model = DistributedDataParallel(layer)
    hook = ddp_hook("int4", named_parameters=layer.named_parameters(), min_nbytes=0)
    assert over_mpi(hook._engine)
    model.register_comm_hook(None, hook)
    given = [operands(size, 60, seed=step) for step in range(4)]
    got = np.zeros((50, 60))
    for step in range(4):
        model.zero_grad()
        model(torch.from_numpy(given[step][rank])).sum().backward()
        got += layer.weight.grad.numpy()
    waiting = [np.zeros(3000)]
    if size > 1:
        waiting = world.allgather(hook.state_dict()["memory"]["residuals"]["weight"].double().numpy())
    true = sum(np.mean([np.outer(np.ones(50), x) for x in step], 0) for step in given)
    assert_within(got + np.mean(waiting, 0).reshape(50, 60), true, 1e-5, "what is lost")
    hook.close()
