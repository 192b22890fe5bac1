"""What a switch does with packets that are none of its own, and how jobs come and go."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collcomp.kernels import cpu
from collcomp.kernels.cpu import packets
from collcomp.kernels.cpu.registers import COUNTERS
from collcomp.switch.control import Control
from collcomp.switch.pool import aligned
from collcomp.switch.programs import EXACT
from collcomp.switch.switch import Switch
from collcomp.switch.worker import begin, make_worker

JOB, WORKERS, SLOTS, PAYLOAD = 77, 3, 4, 64
ELEMENTS = 150
_KERNELS = cpu.load("worker")


def join(switch, rank, name, job=JOB, size=WORKERS, slots=SLOTS):
    body = {"size": size, "ranks": [rank], "slots": slots, "payload": PAYLOAD, "floats": PAYLOAD}
    answers = switch.receive(Control(packets.JOIN, job, rank, body=body).pack(), name, 0.0)
    return [(answer.name, Control.unpack(np.concatenate([answer.header, answer.payload]))) for answer in answers]


def counters(switch):
    return dict(zip(COUNTERS, switch.pool.counters.tolist(), strict=True))


class Job:
    """Workers at a switch, at one operation; names are 10, 11, ..."""

    def __init__(self, switch, operands, job=JOB, epoch=1, join_too=True):
        self.switch, self.results, self.texts = switch, [np.zeros_like(x) for x in operands], set()
        for rank in range(len(operands)):
            if join_too:
                welcomes = join(switch, rank, 10 + rank, job, len(operands))
        if join_too:
            assert [control.kind for _, control in welcomes] == [packets.WELCOME] * len(operands)
        self.workers = []
        for rank, (send, recv) in enumerate(zip(operands, self.results, strict=True)):
            worker = make_worker(EXACT, job, rank, SLOTS, len(operands))
            worker = begin(worker, send.view(np.uint8), recv.view(np.uint8), packets.FLOAT32, PAYLOAD, epoch, 5)
            _KERNELS.start(worker, 0.0)
            self.workers.append(worker)

    def due(self, rank, now=0.0):
        """Packets that a worker sends."""
        sent = []
        while True:
            slot, _ = _KERNELS.next_due(self.workers[rank], now)
            if slot < 0:
                return sent
            packet = aligned(packets.HEADER_NBYTES + PAYLOAD)
            low, nbytes = _KERNELS.prepare(
                self.workers[rank], slot, now, packet.view(np.uint64)[: packets.HEADER_WORDS]
            )
            packet[packets.HEADER_NBYTES :][:nbytes] = self.workers[rank].send[low : low + nbytes]
            sent.append(packet[: packets.HEADER_NBYTES + nbytes])

    def deliver(self, packet, name, now=0.0):
        for answer in self.switch.receive(packet, name, now):
            whole = aligned(answer.header.size + answer.payload.size)
            nbytes = answer.header.size + answer.payload.size
            whole[:nbytes] = np.concatenate([answer.header, answer.payload])
            if whole[4] == packets.FAILURE:
                self.texts.add(Control.unpack(whole[:nbytes]).body["text"])
            elif 10 <= answer.name < 10 + len(self.workers):
                _KERNELS.accept(self.workers[answer.name - 10], whole, whole.view(np.uint64), nbytes, now)

    def finish(self, rounds=40):
        """Send whatever is due until all have their sums."""
        for now in range(rounds):
            for rank in range(len(self.workers)):
                for packet in self.due(rank, 10.0 * now):
                    self.deliver(packet, 10 + rank, 10.0 * now)
        return self.results


OPERANDS = [np.arange(ELEMENTS, dtype=np.float32) * 1000.0**rank for rank in range(WORKERS)]
SUM = sum(x.astype(np.float64) for x in OPERANDS).astype(np.float32)


def begun(joined=True):
    """A job of which some packets are in the registers, and a packet of each worker."""
    job = Job(Switch(EXACT, slots=8, payload_nbytes=PAYLOAD), OPERANDS)
    sent = [job.due(rank) for rank in range(WORKERS)]
    for rank, count in enumerate([3, 2, 1]):
        for packet in sent[rank][:count]:
            job.deliver(packet, 10 + rank)
    return job, [packet for of_rank in sent for packet in of_rank]


def assert_sums(job):
    for result in job.finish():
        np.testing.assert_array_equal(result, SUM)


@given(st.lists(st.tuples(st.binary(max_size=200), st.integers(0, 20)), max_size=20))
def test_random_bytes_change_no_sum(garbage):
    job, _ = begun()
    for data, name in garbage:
        job.deliver(np.frombuffer(data, np.uint8), name)
    assert_sums(job)
    assert counters(job.switch)["malformed"] >= len(garbage)


@given(st.data())
def test_random_bytes_behind_a_header_change_no_sum(data):
    job, _ = begun()
    for _ in range(5):
        kind = data.draw(st.integers(0, 255))
        body = data.draw(st.one_of(st.binary(max_size=100), st.builds(lambda x: json.dumps(x).encode(), _JSON)))
        number = data.draw(st.sampled_from([0, JOB, JOB + 1, 2**64 - 1]))
        words = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4))
        header = np.array([packets.MAGIC | kind << 32, number, *words], np.uint64).view(np.uint8)
        # Not from a member: those may leave and give up.
        job.deliver(np.concatenate([header, np.frombuffer(body, np.uint8)]), data.draw(st.integers(0, 9)))
    assert_sums(job)


_JSON = st.dictionaries(
    st.sampled_from(["size", "ranks", "slots", "payload", "floats", "text"]),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=4)),
)


@given(st.data())
def test_packets_that_were_changed_on_their_way_change_no_sum(data):
    """Excluded: what still says that it is its sender's contribution to this job. UDP's checksum is for those."""
    job, sent = begun()
    before = counters(job.switch)
    changed_ones = 0
    for _ in range(data.draw(st.integers(1, 10))):
        packet = data.draw(st.sampled_from(sent)).copy()
        rank = int(packet[6])
        for _ in range(data.draw(st.integers(1, 4))):
            packet[data.draw(st.integers(0, packets.HEADER_NBYTES - 1))] ^= data.draw(st.integers(1, 255))
        own = packet[:5].tobytes() == sent[0][:5].tobytes() and int(packet[6:8].view(np.uint16)[0]) == rank
        if own and packet[8:16].tobytes() == sent[0][8:16].tobytes():
            continue
        changed_ones += 1
        job.deliver(packet, 10 + rank)
    after = counters(job.switch)
    refused = sum(after[name] - before[name] for name in ("malformed", "unknown_job", "strangers"))
    assert refused == changed_ones
    assert_sums(job)


def changed(packet, word, shift, bits, value):
    copy = packet.copy()
    words = copy[: packets.HEADER_NBYTES].view(np.uint64)
    words[word] = (int(words[word]) & ~(((1 << bits) - 1) << shift)) | value << shift
    return copy


@pytest.mark.parametrize(
    ("counter", "change"),
    [
        ("malformed", lambda packet: packet[:47]),
        ("malformed", lambda packet: packet[:-1]),
        ("malformed", lambda packet: np.append(packet, np.uint8(0))),
        ("malformed", lambda packet: changed(packet, 0, 0, 32, packets.MAGIC + 1)),
        ("malformed", lambda packet: changed(packet, 0, 32, 8, packets.KINDS)),
        ("malformed", lambda packet: changed(packet, 0, 40, 8, 12)),
        ("malformed", lambda packet: changed(packet, 0, 48, 16, WORKERS)),
        ("malformed", lambda packet: changed(packet, 3, 32, 32, SLOTS)),
        ("malformed", lambda packet: changed(packet, 3, 32, 32, 0)),
        ("malformed", lambda packet: changed(packet, 4, 32, 32, 17)),
        ("malformed", lambda packet: changed(packet, 4, 32, 32, 2**31)),
        ("malformed", lambda packet: changed(packet, 5, 32, 16, 3)),
        ("malformed", lambda packet: changed(packet, 5, 48, 16, packets.PARTS)),
        ("strangers", lambda packet: changed(packet, 0, 48, 16, 1)),
        ("strangers", lambda packet: changed(packet, 0, 32, 8, packets.RESULT)),
        ("unknown_job", lambda packet: changed(packet, 1, 0, 64, JOB + 1)),
        ("unknown_job", lambda packet: changed(packet, 1, 0, 64, 0)),
        ("malformed", lambda packet: changed(packet, 2, 0, 64, 0)),
        ("malformed", lambda packet: changed(packet, 2, 0, 64, 2**63)),
    ],
)
def test_what_does_not_fit_is_counted_and_dropped(counter, change):
    job, sent = begun()
    packet = sent[3]  # of worker 0, to slot 3: not there yet
    before = counters(job.switch)
    job.deliver(change(packet), 10)
    after = counters(job.switch)
    assert {name: after[name] - before[name] for name in COUNTERS if after[name] != before[name]} == {
        "received": 1, counter: 1,
    }  # fmt: skip
    assert_sums(job)


def test_duplicates_and_late_packets_are_counted_and_dropped():
    job, sent = begun()
    before = counters(job.switch)
    job.deliver(sent[0], 10)
    assert counters(job.switch)["duplicates"] == before["duplicates"] + 1
    assert_sums(job)
    before = counters(job.switch)
    for packet in sent:
        job.deliver(packet, 10 + int(packet[6]))
    assert counters(job.switch)["stale"] > before["stale"]
    job = Job(job.switch, OPERANDS, epoch=2, join_too=False)
    for packet in sent:
        job.deliver(packet, 10 + int(packet[6]))
    assert_sums(job)


def test_a_packet_from_another_address_is_not_added():
    job, sent = begun()
    job.deliver(sent[3], 11)
    assert counters(job.switch)["strangers"] == 1
    assert_sums(job)


def test_a_contribution_unlike_the_others_fails_the_operation_for_all():
    job, sent = begun()
    job.deliver(changed(sent[WORKERS * 2 - 2], 4, 0, 32, 6), 10 + int(sent[WORKERS * 2 - 2][6]))
    assert counters(job.switch)["unlike"] == 1
    assert job.texts == {"the call of rank 1 differs from those before it in count, dtype, op or codec"}
    assert_sums(Job(job.switch, OPERANDS, epoch=2, join_too=False))


def control(switch, kind, name, job=JOB, **fields):
    answers = switch.receive(Control(kind, job, **fields).pack(), name, 0.0)
    return [(answer.name, Control.unpack(np.concatenate([answer.header, answer.payload]))) for answer in answers]


def test_status_names_those_who_have_not_sent():
    job, _ = begun()
    for slot, missing in enumerate([[], [2], [1, 2], [1, 2]]):
        answers = control(job.switch, packets.STATUS, 10, epoch=1, chunk=slot, slot=slot)
        assert [(name, answer.kind, answer.body) for name, answer in answers] == [
            (10, packets.MISSING, {"ranks": missing})
        ]
    assert control(job.switch, packets.STATUS, 10, epoch=1, chunk=9, slot=SLOTS) == []
    assert control(job.switch, packets.STATUS, 9, epoch=1) == []
    assert counters(job.switch)["strangers"] == 1


def test_slots_are_free_again_when_all_workers_have_left():
    job, sent = begun()
    switch = job.switch
    assert switch.free_slots() == 4
    assert control(switch, packets.LEAVE, 9) == []
    assert switch.free_slots() == 4
    for name in (11, 12, 10):
        assert switch.free_slots() == 4
        control(switch, packets.LEAVE, name, body={"text": f"rank {name - 10} was told to"})
    assert switch.free_slots() == 8
    job.deliver(sent[3], 10)
    assert job.texts == {"rank 1 was told to"}
    # The same number is not used again; another job finds registers as good as new.
    assert [answer.kind for _, answer in join(switch, 0, 10)] == [packets.REFUSAL]
    assert_sums(Job(switch, OPERANDS, job=JOB + 1))


def test_a_silent_job_makes_room():
    switch = Switch(EXACT, slots=8, payload_nbytes=PAYLOAD)
    Job(switch, OPERANDS, job=1), Job(switch, OPERANDS, job=2)
    body = {"size": 1, "ranks": [0], "slots": 4, "payload": PAYLOAD, "floats": PAYLOAD}
    for now, kind, jobs in [(59.0, packets.REFUSAL, {1, 2}), (61.0, packets.WELCOME, {2, 4})]:
        number = 3 if kind == packets.REFUSAL else 4
        (answer,) = switch.receive(Control(packets.JOIN, number, body=body).pack(), 30, now)
        assert (answer.header[4], set(switch.jobs())) == (kind, jobs)


def test_giving_up_fails_the_operation_for_all_and_no_later_one():
    job, sent = begun()
    text = 'they said "stop": \u00e4\u00f6\u00fc' + "x" * 200
    answers = control(job.switch, packets.GIVE_UP, 11, epoch=1, body={"text": text})
    assert [(name, answer.kind, answer.epoch) for name, answer in answers] == [
        (10 + r, packets.FAILURE, 1) for r in range(3)
    ]
    job.deliver(sent[3], 10)
    assert job.texts == {text.translate({0xE4: "?", 0xF6: "?", 0xFC: "?"})}
    assert counters(job.switch)["failed"] == 1
    assert (
        control(job.switch, packets.GIVE_UP, 11, epoch=0) == control(job.switch, packets.GIVE_UP, 11, epoch=2**63) == []
    )
    # Three operations: each version of each slot is used after the one that failed.
    for epoch in (2, 3, 4):
        assert_sums(Job(job.switch, OPERANDS, epoch=epoch, join_too=False))


_GOOD = {"size": 3, "ranks": [0], "slots": 4, "payload": PAYLOAD, "floats": 4}


@pytest.mark.parametrize(
    "body",
    [
        {},
        *({key: value for key, value in _GOOD.items() if key != without} for without in _GOOD),
        *(_GOOD | {"ranks": ranks} for ranks in ([], [3], [-1], [0, 0], ["0"], [[0]], [[0, 1 << 30]], 0, None)),
        *(_GOOD | {"slots": slots} for slots in (0, -1, 1.5, True, None, 1 << 40, "4")),
    ],
)
def test_malformed_joins(body):
    switch = Switch(EXACT, slots=8, payload_nbytes=PAYLOAD)
    assert switch.receive(Control(packets.JOIN, JOB, body=body).pack(), 9, 0.0) == []
    assert counters(switch)["malformed"] == 1
    assert switch.jobs() == {}
    (answer,) = switch.receive(Control(packets.JOIN, JOB, body=_GOOD).pack(), 9, 0.0)
    assert answer.header[4] == packets.MISSING  # the other ranks
    assert switch.jobs() == {JOB: [0]}


def test_members_do_not_change():
    switch = Switch(EXACT, slots=8, payload_nbytes=PAYLOAD)
    Job(switch, OPERANDS)
    assert [answer.kind for _, answer in join(switch, 1, 11)] == [packets.WELCOME]  # that was lost
    for rank, name, size in [(1, 12, 3), (0, 13, 3), (3, 13, 4)]:
        ((to, answer),) = join(switch, rank, name, size=size)
        assert (to, answer.kind) == (name, packets.REFUSAL)
    assert_sums(Job(switch, OPERANDS, join_too=False))


@pytest.mark.parametrize(("pieces", "kind"), [(64, packets.JOIN), (65, packets.REFUSAL)])
def test_a_leaf_names_its_ranks_in_one_packet(pieces, kind):
    leaf = Switch(EXACT, slots=8, payload_nbytes=PAYLOAD, most_workers=pieces, parent=5, ranks_below=pieces)
    for rank in range(60000, 60000 + 2 * pieces, 2):
        answers = join(leaf, rank, rank, size=65536)
    assert {answer.kind for _, answer in answers} == {kind}
    assert bool(leaf.jobs()) == (kind == packets.JOIN)


def leaf_of(slots, ranks=2):
    return Switch(EXACT, slots=slots, payload_nbytes=PAYLOAD, parent=5, ranks_below=ranks)


def welcomed_above(leaf, job, slots, now):
    """The switch above lets a leaf into a job."""
    body = {"program": "exact", "slots": slots, "payload": PAYLOAD, "floats": 8, "worker": 0}
    answers = leaf.receive(Control(packets.WELCOME, job, body=body).pack(), 5, now)
    return [answer.header[4] for answer in answers]


def joins_above(leaf, job, now, slots=SLOTS):
    """Two ranks join through a leaf; what it says last, and to whom."""
    for rank in range(2):
        body = {"size": 4, "ranks": [rank], "slots": slots, "payload": PAYLOAD, "floats": PAYLOAD}
        answers = leaf.receive(Control(packets.JOIN, job, rank, body=body).pack(), 100 * job + rank, now)
    return [(answer.name, Control.unpack(np.concatenate([answer.header, answer.payload]))) for answer in answers]


def test_a_leaf_takes_slots_from_a_silent_job():
    leaf = leaf_of(SLOTS)
    joins_above(leaf, 1, 0.0)
    assert welcomed_above(leaf, 1, SLOTS, 0.0) == [packets.WELCOME] * 2
    assert {answer.kind for _, answer in joins_above(leaf, 2, 50.0)} == {packets.REFUSAL}
    ((name, asked),) = joins_above(leaf, 3, 1000.0)
    assert (name, asked.kind, asked.body["slots"]) == (5, packets.JOIN, SLOTS)
    assert welcomed_above(leaf, 3, SLOTS, 1000.0) == [packets.WELCOME] * 2


def test_a_leaf_asks_for_as_many_slots_as_lie_together():
    leaf = leaf_of(12)
    for job in (1, 2, 3):
        joins_above(leaf, job, 0.0)
        welcomed_above(leaf, job, 4, 0.0)
    for rank in range(2):
        control_of(leaf, packets.LEAVE, 100 + rank, 1)
        control_of(leaf, packets.LEAVE, 300 + rank, 3)
    ((_, asked),) = joins_above(leaf, 4, 0.0, slots=8)
    assert asked.body["slots"] == 4


def control_of(switch, kind, name, job):
    return switch.receive(Control(kind, job).pack(), name, 0.0)


def test_what_a_leaf_hears_from_above_is_checked():
    leaf = leaf_of(SLOTS)
    joins_above(leaf, 1, 0.0)
    body = {"ranks": ["\u00e9" * 50, -1, *range(3)], "more": "\u00e9" * 50}
    for answer in leaf.receive(Control(packets.MISSING, 1, body=body).pack(), 5, 0.0):
        assert Control.unpack(np.concatenate([answer.header, answer.payload])).body == {"ranks": [0, 1, 2]}
