"""Ranks that talk over TCP: threads of this process, and processes that only share a folder."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import F32, PATIENCE_S, same_bits, through, uniform
from tcp_ranks import HOST, DictStore, drive, meet, message, room, together, wait

import collcomp
from collcomp.errors import DeadlineError, FrameError, TransportError
from collcomp.transports.tcp import TcpTransport


class FolderStore:
    """A store for processes."""

    def __init__(self, folder):
        self.folder = folder

    def set(self, key, value):
        (self.folder / f"{key}.part").write_text(value)
        (self.folder / f"{key}.part").rename(self.folder / key)

    def get(self, key):
        for _ in range(1000):
            with contextlib.suppress(FileNotFoundError):
                return (self.folder / key).read_bytes()
            time.sleep(0.01)
        raise KeyError(key)


@pytest.fixture
def ranks():
    """A function that makes the transports of so many ranks; they are closed after the test, all at once."""
    made = []

    def make(size, timeout=PATIENCE_S / 2, store=None):
        store = store or DictStore()
        made.extend(TcpTransport(store, rank, size, host=HOST, timeout=timeout) for rank in range(size))
        return made[-size:]

    yield make
    together([transport.close for transport in made])


# ---------------------------------------------------------------------- messages


@pytest.mark.parametrize("nbytes", [0, 1, 1000, 65537, 20 << 20])
@pytest.mark.parametrize("receive_first", [True, False])
@pytest.mark.parametrize("upwards", [True, False])
def test_bytes_arrive(ranks, nbytes, receive_first, upwards):
    transports = ranks(2)
    a, b = transports if upwards else transports[::-1]
    buffer = room(nbytes + 5)
    if receive_first:
        receive = b.irecv(buffer, a.rank, 7)
        assert b.wait_some([receive], 0) == []
    send = a.isend(message(nbytes), b.rank, 7)
    if not receive_first:
        drive(transports, lambda: bool(b._arrivals._queues))
        receive = b.irecv(buffer, a.rank, 7)
    assert together([lambda: wait(a, send), lambda: wait(b, receive)]) == [None, None]
    assert receive.data.tobytes() == bytes([1] * nbytes)
    assert np.may_share_memory(receive.data, buffer) or not nbytes
    assert (receive.source, receive.tag) == (a.rank, 7)
    assert not buffer[nbytes:].any()


def test_order_and_tags(ranks):
    a, b = ranks(2)
    far = (1 << 48) - 1
    for tag, value in ((1, 10), (far, 20), (1, 11), (far, 21)):
        b.isend(message(3, value), 0, tag)
    receives = [a.irecv(room(3), 1, tag) for tag in (far, 1, 1, far)]
    wait(a, *receives)
    assert [receive.data[0] for receive in receives] == [20, 10, 11, 21]


def test_twenty_mebibytes_both_ways_at_once(ranks):
    nbytes = 20 << 20
    transports = ranks(2)

    def program(transport):
        other = 1 - transport.rank
        send = transport.isend(message(nbytes, transport.rank + 1), other, 0)
        receive = transport.irecv(room(nbytes), other, 0)
        wait(transport, receive, send)
        return bool((receive.data == other + 1).all())

    assert together([lambda t=t: program(t) for t in transports]) == [True, True]


def test_many_messages(ranks):
    """More than sockets hold, of all sizes, nothing received before all is sent."""
    transports = ranks(3)
    sizes = np.random.default_rng(0).integers(0, 20_000, 600)

    def program(transport):
        others = [rank for rank in range(3) if rank != transport.rank]
        pairs = [(rank, i) for i in range(len(sizes)) for rank in others]
        sends = [transport.isend(message(sizes[i], i % 251), rank, i % 7) for rank, i in pairs]
        receives = [transport.irecv(room(sizes[i]), rank, i % 7) for rank, i in pairs]
        wait(transport, *receives, *sends)
        return all(
            receive.data.size == sizes[i] and (receive.data == i % 251).all()
            for receive, (_, i) in zip(receives, pairs, strict=True)
        )

    assert together([lambda t=t: program(t) for t in transports]) == [True] * 3


@pytest.mark.parametrize("receive_first", [True, False])
@pytest.mark.parametrize("nbytes", [11, 5 << 20])
def test_too_long(ranks, receive_first, nbytes):
    """Only that request fails, and the stream stays in step."""
    transports = a, b = ranks(2)
    buffer = room(10)
    if receive_first:
        receive = b.irecv(buffer, 0, 0)
    send = a.isend(message(nbytes), 1, 0)
    if not receive_first:
        drive(transports, lambda: bool(b._arrivals._queues))
        receive = b.irecv(buffer, 0, 0)
    after = a.isend(message(3, 5), 1, 0)
    found = together([lambda: wait(a, send, after), lambda: wait(b, receive)])
    assert found[0] is None
    assert isinstance(found[1], FrameError)
    assert f"{nbytes} bytes arrived from rank 0, at most 10 fit" in str(found[1])
    assert not buffer.any()
    wait(b, following := b.irecv(room(3), 0, 0))
    assert (following.data == 5).all()


def test_wildcards(ranks):
    a, b, c = ranks(3)
    meet([a, b, c])
    b.isend(message(1, 1), 0, 5)
    wait(a, first := a.irecv(room(9), -1, -1))
    assert (first.source, first.tag, first.data[0]) == (1, 5, 1)
    receives = [a.irecv(room(9), 2, -1), a.irecv(room(9), -1, 6), a.irecv(room(9), 2, 6)]
    for value in (1, 2, 3):
        c.isend(message(1, value), 0, 6)
    wait(a, *receives)
    assert [receive.data[0] for receive in receives] == [1, 2, 3], "the oldest receive that matches"


def test_a_message_to_oneself(ranks):
    (a,) = ranks(1)
    data = message(100_000)
    wait(a, a.isend(data, 0, 3))
    data[...] = 9  # it was copied
    wait(a, receive := a.irecv(room(200_000), 0, 3))
    assert receive.data.size == 100_000
    assert (receive.data == 1).all()
    receive = a.irecv(room(10), 0, 3)
    assert a.wait_some([receive], 0) == []
    a.isend(message(11), 0, 3)
    with pytest.raises(FrameError, match="11 bytes arrived from rank 0, at most 10 fit"):
        a.wait_some([receive], 1)


def test_waiting(ranks):
    a, b = ranks(2)
    assert a.wait_some([], 1000) == []
    receive = b.irecv(room(1), 0, 0)
    looks, select = [], b._selector.select
    b._selector.select = lambda timeout: looks.append(timeout) or select(timeout)
    assert b.wait_some([receive], 0.5) == []
    assert len(looks) < 20, "one that waits does not spin"


@pytest.mark.parametrize("rank", [-1, 2])
def test_wrong_ranks(ranks, rank):
    a, _ = ranks(2)
    with pytest.raises(ValueError, match=f"dest: {rank}"):
        a.isend(message(1), rank, 0)
    with pytest.raises(ValueError, match=f"source: {rank - 1}|source: {rank}"):
        a.irecv(room(1), rank if rank > 0 else rank - 1, 0)
    with pytest.raises(ValueError, match="tag: -1"):
        a.isend(message(1), 1, -1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((0, 0, 1), "size: 0"), ((2, 2, 1), "rank: 2"), ((-1, 2, 1), "rank: -1"), ((0, 2, 0), "timeout: 0")],
)
def test_wrong_arguments(arguments, says):
    rank, size, timeout = arguments
    with pytest.raises(ValueError, match=says):
        TcpTransport(DictStore(), rank, size, host=HOST, timeout=timeout)


def test_wrong_host():
    with pytest.raises(TransportError, match=r"host: cannot listen on '192\.0\.2\.1'"):
        TcpTransport(DictStore(), 0, 2, host="192.0.2.1", timeout=1)


# ---------------------------------------------------------------------- giving up


def test_cancelled_receives_are_not_matched(ranks):
    a, b = ranks(2)
    gone = b.irecv(room(5), 0, 0)
    b.cancel([gone])
    a.isend(message(5, 3), 1, 0)
    receive = b.irecv(room(5), 0, 0)
    together([lambda: wait(b, receive), lambda: drive([a], lambda: receive.complete)])
    assert b.wait_some([gone, receive], 1) == [1]
    assert not gone.data.any()


@pytest.mark.parametrize("posted_first", [True, False])
def test_a_receive_cancelled_half_way(ranks, posted_first):
    """The rest of its message goes nowhere, and the next one arrives."""
    nbytes = 20 << 20
    transports = a, b = ranks(2)
    meet(transports)
    buffer = room(nbytes)
    if posted_first:
        receive = b.irecv(buffer, 0, 0)
    send = a.isend(message(nbytes), 1, 0)
    drive([b], lambda: b._peers[0].stream.arriving is not None)
    if not posted_first:
        receive = b.irecv(buffer, 0, 0)
    b.cancel([receive])
    arrived = int(buffer.sum())
    assert arrived < nbytes
    after = a.isend(message(9, 9), 1, 0)
    following = b.irecv(room(9), 0, 0)
    assert together([lambda: wait(a, send, after), lambda: wait(b, following)]) == [None, None]
    assert (following.data == 9).all()
    assert int(buffer.sum()) == arrived, "nothing is written once it is cancelled"
    assert b.wait_some([receive], 0) == []


def test_a_send_cancelled_before_it_began(ranks):
    a, b = ranks(2)
    send = a.isend(message(5), 1, 0)  # nobody has connected
    a.cancel([send])
    after = a.isend(message(5, 2), 1, 0)
    receive = b.irecv(room(5), 0, 0)
    together([lambda: wait(a, after), lambda: wait(b, receive)])
    assert (receive.data == 2).all()
    assert a.wait_some([send], 0) == []


def test_a_send_cancelled_half_way(ranks):
    """It arrives as it was; its memory may be used again at once."""
    nbytes = 20 << 20
    transports = a, b = ranks(2)
    meet(transports)
    data = message(nbytes)
    send = a.isend(data, 1, 0)
    assert a.wait_some([send], 0) == []
    a.cancel([send])
    data[...] = 7
    after = a.isend(message(1, 9), 1, 1)
    receives = [b.irecv(room(nbytes), 0, 0), b.irecv(room(1), 0, 1)]
    assert together([lambda: wait(a, after), lambda: wait(b, *receives)]) == [None, None]
    assert (receives[0].data == 1).all()
    assert receives[1].data[0] == 9
    assert a.wait_some([send], 0) == []


def test_notices(ranks):
    transports = a, b, c = ranks(3)
    b.notify(5, "why")
    found = {}
    drive(transports, lambda: [found.setdefault(t, n) for t in (a, c) if (n := t.notice(5))] and len(found) == 2)
    assert found == {a: (1, "why"), c: (1, "why")}
    assert a.notice(4) is None
    assert a.notice(5) is None, "told once"
    assert b.notice(5) is None
    c.leave("gone " * 1000)
    drive(transports, lambda: a.notice(0) is not None and b.notice(77) is not None)
    assert a.notice(3)[0] == 2
    assert a.notice(3)[1].startswith("gone gone")


def test_a_notice_behind_a_message_that_had_begun(ranks):
    """It leaves although its rank has turned to other things."""
    nbytes = 20 << 20
    transports = a, b = ranks(2)
    meet(transports)
    send = a.isend(message(nbytes), 1, 0)
    assert a.wait_some([send], 0) == []
    a.cancel([send])
    a.notify(3, "why")
    receive = b.irecv(room(nbytes), 0, 0)
    drive([b], lambda: b.notice(3) == (0, "why"))
    assert (receive.data == 1).all()


# ---------------------------------------------------------------------- ends


def test_a_peer_that_dies(ranks):
    """What it has said arrives; whoever needs more of it is told at once, and the others go on."""
    transports = a, b, c = ranks(3)
    meet(transports)
    dead = b._peers
    unexpected = b.isend(message(10, 4), 0, 1)
    waiting = a.irecv(room(5), 1, 2)
    elsewhere = a.irecv(room(5), 2, 2)
    anywhere = a.irecv(room(5), -1, 99)
    wait(b, unexpected)
    for peer in dead:  # as the kernel does
        if peer.stream is not None:
            peer.stream.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(TransportError, match="rank 1: connection closed"):
        a.wait_some([waiting], PATIENCE_S)
    wait(a, arrived := a.irecv(room(10), 1, 1))
    assert (arrived.data == 4).all()
    for later in (a.irecv(room(1), 1, 0), a.isend(message(1), 1, 0)):
        with pytest.raises(TransportError, match="rank 1: connection closed"):
            a.wait_some([later], PATIENCE_S)
    a.notify(3, "does not raise")
    c.isend(message(5, 6), 0, 2)
    wait(a, elsewhere)
    assert (elsewhere.data == 6).all()
    assert a.wait_some([anywhere], 0) == [], "it may still come from rank 2"
    c.close()
    with pytest.raises(TransportError, match="all other ranks"):
        a.wait_some([anywhere], PATIENCE_S)


def test_half_a_message(ranks):
    """One that dies while it sends."""
    transports = a, b = ranks(2)
    meet(transports)
    b.isend(message(20 << 20), 0, 0)
    drive([a], lambda: a._peers[1].stream.arriving is not None)
    receive = a.irecv(room(20 << 20), 1, 0)
    b._peers[0].stream.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(TransportError, match="rank 1: connection closed"):
        a.wait_some([receive], PATIENCE_S)


def test_a_rank_that_never_connects(ranks):
    a, b = ranks(2, timeout=0.3)
    with pytest.raises(TransportError, match=r"rank 1: has not connected to 127\.0\.0\.1:\d+ within 0\.3 s"):
        a.wait_some([a.irecv(room(1), 1, 0)], PATIENCE_S)
    with pytest.raises(TransportError, match="rank 0: cannot connect"):
        b.wait_some([b.irecv(room(1), 0, 0)], PATIENCE_S)


def test_a_rank_that_cannot_be_reached():
    store = DictStore()
    first = TcpTransport(store, 0, 2, host=HOST, timeout=5)
    address = first._listener.address
    first.close()
    second = TcpTransport(store, 1, 2, host=HOST, timeout=5)
    with pytest.raises(TransportError, match=f"rank 0: cannot connect to {address}"):
        second.wait_some([second.isend(message(1), 0, 0)], PATIENCE_S)
    second.close()


def test_a_rank_that_publishes_nothing():
    class EmptyStore(DictStore):
        def get(self, key):
            raise TimeoutError("nothing came")

    transport = TcpTransport(EmptyStore(), 1, 2, host=HOST, timeout=5)
    with pytest.raises(TransportError, match="rank 0: no address in the store: nothing came"):
        transport.wait_some([transport.isend(message(1), 0, 0)], PATIENCE_S)
    transport.close()


def test_what_was_sent_before_closing_arrives(ranks):
    """Even if the one that closes has not read what was said to it."""
    nbytes = 3 << 20
    transports = a, b = ranks(2)
    meet(transports)
    wait(b, *[b.isend(message(10), 0, i) for i in range(100)])  # nobody wants these
    a.isend(message(nbytes), 1, 0)
    receive = b.irecv(room(nbytes), 0, 0)
    assert together([a.close, lambda: wait(b, receive)]) == [None, None]
    assert (receive.data == 1).all()
    with pytest.raises(TransportError, match="rank 0: connection closed"):
        b.wait_some([b.irecv(room(1), 0, 0)], PATIENCE_S)
    a.close()  # again


def test_closing_wakes_those_who_wait(ranks):
    a, b = ranks(2)
    receives = [b.irecv(room(1), source, 0) for source in (0, 1, -1)]
    found = together(
        [*(lambda r=r: b.wait_some([r], PATIENCE_S) for r in receives), lambda: time.sleep(0.1) or b.close()]
    )
    assert all(isinstance(error, TransportError) for error in found[:3]), found
    for later in (b.isend(message(1), 0, 0), b.isend(message(1), 1, 0), *(b.irecv(room(1), i, 0) for i in (0, 1, -1))):
        with pytest.raises(TransportError, match="closed"):
            b.wait_some([later], PATIENCE_S)
    b.notify(0, "nobody hears this")
    assert b.notice(0) is None
    assert a.wait_some([], 0) == []


# ---------------------------------------------------------------------- strangers


def address_of(transport):
    host, port = transport._listener.address.split(":")
    return host, int(port)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(1000),
        struct.pack("<8s16sI", b"collcmp1", bytes(16), 1),
        bytes(12),
    ],
    ids=["nothing", "http", "noise", "token", "little"],
)
def test_strangers(ranks, said):
    transports = a, b = ranks(2)
    a.wait_some([], 0)
    stranger = socket.create_connection(address_of(a))
    stranger.sendall(said)
    drive([a], lambda: len(said) < 28 or not a._guests)
    receive = a.irecv(room(3), 1, 0)
    b.isend(message(3), 0, 0)
    wait(a, receive)
    assert (receive.data == 1).all()
    meet(transports)
    with contextlib.suppress(ConnectionResetError):
        stranger.settimeout(PATIENCE_S)
        assert stranger.recv(1) == b"", "it was sent away"
    stranger.close()


@pytest.mark.parametrize("rank", [0, 1, 3, 1 << 31])
def test_one_that_knows_the_token_but_is_no_rank_that_is_missing(ranks, rank):
    transports = a, b, _ = ranks(3)
    receive = a.irecv(room(1), 1, 0)
    b.isend(message(1), 0, 0)
    wait(a, receive)
    stranger = socket.create_connection(address_of(a))
    stranger.sendall(struct.pack("<8s16sI", b"collcmp1", a._listener._secret, rank))
    stranger.settimeout(0.05)
    with contextlib.suppress(ConnectionResetError):
        drive([a], lambda: not closed_or_silent(stranger))
    stranger.close()
    meet(transports)


def closed_or_silent(sock):
    try:
        return sock.recv(1) != b""
    except TimeoutError:
        return True


@pytest.mark.parametrize(
    "header",
    [(0, 0, 1 << 41), (0, 0, -1), (0, -1, 3), (1, 0, 1 << 20), (1, -2, 3), (2, 0, 3), (-1, 0, 3)],
)
def test_impossible_headers(ranks, header):
    transports = a, b = ranks(2)
    meet(transports)
    receive = a.irecv(room(3), 1, 0)
    b._peers[0].stream.sock.sendall(struct.pack("<qqq", *header) + b"abc")
    with pytest.raises(TransportError, match="rank 1: connection closed: no message"):
        a.wait_some([receive], PATIENCE_S)


# ---------------------------------------------------------------------- threads


def test_two_threads_wait_for_different_requests(ranks):
    """Whichever drives the sockets leaves first, the other goes on."""
    transports = a, b = ranks(2)
    meet(transports)
    for order in ((0, 1), (1, 0)) * 20:
        receives = [a.irecv(room(1), 1, tag) for tag in (0, 1)]

        def send(order=order):
            for tag in order:
                b.isend(message(1), 0, tag)
                time.sleep(0.002)

        found = together([lambda r=receives[0]: wait(a, r), lambda r=receives[1]: wait(a, r), send])
        assert found == [None] * 3


def test_one_that_waits_is_woken_by_another_thread(ranks):
    (a,) = ranks(1)
    receive = a.irecv(room(1), 0, 0)

    def send():
        time.sleep(0.05)
        a.isend(message(1), 0, 0)

    found = together([lambda: a.wait_some([receive], PATIENCE_S), send])
    assert found == [[0], None]


def test_many_threads(ranks):
    transports = ranks(2)

    def program(transport, tag):
        other = 1 - transport.rank
        for i in range(50):
            send = transport.isend(message(1000 * tag + 1, i), other, tag)
            receive = transport.irecv(room(1000 * tag + 1), other, tag)
            wait(transport, receive, send)
            if not (receive.data == i).all():
                return f"message {i} under {tag}"
        return None

    found = together([lambda t=t, tag=tag: program(t, tag) for t in transports for tag in range(6)])
    assert found == [None] * 12


# ---------------------------------------------------------------------- collectives


def over_tcp(size, program, **options):
    """What ``program(comm)`` returned or raised on each rank."""
    store, mailboxes = DictStore(), DictStore()
    options.setdefault("deadline", PATIENCE_S / 2)

    def main(rank):
        transports = [TcpTransport(s, rank, size, host=HOST, timeout=PATIENCE_S / 2) for s in (store, mailboxes)]
        comm = collcomp.Communicator(transports[0], mailbox=transports[1], **options)
        try:
            return program(comm)
        finally:
            comm.close()
            transports[1].close()

    return together([lambda rank=rank: main(rank) for rank in range(size)])


def every_collective(comm):
    size, rank = comm.size, comm.rank
    x = uniform(60_000 * size, seed=rank)
    part = x[:60_000]
    results = []
    for codec in (None, "int8", "topk:ratio=0.05"):
        comm.allreduce(x, total := np.empty_like(x), codec=codec)
        comm.allgather(part, gathered := np.empty_like(x), codec=codec)
        results += [total, gathered]
        if codec != "topk:ratio=0.05":
            comm.reduce_scatter(x, piece := np.empty_like(part), codec=codec)
            comm.reduce(x, reduced := np.zeros_like(x), root=size - 1, codec=codec)
            comm.alltoall(x, exchanged := np.empty_like(x), codec=codec)
            comm.bcast(spread := x.copy(), root=1 % size, codec=codec)
            comm.gather(part, collected := np.zeros_like(x), codec=codec)
            comm.scatter(x, scattered := np.empty_like(part), codec=codec)
            comm.iallreduce(x, later := np.empty_like(x), codec=codec).wait()
            results += [piece, reduced, exchanged, spread, collected, scattered, later]
    return results


@pytest.mark.parametrize("size", [1, 2, 4])
def test_collectives(size):
    """The bits are those of threads."""
    expected = collcomp.local.run(size, every_collective)
    for rank, found in enumerate(over_tcp(size, every_collective)):
        assert not isinstance(found, Exception), f"rank {rank}: {found!r}"
        assert len(found) == len(expected[rank])
        assert all(same_bits(x, y) for x, y in zip(found, expected[rank], strict=True))


def test_a_wrong_argument_raises_on_all_ranks():
    def program(comm):
        x = uniform(1000)
        if comm.rank == 1:
            with pytest.raises(ValueError, match="op: "):
                comm.allreduce(x, x.copy(), op="product")
        else:
            with pytest.raises(FrameError, match="rank 1 gave up on this operation: ValueError"):
                comm.allreduce(x, x.copy())
        comm.allreduce(x, total := np.empty_like(x))
        return total

    found = over_tcp(3, program)
    assert same_bits(*found)


def test_ranks_that_do_not_agree():
    def program(comm):
        x = uniform(300_000)
        with pytest.raises(FrameError):
            comm.allreduce(x, x.copy(), codec="int8" if comm.rank else "int4")
        comm.allreduce(x, total := np.empty_like(x), codec="int8")
        return total

    assert same_bits(*over_tcp(3, program))


def test_a_rank_that_leaves():
    def program(comm):
        if comm.rank == 0:
            comm.leave(KeyError("over"))
            return None
        with pytest.raises((FrameError, TransportError), match="rank 0"):
            comm.allreduce(uniform(100_000), np.empty(100_000, F32))
        return True

    assert over_tcp(3, program) == [None, True, True]


def test_messages():
    def program(comm):
        right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        x = uniform(200_000, seed=comm.rank)
        results = []
        received = comm.sendrecv(x, right, 1, recv := np.empty_like(x), left, 1, codec="int8")
        assert (received.source, received.tag, received.count) == (left, 1, x.size)
        results.append(recv)
        receives = [comm.irecv(recv := np.empty_like(x), left, tag, codec="int8") for tag in (3, 2)]
        sends = [comm.isend(x, right, tag, codec="int8") for tag in (2, 3)]
        assert [receive.wait().tag for receive in receives] == [3, 2]
        for send in sends:
            send.wait()
        results.append(recv)
        if comm.rank == 0:
            comm.send(x, right)
        received = comm.recv(recv := np.empty_like(x), -1, -1)
        assert received.source == left
        if comm.rank != 0:
            comm.send(recv, right)
        return [*results, recv]

    found = over_tcp(3, program)
    assert not any(isinstance(one, Exception) for one in found), found
    for rank, (first, second, passed_on) in enumerate(found):
        expected = through("int8", uniform(200_000, seed=(rank - 1) % 3))
        assert same_bits(first, second, expected)
        assert same_bits(passed_on, uniform(200_000, seed=0))


def test_a_message_that_nobody_sends():
    def program(comm):
        if comm.rank == 0:
            with pytest.raises(DeadlineError):
                comm.recv(np.empty(3, F32), 1)
        else:
            time.sleep(1)

    assert over_tcp(2, program, deadline=0.3) == [None, None]


# ---------------------------------------------------------------------- processes


def test_neither_mpi_nor_torch_is_imported():
    program = "import sys, collcomp.transports.tcp; sys.exit(bool({'mpi4py', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], timeout=PATIENCE_S).returncode == 0


def process_main(folder, rank, size, dies, answers):
    transport = TcpTransport(FolderStore(folder), rank, size, host=HOST, timeout=PATIENCE_S / 2)
    comm = collcomp.Communicator(transport, deadline=PATIENCE_S / 2)
    x = uniform(100_000, seed=rank)
    comm.allreduce(x, total := np.empty_like(x), codec="int8")
    answers.put((rank, hashlib.sha256(total).digest()))
    if rank == dies:
        os.kill(os.getpid(), signal.SIGKILL)
    if dies is not None:
        try:
            comm.allreduce(x, total, codec="int8")
        except collcomp.CollcompError as error:
            answers.put((rank, f"{type(error).__name__}: {error}"))
    comm.close()


@pytest.mark.parametrize("dies", [None, 0, 2])
def test_processes(tmp_path, dies):
    """Without `dies` all results are equal; with it, the others are told long before the deadline."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    processes = [context.Process(target=process_main, args=(tmp_path, r, 3, dies, answers)) for r in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
        assert process.exitcode is not None
    count = 3 if dies is None else 5
    found = [answers.get() for _ in range(count)]
    totals = {bits for _, bits in found if isinstance(bits, bytes)}
    assert len(totals) == 1
    told = {rank: text for rank, text in found if isinstance(text, str)}
    assert set(told) == (set() if dies is None else {0, 1, 2} - {dies})
    assert all("closed" in text or "gave up" in text for text in told.values()), told
