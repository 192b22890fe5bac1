"""Long-lived flows and the ways they go: placed when a job starts, moved when links break (C4P)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, product

import numpy as np

from collcomp.planner.flows.paths import Paths
from collcomp.planner.topology import Topology

__all__ = ["Chooser", "Flow", "FlowTable", "Placement", "Way"]

#: Indices of the links that bytes pass, in their order.
Way = tuple[int, ...]


@dataclass(frozen=True)
class Flow:
    """What one end sends to another at every step, for as long as its job lives.

    Attributes
    ----------
    job : str
    sources, dests : tuple of str
        Ports that are bonded at each end, any of which may carry bytes; hosts where a topology has no ports. Ports that
        no way joins, of two planes, are no pair.
    nbytes : float
        Bytes of a step.

    Raises
    ------
    ValueError
        If an end is missing, or `nbytes` is no positive number.
    """

    job: str
    sources: tuple[str, ...]
    dests: tuple[str, ...]
    nbytes: float

    def __post_init__(self) -> None:
        if not self.sources or not self.dests:
            raise ValueError(f"sources, dests: a flow of {self.job!r} has no end")
        if not 0 < self.nbytes < math.inf:
            raise ValueError(f"nbytes: {self.nbytes} is no load")


@dataclass(eq=False)
class Placement:
    """Where a flow goes.

    Attributes
    ----------
    flow : Flow
    ways : list of Way
        One for each queue pair, or for each share; several queue pairs may go the same way.
    shares : list of float
        Of the flow's bytes, one of each way; their sum is 1.
    """

    flow: Flow
    ways: list[Way] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)


#: Puts placements on ways, by `FlowTable.put`; those that have ways already are to be moved.
Chooser = Callable[["FlowTable", Sequence[Placement]], None]


class FlowTable:
    """All flows of a cluster, and what they load on its links.

    The global table of C4P (Dong et al., HPCA 2025, arXiv 2406.04594): flows of collectives are few, large and long
    lived, so whoever knows all of them can place them better than switches that hash headers.

    Parameters
    ----------
    topology : Topology

    Attributes
    ----------
    paths : Paths
    bandwidths : ndarray of shape (links + 1,)
        Bytes per second that each link has now, 0 when it is broken. The last one is infinite, and no link: rows of
        `ways` are filled up with it.
    loads : ndarray of shape (links + 1,)
        Bytes of a step that are placed on each.
    jobs : dict
        Placements of each job.
    """

    def __init__(self, topology: Topology) -> None:
        self.paths = Paths(topology)
        self.bandwidths = np.append(self.paths.bandwidths, np.inf)
        self.loads = np.zeros_like(self.bandwidths)
        self.jobs: dict[str, list[Placement]] = {}
        self._ways: dict[tuple[tuple[str, ...], tuple[str, ...]], np.ndarray] = {}

    # ------------------------------------------------------------------ jobs come and go

    def add(self, flows: Iterable[Flow], choose: Chooser) -> list[Placement]:
        """Place flows; those that were placed before stay where they are.

        Parameters
        ----------
        flows : iterable of Flow
        choose : callable
            `placing.LeastLoaded`, `splitting.Split` or `ecmp.Hashed`.

        Raises
        ------
        ValueError
            If nothing that works joins the ends of a flow; then none is placed.
        """
        placements = [Placement(flow) for flow in flows]
        self.move(placements, choose)
        for placement in placements:
            self.jobs.setdefault(placement.flow.job, []).append(placement)
        return placements

    def move(self, placements: Sequence[Placement], choose: Chooser) -> None:
        """Place these anew; all others stay where they are.

        Raises
        ------
        ValueError
            If nothing that works joins the ends of a flow; then none is moved.
        """
        for placement in placements:
            self.ways(placement.flow)
        before = [(placement.ways, placement.shares) for placement in placements]
        try:
            choose(self, placements)
        except BaseException:
            for placement, was in zip(placements, before, strict=True):
                self.put(placement, *was)
            raise

    def remove(self, job: str) -> None:
        """Forget a job's flows.

        Raises
        ------
        ValueError
            If there is no such job.
        """
        if job not in self.jobs:
            raise ValueError(f"job: {job!r} is none of {sorted(self.jobs)}")
        for placement in self.jobs.pop(job):
            self.put(placement, [], [])

    @property
    def placements(self) -> list[Placement]:
        """Of all jobs."""
        return [placement for placements in self.jobs.values() for placement in placements]

    def put(self, placement: Placement, ways: list[Way], shares: list[float]) -> None:
        """Let a flow go these ways from now on, in these shares."""
        self._load(placement, -1)
        placement.ways, placement.shares = ways, shares
        self._load(placement, 1)

    def _load(self, placement: Placement, sign: int) -> None:
        lengths = [len(way) for way in placement.ways]
        links = np.fromiter(chain.from_iterable(placement.ways), np.int64, sum(lengths))
        np.add.at(self.loads, links, sign * placement.flow.nbytes * np.repeat(placement.shares, lengths))

    # ------------------------------------------------------------------ links

    def set_bandwidth(self, source: str, dest: str, bandwidth: float) -> None:
        """Let the link from `source` to `dest` have so many bytes per second from now on; flows stay where they are."""
        if (source, dest) not in self.paths.index:
            raise ValueError(f"source, dest: nothing leads from {source!r} to {dest!r}")
        if not 0 <= bandwidth < math.inf:
            raise ValueError(f"bandwidth: {bandwidth} can be none")
        self.bandwidths[self.paths.index[source, dest]] = bandwidth

    def fail(self, one: str, other: str) -> list[Placement]:
        """Break a cable, in all directions that it has; flows stay where they are until they are moved.

        Returns
        -------
        list of Placement
            Flows that could use it: those that a new plan has to look at.

        Raises
        ------
        ValueError
            If there is none.
        """
        directions = [ends for ends in ((one, other), (other, one)) if ends in self.paths.index]
        if not directions:
            raise ValueError(f"one, other: nothing leads from {one!r} to {other!r}, nor back")
        touched = self.touching(one, other)
        for ends in directions:
            self.set_bandwidth(*ends, 0.0)
        return touched

    def touching(self, one: str, other: str) -> list[Placement]:
        """Flows that could use a cable, in either direction, or do."""
        links = [self.paths.index[ends] for ends in ((one, other), (other, one)) if ends in self.paths.index]
        return [
            placement
            for placement in self.placements
            if np.isin(self._all_ways(placement.flow), links).any()
            or any(set(way) & set(links) for way in placement.ways)
        ]

    # ------------------------------------------------------------------ ways

    def ways(self, flow: Flow) -> np.ndarray:
        """Every way that a flow can go now.

        Returns
        -------
        ndarray of int of shape (ways, links of the longest)
            Rows of shorter ways are filled up with the index past all links; `way` makes a `Way` of one.

        Raises
        ------
        ValueError
            If there is none.
        """
        rows = self._all_ways(flow)
        rows = rows[(self.bandwidths[rows] > 0).all(1)]
        if not len(rows):
            raise ValueError(f"flow: nothing that works leads from {flow.sources} to {flow.dests}")
        return rows

    def way(self, row: np.ndarray) -> Way:
        """A row of `ways` as placements have it."""
        return tuple(row[row < len(self.bandwidths) - 1].tolist())

    def ends(self, rows: np.ndarray) -> np.ndarray:
        """First and last link of each row of `ways`."""
        last = (rows < len(self.bandwidths) - 1).sum(1) - 1
        return np.stack((rows[:, 0], rows[np.arange(len(rows)), last]), 1)

    def _all_ways(self, flow: Flow) -> np.ndarray:
        key = flow.sources, flow.dests
        if key not in self._ways:
            found = [self.paths.between(*ends) for ends in product(*key)]
            rows = np.full((sum(map(len, found)), max(ways.shape[1] for ways in found)), len(self.bandwidths) - 1)
            at = 0
            for ways in found:
                rows[at : at + len(ways), : ways.shape[1]] = ways
                at += len(ways)
            self._ways[key] = rows
        return self._ways[key]

    # ------------------------------------------------------------------ how good it is

    def busy(self) -> np.ndarray:
        """Seconds that each link needs to pass what is placed on it in a step; infinite if it is broken."""
        loads = self.loads[:-1]
        loads = np.where(
            loads > 1e-9 * loads.max(initial=0), loads, 0
        )  # what moves leave behind by rounding is no load
        with np.errstate(divide="ignore"):
            return np.divide(loads, self.bandwidths[:-1], out=np.zeros_like(loads), where=loads > 0)

    def seconds(self) -> float:
        """Of a step, if all links are busy until they have passed what is placed on them."""
        return float(self.busy().max(initial=0))

    def fewest_seconds(self) -> float:
        """What no placement of these flows can be faster than, by what has to leave and to reach each place.

        The bonded ports of an end carry all that it sends; what leaves the leaves that serve them passes their uplinks.
        """
        crossing: dict[bytes, float] = {}
        for placement in self.placements:
            rows = self.ways(placement.flow)
            fewest = (rows < len(self.bandwidths) - 1).sum(1).min()
            # Every way passes one of the links that some way passes at a depth.
            cuts = {np.unique(rows[:, depth]).tobytes() for depth in range(fewest)}
            for cut in cuts:
                crossing[cut] = crossing.get(cut, 0.0) + placement.flow.nbytes
        bandwidth = {cut: self.bandwidths[np.frombuffer(cut, np.int64)].sum() for cut in crossing}
        return max((nbytes / bandwidth[cut] for cut, nbytes in crossing.items()), default=0.0)
