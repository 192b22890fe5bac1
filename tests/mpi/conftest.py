"""These tests are ranks themselves: ``mpirun -n 3 python -m pytest --with-mpi tests/mpi``."""

import pytest

#: Without progress for so long, an operation of a test fails.
DEADLINE_S = 30.0


def pytest_ignore_collect(collection_path, config):
    """`tests/test_mpirun.py` runs what lies here; no other run of pytest is to collect it."""
    return None if config.getoption("--with-mpi", False) else True


@pytest.fixture(scope="session")
def world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.fixture
def comm(world):
    """A `Comm` on a duplicate of the world, without a codec of its own."""
    from collcomp.mpi import Comm

    ours = Comm(world.Dup(), deadline=DEADLINE_S)
    yield ours
    ours.Free()


@pytest.fixture(params=["best", "mpi"])
def linked(request, world, monkeypatch):
    """A `Comm` over the best transport of this machine, and over MPI's messages."""
    from collcomp import mpi
    from collcomp.transports.mpi import MpiTransport

    if request.param == "mpi":
        monkeypatch.setattr(mpi, "mpi_transport", MpiTransport)
    ours = mpi.Comm(world.Dup(), deadline=DEADLINE_S)
    yield ours
    ours.Free()


@pytest.fixture(autouse=True)
def _in_step(world):
    """Ranks begin each test together, so that a failure is told where it happened."""
    world.Barrier()
