"""Several connections between two ranks, each over a path of its own, and which of them a message takes.

Whole messages are dealt out: there are many, each frame of an operation has a tag of its own, and so a receiver needs
to know nothing of it. Shares follow weights that the user gives. Where there are none, messages wait in one queue until
a path has sent almost all that it had; it then takes the next one, unless a faster path would be through with the whole
queue before that. Rates are what the kernel counts as confirmed. So a path that slows down gets less at once. Source:
Lim et al., "ECF: An MPTCP path scheduler to manage heterogeneous paths", 2017, whose rule this is.

Messages under one tag have to arrive in order. Until the other rank has said that it has seen the last one, the next
one takes the same path.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import math
import os
import socket
import struct
import termios
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from collcomp.transports.stream import MESSAGE, RECEIVED, Outgoing, Stream

__all__ = ["PATHS_VARIABLE", "WEIGHTS_VARIABLE", "Path", "Paths", "configured", "keep_backlog_short", "unsent"]

PATHS_VARIABLE = "COLLCOMP_PATHS"
"""Environment variable: own addresses between commas, one a path, or the networks in which they lie (10.1.0.0/24)."""

WEIGHTS_VARIABLE = "COLLCOMP_PATH_WEIGHTS"
"""Environment variable: shares of the paths between commas, where they are not to be measured."""

RequestT = TypeVar("RequestT")

# A rate is measured over so much that was confirmed, and moves a part of the way to each measurement.
_MEASURED_NBYTES = 1 << 20
_DAMPING = 0.2
# Of a path that was left out for so long beside the others, as that got about, nothing is known any more.
_STALE_S = 1.0
_SIOCGIFCONF, _IFREQ_NBYTES = 0x8912, 40
# What the kernel may hold that it has not sent, for each path.
_BACKLOG_NBYTES = 256 << 10
# What has arrived is confirmed each time that it is so many messages.
_CONFIRMED = 16
# Where bytes that were confirmed (64 bits), and microseconds with some under way (64 bits), lie in Linux's tcp_info.
_INFO_NBYTES, _ACKED, _BUSY = 176, 120, 168


@dataclass(slots=True, eq=False)
class Path(Generic[RequestT]):
    """One connection, and what goes there."""

    number: int
    stream: Stream[RequestT] | None = None
    queue: deque[Outgoing[RequestT]] = field(default_factory=deque)
    #: Whether its socket is watched for room to write.
    watched: bool = False
    #: Whether the other end sends no more, while other paths may.
    ended: bool = False
    #: Bytes of all that was ever queued and not cancelled.
    given: int = 0
    #: Bytes a second, 0 while unknown; when that was measured, and at which counts.
    rate: float = 0.0
    measured_at: float = 0.0
    counts: tuple[int, int] = (0, 0)
    #: Messages that the other rank has not confirmed, oldest first.
    unconfirmed: deque[Outgoing[RequestT]] = field(default_factory=deque)
    #: How many messages were confirmed to the other rank, and by it.
    told: int = 0
    heard: int = 0

    def waiting(self) -> int:
        """Bytes that are not known to have arrived at the other machine."""
        return self.given if self.stream is None else self.given - self.stream.written + unsent(self.stream.sock)

    def measure(self, now: float) -> None:
        """Take what was confirmed since the last time into the rate, if it is enough to tell."""
        if self.stream is None:
            return
        try:
            info = self.stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_NBYTES)
            acked, busy = (struct.unpack_from("Q", info, offset)[0] for offset in (_ACKED, _BUSY))
        except (AttributeError, OSError, struct.error):  # not Linux, or an old one
            return
        nbytes, microseconds = acked - self.counts[0], busy - self.counts[1]
        if nbytes >= _MEASURED_NBYTES and microseconds > 0:
            measured = nbytes / microseconds * 1e6
            self.rate = self.rate + _DAMPING * (measured - self.rate) if self.rate else measured
            self.measured_at = now
            self.counts = acked, busy


class Paths(Generic[RequestT]):
    """All paths to one rank.

    Parameters
    ----------
    count : int
    weights : sequence of float, optional
        Shares of what is sent; measured where not given.
    """

    def __init__(self, count: int, weights: Sequence[float] | None) -> None:
        self.all: list[Path[RequestT]] = [Path(number) for number in range(count)]
        self._weights = weights
        #: Messages that no path has been chosen for.
        self.pending: deque[Outgoing[RequestT]] = deque()
        self._pending_nbytes = 0
        # Tags of messages that are not confirmed: their path, and how many there are.
        self._under_way: dict[int, tuple[Path[RequestT], int]] = {}

    def put(self, outgoing: Outgoing[RequestT], now: float) -> list[Path[RequestT]]:
        """Queue a message; the paths that have got something."""
        if len(self.all) == 1 or outgoing.kind != MESSAGE:
            return [self._give(self.all[0], outgoing)]
        if self._weights is not None:
            shares = zip(self.all, self._weights, strict=True)
            best = min(shares, key=lambda share: (share[0].given + outgoing.nbytes) / share[1])[0]
            return [self._give(self._under_way.get(outgoing.tag, (best, 0))[0], outgoing)]
        self.pending.append(outgoing)
        self._pending_nbytes += outgoing.nbytes
        return self.deal(now)

    def deal(self, now: float) -> list[Path[RequestT]]:
        """Give paths what they are to send next; those that have got something."""
        given: dict[int, Path[RequestT]] = {}
        while self.pending:
            path, _ = self._under_way.get(self.pending[0].tag, (None, 0))
            path = path or self._best(self.pending[0].nbytes, now)
            if path is None:
                break
            outgoing = self.pending.popleft()
            self._pending_nbytes -= outgoing.nbytes
            given[path.number] = self._give(path, outgoing)
        return list(given.values())

    def cancel(self, gone: set[int]) -> None:
        """Take out messages whose requests, by identity, are cancelled; what has begun is sent from a copy."""
        self.pending = deque(outgoing for outgoing in self.pending if id(outgoing.request) not in gone)
        self._pending_nbytes = sum(outgoing.nbytes for outgoing in self.pending)
        for path in self.all:
            kept: deque[Outgoing[RequestT]] = deque()
            for outgoing in path.queue:
                if id(outgoing.request) not in gone or outgoing.begun:
                    kept.append(outgoing)
                else:
                    path.given -= outgoing.nbytes
                    self._forget(path, outgoing)
            if kept and id(kept[0].request) in gone:
                kept[0].detach()
            path.queue = kept

    def take_all(self) -> list[RequestT | None]:
        """Requests of all that waits, taken out."""
        waiting = [*self.pending, *(outgoing for path in self.all for outgoing in path.queue)]
        for queue in (self.pending, *(path.queue for path in self.all)):
            queue.clear()
        return [outgoing.request for outgoing in waiting]

    def flushed(self) -> bool:
        """Whether the kernel has taken all."""
        return not self.pending and not any(path.queue for path in self.all)

    def note(self, path: Path[RequestT]) -> int:
        """Take in what the other rank has confirmed; how many messages are to be confirmed to it now."""
        assert path.stream is not None
        if len(self.all) == 1:
            return 0
        while path.heard < path.stream.confirmed and path.unconfirmed:
            path.heard += 1
            self._settle(path.unconfirmed.popleft().tag)
        new = path.stream.begun - path.told
        if new < _CONFIRMED:
            return 0
        path.told = path.stream.begun
        return new

    def confirm(self, path: Path[RequestT], number: int) -> None:
        """Queue word that so many messages have come by this very path."""
        outgoing: Outgoing[RequestT] = Outgoing.of(RECEIVED, number, b"", None)
        path.queue.append(outgoing)
        path.given += outgoing.nbytes

    def _forget(self, path: Path[RequestT], outgoing: Outgoing[RequestT]) -> None:
        if outgoing in path.unconfirmed:
            path.unconfirmed.remove(outgoing)
            self._settle(outgoing.tag)

    def _settle(self, tag: int) -> None:
        path, number = self._under_way.pop(tag)
        if number > 1:
            self._under_way[tag] = path, number - 1

    def _give(self, path: Path[RequestT], outgoing: Outgoing[RequestT]) -> Path[RequestT]:
        if len(self.all) > 1 and outgoing.kind == MESSAGE:
            self._under_way[outgoing.tag] = path, self._under_way.get(outgoing.tag, (path, 0))[1] + 1
            path.unconfirmed.append(outgoing)
        path.queue.append(outgoing)
        path.given += outgoing.nbytes
        return path

    def _best(self, nbytes: int, now: float) -> Path[RequestT] | None:
        """The path that is to take the next message, of so many bytes; None while it should wait for one."""
        free = [path for path in self.all if path.stream is not None and not path.queue]
        if not free:
            return None
        for path in self.all:
            path.measure(now)
        newest = max(path.measured_at for path in self.all)
        rates = [0.0 if newest - path.measured_at > _STALE_S else path.rate for path in self.all]
        fastest = max(rates) or 1.0

        def through(path: Path[RequestT], nbytes: int) -> float:
            return (path.waiting() + nbytes) / (rates[path.number] or fastest)

        best = min(free, key=lambda path: through(path, nbytes))
        others = [path for path in self.all if path.queue and path.stream is not None]
        if min((through(path, self._pending_nbytes) for path in others), default=math.inf) < through(best, nbytes):
            return None
        return best


def unsent(sock: socket.socket) -> int:
    """Bytes in the kernel that the other machine has not confirmed."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


