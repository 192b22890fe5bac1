"""Frames over MPI, for process groups whose ranks MPI started. Importing this module initialises MPI."""

from __future__ import annotations

from collections.abc import Sequence

from mpi4py import MPI

from collcomp.transports.base import Transport
from collcomp.transports.mpi import MpiTransport
from collcomp.transports.shared import mpi_transport

__all__ = ["mpi_transports", "world_rank"]


def world_rank() -> int | None:
    """Rank of this process in MPI's world; None where MPI does not take calls from several threads."""
    return MPI.COMM_WORLD.rank if MPI.Query_thread() >= MPI.THREAD_MULTIPLE else None


def mpi_transports(ranks: Sequence[int]) -> tuple[Transport, Transport]:
    """Transports for collectives and for messages between these ranks of MPI's world. Collective."""
    group = MPI.COMM_WORLD.Get_group().Incl(ranks)
    comm = MPI.COMM_WORLD.Create_group(group)
    group.Free()
    return mpi_transport(comm), MpiTransport(comm.Dup())
