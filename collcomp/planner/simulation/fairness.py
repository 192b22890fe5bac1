"""Which rates flows get that share links fairly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["max_min_rates"]


def max_min_rates(incidence: csr_array, capacities: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Max-min fair rates: none can grow but at the cost of one that is no larger, in shares of its weight.

    Progressive filling (Bertsekas and Gallager, *Data Networks*, 6.5.2), but every link that holds up all of its own
    flows is filled in the same round, whatever its level: levels of links only rise while others fill, so no flow of
    such a link can be stopped earlier elsewhere. Rounds are as many as the longest chain of links that wait for
    one another, not as many as there are levels.

    Parameters
    ----------
    incidence : csr_array of shape (flows, links)
        What a flow takes of a link for each unit of its rate: 1 where all of it passes, 0.25 where a quarter does.
    capacities : ndarray of shape (links,)
        Bytes per second, finite; 0 for a link that is broken.
    weights : ndarray of shape (flows,), optional
        Rates are equal in units of these; 1 by default.

    Returns
    -------
    ndarray of shape (flows,)
        Bytes per second; infinite for a flow that takes no link.

    Raises
    ------
    ValueError
        If shapes do not fit, or numbers cannot be.
    """
    flows, links = incidence.shape
    capacities = np.array(capacities, np.float64)
    weights = np.ones(flows) if weights is None else np.asarray(weights, np.float64)
    if capacities.shape != (links,) or weights.shape != (flows,):
        shapes = f"{capacities.shape} and {weights.shape}"
        raise ValueError(f"capacities, weights: shapes {shapes} do not fit {flows} flows and {links} links")
    if not (np.isfinite(capacities) & (capacities >= 0)).all() or not (incidence.data >= 0).all():
        raise ValueError("capacities, incidence: finite numbers of 0 or more are expected")
    if not (weights > 0).all():
        raise ValueError("weights: numbers above 0 are expected")
    used = incidence.data > 0
    flow = np.repeat(np.arange(flows), np.diff(incidence.indptr))[used]
    link = incidence.indices[used]
    use = incidence.data[used] * weights[flow]
    levels = np.full(flows, np.inf)
    stopped = np.zeros(flows, bool)
    while len(flow):
        demand = np.bincount(link, use, links)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            level = np.where(demand > 0, capacities / demand, np.inf)
        here = level[link]
        first = np.flatnonzero(np.diff(flow, prepend=-1))
        lowest = np.repeat(np.minimum.reduceat(here, first), np.diff(first, append=len(flow)))
        slowed = np.bincount(link, lowest < here, links)  # flows that something else holds up even more
        stops = slowed[link] == 0
        levels[flow[stops]] = here[stops]
        stopped[flow[stops]] = True
        going = ~stopped[flow]
        capacities -= np.bincount(link[~going], use[~going] * levels[flow[~going]], links)
        np.maximum(capacities, 0, out=capacities)  # what rounding leaves below
        flow, link, use = flow[going], link[going], use[going]
    return weights * levels
