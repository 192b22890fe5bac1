"""Several paths between ranks: 127.0.0.1, 127.0.0.2, ... stand for the addresses of a machine."""

import socket

import numpy as np
import pytest
from helpers import F32, PATIENCE_S, same_bits, uniform
from tcp_ranks import DictStore, drive, meet, message, room, together, wait

import collcomp
from collcomp.errors import FrameError, TransportError
from collcomp.transports.paths import PATHS_VARIABLE, WEIGHTS_VARIABLE, Path, Paths
from collcomp.transports.stream import MESSAGE, Outgoing
from collcomp.transports.tcp import TcpTransport

TWO = ("127.0.0.1", "127.0.0.2")
THREE = (*TWO, "127.0.0.3")


@pytest.fixture
def ranks():
    """A function that makes the transports of so many ranks; they are closed after the test, all at once."""
    made = []

    def make(size, paths=TWO, weights=None, timeout=PATIENCE_S / 2):
        store = DictStore()
        made.extend(
            TcpTransport(store, rank, size, host="192.0.2.1", timeout=timeout, paths=paths, weights=weights)
            for rank in range(size)
        )
        return made[-size:]

    yield make
    together([transport.close for transport in made])


# ---------------------------------------------------------------------- messages


@pytest.mark.parametrize("nbytes", [0, 1, 65537, 5 << 20])
@pytest.mark.parametrize("weights", [None, (1, 1)])
def test_bytes_arrive(ranks, nbytes, weights):
    """In either direction, wanted before they come or after."""
    a, b = ranks(2, weights=weights)
    tags = range(9)
    early = [b.irecv(room(nbytes), 0, tag) for tag in tags]
    forth = [a.isend(message(nbytes, tag), 1, tag) for tag in tags]
    back = [b.isend(message(nbytes, tag + 100), 0, tag) for tag in tags]
    assert together([lambda: wait(a, *forth), lambda: wait(b, *early)]) == [None, None]
    late = [a.irecv(room(nbytes), 1, tag) for tag in tags]
    assert together([lambda: wait(a, *late), lambda: wait(b, *back)]) == [None, None]
    for tag in tags:
        assert early[tag].data.tobytes() == bytes([tag]) * nbytes
        assert late[tag].data.tobytes() == bytes([tag + 100]) * nbytes


@pytest.mark.parametrize("weights", [None, (3, 1, 1)])
def test_one_tag_keeps_its_order(ranks, weights):
    """Many messages of all sizes under few tags, both ways, more than sockets hold."""
    transports = ranks(2, THREE, weights)
    sizes = np.random.default_rng(0).integers(0, 60_000, 500)

    def program(transport):
        other = 1 - transport.rank
        sends = [transport.isend(message(n, i % 251), other, i % 5) for i, n in enumerate(sizes)]
        receives = [transport.irecv(room(n), other, i % 5) for i, n in enumerate(sizes)]
        wait(transport, *receives, *sends)
        return all(
            receive.data.size == n and (receive.data == i % 251).all()
            for i, (n, receive) in enumerate(zip(sizes, receives, strict=True))
        )

    assert together([lambda t=t: program(t) for t in transports]) == [True, True]
    if weights:
        assert all(nbytes > 0 for transport in transports for nbytes in transport.path_nbytes)


def test_full_paths_leave_messages_to_others(ranks):
    """Nobody reads: all paths fill up, and what no path takes is still free to go by any."""
    transports = a, b = ranks(2, THREE)
    meet(transports)
    sends = [a.isend(message(1 << 20, tag), 1, tag) for tag in range(60)]
    a.wait_some(sends, 0)
    assert all(nbytes > 1 << 20 for nbytes in a.path_nbytes)
    waiting = len(a._peers[1].paths.pending)
    assert waiting > 20
    a.cancel(sends[-10:])
    assert len(a._peers[1].paths.pending) == waiting - 10
    receives = [b.irecv(room(1 << 20), 0, tag) for tag in range(50)]
    assert together([lambda: wait(a, *sends[:50]), lambda: wait(b, *receives)]) == [None, None]
    assert all((receive.data == tag).all() for tag, receive in enumerate(receives))
    assert sum(a.path_nbytes) < 51 << 20


