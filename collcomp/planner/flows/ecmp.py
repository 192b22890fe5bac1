"""Flows where switches put them that hash headers: what plans are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from collcomp.planner.flows.hashing import ROCE_SOURCE_PORTS, FiveTuple, Hop, SwitchHash
from collcomp.planner.flows.table import Flow, FlowTable, Placement, Way
from collcomp.planner.topology import Topology

__all__ = ["Hashed", "addresses_of", "hops", "switches_of"]


def addresses_of(topology: Topology) -> dict[str, str]:
    """An IPv4 address for every end of a network, counted up from 10.0.0.1."""
    ends = topology.ports or topology.devices
    return {end: ".".join(map(str, (10 << 24 | i + 1).to_bytes(4, "big"))) for i, end in enumerate(ends)}


def switches_of(topology: Topology, rng: np.random.Generator, method: str = "crc32") -> dict[str, SwitchHash]:
    """A hash with a seed of its own for every switch; those that no end is at look at other bits than those at ends."""
    leaves = {dest for source, dest in topology.links if source not in topology.switches}
    seeds = rng.integers(1 << 32, size=len(topology.switches)).tolist()
    return {
        switch: SwitchHash(method, seed, 0 if switch in leaves else 8)
        for switch, seed in zip(topology.switches, seeds, strict=True)
    }


@dataclass(frozen=True)
class Hashed:
    """Lets switches choose; source ports are random.

    Attributes
    ----------
    queue_pairs : int
        Of each flow; each carries the same share of its bytes.
    switches : mapping of str to SwitchHash
    addresses : mapping of str to str
        IPv4 addresses of ends.
    rng : numpy.random.Generator
        Of source ports.
    only_broken : bool
        Move only queue pairs whose way is broken; the hash chooses among what is left.
    bonded : bool
        Queue pairs fall on ports by their source port, as behind a bonding driver, not in turn.

    Raises
    ------
    ValueError
        If `queue_pairs` is below 1.
    """

    queue_pairs: int
    switches: Mapping[str, SwitchHash]
    addresses: Mapping[str, str]
    rng: np.random.Generator
    only_broken: bool = False
    bonded: bool = False

    def __post_init__(self) -> None:
        if self.queue_pairs < 1:
            raise ValueError(f"queue_pairs: {self.queue_pairs} is less than 1")

    def __call__(self, table: FlowTable, placements: Sequence[Placement]) -> None:
        """Place them."""
        for placement in placements:
            old = placement.ways if self.only_broken else []
            rows = table.ways(placement.flow)
            ends = table.ends(rows)
            pairs = np.unique(ends, axis=0)
            ports = self.rng.integers(ROCE_SOURCE_PORTS.start, ROCE_SOURCE_PORTS.stop, self.queue_pairs).tolist()
            ways = []
            for i, port in enumerate(ports):
                way = old[i] if i < len(old) else None
                if way is None or not table.bandwidths[list(way)].all():
                    pair = pairs[(port if self.bonded else i) % len(pairs)]
                    if way is not None and (pairs == (way[0], way[-1])).all(1).any():  # its ports still work
                        pair = np.array((way[0], way[-1]))
                    way = self._walk(table, rows[(ends == pair).all(1)], port)
                ways.append(way)
            table.put(placement, ways, [1 / self.queue_pairs] * self.queue_pairs)

    def _walk(self, table: FlowTable, rows: np.ndarray, source_port: int) -> Way:
        links = table.paths.links
        first, last = (links[link] for link in table.ends(rows)[0])
        packet = FiveTuple(self.addresses[first[0]], self.addresses[last[1]], source_port)
        for depth in range(rows.shape[1]):
            nexts = np.unique(rows[:, depth])
            if len(nexts) > 1:
                value = self.switches[links[nexts[0]][0]].value(packet)
                rows = rows[rows[:, depth] == nexts[value % len(nexts)]]
        return table.way(rows[0])


def hops(table: FlowTable, flow: Flow, way: Way, switches: Mapping[str, SwitchHash]) -> list[Hop]:
    """The choices that switches have along a way, each among those of its links that work and lead to the end.

    They count in the order of the topology's links, as `Hashed` does.

    Parameters
    ----------
    table : FlowTable
    flow : Flow
    way : Way
        One of its ways.
    switches : mapping of str to SwitchHash

    Raises
    ------
    ValueError
        If the way does not work, or a switch that has a choice is not in `switches`.
    """
    rows = table.ways(flow)
    rows = rows[(table.ends(rows) == (way[0], way[-1])).all(1)]
    choices = []
    for depth, link in enumerate(way):
        nexts = np.unique(rows[:, depth]).tolist()
        if link not in nexts:
            raise ValueError(f"way: {table.paths.nodes(way)} is none that works")
        if len(nexts) > 1:
            switch = table.paths.links[link][0]
            if switch not in switches:
                raise ValueError(f"switches: how {switch!r} chooses among {len(nexts)} links is not said")
            choices.append(Hop(switches[switch], len(nexts), nexts.index(link)))
        rows = rows[rows[:, depth] == link]
    return choices
