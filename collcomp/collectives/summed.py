"""Sums of codecs whose payloads add: in rounds of plain reductions, nothing is decoded on the way.

Every round is an allreduce of its own, by `direct`: integers packed by width and summed exactly, floats as they are and
summed in rank order. Before the first one the ranks make sure that their calls agree, because sums would not show it.
"""

from __future__ import annotations

import numpy as np

from collcomp.collectives import direct
from collcomp.collectives.exchange import Exchange
from collcomp.collectives.reduction import OPS
from collcomp.devices import empty
from collcomp.errors import FrameError
from collcomp.frame import dtype_code

__all__ = ["allreduce"]


def allreduce(ex: Exchange, send: np.ndarray, recv: np.ndarray, op: str) -> None:
    """Combine `send` of all ranks into `recv` of all ranks; both may be the same array."""
    _agree(ex, send, op)
    src = send if send.dtype == ex.dtype else send.astype(ex.dtype)
    dst = recv if recv.dtype == ex.dtype else empty(recv.size, ex.dtype, recv)
    residual, state = ex.remembered(slice(0, send.size))
    rounds = ex.codec.reduction(
        src, dst, ex.size, shared=ex.shared_stream, stream=ex.stream, residual=residual, state=state
    )
    for number, (array, how) in enumerate(rounds, start=1):
        _reduce(ex, array, how, number)
    if op == "avg":
        dst /= ex.size
    if dst is not recv:
        recv[...] = dst
    ex.raw_nbytes = direct.sent_by_allreduce(send.size, ex.rank, ex.size) * send.itemsize
    ex.error_sq = None  # no rank knows what the others' agreement made its operand lose


def _agree(ex: Exchange, send: np.ndarray, op: str) -> None:
    facts = {
        "codec": ex.codec.number,
        "codec's parameters": ex.codec.digest,
        "count": send.size,
        "dtype": dtype_code(send.dtype),
        "op": list(OPS).index(op),
    }
    values = np.array(list(facts.values()), np.float64)
    limits = np.concatenate([values, -values])
    _reduce(ex, limits, "max", 0)
    for name, high, low in zip(facts, limits[: len(facts)], -limits[len(facts) :], strict=True):
        if high != low:
            raise FrameError(f"{name}: the ranks' calls differ")


def _reduce(ex: Exchange, array: np.ndarray, how: str, number: int) -> None:
    flat = array.reshape(-1)
    with ex.nested(flat, number) as inner:
        direct.allreduce(inner, flat, flat, how)
