"""Messages over one TCP connection: cut into what the socket takes, and put together from what it gives."""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

__all__ = ["MESSAGE", "NOTICE", "RECEIVED", "Arriving", "EndOfStreamError", "Outgoing", "Stream"]

RequestT = TypeVar("RequestT")

#: Kinds of messages; the tag of the last says how many messages more have come by this connection.
MESSAGE, NOTICE, RECEIVED = 0, 1, 2
# Kind, tag, bytes that follow.
_HEADER = struct.Struct("<qqq")
# A header that says more is none.
_MOST_NBYTES = {MESSAGE: 1 << 40, NOTICE: 1 << 12, RECEIVED: 0}
# Messages that one system call takes along, and calls for one connection before the others get their turn.
_GATHERED = 8
_TURNS = 16
# Where bytes go that nobody wants; what is read there is never looked at.
_SINK = memoryview(bytearray(1 << 18))


class EndOfStreamError(ConnectionResetError):
    """The other end sends no more, and has sent all that it began."""


@dataclass(slots=True, eq=False)
class Outgoing(Generic[RequestT]):
    """A message on its way out, in pieces that are not yet in the kernel."""

    kind: int
    tag: int
    #: Header and payload.
    nbytes: int
    views: list[memoryview]
    request: RequestT | None
    begun: bool = False

    @classmethod
    def of(cls, kind: int, tag: int, payload: np.ndarray | bytes, request: RequestT | None) -> Outgoing[RequestT]:
        """A message that has not begun; `payload` (bytes) is not copied."""
        body = memoryview(payload)  # type: ignore[arg-type]
        header = memoryview(_HEADER.pack(kind, tag, len(body)))
        return cls(kind, tag, len(header) + len(body), [header, body], request)

    def detach(self) -> None:
        """Copy what is left: its owner may use the memory again."""
        self.views = [memoryview(bytes(view)) for view in self.views]
        self.request = None


@dataclass(slots=True, eq=False)
class Arriving(Generic[RequestT]):
    """A message on its way in."""

    kind: int
    source: int
    tag: int
    nbytes: int
    #: Bytes that are still to come.
    left: int
    #: Where it goes (uint8, so many bytes); None when nobody wants it.
    memory: np.ndarray | None = None
    #: Who waits for it.
    request: RequestT | None = None

    def room(self) -> memoryview:
        """Where the next bytes go; shorter than what is left where that does not matter."""
        if self.memory is None:
            return _SINK[: self.left]
        return memoryview(self.memory)[self.nbytes - self.left :]  # type: ignore[arg-type]


class Stream(Generic[RequestT]):
    """One connection.

    Parameters
    ----------
    sock : socket
        Connected, nonblocking.
    source : int
        The rank at its other end.
    begin, end : callable
        Called with each message when its header has come, to say where it goes, and when all of it has.
    """

    def __init__(
        self,
        sock: socket.socket,
        source: int,
        begin: Callable[[Arriving[RequestT]], None],
        end: Callable[[Arriving[RequestT]], None],
    ) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        #: Bytes that the kernel has taken, messages that have begun to arrive, and how many the other end confirmed.
        self.written = 0
        self.begun = 0
        self.confirmed = 0
        #: What is arriving, once its header is there.
        self.arriving: Arriving[RequestT] | None = None
        self._source = source
        self._begin = begin
        self._end = end
        self._header = memoryview(bytearray(_HEADER.size))
        self._header_got = 0

    def write(self, queue: deque[Outgoing[RequestT]]) -> list[RequestT]:
        """Write what the socket takes; requests whose messages are out, which leave the queue.

        Raises
        ------
        OSError
            The connection has ended.
        """
        done = []
        while queue:
            views = [view for outgoing in islice(queue, _GATHERED) for view in outgoing.views]
            try:
                count = sent = self.sock.sendmsg(views)
            except BlockingIOError:
                break
            self.written += sent
            while queue and (size := sum(map(len, queue[0].views))) <= count:
                count -= size
                request = queue.popleft().request
                if request is not None:
                    done.append(request)
            if count:
                queue[0].begun = True
                queue[0].views = _without(queue[0].views, count)
            if sent < sum(map(len, views)):
                break
        return done

    def read(self) -> bool:
        """Read what is there, or a good deal of it; whether there may be more.

        Raises
        ------
        EndOfStreamError
            The other end sends no more.
        OSError
            The connection has ended otherwise, or what comes is no message.
        """
        for _ in range(_TURNS):
            header = self._header[self._header_got :]
            room = self.arriving.room() if self.arriving is not None else None
            if room is None:
                views = [header]
            elif len(room) < self.arriving.left:  # type: ignore[union-attr]
                views = [room]
            else:
                views = [room, header]  # the next message's: one call less
            asked = sum(map(len, views))
            try:
                count = got = self.sock.recvmsg_into(views)[0]
            except BlockingIOError:
                return False
            if not count:
                if self.arriving is None and not self._header_got:
                    raise EndOfStreamError("by its end")
                raise ConnectionResetError("by its end, within a message")
            if self.arriving is not None:
                arrived = min(count, self.arriving.left)
                count -= arrived
                self.arriving.left -= arrived
                self._finish_if_complete()
            self._header_got += count
            if self._header_got == _HEADER.size:
                self._header_got = 0
                self._start(*_HEADER.unpack(self._header))
            if got < asked:
                return False
        return True

    def _start(self, kind: int, tag: int, nbytes: int) -> None:
        if not (0 <= nbytes <= _MOST_NBYTES.get(kind, -1) and tag >= (-1 if kind == NOTICE else 0)):
            raise ConnectionAbortedError(f"no message: kind {kind}, tag {tag}, {nbytes} bytes")
        if kind == RECEIVED:
            self.confirmed += tag
            return
        self.begun += kind == MESSAGE
        self.arriving = Arriving(kind, self._source, tag, nbytes, nbytes)
        try:
            self._begin(self.arriving)
        except MemoryError:
            raise ConnectionAbortedError(f"no memory for a message of {nbytes} bytes") from None
        self._finish_if_complete()

    def _finish_if_complete(self) -> None:
        arriving = self.arriving
        if arriving is not None and not arriving.left:
            self.arriving = None
            self._end(arriving)


def _without(views: list[memoryview], count: int) -> list[memoryview]:
    """`views` without their first `count` bytes."""
    rest = []
    for view in views:
        if count < len(view):
            rest.append(view[count:])
        count = max(count - len(view), 0)
    return rest
