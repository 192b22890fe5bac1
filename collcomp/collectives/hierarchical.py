"""Groups of ranks that are near to each other: raw values inside a group, the codec between groups.

The message is cut into one chunk for each member of a group, and each chunk into one piece for each group. Member i
sums its group's operands of chunk i, which come as they are. The i-th members of all groups, a column, then do what
`direct` does: each encodes the others' pieces of its group's sum for their owners; an owner sums, encodes the result
once and sends it to its column and to its group; what arrives from the column is forwarded as it came to the own group.
So a value is rounded twice whatever the number of ranks, and all members of a group together send to other groups what
one rank sends in `direct` between so many.

Source: Mikami et al., "Massively distributed SGD: ImageNet/ResNet-50 training in a flash", 2018 (its 2D-torus
all-reduce), here with `direct` in both dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import zip_longest

import numpy as np

from collcomp.collectives.direct import chunks
from collcomp.collectives.exchange import VERBATIM, Exchange, Incoming
from collcomp.collectives.reduction import reduce_in_rank_order
from collcomp.devices import share_memory

__all__ = ["allreduce", "pieces"]


def pieces(count: int, groups: Sequence[Sequence[int]], block: int = 1) -> dict[int, slice]:
    """The part of `count` elements whose sum each rank owns; `groups` are of equal size."""
    parts: dict[int, slice] = {}
    for column, chunk in zip(zip(*groups, strict=True), chunks(count, len(groups[0]), block), strict=True):
        for rank, piece in zip(column, chunks(chunk.stop - chunk.start, len(groups), block), strict=True):
            parts[rank] = slice(chunk.start + piece.start, chunk.start + piece.stop)
    return parts


def allreduce(ex: Exchange, send: np.ndarray, recv: np.ndarray, op: str) -> None:
    """Combine `send` of all ranks into `recv` of all ranks; both may be the same array."""
    group_of = {rank: number for number, group in enumerate(ex.groups) for rank in group}
    columns = {rank: column for column in zip(*ex.groups, strict=True) for rank in column}
    neighbours = _beginning_after(ex.groups[group_of[ex.rank]], ex.rank)
    counterparts = _beginning_after(columns[ex.rank], ex.rank)
    segments = {rank: ex.segments(part) for rank, part in pieces(send.size, ex.groups, ex.codec.block).items()}
    most = max(map(len, segments.values()))
    divisor = ex.size if op == "avg" else 1
    in_place = share_memory(send, recv)

    # Two ranks are of one group or of one column, where the owner's group, the segment and the way tell frames apart.
    def channel(owner: int, k: int, result: bool) -> int:
        return (group_of[owner] * most + k) * 2 + result

    def sum_of_group(seg: slice, raw: Sequence[Incoming]) -> np.ndarray:
        acc = ex.array(seg.stop - seg.start)
        reduce_in_rank_order(ex, send[seg], raw, acc, "sum" if op == "avg" else op)
        return acc

    def pass_on(owner: int, k: int, raw: Sequence[Incoming]) -> None:
        seg = segments[owner][k]
        acc = sum_of_group(seg, raw)
        ex.send(ex.encode(acc, 2 * seg.start, part=seg), owner, channel(owner, k, False))
        if not ex.codec.verbatim:
            ex.recycle(acc)

    def share(k: int, raw: Sequence[Incoming], sums: Sequence[Incoming]) -> None:
        seg = segments[ex.rank][k]
        acc = sum_of_group(seg, raw)
        result = None
        if op in ("sum", "avg"):
            result = ex.encode_sum(acc, 2 * seg.start + 1, sums, recv[seg], divisor)
        if result is None:
            total = ex.array(acc.size)
            reduce_in_rank_order(ex, acc, sums, total, op)
            result = ex.encode(total, 2 * seg.start + 1, part=seg, kept=recv[seg], divisor=divisor)
            if not ex.codec.verbatim:
                ex.recycle(total)
        ex.recycle(acc)
        ex.send(result, [*counterparts, *neighbours], channel(ex.rank, k, True))

    def accept(owner: int, k: int, forward_to: Sequence[int], incoming: Incoming) -> None:
        ex.forward(incoming, forward_to, channel(owner, k, True))
        ex.decode(incoming, recv[segments[owner][k]])

    def expect_results(source: int, owner: int, forward_to: Sequence[int]) -> None:
        for k, seg in enumerate(segments[owner]):
            into = None if in_place else recv[seg]
            incoming = ex.post(source, seg.stop - seg.start, channel(owner, k, True), into=into)
            ex.when([incoming], partial(accept, owner, k, forward_to, incoming))

    # What is for another group comes first everywhere: it has further to go.
    for owner in (*counterparts, ex.rank):
        for k, seg in enumerate(segments[owner]):
            count, number = seg.stop - seg.start, channel(owner, k, False)
            raw = [ex.post(peer, count, number, codec=VERBATIM) for peer in neighbours]
            if owner != ex.rank:
                ex.when(raw, partial(pass_on, owner, k, raw))
            else:
                sums = [ex.post(peer, count, number) for peer in counterparts]
                ex.when([*raw, *sums], partial(share, k, raw, sums))
    for owner in counterparts:
        expect_results(owner, owner, neighbours)
    for peer in neighbours:
        for owner in columns[peer]:
            expect_results(peer, owner, ())

    for row in zip(*([*_beginning_after(columns[peer], peer), peer] for peer in neighbours), strict=True):
        for k, segs in enumerate(zip_longest(*(segments[owner] for owner in row))):
            for peer, owner, seg in zip(neighbours, row, segs, strict=True):
                if seg is not None:
                    ex.send(ex.encode_verbatim(send[seg]), peer, channel(owner, k, False))
            ex.progress()


def _beginning_after(ranks: Sequence[int], rank: int) -> list[int]:
    """The others of `ranks`, beginning after `rank`, so that not all send to one at once."""
    place = ranks.index(rank)
    return [*ranks[place + 1 :], *ranks[:place]]
