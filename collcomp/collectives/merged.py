"""Sums of sparse frames, merged by the owners of chunks: nothing is rounded after the selection.

Each rank selects once from its whole message and sends each chunk's part of the selection to the chunk's owner. The
owner adds the lists in rank order and sends the union, or all elements where that is shorter, to all. The sums have
the bits of `gathered`; what a rank receives grows with the union, not with the number of ranks.

Source: Renggli, Ashkboos, Aghagolzadeh, Alistarh, Hoefler, "SparCML: high-performance sparse communication for machine
learning", SC 2019 (its split allgather).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from collcomp.collectives.direct import chunks
from collcomp.collectives.exchange import LOSSLESS, Exchange
from collcomp.kernels import cpu

__all__ = ["allreduce", "reduce"]

_OPERAND, _RESULT = range(2)
#: Merging lists takes as long for one element as clearing and reading so many elements of a dense vector.
_LIST_COST = 32

#: Indices and values, indices counted from the beginning of a chunk; of a dense vector, None and all values.
_Sum = tuple[np.ndarray | None, np.ndarray]


def allreduce(ex: Exchange, send: np.ndarray, recv: np.ndarray, op: str) -> None:
    """Sum `send` of all ranks into `recv` of all ranks; both may be the same array."""
    parts = chunks(send.size, ex.size)
    mine = recv[parts[ex.rank]]

    def deliver(indices: np.ndarray | None, values: np.ndarray) -> None:
        ex.send(ex.encode_lossless(values, indices, mine.size), ex.peers, _RESULT)
        _write(indices, values, mine)

    _expect_results(ex, recv, parts)
    _merge(ex, send, op, parts, deliver)


def reduce(ex: Exchange, send: np.ndarray, recv: np.ndarray | None, op: str, root: int) -> None:
    """Sum `send` of all ranks into `recv` of rank `root`."""
    parts = chunks(send.size, ex.size)
    mine = parts[ex.rank]

    def deliver(indices: np.ndarray | None, values: np.ndarray) -> None:
        if recv is None:
            ex.send(ex.encode_lossless(values, indices, mine.stop - mine.start), root, _RESULT)
        else:
            _write(indices, values, recv[mine])

    if recv is not None:
        _expect_results(ex, recv, parts)
    _merge(ex, send, op, parts, deliver)


def _merge(ex: Exchange, send: np.ndarray, op: str, parts: Sequence[slice], deliver: Callable[..., None]) -> None:
    """Send each owner its part of this rank's selection; have `deliver` called with the sum of this rank's chunk."""
    mine = parts[ex.rank]
    incoming = [ex.post(peer, mine.stop - mine.start, _OPERAND, codec=LOSSLESS) for peer in ex.peers]
    indices, values = ex.codec.selection(ex.frame_of(ex.encode(send, 0, part=slice(0, send.size))))

    # Edges of the indices' own dtype: with others, NumPy would convert all indices first.
    cuts = np.searchsorted(indices, np.array([0, *(part.stop for part in parts)], indices.dtype))

    def selected(rank: int) -> tuple[np.ndarray, np.ndarray]:
        its = slice(cuts[rank], cuts[rank + 1])
        return indices[its] - np.uint32(parts[rank].start), values[its]

    for peer in ex.peers:
        its_indices, its_values = selected(peer)
        operand = ex.encode_lossless(its_values, its_indices, parts[peer].stop - parts[peer].start)
        ex.send(operand, peer, _OPERAND)

    def add() -> None:
        lists = {one.source: LOSSLESS.selection(ex.frame(one)) for one in incoming}
        lists[ex.rank] = selected(ex.rank)
        indices, values = _sum([lists[rank] for rank in range(ex.size)], mine.stop - mine.start, ex.array)
        if op == "avg":
            values /= ex.size
        deliver(indices, values)
        if indices is None:
            ex.recycle(values)

    ex.when(incoming, add)
    ex.progress()


def _sum(lists: Sequence[tuple[np.ndarray, np.ndarray]], count: int, array: Callable[[int], np.ndarray]) -> _Sum:
    """Add selections of `count` elements in order: as lists, unless a dense vector (an `array`) is faster."""
    kernels = cpu.load("sparse")
    dtype = lists[0][1].dtype
    sizes = np.cumsum([values.size for _, values in lists])
    together = int(sizes[-1])
    if _LIST_COST * int(sizes[1:].sum()) > count:
        dense = array(count)
        kernels.scatter(*lists[0], dense)
        for indices, values in lists[1:]:
            kernels.scatter_add(indices, values, dense)
        return None, dense
    rooms = [(np.empty(together, np.uint32), np.empty(together, dtype)) for _ in range(2)]
    total = lists[0]
    for number, one in enumerate(lists[1:]):
        room = rooms[number % 2]
        found = kernels.merge(*total, *one, *room)
        total = room[0][:found], room[1][:found]
    return total


def _write(indices: np.ndarray | None, values: np.ndarray, dst: np.ndarray) -> None:
    if indices is None:
        dst[...] = values
    elif dst.dtype == values.dtype:
        cpu.load("sparse").scatter(indices, values, dst)
    else:
        dst[...] = 0
        dst[indices] = values


def _expect_results(ex: Exchange, recv: np.ndarray, parts: Sequence[slice]) -> None:
    for peer in ex.peers:
        incoming = ex.post(peer, parts[peer].stop - parts[peer].start, _RESULT, codec=LOSSLESS)
        ex.when([incoming], partial(ex.decode, incoming, recv[parts[peer]]))
