"""Who sends which chunk to whom in which step, checked without running it, and how long it takes on a topology.

What a rank holds of a chunk is the set of ranks whose contributions are in it. A schedule is right if it leads from
the sets that a collective begins with to those that it has to end with, never adds a contribution twice, and never
sends what is not there; that is checked step by step, as in MSCCL's tools (Cowan et al., "MSCCLang", ASPLOS 2023).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from collcomp.errors import CollcompError
from collcomp.planner.topology.routes import Routes

__all__ = ["COLLECTIVES", "Schedule", "ScheduleError", "StepCost", "Transfer"]

#: What a schedule can be of; "reduce" and "bcast" have roots, "reduce_scatter" and "allgather" owners of chunks.
COLLECTIVES = ("allreduce", "reduce_scatter", "allgather", "reduce", "bcast")

#: Contributions of ranks, one bit each: sets that are quickly joined and compared.
_Held = int


class ScheduleError(CollcompError):
    """A schedule does not do what it is for.

    Attributes
    ----------
    step : int
        Where it is found; the number of steps where something is wrong at the end.
    rank, chunk : int
        Whose buffer, and which part of it.
    """

    def __init__(self, step: int, rank: int, chunk: int, fault: str) -> None:
        super().__init__(f"step {step}, rank {rank}, chunk {chunk}: {fault}")
        self.step = step
        self.rank = rank
        self.chunk = chunk


@dataclass(frozen=True, slots=True)
class Transfer:
    """A chunk goes from one rank to another; all transfers of a step read what was there before it.

    Attributes
    ----------
    step, source, dest, chunk : int
    adds : bool
        Whether it is added to what the receiver holds, or takes its place.
    encoded : bool
        Whether a codec shortens it, where there is one.
    """

    step: int
    source: int
    dest: int
    chunk: int
    adds: bool = False
    encoded: bool = True


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step costs on a topology, for a message of one byte.

    Attributes
    ----------
    latency : float
        Seconds of the slowest way.
    loads : ndarray of shape (links,)
        Bytes over each link.
    seconds_per_byte : float
        Of the busiest link.
    """

    latency: float
    loads: np.ndarray
    seconds_per_byte: float


