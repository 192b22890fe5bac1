"""Bidirectional bandwidth: a window of messages from each rank to the other at once."""

from __future__ import annotations

from typing import Any

from .point_to_point import PointToPoint, wait_all

__all__ = ["BidirectionalBandwidth"]


class BidirectionalBandwidth(PointToPoint):
    """Size: one message. Time: of both windows over the number of messages in one."""

    name = "bibw"
    summary = "a window of messages both ways at once"
    both_ways = True

    def call(self, comm: Any, **how: Any) -> None:
        requests = self.post_recvs(comm, how)
        wait_all(requests + self.post_sends(comm, how))

    def volume(self) -> float:
        return 2 * self.nbytes
