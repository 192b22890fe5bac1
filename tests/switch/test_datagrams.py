"""Sockets of datagrams and their addresses."""

import errno
import socket
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("Linux's options", allow_module_level=True)

from collcomp.errors import TransportError
from collcomp.switch.datagrams import (
    Datagrams,
    datagram_nbytes,
    datagram_socket,
    pack_address,
    unpack_address,
)


@pytest.mark.parametrize("address", [("10.0.0.254", 65535), ("127.0.0.1", 0), ("255.0.1.2", 258)])
def test_addresses_survive(address):
    assert unpack_address(pack_address(*address)) == address


def test_a_name_without_an_address_is_told():
    with pytest.raises(TransportError, match=r"'nobody\.invalid'"):
        pack_address("nobody.invalid", 1)


@pytest.mark.parametrize(("capacity", "nbytes", "named"), [(0, 1, "capacity.* 0"), (1, -3, "nbytes.* -3")])
def test_sizes_are_checked(capacity, nbytes, named):
    with pytest.raises(ValueError, match=named):
        Datagrams(capacity, nbytes)


def test_a_taken_port_is_told():
    with datagram_socket("127.0.0.1", 0, 1 << 16) as first:
        port = first.getsockname()[1]
        with pytest.raises(TransportError, match=f"127.0.0.1:{port}"):
            datagram_socket("127.0.0.1", port, 1 << 16)


def test_buffers_are_as_large_as_they_may_be():
    with open("/proc/sys/net/core/rmem_max") as limit:
        most = int(limit.read())
    with datagram_socket("127.0.0.1", 0, 2 * most) as made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) in (2 * most, 4 * most)


def test_the_largest_datagram_fits_and_no_larger_one():
    with datagram_socket("127.0.0.1", 0, 1 << 20) as sender, datagram_socket("127.0.0.1", 0, 1 << 20) as receiver:
        address = receiver.getsockname()
        nbytes = datagram_nbytes(*address)
        receiver.settimeout(30)
        assert sender.sendto(bytes(nbytes), address) == nbytes
        assert receiver.recv(1 << 17) == bytes(nbytes)
        with pytest.raises(OSError, match="long") as error:
            sender.sendto(bytes(nbytes + 1), address)
        assert error.value.errno == errno.EMSGSIZE
