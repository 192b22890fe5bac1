"""The schedules of the algorithms: rings, direct exchanges, two tiers, trees."""

from __future__ import annotations

from collections.abc import Sequence

from collcomp.planner.schedules.schedule import Schedule, Transfer

__all__ = ["direct_schedule", "hierarchical_schedule", "ring_schedule", "tree_schedule"]


def ring_schedule(orders: Sequence[Sequence[int]], shares: Sequence[float] | None = None) -> Schedule:
    """An allreduce by one ring, or by several side by side, as `collcomp.collectives.ring` does it.

    Parameters
    ----------
    orders : sequence of sequence of int
        Ranks as each ring visits them.
    shares : sequence of float, optional
        Part of the message that goes round each, equal by default.
    """
    size = len(orders[0])
    shares = [1 / len(orders)] * len(orders) if shares is None else shares
    transfers = []
    for number, order in enumerate(orders):
        for step in range(2 * (size - 1)):
            for place, rank in enumerate(order):
                adds = step < size - 1
                # The sum of a part begins behind its owner, who ends with it and sends the result on.
                part = (place - 1 - step if adds else place - (step - (size - 1))) % size
                transfers.append(Transfer(step, rank, order[(place + 1) % size], number * size + part, adds))
    return Schedule(
        "allreduce",
        size,
        tuple(share / size for share in shares for _ in range(size)),
        tuple(rank for order in orders for rank in order),
        tuple(transfers),
    )


def direct_schedule(size: int) -> Schedule:
    """An allreduce in which each rank owns one chunk, as `collcomp.collectives.direct` does it."""
    pairs = [(rank, (rank + i) % size) for i in range(1, size) for rank in range(size)]
    operands = [Transfer(0, source, dest, dest, adds=True) for source, dest in pairs]
    results = [Transfer(1, source, dest, source) for source, dest in pairs]
    return Schedule("allreduce", size, (1 / size,) * size, tuple(range(size)), (*operands, *results))


def hierarchical_schedule(groups: Sequence[Sequence[int]]) -> Schedule:
    """An allreduce in two tiers, as `collcomp.collectives.hierarchical` does it; chunk r is that which rank r owns."""
    size = sum(map(len, groups))
    columns = list(zip(*groups, strict=True))
    group_of = {rank: group for group in groups for rank in group}
    transfers = []
    for column in columns:
        for owner in column:
            for rank in column:
                neighbours = [peer for peer in group_of[rank] if peer != rank]
                transfers += [Transfer(0, peer, rank, owner, adds=True, encoded=False) for peer in neighbours]
                transfers += [Transfer(2 if rank == owner else 3, rank, peer, owner) for peer in neighbours]
                if rank != owner:
                    transfers += Transfer(1, rank, owner, owner, adds=True), Transfer(2, owner, rank, owner)
    return Schedule("allreduce", size, (1 / size,) * size, tuple(range(size)), tuple(transfers))


def tree_schedule(parents: Sequence[Sequence[int]], segments: int = 1) -> Schedule:
    """An allreduce up and down trees that share the message equally, each pipelined in segments.

    Parameters
    ----------
    parents : sequence of sequence of int
        The parent of each rank in each tree; the root is its own.
    segments : int, default 1
        Of each tree's part; each follows the one before it by a step.

    Raises
    ------
    ValueError
        If no root is above some rank.
    """
    size = len(parents[0])
    transfers, owners = [], []
    for number, parent in enumerate(parents):
        depths = [_depth(parent, rank) for rank in range(size)]
        root = depths.index(0)
        heights = [0] * size
        for rank in sorted(range(size), key=lambda rank: -depths[rank]):
            if rank != root:
                heights[parent[rank]] = max(heights[parent[rank]], heights[rank] + 1)
        for segment in range(segments):
            chunk = number * segments + segment
            owners.append(root)
            for rank in range(size):
                if rank != root:
                    transfers.append(Transfer(segment + heights[rank], rank, parent[rank], chunk, adds=True))
                    down = segment + heights[root] + depths[rank] - 1
                    transfers.append(Transfer(down, parent[rank], rank, chunk))
    count = len(parents) * segments
    return Schedule("allreduce", size, (1 / count,) * count, tuple(owners), tuple(transfers))


def _depth(parent: Sequence[int], rank: int) -> int:
    depth = 0
    while parent[rank] != rank:
        rank, depth = parent[rank], depth + 1
        if depth > len(parent):
            raise ValueError(f"parents: {list(parent)} have a loop, no root is above rank {rank}")
    return depth
