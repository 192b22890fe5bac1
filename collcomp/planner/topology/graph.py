"""What a cluster is made of: devices, the ports of network cards, switches, and the links between them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["DEVICE", "PORT", "SWITCH", "Link", "Node", "Topology"]

#: Where a rank can run: a GPU, or a host whose ranks use its processors.
DEVICE = "device"
#: One port of a network card.
PORT = "port"
#: What only passes bytes on: NVSwitch, PCIe switch or root complex, leaf, spine.
SWITCH = "switch"

_KINDS = (DEVICE, PORT, SWITCH)
#: Bytes per second beyond which sums over links, or what they are divided by, would overflow.
_SLOWEST, _FASTEST = 1e-100, 1e100


@dataclass(frozen=True, slots=True)
class Node:
    """One end of links.

    Attributes
    ----------
    name : str
    kind : {"device", "port", "switch"}
    host : str or None
        The machine that it is in, None for switches of the network.
    plane : int or None
        Which of several separate networks it belongs to, None where there is one.

    Raises
    ------
    ValueError
        If one is of another type.
    """

    name: str
    kind: str
    host: str | None = None
    plane: int | None = None

    def __post_init__(self) -> None:
        texts = [self.name, self.kind, *([] if self.host is None else [self.host])]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"nodes: name, kind or host is no text in {self}")
        if self.plane is not None and (isinstance(self.plane, bool) or not isinstance(self.plane, int)):
            raise ValueError(f"nodes: plane {self.plane!r} of {self.name!r} is no whole number")


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two nodes.

    Attributes
    ----------
    source, dest : str
    bandwidth : float
        Bytes per second; other numbers become floats.
    latency : float
        Seconds.

    Raises
    ------
    ValueError
        If one is of another type.
    """

    source: str
    dest: str
    bandwidth: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not isinstance(self.dest, str):
            raise ValueError(f"links: {self.source!r} -> {self.dest!r} are not two names")
        for field in ("bandwidth", "latency"):
            value = getattr(self, field)
            if type(value) is not float:
                object.__setattr__(self, field, _as_float(value, f"links: {field} of {self.source} -> {self.dest}"))


def _as_float(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} is no number: {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large") from None


class Topology:
    """A directed graph of nodes and links; it never changes, `without` and `scaled` make others.

    Parameters
    ----------
    name : str
    nodes : iterable of Node
    links : iterable of Link
        One at most in each direction between two nodes; a cable is two of them.

    Raises
    ------
    ValueError
        If a name stands twice, a kind is unknown, a link has an end that is no node, or its numbers are none.
    """

    def __init__(self, name: str, nodes: Iterable[Node], links: Iterable[Link]) -> None:
        if not isinstance(name, str):
            raise ValueError(f"name: {name!r} is no text")
        self.name = name
        self.nodes: dict[str, Node] = {}
        self.links: dict[tuple[str, str], Link] = {}
        for node in nodes:
            if node.kind not in _KINDS:
                raise ValueError(f"nodes: {node.name!r} is of the unknown kind {node.kind!r}")
            if node.name in self.nodes:
                raise ValueError(f"nodes: {node.name!r} stands twice")
            self.nodes[node.name] = node
        for link in links:
            ends = (link.source, link.dest)
            for end in ends:
                if end not in self.nodes:
                    raise ValueError(f"links: {end!r} of the link {link.source} -> {link.dest} is no node")
            if link.source == link.dest or ends in self.links:
                raise ValueError(f"links: {link.source} -> {link.dest} stands twice, or leads nowhere")
            if not _SLOWEST <= link.bandwidth <= _FASTEST or not 0 <= link.latency < math.inf:
                raise ValueError(f"links: {link.source} -> {link.dest} has no bandwidth or latency that can be: {link}")
            self.links[ends] = link

    def __repr__(self) -> str:
        return (
            f"<Topology {self.name!r}: {len(self.devices)} devices, {len(self.nodes)} nodes, {len(self.links)} links>"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topology):
            return NotImplemented
        return (self.name, self.nodes, self.links) == (other.name, other.nodes, other.links)

    __hash__ = None  # type: ignore[assignment]

    # ------------------------------------------------------------------ what is in it

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices, in the order in which they were given, which is that of ranks unless told otherwise."""
        return self._of_kind(DEVICE)

    @cached_property
    def ports(self) -> tuple[str, ...]:
        """Names of the network cards' ports."""
        return self._of_kind(PORT)

    @cached_property
    def switches(self) -> tuple[str, ...]:
        """Names of what only passes bytes on."""
        return self._of_kind(SWITCH)

    def _of_kind(self, kind: str) -> tuple[str, ...]:
        return tuple(name for name, node in self.nodes.items() if node.kind == kind)

    @cached_property
    def hosts(self) -> dict[str, tuple[str, ...]]:
        """Devices of each host; a device without one is a host of its own."""
        hosts: dict[str, list[str]] = {}
        for name in self.devices:
            hosts.setdefault(self.nodes[name].host or name, []).append(name)
        return {host: tuple(devices) for host, devices in hosts.items()}

    @cached_property
    def graph(self) -> nx.DiGraph:
        """The same as a graph of networkx, with ``bandwidth`` and ``latency`` on its edges."""
        import networkx as nx

        graph = nx.DiGraph(name=self.name)
        graph.add_nodes_from((node.name, {"kind": node.kind}) for node in self.nodes.values())
        graph.add_edges_from(
            (link.source, link.dest, {"bandwidth": link.bandwidth, "latency": link.latency})
            for link in self.links.values()
        )
        return graph

    # ------------------------------------------------------------------ others like it

    def without(self, *broken: str | tuple[str, str]) -> Topology:
        """The topology that is left when nodes (by name) or links (by both ends; both directions) are broken."""
        names = {what for what in broken if isinstance(what, str)}
        cables = {frozenset(what) for what in broken if not isinstance(what, str)}
        known = {frozenset(ends) for ends in self.links}
        for what in broken:
            if what not in self.nodes if isinstance(what, str) else frozenset(what) not in known:
                raise ValueError(f"broken: {what!r} is nothing of {self.name!r}")
        links = [
            link
            for link in self.links.values()
            if link.source not in names and link.dest not in names and frozenset((link.source, link.dest)) not in cables
        ]
        return Topology(self.name, [node for node in self.nodes.values() if node.name not in names], links)

    def scaled(self, factors: Mapping[tuple[str, str], float]) -> Topology:
        """The topology in which these directed links have so many times their bandwidth."""
        unknown = factors.keys() - self.links.keys()
        if unknown:
            raise ValueError(f"factors: {sorted(unknown)[0]!r} is no link of {self.name!r}")
        links = [replace(link, bandwidth=link.bandwidth * factors.get(ends, 1.0)) for ends, link in self.links.items()]
        return Topology(self.name, self.nodes.values(), links)

    def reversed(self) -> Topology:
        """The topology with all links turned round."""
        links = [replace(link, source=link.dest, dest=link.source) for link in self.links.values()]
        return Topology(self.name, self.nodes.values(), links)

    # ------------------------------------------------------------------ files

    def to_dict(self) -> dict[str, Any]:
        """The topology in JSON's types."""
        return {
            "name": self.name,
            "nodes": [asdict(node) for node in self.nodes.values()],
            "links": [asdict(link) for link in self.links.values()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Topology:
        """The topology that `to_dict` gave."""
        try:
            nodes = [Node(**node) for node in data["nodes"]]
            return cls(data["name"], nodes, [Link(**link) for link in data["links"]])
        except (KeyError, TypeError) as error:
            raise ValueError(f"topology: not what Topology.to_dict writes ({error})") from None

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")
