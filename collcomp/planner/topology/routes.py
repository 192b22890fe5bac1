"""How much of what one device sends to another passes each link, when it is split evenly over all shortest ways.

The search starts at both ends, and ends where it meets: in clusters of thousands of devices few nodes are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collcomp.planner.topology import DEVICE, Topology

__all__ = ["Routes"]

#: Nodes of one distance from an end, and how many shortest ways lead there.
_Level = dict[int, int]


class Routes:
    """The shortest ways between devices, through switches and ports but not through other devices.

    Parameters
    ----------
    topology : Topology

    Attributes
    ----------
    links : list of (str, str)
        Ends of each link; its place here is its index.
    bandwidths, latencies : ndarray of shape (links,)
        Bytes per second, and seconds.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.links = list(topology.links)
        self.bandwidths = np.array([link.bandwidth for link in topology.links.values()], np.float64)
        self.latencies = np.array([link.latency for link in topology.links.values()], np.float64)
        self._node = {name: i for i, name in enumerate(topology.nodes)}
        self._link = {(self._node[a], self._node[b]): i for i, (a, b) in enumerate(self.links)}
        self._passes = passes = [node.kind != DEVICE for node in topology.nodes.values()]
        self._next: list[list[int]] = [[] for _ in passes]
        self._before: list[list[int]] = [[] for _ in passes]
        for a, b in self._link:
            if passes[b]:
                self._next[a].append(b)
            if passes[a]:
                self._before[b].append(a)
        self._island = self._islands()
        self._known: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def shares(self, source: str, dest: str) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the links between two devices, and the part of a transfer that each carries.

        Raises
        ------
        ValueError
            If no way leads there.
        """
        found = self._known.get((source, dest))
        if found is None:
            loads = self._search(self._node[source], self._node[dest])
            found = self._known[source, dest] = (np.array(list(loads), np.int64), np.array(list(loads.values())))
        if not len(found[0]) and source != dest:
            raise ValueError(f"topology: no way leads from {source!r} to {dest!r} in {self.topology.name!r}")
        return found

    def joins(self, source: str, dest: str) -> bool:
        """Whether a way leads from one device to the other."""
        try:
            self.shares(source, dest)
        except ValueError:
            return False
        return True

    def latency(self, source: str, dest: str) -> float:
        """Seconds that a byte needs, on average over the ways."""
        links, parts = self.shares(source, dest)
        return float(self.latencies[links] @ parts)

    def loads(self, edges: Sequence[tuple[str, str]]) -> np.ndarray:
        """Bytes over each link when each of these edges carries one, shape (links,)."""
        loads = np.zeros(len(self.links))
        for source, dest in edges:
            links, parts = self.shares(source, dest)
            loads[links] += parts
        return loads

    def _search(self, source: int, dest: int) -> dict[int, float]:
        if source == dest:
            return {}
        if (source, dest) in self._link:
            return {self._link[source, dest]: 1.0}
        first, last = self._next[source], self._before[dest]
        if {self._island[node] for node in first}.isdisjoint(self._island[node] for node in last):
            return {}  # soon known, where the search would see the whole network
        # Levels from both ends, each all nodes at one distance; the smaller end goes on until a node is in both.
        ahead: list[_Level] = [{source: 1}]
        back: list[_Level] = [{dest: 1}]
        seen_ahead, seen_back = {source}, {dest}
        self._grow(ahead, self._next, seen_ahead)
        self._grow(back, self._before, seen_back)
        while ahead[-1] and back[-1]:
            meeting = ahead[-1].keys() & back[-1].keys()
            if meeting:
                return self._spread(ahead, back, meeting)
            # By links, not by nodes: a switch of a whole network is one node.
            if self._work(ahead[-1], self._next) <= self._work(back[-1], self._before):
                self._grow(ahead, self._next, seen_ahead)
            else:
                self._grow(back, self._before, seen_back)
        return {}

    def _islands(self) -> list[int]:
        """Which of several separate networks of switches and ports each node is in."""
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import connected_components

        inner = [(a, b) for a, following in enumerate(self._next) for b in following if self._passes[a]]
        ends = np.array(inner, np.int64).reshape(-1, 2).T
        graph = csr_array((np.ones(ends.shape[1]), tuple(ends)), shape=(len(self._next),) * 2)
        return connected_components(graph, directed=False)[1].tolist()

    @staticmethod
    def _work(level: _Level, neighbours: list[list[int]]) -> int:
        return sum(len(neighbours[node]) for node in level)

    @staticmethod
    def _grow(levels: list[_Level], neighbours: list[list[int]], seen: set[int]) -> None:
        level: _Level = {}
        for node, ways in levels[-1].items():
            for other in neighbours[node]:
                if other not in seen:
                    level[other] = level.get(other, 0) + ways
        seen.update(level)
        levels.append(level)

    def _spread(self, ahead: list[_Level], back: list[_Level], meeting: set[int]) -> dict[int, float]:
        """Shares of links, in proportion to the ways through them."""
        total = sum(ahead[-1][node] * back[-1][node] for node in meeting)
        loads: dict[int, float] = {}
        for levels, other, forwards in ((ahead, back, True), (back, ahead, False)):
            beyond = {node: other[-1][node] for node in meeting}
            for level in reversed(levels[:-1]):
                here: _Level = {}
                for node, ways in beyond.items():
                    for near in level:
                        link = self._link.get((near, node) if forwards else (node, near))
                        if link is not None:
                            here[near] = here.get(near, 0) + ways
                            loads[link] = level[near] * ways / total
                beyond = here
        return loads
