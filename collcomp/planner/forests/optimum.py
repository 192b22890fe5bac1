"""How fast a collective operation can be on a topology at best, and which cut of it stands in the way.

Take a set S of nodes that leaves at least one device out. What its devices have must reach that one, and so must leave
S: no all-gather of M bytes over N devices is faster than ``M / N * |S ∩ devices| / B+(S)``, where B+(S) is what the
links that leave S carry in a second. The greatest such time over all S is the optimum, because schedules attain it (see
`forests.forest`). Bound and proof are ForestColl's (Zhao et al., arXiv 2402.06787); the cut is found by
Dinkelbach's method: follow a cut that forbids the present rate, until there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from collcomp.planner.topology import Topology

__all__ = ["COLLECTIVES", "Optimum", "integers", "optimum"]

#: What there is a bound for.
COLLECTIVES = ("allgather", "reduce_scatter", "allreduce")

#: scipy's flows are of 32 bits.
_MOST_CAPACITY = 2**31 - 1
#: Bandwidths are multiples of a unit that is at least this part of the largest.
_FINEST = 2**40


@dataclass(frozen=True)
class Optimum:
    """The least time of a collective operation, and why it is not less.

    Attributes
    ----------
    collective : {"allgather", "reduce_scatter", "allreduce"}
    devices : int
    seconds_per_byte : Fraction
        The least time of an operation over M bytes in all, by M. Exact where all bandwidths are multiples of a unit
        that is not tiny, as those of data sheets are (then flows of 32 bits hold them); with others, as measured ones,
        it can be a part in 10^6 too low.
    cut : frozenset of str
        Nodes on one side of the bottleneck; all links that leave it, or enter it for "reduce_scatter", are full all the
        time.
    """

    collective: str
    devices: int
    seconds_per_byte: Fraction
    cut: frozenset[str]

    @property
    def algbw(self) -> float:
        """Bytes per second: the operation's size by its time, as nccl-tests counts."""
        return float(1 / self.seconds_per_byte)

    @property
    def busbw(self) -> float:
        """Bytes per second of one device's links on average, as nccl-tests counts."""
        rounds = 2 if self.collective == "allreduce" else 1
        return self.algbw * rounds * (self.devices - 1) / self.devices


def optimum(topology: Topology, collective: str = "allgather") -> Optimum:
    """The cut bound of a collective operation on a topology.

    For "reduce_scatter" it is that of an all-gather with all links turned round. For "allreduce" it is both, one after
    the other, as rings and direct exchanges work: what sums in the network can be faster.

    Parameters
    ----------
    topology : Topology
        Two devices at least.
    collective : {"allgather", "reduce_scatter", "allreduce"}, default "allgather"

    Raises
    ------
    ValueError
        If there are fewer than two devices, or some device cannot be reached from another.
    """
    if collective not in COLLECTIVES:
        raise ValueError(f"collective: {collective!r} is none of {', '.join(COLLECTIVES)}")
    if len(topology.devices) < 2:
        raise ValueError(f"topology: {topology.name!r} has {len(topology.devices)} devices, not two or more")
    if collective == "allreduce":
        parts = optimum(topology, "reduce_scatter"), optimum(topology, "allgather")
        worse = max(parts, key=lambda part: part.seconds_per_byte)
        return Optimum(collective, worse.devices, sum((p.seconds_per_byte for p in parts), Fraction()), worse.cut)
    devices = set(topology.devices)
    cut = _worst_cut(topology.reversed() if collective == "reduce_scatter" else topology)
    inward = collective == "reduce_scatter"
    links = [link for ends, link in topology.links.items() if [end in cut for end in ends] == [not inward, inward]]
    full = sum((Fraction(link.bandwidth) for link in links), Fraction())
    return Optimum(collective, len(devices), len(cut & devices) / (full * len(devices)), cut)


def _worst_cut(topology: Topology) -> frozenset[str]:
    """The S with the greatest |S ∩ devices| / B+(S)."""
    search = _CutSearch(topology)
    everything = frozenset(topology.nodes)
    ratio, cut = max(
        ((search.ratio(everything - {device}), everything - {device}) for device in topology.devices),
        key=lambda found: found[0],
    )
    for i in range(len(topology.devices)):
        while (worse := search.violated(ratio, i)) is not None:
            ratio, cut = search.ratio(worse), worse
    return cut


