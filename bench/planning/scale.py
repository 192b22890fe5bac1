"""How long planning takes, by the number of network cards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from collcomp.planner.flows.placing import LeastLoaded
from collcomp.planner.flows.table import FlowTable
from collcomp.planner.rings.order import ring_order
from collcomp.planner.topology import Topology
from collcomp.planner.topology.families import leaf_spine

from .ring_jobs import random_rings

__all__ = ["NICS", "Planned", "planned"]

NICS = (16, 64, 512, 4096)

_CARDS = 8
_PORTS = 2
_PORT_RATE = 200e9 / 8
_HOSTS_OF_LEAF = 8


@dataclass(frozen=True)
class Planned:
    """A row of the table.

    Attributes
    ----------
    nics : int
        Network cards, eight of each host, of two ports in two planes.
    leaves, spines : int
        Of each plane.
    flows, queue_pairs : int
        One flow for each card, from a ring of each job in random order.
    seconds : float
        To place all flows, with the search for their ways.
    bound_seconds : float
        To compute what no placement can surpass.
    gap : float
        Of the placement to that, relative.
    ring_seconds : float
        To order one ring over all hosts so that it crosses scarce links least.
    """

    nics: int
    leaves: int
    spines: int
    flows: int
    queue_pairs: int
    seconds: float
    bound_seconds: float
    gap: float
    ring_seconds: float


def planned(nics: tuple[int, ...] = NICS, queue_pairs: int = 1, seed: int = 0) -> Iterator[Planned]:
    """Place one ring of each of eight jobs over all hosts, whose orders are random, on a 1:1 leaf-spine network.

    Parameters
    ----------
    nics : tuple of int
        Multiples of 16.
    queue_pairs : int
        Of each port.
    seed : int
        Of the orders.

    Raises
    ------
    ValueError
        If a number is no multiple of 16, or below 1.
    """
    for count in nics:
        if count < 1 or count % (2 * _CARDS):
            raise ValueError(f"nics: {count} is no multiple of {2 * _CARDS}")
        topology, leaves, spines = _network(count // _CARDS)
        flows = random_rings(count // _CARDS, _CARDS, _PORTS, np.random.default_rng(seed))
        begun = time.perf_counter()
        table = FlowTable(topology)
        table.add(flows, LeastLoaded(_PORTS * queue_pairs))
        placed = time.perf_counter()
        bound = table.fewest_seconds()
        ended = time.perf_counter()
        gap = table.seconds() / bound - 1
        again = time.perf_counter()
        ring_order(topology)
        ordered = time.perf_counter()
        yield Planned(
            count, leaves, spines, len(flows), len(flows) * _PORTS * queue_pairs, placed - begun, ended - placed, gap,
            ordered - again,
        )  # fmt: skip


def _network(hosts: int) -> tuple[Topology, int, int]:
    leaves = max(2, hosts // _HOSTS_OF_LEAF)
    spines = hosts // leaves * _CARDS
    topology = leaf_spine(
        hosts, leaves, spines, port_bandwidth=_PORT_RATE, nics_per_host=_CARDS, ports_per_nic=_PORTS, planes=_PORTS
    )
    return topology, leaves, spines
