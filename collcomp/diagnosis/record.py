"""What every operation leaves behind."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

__all__ = ["Record", "Records", "Total"]

_KIND = itemgetter(0, 1, 2)
#: Length of what a native allreduce leaves.
_SHORT = 3


@dataclass(frozen=True, slots=True)
class Record:
    """One operation on one rank.

    Attributes
    ----------
    sequence : int
        Number of the operation in its `Records`.
    collective, algorithm, codec : str
        MPI's name in lower case; the algorithm; the codec's spec, ``"none"`` where there was none.
    nbytes : int
        Bytes of the caller's message.
    wire_nbytes : int or None
        Bytes that this rank sent, counted as they were handed to the transport; None for native operations, whose
        bytes only the library underneath knows.
    raw_nbytes : int or None
        Bytes that the same transfers would have taken without a codec.
    seconds : float
        From the call to its completion.
    error_norm : float or None
        Euclidean norm of what this rank's encoding lost, where that was asked for.
    key : str or None
        The caller's name for the tensor.
    reason : str
        Why the operation was done this way, where that was not the caller's own wish.
    """

    sequence: int
    collective: str
    algorithm: str
    codec: str
    nbytes: int
    wire_nbytes: int | None
    raw_nbytes: int | None
    seconds: float
    error_norm: float | None = None
    key: str | None = None
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """Original over encoded size of what this rank sent; None where it sent nothing, or nobody counted."""
        return self.raw_nbytes / self.wire_nbytes if self.raw_nbytes and self.wire_nbytes else None


@dataclass(slots=True)
class Total:
    """Sums over all operations of one collective, algorithm and codec."""

    calls: int = 0
    nbytes: int = 0
    wire_nbytes: int = 0
    raw_nbytes: int = 0
    seconds: float = 0.0


class Records:
    """The latest records in a fixed ring, and totals over all.

    Parameters
    ----------
    capacity : int
        How many records are kept; older ones make room.

    Attributes
    ----------
    capacity : int
    fresh : deque of tuple
        What was not looked at yet. Whoever has no time for `add` appends (nbytes, seconds, reason) of an allreduce that
        the library underneath did, and calls `settle` when there are many.
    """

    def __init__(self, capacity: int = 4096) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: {capacity} records are too few")
        self.capacity = capacity
        self.fresh: deque[tuple[Any, ...]] = deque()
        self._kept: deque[tuple[Any, ...]] = deque(maxlen=capacity)
        self._settled = 0
        self._totals: dict[tuple[str, str, str], Total] = {}
        self._lock = threading.Lock()

    def add(
        self,
        collective: str,
        algorithm: str,
        codec: str,
        nbytes: int,
        wire_nbytes: int | None,
        raw_nbytes: int | None,
        seconds: float,
        error_norm: float | None = None,
        key: str | None = None,
        reason: str = "",
    ) -> None:
        """Append a record. Takes a fraction of a microsecond: totals are summed up when many have come, or are read."""
        self.fresh.append(
            (collective, algorithm, codec, nbytes, wire_nbytes, raw_nbytes, seconds, error_norm, key, reason)
        )
        if len(self.fresh) >= self.capacity:
            self.settle()

    def clear(self) -> None:
        """Forget all; totals too."""
        self.settle()
        with self._lock:
            self._kept.clear()
            self._totals.clear()
            self._settled = 0

    def __len__(self) -> int:
        self.settle()
        return len(self._kept)

    def __iter__(self) -> Iterator[Record]:
        """The kept records, oldest first."""
        self.settle()
        first = self._settled - len(self._kept)
        return iter([Record(first + i, *_whole(entry)) for i, entry in enumerate(self._kept)])

    def __getitem__(self, index: int) -> Record:
        return list(self)[index]

    def totals(self) -> dict[tuple[str, str, str], Total]:
        """Totals by (collective, algorithm, codec) since the start."""
        self.settle()
        return self._totals

    def settle(self) -> None:
        """Number and sum up what is fresh."""
        with self._lock:
            # Other threads may go on adding; popleft and append are atomic.
            fresh = [self.fresh.popleft() for _ in range(len(self.fresh))]
            self._kept.extend(fresh)
            self._settled += len(fresh)
            short = [entry for entry in fresh if len(entry) == _SHORT]
            if short:  # whole ones are made of them when somebody reads them
                total = self._totals.setdefault(("allreduce", "native", "none"), Total())
                total.calls += len(short)
                total.nbytes += sum(map(itemgetter(0), short))
                total.seconds += sum(map(itemgetter(1), short))
                fresh = [entry for entry in fresh if len(entry) != _SHORT]
            for kind, entries in groupby(fresh, _KIND):
                total = self._totals.setdefault(kind, Total())
                _, _, _, nbytes, wire_nbytes, raw_nbytes, seconds, *_ = zip(*entries, strict=True)
                total.calls += len(nbytes)
                total.nbytes += sum(nbytes)
                total.wire_nbytes += sum(filter(None, wire_nbytes))
                total.raw_nbytes += sum(filter(None, raw_nbytes))
                total.seconds += sum(seconds)


def _whole(entry: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(entry) != _SHORT:
        return entry
    nbytes, seconds, reason = entry
    return ("allreduce", "native", "none", nbytes, None, None, seconds, None, None, reason)
