"""Several rings at once, each with a share of the bytes, so that links that one ring leaves idle are used by others.

The shares are a linear program (HiGHS) over rings that are found one after another: duals of the program price the
links, and the cheapest ring under these prices is the next one. Any prices bound what rings can do: if seconds of all
links cost 1 together, rings need at least the cost of the cheapest one.

Source: Gilmore and Gomory, "A linear programming approach to the cutting-stock problem", 1961 (column generation);
Wentges, "Weighted Dantzig-Wolfe decomposition for linear mixed-integer programming", 1997 (smoothed prices).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from collcomp.planner.rings import tours
from collcomp.planner.rings.bounds import cut_bound, scarce_cuts
from collcomp.planner.rings.order import PairLoads, RingPlan, edges_of, ranks_by_device, ring_order
from collcomp.planner.rings.start import Clusters, first_ring
from collcomp.planner.topology import Topology
from collcomp.planner.topology.routes import Routes

__all__ = ["RingSet", "ring_set"]

#: Up to so many devices all pairs are looked at: rings are improved by local search, and prices give a bound.
_MOST_PAIRED = 128
_ROUNDS, _KICKS = 400, 8
_CLOSE = 1e-4
_SMOOTHING, _LEAST_SMOOTHING = 0.5, 0.01
_TINY_SHARE = 1e-7


@dataclass(frozen=True)
class RingSet:
    """Rings that run side by side.

    Attributes
    ----------
    orders : tuple of tuple of int
        Ranks as each ring visits them.
    shares : tuple of float
        Part of the bytes that goes round each ring, 1 together.
    seconds_per_byte : float
        What the busiest link needs for each byte of the whole.
    bound : float
        No set of rings needs less.
    """

    orders: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...]
    seconds_per_byte: float
    bound: float

    @property
    def busbw(self) -> float:
        """Bytes per second, as nccl-tests counts."""
        return 1 / self.seconds_per_byte if self.seconds_per_byte else np.inf

    @property
    def gap(self) -> float:
        """How much slower than the bound: 0 is optimal among rings."""
        return self.seconds_per_byte / self.bound - 1 if self.seconds_per_byte else 0.0


def ring_set(
    topology: Topology, devices: Sequence[str] | None = None, *, most: int = 64, one: RingPlan | None = None
) -> RingSet:
    """Rings and their shares of the bytes: never slower together than the best one alone.

    Trees can be faster than any rings where many devices share a cut: all that goes round a ring crosses every cut,
    where an all-gather needs only what one side has (`collcomp.planner.forests.optimum`).

    Parameters
    ----------
    topology : Topology
    devices : sequence of str, optional
        Where each rank runs, all devices in their order by default.
    most : int, default 64
        Rings, the best of those found.
    one : RingPlan, optional
        What `ring_order` gave for the same devices, where it is known.

    Raises
    ------
    ValueError
        If `devices` names what is no device, no ring joins them, or `most` is below 1.
    """
    if most < 1:
        raise ValueError(f"most: {most} rings are too few")
    ranks = ranks_by_device(topology, devices)
    names = list(ranks)
    if len(names) == 1:
        return RingSet((tuple(ranks[names[0]]),), (1.0,), 0.0, 0.0)
    device_of = {rank: name for name, members in ranks.items() for rank in members}
    one = one or ring_order(topology, devices)
    search = _Search(topology, names)
    search.run(list(dict.fromkeys(device_of[rank] for rank in one.order)), most)
    rings, shares, slowness = search.chosen(most)
    orders = tuple(tuple(rank for name in ring for rank in ranks[name]) for ring in rings)
    return RingSet(orders, shares, slowness, float(min(search.bound, slowness)))


class _Search:
    """Column generation."""

    def __init__(self, topology: Topology, names: list[str]) -> None:
        self.names = names
        self.routes = Routes(topology)
        self.clusters = Clusters(topology, names)
        small = len(names) <= _MOST_PAIRED
        self.bound = cut_bound(topology, names, [*self.clusters.sides, *(scarce_cuts(topology) if small else ())])
        self.pairs = PairLoads(self.routes, names) if small else None
        self.rng = np.random.default_rng(0)
        self.rings: list[list[str]] = []
        self.loads: list[np.ndarray] = []

    def run(self, one: list[str], most: int) -> None:
        """Look for rings beside `one` until they are as good as the bound, or no prices bring a new one."""
        self._spread(one, most)
        slowness, duals = self.slowness, self.duals
        anchor, highest, smoothing = duals, 0.0, 0.0
        for _ in range(_ROUNDS):
            if slowness <= self.bound * (1 + _CLOSE):
                return
            prices = smoothing * anchor + (1 - smoothing) * duals
            ring = self._cheapest(prices, _KICKS if smoothing else 8 * _KICKS)
            bound = self._least_cost(prices)
            if bound >= highest:
                anchor, highest = prices, bound
                self.bound = max(self.bound, bound)
            loads = self._loads(ring)
            if np.isfinite(loads).all() and loads @ duals < slowness * (1 - _CLOSE):
                slowness, duals = self._add(ring, loads)
                smoothing = _SMOOTHING
            elif smoothing:
                smoothing = smoothing / 2 if smoothing > _LEAST_SMOOTHING else 0.0
            else:
                return  # no ring is cheaper than those that share the bytes

    def _spread(self, ring: list[str], most: int) -> None:
        """Rings each of which keeps off the links that those before it use: few, where the cluster is regular."""
        used = np.full(len(self.routes.links), 1e-9)
        while True:
            loads = self._loads(ring)
            if not np.isfinite(loads).all():
                return
            used += loads / loads.max()
            self.slowness, self.duals = self._add(ring, loads)
            if self.slowness <= self.bound * (1 + _CLOSE) or len(self.rings) == most:
                return
            prices = used**4
            ring = self._cheapest(prices / prices.sum(), _KICKS)

    def _add(self, ring: list[str], loads: np.ndarray) -> tuple[float, np.ndarray]:
        self.rings.append(ring)
        self.loads.append(loads)
        return _shares(self.loads)[1:]

    def chosen(self, most: int) -> tuple[list[list[str]], tuple[float, ...], float]:
        """The rings with the greatest shares, the shares anew, and the seconds per byte."""
        keep = self._fewer(range(len(self.rings)), most)
        first = self._fewer(range(min(most, len(self.rings))), most)  # those that keep off each other
        keep = min([0], first, keep, key=lambda some: _shares([self.loads[i] for i in some])[1])
        shares, slowness, _ = _shares([self.loads[i] for i in keep])
        return [self.rings[i] for i in keep], tuple((shares / shares.sum()).tolist()), slowness

    def _fewer(self, keep: Sequence[int], most: int) -> list[int]:
        while True:
            shares = _shares([self.loads[i] for i in keep])[0]
            used = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] > _TINY_SHARE]
            keep = [keep[i] for i in used]
            if len(keep) <= most:
                return keep
            keep = keep[: max(most, len(keep) * 3 // 4)]

    def _cheapest(self, prices: np.ndarray, kicks: int) -> list[str]:
        ring = first_ring(self.clusters, self._cost(prices), self.rng)
        if self.pairs is None:
            return ring
        place = {name: i for i, name in enumerate(self.names)}
        order = np.array([place[name] for name in ring])
        order = tours.kicked(order, self.pairs.priced(prices), kicks if len(order) <= 40 else 1, self.rng)
        return [self.names[i] for i in order]

    def _cost(self, prices: np.ndarray) -> Callable[[str, str], float]:
        slow = prices / self.routes.bandwidths

        def cost(source: str, dest: str) -> float:
            if not self.routes.joins(source, dest):
                return np.inf
            links, parts = self.routes.shares(source, dest)
            return float(parts @ slow[links])

        return cost

    def _loads(self, ring: list[str]) -> np.ndarray:
        edges = edges_of(ring)
        if not all(self.routes.joins(*edge) for edge in edges):
            return np.full(len(self.routes.links), np.inf)
        return self.routes.loads(edges) / self.routes.bandwidths

    def _least_cost(self, prices: np.ndarray) -> float:
        """What any ring costs at least: that of the cheapest way to give every device one successor."""
        if self.pairs is None:
            return 0.0
        from scipy.optimize import linear_sum_assignment

        cost = self.pairs.priced(prices)
        np.fill_diagonal(cost, cost.max() + 1)
        return float(cost[linear_sum_assignment(cost)].sum())


def _shares(loads: Sequence[np.ndarray]) -> tuple[np.ndarray, float, np.ndarray]:
    """The shares of rings that make the busiest link least busy, its seconds per byte, and what links' seconds cost."""
    from scipy.optimize import linprog

    matrix = np.array(loads).T
    unit = matrix.max(axis=0).min()
    rows = np.flatnonzero(matrix.any(axis=1))
    matrix = matrix[rows] / unit
    count = matrix.shape[1]
    found = linprog(
        np.append(np.zeros(count), 1.0),
        A_ub=np.hstack((matrix, -np.ones((len(rows), 1)))),
        b_ub=np.zeros(len(rows)),
        A_eq=np.append(np.ones(count), 0.0)[None],
        b_eq=[1.0],
        method="highs",
    )
    duals = np.zeros(len(loads[0]))
    duals[rows] = -found.ineqlin.marginals
    return found.x[:-1], float(found.x[-1]) * unit, duals / duals.sum()
