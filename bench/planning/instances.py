"""Random transfers for the simulator and for SimGrid: what both of them can do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from collcomp.planner.simulation.simulate import Change, Outcome, Transfers, routes_of, simulate

__all__ = ["random_instance", "simulated"]


def random_instance(seed: int) -> dict[str, Any]:
    """Links, transfers and changes, in JSON's types.

    Routes are of 1 to 5 links, some links are much used and some are alike, some transfers wait for others, and links
    become slower on the way. None becomes faster: SimGrid bounds a transfer by what its links had when it began.

    Parameters
    ----------
    seed : int
    """
    rng = np.random.default_rng(seed)
    links, count = int(rng.integers(1, 30)), int(rng.integers(1, 60))
    if rng.random() < 0.5:
        capacities = rng.choice([25e6, 50e6, 100e6], links)
    else:
        capacities = np.exp(rng.uniform(math.log(1e6), math.log(1e9), links))
    popularity = rng.exponential(size=links)
    popularity /= popularity.sum()
    transfers = []
    for i in range(count):
        length = int(rng.integers(1, min(links, 5) + 1))
        waits = int(rng.integers(1, 3)) if i and rng.random() < 0.3 else 0
        transfers.append(
            {
                "links": [int(link) for link in rng.choice(links, length, replace=False, p=popularity)],
                "nbytes": int(math.exp(rng.uniform(math.log(1e8), math.log(1e10)))),
                "start": float(rng.uniform(0, 100)) if rng.random() < 0.5 else 0.0,
                "after": sorted({int(rng.integers(i)) for _ in range(waits)}),
            }
        )
    changes, now = [], list(capacities)
    for time in sorted(rng.uniform(1, 200, int(rng.integers(0, 5)))):
        link = int(rng.integers(links))
        now[link] *= rng.uniform(0.05, 1)
        changes.append([float(time), link, float(now[link])])
    return {"capacities": [float(capacity) for capacity in capacities], "transfers": transfers, "changes": changes}


def simulated(instance: dict[str, Any]) -> Outcome:
    """What `simulate` makes of an instance."""
    transfers, capacities = instance["transfers"], np.array(instance["capacities"])
    waits = [(before, i) for i, transfer in enumerate(transfers) for before in transfer["after"]]
    before, after = np.array(waits, np.int64).reshape(-1, 2).T
    return simulate(
        Transfers(
            routes_of([transfer["links"] for transfer in transfers], len(capacities)),
            np.array([transfer["nbytes"] for transfer in transfers], np.float64),
            np.array([transfer["start"] for transfer in transfers]),
            before,
            after,
        ),
        capacities,
        [Change(*change) for change in instance["changes"]],
    )