class _CutSearch:
    """A network of integers: a source before all devices, then the topology."""

    def __init__(self, topology: Topology) -> None:
        self._name = topology.name
        self._names = list(topology.nodes)
        self._devices = topology.devices
        index = {name: i for i, name in enumerate(self._names)}
        self._source = len(index)
        self._sinks = [index[device] for device in self._devices]
        self._bandwidths, _ = integers([link.bandwidth for link in topology.links.values()])
        self._starts = np.array([index[start] for start, _ in topology.links])
        self._ends = np.array([index[end] for _, end in topology.links])
        starts = np.append(self._starts, [self._source] * len(self._sinks))
        self._all_ends = ends = np.append(self._ends, self._sinks)
        self._order = np.lexsort((ends, starts))
        self._columns = ends[self._order].astype(np.int32)
        self._offsets = np.searchsorted(starts[self._order], np.arange(self._source + 2)).astype(np.int32)

    def ratio(self, cut: frozenset[str]) -> Fraction:
        """|S ∩ devices| / B+(S), in the unit of the integers."""
        inside = np.array([name in cut for name in self._names])
        leaving = self._bandwidths[inside[self._starts] & ~inside[self._ends]].sum()
        if not leaving:
            out = next(device for device in self._devices if device not in cut)
            raise ValueError(f"topology: the device {out!r} of {self._name!r} cannot be reached from all others")
        return Fraction(int(inside[self._sinks].sum()), int(leaving))

    def violated(self, ratio: Fraction, i: int) -> frozenset[str] | None:
        """A cut of more than `ratio` that keeps device `i` out and the devices before it in, if there is one.

        Each device may send ``1 / ratio``: a cut of more would keep some of it from device `i`. Cuts that keep an
        earlier device out have been looked for before, so those may send whatever their links take, which makes flows
        short.
        """
        count = len(self._devices)
        rate = 1 / ratio
        rates = np.full(count, rate.numerator)
        bandwidths = self._bandwidths * rate.denominator
        leaving = np.bincount(self._starts, bandwidths, self._source).astype(np.int64)
        rates[:i] = np.maximum(rates[:i], leaving[self._sinks[:i]])
        capacities = _small(np.append(bandwidths, rates), self._all_ends)
        network = csr_array((capacities[self._order], self._columns, self._offsets), shape=(self._source + 1,) * 2)
        flow = maximum_flow(network, self._source, self._sinks[i])
        if flow.flow_value >= count * int(capacities[len(bandwidths) + i]):
            return None
        left = csr_array(network - flow.flow)
        left.eliminate_zeros()
        reached = breadth_first_order(left, self._source, return_predecessors=False)
        cut = frozenset(self._names[node] for node in reached if node != self._source)
        return cut if self.ratio(cut) > ratio else None


def integers(numbers: Sequence[float], parts: int = _FINEST) -> tuple[np.ndarray, Fraction]:
    """The largest unit that all the numbers are multiples of, and the multiples.

    Parameters
    ----------
    numbers : sequence of float
        Above 0.
    parts : int
        The unit is at least this part of the largest number.

    Returns
    -------
    multiples : ndarray of int64
        At least 1; rounded down where the numbers have no unit that large.
    unit : Fraction
    """
    exact = [Fraction(number) for number in numbers]
    unit = Fraction(gcd(*(x.numerator for x in exact)), lcm(*(x.denominator for x in exact)))
    unit = max(unit, max(exact) / parts)
    return np.array([max(int(x / unit), 1) for x in exact]), unit


def _small(capacities: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The same as integers, of which what flows to one end stays below 2^31; rounded where a divisor does not do."""
    capacities = capacities // np.gcd.reduce(capacities)
    most = int(np.bincount(ends, capacities).max())
    if most > _MOST_CAPACITY:
        capacities = capacities * (_MOST_CAPACITY / most)
    return capacities.astype(np.int32)
