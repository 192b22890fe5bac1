"""What a process group compresses: results within the codec's bound, equal on all ranks, and what stays as it is."""

# ruff: noqa: E402

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from helpers import BF16, F16, F32, F64, operands
from spawn import run
from values import bits, check_moved, check_reduced, given, tensor_of

from collcomp.torch import Options, load_state_dict, records, set_codec, state_dict, use_codec

COUNTS = (0, 1, 7, 1001)
EVERYTHING = ("all_reduce", "reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "gather", "scatter")


def last(group=None):
    return records(group)[-1]


def check_last(spec, collective):
    """The last operation was `collective`, compressed."""
    record = last()
    assert (record.codec, record.collective) == (spec, collective), record
    assert record.algorithm != "native", record


def all_equal(found):
    """Every rank returned the same bits under each name."""
    for name in found[0]:
        assert all(mine[name] == found[0][name] for mine in found), name


# Reductions.


def reductions(rank, size, kinds):
    equal = {}
    for spec, dtype in kinds:
        set_codec(None, spec, min_nbytes=0)
        for count in COUNTS:
            # Blocks of integers do not keep the order of values; casts do.
            for op in ("sum", "avg", "max", "min") if spec in ("fp16", "bf16") else ("sum", "avg"):
                torch_op = getattr(dist.ReduceOp, op.upper())
                tensor, xs = given(rank, size, count, dtype)
                dist.all_reduce(tensor, torch_op)
                check_last(spec, "allreduce")
                check_reduced(tensor, spec, xs, op)
                equal[spec, str(dtype), count, op] = bits(tensor)

                tensor, xs = given(rank, size, count, dtype)
                dist.reduce(tensor, size - 1, torch_op)
                check_last(spec, "reduce")
                if rank == size - 1:
                    check_reduced(tensor, spec, xs, op)
                else:
                    assert bits(tensor) == xs[rank].tobytes()

                whole, xs = given(rank, size, count * size, dtype)
                mine = slice(rank * count, (rank + 1) * count)
                part = torch.empty(count, dtype=whole.dtype)
                dist.reduce_scatter_single(part, whole, torch_op)
                check_last(spec, "reduce_scatter")
                check_reduced(part, spec, xs, op, mine)
                listed = torch.empty(count, dtype=whole.dtype)
                dist.reduce_scatter(listed, list(whole.split(count)) if count else [whole] * size, torch_op)
                check_last(spec, "reduce_scatter")
                assert bits(listed) == bits(part)
    return equal


@pytest.mark.parametrize(
    ("size", "kinds"),
    [
        (2, [("int8", F32), ("int8", F64), ("fp16", F64), ("int4", F16)]),
        (3, [("int8", F32), ("int8", BF16), ("bf16", F32)]),
    ],
    ids=["2", "3"],
)
def test_reductions(size, kinds):
    all_equal(run(size, reductions, size, kinds))


def forms_of_reductions(rank, size):
    """Coalesced, functional, gaps between elements, gradients: all are what the plain call is."""
    equal = {}
    set_codec(None, "int8", min_nbytes=0)
    (a, xs), (_, ys) = given(rank, size, 300, F32), given(rank, size, 7, F32)
    joined = [tensor_of(x) for x in (xs[rank], ys[rank])]
    with pytest.warns(FutureWarning):
        dist.all_reduce_coalesced(joined)
    check_last("int8", "allreduce")
    check_reduced(torch.cat(joined), "int8", [np.concatenate(pair) for pair in zip(xs, ys, strict=True)])  # one message
    equal["coalesced"] = bits(torch.cat(joined))

    dist.all_reduce(a)
    found = functional.all_reduce(tensor_of(xs[rank]), "sum", dist.group.WORLD) + 0
    check_last("int8", "allreduce")
    assert bits(found) == bits(a)

    gaps = torch.zeros(300, 2)
    gaps[:, 0] = tensor_of(xs[rank])
    dist.all_reduce(gaps[:, 0])
    assert bits(gaps[:, 0]) == bits(a)
    assert not gaps[:, 1].any()

    transposed = tensor_of(xs[rank]).reshape(20, 15).t()
    dist.all_reduce(transposed)
    assert bits(transposed.t()) == bits(a)

    leaf = tensor_of(xs[rank]).requires_grad_()
    dist.all_reduce(leaf.mul(1))
    check_last("int8", "allreduce")
    with torch.no_grad():
        dist.all_reduce(leaf)
    assert leaf.requires_grad
    assert bits(leaf) == bits(a)

    # Results go where the indices of an output say, not where they would lie one after another.
    whole, _ = given(rank, size, 6 * size, F32)
    expected, found = torch.empty(2, 3), torch.empty(3, 2).t()
    dist.reduce_scatter_single(expected, whole.reshape(2 * size, 3))
    dist.reduce_scatter_single(found, whole.reshape(2 * size, 3))
    assert bits(found) == bits(expected)
    found.zero_()
    dist.reduce_scatter(found, list(whole.reshape(size, 2, 3)))
    assert bits(found) == bits(expected)
    own = whole.clone().split(6)[rank]  # an output that lies in the input
    inside = own._base
    dist.reduce_scatter_single(own, inside)
    assert bits(own) == bits(expected)

    small, _ = given(rank, size, size, F32)
    alone = torch.empty(1)
    dist.reduce_scatter_single(alone, small)
    before = len(records())
    parts = functional.reduce_scatter_single_coalesced([whole, small], "sum", [0, 0], dist.group.WORLD)
    assert [bits(part + 0) for part in parts] == [bits(expected), bits(alone)]
    assert [record.codec for record in records()][before:] == ["int8"] * 2
    dist.all_reduce(torch.tensor(float(rank)))  # without dimensions
    check_last("int8", "allreduce")
    return equal


def test_forms_of_reductions():
    all_equal(run(2, forms_of_reductions, 2))


# What only moves.


def moves(rank, size, spec, dtype):
    equal = {}
    set_codec(None, dict.fromkeys(EVERYTHING, spec), min_nbytes=0)
    root = size - 1
    for count in COUNTS:
        tensor, xs = given(rank, size, count, dtype)
        dist.broadcast(tensor, root)
        check_last(spec, "bcast")
        check_moved(tensor, spec, xs[root])
        equal["broadcast", count] = bits(tensor)

        mine, xs = given(rank, size, count, dtype)
        whole = torch.empty(size * count, dtype=mine.dtype)
        dist.all_gather_single(whole, mine)
        check_last(spec, "allgather")
        for i, x in enumerate(xs):
            check_moved(whole[i * count : (i + 1) * count], spec, x)
        equal["all_gather", count] = bits(whole)
        listed = [torch.empty_like(mine) for _ in xs]
        dist.all_gather(listed, mine)
        check_last(spec, "allgather")
        assert bits(torch.cat(listed)) == bits(whole)
        # In place: the input is this rank's block of the output.
        inside = torch.zeros_like(whole)
        block = inside[rank * count : (rank + 1) * count]
        block.copy_(mine)
        dist.all_gather_single(inside, block)
        check_last(spec, "allgather")
        assert bits(inside) == bits(whole)

        listed = [torch.empty_like(mine) for _ in xs] if rank == root else None
        dist.gather(mine, listed, root)
        check_last(spec, "gather")
        for part, x in zip(listed or (), xs, strict=False):
            check_moved(part, spec, x)

        part = torch.empty_like(mine)
        dist.scatter(part, [tensor_of(x) for x in xs] if rank == root else None, root)
        check_last(spec, "scatter")
        check_moved(part, spec, xs[rank])

        blocks = operands(size, count * size, dtype)  # of each rank, as many parts as ranks
        cuts = [slice(i * count, (i + 1) * count) for i in range(size)]
        found = torch.empty(size * count, dtype=mine.dtype)
        dist.all_to_all_single(found, tensor_of(blocks[rank]))
        check_last(spec, "alltoall")
        for i, cut in enumerate(cuts):
            check_moved(found[cut], spec, blocks[i][cuts[rank]])
        listed = [torch.empty(count, dtype=mine.dtype) for _ in cuts]
        dist.all_to_all(listed, [tensor_of(blocks[rank][cut]) for cut in cuts])
        check_last(spec, "alltoall")
        for i, part in enumerate(listed):
            check_moved(part, spec, blocks[i][cuts[rank]])
    return equal


@pytest.mark.parametrize(("size", "spec", "dtype"), [(3, "int8", F32), (2, "int8", BF16), (2, "bf16", F64)])
def test_moves(size, spec, dtype):
    all_equal(run(size, moves, size, spec, dtype))


def forms_of_moves(rank, size):
    set_codec(None, dict.fromkeys(EVERYTHING, "int8"), min_nbytes=0)
    # Rank r sends i + 1 rows to rank i.
    counts = [i + 1 for i in range(size)]
    rows = [x.reshape(-1, 5) for x in operands(size, 5 * sum(counts))]
    starts = [sum(counts[:i]) for i in range(size)]
    found = torch.empty(size * (rank + 1), 5)
    dist.all_to_all_single(found, tensor_of(rows[rank]), [rank + 1] * size, counts)
    check_last("int8", "alltoall")
    for i, part in enumerate(found.split(rank + 1)):
        check_moved(part, "int8", rows[i][starts[rank] : starts[rank] + rank + 1])

    # A transpose travels in the order of its indices.
    mine, xs = given(rank, size, 6, F32)
    across = mine.reshape(2, 3).t().contiguous().t()
    listed = [torch.empty(2, 3) for _ in xs]
    dist.all_gather(listed, across)
    for part, x in zip(listed, xs, strict=True):
        check_moved(part, "int8", x)
    for whole in (torch.empty(2 * size, 3), torch.empty(3, 2 * size).t()):
        dist.all_gather_single(whole, across)
        assert bits(whole) == bits(torch.cat(listed))
    gathered = [torch.empty(3, 2).t() for _ in xs] if rank == 0 else None
    dist.gather(across, gathered, 0)
    for part, x in zip(gathered or (), xs, strict=False):
        check_moved(part, "int8", x)
    part = torch.empty(3, 2).t()
    dist.scatter(part, [tensor_of(x).reshape(2, 3) for x in xs] if rank == 0 else None, 0)
    check_moved(part, "int8", xs[rank])
    everyone, ys = given(rank, size, 6 * size, F32)
    plain, turned = torch.empty(2 * size, 3), torch.empty(3, 2 * size).t()
    dist.all_to_all_single(plain, everyone.reshape(2 * size, 3))
    dist.all_to_all_single(turned, everyone.reshape(2 * size, 3).t().contiguous().t())
    assert bits(plain) == bits(turned)
    check_moved(plain[:2], "int8", ys[0][6 * rank : 6 * (rank + 1)])

    found = functional.all_gather_single(mine, 0, dist.group.WORLD) + 0
    check_last("int8", "allgather")
    assert bits(found) == bits(torch.cat(listed))
    coalesced = functional.all_gather_single_coalesced([mine, mine[:1]], dist.group.WORLD)
    check_last("int8", "allgather")
    assert bits(coalesced[0] + 0) == bits(found)
    for i, x in enumerate(xs):
        check_moved((coalesced[1] + 0)[i : i + 1], "int8", x[:1])
    outputs = torch.empty(6 * size), torch.empty(size)
    group = dist.group.WORLD
    work = group.all_gather_single_coalesced(list(outputs), [mine, mine[:1]])
    assert [bits(tensor) for tensor in work.get_future().wait()] == [bits(tensor + 0) for tensor in coalesced]
    assert work.wait()
    assert work.is_completed()
    assert work.is_success()
    assert work.exception() is None
    assert work.result()[1] is outputs[1]
    mine.requires_grad_()
    dist.all_gather(listed, mine)
    assert bits(torch.cat(listed)) == bits(found)


def test_forms_of_moves():
    run(3, forms_of_moves, 3)


def messages(rank, size):
    set_codec(None, {"send": "int8"})
    following, previous = (rank + 1) % size, (rank - 1) % size
    for count in (0, 1, 1001):
        tensor, xs = given(rank, size, count, F32)
        found = torch.empty_like(tensor)
        if rank == 0:
            dist.send(tensor, following, tag=4)
            assert dist.recv(found, previous, tag=4) == previous
        else:
            assert dist.recv(found, previous, tag=4) == previous
            dist.send(tensor, following, tag=4)
        check_moved(found, "int8", xs[previous])
        assert {record.codec for record in list(records())[-2:]} == {"int8"}

        again = torch.empty(2 * count)[::2]
        works = [dist.isend(tensor, following, tag=1), dist.irecv(again, previous, tag=1)]
        tensor.zero_()  # was encoded already
        for work in works:
            work.wait()
        check_moved(again, "int8", xs[previous])
    # A transpose arrives in the order of its indices.
    tensor, xs = given(rank, size, 6, F32)
    for sent, found in (
        (tensor.reshape(2, 3).t().contiguous().t(), torch.empty(2, 3)),
        (tensor, torch.empty(3, 2).t()),
    ):
        works = [dist.isend(sent, following), dist.irecv(found, previous)]
        for work in works:
            work.wait()
        check_moved(found, "int8", xs[previous])
    # Two at once, by tag.
    first, second = torch.empty(10), torch.empty(10)
    receives = [dist.irecv(second, previous, tag=2), dist.irecv(first, previous, tag=1)]
    for tag in (1, 2):
        dist.isend(torch.full((10,), float(tag)), following, tag=tag).wait()
    for work in receives:
        work.wait()
    assert (first.mean(), second.mean()) == (1, 2)
    batch = [dist.P2POp(dist.isend, torch.full((5,), 3.0), following), dist.P2POp(dist.irecv, first[:5], previous)]
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    assert first[:5].tolist() == [3] * 5
    # Integers are gloo's; then messages may come from anywhere.
    number = torch.tensor([rank])
    if rank == 0:
        for _ in range(1, size):
            assert dist.recv(number) == number.item()
        with pytest.raises(ValueError, match="src: None"):
            dist.recv(torch.empty(3))
    else:
        dist.send(number, 0)


def test_messages():
    run(3, messages, 3)


# What stays as it is.


def check_native(call, reason, *tensors):
    """`call` gives what it gives without a codec, bit for bit, and a record says why."""
    expected, found = ([tensor.clone() for tensor in tensors] for _ in range(2))
    with use_codec(None):
        call(*expected)
    call(*found)
    record = last()
    assert record.algorithm == "native", record
    assert reason in record.reason, record
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a.to_dense(), b.to_dense())


