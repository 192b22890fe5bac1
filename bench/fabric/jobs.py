"""Two jobs at once, each with ranks at both leaves: a spine for each job, or whatever a hash gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ..ranks import World
from .peers import over_tcp
from .plans import planned_paths
from .spec import HASHED, rank_address
from .trial import allreduce, run

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["JOBS", "Shared", "job_of", "shared"]

JOBS = 2


@dataclass(frozen=True)
class Shared:
    """One row.

    Attributes
    ----------
    how : str
    seconds : tuple of float
        Of each job.
    slower : float
        Seconds of the slowest job.
    times : float
        These over those with placed flows.
    busiest : float
        Largest share of a leaf's bytes that one of its uplinks carried.
    """

    how: str
    seconds: tuple[float, ...]
    slower: float
    times: float
    busiest: float


def job_of(rank: int, ranks: int) -> int:
    """Which job a rank belongs to: each has neighbours at each leaf, where ranks are placed in blocks."""
    return rank * 2 * JOBS // ranks % JOBS


def shared(world: World, nbytes: int, iterations: int, draws: int) -> Iterator[Shared]:
    """Allreduces of all jobs at once, with placed flows, then with so many draws of hashed ones. Collective."""
    job = job_of(world.rank, world.size)
    members = [[rank for rank in range(world.size) if job_of(rank, world.size) == j] for j in range(JOBS)]
    comm = cast("MPI.Intracomm", world.comm.Split(job, world.rank))
    spines = planned_paths(world, members, nbytes)
    placed: float | None = None
    with over_tcp(world.comm, [rank_address(world.rank, HASHED)]) as (control, _):
        for draw in range(draws + 1):
            path = HASHED if draw else spines[job]
            # New connections have other ports, which other spines may be chosen by.
            with over_tcp(comm, [rank_address(world.rank, path)]) as (engine, _):
                timed = run(world, control, allreduce(comm, nbytes, "ring", engine), iterations)
            seconds = tuple(timed.median_of(ranks) for ranks in members)
            placed = placed or max(seconds)
            share = (timed.crossed.max(axis=1) / timed.crossed.sum(axis=1)).max()
            how = f"hashed, draw {draw}" if draw else "placed, by spine " + " and ".join(map(str, spines))
            yield Shared(how, seconds, max(seconds), max(seconds) / placed, float(share))
    comm.Free()
