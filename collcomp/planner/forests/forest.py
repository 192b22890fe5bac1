"""Schedules that attain the optimum (`forests.optimum`): trees out of every device, packed into the links.

What a device has is cut into shares, and each share goes down a tree of its own that reaches all others. Together, the
trees use every link of the bottleneck all the time, and no link for longer (ForestColl, arXiv 2402.06787, sections 4
and 5; written anew). Turned round, trees into every device sum instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import numpy as np

from collcomp.planner.forests.branchings import Branching, pack
from collcomp.planner.forests.optimum import Optimum, integers, optimum
from collcomp.planner.forests.switchless import Ways, remove_switches
from collcomp.planner.topology import Link, Topology

__all__ = ["Forest", "Send", "Tree", "forest"]


@dataclass(frozen=True)
class Send:
    """What one device passes on to another.

    Attributes
    ----------
    source, dest : str
    ways : tuple of (tuple of str, Fraction)
        Nodes on the way, both ends included, and which part of the tree's bytes goes there; the parts sum to 1.
    """

    source: str
    dest: str
    ways: tuple[tuple[tuple[str, ...], Fraction], ...]


@dataclass(frozen=True)
class Tree:
    """How one share travels.

    Attributes
    ----------
    root : str
        The device that has the bytes at first, or their sum at last.
    share : Fraction
        Which part of the root's bytes it is.
    sends : tuple of Send
        In an order in which a device gets everything that it passes on before it does so.
    """

    root: str
    share: Fraction
    sends: tuple[Send, ...]


@dataclass(frozen=True)
class Forest:
    """All trees of one operation.

    Attributes
    ----------
    topology : Topology
    collective : {"allgather", "reduce_scatter"}
    trees : tuple of Tree
    """

    topology: Topology
    collective: str
    trees: tuple[Tree, ...]

    @cached_property
    def loads(self) -> Mapping[tuple[str, str], Fraction]:
        """Bytes over each link that has any, by the bytes of one device; `check` must hold."""
        loads: defaultdict[tuple[str, str], Fraction] = defaultdict(Fraction)
        for tree in self.trees:
            for send in tree.sends:
                for way, part in send.ways:
                    for link in pairwise(way):
                        loads[link] += tree.share * part
        return dict(loads)

    @cached_property
    def seconds_per_byte(self) -> Fraction:
        """Time of the busiest link in an operation over M bytes in all, by M, as `Optimum` counts."""
        busiest = max(load / Fraction(self.topology.links[link].bandwidth) for link, load in self.loads.items())
        return busiest / len(self.topology.devices)

    @property
    def algbw(self) -> float:
        """Bytes per second: the operation's size by its time, as nccl-tests counts."""
        return float(1 / self.seconds_per_byte)

    @property
    def depth(self) -> int:
        """Most sends that follow on each other."""
        deepest = 0
        for tree in self.trees:
            depths: defaultdict[str, int] = defaultdict(int)
            for send in tree.sends:
                depths[send.dest] = max(depths[send.dest], depths[send.source] + 1)
            deepest = max(deepest, *depths.values())
        return deepest

    def gap(self, bound: Optimum) -> float:
        """How much longer it takes than the optimum, as a part of the optimum: 0.0 is none at all, exactly."""
        return float(self.seconds_per_byte / bound.seconds_per_byte - 1)

    def check(self) -> None:
        """Find out from the trees and the topology alone whether the trees do what they should.

        Raises
        ------
        ValueError
            If shares do not make a whole, a tree does not join its root with each device once and in order, or a way is
            none of the topology.
        """
        shares: defaultdict[str, Fraction] = defaultdict(Fraction)
        for tree in self.trees:
            shares[tree.root] += tree.share
            if tree.share <= 0:
                raise ValueError(f"trees: a tree of {tree.root!r} has the share {tree.share}")
            self._check_order(tree)
            for send in tree.sends:
                self._check_ways(send)
        for device in self.topology.devices:
            if shares.pop(device, 0) != 1:
                raise ValueError(f"trees: the shares of {device!r} are not 1 together")
        if shares:
            raise ValueError(f"trees: {sorted(shares)[0]!r} is no device")

    def _check_order(self, tree: Tree) -> None:
        sends = [(send.source, send.dest) for send in tree.sends]
        if self.collective == "reduce_scatter":  # the same tree, from its root on
            sends = [(dest, source) for source, dest in reversed(sends)]
        reached = {tree.root}
        for parent, child in sends:
            if parent not in reached or child in reached:
                raise ValueError(f"trees: {parent!r} and {child!r} do not follow in a tree of {tree.root!r}")
            reached.add(child)
        if reached != set(self.topology.devices):
            raise ValueError(f"trees: a tree of {tree.root!r} joins {len(reached)} devices, which are not all")

    def _check_ways(self, send: Send) -> None:
        devices = set(self.topology.devices)
        for way, part in send.ways:
            if (way[0], way[-1]) != (send.source, send.dest) or devices & set(way[1:-1]) or part <= 0:
                raise ValueError(f"trees: {way} with {part} is no way from {send.source!r} to {send.dest!r}")
            for link in pairwise(way):
                if link not in self.topology.links:
                    raise ValueError(f"trees: {link} is no link of {self.topology.name!r}")
        if sum(part for _, part in send.ways) != 1:
            raise ValueError(f"trees: the ways from {send.source!r} to {send.dest!r} are not 1 together")


