"""Bytes over TCP connections between processes that share a key-value store; no MPI needed."""

from __future__ import annotations

import contextlib
import fcntl
import selectors
import socket
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from collcomp.errors import CollcompError, FrameError, TransportError
from collcomp.transports.base import Request, Transport
from collcomp.transports.bootstrap import Guest, Listener, Store, connect
from collcomp.transports.matching import ANY, Matching
from collcomp.transports.queues import RoutedRequest
from collcomp.transports.stream import MESSAGE, NOTICE, Arriving, Outgoing, Stream

__all__ = ["Store", "TcpTransport"]

DoneT = TypeVar("DoneT")
_Action = Callable[[], object]

# The sequence of a notice that is for all.
_ALL = -1
_NOTICE_NBYTES = 1000
# How often one that waits for ranks to connect looks at the clock, and one that closes at what has left.
_LOOK_S = 0.1
_CLOSING_LOOK_S = 0.01
# How long closing may take.
_CLOSING_S = 5.0


@dataclass(slots=True, eq=False)
class _Peer:
    """Another rank, and what goes there."""

    rank: int
    stream: Stream[RoutedRequest] | None = None
    queue: deque[Outgoing[RoutedRequest]] = field(default_factory=deque)
    #: Whether its socket is watched for room to write.
    watched: bool = False
    #: Whether this rank needs it, and since when it has waited for its connection.
    needed: bool = False
    since: float | None = None
    #: Why there is no connection any more.
    lost: str | None = None


