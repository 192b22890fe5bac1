"""Each queue pair on one way: the least loaded one, and then evened out between spines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collcomp.planner.flows.even import even_out
from collcomp.planner.flows.relief import relieve
from collcomp.planner.flows.table import FlowTable, Placement, Way

__all__ = ["LeastLoaded"]


@dataclass(frozen=True)
class LeastLoaded:
    """Places queue pairs one after another where the fullest link of the way will be least full.

    Bonded ports, planes, uplinks and spines are balanced by the same rule, and what is broken is no way. The largest
    flows are first. Then `even.even_out` and `relief.relieve` correct what a later queue pair could not find free.

    Attributes
    ----------
    queue_pairs : int
        Of each flow; each carries the same share of its bytes.
    keep_ports : bool
        Move queue pairs that are placed already only between ways from and to the same ports.

    Raises
    ------
    ValueError
        If `queue_pairs` is below 1.
    """

    queue_pairs: int = 1
    keep_ports: bool = False

    def __post_init__(self) -> None:
        if self.queue_pairs < 1:
            raise ValueError(f"queue_pairs: {self.queue_pairs} is less than 1")

    def __call__(self, table: FlowTable, placements: Sequence[Placement]) -> None:
        """Place them."""
        ends = [[(way[0], way[-1]) for way in placement.ways] for placement in placements]
        for placement in placements:
            table.put(placement, [], [])
        for placement, old in sorted(zip(placements, ends, strict=True), key=lambda both: -both[0].flow.nbytes):
            self._place(table, placement, old if self.keep_ports else [])
        even_out(table, placements)
        relieve(table, placements, keep_ports=self.keep_ports)

    def _place(self, table: FlowTable, placement: Placement, old: list[tuple[int, int]]) -> None:
        rows = table.ways(placement.flow)
        ends = table.ends(rows)
        share = 1 / self.queue_pairs
        nbytes = share * placement.flow.nbytes
        loads, bandwidths = table.loads[rows], table.bandwidths[rows]
        chosen: list[Way] = []
        for i in range(self.queue_pairs):
            seconds = (loads + nbytes) / bandwidths
            fullest = seconds.max(1)
            # Among ways whose fullest links are alike (mostly the port's), the one whose other links are least full.
            cost = fullest + 1e-3 * (seconds**2).sum(1) / fullest.max()
            if i < len(old):
                same = (ends == old[i]).all(1)
                cost = np.where(same, cost, np.inf) if same.any() else cost
            best = int(cost.argmin())
            chosen.append(table.way(rows[best]))
            loads += nbytes * (rows == rows[best])
        table.put(placement, chosen, [share] * self.queue_pairs)
