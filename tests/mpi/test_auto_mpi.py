"""``codec="auto"`` over MPI: measured at the first call, then never asked for small messages."""

import contextlib
import json

import numpy as np
import pytest
from helpers import F32, operands, same_bits
from mpi4py import MPI

from collcomp import calibration, mpi
from collcomp.codecs import Identity
from collcomp.collectives import NATIVE
from collcomp.errors import CollcompError
from collcomp.mpi import Comm
from collcomp.planner.cost import CALIBRATION, NATIVE_CODEC, CodecCost, CostModel, Network
from collcomp.planner.layout import Layout
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
    assert all("fewer than" in record.reason for record in list(comm.records)[1:3]), "these asked for no plan"
    comm.Free()


def test_integers_are_exact(ours):
    x = np.arange(1 << 16, dtype=np.int64) + RANK
    ours.Allreduce(x, recv := np.empty_like(x))
    assert (recv == SIZE * np.arange(1 << 16) + sum(range(SIZE))).all()


def test_one_call(world):
    comm = Comm(world.Dup(), deadline=30.0)
    comm.calibrate("allreduce", FAST, codec="auto:int8")
    comm.calibrate("bcast", FAST, codec="auto:int8")
    x = np.full(50_000, RANK + 1, F32)
    comm.Allreduce(x, recv := np.empty_like(x), codec="auto:int8")
    assert np.allclose(recv, sum(range(1, SIZE + 1)), rtol=0.01)
    comm.Bcast(x, codec="auto:int8")
    assert np.allclose(x, 1, rtol=0.01)
    comm.Free()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(mpi, "QUICK", FAST)


def test_the_first_call_measures(world, quick):
    comm = Comm(world.Dup(), codec="auto:int8", deadline=30.0)
    x = np.full(1000, RANK + 1, F32)
    request = comm.Iallreduce(x, recv := np.empty_like(x))
    request.Wait()
    assert "not measured" in comm.records[-1].reason or SIZE == 1, "a nonblocking call cannot"
    comm.Allreduce(x, recv)
    assert np.allclose(recv, sum(range(1, SIZE + 1)), rtol=0.02)
    assert SIZE == 1 or comm.policy.knows("allreduce")
    assert not comm.policy.knows("bcast") or SIZE == 1
    again = comm.Dup()
    again.Allreduce(x, recv)
    assert again.policy.model == comm.policy.model, "of the same ranks"
    again.Free()
    comm.Free()


@pytest.mark.parametrize("small", [False, True])
def test_an_error_on_one_rank_shifts_no_numbers(world, small):
    """Ranks that find out in other ways that a call is wrong, or native, stay in step."""
    comm = Comm(world.Dup(), codec="int8", min_nbytes=4000, deadline=5.0)
    x = np.full(16 if small else 4000, RANK + 1, F32)
    result = np.empty(x.size - (RANK == 0), F32)  # too short on rank 0
    with contextlib.suppress(ValueError, CollcompError, MPI.Exception):
        comm.Reduce(x, result, average=True) if small else comm.Allreduce(x, result)
    MPI.COMM_WORLD.Barrier()
    for step in range(1, 4):
        x = np.full(4000, 10.0**step, F32)
        comm.Allreduce(x, recv := np.empty_like(x))
        assert np.allclose(recv, SIZE * 10.0**step, rtol=0.02), step
    # Not freed: MPI would give its number, and what was never received, to another communicator.


@pytest.mark.skipif(SIZE == 1, reason="a rank alone measures nothing")
def test_a_rank_that_cannot_measure_is_heard_of(world, quick, monkeypatch):
    comm = Comm(world.Dup(), codec="auto:int8", deadline=30.0)
    if RANK == 0:
        monkeypatch.setattr(calibration, "codec_cost", lambda codec: 1 / 0)
    x = np.ones(1000, F32)
    with pytest.raises(ZeroDivisionError if RANK == 0 else Exception, match="division by zero"):
        comm.Allreduce(x, np.empty_like(x))
    monkeypatch.undo()
    comm.Allreduce(x, recv := np.empty_like(x), codec=Identity())
    assert (recv == SIZE).all()
    comm.Free()


@pytest.mark.skipif(SIZE == 1, reason="a rank alone asks for no file")
@pytest.mark.parametrize("here", ["all", "one without", "one broken"])
def test_a_file_of_measurements(world, quick, monkeypatch, tmp_path, here):
    comm = Comm(world.Dup(), codec="auto:int8", deadline=30.0)
    model = comm.calibrate("allreduce", FAST)
    comm.Free()
    path = tmp_path / "topology.json"
    path.write_text(json.dumps({"calibration": model.to_dict()}))
    if RANK == 0 and here == "one broken":
        path.write_text("{}")
    if RANK == 0 and here == "one without":
        monkeypatch.delenv(CALIBRATION, raising=False)
    else:
        monkeypatch.setenv(CALIBRATION, str(path))
    comm = Comm(world.Dup(), codec="auto:int8", deadline=30.0)
    x = np.ones(1000, F32)
    if here == "one broken":
        with pytest.raises(ValueError, match=CALIBRATION):
            comm.Allreduce(x, np.empty_like(x))
    else:
        comm.Allreduce(x, recv := np.empty_like(x))
        assert np.allclose(recv, SIZE, rtol=0.02)
        assert comm.policy.knows("allreduce")
        assert (comm.policy.model == model) == (here == "all")
    comm.Free()


@pytest.mark.skipif(SIZE < 3, reason="pieces of two sizes")
def test_pieces_learn_for_themselves(world, quick):
    comm = Comm(world.Dup(), codec="auto:int8", deadline=30.0)
    model = comm.calibrate("bcast", FAST)
    piece = comm.Split(RANK // 2)
    x = np.full(3000, RANK, F32)
    piece.Bcast(x)
    assert comm.policy.model is model
    comm.Bcast(x)
    assert piece.Get_size() == 1 or piece.policy.model.size == piece.Get_size()
    piece.Free()
    comm.Free()


@pytest.mark.skipif(SIZE == 1, reason="a rank alone lies in no groups")
def test_layouts_that_not_all_have_are_no_groups(world, quick, monkeypatch, tmp_path):
    path = tmp_path / "layout.json"
    Layout(tuple(range(SIZE)), tuple((rank,) for rank in range(SIZE))).save(path)
    if RANK:
        monkeypatch.setenv("COLLCOMP_LAYOUT", str(path))
    comm = Comm(world.Dup(), codec="auto:int8", deadline=30.0)
    x = np.ones(1000, F32)
    comm.Allreduce(x, recv := np.empty_like(x))
    assert np.allclose(recv, SIZE, rtol=0.02)
    assert comm.policy.model.groups == 1
    comm.Free()


@pytest.mark.parametrize("codec", ["auto:int9", "auto:error=2"])
def test_wrong_specs_are_told_at_once(world, codec):
    with pytest.raises(ValueError, match="codec"):
        Comm(world, codec=codec)


def test_nothing_to_calibrate(ours, comm):
    with pytest.raises(ValueError, match="chooses nothing"):
        comm.calibrate("allreduce")
    with pytest.raises(ValueError, match="collective: 'barrier'"):
        ours.calibrate("barrier")
