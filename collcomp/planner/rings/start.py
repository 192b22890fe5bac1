"""A first ring, by how the devices lie: host after host, hosts on one leaf together, leaves of one pod together.

On a tree of switches such an order crosses every link once in each direction, which is the least. Beyond that the ring
leaves each host where the way to the next one is best.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from collcomp.planner.rings import tours
from collcomp.planner.topology import SWITCH, Topology

__all__ = ["Clusters", "first_ring"]

#: From one device to another; infinite where no way leads there.
Cost = Callable[[str, str], float]

#: Above, the order of clusters is not improved by local search, nor that of a host's devices.
_MOST_CLUSTERS, _MOST_DEVICES = 128, 64
_KICKS = 8


class Clusters:
    """Hosts, and sets of hosts that are attached to the same switches, in a good order.

    Parameters
    ----------
    topology : Topology
    devices : sequence of str
        Those that the ring visits.

    Attributes
    ----------
    hosts : list of list of str
        Devices of each host, as they come one after another in the ring.
    sides : list of list of str
        All nodes of each set of hosts, with the switches that they are attached to.
    """

    def __init__(self, topology: Topology, devices: Sequence[str]) -> None:
        members: defaultdict[str, list[str]] = defaultdict(list)
        for device in devices:
            members[topology.nodes[device].host or device].append(device)
        nodes: defaultdict[str, list[str]] = defaultdict(list)
        for node in topology.nodes.values():
            nodes[node.host or node.name].append(node.name)
        attached: defaultdict[str, set[str]] = defaultdict(set)
        for source, dest in topology.links:
            host = topology.nodes[source].host or source
            if host in members and (topology.nodes[dest].host or dest) != host:
                attached[host].add(dest)
        sets: defaultdict[frozenset[str], list[str]] = defaultdict(list)
        for host in members:
            # Hosts that are attached to nothing, or directly to other hosts, are sets of their own.
            switches = frozenset(name for name in attached[host] if topology.nodes[name].kind == SWITCH)
            sets[switches or frozenset([host])].append(host)
        doors = list(sets)
        self.hosts = [members[host] for i in _in_order(topology, doors) for host in sets[doors[i]]]
        self.sides = [
            [*(name for host in sets[door] for name in nodes[host]), *(door if door & topology.nodes.keys() else ())]
            for door in doors
        ]


def _in_order(topology: Topology, doors: Sequence[frozenset[str]]) -> list[int]:
    """Sets of switches, always the nearest next, by numbers of links; few of them are improved by local search."""
    if len(doors) < 3:
        return list(range(len(doors)))
    links: defaultdict[str, list[str]] = defaultdict(list)
    for source, dest in topology.links:
        if topology.nodes[source].kind == SWITCH and topology.nodes[dest].kind == SWITCH:
            links[source].append(dest)
    of_switch: defaultdict[str, list[int]] = defaultdict(list)
    for i, door in enumerate(doors):
        for name in door:
            of_switch[name].append(i)
    left, order = set(range(1, len(doors))), [0]
    while left:
        nearest = _nearest(doors[order[-1]], links, of_switch, left)
        left.remove(nearest)
        order.append(nearest)
    if len(doors) <= _MOST_CLUSTERS:
        cost = np.array([_distances(door, links, doors) for door in doors])
        order = tours.improved(np.array(order), cost).tolist()
    return order


def _nearest(door: frozenset[str], links: dict[str, list[str]], of_switch: dict[str, list[int]], left: set[int]) -> int:
    level, seen = set(door), set(door)
    while level:
        found = [i for name in level for i in of_switch.get(name, ()) if i in left]
        if found:
            return min(found)
        level = {there for name in level for there in links.get(name, ())} - seen
        seen |= level
    return min(left)


def _distances(door: frozenset[str], links: dict[str, list[str]], doors: Sequence[frozenset[str]]) -> list[float]:
    distance = dict.fromkeys(door, 0)
    level = set(door)
    while level:
        level = {there for name in level for there in links.get(name, ())} - distance.keys()
        distance |= dict.fromkeys(level, max(distance.values()) + 1)
    far = len(links) + 1
    return [float(min(distance.get(name, far) for name in other)) for other in doors]


def first_ring(clusters: Clusters, cost: Cost, rng: np.random.Generator) -> list[str]:
    """The ring that visits the hosts in their order, with the cheapest edges between them."""
    hosts = clusters.hosts
    if len(hosts) == 1:
        return [hosts[0][i] for i in _closed(_matrix(hosts[0], hosts[0], cost), rng)]
    ring = []
    known: dict[tuple[bytes, int, int], np.ndarray] = {}
    for host, (entry, leave) in zip(hosts, _doors(hosts, cost), strict=True):
        inside = _matrix(host, host, cost)
        way = (inside.tobytes(), entry, leave)
        if way not in known:
            known[way] = _through(inside, entry, leave, rng)
        ring += [host[i] for i in known[way]]
    return ring


def _closed(inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    order = np.arange(len(inside))
    return tours.kicked(order, inside, _KICKS, rng) if len(inside) <= _MOST_DEVICES else order


def _through(inside: np.ndarray, entry: int, leave: int, rng: np.random.Generator) -> np.ndarray:
    kicks = _KICKS if len(inside) <= _MOST_DEVICES else 0
    return tours.path(inside, entry, leave, kicks, rng)


def _matrix(sources: Sequence[str], dests: Sequence[str], cost: Cost) -> np.ndarray:
    """Costs from each to each, all finite: no way at all is dearer than all others together."""
    costs = np.array([[0.0 if a == b else cost(a, b) for b in dests] for a in sources])
    missing = ~np.isfinite(costs)
    costs[missing] = 2 * costs[~missing].sum() or 1.0
    return costs


def _doors(hosts: Sequence[Sequence[str]], cost: Cost) -> list[tuple[int, int]]:
    """Where the ring enters and leaves each host, so that the edges between hosts cost least together."""
    # steps[h][a, a']: the least cost from host h entered at a to the next one entered at a'; exits[h]: by which device.
    steps, exits = [], []
    for host, following in zip(hosts, [*hosts[1:], hosts[0]], strict=True):
        across = _matrix(host, following, cost)
        by_exit = np.repeat(across[None], len(host), axis=0)
        if len(host) > 1:
            by_exit[np.arange(len(host)), np.arange(len(host))] = np.inf  # it does not leave where it came in
        else:
            by_exit = across[None]
        steps.append(by_exit.min(axis=1))
        exits.append(by_exit.argmin(axis=1))
    best: tuple[float, list[int]] = (np.inf, [])
    for first in range(len(hosts[0])):
        least = np.full(len(hosts[0]), np.inf)
        least[first] = 0
        came_from = []
        for step in steps:
            total = least[:, None] + step
            came_from.append(total.argmin(axis=0))
            least = total.min(axis=0)
        if least[first] < best[0]:
            entries = [first]
            for origin in reversed(came_from):
                entries.append(int(origin[entries[-1]]))
            best = float(least[first]), entries[:0:-1]
    entries = best[1]
    return [(a, int(exits[h][a, b])) for h, (a, b) in enumerate(zip(entries, [*entries[1:], entries[0]], strict=True))]
