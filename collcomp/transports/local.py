"""Ranks that are threads of one process: for tests and notebooks, no MPI needed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from collcomp.errors import FrameError
from collcomp.transports.base import Request, Transport
from collcomp.transports.queues import take_oldest

__all__ = ["LocalTransport", "local_transports"]

# Below this a send is complete at once, on a copy, as MPI's eager protocol does.
_EAGER_NBYTES = 65536
_NOTHING = np.empty(0, np.uint8)


@dataclass(slots=True, eq=False)
class _LocalRequest:
    buf: np.ndarray
    source: int
    tag: int
    data: np.ndarray = field(default_factory=lambda: _NOTHING)
    complete: bool = False
    error: str | None = None


class _Fabric:
    """What the ranks share: messages and receives that wait for each other."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.sends: dict[tuple[int, int, int], deque[_LocalRequest]] = {}
        self.receives: dict[tuple[int, int, int], deque[_LocalRequest]] = {}
        self.notices: dict[tuple[int, int], tuple[int, str]] = {}
        self.left: tuple[int, str] | None = None


def local_transports(size: int) -> list[LocalTransport]:
    """The transports of `size` ranks that share this process; give each to a thread of its own."""
    if size < 1:
        raise ValueError(f"size: {size} ranks are too few")
    fabric = _Fabric()
    return [LocalTransport(fabric, rank, size) for rank in range(size)]


class LocalTransport(Transport):
    """One rank's end of a fabric in shared memory; made by `local_transports`."""

    def __init__(self, fabric: _Fabric, rank: int, size: int) -> None:
        self._fabric = fabric
        self.rank = rank
        self.size = size

    def isend(self, buf: np.ndarray, dest: int, tag: int) -> Request:
        fabric, route = self._fabric, (self.rank, dest, tag)
        send = _LocalRequest(buf, self.rank, tag)
        with fabric.changed:
            receive = take_oldest(fabric.receives, route)
            if receive is not None:
                _deliver(send, receive)
                fabric.changed.notify_all()
            else:
                if buf.size <= _EAGER_NBYTES:
                    fabric.sends.setdefault(route, deque()).append(_LocalRequest(buf.copy(), self.rank, tag))
                    send.complete = True
                else:
                    fabric.sends.setdefault(route, deque()).append(send)
        return send

    def irecv(self, buf: np.ndarray, source: int, tag: int) -> Request:
        fabric, route = self._fabric, (source, self.rank, tag)
        receive = _LocalRequest(buf, source, tag)
        with fabric.changed:
            send = take_oldest(fabric.sends, route)
            if send is not None:
                _deliver(send, receive)
                fabric.changed.notify_all()
            else:
                fabric.receives.setdefault(route, deque()).append(receive)
        return receive

    def wait_some(self, requests: Sequence[Request], timeout: float) -> list[int]:
        end = time.monotonic() + timeout
        with self._fabric.changed:
            while True:
                done = [i for i, request in enumerate(requests) if request.complete]  # type: ignore[attr-defined]
                remaining = end - time.monotonic()
                if done or remaining <= 0 or not requests:
                    break
                self._fabric.changed.wait(remaining)
        for i in done:
            error = requests[i].error  # type: ignore[attr-defined]
            if error:
                raise FrameError(error)
        return done

    def cancel(self, requests: Sequence[Request]) -> None:
        with self._fabric.changed:
            for queues in (self._fabric.receives, self._fabric.sends):
                for queue in queues.values():
                    for request in [r for r in queue if any(r is other for other in requests)]:
                        queue.remove(request)

    def notify(self, sequence: int, text: str) -> None:
        with self._fabric.changed:
            for dest in range(self.size):
                if dest != self.rank:
                    self._fabric.notices[dest, sequence] = (self.rank, text)
            self._fabric.changed.notify_all()

    def notice(self, sequence: int) -> tuple[int, str] | None:
        return self._fabric.notices.pop((self.rank, sequence), None) or self._fabric.left

    def leave(self, text: str) -> None:
        with self._fabric.changed:
            self._fabric.left = self._fabric.left or (self.rank, text)
            self._fabric.changed.notify_all()


def _deliver(send: _LocalRequest, receive: _LocalRequest) -> None:
    if send.buf.size > receive.buf.size:
        receive.error = f"frame: {send.buf.size} bytes arrived from rank {send.source}, at most {receive.buf.size} fit"
    else:
        receive.data = receive.buf[: send.buf.size]
        receive.data[...] = send.buf
    send.complete = receive.complete = True
