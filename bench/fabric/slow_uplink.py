"""One of a leaf's uplinks slows down: bytes split evenly, by known rates, and by what ranks measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from collcomp.communicator import Communicator

from ..ranks import World
from .peers import over_tcp
from .plans import planned_layout
from .spec import HASHED, rank_address
from .trial import Timed, allreduce, run
from .uplinks import Uplinks

__all__ = ["SLOWED_TO", "Split", "splits"]

SLOWED_TO = 0.5
"""Share of its rate that is left to the uplink."""

_SLOW_LEAF = 0


@dataclass(frozen=True)
class Split:
    """One row.

    Attributes
    ----------
    how : str
    seconds : float
    optimum_seconds : float
        Fewest bytes that any way of splitting had to send, headers included, over the sum of the uplinks' rates: what
        the linear program of splitting them comes to.
    excess : float
        `seconds` over `optimum_seconds`, less 1.
    shares : tuple of float
        Of the slowed leaf's bytes, by uplink.
    """

    how: str
    seconds: float
    optimum_seconds: float
    excess: float
    shares: tuple[float, ...]


def splits(world: World, nbytes: int, iterations: int) -> Iterator[Split]:
    """Allreduces while all uplinks are whole, and with the last one of the first leaf slowed. Collective."""
    network = world.network
    assert network is not None
    healthy = network.uplinks
    slowed = (*healthy[:-1], healthy[-1] * SLOWED_TO)
    own = [rank_address(world.rank, path + 1) for path in range(network.spines)]
    layout = planned_layout(world)
    found: list[tuple[str, Timed, float]] = []
    with (
        over_tcp(world.comm, [rank_address(world.rank, HASHED)]) as (control, _),
        over_tcp(world.comm, own, healthy, layout) as (even, _),
        over_tcp(world.comm, own, slowed, layout) as (known, _),
        over_tcp(world.comm, own, None, layout) as (measured, _),
    ):

        def measure(how: str, engine: Communicator, rates: tuple[float, ...], calls: int, warm_up: bool = True) -> None:
            action = allreduce(world.comm, nbytes, "ring", engine)
            found.append((how, run(world, control, action, calls, warm_up), sum(rates)))

        measure("whole, split by rates", even, healthy, iterations)
        measure("whole, measured", measured, healthy, iterations)
        if world.rank == 0:
            Uplinks(network).set_rate(_SLOW_LEAF, network.spines - 1, slowed[-1])
        measure("slowed, split as before", even, slowed, iterations)
        measure("slowed, measured, first call", measured, slowed, 1, warm_up=False)
        measure("slowed, measured, later calls", measured, slowed, iterations)
        measure("slowed, split by known rates", known, slowed, iterations)
    fewest = min(float(timed.crossed.sum(axis=1).max()) for _, timed, _ in found)
    for how, timed, rate in found:
        optimum = fewest / rate
        leaf = timed.crossed[_SLOW_LEAF]
        shares = tuple(float(share) for share in leaf / leaf.sum())
        yield Split(how, timed.median, optimum, timed.median / optimum - 1, shares)
