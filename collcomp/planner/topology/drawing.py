"""Topologies put together piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

from collcomp.planner.topology import Link, Node, Topology

__all__ = ["Drawing"]

#: More are a slip of the pen, or meant to fill the memory.
_MOST_NODES, _MOST_LINKS = 1 << 20, 1 << 21


class Drawing:
    """Nodes and links, put down one after another; what stands twice carries twice as much."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._links: dict[tuple[str, str], Link] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def node(self, name: str, kind: str, host: str | None = None, plane: int | None = None) -> str:
        """Put down a node and return its name.

        Raises
        ------
        ValueError
            If there is one of that name, or there are too many.
        """
        if len(self._nodes) >= _MOST_NODES:
            raise ValueError(f"nodes: there are more than {_MOST_NODES}")
        if name in self._nodes:
            raise ValueError(f"nodes: {name!r} stands twice")
        self._nodes[name] = Node(name, kind, host, plane)
        return name

    def link(self, source: str, dest: str, bandwidth: float, latency: float = 0.0) -> None:
        """Put down one direction, of so many bytes per second and seconds; a second one there adds its bandwidth."""
        if len(self._links) >= _MOST_LINKS:
            raise ValueError(f"links: there are more than {_MOST_LINKS}")
        before = self._links.get((source, dest))
        bandwidth += before.bandwidth if before else 0.0
        self._links[source, dest] = Link(source, dest, bandwidth, latency)

    def cable(self, one: str, other: str, bandwidth: float, latency: float = 0.0) -> None:
        """Put down both directions."""
        self.link(one, other, bandwidth, latency)
        self.link(other, one, bandwidth, latency)

    def topology(self, name: str, devices: Sequence[str] = ()) -> Topology:
        """What was put down, with some devices first, in that order."""
        order = dict.fromkeys([*devices, *self._nodes])
        return Topology(name, [self._nodes[node] for node in order], self._links.values())
