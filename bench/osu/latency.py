"""Latency: one message there, one back, and half of that time."""

from __future__ import annotations

from typing import Any

from .point_to_point import PointToPoint

__all__ = ["Latency"]


class Latency(PointToPoint):
    """Size: one message. Time: of one message one way."""

    name = "latency"
    summary = "one message one way, from a ping-pong"
    windowed = False
    both_ways = True

    def allocate(self) -> None:
        super().allocate()
        self.messages = 2  # one after the other

    def call(self, comm: Any, **how: Any) -> None:
        if self.rank == 0:
            comm.Send(self.send, 1, **how)
            comm.Recv(self.recv[0], 1, **how)
        else:
            comm.Recv(self.recv[0], 0, **how)
            comm.Send(self.send, 0, **how)
