"""Sums (and MAX, MIN) of one slice over ranks, in rank order, so that every run gives the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collcomp.codecs.base import frame_beside
from collcomp.collectives.exchange import Exchange, Incoming
from collcomp.devices import on_device
from collcomp.frame import Frame

__all__ = ["OPS", "combine_values", "reduce_in_rank_order"]

#: Operations that algorithms can do, and the function that joins two operands in place.
OPS = {"sum": np.add, "avg": np.add, "max": np.maximum, "min": np.minimum}
#: Those of summable codecs' rounds besides.
_FUNCTIONS = {**OPS, "or": np.bitwise_or}


# Elements of an accumulator that stay in the cache while all operands are added.
_TILE = 1 << 15


def reduce_in_rank_order(
    ex: Exchange, own: np.ndarray | Frame, incoming: Sequence[Incoming], acc: np.ndarray, op: str
) -> None:
    """Write ``x0 op x1 op ...`` to `acc` (working dtype).

    Parameters
    ----------
    own : ndarray or Frame
        This rank's operand. May not share memory with `acc` unless this is rank 0.
    incoming : sequence of Incoming
        The frame of every other rank that takes part, in any order; all are there, of one codec.
    """
    by_rank = {one.source: ex.frame(one) for one in incoming} | {ex.rank: own}
    operands = [by_rank[rank] for rank in sorted(by_rank)]
    if (incoming[0].codec if incoming else ex.codec).verbatim:
        _combine_arrays([_values(operand, acc) for operand in operands], acc, op)
    else:
        _assign(ex, operands[0], acc)
        for operand in operands[1:]:
            _combine(ex, operand, acc, op)
    if op == "avg":
        acc /= ex.size


def combine_values(values: np.ndarray, acc: np.ndarray, op: str) -> None:
    """``acc = acc op values``, elementwise."""
    _FUNCTIONS[op](acc, values, out=acc, casting="same_kind")


def _combine_arrays(arrays: Sequence[np.ndarray], acc: np.ndarray, op: str) -> None:
    if len(arrays) == 1:
        acc[...] = arrays[0]
    step = max(1, acc.size) if on_device(acc) else _TILE
    for start in range(0, acc.size, step):
        tile = slice(start, start + step)
        for i in range(1, len(arrays)):
            left = arrays[0] if i == 1 else acc
            _FUNCTIONS[op](left[tile], arrays[i][tile], out=acc[tile], dtype=acc.dtype, casting="same_kind")


def _values(operand: np.ndarray | Frame, acc: np.ndarray) -> np.ndarray:
    return frame_beside(operand, acc).values(operand.dtype) if isinstance(operand, Frame) else operand


def _assign(ex: Exchange, operand: np.ndarray | Frame, acc: np.ndarray) -> None:
    if isinstance(operand, Frame):
        ex.codec.decode(operand, acc)
    else:
        acc[...] = operand


def _combine(ex: Exchange, operand: np.ndarray | Frame, acc: np.ndarray, op: str) -> None:
    if not isinstance(operand, Frame):
        combine_values(operand, acc, op)
    elif _FUNCTIONS[op] is np.add:
        ex.codec.decode_add(operand, acc)
    else:
        decoded = ex.array(acc.size)
        ex.codec.decode(operand, decoded)
        combine_values(decoded, acc, op)
        ex.recycle(decoded)
