"""How processes that share nothing but a key-value store get TCP connections to each other.

Every rank listens, and publishes under its number where, with a secret. Whoever connects shows the secret and says
which rank it is.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from typing import Protocol

from collcomp.errors import TransportError

__all__ = ["Guest", "Listener", "Store", "connect"]

_MAGIC = b"collcmp1"
_SECRET_NBYTES = 16
# What is said first: the magic, the listener's secret, the speaker's rank.
_HELLO = struct.Struct(f"<8s{_SECRET_NBYTES}sI")
_BACKLOG = 1024


class Store(Protocol):
    """Keys and values that all ranks see; `torch.distributed.Store` is one."""

    def set(self, key: str, value: str) -> None:
        """Publish `value`."""

    def get(self, key: str) -> bytes:
        """Wait for `key`, for as long as the store likes, and return its value."""


class Listener:
    """Where other ranks connect.

    Parameters
    ----------
    store : Store
    rank : int
        The key to publish under.
    hosts : sequence of str
        Addresses of this machine, as the other ranks have to write them, one for each connection to a rank.

    Raises
    ------
    TransportError
        One of `hosts` is no address of this machine.
    """

    def __init__(self, store: Store, rank: int, hosts: Sequence[str]) -> None:
        self._secret = secrets.token_bytes(_SECRET_NBYTES)
        self.socks: list[socket.socket] = []
        places = []
        for host in hosts:
            try:
                family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
                sock = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
            except OSError as error:
                self.close()
                raise TransportError(f"host: cannot listen on {host!r}: {error}") from None
            sock.setblocking(False)
            self.socks.append(sock)
            places.append(f"{host}:{sock.getsockname()[1]}")
        self.address = ",".join(places)
        store.set(str(rank), f"{self.address} {self._secret.hex()}")

    def accept(self, number: int) -> Guest | None:
        """One that has connected to the address of this number, if there is any."""
        try:
            sock, _ = self.socks[number].accept()
        except OSError:  # it has gone again
            return None
        sock.setblocking(False)
        return Guest(sock, number, self._secret)

    def close(self) -> None:
        """Listen no more."""
        for sock in self.socks:
            sock.close()


class Guest:
    """One that has connected, and may be a stranger."""

    def __init__(self, sock: socket.socket, number: int, secret: bytes) -> None:
        self.sock = sock
        #: Which of the listener's addresses it came to.
        self.number = number
        self.since = time.monotonic()
        self._secret = secret
        self._hello = b""

    def read(self) -> int | None:
        """The rank that it is; None while it has not said all.

        Raises
        ------
        OSError
            It is none, or has gone.
        """
        try:
            heard = self.sock.recv(_HELLO.size - len(self._hello))
        except BlockingIOError:
            return None
        if not heard:
            raise ConnectionResetError
        self._hello += heard
        if len(self._hello) < _HELLO.size:
            return None
        magic, secret, rank = _HELLO.unpack(self._hello)
        if magic != _MAGIC or not hmac.compare_digest(secret, self._secret):
            raise ConnectionRefusedError
        return rank


def connect(
    store: Store, rank: int, dest: int, timeout: float, sources: Sequence[str | None] = (None,)
) -> list[socket.socket]:
    """Connect `rank` to each address of the listener of `dest`, which need not have published yet.

    Parameters
    ----------
    store : Store
    rank, dest : int
    timeout : float
        Seconds, for each connection.
    sources : sequence of str or None
        Own addresses to connect from; None leaves it to the kernel.

    Raises
    ------
    TransportError
        `dest` has published nothing in the store's own time, has more or fewer addresses, or cannot be reached within
        `timeout` seconds.
    """
    try:
        addresses, secret = bytes(store.get(str(dest))).decode().split(" ")
    except Exception as error:  # each store has errors of its own
        raise TransportError(f"no address in the store: {error}") from error
    places = addresses.split(",")
    if len(places) != len(sources):
        raise TransportError(f"it has {len(places)} paths ({addresses}), rank {rank} has {len(sources)}")
    socks: list[socket.socket] = []
    for address, source in zip(places, sources, strict=True):
        host, _, port = address.rpartition(":")
        try:
            own = None if source is None else (source, 0)
            sock = socket.create_connection((host, int(port)), timeout, own)
            socks.append(sock)
            sock.sendall(_HELLO.pack(_MAGIC, bytes.fromhex(secret), rank))
        except OSError as error:
            for sock in socks:
                sock.close()
            by = "" if source is None else f" from {source}"
            raise TransportError(f"cannot connect to {address}{by}: {error}") from error
        sock.setblocking(False)
    return socks
