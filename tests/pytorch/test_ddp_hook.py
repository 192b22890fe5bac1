"""`ddp_hook`: gradients within the codec's bound, nothing lost where there is feedback, checkpoints."""

# ruff: noqa: E402

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
from helpers import F16, F32, F64, UNIT, assert_within, peak, reduction_bound
from spawn import run
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from values import array_of, bits

from collcomp.torch import bf16_compress_wrapper, ddp_hook, fp16_compress_wrapper, records, reshard, set_codec

SHAPES = {"wide": (40, 60), "bias": (70,), "tall": (90, 20), "long": (3000,), "one": (1,)}
#: Smaller than most of the tensors: after the first step almost each has a bucket of its own.
SMALL_MB = 0.005


class Form(torch.nn.Module):
    """A linear form: the gradient of each parameter is what it is applied to."""

    def __init__(self, frozen=()):
        super().__init__()
        for name, shape in SHAPES.items():
            setattr(self, name, torch.nn.Parameter(torch.zeros(shape), name not in frozen))

    def forward(self, given):
        return sum((getattr(self, name) * tensor).sum() for name, tensor in given.items())


def gradients(rank, step):
    rng = np.random.default_rng([rank, step])
    return {name: torch.from_numpy(rng.uniform(-1, 1, shape).astype("f4")) for name, shape in SHAPES.items()}


def mean(step):
    """Of the ranks' gradients, in float64."""
    each = [gradients(rank, step) for rank in range(dist.get_world_size())]
    return {name: sum(one[name].double() for one in each).numpy() / len(each) for name in SHAPES}


def flat(tensors):
    return np.concatenate([array_of(tensor).reshape(-1) for tensor in tensors])


def bound(spec, dtype=F32, steps=(0,)):
    """Of a mean of gradients, whatever lies side by side in a bucket."""
    sums = [sum(flat(gradients(rank, step).values()) for step in steps) for rank in range(dist.get_world_size())]
    return reduction_bound(spec, [x.astype(dtype) for x in sums], "avg", "direct", dtype)


def trained(
    rank, codec, steps=range(4), *, model=None, each=None, wrap=lambda hook: hook, ddp=None, named=True, **options
):
    """A `Form`, its hook, and the gradients that were applied at each step of SGD of rate 1, which is their sum."""
    model = model or Form()
    names = model.named_parameters() if named else None
    hook = ddp_hook(codec, named_parameters=names, **{"min_nbytes": 0, **options})
    parallel = DistributedDataParallel(model, **{"bucket_cap_mb": SMALL_MB, **(ddp or {})})
    parallel.register_comm_hook(None, wrap(hook))
    applied = []
    for step in steps:
        if each is not None:
            each(hook, step)
        model.zero_grad()
        parallel(gradients(rank, step)).backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        applied.append(grads)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= parameter.grad
    return model, hook, applied


def check_grads(applied, step, largest):
    for name, expected in mean(step).items():
        assert_within(array_of(applied[name]), expected, largest, f"{name} of step {step}")


def residuals(hook):
    return {name: tensor.double() for name, tensor in hook.state_dict()["memory"]["residuals"].items()}


def averaged(tensor):
    """The mean over the ranks of a tensor of float64, without a codec."""
    gloo = dist.new_group(backend="gloo")
    dist.all_reduce(tensor, group=gloo)
    dist.destroy_process_group(gloo)
    return tensor / dist.get_world_size()


def check_nothing_lost(hook, applied, steps=range(4), keys=None):
    """What was applied, and the mean of what waits, is the sum of the true gradients."""
    waiting = residuals(hook)
    names = list(SHAPES)
    assert sorted(waiting) == sorted(keys or names)
    left = averaged(torch.cat([waiting[key].reshape(-1) for key in keys or names]))
    got = sum(flat(grads[name] for name in names).astype(F64) for grads in applied)
    true = sum(np.concatenate([x.reshape(-1) for x in mean(step).values()]) for step in steps)
    assert_within(got + left.numpy(), true, 64 * UNIT[F32] * len(applied) * max(1, peak(left)), "what is lost")
    assert left.any()


# Codecs.


