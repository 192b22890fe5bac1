"""The shortest ways through a network's switches, as indices of links, each looked for once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from collcomp.planner.topology import SWITCH, Topology

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Paths"]


class Paths:
    """Ways between the ends of a network: ports of network cards, or hosts where a topology has no ports.

    Only switches are searched, and each pair of them once, so that many thousands of ends cost little.

    Parameters
    ----------
    topology : Topology

    Attributes
    ----------
    links : list of tuple of str
        Both ends of each link; its place here is its index.
    bandwidths : ndarray of shape (links,)
        Bytes per second.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.links = list(topology.links)
        self.index = {ends: i for i, ends in enumerate(self.links)}
        self.bandwidths = np.array([link.bandwidth for link in topology.links.values()], np.float64)
        self._distances: dict[str, dict[str, int]] = {}
        self._through: dict[tuple[str, str], np.ndarray] = {}

    @cached_property
    def _switches(self) -> nx.DiGraph:
        return self.topology.graph.subgraph(self.topology.switches).copy()

    @cached_property
    def _backwards(self) -> nx.DiGraph:
        return self._switches.reverse()

    @cached_property
    def _attached(self) -> dict[str, list[str]]:
        """The switches to which each end sends."""
        attached: dict[str, list[str]] = {}
        for source, dest in self.links:
            if self.topology.nodes[dest].kind == SWITCH and self.topology.nodes[source].kind != SWITCH:
                attached.setdefault(source, []).append(dest)
        return attached

    def next_switches(self, switch: str, last: str) -> list[str]:
        """The neighbours of `switch` that are nearer to the switch `last`, in the order of its links."""
        if last not in self._distances:
            import networkx as nx

            self._distances[last] = nx.single_source_shortest_path_length(self._backwards, last)
        distances = self._distances[last]
        if switch not in distances:
            return []
        return [there for there in self._switches.successors(switch) if distances.get(there) == distances[switch] - 1]

    def spines_of(self, switch: str) -> list[str]:
        """The switches that a switch sends to."""
        return list(self._switches.successors(switch))

    def through(self, first: str, last: str) -> np.ndarray:
        """Every shortest way from the switch `first` to the switch `last`.

        Returns
        -------
        ndarray of int of shape (ways, links of each)
            No rows where nothing joins them.
        """
        if (first, last) not in self._through:
            ways = self._ways_through(first, last)
            self._through[first, last] = np.array(ways, np.int64).reshape(len(ways), len(ways[0]) if ways else 0)
        return self._through[first, last]

    def _ways_through(self, first: str, last: str) -> list[list[int]]:
        if first == last:
            return [[]]
        return [
            [self.index[first, there], *rest]
            for there in self.next_switches(first, last)
            for rest in self.through(there, last).tolist()
        ]

    def between(self, source: str, dest: str) -> np.ndarray:
        """Every shortest way from one end to another.

        Returns
        -------
        ndarray of int of shape (ways, links of each)
            No rows where nothing joins them, ports of two planes for example.

        Raises
        ------
        ValueError
            If an end has no link to a switch, or both are one.
        """
        for end in (source, dest):
            if end not in self._attached:
                raise ValueError(f"flow: {end!r} is no end with a link to a switch of {self.topology.name!r}")
        if source == dest:
            raise ValueError(f"flow: {source!r} sends to itself")
        found = []
        for first in self._attached[source]:
            for last in self._attached[dest]:
                inside = self.through(first, last)
                up, down = np.full((2, len(inside), 1), [[[self.index[source, first]]], [[self.index[last, dest]]]])
                found.append(np.hstack((up, inside, down)))
        shortest = min((ways.shape[1] for ways in found if len(ways)), default=0)
        return np.vstack([ways for ways in found if ways.shape[1] == shortest] or [np.empty((0, 0), np.int64)])

    def nodes(self, way: Sequence[int]) -> tuple[str, ...]:
        """Names along a way, both ends included."""
        return (self.links[way[0]][0], *(self.links[link][1] for link in way))