def natives(rank, size):
    set_codec(None, dict.fromkeys((*EVERYTHING, "send"), "int8"), min_nbytes=0)
    whole = torch.arange(12) * (rank + 1)
    for dtype in (torch.int64, torch.uint8, torch.bool):
        ints = whole.to(dtype)
        part = torch.zeros(6, dtype=dtype)
        check_native(dist.all_reduce, "never meets a lossy codec", ints)
        check_native(lambda x: dist.reduce(x, 0), "never meets", ints)
        check_native(lambda x: dist.broadcast(x, 1), "never meets", ints)
        check_native(lambda o, x: dist.reduce_scatter_single(o, x), "never meets", part, ints)
        check_native(lambda o, x: dist.all_gather_single(o, x), "never meets", torch.zeros(24, dtype=dtype), ints)
        check_native(lambda o, p, x: dist.all_gather([o, p], x), "never meets", part, part, part)
        check_native(lambda o, x: dist.all_to_all_single(o, x), "never meets", torch.zeros(12, dtype=dtype), ints)
        splits = [8, 4] if rank == 0 else [4, 8]
        check_native(
            lambda o, x, splits=splits: dist.all_to_all_single(o, x, splits, splits),
            "never meets", torch.zeros(12, dtype=dtype), ints,
        )  # fmt: skip
        check_native(lambda o, p, x: dist.all_to_all([o, p], [x, x]), "never meets", part, part, part)
        check_native(
            lambda o, p, x: dist.gather(x, [o, p] if rank == 0 else None, 0), "never meets", part, part, ints[:6]
        )
        check_native(lambda o, x: dist.scatter(o, [x, x] if rank == 0 else None, 0), "never meets", part, ints[:6])
    floats, _ = given(rank, size, 100, F32)
    check_native(lambda x: dist.all_reduce(x, dist.ReduceOp.PRODUCT), "is only done natively", floats)
    numbers, xs = given(rank, size, 100, F32)
    dist.all_reduce(torch.view_as_complex(numbers.view(50, 2)))  # which PyTorch sums as twice as many floats
    check_last("int8", "allreduce")
    check_reduced(numbers, "int8", xs)
    sparse = torch.sparse_coo_tensor([[rank, 5]], [1.0, 2.0], (9,))
    expected, found = sparse.clone(), sparse.clone()
    with use_codec(None):
        dist.all_reduce(expected)
    dist.all_reduce(found)
    assert "sparse" in last().reason
    assert torch.equal(found.to_dense(), expected.to_dense())

    # A codec that does not keep the order of values; int8's blocks have scales of their own.
    check_native(lambda x: dist.all_reduce(x, dist.ReduceOp.MAX), "op: max", floats)
    set_codec(None, "packed", min_nbytes=0)
    check_native(lambda x: dist.all_reduce(x, dist.ReduceOp.BAND), "is only done natively", whole)
    check_native(lambda x: dist.all_reduce(x, dist.ReduceOp.PRODUCT), "is only done natively", whole)
    # Small messages.
    set_codec(None, "int8", min_nbytes=401)
    check_native(dist.all_reduce, "400 bytes are fewer than min_nbytes=401", floats)
    set_codec(None, "int8", min_nbytes=400)
    dist.all_reduce(floats)
    check_last("int8", "allreduce")
    # A lone codec is for sums: parameters that are only moved are exact, and nothing is recorded.
    set_codec(None, "int8", min_nbytes=0)
    before = len(records())
    mine, xs = given(rank, size, 100, F32)
    dist.broadcast(mine, 0)
    assert bits(mine) == xs[0].tobytes()
    whole = torch.empty(200)
    dist.all_gather_single(whole, tensor_of(xs[rank]))
    assert bits(whole) == b"".join(x.tobytes() for x in xs)
    assert len(records()) == before
    # What has no record never had a codec either.
    set_codec(None, None)
    dist.all_reduce(mine)
    assert len(records()) == before
    # Lossless codecs take integers.
    set_codec(None, {"all_gather": "packed"}, min_nbytes=0)
    gathered = torch.empty(24, dtype=torch.int64)
    dist.all_gather_single(gathered, torch.arange(12) * (rank + 1))
    check_last("packed", "allgather")
    assert gathered.tolist() == [i * r for r in (1, 2) for i in range(12)]


