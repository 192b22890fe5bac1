"""Who has started the ranks, as their environment tells."""

# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch")

from collcomp.torch.rendezvous import mpi_started_us


@pytest.fixture
def plain(monkeypatch):
    for name in ("RANK", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("variable", ["PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"])
def test_mpirun(plain, variable):
    assert not mpi_started_us()
    plain.setenv(variable, "1")
    assert mpi_started_us()


def test_a_rank_given_by_hand_counts_more(plain):
    plain.setenv("PMI_RANK", "0")  # as under srun
    plain.setenv("RANK", "3")
    assert not mpi_started_us()
