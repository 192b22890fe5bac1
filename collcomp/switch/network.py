"""A network in virtual time: nodes that deal with one packet after the other, and links that lose some."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from collcomp.switch.switch import Outgoing

__all__ = ["Link", "Network", "Node"]


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a link, which serves packets in the order in which they are sent.

    Attributes
    ----------
    rate : float
        Bytes per second.
    burst_nbytes : float
        That pass at once after a pause: the depth of a token bucket.
    latency : float
        Seconds that a packet is under way.
    overhead_nbytes : int
        Of each packet, beside its own header of 48 bytes: the headers of Ethernet, IPv4 and UDP.
    loss, duplication, reordering : float
        Probabilities that a packet is lost; that it arrives twice; that it takes up to `delay` longer.
    delay : float
        Seconds.
    """

    rate: float = math.inf
    burst_nbytes: float = 0.0
    latency: float = 20e-6
    overhead_nbytes: int = 42
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    delay: float = 1e-3


class Network:
    """Nodes, links and what is under way; the same for the same `seed`.

    Attributes
    ----------
    now : float
        Virtual seconds.
    packets, lost, nbytes : int
        On all links, headers of all layers included.
    """

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.packets = self.lost = self.nbytes = 0
        self.nodes: list[Node] = []
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def at(self, when: float, action: Callable[..., None], *args: Any) -> None:
        """Have `action` done at a time; what is due at the same time is done in the order of these calls."""
        heapq.heappush(self._events, (when, next(self._numbers), action, args))

    def step(self) -> None:
        """Go on to what is due next."""
        self.now, _, action, args = heapq.heappop(self._events)
        action(*args)

    def transfer(self, line: _Line, when: float, source: Node, packet: Outgoing) -> None:
        """Put a packet on a line."""
        link = line.link
        nbytes = link.overhead_nbytes + packet.header.size + packet.payload.size
        self.packets += 1
        self.nbytes += nbytes
        # When the link would be free if it had no burst; it lets packets pass earlier by as much.
        line.free = max(when, line.free) + nbytes / link.rate
        leaves = max(when, line.free - link.burst_nbytes / link.rate)
        if self._happens(link.loss):
            self.lost += 1
            return
        for _ in range(1 + self._happens(link.duplication)):
            extra = self._random.random() * link.delay if self._happens(link.reordering) else 0.0
            self.at(leaves + link.latency + extra, line.target.arrive, packet, source.name)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._random.random() < probability


class Node:
    """A worker or a switch.

    Parameters
    ----------
    network : Network
    seconds : float
        That it needs for each packet that it receives or sends.

    Attributes
    ----------
    name : int
        Its address.
    """

    def __init__(self, network: Network, seconds: float) -> None:
        self.network = network
        self.name = len(network.nodes) + 1
        network.nodes.append(self)
        self._seconds = seconds
        self._lines: dict[int, _Line] = {}
        self._busy = 0.0

    def connect(self, target: Node, link: Link) -> None:
        """Lay a line to another node."""
        self._lines[target.name] = _Line(target, link)

    def ready(self) -> float:
        """When it has done what there was to do."""
        return max(self._busy, self.network.now)

    def work(self) -> float:
        """Deal with one more packet; when that is done."""
        self._busy = self.ready() + self._seconds
        return self._busy

    def backlog(self) -> int:
        """Bytes that wait on all its lines."""
        lines = [line for line in self._lines.values() if line.link.rate < math.inf]
        return int(sum(max(line.free - self.network.now, 0.0) * line.link.rate for line in lines))

    def send(self, packet: Outgoing) -> None:
        """Send a packet to a neighbour."""
        self.network.transfer(self._lines[packet.name], self.work(), self, packet)

    def arrive(self, packet: Outgoing, source: int) -> None:
        """Take in a packet from the node of that name."""
        raise NotImplementedError


@dataclass(slots=True)
class _Line:
    """A link to a node, and when it is free."""

    target: Node
    link: Link
    free: float = 0.0
