"""Ranks of MPI that talk to each other over TCP, by paths of their own; MPI only tells them where they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from collcomp.communicator import Communicator
from collcomp.planner.layout import Layout
from collcomp.transports.tcp import TcpTransport

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["GatheredStore", "over_tcp"]

_TIMEOUT_S = 60.0


class GatheredStore:
    """What `TcpTransport` publishes, known to all ranks of an MPI communicator after `share`."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        """Publish `value`."""
        self._values[key] = value

    def get(self, key: str) -> bytes:
        """The value of `key`."""
        return self._values[key].encode()

    def share(self, comm: MPI.Intracomm) -> None:
        """Have all ranks know what each has published. Collective."""
        self._values = {key: value for values in comm.allgather(self._values) for key, value in values.items()}


@contextmanager
def over_tcp(
    comm: MPI.Intracomm,
    paths: Sequence[str],
    weights: Sequence[float] | None = None,
    layout: Layout | None = None,
) -> Iterator[tuple[Communicator, TcpTransport]]:
    """A communicator of the same ranks whose bytes go by TCP. Collective.

    Parameters
    ----------
    comm : MPI.Intracomm
    paths : sequence of str
        This rank's own addresses; see `TcpTransport`.
    weights : sequence of float, optional
    layout : Layout, optional
    """
    store = GatheredStore()
    transport = TcpTransport(
        store, comm.rank, comm.size, host=paths[0], timeout=_TIMEOUT_S, paths=paths, weights=weights
    )
    store.share(comm)
    engine = Communicator(transport, deadline=_TIMEOUT_S, layout=layout)
    try:
        yield engine, transport
    finally:
        engine.close()
