"""Bandwidth: a window of messages from rank 0 to rank 1, answered by an empty one."""

from __future__ import annotations

from typing import Any

from .point_to_point import PointToPoint, wait_all

__all__ = ["Bandwidth"]


class Bandwidth(PointToPoint):
    """Size: one message. Time: of a window over the number of messages in it."""

    name = "bw"
    summary = "a window of messages one way"

    def call(self, comm: Any, **how: Any) -> None:
        if self.rank == 0:
            wait_all(self.post_sends(comm, how))
            comm.Recv(bytearray(0), 1)
        else:
            wait_all(self.post_recvs(comm, how))
            comm.Send(b"", 0)
