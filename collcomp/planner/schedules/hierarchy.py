"""Groups of ranks for `hierarchical`, and the layout of a program's ranks: what a topology says about who is near.

Hosts are one choice of groups, hosts on the same switches another. What is scarce decides: inside a group values travel
raw, between groups encoded, so the best groups have fast links inside and leave little to the links between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collcomp.planner.layout import Layout
from collcomp.planner.rings.bounds import cut_bandwidths, sides_of_nodes
from collcomp.planner.rings.order import RingPlan, ranks_by_device, ring_order
from collcomp.planner.rings.start import Clusters
from collcomp.planner.topology import Topology
from collcomp.planner.topology.routes import Routes

__all__ = ["TYPICAL_RATIO", "HierarchyPlan", "hierarchies", "layout_of", "layout_on"]

#: By how much a codec shortens frames where that decides which groups are best.
TYPICAL_RATIO = 4.0

#: In groups of more devices only some of all pairs are looked at: as many as groups of so many have.
_MOST_PAIRED = 128


@dataclass(frozen=True)
class HierarchyPlan:
    """Groups, and what an allreduce by `hierarchical` moves inside and between them.

    Attributes
    ----------
    kind : {"host", "switch"}
        What the ranks of a group share.
    groups : tuple of tuple of int
        Ranks, as many in each group. The i-th of all groups exchange results: the i-th devices of hosts, whose network
        cards are often on one plane.
    inside : float
        Seconds of the busiest link inside the first group while each byte of a message is summed there; in a group of
        more than 128 devices, as far as some of all pairs tell.
    between : float
        Seconds of the scarcest cut between groups, for each byte of a message that is not encoded.
    """

    kind: str
    groups: tuple[tuple[int, ...], ...]
    inside: float
    between: float

    def bytes_inside(self, nbytes: float, ratio: float = 1.0) -> float:
        """Bytes that each rank sends inside its group, with a codec of such a ratio between groups."""
        members = len(self.groups[0])
        return (members - 1) / members * nbytes * (1 + 1 / ratio)

    def bytes_between(self, nbytes: float, ratio: float = 1.0) -> float:
        """Bytes that each rank sends to other groups."""
        return 2 * (len(self.groups) - 1) / len(self.groups) * nbytes / ratio / len(self.groups[0])

    def seconds(self, nbytes: float, ratio: float = 1.0) -> float:
        """How long the scarcer links are busy: the stages overlap. Latency and codec are not counted."""
        return nbytes * max(self.inside * (1 + 1 / ratio), self.between / ratio)


def hierarchies(topology: Topology, devices: Sequence[str] | None = None, *, ratio: float = 1.0) -> list[HierarchyPlan]:
    """The groups that a topology offers, the fastest first; none where it has no tiers, or groups are not alike.

    Parameters
    ----------
    topology : Topology
    devices : sequence of str, optional
        Where each rank runs, all devices in their order by default.
    ratio : float, default 1
        Of the codec between groups.

    Raises
    ------
    ValueError
        If `devices` names what is no device.
    """
    ranks = ranks_by_device(topology, devices)
    hosts: defaultdict[str, list[str]] = defaultdict(list)
    for node in topology.nodes.values():
        hosts[node.host or node.name].append(node.name)
    on_switches = Clusters(topology, list(ranks)).sides
    cuts = [side for side in map(frozenset, (*hosts.values(), *on_switches)) if side & ranks.keys()]
    routes = Routes(topology)
    place = {name: i for i, name in enumerate(ranks)}
    plans: list[HierarchyPlan] = []
    for kind, sides in (("host", hosts.values()), ("switch", on_switches)):
        members = [sorted(side & ranks.keys(), key=place.__getitem__) for side in map(set, sides)]
        members = [names for names in members if names]
        groups = tuple(tuple(rank for name in names for rank in ranks[name]) for names in members)
        alike = len(groups) > 1 and len({len(group) for group in groups}) == 1 and len(groups[0]) > 1
        if alike and groups not in [plan.groups for plan in plans]:
            inside, between = _inside(routes, members[0], ranks), _between(topology, members, cuts)
            if np.isfinite(inside + between):
                plans.append(HierarchyPlan(kind, groups, inside, between))
    return sorted(plans, key=lambda plan: plan.seconds(1.0, ratio))


def _inside(routes: Routes, names: Sequence[str], ranks: dict[str, list[int]]) -> float:
    """While every rank of a group sends each other one its chunk.

    In rounds: in round k to the k-th behind it. Of very many rounds a few stand for all, spread evenly.
    """
    size = len(names)
    rounds = list(range(1, size))
    if size > _MOST_PAIRED:
        rounds = np.linspace(1, size - 1, max(1, _MOST_PAIRED**2 // size)).astype(int).tolist()
    loads = np.zeros(len(routes.links))
    for source, dest in ((names[i], names[(i + k) % size]) for k in rounds for i in range(size)):
        if not routes.joins(source, dest):
            return np.inf
        links, parts = routes.shares(source, dest)
        loads[links] += parts * len(ranks[source]) * len(ranks[dest])
    loads *= (size - 1) / max(len(rounds), 1)
    return float((loads / routes.bandwidths).max() / sum(len(ranks[name]) for name in names))


def _between(topology: Topology, members: Sequence[Sequence[str]], cuts: Sequence[frozenset[str]]) -> float:
    """The cuts that have whole groups on one side: g of G of them send all others 2 g (G - g) / G messages."""
    of_node = sides_of_nodes(cuts)
    narrower = cut_bandwidths(topology, of_node, len(cuts)).min(axis=0)
    whole, devices = np.zeros((2, len(cuts)))
    for names in members:
        inside = list(set.intersection(*(of_node[name] for name in names)))
        whole[inside] += 1
        devices[inside] += len(names)
    # Of cuts through the middle of a group, no such number is known.
    used = set().union(*members)
    crossed = (devices == [len(side & used) for side in cuts]) & (whole > 0) & (whole < len(members))
    moved = 2 * whole * (len(members) - whole) / len(members)
    with np.errstate(divide="ignore"):
        return float((moved[crossed] / narrower[crossed]).max(initial=0.0))


def layout_of(ring: RingPlan, tiers: HierarchyPlan | None) -> Layout:
    """The order of a ring, and groups where there are any."""
    return Layout(ring.order, tiers.groups if tiers else ())


def layout_on(topology: Topology, devices: Sequence[str] | None = None, *, ratio: float = TYPICAL_RATIO) -> Layout:
    """The layout of a program's ranks: their best ring, and the best groups where there are any.

    Parameters
    ----------
    topology : Topology
    devices : sequence of str, optional
        Where each rank runs, all devices in their order by default.
    ratio : float, default 4
        Of the codec that is to be used between groups.
    """
    tiers = next(iter(hierarchies(topology, devices, ratio=ratio)), None)
    return layout_of(ring_order(topology, devices), tiers)