def codecs(rank):
    found = {}
    for spec in ("int8", "int4", "bf16"):
        _, hook, applied = trained(rank, spec, feedback=False)
        for step, grads in enumerate(applied):
            check_grads(grads, step, bound(spec, steps=[step]))
        assert {record.codec for record in hook.records} == {spec}
        found[spec] = [bits(tensor) for tensor in applied[-1].values()]
        hook.close()
    for spec in ("int4", "topk:ratio=0.1", "powersgd:rank=2,min_rate=1"):
        model, hook, applied = trained(rank, spec)
        check_nothing_lost(hook, applied)
        # The first step came in one bucket, the others in several.
        assert len({record.key for record in hook.records}) > 3
        assert hook.step == 4
        found[spec] = [bits(parameter) for parameter in model.parameters()]
        hook.close()
    for spec in ("loco", "thc"):
        model, hook, applied = trained(rank, spec, range(12))
        got = sum(flat(grads.values()).astype(F64) for grads in applied)
        true = sum(np.concatenate([x.reshape(-1) for x in mean(step).values()]) for step in range(12))
        first = np.abs(flat(applied[0].values()) - np.concatenate([x.reshape(-1) for x in mean(0).values()])).mean()
        assert np.abs(got - true).mean() < 3 * first  # errors do not add up: 12 of them would otherwise
        found[spec] = [bits(parameter) for parameter in model.parameters()]
        hook.close()
    return found


def patterns(rank):
    rules = {"bias": None, "one": "none", "*l*": "int8", "w*": "int4"}  # tall, long; wide
    _, hook, applied = trained(rank, rules)
    for step, grads in enumerate(applied):
        for name in ("bias", "one"):
            assert_within(array_of(grads[name]), mean(step)[name], 2 * UNIT[F32], name)
    found = residuals(hook)
    assert sorted(found) == ["long", "tall", "wide"]
    assert all(value.any() for value in found.values())
    assert {record.codec for record in hook.records} == {"int8:feedback", "int4:feedback"}
    # Of each step, what is in one bucket and of one codec is one message.
    assert sorted(record.nbytes for record in list(hook.records)[:2]) == [4 * 2400, 4 * (1800 + 3000)]
    coarse = np.abs(array_of(applied[0]["wide"]) - mean(0)["wide"]).max()
    fine = np.abs(array_of(applied[0]["tall"]) - mean(0)["tall"]).max()
    assert 4 * fine < coarse
    return [[bits(tensor) for tensor in grads.values()] for grads in applied]


def options(rank):
    # The first steps uncompressed.
    _, hook, applied = trained(rank, "int4", range(4), start_step=2)
    for step in (0, 1):
        check_grads(applied[step], step, 2 * UNIT[F32])
    for step in (2, 3):
        assert np.abs(array_of(applied[step]["long"]) - mean(step)["long"]).max() > 1e-3
    check_nothing_lost(hook, applied)
    # Small buckets, and what the group itself would do, which is not asked.
    _, hook, applied = trained(rank, "int4", range(2), min_nbytes=1 << 20)
    for step in (0, 1):
        check_grads(applied[step], step, 2 * UNIT[F32])
    assert len(hook.records) == 0
    # Numbered names.
    _, hook, applied = trained(rank, "int4", named=False)
    assert sorted(residuals(hook)) == [f"parameter{i}" for i in range(len(SHAPES))]
    names = [name for name, _ in reversed(list(Form().named_parameters()))]
    assert sorted(v.numel() for v in residuals(hook).values()) == sorted(np.prod(SHAPES[n]) for n in names)
    # Other buckets.
    for ddp in ({"bucket_cap_mb": 100}, {"gradient_as_bucket_view": True}, {"static_graph": True}):
        _, hook, applied = trained(rank, "int4", ddp=ddp)
        check_nothing_lost(hook, applied)
    # Step sizes: what waits is applied with the one of its own time.
    rates = [0.5, 0.25, 0.125, 1.0]
    _, hook, applied = trained(rank, "int4", each=lambda hook, step: setattr(hook, "learning_rate", rates[step]))
    assert hook.learning_rate == 1.0
    path = sum(rate * flat(grads.values()).astype(F64) for rate, grads in zip(rates, applied, strict=True))
    true = sum(rate * np.concatenate([x.reshape(-1) for x in mean(i).values()]) for i, rate in enumerate(rates))
    waiting = residuals(hook)
    left = averaged(torch.cat([waiting[name] for name in SHAPES]))
    assert_within(path + rates[-1] * left.numpy(), true, 1e-4, "the path")
    assert not np.allclose(path, true, atol=1e-4)


def wrappers(rank):
    for wrap, dtype, cast in (
        (default_hooks.fp16_compress_wrapper, F16, UNIT[F16]),
        (fp16_compress_wrapper, F16, UNIT[F16]),
        (bf16_compress_wrapper, F32, 2.0**-8),
    ):
        _, hook, applied = trained(rank, "int8", range(3), feedback=False, wrap=wrap)
        for step, grads in enumerate(applied):
            check_grads(grads, step, bound("int8", dtype, [step]) + 3 * cast)
            assert all(grad.dtype == torch.float32 for grad in grads.values())
        assert hook.records[-1].codec == "int8"
        assert sum(record.nbytes for record in hook.records) == 3 * 2 * sum(map(np.prod, SHAPES.values()))
        _, hook, applied = trained(rank, "int4", range(3), wrap=wrap)
        assert sorted(residuals(hook)) == sorted(SHAPES)