@dataclass(frozen=True)
class Schedule:
    """A collective operation, chunk by chunk.

    Attributes
    ----------
    collective : str
        One of `COLLECTIVES`.
    size : int
        Number of ranks.
    shares : tuple of float
        Part of the message that each chunk is; 1 together.
    owners : tuple of int
        Who has each chunk at the beginning (allgather, bcast) or in the end (reduce_scatter, reduce); whoever does the
        sum of it in an allreduce.
    transfers : tuple of Transfer

    Raises
    ------
    ValueError
        If the collective is unknown, a transfer names a rank or chunk that there is not, or shares are none.
    """

    collective: str
    size: int
    shares: tuple[float, ...]
    owners: tuple[int, ...]
    transfers: tuple[Transfer, ...]

    def __post_init__(self) -> None:
        if self.collective not in COLLECTIVES:
            raise ValueError(f"collective: {self.collective!r} is none of {', '.join(COLLECTIVES)}")
        if len(self.owners) != len(self.shares) or not all(0 <= owner < self.size for owner in self.owners):
            raise ValueError(f"owners: {self.owners} do not name a rank of {self.size} for each of {len(self.shares)}")
        if abs(sum(self.shares) - 1) > 1e-6 or min(self.shares) < 0:
            raise ValueError(f"shares: {self.shares} are not 1 together")
        for one in self.transfers:
            if not (0 <= one.source < self.size and 0 <= one.dest < self.size and one.source != one.dest):
                raise ValueError(f"transfers: {one} is not between two of {self.size} ranks")
            if not 0 <= one.chunk < len(self.shares) or one.step < 0:
                raise ValueError(f"transfers: {one} is of no chunk of {len(self.shares)}, or of no step")

    @cached_property
    def steps(self) -> tuple[tuple[Transfer, ...], ...]:
        """Transfers of each step."""
        by_step: defaultdict[int, list[Transfer]] = defaultdict(list)
        for one in self.transfers:
            by_step[one.step].append(one)
        return tuple(tuple(by_step[step]) for step in range(max(by_step, default=-1) + 1))

    # ------------------------------------------------------------------ whether it is right

    def check(self) -> None:
        """Follow every contribution from the beginning to the end.

        Raises
        ------
        ScheduleError
            The first fault: a chunk is sent that the sender has not got, a contribution is added twice, one is
            overwritten, two transfers write to one place, or something is missing in the end.
        """
        held = [[self._first(rank, chunk) for chunk in range(len(self.shares))] for rank in range(self.size)]
        for step, transfers in enumerate(self.steps):
            arriving: defaultdict[tuple[int, int], list[tuple[Transfer, _Held]]] = defaultdict(list)
            for one in transfers:
                sent = held[one.source][one.chunk]
                if not sent:
                    raise ScheduleError(step, one.source, one.chunk, f"is sent to rank {one.dest}, but has not arrived")
                arriving[one.dest, one.chunk].append((one, sent))
            for (rank, chunk), writes in arriving.items():
                held[rank][chunk] = _written(step, rank, chunk, held[rank][chunk], writes)
        for chunk, owner in enumerate(self.owners):
            wanted = 1 << owner if self.collective in ("allgather", "bcast") else (1 << self.size) - 1
            ends_at_owner = self.collective in ("reduce", "reduce_scatter")
            for rank in [owner] if ends_at_owner else range(self.size):
                if held[rank][chunk] != wanted:
                    missing = _names(wanted & ~held[rank][chunk])
                    raise ScheduleError(len(self.steps), rank, chunk, f"lacks what {missing} had in the end")

    def _first(self, rank: int, chunk: int) -> _Held:
        moves = self.collective in ("allgather", "bcast")
        return 1 << rank if not moves or rank == self.owners[chunk] else 0

    # ------------------------------------------------------------------ how long it takes

    def costs(self, routes: Routes, devices: Sequence[str], ratio: float = 1.0) -> list[StepCost]:
        """What each step costs on a topology.

        Parameters
        ----------
        routes : Routes
        devices : sequence of str
            Where each rank runs.
        ratio : float
            By how much a codec shortens what is encoded.
        """
        if len(devices) != self.size:
            raise ValueError(f"devices: {len(devices)} of them, there are {self.size} ranks")
        known: dict[tuple[tuple[tuple[int, int], float], ...], StepCost] = {}  # a ring's steps are all alike
        costs = []
        for transfers in self.steps:
            pairs: defaultdict[tuple[int, int], float] = defaultdict(float)
            for one in transfers:
                pairs[one.source, one.dest] += self.shares[one.chunk] / (ratio if one.encoded else 1)
            looks = tuple(sorted(pairs.items()))
            if looks not in known:
                known[looks] = _step_cost(routes, devices, pairs.items())
            costs.append(known[looks])
        return costs

    def seconds(self, nbytes: float, routes: Routes, devices: Sequence[str], *, ratio: float = 1.0) -> float:
        """Predicted time for a message of `nbytes`: latency, then the busiest link, step after step."""
        return sum(cost.latency + nbytes * cost.seconds_per_byte for cost in self.costs(routes, devices, ratio))


def _step_cost(routes: Routes, devices: Sequence[str], pairs: Iterable[tuple[tuple[int, int], float]]) -> StepCost:
    loads, latency = np.zeros(len(routes.links)), 0.0
    for (source, dest), share in pairs:
        if devices[source] != devices[dest]:
            links, parts = routes.shares(devices[source], devices[dest])
            loads[links] += share * parts
            latency = max(latency, routes.latency(devices[source], devices[dest]))
    return StepCost(latency, loads, float((loads / routes.bandwidths).max(initial=0.0)))


def _written(step: int, rank: int, chunk: int, before: _Held, writes: Sequence[tuple[Transfer, _Held]]) -> _Held:
    """What a rank holds of a chunk after a step in which this arrives."""
    if len(writes) > 1 and not all(one.adds for one, _ in writes):
        sources = ", ".join(str(one.source) for one, _ in writes)
        raise ScheduleError(step, rank, chunk, f"is written by ranks {sources} at once")
    after = before
    for one, sent in writes:
        if not one.adds:
            if before & ~sent:
                lost = _names(before & ~sent)
                raise ScheduleError(step, rank, chunk, f"loses what {lost} had, overwritten by rank {one.source}")
            return sent
        if not before:
            raise ScheduleError(step, rank, chunk, f"is added to by rank {one.source}, but has not arrived")
        if after & sent:
            raise ScheduleError(step, rank, chunk, f"gets what {_names(after & sent)} had twice, from {one.source}")
        after |= sent
    return after


def _names(held: _Held) -> str:
    ranks = [str(rank) for rank in range(held.bit_length()) if held >> rank & 1]
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(ranks)}"
