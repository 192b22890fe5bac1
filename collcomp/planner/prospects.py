"""What an allreduce costs on a described topology by each algorithm: a cost model that nobody had to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from collcomp.planner.cost import CodecCost, CostModel, Network, Wire
from collcomp.planner.layout import Layout
from collcomp.planner.rings.order import RingPlan, ring_order
from collcomp.planner.schedules.algorithms import direct_schedule
from collcomp.planner.schedules.hierarchy import HierarchyPlan, hierarchies
from collcomp.planner.topology import Topology
from collcomp.planner.topology.routes import Routes

__all__ = ["Prospects", "prospects"]

#: With more ranks than these the traffic of all with all is not followed: `direct` is left out.
_MOST_DIRECT = 128
#: By how much a codec shortens frames where that decides which groups are best.
_TYPICAL_RATIO = 4.0


@dataclass(frozen=True)
class Prospects:
    """What a topology promises a program.

    Attributes
    ----------
    topology : Topology
    devices : tuple of str
        Where each rank runs.
    ring : RingPlan
    tiers : HierarchyPlan or None
        None where there are no groups of equal size.
    model : CostModel
        Of allreduces. Native ones are those of a library that knows nothing of the topology: by recursive halving and
        doubling, or by a ring in rank order, whichever is faster for large messages. `direct` is left out where there
        are very many ranks, or some cannot reach each other.
    """

    topology: Topology
    devices: tuple[str, ...]
    ring: RingPlan
    tiers: HierarchyPlan | None
    model: CostModel

    @property
    def layout(self) -> Layout:
        """The order and the groups, for programs."""
        return Layout(self.ring.order, self.tiers.groups if self.tiers else ())


def prospects(
    topology: Topology, devices: Sequence[str] | None = None, codecs: Mapping[str, CodecCost] | None = None
) -> Prospects:
    """Plan an allreduce over a topology.

    Parameters
    ----------
    topology : Topology
    devices : sequence of str, optional
        Where each rank runs, all devices in their order by default.
    codecs : mapping of str to CodecCost, optional
        By spec.

    Raises
    ------
    ValueError
        If there are fewer than two ranks, `devices` names what is no device, or some cannot reach each other.
    """
    devices = tuple(topology.devices if devices is None else devices)
    size = len(devices)
    if size < 2:
        raise ValueError(f"devices: {size}, an allreduce is among two at least")
    ring = ring_order(topology, devices)
    tiers = next(iter(hierarchies(topology, devices, ratio=_TYPICAL_RATIO)), None)
    routes = Routes(topology)
    wires = {"ring": _ring(ring)}
    wires["native"] = _native(routes, devices, wires["ring"])
    if size <= _MOST_DIRECT and all(routes.joins(*pair) for pair in permutations(dict.fromkeys(devices), 2)):
        steps = direct_schedule(size).costs(routes, devices)
        wires["direct"] = Wire(sum(step.latency for step in steps), sum(step.seconds_per_byte for step in steps))
    if tiers is not None:
        # Results travel inside groups as they came from other groups: as frames.
        frames = tiers.between + tiers.inside
        wires["hierarchical"] = Wire(4 * ring.latency, frames, tiers.inside)
    groups = len(tiers.groups) if tiers else 1
    network = Network(ring.latency, ring.busbw)
    return Prospects(topology, devices, ring, tiers, CostModel(size, network, codecs or {}, groups=groups, wires=wires))


def _ring(plan: RingPlan) -> Wire:
    size = len(plan.order)
    return Wire(2 * (size - 1) * plan.latency, 2 * (size - 1) / size * plan.seconds_per_byte)


def _native(routes: Routes, devices: Sequence[str], planned: Wire) -> Wire:
    """The faster of what libraries do that see ranks only; the planned ring where some ranks cannot reach others."""
    size = len(devices)
    if not all(routes.joins(devices[rank], devices[(rank + 1) % size]) for rank in range(size)):
        return planned
    round_ring = [(devices[rank], devices[(rank + 1) % size]) for rank in range(size)]
    ring = 2 * (size - 1) / size * _busiest(routes, round_ring)
    latency, halving, distance = 0.0, 0.0, 1
    # The message is halved with each step, from the farthest rank to the nearest, and doubled back.
    while distance < size:
        pairs = [(devices[rank], devices[rank ^ distance]) for rank in range(size) if rank ^ distance < size]
        if not all(routes.joins(*pair) for pair in pairs):
            return Wire(planned.latency, ring)
        latency += 2 * max(routes.latency(*pair) for pair in pairs)
        halving += 2 * distance / size * _busiest(routes, pairs)
        distance *= 2
    return Wire(latency, min(ring, halving))


def _busiest(routes: Routes, pairs: Sequence[tuple[str, str]]) -> float:
    """Seconds per byte of the busiest link while each pair moves one."""
    return float((routes.loads([pair for pair in pairs if pair[0] != pair[1]]) / routes.bandwidths).max(initial=0.0))
