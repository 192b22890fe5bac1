"""Ranks' connections to a switch in another thread: joining, leaving, strangers, and whoever does not keep to it."""

import contextlib
import gc
import socket
import threading
import time
import zlib

import numpy as np
import pytest
from switches import serving

from collcomp.errors import DeadlineError, FrameError, TransportError
from collcomp.kernels.cpu import packets
from collcomp.switch.client import SwitchClient
from collcomp.switch.control import Control
from collcomp.switch.datagrams import pack_address

PATIENCE_S = 60


@pytest.fixture
def switch():
    with serving() as one:
        yield one


def nothing():
    """A check that finds nothing."""


def join(switch, job, rank, size, deadline=PATIENCE_S):
    return SwitchClient(switch.address, job, rank, size, deadline=deadline, check=nothing)


def at_once(*functions):
    """What functions return or raise that wait for each other."""
    found = [None] * len(functions)

    def call(i):
        try:
            found[i] = functions[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"hangs; the others: {found}"
    return found


def joined(switch, job, size=2):
    clients = at_once(*(lambda rank=rank: join(switch, job, rank, size) for rank in range(size)))
    for client in clients:
        if isinstance(client, BaseException):
            raise client
    return clients


def reduce(client, values, epoch, *, signature=1, deadline=PATIENCE_S):
    send = np.asarray(values, np.uint32)
    recv = np.empty_like(send)
    client.reduce(
        send.view(np.uint8), recv.view(np.uint8), packets.ADD32, epoch, signature, deadline=deadline, check=nothing
    )
    return recv


def sums(clients, epoch, count=10_000, **how):
    """The sum on every rank, checked."""
    operands = [np.arange(count, dtype=np.uint32) * (rank + 1) for rank in range(len(clients))]
    found = at_once(*(lambda i=i: reduce(clients[i], operands[i], epoch, **how) for i in range(len(clients))))
    for result in found:
        if isinstance(result, BaseException):
            raise result
        np.testing.assert_array_equal(result, sum(operands))


def close(clients):
    for client in clients:
        client.close()


def until(condition):
    """Wait for what another thread does."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def stranger(switch):
    """A socket that is no worker's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.connect(("127.0.0.1", switch.port))
        made.settimeout(PATIENCE_S)
        yield made


def ask_to_join(made, job, rank, size, **more):
    body = {"size": size, "ranks": [rank], "slots": 4, "payload": 1024, "floats": 512, **more}
    made.send(Control(packets.JOIN, job, body=body).pack().tobytes())


def answer(made):
    return Control.unpack(np.frombuffer(made.recv(9000), np.uint8))


# ---------------------------------------------------------------------- joining and leaving


def test_jobs_come_and_go(switch):
    for job in (3, 4, 5):
        clients = joined(switch, job)
        sums(clients, 8)
        close(clients)
    until(lambda: not switch.jobs())
    assert switch.process.switch.free_slots() == switch.process.switch.slots


def test_a_rank_that_does_not_join_is_named(switch):
    found = at_once(*(lambda rank=rank: join(switch, 7, rank, 4, deadline=0.5) for rank in (0, 3)))
    for error in found:
        assert isinstance(error, (DeadlineError, TransportError))
    named = [error for error in found if isinstance(error, DeadlineError)]
    assert named
    assert all("could not be joined within 0.5 s: it waits for rank 1, 2" in str(error) for error in named)
    until(lambda: not switch.jobs())


def test_a_switch_that_does_not_answer():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        with pytest.raises(DeadlineError, match="it has not answered"):
            SwitchClient(f"127.0.0.1:{deaf.getsockname()[1]}", 7, 0, 2, deadline=0.3, check=nothing)


def test_a_check_ends_the_waiting(switch):
    def check():
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        SwitchClient(switch.address, 7, 0, 2, deadline=PATIENCE_S, check=check)
    until(lambda: not switch.jobs())


def test_no_room_and_room_again():
    with serving(slots=1) as switch:
        first = joined(switch, 3)
        for error in at_once(*(lambda rank=rank: join(switch, 4, rank, 2) for rank in range(2))):
            assert isinstance(error, TransportError)
            assert "no room for another job: the switch has 1 jobs of 16, and 0 free slots of 1" in str(error)
        sums(first, 8)
        close(first)
        until(lambda: not switch.jobs())
        second = joined(switch, 5)
        sums(second, 8)
        close(second)


def test_a_job_that_was_left_by_some_gives_way():
    """The others may still want sums repeated, but not for long."""
    with serving(slots=1) as switch:
        first = joined(switch, 3)
        sums(first, 8)
        first[0].close()
        until(lambda: joins(switch))
        close(first)


def joins(switch):
    """Whether there is room for another job."""
    job = time.monotonic_ns()
    clients = at_once(*(lambda rank=rank: join(switch, job, rank, 2) for rank in range(2)))
    if any(isinstance(client, TransportError) for client in clients):
        return False
    close(clients)
    return True


def test_the_same_rank_again(switch):
    """From the same port it is told again what it may have missed; from another one, it is somebody else."""
    with stranger(switch) as one, stranger(switch) as two, stranger(switch) as three:
        ask_to_join(one, 9, 0, 2)
        assert (first := answer(one)).kind == packets.MISSING
        assert first.body == {"ranks": [1]}
        ask_to_join(one, 9, 0, 2)
        assert answer(one).kind == packets.MISSING
        ask_to_join(two, 9, 0, 2)
        assert (refusal := answer(two)).kind == packets.REFUSAL
        assert "rank 0" in refusal.body["text"]
        ask_to_join(three, 9, 1, 2)
        welcomes = [answer(one), answer(three)]
        ask_to_join(one, 9, 0, 2)
        welcomes.append(answer(one))
        assert [welcome.kind for welcome in welcomes] == [packets.WELCOME] * 3
        assert [welcome.body["worker"] for welcome in welcomes] == [0, 1, 0]


def test_ranks_that_think_of_different_jobs(switch):
    with stranger(switch) as one, stranger(switch) as two:
        ask_to_join(one, 9, 0, 2)
        answer(one)
        ask_to_join(two, 9, 1, 3)
        assert answer(two).kind == packets.REFUSAL


def test_too_many_workers(switch):
    most = switch.process.switch.pool.seen.shape[1]
    with contextlib.ExitStack() as stack:
        members = [stack.enter_context(stranger(switch)) for _ in range(most + 1)]
        for rank, member in enumerate(members):
            ask_to_join(member, 9, rank, most + 1)
            assert answer(member).kind == (packets.MISSING if rank < most else packets.REFUSAL)
    clients = joined(switch, 10)
    sums(clients, 8)
    close(clients)


def test_jobs_that_never_complete_are_forgotten(switch):
    with stranger(switch) as made:
        for job in range(1000, 1400):
            ask_to_join(made, job, 0, 2)
            assert answer(made).kind == packets.MISSING
        inner = switch.process.switch
        assert len(switch.jobs()) <= 64
        assert len(inner._gone) <= 64
        assert inner.free_slots() == inner.slots
        ask_to_join(made, 1300, 1, 2)  # such a job is gone; whoever asks is told
        told = answer(made)
        assert told.kind == packets.REFUSAL
        assert "not all ranks had joined" in told.body["text"]
    clients = joined(switch, 10)
    sums(clients, 8)
    close(clients)


def test_closing_twice(switch):
    clients = joined(switch, 3)
    close(clients)
    close(clients)
    clients[0].give_up(8, "gone")


def test_whoever_is_forgotten_leaves(switch):
    clients = joined(switch, 3)
    sums(clients, 8)
    del clients
    gc.collect()
    until(lambda: not switch.jobs())


def test_sums_are_repeated_for_those_who_stay(switch):
    """A rank that has its sum may leave at once, though another one's was lost."""
    clients = joined(switch, 3)
    sums(clients, 8)
    clients[0].close()
    until(lambda: switch.process.switch.pool.failed.max() > 8)
    np.testing.assert_array_equal(reduce(clients[1], np.arange(10_000) * 2, 8), np.arange(10_000) * 3)
    clients[1].close()


def test_whoever_stays_is_told_that_a_rank_has_left(switch):
    clients = joined(switch, 3)
    sums(clients, 8)
    clients[1].close("rank 1 went home")
    with pytest.raises(TransportError, match="rank 1 went home"):
        reduce(clients[0], [1], 16)
    clients[0].close()


# ---------------------------------------------------------------------- operations that fail


def test_whoever_is_behind_a_failure_is_told(switch):
    clients = joined(switch, 3, 3)
    clients[0].give_up(16, "too early")
    until(lambda: switch.process.switch.pool.failed.max() == 16)
    with pytest.raises(FrameError, match="too early"):  # of an operation that others have left no sum will come
        reduce(clients[2], [1, 2, 3], 8)
    sums(clients, 24)
    close(clients)


def test_a_sum_outlives_a_later_failure(switch):
    """What was complete before is repeated."""
    clients = joined(switch, 3)
    sums(clients, 8)
    clients[0].give_up(16, "rank 0 has no more")
    until(lambda: switch.process.switch.pool.failed.max() == 16)
    # As if its sums had got lost on the way: it asks again.
    np.testing.assert_array_equal(reduce(clients[1], np.arange(10_000) * 2, 8), np.arange(10_000) * 3)
    with pytest.raises(FrameError, match="rank 0 has no more"):
        reduce(clients[1], [1], 16)
    sums(clients, 24)
    close(clients)


def test_a_sum_outlives_several_failures(switch):
    """Ranks that are ahead fail, and go on, and use the same slots again."""
    clients = joined(switch, 3)
    sums(clients, 8)
    for epoch in (16, 24, 32):
        with pytest.raises(DeadlineError):
            reduce(clients[0], [1], epoch, deadline=0.1)
        clients[0].give_up(epoch, "too late")
    np.testing.assert_array_equal(reduce(clients[1], np.arange(10_000) * 2, 8), np.arange(10_000) * 3)
    for epoch in (16, 24, 32):
        with pytest.raises(FrameError, match="too late"):
            reduce(clients[1], [1], epoch)
    sums(clients, 40)
    close(clients)


def test_signatures_that_differ(switch):
    clients = joined(switch, 3)
    found = at_once(*(lambda i=i: reduce(clients[i], [1], 8, signature=i) for i in range(2)))
    for error in found:
        assert isinstance(error, FrameError)
        assert "differs from those before it" in str(error)
    sums(clients, 16)
    close(clients)


def test_texts_of_any_length_and_letters(switch):
    clients = joined(switch, 3)
    clients[0].give_up(8, "Größe \x00 \"'\\" * 1000)
    with pytest.raises(FrameError, match="Gr"):
        reduce(clients[1], [1], 8)
    close(clients)


def test_who_is_late_is_named(switch):
    clients = joined(switch, 3, 3)
    with pytest.raises(DeadlineError, match=r"for 0\.3 s: it waits for rank 0, 2"):
        reduce(clients[1], [1], 8, deadline=0.3)
    close(clients)


def test_a_switch_that_ends(switch):
    clients = joined(switch, 3)
    switch.stop()
    for client in clients:
        with pytest.raises(TransportError, match="nothing listens there"):
            reduce(client, [1], 8)
    close(clients)


def test_a_switch_that_has_never_heard_of_the_job(switch):
    clients = joined(switch, 3)
    switch.stop()
    with serving(port=switch.port), pytest.raises(TransportError, match="does not know this job: it was started anew"):
        reduce(clients[0], [1], 8)
    close(clients)


# ---------------------------------------------------------------------- strangers


def garbage(generator, jobs):
    """Bytes that look like a packet here and there."""
    data = generator.integers(0, 256, generator.integers(0, 400), np.uint8)
    words = np.zeros(-(-data.size // 8), np.uint64)
    words.view(np.uint8)[: data.size] = data
    shape = generator.integers(3)
    if shape and words.size > 5:
        kind = generator.integers(0, packets.KINDS + 1)
        words[0] = packets.MAGIC | int(kind) << 32 | int(generator.integers(0, 13)) << 40
        words[1] = jobs[generator.integers(len(jobs))]
        if shape == 2:
            words[2] = 8
            words[3:5] = generator.integers(0, 3, 2)
    return words.view(np.uint8)[: data.size].tobytes()


def test_garbage_changes_nothing(switch):
    """At the switch's port and at the workers', while operations go on."""
    clients = joined(switch, 3)
    sums(clients, 8)
    ports = [client._socket.getsockname()[1] for client in clients]
    ended = threading.Event()
    sent = []

    def throw():
        generator = np.random.default_rng(zlib.crc32(b"garbage"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            while not ended.is_set() or len(sent) < 3000:
                for port in (switch.port, *ports):
                    made.sendto(garbage(generator, [0, 3, 4, 2**64 - 1]), ("127.0.0.1", port))
                sent.append(1)
                if len(sent) % 20 == 0:
                    time.sleep(0.001)

    thread = threading.Thread(target=throw, daemon=True)
    thread.start()
    try:
        for epoch in range(16, 400, 8):
            sums(clients, epoch)
    finally:
        ended.set()
        thread.join(PATIENCE_S)
    sums(clients, 800)
    counts = switch.counts
    for counter in ("malformed", "unknown job", "strangers"):
        assert counts[counter] > 10, counts
    close(clients)


@pytest.mark.parametrize(
    "control",
    [
        Control(packets.GIVE_UP, 3, 0, 2**64 - 1, body={"text": "x"}),
        Control(packets.GIVE_UP, 3, 0, 2**63 - 1, body={"text": ["x"] * 100}),
        Control(packets.GIVE_UP, 3, 0, 0, body={"text": None}),
        Control(packets.STATUS, 3, 2**16 - 1, 2**64 - 1, 2**32 - 1, 2**32 - 1),
        Control(packets.STATUS, 3, 0, 2**64 - 1, 2**32 - 1, 0),
        Control(packets.WELCOME, 3, body={"slots": "many"}),
        Control(packets.FAILURE, 3, 0, 2**64 - 1),
        Control(packets.MISSING, 3, body={"ranks": [10**300]}),
        Control(packets.REFUSAL, 2**64 - 1),
        Control(packets.JOIN, 3, body={"size": 10**300, "ranks": [1], "slots": 1, "payload": 8, "floats": 4}),
        Control(packets.JOIN, 3, body={"size": 2, "ranks": [[0]], "slots": 1, "payload": 8, "floats": 4}),
        Control(packets.JOIN, 3, body={"size": 2, "ranks": [{}], "slots": True, "payload": -8, "floats": 0.5}),
        Control(packets.JOIN, 3, body={"size": 2, "ranks": {"0": 0}, "slots": 1, "payload": 8, "floats": 4}),
        Control(packets.JOIN, 0, body={"size": 2, "ranks": [0], "slots": 1, "payload": 8, "floats": 4}),
        Control(
            packets.JOIN, 77, body={"size": 2**31 - 1, "ranks": [2**31 - 2], "slots": 9, "payload": 1, "floats": 1}
        ),
        Control(packets.LEAVE, 2**64 - 1),
    ],
)
def test_hostile_numbers_from_a_member(switch, control):
    """Also a member does not end the switch, nor other jobs' operations."""
    clients, others = joined(switch, 3), joined(switch, 4)
    received = switch.counts["received"]
    clients[0]._socket.send(control.pack().tobytes())
    until(lambda: switch.counts["received"] > received)
    sums(others, 8)
    sums(clients, 16)
    close(clients + others)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"program": "another"}, {"program": "exact", "worker": 0, "slots": 0, "payload": 8192, "floats": 1},
        {"program": "exact", "worker": 0, "slots": 10**9, "payload": 8192, "floats": 1},
        {"program": "exact", "worker": 0, "slots": 1, "payload": 10**12, "floats": 1},
        {"program": "exact", "worker": 10**9, "slots": 1, "payload": 8192, "floats": 1},
        {"program": "exact", "worker": -1, "slots": 1, "payload": 8192, "floats": 1},
        {"program": ["exact"], "worker": "0", "slots": 1, "payload": 8192, "floats": None},
    ],
)  # fmt: skip
def test_a_switch_that_offers_what_cannot_be(body):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as odd:
        odd.bind(("127.0.0.1", 0))
        odd.settimeout(PATIENCE_S)

        def reply():
            _, name = odd.recvfrom(9000)
            odd.sendto(Control(packets.WELCOME, 7, body=body).pack().tobytes(), name)

        thread = threading.Thread(target=reply, daemon=True)
        thread.start()
        with pytest.raises(TransportError, match=r"another version|offers"):
            SwitchClient(f"127.0.0.1:{odd.getsockname()[1]}", 7, 0, 2, deadline=PATIENCE_S, check=nothing)
        thread.join(PATIENCE_S)


def test_small_buffers_make_few_slots(switch, monkeypatch):
    """Where the system grants little memory, less is under way at once."""
    from collcomp.switch import datagrams

    def capped(made, force, option, nbytes):
        made.setsockopt(socket.SOL_SOCKET, option, 100_000)

    monkeypatch.setattr(datagrams, "_set_buffer", capped)
    clients = joined(switch, 3)
    assert clients[0]._worker.chunks.size == 200_000 // (18 << 10)
    sums(clients, 8, 100_000)
    close(clients)


def test_addresses_are_as_the_switch_sees_them(switch):
    clients = joined(switch, 3)
    names = switch.process.switch.pool.names
    own = [int(pack_address("127.0.0.1", c._socket.getsockname()[1]).view(np.uint64)[0]) for c in clients]
    assert own == [int(name) for name in names[0, :2, 0]]
    close(clients)
