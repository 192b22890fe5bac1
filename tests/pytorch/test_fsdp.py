"""FSDP2, ZeRO-1 and DDP over compressed collectives, beside what they give uncompressed."""

# ruff: noqa: E402

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
from helpers import BF16, F32, UNIT, assert_within, operands, peak, reduction_bound
from spawn import run
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from values import array_of, bits, tensor_of

from collcomp.torch import AllGather, ReduceScatter, records, set_codec, use_codec
from collcomp.torch.engine import engine_of

ROWS, COLUMNS = 50, 13  # not to be divided by 3


class Product(torch.nn.Module):
    """Of a vector and a matrix, whose gradient is the outer product of the vector and ones."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(tensor_of(operands(1, ROWS * COLUMNS, F32)[0]).reshape(ROWS, COLUMNS))

    def forward(self, x):
        return x.to(self.weight.dtype) @ self.weight


def vector(rank, step):
    return operands(rank + 1, ROWS, F32, seed=10 + step)[rank]


def gradient(size, step):
    """The mean over the ranks, and each rank's, all of float64."""
    each = [np.outer(vector(rank, step).astype(float), np.ones(COLUMNS)) for rank in range(size)]
    return sum(each) / size, each


def sharded(size, **options):
    """A model with one layer, which is not the root: FSDP keeps the root's parameters after the forward pass."""
    mesh = init_device_mesh("cpu", (size,))
    model = torch.nn.Sequential(Product())
    fully_shard(model[0], mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def output_of(model, rank, step):
    return model(tensor_of(vector(rank, step)))


def whole_gradient(model):
    with use_codec(None) if dist.get_backend() == "collcomp" else torch.no_grad():
        return next(model.parameters()).grad.full_tensor()


def collectives(rank, size):
    """AllGather and ReduceScatter in place of FSDP's own."""
    weight = operands(1, ROWS * COLUMNS, F32)[0]
    group = init_device_mesh("cpu", (size,)).get_group()
    for reshard in (True, False):
        model = sharded(size, reshard_after_forward=reshard)
        model[0].set_custom_all_gather(AllGather("int8", min_nbytes=0))
        model[0].set_custom_reduce_scatter(ReduceScatter("int4", min_nbytes=0))
        before = len(engine_of(group).records)
        for step in range(2):
            model.zero_grad()
            output = output_of(model, rank, step)
            exact = vector(rank, step).astype(float) @ weight.reshape(ROWS, COLUMNS)
            # Each weight is rounded once, by at most half a step of its block.
            once = peak(weight) / 127 / 2 * (1 + 2.0**-13)
            tolerance = once * np.abs(vector(rank, step)).sum() + ROWS * 2 * UNIT[F32]
            assert_within(array_of(output), exact, tolerance, f"step {step}")
            assert peak(array_of(output) - exact) > 100 * UNIT[F32]  # it was compressed
            output.sum().backward()
            mean, each = gradient(size, step)
            limit = reduction_bound("int4", [x.astype("f4").reshape(-1) for x in each], "avg", "", F32)
            assert_within(array_of(whole_gradient(model)), mean, limit, f"step {step}")
        done = [(r.collective, r.codec) for r in list(engine_of(group).records)[before:]]
        gathers = done.count(("allgather", "int8"))
        assert gathers == (4 if reshard else 2), done
        assert done.count(("reduce_scatter", "int4")) == 2
        # The shards themselves stay exact.
        with torch.no_grad():
            whole = torch.cat([torch.empty(0), *_shards(model, size)])
        assert bits(whole[: weight.size]) == weight.tobytes()

    # Mixed precision: what is sent is bfloat16 before it is compressed.
    model = sharded(size, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    model[0].set_custom_all_gather(AllGather("int8", min_nbytes=0))
    model[0].set_custom_reduce_scatter(ReduceScatter("int8", min_nbytes=0))
    before = len(engine_of(group).records)
    output = output_of(model, rank, 0)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    mean, each = gradient(size, 0)
    limit = reduction_bound("int8", [x.astype("f4").reshape(-1) for x in each], "avg", "", F32)
    assert_within(array_of(whole_gradient(model)), mean, limit + 2 * UNIT[BF16] * peak(mean) + UNIT[BF16], "bf16")
    sent = {r.collective: r.nbytes for r in list(engine_of(group).records)[before:]}
    rows = -(-ROWS // size)
    assert sent["allgather"] == 2 * rows * COLUMNS
    assert sent["reduce_scatter"] == 4 * rows * COLUMNS * size

    # With feedback no gradient is lost.
    model = sharded(size)
    model[0].set_custom_reduce_scatter(ReduceScatter("int4:feedback", key="product", min_nbytes=0))
    got, true = np.zeros((ROWS, COLUMNS)), np.zeros((ROWS, COLUMNS))
    for step in range(6):
        model.zero_grad()
        output_of(model, rank, step).sum().backward()
        got += array_of(whole_gradient(model))
        true += gradient(size, step)[0]
    left = engine_of(group).residuals.state_dict()["residuals"]["product"].astype(float)
    found = [None] * size
    dist.all_gather_object(found, left)
    left = (sum(found) / size)[: ROWS * COLUMNS].reshape(ROWS, COLUMNS)
    assert_within(got + left, true, 200 * UNIT[F32], "what is lost")
    assert left.any()

    # Too small, or not of one kind: as it is.
    model = sharded(size)
    model[0].set_custom_all_gather(AllGather("int8"))
    model[0].set_custom_reduce_scatter(ReduceScatter("int8"))
    output_of(model, rank, 0).sum().backward()
    assert_within(array_of(whole_gradient(model)), gradient(size, 0)[0], 4 * UNIT[F32], "native")
    return bits(whole_gradient(model))


def _shards(model, size):
    mine = model[0].weight.to_local().reshape(-1)
    parts = [None] * size
    dist.all_gather_object(parts, mine)
    return parts


def of_the_group(rank, size):
    """FSDP, ZeRO-1 and DDP on a group with codecs of its own, and nothing said to them."""
    weight = operands(1, ROWS * COLUMNS, F32)[0].reshape(ROWS, COLUMNS)
    set_codec(None, {"reduce_scatter": "int8", "all_gather": "int8"}, min_nbytes=0)
    model = Product()
    fully_shard(model)
    output = output_of(model, rank, 0)
    once = peak(weight) / 127 / 2 * (1 + 2.0**-13)
    exact = vector(rank, 0).astype(float) @ weight
    assert_within(array_of(output), exact, once * np.abs(vector(rank, 0)).sum() + ROWS * 2 * UNIT[F32], "output")
    assert peak(array_of(output) - exact) > 100 * UNIT[F32]
    output.sum().backward()
    mean, each = gradient(size, 0)
    limit = reduction_bound("int8", [x.astype("f4").reshape(-1) for x in each], "avg", "", F32)
    assert_within(array_of(whole_gradient(model)), mean, limit, "gradient")
    assert {("allgather", "int8"), ("reduce_scatter", "int8")} <= {(r.collective, r.codec) for r in records()}

    set_codec(None, "int8", min_nbytes=0)
    model = DistributedDataParallel(Product())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=1.0)
    limits = 0.0
    expected = weight.astype(float)
    for step in range(3):
        optimizer.zero_grad()
        output_of(model, rank, step).sum().backward()
        mean, each = gradient(size, step)
        # DDP divides before it sums.
        limits += reduction_bound("int8", [(x / size).astype("f4").reshape(-1) for x in each], "sum", "direct", F32)
        optimizer.step()
        expected = expected - mean
        assert_within(
            array_of(model.module.weight), expected, limits + 8 * (step + 1) * UNIT[F32] * size, f"ZeRO {step}"
        )
    assert records()[-1].codec == "int8"
    return bits(model.module.weight)


@pytest.mark.parametrize(("size", "backend"), [(2, "gloo"), (3, "collcomp")])
def test_fsdp_with_collectives_of_its_own(size, backend):
    first, *others = run(size, collectives, size, backend=backend)
    assert all(other == first for other in others)


def test_codecs_of_the_group():
    first, *others = run(2, of_the_group, 2)
    assert all(other == first for other in others)
