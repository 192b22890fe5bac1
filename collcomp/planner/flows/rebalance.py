"""Shares of a flow's ways corrected by how long each has taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from collcomp.planner.flows.table import FlowTable, Placement, Way

__all__ = ["Rebalancer"]


@dataclass
class Rebalancer:
    """Moves bytes of a flow from ways that take longer to ways that take less, as C4P's dynamic load balance does.

    Of each way the seconds per byte are averaged with weights that fall off exponentially. Ways would end together if
    their shares were in proportion to the inverse of that; since shares change what is measured, a step goes only
    part of the way there.

    Attributes
    ----------
    smoothing : float, default 0.5
        Weight of the latest measurement, above 0 and at most 1.
    damping : float, default 0.5
        Part of the way that one step goes, above 0 and at most 1.
    least : float, default 0.01
        Least share of a way, of an equal one: what carries nothing is never measured again.

    Raises
    ------
    ValueError
        If a number is outside its range.
    """

    smoothing: float = 0.5
    damping: float = 0.5
    least: float = 0.01
    _averages: WeakKeyDictionary[Placement, tuple[list[Way], np.ndarray]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )

    def __post_init__(self) -> None:
        for name in ("smoothing", "damping", "least"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0 and at most 1")

    def update(self, table: FlowTable, placement: Placement, seconds: Sequence[float]) -> None:
        """Correct the shares of one flow.

        Parameters
        ----------
        table : FlowTable
        placement : Placement
        seconds : sequence of float
            That each of its ways took for its bytes of a step.

        Raises
        ------
        ValueError
            If there is not one positive number for each way.
        """
        measured, shares = np.asarray(seconds, np.float64), np.array(placement.shares)
        if measured.shape != shares.shape or not (measured > 0).all() or not np.isfinite(measured).all():
            raise ValueError(f"seconds: {list(seconds)} are not one positive number for each of {len(shares)} ways")
        per_byte = measured / (shares * placement.flow.nbytes)
        known = self._averages.get(placement)
        average = per_byte
        if known is not None and known[0] == placement.ways:
            average = known[1] + self.smoothing * (per_byte - known[1])
        self._averages[placement] = placement.ways, average
        fair = 1 / average
        shares += self.damping * (fair / fair.sum() - shares)
        shares = np.maximum(shares, self.least / len(shares))
        table.put(placement, placement.ways, (shares / shares.sum()).tolist())