def test_what_was_confirmed_is_forgotten(ranks):
    a, b = ranks(2)
    meet([a, b])
    for start in range(0, 3000, 100):
        tags = range(start, start + 100)
        sends = [a.isend(message(10), 1, tag) for tag in tags]
        receives = [b.irecv(room(10), 0, tag) for tag in tags]
        drive([a, b], lambda pending=(*sends, *receives): all(request.complete for request in pending))
    drive([a, b], lambda: len(a._peers[1].paths._under_way) < 32)


@pytest.mark.parametrize(("paths", "weights"), [(TWO, (3, 1)), (THREE, (1, 2, 5)), (TWO, (1, 1))])
def test_weights_are_shares(ranks, paths, weights):
    a, b = ranks(2, paths, weights)
    nbytes = 50_000
    receives = [b.irecv(room(nbytes), 0, tag) for tag in range(200)]
    sends = [a.isend(message(nbytes), 1, tag) for tag in range(200)]
    assert together([lambda: wait(a, *sends), lambda: wait(b, *receives)]) == [None, None]
    shares = np.array(a.path_nbytes) / sum(a.path_nbytes)
    assert shares == pytest.approx(np.array(weights) / sum(weights), abs=0.01)
    assert sum(b.path_nbytes) < 10_000, "the receiver only confirms"


def test_each_path_has_its_addresses(ranks):
    """At both ends, whoever connected."""
    transports = a, b = ranks(2, THREE)
    meet(transports)
    for one, other in ((a, b), (b, a)):
        for path in one._peers[other.rank].paths.all:
            own, there = path.stream.sock.getsockname(), path.stream.sock.getpeername()
            assert own[0] == there[0] == THREE[path.number]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_collectives(size):
    """The bits are those of threads."""

    def program(comm):
        x = uniform(300_000, seed=comm.rank)
        results = []
        for codec, algorithm in ((None, "direct"), ("int8", "direct"), (None, "ring"), ("int8", "ring")):
            comm.allreduce(x, total := np.empty_like(x), codec=codec or "identity", algorithm=algorithm)
            results.append(total)
        comm.sendrecv(x, (comm.rank + 1) % size, 1, got := np.empty_like(x), (comm.rank - 1) % size, 1, codec="int8")
        return [*results, got]

    store = DictStore()

    def main(rank):
        transport = TcpTransport(store, rank, size, host=TWO[0], timeout=PATIENCE_S / 2, paths=THREE)
        comm = collcomp.Communicator(transport, deadline=PATIENCE_S / 2)
        try:
            return program(comm)
        finally:
            comm.close()

    expected = collcomp.local.run(size, program)
    for found, right in zip(together([lambda r=r: main(r) for r in range(size)]), expected, strict=True):
        assert not isinstance(found, Exception), found
        assert all(same_bits(x, y) for x, y in zip(found, right, strict=True))


def test_too_long(ranks):
    a, b = ranks(2)
    receive = b.irecv(room(10), 0, 0)
    send = a.isend(message(11), 1, 0)
    found = together([lambda: wait(a, send), lambda: wait(b, receive)])
    assert isinstance(found[1], FrameError)


# ---------------------------------------------------------------------- giving up


def test_cancelled_sends_are_not_sent(ranks):
    a, b = ranks(2)
    gone = [a.isend(message(5), 1, tag) for tag in range(4)]  # nobody has connected
    a.cancel(gone)
    after = [a.isend(message(5, 2), 1, tag) for tag in range(4)]
    receives = [b.irecv(room(5), 0, tag) for tag in range(4)]
    together([lambda: wait(a, *after), lambda: wait(b, *receives)])
    assert all((receive.data == 2).all() for receive in receives)
    assert a.wait_some(gone, 0) == []