def forest(topology: Topology, collective: str = "allgather") -> Forest:
    """Trees for an operation, none of whose links is busy for longer than the optimum.

    That takes as much bandwidth out of every node as into it. Where a cable is faster in one direction, only what it
    carries in both is used, and the trees can be slower than the optimum; `Forest.gap` tells. So can they where
    bandwidths have no unit in common, as measured ones: all are then rounded down to a unit that is a part of the
    fastest link's (2^-18 of it, more with more than 64 devices), which counts for links that are thousands of times
    slower. An allreduce is both operations, one by one.

    Parameters
    ----------
    topology : Topology
    collective : {"allgather", "reduce_scatter"}, default "allgather"

    Raises
    ------
    ValueError
        If there are fewer than two devices, some device cannot be reached from another, or could not by what cables
        carry in both directions where that differs.
    """
    if collective == "reduce_scatter":
        return _turned_round(forest(topology.reversed()))
    if collective != "allgather":
        raise ValueError(f"collective: {collective!r} is neither allgather nor reduce_scatter")
    names = list(topology.nodes)
    index = {name: i for i, name in enumerate(names)}
    devices = [index[device] for device in topology.devices]
    even = _evened(topology, len(devices))
    try:
        best = optimum(even)
    except ValueError:
        optimum(topology)  # says so where the topology itself joins too little
        raise ValueError(
            f"topology: cables of {topology.name!r} differ by direction, and what they carry in both does not join "
            "all devices"
        ) from None
    per_device = 1 / (best.seconds_per_byte * len(devices))
    capacities = np.zeros((len(names),) * 2, np.int64)
    for (source, dest), link in even.links.items():
        capacities[index[source], index[dest]] = int(link.bandwidth) * per_device.denominator
    rate = per_device.numerator
    routes = remove_switches(capacities, devices, rate)
    branchings = pack(capacities[np.ix_(devices, devices)], rate)
    trees = _Roads(routes, devices, names).trees(branchings, rate)
    return Forest(topology, collective, tuple(trees))


def _evened(topology: Topology, devices: int) -> Topology:
    """What of a topology can be used, in integers: as much into every node as out of it, by equal cables if need be."""
    parts = min(2**18, 2**30 // devices**2)  # the flows stay below 2^31
    multiples, _ = integers([link.bandwidth for link in topology.links.values()], parts)
    whole = {ends: int(multiple) for ends, multiple in zip(topology.links, multiples, strict=True)}
    balance: defaultdict[str, int] = defaultdict(int)
    for (source, dest), bandwidth in whole.items():
        balance[source] -= bandwidth
        balance[dest] += bandwidth
    if any(balance.values()):
        whole = {ends: min(bandwidth, whole[ends[::-1]]) for ends, bandwidth in whole.items() if ends[::-1] in whole}
    links = [Link(*ends, bandwidth) for ends, bandwidth in whole.items()]
    return Topology(topology.name, topology.nodes.values(), links)


class _Roads:
    """Gives the links of trees the ways past switches that make them up."""

    def __init__(self, routes: Ways, devices: list[int], names: list[str]) -> None:
        self._left = {ends: list(ways) for ends, ways in routes.items()}
        self._devices = devices
        self._names = names

    def trees(self, branchings: Iterable[Branching], rate: int) -> Iterable[Tree]:
        for branching in branchings:
            sends = [self._send(parent, child, branching.weight) for parent, child in branching.links]
            root = self._names[self._devices[branching.root]]
            yield Tree(root, Fraction(branching.weight, rate), tuple(sends))

    def _send(self, parent: int, child: int, weight: int) -> Send:
        ways = self._left[self._devices[parent], self._devices[child]]
        taken = []
        left = weight
        while left:
            way, much = ways.pop()
            part = min(much, left)
            if part < much:
                ways.append((way, much - part))
            taken.append((tuple(self._names[node] for node in way), Fraction(part, weight)))
            left -= part
        return Send(self._names[self._devices[parent]], self._names[self._devices[child]], tuple(taken))


def _turned_round(gathering: Forest) -> Forest:
    def turned(send: Send) -> Send:
        return Send(send.dest, send.source, tuple((way[::-1], part) for way, part in send.ways))

    trees = (replace(tree, sends=tuple(turned(send) for send in reversed(tree.sends))) for tree in gathering.trees)
    return Forest(gathering.topology.reversed(), "reduce_scatter", tuple(trees))
