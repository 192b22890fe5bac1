"""Networks without switches that are as good as networks with them: every switch is replaced by links past it.

A link into a switch and one out of it become one link, of as much as both have, and less if that would make some cut
too small. Bang-Jensen, Frank and Jackson (1995) proved that this can go on until the switch has no links left, if as
much leaves every node as enters it; ForestColl (arXiv 2402.06787) does this to schedule collectives.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

__all__ = ["Ways", "max_flow", "remove_switches"]

#: Ways of a link past switches, by its ends: nodes on the way, both ends included, and how much goes there.
Ways = dict[tuple[int, int], list[tuple[tuple[int, ...], int]]]


def max_flow(capacities: np.ndarray, source: int, dest: int) -> int:
    """The greatest flow in a network given as a square matrix of integers, the sum of each column below 2^31."""
    return int(maximum_flow(_sparse(capacities), source, dest).flow_value)


def _sparse(capacities: np.ndarray) -> csr_array:
    rows, columns = np.nonzero(capacities)
    offsets = np.searchsorted(rows, np.arange(len(capacities) + 1)).astype(np.int32)
    values = capacities[rows, columns].astype(np.int32)
    return csr_array((values, columns.astype(np.int32), offsets), shape=capacities.shape)


def remove_switches(capacities: np.ndarray, devices: Iterable[int], rate: int) -> Ways:
    """Replace all nodes that are no devices by links past them.

    Parameters
    ----------
    capacities : ndarray of int64
        A square matrix: what goes from one node to another; changed to what goes between devices past all else.
    devices : iterable of int
        The nodes to keep.
    rate : int
        What every device sends to all others. The network can do it, before and after.

    Returns
    -------
    dict
        The ways that make each link between devices, see `Ways`.

    Raises
    ------
    ValueError
        If more enters a node than leaves it, or less.
    """
    devices = list(devices)
    uneven = np.flatnonzero(capacities.sum(0) != capacities.sum(1))
    if len(uneven):
        raise ValueError(f"capacities: what enters node {uneven[0]} is not what leaves it")
    network = _Network(capacities, devices, rate)
    while switches := [w for w in range(len(capacities)) if w not in devices and capacities[w].any()]:
        # Switches with few neighbours are cheap to remove, and often leave others with fewer.
        network.remove(min(switches, key=lambda w: np.count_nonzero(capacities[w] | capacities[:, w])))
    return {ends: ways for ends, ways in network.routes.items() if ways}


class _Network:
    def __init__(self, capacities: np.ndarray, devices: list[int], rate: int) -> None:
        self.capacities = capacities
        self.routes: Ways = {
            (int(u), int(t)): [((int(u), int(t)), int(capacities[u, t]))]
            for u, t in zip(*np.nonzero(capacities), strict=True)
        }
        self._devices = list(devices)
        self._rate = rate

    def remove(self, w: int) -> None:
        """Replace the switch `w` by links past it."""
        around = [int(u) for u in np.nonzero(self.capacities[w] | self.capacities[:, w])[0]]
        if len(around) > 2:
            self._spread(w, around)
        # What would only come back is dropped last, when there is no other way to be rid of it.
        for u, t in [*permutations(around, 2), *((u, u) for u in around)]:
            amount = int(min(self.capacities[u, w], self.capacities[w, t]))
            if not amount:
                continue
            self._lead(u, w, t, amount)
            if len(around) > 2:  # between two neighbours nothing can be lost
                # A cut that matters loses what is led past or nothing, so what is short is what was too much.
                lost = min(self._shortage(amount), amount)
                self._lead(u, w, t, -lost)
                amount -= lost
            self._record(u, w, t, amount)
        if self.capacities[w].any() or self.capacities[:, w].any():
            raise AssertionError(f"the switch {w} could not be removed")  # the theorem says that it can

    def _spread(self, w: int, around: list[int]) -> None:
        """Lead an equal part of every link to every other, as far as that goes: with many links, trees are low.

        Parts that do not carry what one device sends would tear its trees into many.
        """
        part = np.maximum(self.capacities[:, w] // (len(around) - 1), self._rate)
        for step in range(1, len(around)):
            led = []
            for u, t in zip(around, around[step:] + around[:step], strict=True):
                amount = int(min(part[u], self.capacities[u, w], self.capacities[w, t]))
                self._lead(u, w, t, amount)
                led.append((u, t, amount))
            lost = self._shortage(1)
            for u, t, amount in led:
                if lost:
                    self._lead(u, w, t, -amount)
                else:
                    self._record(u, w, t, amount)

    def _lead(self, u: int, w: int, t: int, amount: int) -> None:
        """Lead so much from `u` to `t` past `w`, or back through it if negative; a link from `u` to itself is none."""
        self.capacities[u, w] -= amount
        self.capacities[w, t] -= amount
        if u != t:
            self.capacities[u, t] += amount

    def _record(self, u: int, w: int, t: int, amount: int) -> None:
        while amount:
            into, much = self.routes[u, w].pop()
            out, more = self.routes[w, t].pop()
            part = min(much, more, amount)
            if part < much:
                self.routes[u, w].append((into, much - part))
            if part < more:
                self.routes[w, t].append((out, more - part))
            if u != t:
                self.routes.setdefault((u, t), []).append((_straight(into + out[1:]), part))
            amount -= part

    def _shortage(self, enough: int) -> int:
        """What the worst cut lacks for every device to get all that the others send; at once if that is `enough`."""
        nodes = np.union1d(np.flatnonzero(self.capacities.any(0) | self.capacities.any(1)), self._devices)
        source = len(nodes)
        network = np.zeros((source + 1,) * 2, np.int64)
        network[:-1, :-1] = self.capacities[np.ix_(nodes, nodes)]
        everything = len(self._devices) * self._rate
        worst = 0
        place = {int(node): i for i, node in enumerate(nodes)}
        network[source, [place[device] for device in self._devices]] = self._rate
        for device in list(self._devices):
            short = everything - max_flow(network, source, place[device])
            if short > worst:
                worst = short
                self._devices.remove(device)  # the next cut that is too small will be near this one
                self._devices.insert(0, device)
            if worst >= enough:
                break
            network[source, place[device]] = everything  # cuts without this device were looked for, see `optimum`
        return worst


def _straight(way: tuple[int, ...]) -> tuple[int, ...]:
    """A way without its loops."""
    straight: list[int] = []
    for node in way:
        if node in straight:
            del straight[straight.index(node) :]
        straight.append(node)
    return tuple(straight)