def test_what_stays_as_it_is():
    run(2, natives, 2)


# Groups and choices.


def groups(rank, size):
    """Every group has a choice of its own; some have one rank, or not all."""
    xs = operands(size, 1000)
    alone = dist.new_group([rank], use_local_synchronization=True)
    set_codec(alone, dict.fromkeys(EVERYTHING, "int4"), min_nbytes=0)
    tensor = tensor_of(xs[rank])
    dist.all_reduce(tensor, group=alone)
    dist.all_reduce(tensor, dist.ReduceOp.AVG, group=alone)
    dist.broadcast(tensor, rank, group=alone)
    whole = torch.empty(1000)
    dist.all_gather_single(whole, tensor, group=alone)
    part = torch.empty(1000)
    dist.reduce_scatter_single(part, whole, group=alone)
    dist.all_to_all_single(tensor, part, group=alone)
    assert bits(tensor) == xs[rank].tobytes()  # nothing is sent, so nothing is lost

    ends = dist.new_group([0, size - 1])
    if rank in (0, size - 1):
        set_codec(ends, "int4", min_nbytes=0)
        dist.all_reduce(tensor, group=ends)
        check_reduced(tensor, "int4", [xs[0], xs[-1]])
        assert last(ends).codec == "int4"
        dist.reduce(tensor, size - 1, group=ends)  # ranks are those of the world
    third = dist.new_group(pg_options=Options({"all_gather": "bf16"}, min_nbytes=0))
    tensor = tensor_of(xs[rank])
    dist.all_reduce(tensor, group=third)
    with use_codec(None):
        exact = tensor_of(xs[rank])
        dist.all_reduce(exact)
    assert bits(tensor) == bits(exact)
    whole = torch.empty(size * 1000)
    dist.all_gather_single(whole, tensor_of(xs[rank]), group=third)
    assert last(third).codec == "bf16"
    for i, x in enumerate(xs):
        check_moved(whole[i * 1000 : (i + 1) * 1000], "bf16", x)
    dist.destroy_process_group(third)
    pairs = dist.device_mesh.init_device_mesh("cpu", (size,))
    set_codec(pairs.get_group(), "int8", min_nbytes=0)
    dist.all_reduce(tensor, group=pairs.get_group())
    assert last(pairs.get_group()).codec == "int8"


