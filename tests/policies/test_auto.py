"""The policy that compresses only where that is predicted to pay."""

import ml_dtypes
import numpy as np
import pytest
from helpers import F32, run
from hypothesis import given
from hypothesis import strategies as st

import collcomp
from collcomp.calibration import calibrate, codec_cost
from collcomp.codecs import Identity, as_codec
from collcomp.collectives import NATIVE
from collcomp.planner.cost import NATIVE_CODEC, CodecCost, CostModel, Network
from collcomp.policies import Auto, Call, is_auto

COSTS = {
    "identity": CodecCost(4.0, 0.0, 1e-10, lossless=True),
    "exponents": CodecCost(3.4, 5e-10, 4e-10, lossless=True),
    "bf16": CodecCost(2.0, 2e-10, 2e-10),
    "int8": CodecCost(1.0, 2e-10, 2e-10),
    "topk:ratio=0.01": CodecCost(0.05, 8e-10, 1e-11),
}


def call(nbytes, dtype=F32, op="sum", collective="allreduce", size=4, **more):
    return Call(collective, nbytes, np.dtype(dtype), op, size, **more)


def decided(spec, bandwidth=25e6, overhead=3e-4, groups=1, size=4):
    """A policy for links of `bandwidth`, over which native calls are fast when messages are small."""
    policy = Auto.from_spec(spec)
    model = CostModel(size, Network(1e-6, bandwidth), COSTS, groups=groups)
    times = {}
    for way in [(NATIVE, NATIVE_CODEC), *policy.ways("allreduce", model)]:
        first = model.law("allreduce", *way, 8) + (0 if way[0] == NATIVE else overhead)
        times[("allreduce", *way)] = {8: first}
    policy.learn(model.with_measured(times, {}))
    return policy


@pytest.mark.parametrize(
    ("spec", "codecs"),
    [
        ("auto", ["identity", "exponents"]),
        ("auto:error=0", ["identity", "exponents"]),
        ("auto:error=0.004", ["identity", "exponents", "bf16", "int8"]),
        ("auto:error=0.1", ["identity", "exponents", "bf16", "fp8_e4m3", "int8", "int4"]),
        ("auto:int8|topk:ratio=0.01", ["identity", "int8", "topk:ratio=0.01"]),
        (" auto : int8 ", ["identity", "int8"]),
    ],
)
def test_specs(spec, codecs):
    assert is_auto(spec)
    assert [codec.spec for codec in Auto.from_spec(spec).codecs] == codecs


@pytest.mark.parametrize("spec", ["int8", "automatic", as_codec("int8"), None, 3])
def test_other_specs(spec):
    assert not is_auto(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("auto:", "no 'auto'"),
        ("auto:error=much", "no error between 0 and 1"),
        ("auto:error=1", "no error between"),
        ("auto:error=nan", "no error between"),
        ("auto:int9", "unknown codec 'int9'"),
        ("auto:powersgd", "'powersgd.*' remembers"),
    ],
)
def test_wrong_specs_are_told_when_they_are_given(spec, message):
    with pytest.raises(ValueError, match=message):
        collcomp.local.communicators(2, codec=spec)


def test_a_tolerated_error_is_a_bound():
    for error in (0.0, 1e-3, 1 / 254, 0.05, 0.3):
        for codec in Auto.from_spec(f"auto:error={error!r}").codecs:
            assert codec.error_bound(np.ones(1))[0] <= error


def test_small_messages_are_native_and_large_ones_are_not():
    policy = decided("auto:error=0.01")
    assert policy.plan(call(64)).algorithm == NATIVE
    plan = policy.plan(call(16 << 20))
    assert (plan.algorithm, plan.codec.spec) == ("direct", "int8")
    assert "native" in plan.reason
    assert f"fewer than {policy.native_below('allreduce')} bytes" in policy.plan(call(64)).reason


def test_lossless_never_loses():
    plan = decided("auto").plan(call(16 << 20))
    assert plan.codec.lossless
    assert (plan.algorithm, plan.codec.spec) == ("direct", "exponents")  # fewer bytes over a slow link


@pytest.mark.parametrize(
    ("dtype", "op"), [("i4", "sum"), ("u1", "max"), ("?", "max"), ("c8", "sum"), ("f4", "max"), ("i4", "prod")]
)
def test_what_a_codec_cannot_do_is_not_chosen(dtype, op):
    plan = decided("auto:int8").plan(call(16 << 20, dtype, op))
    assert plan.algorithm == NATIVE or plan.codec == Identity()


def test_unknown_sizes_are_native():
    assert "sizes" in decided("auto:int8").plan(call(16 << 20, uniform=False)).reason


def test_without_a_model_everything_is_native():
    plan = Auto(["int8"]).plan(call(16 << 20))
    assert plan.algorithm == NATIVE
    assert "not measured" in plan.reason


def test_other_collectives_are_native_until_they_are_measured():
    plan = decided("auto:int8").plan(call(16 << 20, op=None, collective="bcast"))
    assert plan.algorithm == NATIVE
    assert "what bcast costs here was not measured" in plan.reason


def test_codecs_that_the_model_does_not_know_are_not_chosen():
    model = decided("auto:int8").model
    assert Auto(["int4"], model).plan(call(16 << 20)).codec == Identity()


