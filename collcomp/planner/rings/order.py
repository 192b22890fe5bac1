"""Ring orders that cross scarce links least.

A byte that goes round a ring passes every link that an edge of the ring is routed over, so the ring is as slow as its
busiest link: seconds per byte = the largest load over bandwidth. Few devices are ordered exactly (a mixed-integer
program); more of them by structure, then local search under prices of links that rise where they are busy; and always
the gap to a bound that no ring can beat is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from collcomp.planner.rings import tours
from collcomp.planner.rings.bounds import crossing_bound, cut_bound, way_bound
from collcomp.planner.rings.start import Clusters, first_ring
from collcomp.planner.topology import Topology
from collcomp.planner.topology.routes import Routes

__all__ = ["PairLoads", "RingPlan", "edges_of", "ring_order"]

#: Up to so many devices all pairs are looked at, and up to so many a mixed-integer program is solved.
_MOST_PAIRED, _MOST_EXACT = 128, 12
_ROUNDS, _KICKS = 40, 4
_CLOSE = 1e-9


@dataclass(frozen=True)
class RingPlan:
    """One ring.

    Attributes
    ----------
    order : tuple of int
        Ranks as the ring visits them.
    seconds_per_byte : float
        What the busiest link needs for each byte that goes round.
    bound : float
        No ring needs less.
    busiest : tuple of str or None
        Ends of the busiest link; None where all ranks are on one device.
    latency : float
        Seconds of the slowest step besides.
    """

    order: tuple[int, ...]
    seconds_per_byte: float
    bound: float
    busiest: tuple[str, str] | None
    latency: float

    @property
    def busbw(self) -> float:
        """Bytes per second, as nccl-tests counts."""
        return 1 / self.seconds_per_byte if self.seconds_per_byte else np.inf

    @property
    def gap(self) -> float:
        """How much slower than the bound: 0 is optimal."""
        return self.seconds_per_byte / self.bound - 1 if self.seconds_per_byte else 0.0

    def seconds(self, nbytes: float) -> float:
        """Predicted time of an allreduce of `nbytes` a rank: 2 (n - 1) steps of a chunk each."""
        steps, size = 2 * (len(self.order) - 1), len(self.order)
        return steps * (self.latency + nbytes / size * self.seconds_per_byte)


def ring_order(topology: Topology, devices: Sequence[str] | None = None, *, time_limit: float = 10.0) -> RingPlan:
    """A ring of ranks whose busiest link is as little busy as can be, and how far from a bound it is.

    Edges of the ring are routed on all their shortest ways alike (`Routes`).

    Parameters
    ----------
    topology : Topology
    devices : sequence of str, optional
        Where each rank runs, all devices in their order by default; several ranks may share one.
    time_limit : float, default 10
        Seconds that the mixed-integer program may take; 12 devices at most are ordered by one.

    Raises
    ------
    ValueError
        If `devices` names what is no device, or no ring joins them.
    """
    ranks = ranks_by_device(topology, devices)
    names = list(ranks)
    routes = Routes(topology)
    if len(names) == 1:
        return RingPlan(tuple(ranks[names[0]]), 0.0, 0.0, None, 0.0)
    rng = np.random.default_rng(0)
    clusters = Clusters(topology, names)
    bound = max(cut_bound(topology, names, clusters.sides), crossing_bound(topology, names))

    def cost(source: str, dest: str) -> float:
        if not routes.joins(source, dest):
            return np.inf
        links, parts = routes.shares(source, dest)
        return float((parts / routes.bandwidths[links]).sum())

    ring = first_ring(clusters, cost, rng)
    slowness = _slowness(routes, ring)
    if slowness > bound * (1 + _CLOSE) and len(names) <= _MOST_PAIRED:
        bound = max(bound, way_bound(routes, names))
        pairs = PairLoads(routes, names)
        place = {name: i for i, name in enumerate(names)}
        order = pairs.relieved(np.array([place[name] for name in ring]), bound, rng)
        if len(names) <= _MOST_EXACT and pairs.slowness(order) > bound * (1 + _CLOSE):
            from collcomp.planner.rings.exact import best_ring

            order, bound = best_ring(pairs, order, bound, time_limit)
        ring = [names[i] for i in order]
        slowness = _slowness(routes, ring)
    if not np.isfinite(slowness):
        raise ValueError(f"topology: no ring was found through all devices of {topology.name!r}")
    edges = edges_of(ring)
    loads = routes.loads(edges) / routes.bandwidths
    return RingPlan(
        order=tuple(rank for name in ring for rank in ranks[name]),
        seconds_per_byte=slowness,
        bound=float(min(bound, slowness)),
        busiest=routes.links[int(loads.argmax())],
        latency=max(routes.latency(*edge) for edge in edges),
    )


def ranks_by_device(topology: Topology, devices: Sequence[str] | None) -> dict[str, list[int]]:
    """The ranks on each device, in the topology's order: no plan depends on how ranks were dealt out."""
    devices = topology.devices if devices is None else devices
    known = set(topology.devices)
    ranks: dict[str, list[int]] = {}
    for rank, device in enumerate(devices):
        if device not in known:
            raise ValueError(f"devices: {device!r} is no device of {topology.name!r}")
        ranks.setdefault(device, []).append(rank)
    if not ranks:
        raise ValueError("devices: none, a ring has one at least")
    return {device: ranks[device] for device in topology.devices if device in ranks}


