"""Trees for messages that wait for latency, not for bandwidth.

Small messages want the tree by which the last rank hears soonest, where each rank sends to one other after another.
Messages of some size want two trees in which nobody is busy twice: each carries half, in segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collcomp.planner.rings.order import ranks_by_device, ring_order
from collcomp.planner.schedules.algorithms import tree_schedule
from collcomp.planner.topology import Topology
from collcomp.planner.topology.routes import Routes

__all__ = ["DoubleTree", "Tree", "double_tree", "latency_tree"]

#: Up to so many ranks every pair is looked at.
_MOST_PAIRED = 128
_MOST_SEGMENTS = 64


@dataclass(frozen=True)
class Tree:
    """A tree in which each rank sends to its children one after another.

    Attributes
    ----------
    parents : tuple of int
        Of each rank; the root is its own.
    children : tuple of tuple of int
        Of each rank, in the order in which it sends to them.
    """

    parents: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]

    @property
    def root(self) -> int:
        """The rank that all others hear from."""
        return next(rank for rank, parent in enumerate(self.parents) if rank == parent)

    @property
    def depth(self) -> int:
        """Edges from the root to the furthest rank."""
        depths, level = 0, [self.root]
        while level := [child for rank in level for child in self.children[rank]]:
            depths += 1
        return depths

    def seconds(self, nbytes: float, routes: Routes, devices: Sequence[str], *, overhead: float = 0.0) -> float:
        """Predicted time until the last rank has a broadcast of `nbytes`; a reduction, all turned round, takes as long.

        Parameters
        ----------
        nbytes : float
        routes : Routes
        devices : sequence of str
            Where each rank runs.
        overhead : float, default 0
            Seconds that a rank is busy with each message that it sends, whatever its length.
        """
        heard = {self.root: 0.0}
        level = [self.root]
        while level:
            for rank in level:
                free = heard[rank]
                for child in self.children[rank]:
                    latency, slowness = _edge(routes, devices[rank], devices[child])
                    free += overhead + nbytes * slowness
                    heard[child] = free + latency
            level = [child for rank in level for child in self.children[rank]]
        return max(heard.values())


def latency_tree(
    topology: Topology, devices: Sequence[str] | None = None, *, nbytes: float = 0.0, overhead: float = 2e-6
) -> Tree:
    """A tree by which a broadcast reaches the last rank soon, and a reduction ends soon.

    Always the edge that ends earliest is next (ECEF). Beyond 128 ranks the tree is a binomial one over the best ring:
    few of its edges leave a host or a leaf.

    Parameters
    ----------
    topology : Topology
    devices : sequence of str, optional
        Where each rank runs, all devices in their order by default.
    nbytes : float, default 0
        Of the message.
    overhead : float, default 2e-6
        Seconds that a rank is busy with each message that it sends.

    Raises
    ------
    ValueError
        If `devices` names what is no device, or no way leads to one.

    Notes
    -----
    ECEF: Bhat, Raghavendra and Prasanna, "Efficient collective communication in distributed heterogeneous systems",
    Journal of Parallel and Distributed Computing 63, 2003. With equal links it is the optimal tree of Karp, Sahay,
    Santos and Schauser, "Optimal broadcast and summation in the LogP model", SPAA 1993.
    """
    names = list(topology.devices if devices is None else devices)
    ranks_by_device(topology, names)  # says so where one is no device
    if len(names) > _MOST_PAIRED:
        return _binomial(ring_order(topology, devices).order)
    routes = Routes(topology)
    latency, busy = np.zeros((2, len(names), len(names)))
    for i, source in enumerate(names):
        for j, dest in enumerate(names):
            if routes.joins(source, dest):
                latency[i, j], slowness = _edge(routes, source, dest)
                busy[i, j] = overhead + nbytes * slowness
            else:
                latency[i, j] = np.inf
    trees = [_earliest(root, latency, busy) for root in _central(latency + busy)]
    end, children = min(trees, key=lambda tree: tree[0])
    if not np.isfinite(end):
        raise ValueError(f"topology: no tree reaches all devices of {topology.name!r}")
    parents = list(range(len(names)))
    for rank, those in enumerate(children):
        for child in those:
            parents[child] = rank
    return Tree(tuple(parents), tuple(map(tuple, children)))


def _edge(routes: Routes, source: str, dest: str) -> tuple[float, float]:
    """Latency, and seconds per byte of the slowest link."""
    if source == dest:
        return 0.0, 0.0
    links, parts = routes.shares(source, dest)
    return routes.latency(source, dest), float((parts / routes.bandwidths[links]).max())


def _central(cost: np.ndarray) -> list[int]:
    """A few ranks from which the others are near."""
    far = np.where(np.isfinite(cost), cost, 1e9).sum(axis=1)
    return [int(rank) for rank in np.argsort(far, kind="stable")[:4]]


def _earliest(root: int, latency: np.ndarray, busy: np.ndarray) -> tuple[float, list[list[int]]]:
    """When the last rank has heard, and to whom each sends, in order."""
    n = len(latency)
    free = np.full(n, np.inf)
    free[root] = 0.0
    left = np.ones(n, bool)
    left[root] = False
    children: list[list[int]] = [[] for _ in range(n)]
    end = 0.0
    while left.any():
        waiting = np.flatnonzero(left)
        arrival = free[:, None] + busy[:, waiting] + latency[:, waiting]
        source, k = np.unravel_index(int(arrival.argmin()), arrival.shape)
        dest = int(waiting[k])
        end = float(arrival[source, k])
        if not np.isfinite(end):
            break
        children[int(source)].append(dest)
        free[source] += busy[source, dest]
        free[dest] = end
        left[dest] = False
    return end, children


def _binomial(order: Sequence[int]) -> Tree:
    """Each rank sends half of what is left behind it to the first rank there, then half of the rest, ..."""
    parents = list(range(len(order)))
    children: list[list[int]] = [[] for _ in order]
    spans = [(0, len(order))]
    while spans:
        start, stop = spans.pop()
        while stop - start > 1:
            middle = start + (stop - start + 1) // 2
            parents[order[middle]] = order[start]
            children[order[start]].append(order[middle])
            spans.append((middle, stop))
            stop = middle
    return Tree(tuple(parents), tuple(map(tuple, children)))


@dataclass(frozen=True)
class DoubleTree:
    """Two trees of half the message each; no rank has children in both.

    Attributes
    ----------
    parents : tuple of tuple of int
        Of each rank in each tree; a root is its own.
    """

    parents: tuple[tuple[int, ...], tuple[int, ...]]

    def seconds(
        self, nbytes: float, routes: Routes, devices: Sequence[str], *, overhead: float = 0.0
    ) -> tuple[float, int]:
        """Predicted time of an allreduce, and the number of segments of each half with which it is that.

        Parameters
        ----------
        nbytes : float
        routes : Routes
        devices : sequence of str
            Where each rank runs.
        overhead : float, default 0
            Seconds of each step besides.
        """
        tries = []
        segments = 1
        while segments <= _MOST_SEGMENTS:
            schedule = tree_schedule(self.parents, segments)
            time = schedule.seconds(nbytes, routes, devices) + overhead * len(schedule.steps)
            tries.append((time, segments))
            segments *= 2
        return min(tries)


def double_tree(order: Sequence[int]) -> DoubleTree:
    """Two binary trees over ranks in this order, which is best that of a ring: neighbours there are near.

    The second tree is the first one mirrored, or moved by one where the number of ranks is odd.

    Parameters
    ----------
    order : sequence of int

    Notes
    -----
    Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel Computing
    35, 2009; NCCL uses them between hosts.
    """
    n = len(order)
    first = _binary(n)
    places = [n - 1 - i for i in range(n)] if n % 2 == 0 else [(i + 1) % n for i in range(n)]
    trees = []
    for place in (list(range(n)), places):
        parents = [0] * n
        for i, parent in enumerate(first):
            parents[order[place[i]]] = order[place[parent]]
        trees.append(tuple(parents))
    return DoubleTree((trees[0], trees[1]))


def _binary(n: int) -> list[int]:
    """Parents in the binary tree over 0 to n - 1, in order, whose inner nodes are the odd numbers."""
    parents = [0] * n
    # Counted from 1, the root of a span is the number in it that the greatest power of two divides.
    spans = [(1, n, 0)]
    while spans:
        first, last, above = spans.pop()
        if first > last:
            continue
        root = max(range(first, last + 1), key=lambda i: i & -i)
        parents[root - 1] = (above or root) - 1
        spans += (first, root - 1, root), (root + 1, last, root)
    return parents
