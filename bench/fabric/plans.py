"""What the planner says of the network that the ranks run in; rank 0 asks it, and tells the others."""

from __future__ import annotations

from collections.abc import Sequence

from collcomp.planner.layout import Layout

from ..ranks import World
from .spec import TwoTier

__all__ = ["planned_layout", "planned_paths"]


def planned_layout(world: World) -> Layout:
    """The order of rings and the groups of ranks for the ranks of `world`. Collective."""
    layout = None
    if world.rank == 0:
        from collcomp.planner.schedules.hierarchy import layout_on

        network, rate = _network(world)
        layout = layout_on(network.topology(world.size, rate))
    return world.comm.bcast(layout)


def planned_paths(world: World, jobs: Sequence[Sequence[int]], nbytes: float) -> list[int]:
    """The path of each job, given its ranks in the order of its ring. Collective.

    Placed is what the ring sends where it first goes to another leaf, `nbytes`; its way back crosses the same spine.
    """
    paths = None
    if world.rank == 0:
        from collcomp.planner.flows.placing import LeastLoaded
        from collcomp.planner.flows.table import Flow, FlowTable

        network, rate = _network(world)
        table = FlowTable(network.topology(world.size, rate))
        flows = []
        for number, ranks in enumerate(jobs):
            edges = zip(ranks, [*ranks[1:], ranks[0]], strict=True)
            a, b = next(edge for edge in edges if len({network.leaf(rank, world.size) for rank in edge}) == 2)
            flows.append(Flow(f"job {number}", (f"rank{a}",), (f"rank{b}",), nbytes))
        spines = [f"spine{path + 1}" for path in range(network.spines)]
        placements = table.add(flows, LeastLoaded())
        ways = [table.paths.nodes(placement.ways[0]) for placement in placements]
        paths = [spines.index(name) + 1 for way in ways for name in way if name in spines]
    return world.comm.bcast(paths)


def _network(world: World) -> tuple[TwoTier, float]:
    assert world.network is not None
    assert world.rate is not None
    return world.network, world.rate