def keep_backlog_short(sock: socket.socket) -> None:
    """Have the kernel take no more than it sends soon: what it has taken cannot go another way any more."""
    with contextlib.suppress(AttributeError, OSError):  # not Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _BACKLOG_NBYTES)


# ---------------------------------------------------------------------- what the user says


def _own_address(text: str) -> str:
    try:
        if "/" not in text:
            return str(ipaddress.ip_address(text))
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{PATHS_VARIABLE}: {text!r} is neither an address nor a network ({error})") from None
    own = [address for address in _ipv4_addresses() if ipaddress.ip_address(address) in network]
    if len(own) != 1:
        raise ValueError(f"{PATHS_VARIABLE}: this machine has {own or 'no address'} in {text}, not one address")
    return own[0]


def _ipv4_addresses() -> list[str]:
    """Addresses of this machine, also of interfaces that have several, by Linux's SIOCGIFCONF."""
    room = array.array("B", bytes(1 << 16))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("iP", len(room), room.buffer_info()[0])
        nbytes = struct.unpack_from("i", fcntl.ioctl(sock, _SIOCGIFCONF, request))[0]
    return [socket.inet_ntoa(bytes(room[i + 20 : i + 24])) for i in range(0, nbytes, _IFREQ_NBYTES)]


def configured(
    paths: Sequence[str] | None, weights: Sequence[float] | None
) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """Own addresses and weights: what was given, else what the environment says; no address where neither does.

    Raises
    ------
    ValueError
        If the variables cannot be understood, or weights are not one number above 0 for each path.
    """
    if paths is None:
        text = os.environ.get(PATHS_VARIABLE)
        paths = [_own_address(part.strip()) for part in text.split(",")] if text else []
        if weights is None and paths and os.environ.get(WEIGHTS_VARIABLE):
            weights = _numbers(os.environ[WEIGHTS_VARIABLE])
    if weights is None:
        return tuple(paths), None
    if len(weights) != len(paths) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights: {weights} is not one number above 0 for each of {len(paths)} paths")
    return tuple(paths), tuple(weights)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{WEIGHTS_VARIABLE}: {text!r} is not numbers between commas") from None
