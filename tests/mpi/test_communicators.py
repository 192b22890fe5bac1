"""A `Comm` is an `MPI.Intracomm`, and so are the communicators that it gives birth to."""

import numpy as np
import pytest
from mpi4py import MPI

from collcomp.mpi import Comm

pytestmark = pytest.mark.mpi

WORLD = MPI.COMM_WORLD
SIZE, RANK = WORLD.Get_size(), WORLD.Get_rank()


@pytest.fixture
def settled(world):
    """A `Comm` whose settings are not the defaults."""
    ours = Comm(world.Dup(), codec="int8:block=64", min_nbytes=128, deadline=30.0, measure_error=True)
    yield ours
    ours.Free()


def check_like(child, parent, size=SIZE):
    """`child` is a `Comm` with the settings of `parent`, and works."""
    assert type(child) is Comm
    assert child.Get_size() == size
    assert child.records is parent.records
    x = np.linspace(-1, 1, 1000, dtype=np.float32)
    child.Allreduce(x, result := np.empty_like(x))
    record = parent.records[-1]
    assert record.nbytes == 4000
    if size > 1:
        assert (record.codec, record.algorithm) == ("int8:block=64", "direct")
        assert record.error_norm > 0
    np.testing.assert_allclose(result, size * x, atol=0.02 * size)
    child.Allreduce(x[:10], result[:10])
    assert record is not parent.records[-1]
    assert parent.records[-1].algorithm == "native"


def test_is_one():
    ours = Comm(WORLD)
    assert isinstance(ours, MPI.Intracomm)
    assert MPI.Comm.Compare(ours, WORLD) == MPI.IDENT
    assert ours == WORLD
    assert (ours.rank, ours.size, ours.name) == (RANK, SIZE, WORLD.name)
    assert (ours.Get_rank(), ours.Get_size(), ours.handle) == (RANK, SIZE, WORLD.handle)
    assert not ours.is_inter
    assert ours.is_intra
    assert bool(ours)
    assert ours.group.Get_size() == SIZE


def test_is_made_of_intracommunicators_only():
    with pytest.raises(TypeError, match=r"comm: expected an MPI\.Intracomm, got int"):
        Comm(3)


@pytest.mark.parametrize(
    ("options", "error"), [({"codec": "int5"}, ValueError), ({"codec": 3}, TypeError), ({"color": 3}, TypeError)]
)
def test_wrong_settings(options, error):
    with pytest.raises(error):
        Comm(WORLD, **options)


@pytest.mark.parametrize("how", ["Dup", "Clone", "Dup_with_info", "Idup", "Idup_with_info"])
def test_duplicates(how, settled):
    info = MPI.Info.Create()
    child = getattr(settled, how)(*([info] if "info" in how else []))
    if how[0] == "I":
        child, request = child
        request.Wait()
    check_like(child, settled)
    assert MPI.Comm.Compare(child, settled) == MPI.CONGRUENT
    child.Free()
    info.Free()


def test_split(settled):
    child = settled.Split(RANK % 2, -RANK)
    check_like(child, settled, len(range(RANK % 2, SIZE, 2)))
    assert child.Get_rank() == child.Get_size() - 1 - RANK // 2
    child.Free()


def test_split_undefined(settled):
    child = settled.Split(MPI.UNDEFINED if RANK == 0 else 1)
    if RANK == 0:
        assert child == MPI.COMM_NULL
        assert not child
    else:
        check_like(child, settled, SIZE - 1)
        child.Free()


def test_split_type(settled):
    child = settled.Split_type(MPI.COMM_TYPE_SHARED)
    check_like(child, settled, WORLD.Split_type(MPI.COMM_TYPE_SHARED).Get_size())
    child.Free()


@pytest.mark.parametrize("how", ["Create", "Create_group"])
def test_create(how, settled):
    group = settled.Get_group().Incl([0])
    if how == "Create_group" and RANK:
        return
    child = getattr(settled, how)(group)
    if RANK == 0:
        check_like(child, settled, 1)
        child.Free()
    else:
        assert child == MPI.COMM_NULL


def test_free():
    ours = Comm(WORLD.Dup(), deadline=30.0)
    x = np.ones(10, np.float32)
    ours.Allreduce(x, x.copy(), codec="int8")
    ours.Free()
    assert ours == MPI.COMM_NULL
    never_used = Comm(WORLD.Dup())
    never_used.Free()
    assert not never_used


def test_many_communicators_come_and_go():
    for _ in range(20):
        ours = Comm(WORLD.Dup(), deadline=30.0)
        ours.Allreduce(np.ones(100, np.float32), result := np.empty(100, np.float32), codec="int8")
        assert result[0] == pytest.approx(SIZE, rel=1e-2)
        ours.Free()


def test_two_on_one_communicator_do_not_mix(world):
    a, b = Comm(world.Dup(), deadline=30.0), None
    b = Comm(a, deadline=30.0)
    x = np.full(100_000, RANK, np.float32)
    requests = [one.Iallreduce(x, np.empty_like(x), codec=codec) for one, codec in ((a, "int8"), (b, "bf16"))]
    for request in reversed(requests):
        request.Wait()
    b._engine.close()
    b._engine = None
    a.Free()


@pytest.mark.parametrize("make", ["Create_cart", "Create_graph", "Create_dist_graph_adjacent", "Create_intercomm"])
def test_topologies_are_mpis_own(make, comm):
    if make == "Create_cart":
        child = comm.Create_cart([SIZE])
        assert type(child) is MPI.Cartcomm
        assert child.Get_coords(RANK) == [RANK]
    elif make == "Create_graph":
        child = comm.Create_graph(list(range(1, SIZE + 1)), [(r + 1) % SIZE for r in range(SIZE)])
        assert type(child) is MPI.Graphcomm
    elif make == "Create_dist_graph_adjacent":
        child = comm.Create_dist_graph_adjacent([(RANK - 1) % SIZE], [(RANK + 1) % SIZE])
        assert type(child) is MPI.Distgraphcomm
    else:
        if SIZE < 2:
            pytest.skip("two groups need two ranks")
        half = comm.Split(RANK % 2)
        child = half.Create_intercomm(0, comm, 1 - RANK % 2)
        assert type(child) is MPI.Intercomm
        half.Free()
    child.Free()


def test_attributes_and_names(comm):
    key = MPI.Comm.Create_keyval()
    comm.Set_attr(key, {"a": 1})
    assert comm.Get_attr(key) == {"a": 1}
    comm.Delete_attr(key)
    MPI.Comm.Free_keyval(key)
    comm.Set_name("ours")
    assert comm.Get_name() == "ours"
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    assert comm.Get_errhandler() == MPI.ERRORS_RETURN
