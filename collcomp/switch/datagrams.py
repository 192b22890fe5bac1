"""Sockets of datagrams, and memory that batches of datagrams are received into and sent from."""

from __future__ import annotations

import socket
import struct

import numpy as np
from numpy.typing import NDArray

from collcomp.errors import TransportError

__all__ = ["SOCKADDR_NBYTES", "Datagrams", "datagram_nbytes", "datagram_socket", "pack_address", "unpack_address"]

SOCKADDR_NBYTES = 16
"""Bytes of a `struct sockaddr_in`."""

_HEADERS_NBYTES = 20 + 8  # IPv4 and UDP

# Linux's numbers, which Python has no names for, or not in every version.
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO, _IP_MTU = 10, 2, 14


class Datagrams:
    """Memory for a batch of datagrams, and the lists that the kernel of the operating system reads them from.

    As made, the messages are ready to be received into: message ``i`` fills ``buffers[i]`` and ``names[i]``, and sends
    back from there. `collcomp.kernels.cpu.udp` receives, sends, and has messages point elsewhere.

    Parameters
    ----------
    capacity : int
        Number of datagrams, 1 or more.
    nbytes : int
        Bytes of each buffer, 1 or more: longer datagrams are truncated.

    Attributes
    ----------
    buffers : ndarray of uint8, shape (capacity, nbytes)
        What was received, or memory for headers.
    names : ndarray of uint8, shape (capacity, 16)
        IPv4 senders, as `pack_address` has them. Their first 8 bytes tell senders apart.
    iovecs : ndarray of int64, shape (capacity, 2, 2)
        ``struct iovec`` of the two parts of each message. Addresses: the object has to outlive their use.
    messages : ndarray of int64, shape (capacity, 8)
        ``struct mmsghdr`` of each message; addresses, too.

    Raises
    ------
    ValueError
        If a number is below 1.
    """

    def __init__(self, capacity: int, nbytes: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be 1 or more, not {capacity}")
        if nbytes < 1:
            raise ValueError(f"nbytes must be 1 or more, not {nbytes}")
        self.buffers = np.zeros((capacity, nbytes), np.uint8)
        self.names = np.zeros((capacity, SOCKADDR_NBYTES), np.uint8)
        self.iovecs = np.zeros((capacity, 2, 2), np.int64)
        self.messages = np.zeros((capacity, 8), np.int64)
        self.iovecs[:, 0, 0] = _row_addresses(self.buffers)
        self.iovecs[:, 0, 1] = nbytes
        self.messages[:, 0] = _row_addresses(self.names)
        self.messages[:, 1] = SOCKADDR_NBYTES
        self.messages[:, 2] = _row_addresses(self.iovecs)
        self.messages[:, 3] = 1

    def received(self, i: int) -> NDArray[np.uint8]:
        """Bytes of datagram `i`."""
        return self.buffers[i, : min(int(self.messages[i, 7]), self.buffers.shape[1])]


def _row_addresses(array: NDArray) -> NDArray[np.int64]:
    return array.ctypes.data + np.arange(len(array), dtype=np.int64) * array.strides[0]


def pack_address(host: str, port: int) -> NDArray[np.uint8]:
    """Socket address as the operating system's kernel has it, a ``struct sockaddr_in``.

    Parameters
    ----------
    host : str
        Name or IPv4 address.
    port : int
        0 to 65535.

    Returns
    -------
    ndarray of uint8, shape (16,)

    Raises
    ------
    TransportError
        If the host has no IPv4 address.
    """
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
    except OSError as error:
        raise TransportError(f"no IPv4 address of {host!r}: {error.strerror}") from None
    data = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(str(found[0])) + bytes(8)
    return np.frombuffer(data, np.uint8).copy()


def unpack_address(name: NDArray[np.uint8]) -> tuple[str, int]:
    """Host and port in a ``struct sockaddr_in``, the contrary of `pack_address`."""
    return socket.inet_ntoa(name[4:8].tobytes()), int.from_bytes(name[2:4].tobytes(), "big")


def datagram_socket(host: str, port: int, buffer_nbytes: int) -> socket.socket:
    """IPv4 UDP socket with large buffers, whose datagrams are never fragmented.

    A datagram that does not fit one packet is refused by EMSGSIZE rather than sent in pieces, of which one that is
    lost would cost all.

    Parameters
    ----------
    host : str
        Address to listen on; "" for all.
    port : int
        Port to listen on; 0 for one that is free.
    buffer_nbytes : int
        Bytes of each of the socket's two buffers. Where this process may not have that much, it gets as much as it may
        (``net.core.rmem_max`` and ``wmem_max``).

    Returns
    -------
    socket.socket

    Raises
    ------
    TransportError
        If the address is not one of this machine, or the port is taken.

    Notes
    -----
    What comes while the receiving buffer is full is lost. Linux allows for twice `buffer_nbytes` and counts its own
    memory for each datagram: 13 to 17 KiB for one of 8 KiB, 1 KiB for a small one. What leaves while the sending buffer
    is full waits; what does not fit the queue of the interface is lost, so that a sending buffer smaller than this
    queue paces the sender.
    """
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        for force, option in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            _set_buffer(made, force, option, buffer_nbytes)
        made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise TransportError(f"cannot listen on {host}:{port} (UDP): {error.strerror}") from None
    return made


def _set_buffer(made: socket.socket, force: int, option: int, nbytes: int) -> None:
    try:
        made.setsockopt(socket.SOL_SOCKET, force, nbytes)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, option, nbytes)  # capped by the system


def datagram_nbytes(host: str, port: int) -> int:
    """Largest payload of one UDP datagram to an address that needs no fragmentation, as far as this machine knows.

    Parameters
    ----------
    host : str
        Name or IPv4 address.
    port : int
        Any port of it.

    Returns
    -------
    int
        Bytes: the path's MTU less 28 for the headers of IPv4 and UDP.

    Raises
    ------
    TransportError
        If there is no route to it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))  # sends nothing
        except OSError as error:
            raise TransportError(f"no route to {host}:{port}: {error.strerror}") from None
        return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU) - _HEADERS_NBYTES