def test_groups():
    run(3, groups, 3)


def choices(rank, size):
    def used():
        tensor, xs = given(rank, size, 1000, F32)
        dist.all_reduce(tensor)
        if tuple(records())[-1:] and (codec := last().codec) != "none":
            check_reduced(tensor, codec, xs)
        return last().codec

    assert used() == "int4"  # of the environment, and of COLLCOMP_MIN_BYTES
    with use_codec("int8", min_nbytes=0):
        assert used() == "int8"
        with use_codec({"all_reduce": "bf16"}, min_nbytes=0):
            assert used() == "bf16"
            with use_codec(None):
                before = len(records())
                dist.all_reduce(torch.ones(1000))
                assert len(records()) == before
            assert used() == "bf16"
        assert used() == "int8"
        with pytest.raises(KeyError), use_codec("fp16", min_nbytes=0):
            raise KeyError
        assert used() == "int8"
        with use_codec("fp16"):
            assert used() == "fp16"  # of the size that was chosen outside
            with use_codec("fp16", min_nbytes=1 << 20):
                assert used() == "none"
        set_codec(None, "fp16", min_nbytes=0)  # within the block only
        assert used() == "fp16"
    assert used() == "int4"
    with use_codec({"all_reduce": "int8", "broadcast": None}, min_nbytes=0):
        assert used() == "int8"
    with use_codec("int4:feedback", key="w", min_nbytes=0):
        sent = torch.zeros(1000)
        for _ in range(5):
            tensor, xs = given(rank, size, 1000, F32)
            dist.all_reduce(tensor)
            sent += tensor
        assert last().key == "w"
        error = (sent / 5 - tensor_of(sum(xs))).abs().max()
        once = (tensor - tensor_of(sum(xs))).abs().max()
        assert error < once
        # What is left of it can be saved, and put back.
        state = state_dict()
        waiting = state["memory"]["residuals"]["w"].clone()
        assert waiting.abs().max() > 0
        dist.all_reduce(given(rank, size, 1000, F32)[0])
        first = given(rank, size, 1000, F32)[0]
        dist.all_reduce(first)
        load_state_dict(state)
        assert torch.equal(state_dict()["memory"]["residuals"]["w"], waiting)
        again = [given(rank, size, 1000, F32)[0] for _ in range(2)]
        for tensor in again:
            dist.all_reduce(tensor)
        assert torch.equal(again[1], first)
    return os.getpid()


