"""Spanning trees from every node of a network, packed into what its links carry.

Edmonds proved that the trees exist if every node can get all that the others send; Bérczi and Frank (2010) how to find
them: a tree takes a link only if the unfinished trees can still reach all nodes without it, and one flow tells how
often. Equal trees are grown as one with a weight, as in ForestColl (arXiv 2402.06787).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from collcomp.planner.forests.switchless import max_flow

__all__ = ["Branching", "pack"]


@dataclass
class Branching:
    """So many equal trees.

    Attributes
    ----------
    root : int
    weight : int
        How many.
    members : list of int
        Nodes that it reaches, in the order in which it came to them.
    links : list of (int, int)
        Parent and child, for each member but the root, in that order.
    """

    root: int
    weight: int
    members: list[int] = field(default_factory=list)
    links: list[tuple[int, int]] = field(default_factory=list)

    def part(self, weight: int) -> Branching:
        """As many as `weight` of them as they are now."""
        return Branching(self.root, weight, list(self.members), list(self.links))


def pack(capacities: np.ndarray, rate: int) -> list[Branching]:
    """As many as `rate` spanning trees out of every node, that together use no link more than it carries.

    Parameters
    ----------
    capacities : ndarray of int64
        A square matrix: what goes from one node to another.
    rate : int
        Every node can send this to all others.

    Returns
    -------
    list of Branching
        Low trees where there is a choice.
    """
    packing = _Packing(capacities.astype(np.int64), rate)
    while packing.unfinished:
        packing.grow(packing.unfinished.pop())
    return packing.finished


class _Packing:
    def __init__(self, capacities: np.ndarray, rate: int) -> None:
        self.finished: list[Branching] = []
        self.unfinished = [Branching(root, rate, [root]) for root in reversed(range(len(capacities)))]
        self._capacities = capacities

    def grow(self, tree: Branching) -> None:
        """Let a tree reach all nodes; if not all of its weight can, the rest is put back with what it has."""
        partly: dict[tuple[int, int], int] = {}
        grown = 0
        while len(tree.members) < len(self._capacities):
            if grown < len(tree.members):
                parent = tree.members[grown]
                grown += 1
                # What has most left is missed least.
                for child in np.argsort(-self._capacities[parent], kind="stable").tolist():
                    link = parent, child
                    if child in tree.members or not (free := self._free(tree, link)):
                        continue
                    if free == tree.weight:
                        self._take(tree, link)
                    else:
                        partly[link] = free
            else:
                link = self._freest(tree, partly)
                if partly[link] < tree.weight:
                    self.unfinished.append(tree.part(tree.weight - partly[link]))
                    tree.weight = partly[link]
                self._take(tree, link)
        self.finished.append(tree)

    def _freest(self, tree: Branching, partly: dict[tuple[int, int], int]) -> tuple[int, int]:
        """The link that can carry most of a tree, of some that were looked at before; none gets freer meanwhile."""
        for link in [link for link in partly if link[1] in tree.members]:
            del partly[link]
        while True:
            link = max(partly, key=lambda link: partly[link])
            before, partly[link] = partly[link], self._free(tree, link)
            if partly[link] == min(before, tree.weight):
                return link

    def _take(self, tree: Branching, link: tuple[int, int]) -> None:
        self._capacities[link] -= tree.weight
        tree.links.append(link)
        tree.members.append(link[1])

    def _free(self, tree: Branching, link: tuple[int, int]) -> int:
        """How much of a tree can take a link, so that all others that are unfinished still have their ways."""
        parent, child = link
        most = min(tree.weight, int(self._capacities[link]))
        if not most:
            return 0
        others = sum(other.weight for other in self.unfinished)
        begun = [other for other in self.unfinished if len(other.members) > 1]
        count = len(self._capacities)
        network = np.zeros((count + len(begun),) * 2, np.int64)
        network[:count, :count] = self._capacities
        for other in self.unfinished:
            if len(other.members) == 1:
                network[parent, other.root] += other.weight
        for i, other in enumerate(begun, count):
            network[parent, i] = other.weight
            network[i, other.members] = other.weight
        network[parent, parent] = 0
        if network[:, child].sum() - others <= 0:
            return 0
        return min(most, max_flow(network, parent, child) - others)
