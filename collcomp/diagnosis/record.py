"""What every operation leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Record", "Records", "Total"]


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
    """

    def __init__(self, capacity: int = 4096) -> None:
        self._ring: list[tuple | None] = [None] * capacity
        self._count = 0
        self._totals: dict[tuple[str, str, str], Total] = {}
        self._counted = 0
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
        """Append a record. Takes a fraction of a microsecond: totals are summed up when the ring is full, or read."""
        if self._count - self._counted == len(self._ring):
            self._sum_up()
        self._ring[self._count % len(self._ring)] = (
            collective, algorithm, codec, nbytes, wire_nbytes, raw_nbytes, seconds, error_norm, key, reason,
        )  # fmt: skip
        self._count += 1

    def __len__(self) -> int:
        return min(self._count, len(self._ring))

    def __iter__(self) -> Iterator[Record]:
        """The kept records, oldest first."""
        for sequence in range(self._count - len(self), self._count):
            yield Record(sequence, *self._ring[sequence % len(self._ring)])  # type: ignore[misc]

    def __getitem__(self, index: int) -> Record:
        return list(self)[index]

    def totals(self) -> dict[tuple[str, str, str], Total]:
        """Totals by (collective, algorithm, codec) since the start."""
        self._sum_up()
        return self._totals

    def _sum_up(self) -> None:
        with self._lock:
            for sequence in range(self._counted, self._count):
                entry = self._ring[sequence % len(self._ring)]
                assert entry is not None
                total = self._totals.setdefault(entry[:3], Total())
                total.calls += 1
                total.nbytes += entry[3]
                total.wire_nbytes += entry[4] or 0
                total.raw_nbytes += entry[5] or 0
                total.seconds += entry[6]
            self._counted = self._count