def test_notices_arrive_beside_messages(ranks):
    a, b, c = transports = ranks(3)
    meet(transports)
    a.isend(message(5 << 20), 1, 0)
    a.notify(7, "why")
    drive(transports, lambda: c.notice(7) == (0, "why"))
    drive(transports, lambda: b.notice(7) == (0, "why"))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("end", ["reset", "closed"])
def test_a_broken_path_breaks_the_connection(ranks, monkeypatch, number, end):
    """At once where it is reset; where it only ends, others may still bring something, for a while."""
    monkeypatch.setattr("collcomp.transports.tcp._ENDING_S", 0.2)
    transports = a, b = ranks(2)
    meet(transports)
    receive = a.irecv(room(5), 1, 3)
    sock = b._peers[0].paths.all[number].stream.sock
    if end == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        b._selector.unregister(sock)
        sock.close()
        b._peers[0].paths.all[number].ended = True
    else:
        sock.shutdown(socket.SHUT_WR)
    with pytest.raises(TransportError, match="rank 1: connection closed"):
        a.wait_some([receive], PATIENCE_S)
    with pytest.raises(TransportError, match="rank 1: connection closed"):
        a.wait_some([a.isend(message(1), 1, 0)], PATIENCE_S)


def test_what_was_sent_before_closing_arrives_by_all_paths(ranks):
    nbytes = 3 << 20
    transports = a, b = ranks(2, weights=(1, 1))
    meet(transports)
    sends = [a.isend(message(nbytes, tag), 1, tag) for tag in range(2)]
    receives = [b.irecv(room(nbytes), 0, tag) for tag in range(2)]
    assert together([lambda: wait(a, *sends) or a.close(), lambda: wait(b, *receives)]) == [None, None]
    assert all((receive.data == tag).all() for tag, receive in enumerate(receives))


def test_ranks_with_unlike_numbers_of_paths():
    store = DictStore()
    first = TcpTransport(store, 0, 2, host=TWO[0], timeout=1, paths=THREE)
    second = TcpTransport(store, 1, 2, host=TWO[0], timeout=1, paths=TWO)
    with pytest.raises(TransportError, match=r"rank 0: it has 3 paths .* rank 1 has 2"):
        second.wait_some([second.irecv(room(1), 0, 0)], PATIENCE_S)
    together([first.close, second.close])


# ---------------------------------------------------------------------- the choice


class Link:
    """Stands for a connection of which it is known what waits."""

    def __init__(self):
        self.written = 0


def dealt(monkeypatch, rates, backlogs, sizes, busy=()):
    """By which paths messages of these sizes go, None for those that wait; `busy` paths have a queue."""
    paths = Paths(len(rates), None)
    backlog_of = {}
    for path, rate, backlog in zip(paths.all, rates, backlogs, strict=True):
        path.stream, path.rate, backlog_of[id(path)] = Link(), rate, backlog
        if path.number in busy:
            path.queue.append(Outgoing.of(MESSAGE, 1000 + path.number, b"", None))
    monkeypatch.setattr(Path, "measure", lambda self, now: None)
    monkeypatch.setattr(Path, "waiting", lambda self: backlog_of[id(self)])
    for tag, nbytes in enumerate(sizes):
        paths.put(Outgoing.of(MESSAGE, tag, bytes(nbytes), None), 0.0)
    way = {outgoing.tag: path.number for path in paths.all for outgoing in path.queue}
    return [way.get(tag) for tag in range(len(sizes))]


@pytest.mark.parametrize(
    ("rates", "backlogs", "sizes", "busy", "ways"),
    [
        ((0, 0), (0, 0), (1000, 1000, 1000), (), [0, 1, None]),
        ((10, 20), (0, 0), (1000,), (), [1]),
        ((10, 20), (0, 5000), (1000,), (), [0]),
        ((0, 20), (0, 100), (1000,), (), [0]),  # an unknown path counts as the fastest
        ((10, 20), (0, 100), (1000,), (1,), [None]),  # the busy path would still be faster
        ((10, 20), (0, 3000), (1000,), (1,), [0]),
        ((10, 20), (0, 100), (1000, 1000, 1000), (1,), [0, None, None]),  # but not with two
        ((10, 20), (0, 0), (1000,), (0, 1), [None]),
    ],
)
def test_a_message_takes_the_path_on_which_it_is_through_first(monkeypatch, rates, backlogs, sizes, busy, ways):
    assert dealt(monkeypatch, rates, backlogs, sizes, busy) == ways


