"""Ways moved off the busiest link."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from collcomp.planner.flows.table import FlowTable, Placement

__all__ = ["relieve"]

# A step that gains less is none.
_LEAST = 1e-9


def relieve(table: FlowTable, placements: Sequence[Placement], *, keep_ports: bool = False) -> None:
    """Move one way after another off the busiest link, as long as every link of its new way is less busy than that was.

    What can be moved is any way of any length, over other ports and planes too. Every step makes the busiest link less
    busy, or leaves fewer links as busy as it was, so there is an end.

    Parameters
    ----------
    table : FlowTable
    placements : sequence of Placement
        Those that may move.
    keep_ports : bool
        Ways begin and end where they did.
    """
    members: dict[int, set[tuple[int, int]]] = defaultdict(set)  # place of a placement, and of a way in it
    for p, placement in enumerate(placements):
        for w, way in enumerate(placement.ways):
            for link in way:
                members[link].add((p, w))
    while True:
        busy = table.busy()
        link = int(busy.argmax())
        best, least = None, busy[link] * (1 - _LEAST)
        for p, w in sorted(members[link]):
            row, seconds = _least_busy(table, placements[p], w, keep_ports)
            if seconds < least:
                best, least = (p, w, row), seconds
        if best is None:
            return
        p, w, row = best
        placement = placements[p]
        for old in placement.ways[w]:
            members[old].discard((p, w))
        ways = [*placement.ways[:w], table.way(row), *placement.ways[w + 1 :]]
        for new in ways[w]:
            members[new].add((p, w))
        table.put(placement, ways, placement.shares)


def _least_busy(table: FlowTable, placement: Placement, which: int, keep_ports: bool) -> tuple[np.ndarray, float]:
    """The way on which the busiest link would be least busy, and how long that would be, if one way moved there."""
    rows, way = table.ways(placement.flow), placement.ways[which]
    if keep_ports:
        rows = rows[(table.ends(rows) == (way[0], way[-1])).all(1)]
    nbytes = placement.flow.nbytes * placement.shares[which]
    loads = table.loads[rows] + nbytes * ~np.isin(rows, way)
    seconds = (loads / table.bandwidths[rows]).max(1)
    best = int(seconds.argmin())
    return rows[best], float(seconds[best])