def never_compressed(rank, size):
    if rank == 0:  # it asks nobody
        assert len(records()) == 0
    dist.barrier()


def from_environment(rank, size):
    os.environ |= {"COLLCOMP_CODEC": "int4", "COLLCOMP_MIN_BYTES": "1000"}
    dist.init_process_group("collcomp")
    choices(rank, size)
    dist.destroy_process_group()
    # Options come first, and need not be the environment's.
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    dist.init_process_group(
        "collcomp", store=dist.PrefixStore("again", store), rank=rank, world_size=size, pg_options=Options("int8")
    )
    tensor, xs = given(rank, size, 100_000, F32)
    dist.all_reduce(tensor)
    assert last().codec == "int8"
    check_reduced(tensor, "int8", xs)


def test_choices():
    run(2, from_environment, 2, backend=None)


def test_records_of_a_group_without_codecs():
    run(2, never_compressed, 2)


# Time.


def asynchronous(rank, size):
    set_codec(None, dict.fromkeys(EVERYTHING, "int8"), min_nbytes=0)
    tensors, references = zip(*(given(rank, size, count, F32) for count in (100_000, 10, 1000)), strict=True)
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    whole = torch.empty(1000 * size)
    mine, xs = given(rank, size, 1000, F32, seed=7)
    works.append(dist.all_gather_single(whole, mine, async_op=True))
    for work in reversed(works):
        assert work.wait()
        assert work.is_completed()
        assert work.is_success()
        assert work.exception() is None
    for tensor, of in zip(tensors, references, strict=True):
        check_reduced(tensor, "int8", of)
    check_moved(whole[:1000], "int8", xs[0])

    # Not before all ranks have come.
    tensor, xs = given(rank, size, 1000, F32)
    if rank == 0:
        work = dist.all_reduce(tensor, async_op=True)
        assert not work.is_completed()
        assert not work.get_future().done()
        dist.barrier()
    else:
        dist.barrier()
        work = dist.all_reduce(tensor, async_op=True)
    work.wait()
    check_reduced(tensor, "int8", xs)
    assert work.result()[0] is tensor

    # Lists and copies are written before the work is over.
    parts = [torch.empty(1000) for _ in range(size)]
    mine, xs = given(rank, size, 1000, F32, seed=8)
    dist.all_gather(parts, mine, async_op=True).wait()
    for part, x in zip(parts, xs, strict=True):
        check_moved(part, "int8", x)


