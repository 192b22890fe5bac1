"""Which codec and algorithm a call gets."""

import ml_dtypes
import numpy as np
import pytest
from helpers import BF16, F16, F32, F64

from collcomp.codecs import CODECS, Identity, as_codec
from collcomp.codecs.libraries import has_library
from collcomp.policies import ByCollective, Call, Fixed, is_float, plan_for, unsuited

INSTALLED = [name for name, cls in CODECS.items() if has_library(cls.library)]


def call(collective="allreduce", nbytes=1 << 20, dtype=F32, op="sum", size=4, **more):
    return Call(collective, nbytes, np.dtype(dtype), op, size, **more)


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_floats(dtype):
    assert is_float(dtype)


@pytest.mark.parametrize("dtype", ["i4", "u1", "?", "c8", "U3", "O"])
def test_no_floats(dtype):
    assert not is_float(np.dtype(dtype))


@pytest.mark.parametrize("name", INSTALLED)
def test_lossy_codecs_are_for_floats(name):
    codec = as_codec(name)
    key = "w" if codec.needs_key else None
    for dtype in ("i4", "?", "c8"):
        assert (unsuited(call(dtype=dtype, key=key), codec) is None) == codec.lossless
    assert unsuited(call(key=key), codec) is None
    assert unsuited(call(dtype=ml_dtypes.bfloat16, key=key), codec) is None


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("op", ["max", "min"])
def test_order_is_for_codecs_that_keep_it(name, op):
    codec = as_codec(name)
    reason = unsuited(call(op=op), codec)
    assert (reason is None) == (not codec.needs_key and (codec.lossless or codec.monotone))


def test_unknown_op():
    assert "op: prod" in unsuited(call(op="prod"), Identity())


def test_no_codec_is_native():
    plan = Fixed().plan(call())
    assert (plan.algorithm, plan.reason) == ("native", "")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"nbytes": 65535}, "65535 bytes are fewer than min_nbytes=65536"),
        ({"uniform": False}, "sizes"),
        ({"dtype": "i4"}, "dtype: int32"),
        ({"op": "prod"}, "op: prod"),
        ({"op": "max"}, "op: max"),
    ],
)
def test_native_for_a_reason(given, reason):
    plan = Fixed(as_codec("int8")).plan(call(**given))
    assert plan.algorithm == "native"
    assert reason in plan.reason


@pytest.mark.parametrize("nbytes", [65536, 1 << 30])
def test_the_codec_otherwise(nbytes):
    plan = Fixed(as_codec("int8")).plan(call(nbytes=nbytes))
    assert (plan.algorithm, plan.codec, plan.reason) == ("direct", as_codec("int8"), "")


def test_feedback_needs_a_key():
    policy = Fixed(as_codec("int4:feedback"))
    assert "key" in policy.plan(call()).reason
    assert policy.plan(call(key="w")).algorithm == "direct"
    assert policy.plan(call("bcast", op=None)).algorithm == "direct"


@pytest.mark.parametrize(
    ("collective", "op", "algorithm"),
    [("allreduce", "sum", "gathered"), ("reduce", "sum", "gathered"), ("reduce_scatter", "sum", "direct"),
     ("bcast", None, "direct"), ("allgather", None, "direct")],
)  # fmt: skip
def test_sparse_sums_are_gathered(collective, op, algorithm):
    assert plan_for(call(collective, op=op), as_codec("topk")).algorithm == algorithm


def test_algorithm_of_the_callers_choice():
    assert plan_for(call(), as_codec("int8"), "ring").algorithm == "ring"
    assert Fixed(as_codec("int8"), algorithm="ring").plan(call()).algorithm == "ring"


def test_a_rank_that_knows_its_own_block_only_decides_the_same():
    """Where sizes differ between ranks, nothing may follow from this rank's own."""
    policy = Fixed(as_codec("int8"))
    for collective in ("gather", "scatter", "alltoall"):
        plans = {policy.plan(call(collective, n, op=None, uniform=False)).algorithm for n in (1, 1 << 30)}
        assert len(plans) == 1
        assert len({plan_for(call(collective, n, op=None), as_codec("int8")) for n in (1, 1 << 30)}) == 1


def test_by_collective():
    policy = ByCollective({"allreduce": Fixed(as_codec("int8"), 100), "send": Fixed(as_codec("bf16"))})
    assert policy.plan(call()).codec == as_codec("int8")
    assert "99 bytes are fewer than min_nbytes=100" in policy.plan(call(nbytes=99)).reason
    for collective in ("reduce", "reduce_scatter", "allgather", "bcast"):
        plan = policy.plan(call(collective, op=None))
        assert (plan.algorithm, plan.codec, plan.reason) == ("native", Identity(), "")
    assert ByCollective().plan(call()).algorithm == "native"