def models(rank):
    """What programs do with models."""
    # Gradients of several backward passes at once.
    model = Form()
    hook = ddp_hook("int8", False, named_parameters=model.named_parameters(), min_nbytes=0)
    parallel = DistributedDataParallel(model, bucket_cap_mb=SMALL_MB)
    parallel.register_comm_hook(None, hook)
    for first in (0, 2, 4):
        model.zero_grad()
        with parallel.no_sync():
            parallel(gradients(rank, first)).backward()
        parallel(gradients(rank, first + 1)).backward()
        for name, parameter in model.named_parameters():
            expected = mean(first)[name] + mean(first + 1)[name]
            assert_within(array_of(parameter.grad), expected, bound("int8", steps=[first, first + 1]), name)
    assert hook.step == 3

    # Parameters that are not used, on some ranks or on all, and such that are frozen.
    model = Form(frozen=["tall"])
    hook = ddp_hook("int4", named_parameters=model.named_parameters(), min_nbytes=0)
    parallel = DistributedDataParallel(model, bucket_cap_mb=SMALL_MB, find_unused_parameters=True)
    parallel.register_comm_hook(None, hook)
    for step in range(3):
        model.zero_grad()
        given = gradients(rank, step)
        del given["bias"]
        if rank == 0:
            del given["long"]
        parallel(given).backward()
        assert model.tall.grad is None
        assert model.bias.grad is None or not model.bias.grad.any()
        assert_within(array_of(model.wide.grad), mean(step)["wide"], 1, "wide")
        only = gradients(1, step)["long"].double().numpy() / 2
        assert np.corrcoef(array_of(model.long.grad), only)[0, 1] > 0.9
    assert "tall" not in residuals(hook)

    # Two models in one group, both under way at once.
    pair = []
    for spec in ("int8", "int4"):
        model = Form()
        hook = ddp_hook(spec, False, named_parameters=model.named_parameters(), min_nbytes=0)
        parallel = DistributedDataParallel(model, bucket_cap_mb=SMALL_MB)
        parallel.register_comm_hook(None, hook)
        pair.append((spec, model, parallel))
    for step in range(3):
        for _, model, _ in pair:
            model.zero_grad()
        sum(parallel(gradients(rank, step)) for _, _, parallel in pair).backward()
        for spec, model, _ in pair:
            check_grads({name: p.grad for name, p in model.named_parameters()}, step, bound(spec, steps=[step]))

    # Ranks that have no more data take part with nothing, and residuals of theirs.
    model = Form()
    hook = ddp_hook("int8", False, named_parameters=model.named_parameters(), min_nbytes=0)
    parallel = DistributedDataParallel(model, bucket_cap_mb=SMALL_MB)
    parallel.register_comm_hook(None, hook)
    with parallel.join(divide_by_initial_world_size=True):
        for step in range(2 + 2 * rank):
            model.zero_grad()
            parallel(gradients(rank, step)).backward()
            if step >= 2:
                alone = {name: x.double().numpy() / 2 for name, x in gradients(rank, step).items()}
                for name, expected in alone.items():
                    assert_within(array_of(model.get_parameter(name).grad), expected, bound("int8", steps=[step]), name)
    assert hook.step == 4

    # Gradients of another dtype.
    model = Form().to(torch.bfloat16)
    hook = ddp_hook("int4", named_parameters=model.named_parameters(), min_nbytes=0)
    parallel = DistributedDataParallel(model, bucket_cap_mb=SMALL_MB)
    parallel.register_comm_hook(None, hook)
    for step in range(3):
        model.zero_grad()
        parallel({name: x.to(torch.bfloat16) for name, x in gradients(rank, step).items()}).backward()
    assert model.wide.grad.dtype == torch.bfloat16
    assert np.corrcoef(array_of(model.wide.grad.float()).reshape(-1), mean(2)["wide"].reshape(-1))[0, 1] > 0.9
    assert sorted(residuals(hook)) == sorted(SHAPES)

    # What is no number arrives as such.
    for spec in ("int8", "int4", "bf16", "topk:ratio=0.5"):
        model = Form()
        parallel = DistributedDataParallel(model)
        parallel.register_comm_hook(None, ddp_hook(spec, named_parameters=model.named_parameters(), min_nbytes=0))
        given = gradients(rank, 0)
        if rank == 1:
            given["long"][1234] = float("nan")
        parallel(given).backward()
        assert model.long.grad[1234].isnan(), spec
        assert model.wide.grad.isfinite().all(), spec

    # Hooks that differ: no rank goes on with what it has.
    for codec in ("int8" if rank else "int4", {"long": "int4:block=64" if rank else "int4", "*": "int8", "one": None}):
        model = Form()
        parallel = DistributedDataParallel(model)
        hook = ddp_hook(codec, named_parameters=model.named_parameters(), min_nbytes=0)
        parallel.register_comm_hook(None, hook)
        with pytest.raises(Exception, match="codec"):
            parallel(gradients(rank, 0)).backward()
        hook.close()

    # Parameters of another model.
    model = Form()
    parallel = DistributedDataParallel(model)
    parallel.register_comm_hook(None, ddp_hook("int8", named_parameters=Form().named_parameters(), min_nbytes=0))
    with pytest.raises((ValueError, RuntimeError), match=r"named_parameters: none of them is the one of shape \(\d+,"):
        parallel(gradients(rank, 0)).backward()