def futures(rank, size):
    set_codec(None, "int8", min_nbytes=0)
    tensor, xs = given(rank, size, 1000, F32)
    work = dist.all_reduce(tensor, async_op=True)
    future = work.get_future()
    chained = future.then(lambda done: done.value()[0] / 2).then(lambda done: done.value() + 1)
    found = chained.wait()
    assert bits(found) == bits(tensor / 2 + 1)
    check_reduced(tensor, "int8", xs)
    assert bits(future.value()[0]) == bits(tensor)
    assert bits(future.then(lambda done: done.value()[0] + 0).wait()) == bits(tensor)  # long done

    # Callbacks that start another collective and wait for it, several deep, many at once.
    def again(depth):
        def callback(done):
            mine, xs = given(rank, size, 100, F32, seed=depth)
            dist.all_reduce(mine, async_op=True).get_future().wait() if depth % 2 else dist.all_reduce(mine)
            check_reduced(mine, "int8", xs)
            return depth

        return callback

    future = dist.all_reduce(tensor, async_op=True).get_future()
    for depth in range(1, 5):
        future = future.then(again(depth))
    assert future.wait() == 4

    def failing(done):
        raise KeyError("mine")

    with pytest.raises(Exception, match="mine"):
        dist.all_reduce(tensor, async_op=True).get_future().then(failing).wait()
    many = [dist.all_reduce(torch.ones(10), async_op=True).get_future() for _ in range(100)]
    assert [float(done[0][0]) for done in torch.futures.wait_all(many)] == [size] * 100


@pytest.mark.parametrize("what", [asynchronous, futures])
def test_time(what):
    run(3, what, 3)
