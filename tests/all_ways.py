"""All shortest ways through a topology, counted one by one: what loads of links are compared with."""

import networkx as nx

from collcomp.planner.topology import DEVICE, Topology


def all_ways(topology: Topology, source: str, dest: str) -> list[tuple[str, ...]]:
    """Every way with the fewest links, as names of nodes, past all other devices; `ValueError` if there is none."""

    def passes(name: str) -> bool:
        return name in (source, dest) or topology.nodes[name].kind != DEVICE

    try:
        return [
            tuple(way)
            for way in nx.all_shortest_paths(nx.subgraph_view(topology.graph, filter_node=passes), source, dest)
        ]
    except nx.NetworkXNoPath:
        raise ValueError(f"no way leads from {source!r} to {dest!r}") from None
