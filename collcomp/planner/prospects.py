"""What an allreduce costs on a described topology by each algorithm: a cost model that nobody had to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from collcomp.planner.cost import CodecCost, CostModel, Network, Wire
from collcomp.planner.layout import Layout
from collcomp.planner.rings.order import RingPlan, ring_order
from collcomp.planner.schedules.algorithms import direct_schedule, hierarchical_schedule
from collcomp.planner.schedules.hierarchy import TYPICAL_RATIO, HierarchyPlan, hierarchies, layout_of
from collcomp.planner.topology import Topology
from collcomp.planner.topology.routes import Routes

__all__ = ["Prospects", "prospects"]

#: With more ranks than these the traffic of each with each is not followed: `direct` is left out, and `hierarchical`
#: is as fast as its scarcest links.
_MOST_FOLLOWED = 128
#: Ways to sum that are so little apart are equally fast.
_CLOSE = 1e-9


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
        are very many ranks, or some cannot reach each other, and so is `hierarchical` where some that exchange results
        cannot.
    """

    topology: Topology
    devices: tuple[str, ...]
    ring: RingPlan
    tiers: HierarchyPlan | None
    model: CostModel

    @property
    def layout(self) -> Layout:
        """The order and the groups, for programs."""
        return layout_of(self.ring, self.tiers)


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
    tiers = next(iter(hierarchies(topology, devices, ratio=TYPICAL_RATIO)), None)
    routes = Routes(topology)
    wires = {"ring": _ring(ring)}
    wires["native"] = _native(routes, devices, wires["ring"])
    if size <= _MOST_FOLLOWED and all(routes.joins(*pair) for pair in permutations(dict.fromkeys(devices), 2)):
        steps = direct_schedule(size).costs(routes, devices)
        wires["direct"] = Wire(sum(step.latency for step in steps), sum(step.seconds_per_byte for step in steps))
    if tiers is not None and (wire := _hierarchical(routes, devices, tiers, ring.latency)) is not None:
        wires["hierarchical"] = wire
    groups = len(tiers.groups) if tiers else 1
    network = Network(ring.latency, ring.busbw)
    return Prospects(topology, devices, ring, tiers, CostModel(size, network, codecs or {}, groups=groups, wires=wires))


def _ring(plan: RingPlan) -> Wire:
    size = len(plan.order)
    return Wire(2 * (size - 1) * plan.latency, 2 * (size - 1) / size * plan.seconds_per_byte)


def _hierarchical(routes: Routes, devices: Sequence[str], tiers: HierarchyPlan, latency: float) -> Wire | None:
    """None where some that exchange results cannot reach each other."""
    columns = zip(*tiers.groups, strict=True)
    if len(devices) > _MOST_FOLLOWED:
        # Results travel inside groups as they came from other groups: as frames.
        return Wire(4 * latency, tiers.between + tiers.inside, tiers.inside)
    if not all(
        routes.joins(devices[one], devices[other]) for ranks in columns for one, other in permutations(ranks, 2)
    ):
        return None
    schedule = hierarchical_schedule(tiers.groups)
    frames, raw = 0.0, 0.0
    costs = schedule.costs(routes, devices)
    for step, cost in zip(schedule.steps, costs, strict=True):
        if step[0].encoded:  # so are all others of the step, or none
            frames += cost.seconds_per_byte
        else:
            raw += cost.seconds_per_byte
    return Wire(sum(cost.latency for cost in costs), frames, raw)


def _native(routes: Routes, devices: Sequence[str], planned: Wire) -> Wire:
    """The faster of what libraries do that see ranks only; the planned ring where some ranks cannot reach others."""
    ways = [wire for wire in (_round(routes, devices), _halving(routes, devices)) if wire is not None]
    if not ways:
        return planned
    fastest = min(wire.frame for wire in ways) * (1 + _CLOSE)
    return min((wire for wire in ways if wire.frame <= fastest), key=lambda wire: wire.latency)


def _round(routes: Routes, devices: Sequence[str]) -> Wire | None:
    """A ring in rank order; None where some cannot reach the next."""
    size = len(devices)
    pairs = [(devices[rank], devices[(rank + 1) % size]) for rank in range(size)]
    if not all(routes.joins(*pair) for pair in pairs):
        return None
    slowest = max(routes.latency(*pair) for pair in pairs)
    return Wire(2 * (size - 1) * slowest, 2 * (size - 1) / size * _busiest(routes, pairs))


def _halving(routes: Routes, devices: Sequence[str]) -> Wire | None:
    """Recursive halving and doubling; None where some cannot reach their partners.

    Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005. Where
    the number of ranks is no power of two, so many of the first ranks as are too many hand their message to the next
    one, and get the result from it.
    """
    size = len(devices)
    power = 1 << (size.bit_length() - 1)
    folded = [(devices[2 * i], devices[2 * i + 1]) for i in range(size - power)]
    taking_part = [to for _, to in folded] + list(devices[2 * (size - power) :])
    steps = [(1.0, folded), (1.0, [pair[::-1] for pair in folded])] if folded else []
    distance = 1
    # The message is halved with each step, from the farthest rank to the nearest, and doubled back.
    while distance < power:
        pairs = [(taking_part[rank], taking_part[rank ^ distance]) for rank in range(power)]
        steps += [(distance / power, pairs)] * 2
        distance *= 2
    if not all(routes.joins(*pair) for _, pairs in steps for pair in pairs):
        return None
    latency = sum(max(routes.latency(*pair) for pair in pairs) for _, pairs in steps)
    return Wire(latency, sum(part * _busiest(routes, pairs) for part, pairs in steps))


def _busiest(routes: Routes, pairs: Sequence[tuple[str, str]]) -> float:
    """Seconds per byte of the busiest link while each pair moves one."""
    return float((routes.loads([pair for pair in pairs if pair[0] != pair[1]]) / routes.bandwidths).max(initial=0.0))
