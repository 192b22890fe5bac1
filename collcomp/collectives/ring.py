"""The bandwidth-optimal ring: each rank talks to its two neighbours only.

Partial sums are rounded anew at every hop, so the error grows with the number of ranks: choose it where a rank's link
to one neighbour is much faster than its links to all. The sum of a chunk starts at its owner's right neighbour and
goes round; the owner encodes the result once and it is forwarded as it is, so ranks agree in every bit.

Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 2009.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from collcomp.collectives.direct import chunks
from collcomp.collectives.exchange import Exchange, Incoming
from collcomp.collectives.reduction import combine_values

__all__ = ["allreduce"]


def allreduce(ex: Exchange, send: np.ndarray, recv: np.ndarray, op: str) -> None:
    """Combine `send` of all ranks into `recv` of all ranks, round the ring of ranks in the plan's order."""
    place, size = ex.order.index(ex.rank), ex.size
    left, right = ex.order[place - 1], ex.order[(place + 1) % size]
    parts = [ex.segments(part) for part in chunks(send.size, size, ex.codec.block)]

    if size == 1:
        recv[...] = send
        return

    # Place p owns part p: its sum starts at place p + 1 and ends at p. In step s this rank gets the sum of part
    # place - 2 - s, adds its own operand, and sends it on; the last is its own part, whose result then goes round.
    def channel(part: int, k: int, result: bool) -> int:
        return (part % size * max(map(len, parts)) + k) * 2 + result

    def add(part: int, k: int, last: bool, incoming: Incoming) -> None:
        seg = parts[part][k]
        kept = recv[seg] if last else None
        divisor = size if last and op == "avg" else 1
        partial_sum = None
        if op in ("sum", "avg"):
            partial_sum = ex.encode_sum(send[seg], seg.start, [incoming], kept, divisor)
        if partial_sum is None:
            acc = ex.array(seg.stop - seg.start)
            ex.decode(incoming, acc)
            combine_values(send[seg], acc, op)
            if divisor != 1:
                acc /= divisor
            partial_sum = ex.encode(acc, seg.start, part=seg, kept=kept, divisor=divisor)
            if not ex.codec.verbatim:
                ex.recycle(acc)
        ex.send(partial_sum, right, channel(part, k, last))

    def accept(part: int, k: int, last: bool, incoming: Incoming) -> None:
        if not last:
            ex.forward(incoming, right, channel(part, k, True))
        ex.decode(incoming, recv[parts[part][k]])

    for result, action in ((False, add), (True, accept)):
        for step in range(size - 1):
            part = (place - 2 + result - step) % size
            for k, seg in enumerate(parts[part]):
                incoming = ex.post(left, seg.stop - seg.start, channel(part, k, result))
                ex.when([incoming], partial(action, part, k, step == size - 2, incoming))
    for k, seg in enumerate(parts[place - 1]):
        ex.send(ex.encode(send[seg], seg.start, part=seg), right, channel(place - 1, k, False))
        ex.progress()
