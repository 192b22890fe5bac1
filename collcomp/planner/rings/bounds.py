"""What no ring can be faster than: cuts that it has to cross, and the ways that it has to take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from collcomp.planner.topology import DEVICE, Topology
from collcomp.planner.topology.routes import Routes

__all__ = ["crossing_bound", "cut_bandwidths", "cut_bound", "scarce_cuts", "sides_of_nodes", "way_bound"]

#: A link as seen from a host: its end inside, the other end (None outside), bytes per second.
_Seen = tuple[str, str | None, float]


def cut_bound(topology: Topology, devices: Sequence[str], clusters: Iterable[Iterable[str]] = ()) -> float:
    """Seconds that rings need at least for each byte that goes round, however many rings share the bytes.

    All that goes round leaves every part of the devices once, and enters it once.

    Parameters
    ----------
    topology : Topology
    devices : sequence of str
        What the rings visit.
    clusters : iterable of iterable of str
        Nodes on one side of cuts, beside those of each device and of each host.
    """
    used = set(devices)
    hosts: defaultdict[str, list[str]] = defaultdict(list)
    for node in topology.nodes.values():
        hosts[node.host or node.name].append(node.name)
    every = [*([device] for device in devices), *hosts.values(), *clusters]
    sides = [side for side in map(frozenset, every) if used & side and not used <= side]
    return _most_seconds([*cut_bandwidths(topology, sides_of_nodes(sides), len(sides)).ravel()])


def sides_of_nodes(sides: Iterable[frozenset[str]]) -> defaultdict[str, set[int]]:
    """The numbers of the sides that each node is on."""
    of_node: defaultdict[str, set[int]] = defaultdict(set)
    for i, side in enumerate(sides):
        for name in side:
            of_node[name].add(i)
    return of_node


def cut_bandwidths(topology: Topology, of_node: Mapping[str, set[int]], count: int) -> np.ndarray:
    """Bytes per second of all links that leave each side of a cut, and of those that enter it.

    Parameters
    ----------
    topology : Topology
    of_node : mapping of str to set of int
        What `sides_of_nodes` gave.
    count : int
        Of sides.

    Returns
    -------
    ndarray of shape (2, sides)
    """
    both = np.zeros((2, count))
    none: set[int] = set()
    for (source, dest), link in topology.links.items():
        before, after = of_node.get(source, none), of_node.get(dest, none)
        both[0, list(before - after)] += link.bandwidth
        both[1, list(after - before)] += link.bandwidth
    return both


def scarce_cuts(topology: Topology) -> list[frozenset[str]]:
    """The cuts that stand in the way of all-gathers and reduce-scatters, which are scarce for rings, too."""
    from collcomp.planner.forests.optimum import optimum

    return [optimum(topology, collective).cut for collective in ("allgather", "reduce_scatter")]


def crossing_bound(topology: Topology, devices: Sequence[str]) -> float:
    """The same for one ring: it leaves each host at one device, which can send no more than flows out of it.

    Source: the max-flow min-cut theorem, on a host's own switches and ports.
    """
    used = set(devices)
    hosts = {host: [name for name in members if name in used] for host, members in topology.hosts.items()}
    hosts = {host: members for host, members in hosts.items() if members}
    if len(hosts) < 2:
        return 0.0
    best: list[float] = []
    for outwards in (True, False):
        known: dict[tuple[object, ...], float] = {}  # most hosts look like one another
        for host, links in _links_of_hosts(topology, outwards).items():
            members = hosts.get(host, [])
            if not members:
                continue
            looks = (
                tuple(name.removeprefix(host) for name in members),
                tuple((near.removeprefix(host), far and far.removeprefix(host), rate) for near, far, rate in links),
            )
            if looks not in known:
                known[looks] = max(_flow_out(topology, links, member) for member in members)
        best += known.values()
    return _most_seconds(best)


def _links_of_hosts(topology: Topology, outwards: bool) -> dict[str, list[_Seen]]:
    """The links that leave nodes of each host, or those that enter them, turned round."""
    links: defaultdict[str, list[_Seen]] = defaultdict(list)
    for link in topology.links.values():
        near, far = (link.source, link.dest) if outwards else (link.dest, link.source)
        host = topology.nodes[near].host or near
        inside = (topology.nodes[far].host or far) == host
        links[host].append((near, far if inside else None, link.bandwidth))
    return links


def _flow_out(topology: Topology, links: Sequence[_Seen], device: str) -> float:
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from((device, "outside"))
    for near, far, bandwidth in links:
        if near != device and topology.nodes[near].kind == DEVICE:
            continue
        end = "outside" if far is None else far
        held = graph.get_edge_data(near, end, {"capacity": 0.0})["capacity"]
        graph.add_edge(near, end, capacity=held + bandwidth)
    return float(nx.maximum_flow_value(graph, device, "outside"))


def way_bound(routes: Routes, devices: Sequence[str]) -> float:
    """The same for one ring: edges that are fast enough for it have to join all devices, in both directions.

    Every pair of devices is looked at, so this is for small clusters.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n = len(devices)
    slowness = np.full((n, n), np.inf)
    for i, source in enumerate(devices):
        for j, dest in enumerate(devices):
            if i != j and routes.joins(source, dest):
                links, parts = routes.shares(source, dest)
                slowness[i, j] = (parts / routes.bandwidths[links]).max()
    values = np.unique(slowness[np.isfinite(slowness)])
    low, high = 0, len(values)
    while low < high:  # the first value whose edges join all; beyond the last where none does
        middle = (low + high) // 2
        joined = csr_array(slowness <= values[middle])
        if connected_components(joined, connection="strong", return_labels=False) == 1:
            high = middle
        else:
            low = middle + 1
    return float(values[low]) if low < len(values) else np.inf


def _most_seconds(bandwidths: Sequence[float]) -> float:
    slowest = min(bandwidths, default=np.inf)
    return 1 / slowest if slowest > 0 else np.inf