class TcpTransport(Transport):
    """The ranks that publish in one store, connected when one first needs them: the higher connects to the lower.

    There is no thread: bytes move while a rank sends, receives or waits. Connecting waits for the lower ranks to be
    constructed. `irecv` takes -1 as `source` and as `tag` for any.

    Parameters
    ----------
    store : Store
        Its keys are the ranks' numbers: each transport needs a store, or a prefix, of its own.
    rank, size : int
    host : str
        Address of this machine that the other ranks can reach.
    timeout : float
        Seconds within which a rank that is needed has to connect.

    Raises
    ------
    TransportError
        `host` is no address of this machine.
    """

    # Constants, because all ranks have to cut alike before they are connected. 16 MiB int8 on 4 ranks: over loopback
    # 64 ms in pieces of 256 KiB, 33 of 1 MiB, 32 of 2 MiB, 28 of 4 MiB; at 200 Mbit/s all between 1.05 and 1.12 of the
    # wire bound, none reliably better than another.
    segment_nbytes = (2 << 20, 4 << 20)
    window: float = 3

    def __init__(self, store: Store, rank: int, size: int, *, host: str, timeout: float) -> None:
        if size < 1:
            raise ValueError(f"size: {size} ranks are too few")
        if not 0 <= rank < size:
            raise ValueError(f"rank: {rank} is none of {size}")
        if not timeout > 0:
            raise ValueError(f"timeout: {timeout} seconds are too few")
        self.rank = rank
        self.size = size
        self._store = store
        self._timeout = timeout
        # Guards all that follows. One thread at a time drives the sockets: it lets go of the lock while it waits for
        # them, and the others wait for it to find something, or to leave.
        self._changed = threading.Condition(threading.Lock())
        self._driving = False
        self._connected = False
        self._closed = False
        self._peers = [_Peer(other) for other in range(size)]
        self._others = [peer for peer in self._peers if peer.rank != rank]
        self._receives: Matching[RoutedRequest] = Matching()
        self._arrivals: Matching[Arriving[RoutedRequest]] = Matching()
        self._notices: dict[int, tuple[int, str]] = {}
        self._left: tuple[int, str] | None = None
        self._guests: list[Guest] = []
        self._listener = Listener(store, rank, host) if rank < size - 1 else None
        self._selector = selectors.DefaultSelector()
        self._bell, self._bell_rope = socket.socketpair()
        for sock in (self._bell, self._bell_rope):
            sock.setblocking(False)
        self._watch(self._bell, lambda: self._bell.recv(4096))
        if self._listener is not None:
            self._watch(self._listener.sock, self._accept)

    # ------------------------------------------------------------------ what a transport does

    def isend(self, buf: np.ndarray, dest: int, tag: int) -> Request:
        peer = self._peer("dest", dest)
        if tag < 0:
            raise ValueError(f"tag: {tag} is negative")
        send = RoutedRequest(buf, self.rank, tag)
        with self._changed:
            self._connect()
            if not self._need(peer, send):
                return send
            if dest == self.rank:
                message: Arriving[RoutedRequest] = Arriving(MESSAGE, dest, tag, buf.size, buf.size)
                self._begin(message)
                if message.memory is not None:
                    message.memory[...] = buf
                message.left = 0
                self._end(message)
                send.complete = True
            else:
                self._send(peer, Outgoing.of(MESSAGE, tag, buf, send))
        return send

    def irecv(self, buf: np.ndarray, source: int, tag: int) -> Request:
        peer = None if source == ANY else self._peer("source", source)
        receive = RoutedRequest(buf, source, tag)
        with self._changed:
            self._connect()
            message = self._arrivals.take(source, tag)
            if message is not None:
                message.request = receive
                if not message.left:
                    self._end(message)
            elif peer is None or self._need(peer, receive):
                self._receives.put(source, tag, receive)
                self._end_wildcards()
        return receive

    def wait_some(self, requests: Sequence[Request], timeout: float) -> list[int]:
        with self._changed:
            self._connect()
            done = self._wait(lambda: _complete(requests), timeout, bool(requests))
        for i in done:
            error = requests[i].error  # type: ignore[attr-defined]
            if error is not None:
                raise error
        return done

    def cancel(self, requests: Sequence[Request]) -> None:
        gone = {id(request) for request in requests}
        with self._changed:
            for request in requests:
                if not request.complete:  # type: ignore[attr-defined]
                    self._receives.remove(request.source, request.tag, request)  # type: ignore[arg-type]
            for peer in self._others:
                kept = deque(out for out in peer.queue if out.begun or id(out.request) not in gone)
                if kept and id(kept[0].request) in gone:
                    kept[0].detach()
                peer.queue = kept
                arriving = peer.stream.arriving if peer.stream is not None else None
                if arriving is not None and id(arriving.request) in gone:
                    arriving.request = arriving.memory = None

    def notify(self, sequence: int, text: str) -> None:
        message = text.encode()[:_NOTICE_NBYTES]
        with self._changed:
            self._connect()
            for peer in self._others:
                self._send(peer, Outgoing.of(NOTICE, sequence, message, None))
            self._progress()
            unsent = not self._flushed()
        if unsent:  # behind a message that had begun; this rank may not come back to its sockets
            threading.Thread(target=self._flush, args=(self._timeout,), name="collcomp-flush", daemon=True).start()

    def notice(self, sequence: int) -> tuple[int, str] | None:
        with self._changed:
            self._connect()
            self._progress()
            return self._notices.pop(sequence, None) or self._left

    def leave(self, text: str) -> None:
        self.notify(_ALL, text)

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._wait(self._flushed, _CLOSING_S)
            self._part()
            self._closed = self._connected = True
            for peer in self._peers:
                self._lose(peer, "this rank has closed its transport")
            self._end_wildcards()
            while self._driving:
                self._ring()
                self._changed.wait(_LOOK_S)
            self._selector.close()
            self._bell.close()
            self._bell_rope.close()

    def _flush(self, timeout: float) -> None:
        with self._changed:
            self._wait(self._flushed, timeout)

    # ------------------------------------------------------------------ progress; all of this holds the lock

    def _flushed(self) -> bool:
        return not any(peer.queue for peer in self._others)

    def _wait(self, done: Callable[[], DoneT], timeout: float, wanted: bool = True) -> DoneT:
        """Drive the sockets, or wait for who does, until `done` finds something or `timeout` is over."""
        end = time.monotonic() + timeout
        looked = False  # all that waits at the sockets is taken in once, whatever is done already
        try:
            while True:
                found = done()
                remaining = end - time.monotonic() if wanted and not found else 0.0
                if self._closed or (remaining <= 0 and looked):
                    return found
                if not looked or self._awaits():
                    remaining = min(remaining, _LOOK_S)
                if not self._driving:
                    self._drive(max(remaining, 0.0))
                elif remaining > 0:
                    self._changed.wait(remaining)
                looked = True
        finally:
            self._changed.notify()  # one of those who wait takes over

    def _progress(self) -> None:
        """Take in what waits at the sockets."""
        self._wait(lambda: True, 0.0)

    def _drive(self, timeout: float) -> None:
        self._driving = True
        self._changed.release()
        try:
            events = self._selector.select(timeout)
        finally:
            self._changed.acquire()
            self._driving = False
        for key, mask in events:
            read, write = key.data
            if mask & selectors.EVENT_READ:
                read()
            if mask & selectors.EVENT_WRITE:
                write()

    def _settle(self, request: RoutedRequest, error: CollcompError | None = None) -> None:
        request.error = error
        request.complete = True
        self._changed.notify_all()
        if self._driving:  # another thread, which may wait for this request
            self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it rings already
            self._bell_rope.send(b"\0")

    def _watch(self, sock: socket.socket, read: _Action, write: _Action | None = None) -> None:
        self._selector.register(sock, selectors.EVENT_READ, (read, write))

    # ------------------------------------------------------------------ messages

    def _send(self, peer: _Peer, outgoing: Outgoing[RoutedRequest]) -> None:
        if peer.lost is None:
            peer.queue.append(outgoing)
            if not peer.watched:
                self._write(peer)

    def _write(self, peer: _Peer) -> None:
        if peer.stream is None:
            return
        try:
            for request in peer.stream.write(peer.queue):
                self._settle(request)
        except OSError as error:
            # What the other has said before it went is still there to be read.
            while peer.lost is None and self._read(peer):
                pass
            self._lose(peer, f"connection closed: {error}")
            return
        if peer.watched != bool(peer.queue):
            peer.watched = bool(peer.queue)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.watched else 0)
            self._selector.modify(peer.stream.sock, events, self._selector.get_key(peer.stream.sock).data)

    def _read(self, peer: _Peer) -> bool:
        if peer.stream is None:
            return False
        try:
            return peer.stream.read()
        except OSError as error:
            self._lose(peer, f"connection closed: {error}")
            return False

    def _begin(self, message: Arriving[RoutedRequest]) -> None:
        """A header is there: say where the rest goes."""
        if message.kind == MESSAGE:
            message.request = self._receives.take(message.source, message.tag)
        request = message.request
        if request is None:
            message.memory = np.empty(message.nbytes, np.uint8)
            if message.kind == MESSAGE:
                self._arrivals.put(message.source, message.tag, message)
        elif message.nbytes <= request.data.size:
            message.memory = request.data = request.data[: message.nbytes]

    def _end(self, message: Arriving[RoutedRequest]) -> None:
        """All of a message is there."""
        if message.kind == NOTICE:
            assert message.memory is not None
            notice = (message.source, message.memory.tobytes().decode(errors="replace"))
            if message.tag == _ALL:
                self._left = self._left or notice
            else:
                self._notices[message.tag] = notice
        elif message.request is not None:
            self._deliver(message, message.request)

    def _deliver(self, message: Arriving[RoutedRequest], request: RoutedRequest) -> None:
        """Complete `request`, whose message is there."""
        request.source, request.tag = message.source, message.tag
        if message.nbytes > request.data.size:
            text = f"{message.nbytes} bytes arrived from rank {message.source}, at most {request.data.size} fit"
            self._settle(request, FrameError(f"frame: {text}"))
            return
        if request.data is not message.memory:
            request.data = request.data[: message.nbytes]
            request.data[...] = message.memory
        self._settle(request)

    # ------------------------------------------------------------------ connections

    def _peer(self, name: str, rank: int) -> _Peer:
        if not 0 <= rank < self.size:
            raise ValueError(f"{name}: {rank} is none of {self.size} ranks")
        return self._peers[rank]

    def _connect(self) -> None:
        """Connect to all lower ranks; the higher ones do the same."""
        if self._connected:
            return
        self._connected = True
        for peer in self._peers[: self.rank]:
            try:
                self._join(peer, connect(self._store, self.rank, peer.rank, self._timeout))
            except TransportError as error:
                self._lose(peer, str(error))

    def _join(self, peer: _Peer, sock: socket.socket) -> None:
        peer.stream = Stream(sock, peer.rank, self._begin, self._end)
        self._watch(sock, partial(self._read, peer), partial(self._write, peer))
        self._write(peer)

    def _accept(self) -> None:
        while self._listener is not None and (guest := self._listener.accept()) is not None:
            for other in [other for other in self._guests if guest.since - other.since > self._timeout]:
                self._dismiss(other)
            self._guests.append(guest)
            self._watch(guest.sock, partial(self._greet, guest))
            self._greet(guest)

    def _greet(self, guest: Guest) -> None:
        if guest not in self._guests:
            return
        try:
            rank = guest.read()
        except OSError:
            self._dismiss(guest)
            return
        if rank is None:
            return
        peer = self._peers[rank] if self.rank < rank < self.size else None
        if peer is None or peer.stream is not None or peer.lost is not None:
            self._dismiss(guest)
            return
        self._guests.remove(guest)
        self._selector.unregister(guest.sock)
        self._join(peer, guest.sock)
        self._stop_listening_if_complete()

    def _dismiss(self, guest: Guest) -> None:
        self._guests.remove(guest)
        self._selector.unregister(guest.sock)
        guest.sock.close()

    def _stop_listening_if_complete(self) -> None:
        if not all(peer.stream is not None or peer.lost is not None for peer in self._others):
            return
        for guest in list(self._guests):
            self._dismiss(guest)
        if self._listener is not None:
            self._selector.unregister(self._listener.sock)
            self._listener.close()
            self._listener = None

    def _need(self, peer: _Peer, request: RoutedRequest) -> bool:
        """Whether `peer` is not lost; the request fails if it is. From now on it has to connect in time."""
        if peer.lost is not None:
            self._settle(request, TransportError(f"rank {peer.rank}: {peer.lost}"))
            return False
        peer.needed = True
        return True

    def _awaits(self) -> bool:
        """Whether a rank is needed that has not connected; one for which that took too long is lost."""
        now = time.monotonic()
        awaited = [peer for peer in self._others if peer.needed and peer.stream is None and peer.lost is None]
        for peer in awaited:
            peer.since = now if peer.since is None else peer.since
            if now - peer.since > self._timeout:
                where = "" if self._listener is None else self._listener.address
                self._lose(peer, f"has not connected to {where} within {self._timeout:g} s")
        return bool(awaited)

    def _lose(self, peer: _Peer, why: str) -> None:
        """Fail all that needs `peer`."""
        if peer.lost is not None:
            return
        peer.lost = why
        requests = [outgoing.request for outgoing in peer.queue]
        peer.queue.clear()
        if peer.stream is not None:
            self._selector.unregister(peer.stream.sock)
            peer.stream.sock.close()
            arriving = peer.stream.arriving
            peer.stream = None
            if arriving is not None:
                requests.append(arriving.request)
                self._arrivals.remove(peer.rank, arriving.tag, arriving)
        requests += self._receives.take_all(peer.rank)
        self._fail(requests, f"rank {peer.rank}: {why}")
        self._end_wildcards()
        self._stop_listening_if_complete()

    def _end_wildcards(self) -> None:
        """Fail what any rank could have sent, when all others have gone."""
        if (self._others or self._closed) and all(peer.lost is not None for peer in self._others):
            self._fail(self._receives.take_all(ANY), "all other ranks: connections closed")

    def _fail(self, requests: Iterable[RoutedRequest | None], text: str) -> None:
        for request in requests:
            if request is not None:
                self._settle(request, TransportError(text))

    def _part(self) -> None:
        """Say that no more will come, and wait until all that was said has arrived.

        A socket that is closed while something lies there to be read takes back what it has not sent.
        """
        for peer in self._others:
            if peer.stream is not None:
                with contextlib.suppress(OSError):  # it has gone already
                    peer.stream.sock.shutdown(socket.SHUT_WR)
        end = time.monotonic() + _CLOSING_S
        while time.monotonic() < end and any(map(_unsent, self._others)):
            self._wait(lambda: False, _CLOSING_LOOK_S)


def _complete(requests: Sequence[Request]) -> list[int]:
    return [i for i, request in enumerate(requests) if request.complete]  # type: ignore[attr-defined]


def _unsent(peer: _Peer) -> int:
    """Bytes that the other machine has not confirmed."""
    if peer.stream is None:
        return 0
    return struct.unpack("i", fcntl.ioctl(peer.stream.sock, termios.TIOCOUTQ, bytes(4)))[0]
