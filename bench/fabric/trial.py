"""Allreduces that start on all ranks at once, timed by the slowest rank, with the result checked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from collcomp.codecs import Identity
from collcomp.collectives import HIERARCHICAL
from collcomp.communicator import Communicator

from ..osu.message import values
from ..osu.validate import check_sum, differing, judge
from ..ranks import MeasurementError, World
from .uplinks import Uplinks

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Timed", "allreduce", "run"]


@dataclass(frozen=True)
class Timed:
    """What came out.

    Attributes
    ----------
    by_rank : ndarray of float, shape (ranks, iterations)
        Seconds.
    crossed : ndarray of float, shape (leaves, spines)
        Bytes that each leaf has sent to each spine in an iteration, headers included.
    """

    by_rank: np.ndarray
    crossed: np.ndarray

    @property
    def median(self) -> float:
        """Seconds of an iteration, by the slowest rank."""
        return self.median_of(range(len(self.by_rank)))

    def median_of(self, ranks: Sequence[int]) -> float:
        """Seconds of an iteration, by the slowest of these ranks."""
        return float(np.median(self.by_rank[list(ranks)].max(axis=0)))


class allreduce:  # noqa: N801 - what it does
    """An allreduce of known values among the ranks of `comm`, without compression.

    Parameters
    ----------
    comm : MPI.Intracomm
        Of the ranks that take part.
    nbytes : int
    algorithm : str
    engine : Communicator, optional
        That does it; MPI itself where there is none.
    groups : sequence of sequence of int
        For algorithm "hierarchical".
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        nbytes: int,
        algorithm: str,
        engine: Communicator | None = None,
        groups: Sequence[Sequence[int]] = (),
    ) -> None:
        self._comm, self._engine, self._algorithm = comm, engine, algorithm
        self._groups = groups if algorithm == HIERARCHICAL else ()
        self._send = values(comm.rank, 0, nbytes // 4)
        self._recv = np.empty_like(self._send)

    def __call__(self) -> None:
        if self._engine is None:
            self._comm.Allreduce(self._send, self._recv)
        else:
            self._engine.allreduce(self._send, self._recv, codec="identity", algorithm=self._algorithm)

    def wrong(self) -> int:
        """Number of elements of the last result that are further from the float64 sum than they may be. Collective."""
        everything = slice(0, self._recv.size)
        size = self._comm.size
        checks = check_sum(
            self._recv, Identity(), self._algorithm, size, self._recv.size, everything, self._groups,
            reencoded=range(size),
        )  # fmt: skip
        return judge(checks).wrong + differing(self._comm, self._recv)


def run(world: World, control: Communicator, action: allreduce, iterations: int, warm_up: bool = True) -> Timed:
    """Time `action` so often, after a call that warms up, and check the last result. Collective over all ranks.

    Parameters
    ----------
    world : World
    control : Communicator
        Of all ranks, to wait for each other: ranks of MPI poll while they wait, and take the others' time.
    action : allreduce
    iterations : int
    warm_up : bool

    Raises
    ------
    MeasurementError
        If a result is wrong.
    """
    assert world.network is not None
    uplinks = Uplinks(world.network)
    if warm_up:
        _meet(control)
        action()
    seconds = []
    _meet(control)
    before = uplinks.sent()
    for _ in range(iterations):
        _meet(control)
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    _meet(control)
    crossed = (uplinks.sent() - before) / iterations
    wrong = sum(world.comm.allgather(action.wrong()))
    if wrong:
        raise MeasurementError(f"{wrong} elements of an allreduce are wrong")
    return Timed(np.array(world.comm.allgather(seconds)), world.comm.bcast(crossed))


def _meet(control: Communicator) -> None:
    """Return when all ranks have come."""
    control.allreduce(np.zeros(1, np.float32), np.empty(1, np.float32), codec="identity", algorithm="direct")
