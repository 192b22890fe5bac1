"""Sums of sparse frames: every rank gets every rank's frame and adds them in rank order. One rounding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from collcomp.collectives.exchange import Exchange, Incoming
from collcomp.collectives.reduction import reduce_in_rank_order
from collcomp.devices import share_memory
from collcomp.frame import Frame

__all__ = ["allreduce", "reduce"]


def allreduce(ex: Exchange, send: np.ndarray, recv: np.ndarray, op: str) -> None:
    """Combine `send` of all ranks into `recv` of all ranks; all add the same frames in the same order."""
    _gather_and_combine(ex, send, recv, op, ex.peers, ex.peers)


def reduce(ex: Exchange, send: np.ndarray, recv: np.ndarray | None, op: str, root: int) -> None:
    """Combine `send` of all ranks into `recv` of rank `root`."""
    at_root = ex.rank == root
    _gather_and_combine(ex, send, recv, op, [] if at_root else [root], ex.peers if at_root else [])


def _gather_and_combine(
    ex: Exchange, send: np.ndarray, recv: np.ndarray | None, op: str, dests: list[int], sources: list[int]
) -> None:
    if ex.codec.verbatim and recv is not None and share_memory(send, recv):
        send = send.copy()  # its memory is still being sent when the sums are written
    for k, seg in enumerate(ex.segments(slice(0, send.size))):
        incoming = [ex.post(source, seg.stop - seg.start, k) for source in sources]
        outgoing = ex.encode(send[seg], seg.start, part=seg)
        ex.send(outgoing, dests, k)
        if recv is not None:
            ex.when(incoming, partial(_combine, ex, ex.frame_of(outgoing), incoming, recv[seg], op))
        ex.progress()


def _combine(ex: Exchange, own: Frame, incoming: Sequence[Incoming], recv: np.ndarray, op: str) -> None:
    acc = recv if recv.dtype == ex.dtype else ex.array(recv.size)
    reduce_in_rank_order(ex, own, incoming, acc, op)
    if acc is not recv:
        recv[...] = acc
        ex.recycle(acc)