def edges_of(ring: Sequence[str]) -> list[tuple[str, str]]:
    """Each device and the next, the last and the first."""
    return list(pairwise([*ring, ring[0]]))


def _slowness(routes: Routes, ring: Sequence[str]) -> float:
    edges = edges_of(ring)
    if not all(routes.joins(*edge) for edge in edges):
        return np.inf
    return float((routes.loads(edges) / routes.bandwidths).max())


class PairLoads:
    """What an edge between any two of a few devices puts on each link.

    Parameters
    ----------
    routes : Routes
    names : sequence of str

    Attributes
    ----------
    loads : csr_array of shape (n * n, links)
        Seconds of each link for a byte over the edge from i to j, in row i * n + j.
    joined : ndarray of bool of shape (n, n)
        Whether a way leads there.
    """

    def __init__(self, routes: Routes, names: Sequence[str]) -> None:
        from scipy.sparse import csr_array

        self.n = n = len(names)
        self.joined = np.zeros((n, n), bool)
        rows, columns, data = [], [], []
        for i, source in enumerate(names):
            for j, dest in enumerate(names):
                if i != j and routes.joins(source, dest):
                    self.joined[i, j] = True
                    links, parts = routes.shares(source, dest)
                    rows.append(np.full(len(links), i * n + j))
                    columns.append(links)
                    data.append(parts / routes.bandwidths[links])
        if not rows:
            raise ValueError(f"topology: no way leads from {names[0]!r} to another device")
        values = np.concatenate(data)
        shape = (n * n, len(routes.links))
        self.loads = csr_array((values, (np.concatenate(rows), np.concatenate(columns))), shape=shape)

    def of_ring(self, order: np.ndarray) -> np.ndarray:
        """Seconds of each link for a byte that goes round."""
        return np.asarray(self.loads[order * self.n + np.roll(order, -1)].sum(axis=0)).ravel()

    def slowness(self, order: np.ndarray) -> float:
        """Seconds of the busiest link; infinite where an edge has no way."""
        if not self.joined[order, np.roll(order, -1)].all():
            return np.inf
        return float(self.of_ring(order).max())

    def priced(self, prices: np.ndarray) -> np.ndarray:
        """Cost of each edge, shape (n, n), when a second of each link costs this; no way at all costs the most."""
        cost = (self.loads @ prices).reshape(self.n, self.n)
        cost[~self.joined] = 10 * (cost.max() * self.n + 1e-300)
        np.fill_diagonal(cost, 0)
        return cost

    def relieved(self, order: np.ndarray, bound: float, rng: np.random.Generator) -> np.ndarray:
        """The best ring found while busy links grow dearer, round after round.

        Source: multiplicative weights, as in Plotkin, Shmoys and Tardos, "Fast approximation algorithms for fractional
        packing and covering problems", 1995.
        """
        best, least = order, self.slowness(order)
        weights = np.zeros(self.loads.shape[1])
        for round_number in range(_ROUNDS):
            prices = np.exp(weights - weights.max())
            order = tours.kicked(order, self.priced(prices / prices.sum()), _KICKS if self.n <= 64 else 1, rng)
            loads = self.of_ring(order)
            slowness = self.slowness(order)
            if slowness < least * (1 - _CLOSE):
                best, least = order, slowness
            if least <= bound * (1 + _CLOSE):
                break
            if loads.any():  # no edge of it may have a way
                weights += 2.0 * loads / loads.max() / np.sqrt(1 + round_number / 4)
        return best
