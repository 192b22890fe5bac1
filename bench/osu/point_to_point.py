"""What the point-to-point tests share: two ranks, and windows of messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from collcomp.codecs import Codec

from .collective import Collective
from .message import values
from .validate import Check, check_moved

if TYPE_CHECKING:  # importing it starts MPI, which the process that launches the ranks must not do
    from mpi4py import MPI

__all__ = ["PointToPoint", "wait_all"]

# OSU's window is 64 messages whatever their size; this bounds what lies in memory.
_WINDOW = 64
_WINDOW_NBYTES = 16 << 20


class PointToPoint(Collective):
    """Messages between ranks 0 and 1. Size: one message."""

    point_to_point = True
    #: Whether this test has many messages under way at once.
    windowed = True
    #: Whether rank 0 receives messages too.
    both_ways = False

    def allocate(self) -> None:
        self.peer = 1 - self.rank
        self.send = values(self.rank, 0, self.count)
        self.sent_messages = max(1, min(_WINDOW, _WINDOW_NBYTES // self.nbytes)) if self.windowed else 1
        self.messages = self.sent_messages
        receives = self.rank == 1 or self.both_ways
        self.recv = np.empty((self.sent_messages if receives else 0, self.count), np.float32)

    def post_sends(self, comm: Any, how: dict[str, Any]) -> list[MPI.Request]:
        """Start to send a window of messages."""
        return [comm.Isend(self.send, self.peer, **how) for _ in range(self.sent_messages)]

    def post_recvs(self, comm: Any, how: dict[str, Any]) -> list[MPI.Request]:
        """Start to receive a window of messages."""
        return [comm.Irecv(row, self.peer, **how) for row in self.recv]

    def checks(self, codec: Codec, algorithm: str) -> Iterable[Check]:
        for row in self.recv:
            yield from check_moved(row, codec, self.peer, slice(0, self.count))

    @classmethod
    def fewest_bytes(cls, frame_nbytes: float, size: int, algorithm: str) -> float:
        return frame_nbytes


def wait_all(requests: list[MPI.Request]) -> None:
    """Wait for each; unlike `MPI.Request.Waitall` this raises collcomp's own errors."""
    for request in requests:
        request.Wait()
