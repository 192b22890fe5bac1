"""Calls are checked and planned before anything moves."""

import numpy as np
import pytest
from helpers import F32, uniform

from collcomp.codecs import Identity, as_codec
from collcomp.feedback import Residuals
from collcomp.operation import IN_PLACE, How, Planner
from collcomp.policies import Fixed


def planner(rank=0, size=4, *, codec=None, native=False):
    return Planner(rank, size, Fixed(None if codec is None else as_codec(codec)), Residuals(), native)


def prepare(collective, *args, on=None, **how):
    return (on or planner()).prepare(collective, args, How(**how), {})


def test_views_not_copies():
    x, y = uniform(8), uniform(8)
    operation = prepare("allreduce", x, y, codec="int8")
    assert np.shares_memory(operation.args[0], x)
    assert np.shares_memory(operation.args[1], y)
    assert (operation.collective, operation.plan.algorithm, operation.plan.codec.spec) == (
        "allreduce",
        "direct",
        "int8",
    )
    assert operation.message.flat.size == 8


def test_in_place_has_one_buffer():
    x = uniform(8)
    send, recv, _ = prepare("allreduce", IN_PLACE, x).args
    assert send is recv


def test_native_only_where_there_is_a_library():
    assert prepare("allreduce", uniform(8), uniform(8), on=planner(native=True)).native
    operation = prepare("allreduce", uniform(8), uniform(8), on=planner(native=False))
    assert not operation.native
    assert operation.plan.codec == Identity()


def test_asked_for_natively():
    on = planner(codec="int8", native=True)
    assert prepare("allreduce", uniform(8), uniform(8), on=on, algorithm="native").native


def test_default_codec():
    x = uniform(1 << 16)
    for native in (True, False):
        on = planner(codec="int8", native=native)
        assert prepare("allreduce", x, x.copy(), on=on).plan.codec.spec == "int8"
        small = prepare("allreduce", x[:9], x[:9].copy(), on=on)
        assert small.native is native
        assert "36 bytes" in small.plan.reason


def test_one_rank_needs_no_codec():
    operation = prepare("allreduce", uniform(8), uniform(8), on=planner(size=1), codec="int4")
    assert operation.plan.codec == Identity()


def test_residual_by_key():
    on = planner()
    first = prepare("allreduce", uniform(8), uniform(8), on=on, codec="int4:feedback", key="w")
    again = prepare("allreduce", uniform(8), uniform(8), on=on, codec="int4:feedback", key="w")
    assert first.memory is again.memory
    assert prepare("allreduce", uniform(8), uniform(8), on=on, codec="int4", key="w").memory is None
    assert prepare("bcast", uniform(8), on=on, codec="int4:feedback", key="w").memory is None


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_root_needs_what_only_the_root_uses(rank):
    on = planner(rank)
    x = uniform(4)
    prepare("reduce", x, uniform(4) if rank == 0 else None, on=on)
    prepare("gather", x, uniform(16) if rank == 0 else None, on=on)
    prepare("scatter", uniform(16) if rank == 0 else None, x, on=on)


def test_receive_buffers_with_gaps_are_written_back():
    recv = np.zeros((8, 2), F32)
    operation = prepare("allreduce", uniform(8), recv[:, 0])
    operation.args[1][...] = 5
    assert not recv.any()
    for output in operation.outputs:
        output.commit()
    assert (recv[:, 0] == 5).all()
    assert not recv[:, 1].any()


def test_repr_of_in_place():
    assert repr(IN_PLACE) == "IN_PLACE"
