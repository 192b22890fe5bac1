"""Every rank talks to every other: two roundings whatever the size, and no byte more than a ring sends.

A reduction is cut into one chunk a rank. Each rank sends each chunk to its owner (phase 0), the owner sums in rank
order and sends the result to all (phase 1). Both phases are cut into segments, so that encoding, sending and decoding
overlap. The owner's own operand is never encoded; what it keeps of the result is what it sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise, zip_longest

import numpy as np

from collcomp.collectives.exchange import Exchange, Incoming
from collcomp.collectives.reduction import reduce_in_rank_order
from collcomp.devices import is_writable, share_memory

__all__ = [
    "allgather",
    "allreduce",
    "alltoall",
    "bcast",
    "chunks",
    "gather",
    "reduce",
    "reduce_scatter",
    "scatter",
    "sent_by_allreduce",
]


def _operand(number: int) -> int:
    """Channel or place of an operand's segment; results have the odd ones."""
    return 2 * number


def _result(number: int) -> int:
    return 2 * number + 1


def chunks(count: int, size: int, block: int = 1) -> list[slice]:
    """`count` elements in `size` parts of whole blocks (the last may end within one), which differ by one at most."""
    blocks = -(-count // block)
    edges = [min(blocks * i // max(1, size) * block, count) for i in range(size + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def sent_by_allreduce(count: int, rank: int, size: int) -> int:
    """Elements that `rank` sends when `count` are combined: the others' chunks, and its own to all others."""
    mine = chunks(count, size)[rank]
    own = mine.stop - mine.start
    return count - own + own * (size - 1)


def allreduce(ex: Exchange, send: np.ndarray, recv: np.ndarray, op: str) -> None:
    """Combine `send` of all ranks into `recv` of all ranks; both may be the same array."""
    parts = chunks(send.size, ex.size, ex.codec.block)
    in_place = share_memory(send, recv)
    # Verbatim results are sent from the user's memory, so they are summed there too.
    sum_there = ex.codec.verbatim and recv.dtype == ex.dtype and not in_place

    def share(k: int, seg: slice, incoming: Sequence[Incoming]) -> None:
        if op in ("sum", "avg"):
            result = ex.encode_sum(send[seg], _result(seg.start), incoming, recv[seg], ex.size if op == "avg" else 1)
            if result is not None:
                ex.send(result, ex.peers, _result(k))
                return
        acc = recv[seg] if sum_there else ex.array(seg.stop - seg.start)
        reduce_in_rank_order(ex, send[seg], incoming, acc, op)
        result = ex.encode(acc, _result(seg.start), part=seg, kept=recv[seg], divisor=ex.size if op == "avg" else 1)
        ex.send(result, ex.peers, _result(k))
        if not sum_there and not ex.codec.verbatim:
            ex.recycle(acc)

    _expect_operands(ex, parts[ex.rank], share)
    for peer in ex.peers:
        for k, seg in enumerate(ex.segments(parts[peer])):
            _expect(ex, peer, _result(k), recv[seg], land=not in_place)
    _send_operands(ex, send, parts)


def reduce(ex: Exchange, send: np.ndarray, recv: np.ndarray | None, op: str, root: int) -> None:
    """Combine `send` of all ranks into `recv` of rank `root`."""
    parts = chunks(send.size, ex.size, ex.codec.block)

    def deliver(k: int, seg: slice, incoming: Sequence[Incoming]) -> None:
        acc = ex.array(seg.stop - seg.start)
        reduce_in_rank_order(ex, send[seg], incoming, acc, op)
        if recv is not None:
            recv[seg] = acc
        else:
            result = ex.encode(acc, _result(seg.start), part=seg, divisor=ex.size if op == "avg" else 1)
            ex.send(result, root, _result(k))

    _expect_operands(ex, parts[ex.rank], deliver)
    if recv is not None:
        for peer in ex.peers:
            for k, seg in enumerate(ex.segments(parts[peer])):
                _expect(ex, peer, _result(k), recv[seg], land=False)
    _send_operands(ex, send, parts)


def reduce_scatter(ex: Exchange, send: np.ndarray, recv: np.ndarray, counts: Sequence[int], op: str) -> None:
    """Combine `send` of all ranks; rank i gets the i-th part, of ``counts[i]`` elements. One rounding."""
    edges = np.cumsum([0, *counts]).tolist()
    parts = [slice(a, b) for a, b in pairwise(edges)]
    mine = parts[ex.rank]

    def store(k: int, seg: slice, incoming: Sequence[Incoming]) -> None:
        acc = ex.array(seg.stop - seg.start)
        reduce_in_rank_order(ex, send[seg], incoming, acc, op)
        recv[seg.start - mine.start : seg.stop - mine.start] = acc
        ex.recycle(acc)

    _expect_operands(ex, mine, store)
    _send_operands(ex, send, parts)


def allgather(ex: Exchange, send: np.ndarray, blocks: Sequence[np.ndarray]) -> None:
    """Give every rank every rank's `send`, rank i's into ``blocks[i]``; each keeps of its own what it sent."""
    _expect_blocks(ex, blocks, ex.peers)
    own = blocks[ex.rank]
    for k, seg in enumerate(ex.segments(slice(0, send.size))):
        ex.send(ex.encode(send[seg], seg.start, kept=own[seg], total=send.size), ex.peers, k)
        ex.progress()


def gather(ex: Exchange, send: np.ndarray, blocks: Sequence[np.ndarray] | None, root: int) -> None:
    """Collect every rank's `send` on `root`, rank i's in ``blocks[i]``; the root's own is copied as it is."""
    if ex.rank != root or blocks is None:
        _send_block(ex, send, root)
        return
    _expect_blocks(ex, blocks, ex.peers)
    if not share_memory(send, blocks[root]):
        blocks[root][...] = send


def scatter(ex: Exchange, blocks: Sequence[np.ndarray] | None, recv: np.ndarray, root: int) -> None:
    """Give rank i ``blocks[i]`` of `root`; the root's own is copied as it is."""
    if ex.rank != root or blocks is None:
        _expect_blocks(ex, {root: recv}, [root])
        return
    _send_interleaved(ex, {peer: blocks[peer] for peer in ex.peers})
    if not share_memory(recv, blocks[root]):
        recv[...] = blocks[root]


def alltoall(ex: Exchange, send_blocks: Sequence[np.ndarray], recv_blocks: Sequence[np.ndarray]) -> None:
    """Send ``send_blocks[i]`` to rank i and get its block into ``recv_blocks[i]``; the own one is copied as it is."""
    _expect_blocks(ex, recv_blocks, ex.peers)
    _send_interleaved(ex, {peer: send_blocks[peer] for peer in ex.peers})
    recv_blocks[ex.rank][...] = send_blocks[ex.rank]


def bcast(ex: Exchange, buf: np.ndarray, root: int) -> None:
    """Give `buf` of `root` to all ranks; the root too ends with what the others decoded, unless its is read-only.

    The root sends each other rank one part, which that rank forwards as it came to the rest: the root's link carries
    the message once, as a pipelined chain would, in two hops instead of n - 1.
    """
    others = [(root + i) % ex.size for i in range(1, ex.size)]
    parts = dict(zip(others, chunks(buf.size, len(others), ex.codec.block), strict=True))
    segments = {rank: ex.segments(part) for rank, part in parts.items()}
    if ex.rank == root:
        for k, row in enumerate(zip_longest(*segments.values())):
            for rank, seg in zip(segments, row, strict=True):
                if seg is not None:
                    kept = buf[seg] if is_writable(buf) else None
                    ex.send(ex.encode(buf[seg], seg.start, kept=kept), rank, k)
            ex.progress()
        return
    rest = [rank for rank in others if rank != ex.rank]
    for k, seg in enumerate(segments[ex.rank]):
        _expect(ex, root, k, buf[seg], forward_to=rest)
    for rank in rest:
        for k, seg in enumerate(segments[rank]):
            _expect(ex, rank, k, buf[seg])


# ---------------------------------------------------------------------- the two halves of a reduction


def _expect_operands(ex: Exchange, mine: slice, action: Callable[[int, slice, Sequence[Incoming]], None]) -> None:
    for k, seg in enumerate(ex.segments(mine)):
        incoming = [ex.post(peer, seg.stop - seg.start, _operand(k)) for peer in ex.peers]
        ex.when(incoming, partial(action, k, seg, incoming))


def _send_operands(ex: Exchange, send: np.ndarray, parts: Sequence[slice]) -> None:
    # Segment by segment over all peers: the first segments of all chunks are complete early, and their results
    # follow while later operands are still on the way.
    for k, row in enumerate(zip_longest(*(ex.segments(parts[peer]) for peer in ex.peers))):
        for peer, seg in zip(ex.peers, row, strict=True):
            if seg is not None:
                ex.send(ex.encode(send[seg], _operand(seg.start), part=seg), peer, _operand(k))
        ex.progress()


# ---------------------------------------------------------------------- blocks


def _send_block(ex: Exchange, block: np.ndarray, dest: int) -> None:
    for k, seg in enumerate(ex.segments(slice(0, block.size))):
        ex.send(ex.encode(block[seg], seg.start * ex.size + dest, total=block.size), dest, k)
        ex.progress()


def _send_interleaved(ex: Exchange, blocks: dict[int, np.ndarray]) -> None:
    for k, row in enumerate(zip_longest(*(ex.segments(slice(0, block.size)) for block in blocks.values()))):
        for (dest, block), seg in zip(blocks.items(), row, strict=True):
            if seg is not None:
                ex.send(ex.encode(block[seg], seg.start * ex.size + dest, total=block.size), dest, k)
        ex.progress()


def _expect_blocks(ex: Exchange, blocks: Sequence[np.ndarray] | dict[int, np.ndarray], sources: Sequence[int]) -> None:
    for source in sources:
        block = blocks[source]
        for k, seg in enumerate(ex.segments(slice(0, block.size))):
            _expect(ex, source, k, block[seg], total=block.size)


def _expect(
    ex: Exchange,
    source: int,
    channel: int,
    dst: np.ndarray,
    *,
    total: int | None = None,
    land: bool = True,
    forward_to: Sequence[int] = (),
) -> None:
    """Have a frame decoded into `dst`, where verbatim values may also `land` directly, and forwarded."""
    incoming = ex.post(source, dst.size, channel, into=dst if land else None, total=total)

    def accept() -> None:
        ex.forward(incoming, forward_to, channel)
        ex.decode(incoming, dst)

    ex.when([incoming], accept)
