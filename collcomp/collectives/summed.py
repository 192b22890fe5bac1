"""Sums of codecs whose payloads add: in rounds of plain reductions, nothing is decoded on the way.

Every round is an allreduce of its own, by `direct`: integers packed by width and summed exactly, floats as they are and
summed in rank order. The first round also makes sure that the ranks' calls agree, because plain sums would not show it.
"""

from __future__ import annotations

import numpy as np

from collcomp.collectives import direct
from collcomp.collectives.exchange import Exchange
from collcomp.errors import FrameError
from collcomp.frame import dtype_code

__all__ = ["allreduce"]


def allreduce(ex: Exchange, send: np.ndarray, recv: np.ndarray, op: str) -> None:
    """Combine `send` of all ranks into `recv` of all ranks; both may be the same array."""
    src = send if send.dtype == ex.dtype else send.astype(ex.dtype)
    dst = recv if recv.dtype == ex.dtype else np.empty(recv.size, ex.dtype)
    residual, state = ex.remembered(slice(0, send.size))
    rounds = ex.codec.reduction(
        src, dst, ex.size, shared=ex.shared_stream, stream=ex.stream, residual=residual, state=state
    )
    facts = np.array([ex.codec.number, ex.codec.digest, send.size, dtype_code(send.dtype)], np.float64)
    agreed = np.concatenate([facts, -facts])
    number = 0
    for array, how in rounds:
        if number == 0 and how == "max" and array.dtype == agreed.dtype:
            both = np.concatenate([agreed, array])
            _reduce(ex, both, how, number)
            _check(both[: agreed.size], facts)
            array[...] = both[agreed.size :]
        else:
            if number == 0:
                _reduce(ex, agreed, "max", number)
                _check(agreed, facts)
                number += 1
            _reduce(ex, array, how, number)
        number += 1
    if op == "avg":
        dst /= ex.size
    if dst is not recv:
        recv[...] = dst
    ex.raw_nbytes = direct.sent_by_allreduce(send.size, ex.rank, ex.size) * send.itemsize


def _reduce(ex: Exchange, array: np.ndarray, how: str, number: int) -> None:
    flat = array.reshape(-1)
    with ex.nested(flat, number) as inner:
        direct.allreduce(inner, flat, flat, how)


def _check(agreed: np.ndarray, facts: np.ndarray) -> None:
    highest, lowest = agreed[: facts.size], -agreed[facts.size :]
    for name, high, low in zip(("codec", "codec's parameters", "count", "dtype"), highest, lowest, strict=True):
        if high != low:
            raise FrameError(f"{name}: the ranks' calls differ, from {low:g} to {high:g}")