@pytest.mark.parametrize("spec", ["auto", "auto:int8", "auto:error=0.01"])
def test_below_the_limit_all_is_native(spec):
    policy = decided(spec)
    below = policy.native_below("allreduce")
    assert 64 < below < 1 << 22
    for nbytes in np.unique(np.geomspace(8, below - 8, 50).astype(int) // 8 * 8):
        for dtype in (F32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32):
            assert policy.plan(call(int(nbytes), dtype)).algorithm == NATIVE


def test_two_tiers_are_tried_where_ranks_have_groups():
    model = CostModel(4, Network(1e-6, 25e6), COSTS, groups=2)
    named, bounded, sparse = map(Auto.from_spec, ("auto:int8", "auto:error=0.01", "auto:topk:ratio=0.01"))
    assert {("hierarchical", "int8"), ("ring", "int8")} <= {*named.ways("allreduce", model)}
    assert {("hierarchical", "int8"), ("ring", "identity")} <= {*bounded.ways("allreduce", model)}
    assert ("ring", "int8") not in bounded.ways("allreduce", model), "it rounds at every hop"
    assert ("hierarchical", "topk:ratio=0.01") not in sparse.ways("allreduce", model)
    assert named.ways("bcast", model) == [("direct", "identity"), ("direct", "int8")]
    assert bounded.for_ranks(3).bounded
    assert not named.for_ranks(3).bounded


def test_feedback_needs_a_key():
    policy = Auto(["int8:feedback"])
    assert policy.choices(call(1 << 20)) == []
    model = CostModel(4, Network(1e-6, 25e6), COSTS | {"int8:feedback": COSTS["int8"]})
    policy.learn(model)
    assert policy.plan(call(16 << 20)).codec == Identity() or policy.plan(call(16 << 20)).algorithm == NATIVE
    assert policy.plan(call(16 << 20, key="w")).codec.spec == "int8:feedback"


@pytest.mark.parametrize("spec", ["identity", "int8", "exponents", "topk:ratio=0.01", "shared_int"])
def test_costs_of_codecs(spec):
    cost = codec_cost(as_codec(spec))
    assert 0 < cost.nbytes <= 4.1
    assert cost.decode > 0
    assert (cost.encode > 0) == (spec != "identity")
    assert cost.lossless == as_codec(spec).lossless


def test_ranks_learn_the_same():
    """Threads, whose native library is the plainest there is."""

    def program(comm):
        policy = Auto(["int8"])
        barrier = np.zeros(1, F32)
        natives = {
            "barrier": lambda: comm.allreduce(barrier.copy(), barrier, codec=Identity()),
            "allreduce": lambda send, recv: comm.allreduce(send, recv, codec=Identity(), algorithm="gathered"),
        }
        kept = comm.records
        model = calibrate(comm, policy, "allreduce", natives)
        assert comm.records is kept
        assert len(kept) == 0
        assert policy.knows("allreduce")
        assert not policy.knows("bcast")
        assert comm.draw == 0
        return model

    first, second = run(2, program)
    assert first == second
    assert {key[1:] for key in first.fits} == {(NATIVE, NATIVE_CODEC), ("direct", "identity"), ("direct", "int8")}
    assert first.network.bandwidth > 0


def test_what_one_communicator_learns_is_not_anothers():
    policy = Auto(["int8"])

    def program(comm):
        return comm.policy, comm.policy.model

    known = decided("auto:int8", size=2)
    policies, models = zip(*run(2, program, policy=known), strict=True)
    assert policies[0] is not policies[1] is not known
    assert models[0] == known.model
    assert run(3, program, policy=known)[0][1] is None, "of other ranks"
    assert run(2, program, policy=policy)[0][1] is None


@given(
    st.lists(st.floats(1e-6, 1e-2), min_size=9, max_size=9),
    st.lists(st.floats(1e-6, 1e-2), min_size=9, max_size=9),
    st.sampled_from(["f2", "f4", "f8", "i4"]),
    st.sampled_from(["sum", "max", "avg", "prod"]),
)
def test_below_the_limit_all_is_native_whatever_was_measured(native, direct, dtype, op):
    """Times that no law gave: a way may win at one size only."""
    sizes = [8 * 4**k for k in range(9)]
    model = CostModel(4, Network(1e-6, 25e6), COSTS)
    times = {
        ("allreduce", NATIVE, NATIVE_CODEC): dict(zip(sizes, native, strict=True)),
        ("allreduce", "direct", "identity"): dict(zip(sizes, direct, strict=True)),
    }
    policy = Auto((), model.with_measured(times, {}))
    below = policy.native_below("allreduce")
    for nbytes in [*sizes, *(size + 8 for size in sizes), *(size - 8 for size in sizes)]:
        plan = policy.plan(call(nbytes, dtype, op))
        assert nbytes >= below or plan.algorithm == NATIVE


@pytest.mark.parametrize("native", [False, True])
def test_persistent_calls_keep_their_plan(native):
    policy = decided("auto:int8", size=2)

    def program(comm):
        x, out = np.ones(1 << 20, F32), np.empty(1 << 20, F32)
        persistent = comm.allreduce_init(x, out, codec="auto:int8" if native else None)
        comm.policy.learn(decided("auto:int8", bandwidth=1e15, size=2).model)
        persistent.start()
        persistent.wait()
        return persistent.operation.plan.algorithm, float(out[0])

    assert run(2, program, policy=policy) == [("direct", 2.0)] * 2
