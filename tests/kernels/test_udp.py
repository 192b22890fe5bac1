"""Batches of datagrams over loopback, and over pairs of local sockets, whose buffers fill up."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("Linux's calls", allow_module_level=True)

from collcomp.kernels.cpu import udp
from collcomp.switch.datagrams import Datagrams, datagram_socket, pack_address, unpack_address

PATIENCE_S = 30
HEAD_NBYTES = 16


@pytest.fixture
def sockets():
    pair = [datagram_socket("127.0.0.1", 0, 1 << 20) for _ in range(2)]
    yield pair
    for made in pair:
        made.close()


@pytest.fixture
def tight_pair():
    """Two ends whose buffers hold few datagrams; over loopback UDP drops them instead."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    yield ends
    for end in ends:
        end.close()


@numba.njit
def point_at(iovecs, messages, names, heads, body, nbytes):
    """Let message i be its header and the i-th part of a user's array."""
    for i in range(messages.shape[0]):
        part = body[i * nbytes : (i + 1) * nbytes]
        udp.set_message(
            iovecs, messages, i, udp.address(names), udp.address(heads[i]), heads.shape[1], udp.address(part), part.size
        )


def two_part_messages(body, nbytes, name):
    """Messages that have a number as header, to `name`."""
    made = Datagrams(-(-body.size // nbytes), HEAD_NBYTES)
    made.buffers.view(np.int64)[:, 0] = np.arange(len(made.buffers))
    point_at(made.iovecs, made.messages, name, made.buffers, body, nbytes)
    return made


def test_two_part_datagrams_arrive(sockets):
    sender, receiver = sockets
    nbytes = 1000
    body = np.random.default_rng(0).integers(0, 256, 20 * nbytes - 7, dtype=np.uint8)  # the last one is shorter
    name = pack_address(*receiver.getsockname())
    made = two_part_messages(body, nbytes, name)
    here = Datagrams(8, HEAD_NBYTES + nbytes)
    copy = np.zeros_like(body)
    arrived = []
    for start in range(0, 20, 4):
        assert udp.send(sender.fileno(), made.messages, start, 4) == 4
        while len(arrived) < start + 4:
            assert udp.wait(receiver.fileno(), PATIENCE_S, False)
            for i in range(udp.receive(receiver.fileno(), here.messages)):
                number = int(here.buffers[i, :8].view(np.int64)[0])
                size = udp.length(here.messages, i) - HEAD_NBYTES
                assert size == min(nbytes, body.size - number * nbytes)
                copy[number * nbytes :][:size] = here.buffers[i, HEAD_NBYTES:][:size]
                assert not udp.truncated(here.messages, i)
                assert unpack_address(here.names[i]) == sender.getsockname()
                arrived.append(number)
    assert sorted(arrived) == list(range(20))
    np.testing.assert_array_equal(copy, body)
    assert udp.receive(receiver.fileno(), here.messages) == 0


def test_a_batch_is_no_larger_than_its_memory(sockets):
    sender, receiver = sockets
    for number in range(5):
        sender.sendto(bytes([number]), receiver.getsockname())
    here = Datagrams(3, 10)
    counts, seen = [], []
    while len(seen) < 5:
        assert udp.wait(receiver.fileno(), PATIENCE_S, False)
        n = udp.receive(receiver.fileno(), here.messages)
        counts.append(n)
        seen += here.buffers[:n, 0].tolist()
    assert counts == [3, 2]
    assert seen == list(range(5))


def test_truncation_is_told(sockets):
    sender, receiver = sockets
    for size in (10, 11, 0):
        sender.sendto(bytes(range(size)), receiver.getsockname())
    here = Datagrams(4, 10)
    assert udp.wait(receiver.fileno(), PATIENCE_S, False)
    assert udp.receive(receiver.fileno(), here.messages) == 3
    assert [udp.truncated(here.messages, i) for i in range(3)] == [False, True, False]
    assert [udp.length(here.messages, i) for i in range(3)] == [10, 10, 0]
    assert bytes(here.buffers[1]) == bytes(range(10))


def test_what_arrived_goes_back_to_its_sender(sockets):
    sender, receiver = sockets
    sender.sendto(b"back again", receiver.getsockname())
    here = Datagrams(2, 10)
    assert udp.wait(receiver.fileno(), PATIENCE_S, False)
    assert udp.receive(receiver.fileno(), here.messages) == 1
    assert udp.send(receiver.fileno(), here.messages, 0, 1) == 1
    assert udp.wait(sender.fileno(), PATIENCE_S, False)
    assert sender.recvfrom(100) == (b"back again", receiver.getsockname())


def test_a_full_buffer_is_no_error(tight_pair):
    sender, receiver = tight_pair
    body = np.arange(1 << 20, dtype=np.uint32).view(np.uint8)
    nbytes = 8192
    made = two_part_messages(body, nbytes, np.zeros(16, np.uint8))
    made.messages[:, :2] = 0  # connected
    total = len(made.messages)
    here = Datagrams(total, HEAD_NBYTES + nbytes)
    sent = udp.send(sender.fileno(), made.messages, 0, total)
    assert 0 < sent < total
    assert udp.send(sender.fileno(), made.messages, sent, total - sent) == 0
    assert not udp.wait(sender.fileno(), 0.01, True)
    received = 0
    while received < total:
        n = udp.receive(receiver.fileno(), here.messages)
        for i in range(n):
            start = (received + i) * nbytes
            np.testing.assert_array_equal(here.buffers[i, HEAD_NBYTES:], body[start : start + nbytes])
        received += n
        if sent < total:
            assert udp.wait(sender.fileno(), PATIENCE_S, True)
            sent += udp.send(sender.fileno(), made.messages, sent, total - sent)


def test_nothing_to_send(sockets):
    assert udp.send(sockets[0].fileno(), Datagrams(1, 1).messages, 0, 0) == 0


def test_nobody_listens_then_somebody_does():
    """A refusal is told once, to either call; the socket goes on."""
    with datagram_socket("127.0.0.1", 0, 1 << 16) as sender:
        with datagram_socket("127.0.0.1", 0, 1 << 16) as gone:
            host, port = gone.getsockname()
        sender.connect((host, port))
        made = Datagrams(1, 10)
        made.messages[:, :2] = 0
        assert udp.send(sender.fileno(), made.messages, 0, 1) == 1
        assert udp.wait(sender.fileno(), PATIENCE_S, False)
        assert udp.receive(sender.fileno(), made.messages) == -errno.ECONNREFUSED
        made.messages[:, :2] = 0
        assert udp.send(sender.fileno(), made.messages, 0, 1) == 1
        assert udp.wait(sender.fileno(), PATIENCE_S, False)
        with datagram_socket(host, port, 1 << 16) as receiver:
            assert udp.send(sender.fileno(), made.messages, 0, 1) == -errno.ECONNREFUSED
            assert udp.send(sender.fileno(), made.messages, 0, 1) == 1
            assert udp.wait(receiver.fileno(), PATIENCE_S, False)
            assert udp.receive(receiver.fileno(), made.messages) == 1


def test_errors_are_negative(sockets):
    made = Datagrams(1, 1 << 17)
    made.names[0] = pack_address(*sockets[1].getsockname())
    assert udp.send(sockets[0].fileno(), made.messages, 0, 1) == -errno.EMSGSIZE
    file = os.open(os.devnull, os.O_RDWR)
    assert udp.send(file, made.messages, 0, 1) == udp.receive(file, made.messages) == -errno.ENOTSOCK
    os.close(file)


def test_other_threads_run_during_a_wait(sockets):
    """If Python's lock were held the datagram could not be sent before the wait is over, in vain."""
    sender, receiver = sockets
    assert not udp.wait(receiver.fileno(), 0.0, False)  # compiled from here on
    entered = threading.Event()

    def later():
        entered.wait()
        sender.sendto(b"", receiver.getsockname())

    thread = threading.Thread(target=later)
    thread.start()
    entered.set()
    assert udp.wait(receiver.fileno(), PATIENCE_S, False)
    thread.join()


@pytest.mark.parametrize("seconds", [0.0, 1e-3, -1.0, 1.01])
def test_wait_lasts_that_long(sockets, seconds):
    began = time.monotonic()
    assert not udp.wait(sockets[0].fileno(), seconds, False)
    assert time.monotonic() - began >= seconds


def test_the_clock_is_pythons():
    before = time.monotonic()
    now = udp.now()
    assert before - 1e-6 <= now <= time.monotonic() + 1e-6  # the sum may round


ANOTHER_PROCESS = """
import os, sys
sys.path.insert(0, {parent!r})
import numpy as np
from collcomp.kernels.cpu import udp
messages = np.zeros((1, 8), np.int64)
fd = os.open(os.devnull, os.O_RDWR)
found = [udp.now() > 0, udp.wait(fd, 0.0, False), udp.receive(fd, messages), udp.send(fd, messages, 0, 1)]
kernels = udp.now, udp.wait, udp.receive, udp.send
print(found, [sum(kernel.stats.cache_hits.values()) for kernel in kernels])
"""


def test_cached_for_other_processes(tmp_path):
    sources = tmp_path / "collcomp" / "kernels" / "cpu"
    shutil.copytree(Path(udp.__file__).parent, sources, ignore=shutil.ignore_patterns("__pycache__"))
    for package in (sources.parent, sources.parents[1]):
        (package / "__init__.py").touch()
    program = [sys.executable, "-c", ANOTHER_PROCESS.format(parent=str(tmp_path))]
    answers = [subprocess.run(program, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    found = f"[True, True, {-errno.ENOTSOCK}, {-errno.ENOTSOCK}]"
    assert answers == [f"{found} [0, 0, 0, 0]\n", f"{found} [1, 1, 1, 1]\n"]


def test_what_waits_to_be_sent_is_told(tight_pair):
    sender, receiver = tight_pair
    assert udp.unsent(sender.fileno()) == 0
    sender.send(bytes(1000))
    assert udp.unsent(sender.fileno()) >= 1000
    receiver.recv(1000)
    assert udp.unsent(sender.fileno()) == 0


def test_nothing_waits_where_there_is_no_socket():
    assert udp.unsent(-1) == 0