def test_rates_are_measured(ranks):
    a, b = ranks(2)
    meet([a, b])
    paths = a._peers[1].paths
    for start in range(0, 200, 20):
        receives = [b.irecv(room(256 << 10), 0, tag) for tag in range(start, start + 20)]
        sends = [a.isend(message(256 << 10), 1, tag) for tag in range(start, start + 20)]
        assert together([lambda s=sends: wait(a, *s), lambda r=receives: wait(b, *r)]) == [None, None]
    assert any(path.rate > 0 for path in paths.all)
    assert all(path.waiting() >= 0 for path in paths.all)


# ---------------------------------------------------------------------- what users say


def made(monkeypatch, paths=None, weights=None, **environment):
    for name in (PATHS_VARIABLE, WEIGHTS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return TcpTransport(DictStore(), 0, 2, host="127.0.0.9", timeout=1, paths=paths, weights=weights)


def test_the_environment_names_paths(monkeypatch):
    transport = made(monkeypatch, COLLCOMP_PATHS="127.0.0.1, 127.0.0.2", COLLCOMP_PATH_WEIGHTS="1,0.5")
    assert [place.split(":")[0] for place in transport._listener.address.split(",")] == list(TWO)
    assert transport._peers[1].paths._weights == (1.0, 0.5)
    transport.close()


def test_networks_name_own_addresses(monkeypatch):
    transport = made(monkeypatch, COLLCOMP_PATHS="127.0.0.0/8")
    assert transport._listener.address.startswith("127.0.0.1:")
    transport.close()


def test_without_paths_all_is_as_it_was(monkeypatch):
    transport = made(monkeypatch)
    assert transport._listener.address.startswith("127.0.0.9:")
    assert transport.segment_nbytes == TcpTransport.segment_nbytes
    assert transport.window == TcpTransport.window
    transport.close()


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        ({}, {"COLLCOMP_PATHS": "here"}, "COLLCOMP_PATHS: 'here'"),
        ({}, {"COLLCOMP_PATHS": "203.0.113.0/24"}, "COLLCOMP_PATHS: this machine has no address in 203"),
        ({}, {"COLLCOMP_PATHS": "127.0.0.1", "COLLCOMP_PATH_WEIGHTS": "much"}, "COLLCOMP_PATH_WEIGHTS: 'much'"),
        ({}, {"COLLCOMP_PATHS": "127.0.0.1", "COLLCOMP_PATH_WEIGHTS": "1,2"}, "weights: .* each of 1 paths"),
        ({"paths": TWO, "weights": (1, 0)}, {}, "weights: "),
        ({"paths": TWO, "weights": (1, float("nan"))}, {}, "weights: "),
    ],
)
def test_what_is_wrong_is_named(monkeypatch, arguments, environment, says):
    with pytest.raises(ValueError, match=says):
        made(monkeypatch, **arguments, **environment)


def test_a_path_that_is_no_own_address():
    with pytest.raises(TransportError, match=r"host: cannot listen on '192\.0\.2\.1'"):
        TcpTransport(DictStore(), 0, 2, host=TWO[0], timeout=1, paths=(TWO[0], "192.0.2.1"))


def test_average_over_paths_is_that_of_one():
    """A whole operation of many segments over uneven paths."""
    store = DictStore()

    def main(rank):
        transport = TcpTransport(store, rank, 2, host=TWO[0], timeout=30, paths=TWO, weights=(5, 1))
        comm = collcomp.Communicator(transport, deadline=30)
        x = np.full(1_000_000, rank + 1, F32)
        comm.allreduce(x, total := np.empty_like(x), op="avg", codec="identity")
        comm.close()
        return float(total.min()), float(total.max())

    assert together([lambda: main(0), lambda: main(1)]) == [(1.5, 1.5)] * 2
