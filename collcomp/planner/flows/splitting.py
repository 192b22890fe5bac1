"""Flows split over several ways in the shares that make the slowest link as fast as can be: a linear program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collcomp.errors import CollcompError
from collcomp.planner.flows.table import FlowTable, Placement

__all__ = ["Split"]

# Shares below this are the solver's rounding.
_NOTHING = 1e-7


@dataclass(frozen=True)
class Split:
    """Splits flows over their ways in the best shares, beside all flows that stay where they are.

    The time of a step is as long as the busiest link of all is busy; the shares that make it shortest are a linear
    program, solved by HiGHS (Huangfu and Hall 2018) in SciPy. Links that are as busy as that in every solution are then
    held there, and the next busiest made as little busy as can be, and so on: who can be faster shall be. Among what is
    left, each flow's largest share is made as small as can be where there are queue pairs enough: links share rates
    among flows, not among bytes, so that a large share beside small ones would get less than the program counts on.

    Attributes
    ----------
    ways : int, optional
        Most ways of each flow, which is how many queue pairs it has; the smallest shares are given up. Without it a
        flow goes as many ways as the solution says.
    keep_ports : bool
        Leave the share of each port as it is, for flows that are placed already.
    levels : int, default 3
        How often the next busiest links are looked at.

    Raises
    ------
    ValueError
        If a number is below 1.
    """

    ways: int | None = None
    keep_ports: bool = False
    levels: int = 3

    def __post_init__(self) -> None:
        if self.levels < 1 or (self.ways is not None and self.ways < 1):
            raise ValueError(f"ways, levels: {self.ways} and {self.levels} are not both 1 or more")

    def __call__(self, table: FlowTable, placements: Sequence[Placement]) -> None:
        """Place them."""
        kept = [self._port_shares(table, placement) for placement in placements]
        for placement in placements:
            table.put(placement, [], [])
        program = _Program(table, placements, kept)
        spread = self.ways is None or self.ways >= max(program.counts)
        for placement, shares in zip(placements, program.solve(self.levels, spread), strict=True):
            rows = table.ways(placement.flow)
            best = np.argsort(-shares, kind="stable")[: self.ways]
            best = best[shares[best] > _NOTHING]
            table.put(placement, [table.way(row) for row in rows[best]], (shares[best] / shares[best].sum()).tolist())

    def _port_shares(self, table: FlowTable, placement: Placement) -> dict[tuple[int, int], float]:
        """Share of each pair of ports, by first and last link; none to hold to if a pair has no way left."""
        shares: dict[tuple[int, int], float] = {}
        if self.keep_ports:
            for way, share in zip(placement.ways, placement.shares, strict=True):
                shares[way[0], way[-1]] = shares.get((way[0], way[-1]), 0.0) + share
        works = set(map(tuple, table.ends(table.ways(placement.flow)).tolist()))
        return shares if shares.keys() <= works else {}


class _Program:
    """Variables are parts of each flow on each of its ways, and last the seconds of the busiest link, all near 1.

    Parts, not bytes: a flow of very few bytes would be nothing within the solver's tolerance.
    """

    def __init__(
        self, table: FlowTable, placements: Sequence[Placement], kept: list[dict[tuple[int, int], float]]
    ) -> None:
        from scipy.sparse import csr_array

        rows = [table.ways(placement.flow) for placement in placements]
        self.counts = [len(ways) for ways in rows]
        variables = sum(self.counts)
        starts = np.cumsum([0, *self.counts])
        nbytes = np.array([placement.flow.nbytes for placement in placements])
        unit_bytes, unit_rate = nbytes.max(), table.bandwidths[:-1].max()

        passes: list[tuple[np.ndarray, np.ndarray]] = []
        units: list[np.ndarray] = []
        sums: list[tuple[np.ndarray, float]] = []
        for start, ways, amount, ports in zip(starts, rows, nbytes / unit_bytes, kept, strict=False):
            variable, depth = np.nonzero(ways < len(table.bandwidths) - 1)
            passes.append((ways[variable, depth], start + variable))
            units.append(np.full(len(variable), amount))
            if not ports:
                sums.append((start + np.arange(len(ways)), 1.0))
            ends = table.ends(ways)
            sums += [(start + np.flatnonzero((ends == pair).all(1)), share) for pair, share in ports.items()]
            if ports:
                others = [i for i, pair in enumerate(map(tuple, ends.tolist())) if pair not in ports]
                sums += [(start + np.array([i]), 0.0) for i in others]
        links, which = np.unique(np.concatenate([link for link, _ in passes]), return_inverse=True)
        self.passes = csr_array(
            (np.concatenate(units), (which.ravel(), np.concatenate([variable for _, variable in passes]))),
            (len(links), variables),
        )
        of_sum = np.repeat(np.arange(len(sums)), [len(members) for members, _ in sums])
        members = np.concatenate([members for members, _ in sums])
        self.sums = csr_array((np.ones(len(members)), (of_sum, members)), (len(sums), variables))
        self.parts = np.array([part for _, part in sums])
        self.rates = table.bandwidths[links] / unit_rate
        self.background = np.maximum(table.loads[links], 0) / unit_bytes

    def solve(self, levels: int, spread: bool) -> list[np.ndarray]:
        """Shares of each flow's ways."""
        held = np.full(len(self.rates), np.nan)  # seconds that a link may be busy, where that is settled
        for _ in range(levels):
            answer, prices = self._shortest(held)
            settled = np.isnan(held) & (prices < -_NOTHING)
            if not settled.any():
                break
            busiest = answer[-1]
            held[settled] = busiest
        parts = answer[:-1]
        if spread:
            parts = self._spread(np.where(np.isnan(held), answer[-1], held))
        return [np.maximum(shares, 0) for shares in np.split(parts, np.cumsum(self.counts)[:-1])]

    def _shortest(self, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Part of each way and seconds of the busiest link that is not held, and what each link's limit costs."""
        from scipy.sparse import csr_array, hstack

        free = np.isnan(held)
        limits = np.where(free, 0.0, self._limits(np.nan_to_num(held))) - self.background
        seconds = csr_array(np.where(free, -self.rates, 0.0)[:, None])
        costs = np.append(np.zeros(self.passes.shape[1]), 1.0)
        return self._minimise(costs, hstack((self.passes, seconds), format="csr"), limits)

    def _spread(self, busy: np.ndarray) -> np.ndarray:
        """Part of each way, the largest of each flow as small as can be, with links busy no longer than `busy`."""
        from scipy.sparse import block_array, csr_array, eye_array

        flows, ways = len(self.counts), self.passes.shape[1]
        of_flow = np.repeat(np.arange(flows), self.counts)
        largest = csr_array((np.full(ways, -1.0), (np.arange(ways), of_flow)), (ways, flows))
        matrix = block_array([[self.passes, None], [eye_array(ways), largest]], format="csr")
        limits = np.append(self._limits(busy) - self.background, np.zeros(ways))
        return self._minimise(np.append(np.zeros(ways), np.ones(flows)), matrix, limits)[0][:ways]

    def _limits(self, busy: np.ndarray) -> np.ndarray:
        return busy * self.rates * (1 + 1e-9)

    def _minimise(self, costs: np.ndarray, matrix: Any, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from scipy.optimize import linprog
        from scipy.sparse import csr_array, hstack

        others = csr_array((len(self.parts), len(costs) - self.sums.shape[1]))
        sums = hstack((self.sums, others), format="csr")
        result: Any = linprog(costs, matrix, limits, sums, self.parts, method="highs")
        if result.status != 0:
            raise CollcompError(f"splitting flows failed: {result.message}")
        return result.x, result.ineqlin.marginals
