"""Bus bandwidths of jobs whose placed flows are the edges of rings, by simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from collcomp.planner.flows.table import Flow, FlowTable, Placement, Way
from collcomp.planner.simulation.simulate import Transfers, routes_of, simulate

__all__ = ["NBYTES", "bus_bandwidths", "random_rings"]

#: Of each edge and step; every result is a rate, so any number does.
NBYTES = 1e9

#: Collectives of each job, one after another, so that nobody runs alone at the end.
_REPEATS = 2


def random_rings(hosts: int, jobs: int, ports: int, rng: np.random.Generator) -> list[Flow]:
    """The edges of a ring of each job, job r with the cards r of all hosts, in random order.

    Parameters
    ----------
    hosts, jobs : int
    ports : int
        Of each card.
    rng : numpy.random.Generator
    """
    flows = []
    for job in range(jobs):
        ends = [tuple(f"host{host}.nic{job}.port{port}" for port in range(ports)) for host in rng.permutation(hosts)]
        flows += [Flow(f"job{job}", ends[i - 1], ends[i], NBYTES) for i in range(hosts)]
    return flows


def bus_bandwidths(table: FlowTable, edge_rate: float, *, paced: bool = False) -> dict[str, float]:
    """Bytes per second of each job's ring.

    A ring is a pipeline, so it is as fast as its slowest edge; the bytes of an edge are divided among its queue pairs
    beforehand, so an edge is as fast as the slowest of them.

    Parameters
    ----------
    table : FlowTable
        All edges of a job move the same bytes.
    edge_rate : float
        Bytes per second that an edge moves at most.
    paced : bool
        Queue pairs share links in proportion to their bytes, not alike.
    """
    edges = table.placements
    number = {edge: i for i, edge in enumerate(edges)}
    capacities = np.append(table.bandwidths[:-1], np.full(len(edges), edge_rate))
    jobs = _Jobs(len(capacities) - len(edges), paced)
    last = {job: jobs.add(members, number) for job, members in table.jobs.items()}
    finished = simulate(jobs.transfers(len(capacities)), capacities).finished
    return {job: _REPEATS * table.jobs[job][0].flow.nbytes / finished[event] for job, event in last.items()}


class _Jobs:
    """Transfers of all jobs, and what each waits for."""

    def __init__(self, links: int, paced: bool) -> None:
        self.links, self.paced = links, paced
        self.paths: list[Sequence[int]] = []
        self.nbytes: list[float] = []
        self.weights: list[float] = []
        self.waits: list[tuple[int, int]] = []

    def add(self, edges: Sequence[Placement], number: dict[Placement, int]) -> int:
        """Add a job; the event of its end."""
        ended: int | None = None
        for _ in range(_REPEATS):
            begun = len(self.paths)
            for edge in edges:
                self._add_edge(edge, self.links + number[edge])
            members = range(begun, len(self.paths))
            if ended is not None:
                self.waits += [(ended, member) for member in members]
            ended = len(self.paths)
            self.waits += [(member, ended) for member in members]
            self._add((), 0.0, 1.0)
        assert ended is not None
        return ended

    def _add_edge(self, edge: Placement, link: int) -> None:
        # Queue pairs that go the same way are one transfer, with the share in links of as many.
        queue_pairs: Counter[Way] = Counter(edge.ways)
        shares = dict.fromkeys(edge.ways, 0.0)
        for way, share in zip(edge.ways, edge.shares, strict=True):
            shares[way] += share
        for way, share in shares.items():
            self._add((*way, link), share * edge.flow.nbytes, share if self.paced else queue_pairs[way])

    def _add(self, path: Sequence[int], nbytes: float, weight: float) -> None:
        self.paths.append(path)
        self.nbytes.append(nbytes)
        self.weights.append(weight)

    def transfers(self, links: int) -> Transfers:
        """All of them."""
        before, after = np.array(self.waits, np.int64).T
        return Transfers(
            routes_of(self.paths, links), np.array(self.nbytes), before=before, after=after,
            weights=np.array(self.weights, np.float64),
        )  # fmt: skip
