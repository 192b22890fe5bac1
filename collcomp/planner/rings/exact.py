"""The best ring of a few devices, by a mixed-integer program.

Source: Dantzig, Fulkerson and Johnson, "Solution of a large-scale traveling-salesman problem", 1954: tours that fall
apart are forbidden one after another. The objective is the busiest link; the solver is HiGHS.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collcomp.planner.rings.order import PairLoads

__all__ = ["best_ring"]


def best_ring(pairs: PairLoads, order: np.ndarray, bound: float, time_limit: float) -> tuple[np.ndarray, float]:
    """A ring that is no slower than `order`, and a bound that is no less than `bound`; equal when there was time.

    Parameters
    ----------
    pairs : PairLoads
    order : ndarray of int
        The best ring known.
    bound : float
        Seconds per byte.
    time_limit : float
        Seconds for all.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, hstack, vstack

    n = pairs.n
    edges = np.flatnonzero(pairs.joined.ravel())
    source, dest = np.divmod(edges, n)
    one = np.ones(len(edges))
    numbers = np.arange(len(edges))
    unit = pairs.slowness(order)  # so that the solver's tolerances fit
    loads = pairs.loads[edges].T / unit
    loads = csr_array(loads)[np.flatnonzero(loads.sum(axis=1))]
    leave, enter = (csr_array((one, (ends, numbers)), shape=(n, len(edges))) for ends in (source, dest))

    def with_seconds(rows: csr_array, coefficient: float) -> csr_array:
        return hstack([rows, csr_array(np.full((rows.shape[0], 1), coefficient))], format="csr")

    constraints = [
        LinearConstraint(with_seconds(vstack([leave, enter]), 0.0), 1, 1),
        LinearConstraint(with_seconds(loads, -1.0), -np.inf, 0),
    ]
    until = time.monotonic() + time_limit
    best = order
    while (left := until - time.monotonic()) > 0:
        found = milp(
            np.append(np.zeros(len(edges)), 1.0),
            constraints=constraints,
            integrality=np.append(one, 0),
            bounds=Bounds(np.append(0 * one, bound / unit), np.append(one, 1.0)),
            options={"time_limit": left},
        )
        if found.mip_dual_bound is not None and np.isfinite(found.mip_dual_bound):
            # Whatever is forbidden so far, every ring is allowed.
            bound = max(bound, min(found.mip_dual_bound, 1.0) * unit)
        if found.status == 2:  # nothing as good as the known ring
            return best, pairs.slowness(best)
        if found.x is None:
            break
        rounds = _rounds(source, dest, found.x[:-1] > 0.5, n)
        if len(rounds) == 1:
            ring = np.array(rounds[0])
            if pairs.slowness(ring) < pairs.slowness(best):
                best = ring
            if found.status == 0:
                return best, max(bound, pairs.slowness(best) * (1 - 1e-6))
            break
        for nodes in rounds:
            inside = np.isin(source, nodes) & ~np.isin(dest, nodes)
            constraints.append(LinearConstraint(with_seconds(csr_array(inside[None].astype(float)), 0.0), 1, np.inf))
    return best, min(bound, pairs.slowness(best))


def _rounds(source: np.ndarray, dest: np.ndarray, chosen: np.ndarray, n: int) -> list[list[int]]:
    """The closed tours that these edges form."""
    following = np.zeros(n, int)
    following[source[chosen]] = dest[chosen]
    left, rounds = set(range(n)), []
    while left:
        tour = [min(left)]
        while (node := int(following[tour[-1]])) != tour[0]:
            tour.append(node)
        left -= set(tour)
        rounds.append(tour)
    return rounds
