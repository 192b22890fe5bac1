"""Placed flows beside hashed ones in the setting of C4P, simulated.

Eight hosts with eight GPUs and eight network cards of two 200 Gbit/s ports each, every port in a plane of its own. Each
host is on its own leaf in both planes; a leaf has eight uplinks of 200 Gbit/s, one to each spine: 1:1. Eight jobs sum
at the same time, job r with the cards r of all hosts, in a ring whose order is drawn at random for each: all its edges
cross leaves. Every edge moves at most 362 Gbit/s, what C4P says NVLink lets through.

Rates are max-min fair among queue pairs, or paced in proportion to their bytes where that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from collcomp.planner.flows.ecmp import Hashed, addresses_of, switches_of
from collcomp.planner.flows.placing import LeastLoaded
from collcomp.planner.flows.splitting import Split
from collcomp.planner.flows.table import Chooser, FlowTable
from collcomp.planner.topology import Topology
from collcomp.planner.topology.families import leaf_spine

from .ring_jobs import NBYTES, bus_bandwidths, random_rings

__all__ = ["GBIT", "Row", "count_cases", "rows", "setting"]

GBIT = 1e9 / 8

_HOSTS = 8
_CARDS = 8
_PLANES = 2
_PORT = 200 * GBIT
_NVLINK = 362 * GBIT


@dataclass(frozen=True)
class Row:
    """A row of the table; bandwidths are bus bandwidths in Gbit/s.

    Attributes
    ----------
    what : str
    queue_pairs : int
        Of each port.
    mean, least, most : float
        Over jobs and seeds.
    bound : float
        What no placement could let the network give to all jobs; mean over seeds. NVLink lets 362 through.
    paper : str
        What C4P's authors measured, on hardware, in the situation that is most like it.
    """

    what: str
    queue_pairs: int
    mean: float
    least: float
    most: float
    bound: float
    paper: str


def setting() -> Topology:
    """The network."""
    return leaf_spine(
        _HOSTS, leaves=_HOSTS, spines=8, port_bandwidth=_PORT, nics_per_host=_CARDS, ports_per_nic=_PLANES,
        planes=_PLANES, device_bandwidth=_NVLINK,
    )  # fmt: skip


@dataclass(frozen=True)
class _Case:
    what: str
    queue_pairs: int
    place: Callable[[int, np.random.Generator, Topology], Chooser]
    paper: str = ""
    jobs: int = _CARDS
    after_failure: bool = False
    paced: bool = False


def _hashed(queue_pairs: int, rng: np.random.Generator, topology: Topology, **more: bool) -> Hashed:
    return Hashed(_PLANES * queue_pairs, switches_of(topology, rng), addresses_of(topology), rng, **more)


def _planned(queue_pairs: int, *_: object) -> LeastLoaded:
    return LeastLoaded(_PLANES * queue_pairs)


def _cases() -> Iterator[_Case]:
    yield _Case(
        "one job, ports by hash", 4, lambda q, rng, topology: _hashed(q, rng, topology, bonded=True), "240", jobs=1
    )
    yield _Case("one job, planned", 4, _planned, "360", jobs=1)
    for queue_pairs in (1, 8, 64):
        yield _Case("hashed", queue_pairs, _hashed, "171-263")
    for queue_pairs in (1, 8, 64):
        yield _Case("planned", queue_pairs, _planned, "354-361")
    down = "uplink down: "
    yield _Case(
        down + "hashed again", 8, lambda q, rng, topology: _hashed(q, rng, topology, only_broken=True), "185.76",
        after_failure=True,
    )  # fmt: skip
    for keep, where in ((True, "same ports"), (False, "both planes")):
        yield _Case(
            f"{down}equal shares, {where}", 8, lambda q, *_, keep=keep: LeastLoaded(_PLANES * q, keep_ports=keep),
            "301.46", after_failure=True,
        )  # fmt: skip
        for paced in (False, True):
            yield _Case(
                f"{down}best shares, {where}{', paced' if paced else ''}", 8,
                lambda q, *_, keep=keep: Split(_PLANES * q, keep_ports=keep), "301.46", after_failure=True, paced=paced,
            )  # fmt: skip


def rows(seeds: int, progress: Callable[[int], object] = lambda done: None) -> Iterator[Row]:
    """The table, row by row.

    Parameters
    ----------
    seeds : int
        How many orders of rings, source ports and broken links are tried for each row.
    progress : callable
        Called with 1 after each of them.
    """
    topology = setting()
    for case in _cases():
        bandwidths: list[float] = []
        bounds = []
        for seed in range(seeds):
            table = _placed(case, topology, np.random.default_rng(seed))
            bandwidths += bus_bandwidths(table, _NVLINK, paced=case.paced).values()
            bounds.append(NBYTES / table.fewest_seconds())
            progress(1)
        results = np.array(bandwidths) / GBIT
        yield Row(
            case.what, case.queue_pairs, float(results.mean()), float(results.min()), float(results.max()),
            float(np.mean(bounds)) / GBIT, case.paper,
        )  # fmt: skip


def _placed(case: _Case, topology: Topology, rng: np.random.Generator) -> FlowTable:
    table = FlowTable(topology)
    flows = random_rings(_HOSTS, case.jobs, _PLANES, rng)
    choose = case.place(case.queue_pairs, rng, topology)
    if not case.after_failure:
        table.add(flows, choose)
        return table
    table.add(flows, _planned(case.queue_pairs))
    leaf, spine = rng.integers(8, size=2)
    table.move(table.fail(f"plane0.leaf{leaf}", f"plane0.spine{spine}"), choose)
    return table


def count_cases() -> int:
    """How many rows there are."""
    return len(list(_cases()))