def checkpoints(rank):
    """A run that was interrupted is the run that was not, bit for bit."""
    fixed = {"find_unused_parameters": True}  # the same buckets from the first step on
    specs = ("int4", "topk:ratio=0.1", "loco", "powersgd:rank=2,min_rate=1", "int4:rounding=stochastic", "thc")
    for spec in (*specs, {"l*": "int4", "*": "topk"}):
        whole, _, _ = trained(rank, spec, range(6), ddp=fixed, start_step=1)
        model, hook, applied = trained(rank, spec, range(3), ddp=fixed, start_step=1)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "hook": hook.state_dict()}, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        model = Form()
        model.load_state_dict(state["model"])

        def load(hook, step, state=state):
            if step == 3:
                hook.load_state_dict(state["hook"])

        resumed, hook, _ = trained(rank, spec, range(3, 6), model=model, each=load, ddp=fixed, start_step=1)
        assert hook.step == 6
        assert [bits(p) for p in resumed.parameters()] == [bits(p) for p in whole.parameters()], spec
        # Loaded copies are no part of the checkpoint.
        assert str(state["hook"]["memory"]["residuals"]) != str(hook.state_dict()["memory"]["residuals"])
    # Into other buckets: what waits goes along.
    model, hook, applied = trained(rank, "int4", range(3))
    state = hook.state_dict()
    _, hook, more = trained(
        rank,
        "int4",
        range(3, 6),
        each=lambda hook, step: step == 3 and hook.load_state_dict(state),
        ddp={"bucket_cap_mb": 0.02},
    )
    check_nothing_lost(hook, applied + more, range(6))
    # To another number of ranks: what waits is the mean of what waited.
    states = [None] * dist.get_world_size()
    dist.all_gather_object(states, state)
    for name, mean_of in reshard(states)["memory"]["residuals"].items():
        waiting = [other["memory"]["residuals"][name] for other in states]
        assert torch.allclose(mean_of, sum(waiting) / len(waiting), atol=1e-6)
    hook.load_state_dict(reshard(states))


def beside_a_codec_of_the_group(rank):
    """A hook on a group that has a codec of its own."""
    set_codec(None, "int8", min_nbytes=0)
    _, hook, applied = trained(rank, "int4", range(3))
    check_nothing_lost(hook, applied, range(3))
    assert {record.codec for record in hook.records} == {"int4:feedback"}
    # What a hook leaves uncompressed is not compressed by the group, either.
    for more in ({"min_nbytes": 1 << 30}, {"start_step": 9}):
        _, _, applied = trained(rank, {"b*": None, "*": "int4"}, range(2), **more)
        check_grads(applied[1], 1, 2 * UNIT[F32])
    _, _, applied = trained(rank, {"long": None, "*": "int4"}, range(2))
    assert_within(array_of(applied[1]["long"]), mean(1)["long"], 2 * UNIT[F32], "long")
    # Without a hook DDP asks the group.
    model = Form()
    parallel = DistributedDataParallel(model, bucket_cap_mb=SMALL_MB)
    for step in range(3):
        model.zero_grad()
        parallel(gradients(rank, step)).backward()
        check_grads({name: p.grad for name, p in model.named_parameters()}, step, 2 * bound("int8", steps=[step]))
    assert records()[-1].codec == "int8"
    assert records()[-1].collective == "allreduce"
    return [bits(parameter.grad) for parameter in model.parameters()]


@pytest.mark.parametrize(("backend", "size"), [("gloo", 2), ("collcomp", 3)])
def test_codecs(backend, size):
    first, *others = run(size, codecs, backend=backend)
    assert all(other == first for other in others)


@pytest.mark.parametrize("what", [patterns, beside_a_codec_of_the_group])
def test_equal_on_all_ranks(what):
    first, *others = run(2, what)
    assert all(other == first for other in others)


@pytest.mark.parametrize("what", [options, wrappers, models, checkpoints])
def test_hook(what):
    run(2, what, backend="gloo")
