"""Bytes over TCP connections between processes that share a key-value store; no MPI needed."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from collcomp.errors import CollcompError, FrameError, TransportError
from collcomp.transports.base import Request, Transport
from collcomp.transports.bootstrap import Guest, Listener, Store, connect
from collcomp.transports.matching import ANY, Matching
from collcomp.transports.paths import Path, Paths, configured, keep_backlog_short, unsent
from collcomp.transports.queues import RoutedRequest
from collcomp.transports.stream import MESSAGE, NOTICE, Arriving, EndOfStreamError, Outgoing, Stream

__all__ = ["Store", "TcpTransport"]

DoneT = TypeVar("DoneT")
_Action = Callable[[], object]

# The sequence of a notice that is for all.
_ALL = -1
_NOTICE_NBYTES = 1000
# How often one that waits for ranks to connect looks at the clock, and one that closes at what has left.
_LOOK_S = 0.1
_CLOSING_LOOK_S = 0.01
# How long closing may take, and how long some paths to a rank may stay open when others have ended.
_CLOSING_S = 5.0
_ENDING_S = 5.0
# Over several paths: small enough to be dealt out evenly.
_SEGMENT_OF_PATHS = (64 << 10, 256 << 10)


@dataclass(slots=True, eq=False)
class _Peer:
    """Another rank, and the connections to it."""

    rank: int
    paths: Paths[RoutedRequest]
    #: Whether this rank needs it, and since when it has waited for its connections.
    needed: bool = False
    since: float | None = None
    #: Since when some of its paths have ended while others have not.
    ending: float | None = None
    #: Why there is no connection any more.
    lost: str | None = None

    @property
    def stream(self) -> Stream[RoutedRequest] | None:
        """The first of its connections."""
        return self.paths.all[0].stream

    @property
    def connected(self) -> bool:
        """Whether all its connections are there."""
        return all(path.stream is not None for path in self.paths.all)


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
    paths : sequence of str, optional
        Addresses of this machine, in place of `host`, as many as on the other ranks: there is one connection from each
        to the other rank's of the same number, and messages are dealt out to them. By default what the environment
        variable ``COLLCOMP_PATHS`` says: addresses, or networks in which they lie, such as ``10.1.0.0/24,10.2.0.0/24``.
    weights : sequence of float, optional
        Shares of the paths; by default what ``COLLCOMP_PATH_WEIGHTS`` says, else messages take the path on which they
        are through first, as this rank measures it all the time.

    Raises
    ------
    TransportError
        `host`, or one of `paths`, is no address of this machine.
    ValueError
        `paths` or `weights` cannot be.

    Notes
    -----
    Over several paths, messages under different tags may overtake each other, which matters to receives of any tag.
    """

    # Constants, because all ranks have to cut alike before they are connected. 16 MiB int8 on 4 ranks: over loopback
    # 64 ms in pieces of 256 KiB, 33 of 1 MiB, 32 of 2 MiB, 28 of 4 MiB; at 200 Mbit/s all between 1.05 and 1.12 of the
    # wire bound, none reliably better than another.
    segment_nbytes = (2 << 20, 4 << 20)
    window: float = 3

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        host: str,
        timeout: float,
        paths: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"size: {size} ranks are too few")
        if not 0 <= rank < size:
            raise ValueError(f"rank: {rank} is none of {size}")
        if not timeout > 0:
            raise ValueError(f"timeout: {timeout} seconds are too few")
        paths, weights = configured(paths, weights)
        count = len(paths) or 1
        if count > 1:
            self.segment_nbytes = _SEGMENT_OF_PATHS
            self.window *= count
        self.rank = rank
        self.size = size
        self._sources: Sequence[str | None] = paths or (None,)
        self._store = store
        self._timeout = timeout
        # Guards all that follows. One thread at a time drives the sockets: it lets go of the lock while it waits for
        # them, and the others wait for it to find something, or to leave.
        self._changed = threading.Condition(threading.Lock())
        self._driving = False
        self._connected = False
        self._closed = False
        self._parting = False
        self._peers = [_Peer(other, Paths(count, weights)) for other in range(size)]
        self._others = [peer for peer in self._peers if peer.rank != rank]
        self._receives: Matching[RoutedRequest] = Matching()
        self._arrivals: Matching[Arriving[RoutedRequest]] = Matching()
        self._notices: dict[int, tuple[int, str]] = {}
        self._left: tuple[int, str] | None = None
        self._guests: list[Guest] = []
        self._listener = Listener(store, rank, paths or (host,)) if rank < size - 1 else None
        self._selector = selectors.DefaultSelector()
        self._bell, self._bell_rope = socket.socketpair()
        for sock in (self._bell, self._bell_rope):
            sock.setblocking(False)
        self._watch(self._bell, lambda: self._bell.recv(4096))
        if self._listener is not None:
            for number, sock in enumerate(self._listener.socks):
                self._watch(sock, partial(self._accept, number))

    @property
    def path_nbytes(self) -> tuple[int, ...]:
        """Bytes given to each path so far, headers of messages included."""
        with self._changed:
            columns = zip(*(peer.paths.all for peer in self._peers), strict=True)
            return tuple(sum(path.given for path in column) for column in columns)

    # ------------------------------------------------------------------ what a transport does

    def isend(self, buf: np.ndarray, dest: int, tag: int) -> Request:
        peer = self._peer("dest", dest)
        if tag < 0:
            raise ValueError(f"tag: {tag} is negative")
        send = RoutedRequest(buf, self.rank, tag)
        with self._changed:
            self._connect()
            if not self._need(peer, send, sends=True):
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
                peer.paths.cancel(gone)
                for path in peer.paths.all:
                    arriving = path.stream.arriving if path.stream is not None else None
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
        return all(peer.paths.flushed() for peer in self._others)

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
            for path in peer.paths.put(outgoing, time.monotonic()):
                if not path.watched:
                    self._write(peer, path)

    def _write(self, peer: _Peer, path: Path[RoutedRequest]) -> None:
        if path.stream is None or path.ended:
            return
        try:
            for request in path.stream.write(path.queue):
                self._settle(request)
        except OSError as error:
            # What the other has said before it went is still there to be read.
            while peer.lost is None and any(self._read(peer, other) for other in peer.paths.all):
                pass
            self._lose(peer, f"connection closed: {error}")
            return
        if path.watched != bool(path.queue):
            path.watched = bool(path.queue)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if path.watched else 0)
            self._selector.modify(path.stream.sock, events, self._selector.get_key(path.stream.sock).data)
        if peer.paths.pending:
            for other in peer.paths.deal(time.monotonic()):
                if not other.watched:
                    self._write(peer, other)

    def _read(self, peer: _Peer, path: Path[RoutedRequest]) -> bool:
        if path.stream is None or path.ended:
            return False
        try:
            more = path.stream.read()
        except EndOfStreamError as error:
            self._end_path(peer, path, str(error))
            return False
        except OSError as error:
            self._lose(peer, f"connection closed: {error}")
            return False
        number = peer.paths.note(path)
        if number and not self._parting:
            peer.paths.confirm(path, number)
            if not path.watched:
                self._write(peer, path)
        return more

    def _end_path(self, peer: _Peer, path: Path[RoutedRequest], why: str) -> None:
        """The rank sends no more by this path; what it has sent by the others may be on its way."""
        assert path.stream is not None
        path.ended = True
        self._selector.unregister(path.stream.sock)
        if all(other.ended for other in peer.paths.all):
            self._lose(peer, f"connection closed: {why}")
        elif peer.ending is None:
            peer.ending = time.monotonic()

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
                socks = connect(self._store, self.rank, peer.rank, self._timeout, self._sources)
            except TransportError as error:
                self._lose(peer, str(error))
            else:
                for path, sock in zip(peer.paths.all, socks, strict=True):
                    self._join(peer, path, sock)

    def _join(self, peer: _Peer, path: Path[RoutedRequest], sock: socket.socket) -> None:
        if len(peer.paths.all) > 1:
            keep_backlog_short(sock)
        path.stream = Stream(sock, peer.rank, self._begin, self._end)
        self._watch(sock, partial(self._read, peer, path), partial(self._write, peer, path))
        self._write(peer, path)

    def _accept(self, number: int) -> None:
        while self._listener is not None and (guest := self._listener.accept(number)) is not None:
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
        path = None if peer is None or peer.lost is not None else peer.paths.all[guest.number]
        if peer is None or path is None or path.stream is not None:
            self._dismiss(guest)
            return
        self._guests.remove(guest)
        self._selector.unregister(guest.sock)
        self._join(peer, path, guest.sock)
        self._stop_listening_if_complete()

    def _dismiss(self, guest: Guest) -> None:
        self._guests.remove(guest)
        self._selector.unregister(guest.sock)
        guest.sock.close()

    def _stop_listening_if_complete(self) -> None:
        if not all(peer.connected or peer.lost is not None for peer in self._others):
            return
        for guest in list(self._guests):
            self._dismiss(guest)
        if self._listener is not None:
            for sock in self._listener.socks:
                self._selector.unregister(sock)
            self._listener.close()
            self._listener = None

    def _need(self, peer: _Peer, request: RoutedRequest, sends: bool = False) -> bool:
        """Whether `peer` is not lost; the request fails if it is. From now on it has to connect in time."""
        lost = peer.lost
        if lost is None and sends and peer.ending is not None:
            lost = "connection closed by its end"
        if lost is not None:
            self._settle(request, TransportError(f"rank {peer.rank}: {lost}"))
            return False
        peer.needed = True
        return True

    def _awaits(self) -> bool:
        """Whether time makes a rank lost: one that is needed and has not connected, or has ended some of its paths."""
        now = time.monotonic()
        here = [peer for peer in self._others if peer.lost is None]
        awaited = [peer for peer in here if peer.needed and not peer.connected]
        for peer in awaited:
            peer.since = now if peer.since is None else peer.since
            if now - peer.since > self._timeout:
                where = "" if self._listener is None else self._listener.address
                self._lose(peer, f"has not connected to {where} within {self._timeout:g} s")
        ending = [peer for peer in here if peer.ending is not None]
        for peer in ending:
            assert peer.ending is not None
            if now - peer.ending > _ENDING_S:
                ended = [self._sources[path.number] for path in peer.paths.all if path.ended]
                self._lose(peer, f"connection closed, of path {', '.join(map(str, ended))} alone")
        return bool(awaited or ending)

    def _lose(self, peer: _Peer, why: str) -> None:
        """Fail all that needs `peer`."""
        if peer.lost is not None:
            return
        peer.lost = why
        requests = peer.paths.take_all()
        for path in peer.paths.all:
            if path.stream is not None:
                if not path.ended:
                    self._selector.unregister(path.stream.sock)
                path.stream.sock.close()
                arriving = path.stream.arriving
                path.stream = None
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
        self._parting = True
        for stream in self._streams():
            with contextlib.suppress(OSError):  # it has gone already
                stream.sock.shutdown(socket.SHUT_WR)
        end = time.monotonic() + _CLOSING_S
        while time.monotonic() < end and any(unsent(stream.sock) for stream in self._streams()):
            self._wait(lambda: False, _CLOSING_LOOK_S)

    def _streams(self) -> list[Stream[RoutedRequest]]:
        paths = [path for peer in self._others for path in peer.paths.all]
        return [path.stream for path in paths if path.stream is not None]


def _complete(requests: Sequence[Request]) -> list[int]:
    return [i for i, request in enumerate(requests) if request.complete]  # type: ignore[attr-defined]
