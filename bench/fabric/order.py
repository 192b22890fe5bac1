"""What the order of a ring is worth where leaves have less bandwidth to the spines than their ranks together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from collcomp.collectives import HIERARCHICAL

from ..ranks import World
from .peers import over_tcp
from .plans import planned_layout
from .spec import HASHED, rank_address
from .trial import allreduce, run

__all__ = ["Ordered", "orders"]


@dataclass(frozen=True)
class Ordered:
    """One row.

    Attributes
    ----------
    how : str
    seconds : float
    times : float
        Seconds of the ring in rank order over these.
    bound_seconds : float
        Bytes of the busiest leaf, as counted, over the rate of its uplinks.
    crossed : float
        Bytes that the busiest leaf sent to the spines, headers included.
    """

    how: str
    seconds: float
    times: float
    bound_seconds: float
    crossed: float


def orders(world: World, nbytes: int, iterations: int) -> Iterator[Ordered]:
    """Allreduce by MPI, by rings in rank order and in planned order, and in two tiers. Collective."""
    network = world.network
    assert network is not None
    layout = planned_layout(world)
    own = [rank_address(world.rank, HASHED)]
    with over_tcp(world.comm, own) as (plain, _), over_tcp(world.comm, own, layout=layout) as (planned, _):
        ways = {
            f"{world.mpi_version}'s own": (None, "native"),
            "ring, rank order": (plain, "ring"),
            "ring, planned order": (planned, "ring"),
            "hierarchical, planned groups": (planned, HIERARCHICAL),
        }
        found = {}
        for how, (engine, algorithm) in ways.items():
            action = allreduce(world.comm, nbytes, algorithm, engine, layout.groups)
            found[how] = run(world, plain, action, iterations)
    by_rank = found["ring, rank order"].median
    for how, timed in found.items():
        crossed = float(timed.crossed.sum(axis=1).max())
        yield Ordered(how, timed.median, by_rank / timed.median, crossed / sum(network.uplinks), crossed)
