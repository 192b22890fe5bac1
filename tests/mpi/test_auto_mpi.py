"""``codec="auto"`` over MPI: measured at the first call, then never asked for small messages."""

import numpy as np
import pytest
from helpers import F32, operands, same_bits
from mpi4py import MPI

from collcomp import calibration
from collcomp.codecs import Identity
from collcomp.collectives import NATIVE
from collcomp.mpi import Comm
from collcomp.planner.cost import NATIVE_CODEC, CodecCost, CostModel, Network
from collcomp.policies import Auto

pytestmark = pytest.mark.mpi

SIZE, RANK = MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()
FAST = calibration.Effort(longest=1e-3, seconds=1e-3, fewest=1, most=2, largest=1 << 14)


@pytest.fixture
def ours(world):
    comm = Comm(world.Dup(), codec="auto:int8", deadline=30.0)
    comm.calibrate("allreduce", FAST)
    yield comm
    comm.Free()


def test_all_ranks_know_the_same(ours):
    if SIZE == 1:
        return
    models = MPI.COMM_WORLD.allgather(ours.policy.model.to_dict())
    assert all(model == models[0] for model in models)
    assert {fit["algorithm"] for fit in models[0]["fits"]} == {"native", "direct"}


@pytest.mark.parametrize("count", [1, 100, 3000, 100_003])
def test_sums_are_right_whatever_was_chosen(ours, count):
    xs = operands(SIZE, count)
    for _ in range(2):
        ours.Allreduce(xs[RANK], recv := np.empty_like(xs[RANK]))
        assert np.abs(recv - np.sum(xs, axis=0, dtype=np.float64)).max() <= (SIZE + 1) / 100
        assert ours.records[-1].codec in ("none", "identity", "int8")
        assert len(set(MPI.COMM_WORLD.allgather(ours.records[-1].algorithm))) == 1
    assert ours.records[-1].reason or SIZE == 1


def test_small_messages_go_straight_to_mpi_and_are_recorded(world):
    """By a model that nobody measured, so that what is small is known."""
    costs = {"identity": CodecCost(4.0, 0.0, 1e-10, lossless=True), "int8": CodecCost(1.0, 1e-10, 1e-10)}
    model = CostModel(SIZE, Network(1e-6, 25e6), costs)
    ways = [(NATIVE, NATIVE_CODEC, 1e-6), ("direct", "identity", 1e-3), ("direct", "int8", 1e-3)]
    times = {("allreduce", *way): {8: model.law("allreduce", *way, 8) + overhead} for *way, overhead in ways}
    comm = Comm(world.Dup(), policy=Auto(["int8"], model.with_measured(times, {})), deadline=30.0)
    x = np.arange(2, dtype=F32)
    for _ in range(3):
        comm.Allreduce(x, recv := np.empty_like(x))
        assert same_bits(recv, x * SIZE)
    large = np.ones(1 << 18, F32)
    comm.Allreduce(large, recv := np.empty_like(large))
    assert (recv == SIZE).all()
    assert [record.algorithm for record in comm.records] == ["native"] * 3 + ["direct" if SIZE > 1 else "native"]
    assert all(record.reason for record in comm.records)
    comm.Free()


def test_integers_are_exact(ours):
    x = np.arange(1 << 16, dtype=np.int64) + RANK
    ours.Allreduce(x, recv := np.empty_like(x))
    assert (recv == SIZE * np.arange(1 << 16) + sum(range(SIZE))).all()


def test_one_call(world, monkeypatch):
    monkeypatch.setattr(calibration, "QUICK", FAST)
    comm = Comm(world.Dup(), deadline=30.0)
    comm.calibrate("allreduce", FAST, codec="auto:int8")
    comm.calibrate("bcast", FAST, codec="auto:int8")
    x = np.full(50_000, RANK + 1, F32)
    comm.Allreduce(x, recv := np.empty_like(x), codec="auto:int8")
    assert np.allclose(recv, sum(range(1, SIZE + 1)), rtol=0.01)
    comm.Bcast(x, codec="auto:int8")
    assert np.allclose(x, 1, rtol=0.01)
    comm.Free()


def test_other_ranks_raise_too(ours):
    x = np.ones(100, F32)
    if SIZE > 1:
        with pytest.raises(Exception, match="recvbuf"):
            ours.Allreduce(x, np.empty(99 if RANK == 0 else 100, F32), codec="identity")
    ours.Allreduce(x, recv := np.empty_like(x), codec=Identity())
    assert (recv == SIZE).all()


@pytest.mark.parametrize("codec", ["auto:int9", "auto:error=2"])
def test_wrong_specs_are_told_at_once(world, codec):
    with pytest.raises(ValueError, match="codec"):
        Comm(world, codec=codec)


def test_nothing_to_calibrate(ours, comm):
    with pytest.raises(ValueError, match="chooses nothing"):
        comm.calibrate("allreduce")
    with pytest.raises(ValueError, match="collective: 'barrier'"):
        ours.calibrate("barrier")
