"""Program `switchml`: block fixed point with exponents one window ahead."""

import numpy as np
import pytest
from switch_loop import Job, finish, new_switch, ready, summed, take, unpacked

from collcomp.kernels import cpu
from collcomp.kernels.cpu import packets, progress, registers
from collcomp.switch.control import Control
from collcomp.switch.pool import aligned
from collcomp.switch.programs import PROGRAMS, switchml
from collcomp.switch.switch import Switch
from collcomp.switch.worker import begin, make_worker

fixed_point = cpu.load("fixed_point")
SMALL = switchml(64)


def bound(arrays, elements):
    """Most that a sum may differ from that of real numbers.

    With n workers, scale s, and u = 2**-24: a product with s is rounded by u of itself, then to an integer by 1/2; the
    sum of the integers is exact; its conversion to float32 and the division by s are rounded by u each. In units of 1/s
    that is n / 2 + u * sum(abs(x)) * s, and twice u of the result, and little more for products of errors.
    """
    x = np.array(arrays, np.float64)
    u = 2.0**-24
    steps = np.empty(x.shape[1])
    for low in range(0, x.shape[1], elements):
        part = slice(low, low + elements)
        largest = np.abs(x[:, part]).max()
        e = int(np.floor(np.log2(largest))) + 1 if largest else -126
        steps[part] = len(arrays) * 2.0**e / (2**31 - 1)
    return 1.000001 * (len(arrays) / 2 * steps + u * np.abs(x).sum(0) + 2 * u * np.abs(x.sum(0)))


def floats(n, count, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_t(3, count) * 1e-2).astype(np.float32) for _ in range(n)]


@pytest.mark.parametrize("elements", [64, 256])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 255, 256, 257, 1000, 5000])
def test_sums_are_within_the_bound_for_every_number_of_chunks(elements, count):
    arrays = floats(3, count)
    found = summed(switchml(elements), arrays)
    for y in found:
        assert y.tobytes() == found[0].tobytes()
    difference = np.abs(found[0].astype(np.float64) - np.array(arrays, np.float64).sum(0))
    assert (difference <= bound(arrays, elements)).all() if count else found[0].size == 0


@pytest.mark.parametrize("n", [1, 2, 5, 8, 31, 32])
def test_sums_of_largest_numbers_do_not_overflow(n):
    x = np.float32(1 - 2.0**-24)  # the largest float32 below 2**0
    for sign in (1, -1):
        arrays = [np.full(70, sign * x, np.float32) for _ in range(n)]
        found = summed(SMALL, arrays)[0]
        assert (np.abs(found.astype(np.float64) - sign * n * np.float64(x)) <= bound(arrays, 64)).all()


def test_every_chunk_has_its_own_exponent():
    rng = np.random.default_rng(1)
    arrays = [(rng.standard_normal(64 * 40) * np.repeat(10.0 ** rng.integers(-20, 20, 40), 64)).astype("f4")] * 4
    found = summed(SMALL, arrays)[0]
    assert (np.abs(found - np.array(arrays, np.float64).sum(0)) <= bound(arrays, 64)).all()


@pytest.mark.parametrize("seed", range(6))
def test_lost_and_doubled_packets_change_no_bit(seed):
    arrays = floats(4, 64 * 21 + 5, seed)
    expected = summed(SMALL, arrays)[0]
    for y in summed(SMALL, arrays, seed=seed, loss=0.15, duplicates=0.15):
        assert y.tobytes() == expected.tobytes()


def test_operations_follow_each_other_on_the_same_slots():
    job = Job(new_switch(SMALL), 7, 3)
    for seed, count in enumerate((500, 10, 0, 64 * 9, 2000)):
        arrays = floats(3, count, seed)
        job.begin(arrays)
        found = finish([job], seed=seed, loss=0.1)[0][0]
        assert count == 0 or (np.abs(found - np.array(arrays, np.float64).sum(0)) <= bound(arrays, 64)).all()


def test_int32_is_added_modulo_its_width():
    rng = np.random.default_rng(2)
    arrays = [rng.integers(-(2**31), 2**31, 1000).astype(np.int32) for _ in range(3)]
    expected = (arrays[0].astype(np.int64) + arrays[1] + arrays[2]).astype(np.int32)
    for y in summed(SMALL, arrays):
        np.testing.assert_array_equal(y, expected)


def test_an_operation_after_one_without_conversion_leaves_its_buffer_alone():
    job = Job(new_switch(SMALL), 7, 2)
    integers = [np.arange(job.slots * 64, dtype=np.int32) for _ in range(2)]
    job.begin(integers)
    finish([job])
    job.begin(floats(2, 600))
    finish([job])
    for array in integers:
        np.testing.assert_array_equal(array, np.arange(job.slots * 64))


def test_the_first_round_carries_exponents_only():
    job = Job(new_switch(SMALL), 7, 2)
    arrays = [np.full(64 * 6, 0.75, np.float32), np.full(64 * 6, 5.0, np.float32)]
    job.begin(arrays)
    first = [ready(worker, 0.0) for worker in job.workers]
    assert [packet.size for packet in first[0]] == [packets.HEADER_NBYTES] * 4
    exponents = [[int(packet[40:44].view(np.int32)[0]) for packet in sent] for sent in first]
    assert exponents == [[0] * 4, [3] * 4]
    for rank, sent in enumerate(first):
        for packet in sent:
            outs = job.switch.receive(packet, job.names[rank], 0.0)
    for out in outs:
        assert out.header[40:44].view(np.int32)[0] == 3
        assert take(job.workers[job.names.index(out.name)], out)
    (second,) = ready(job.workers[0], 0.0)
    scale = (2**31 - 1) / (2 * 2.0**3)
    np.testing.assert_array_equal(second[packets.HEADER_NBYTES :].view(np.int32), np.rint(0.75 * scale))
    # 6 chunks in 4 slots: chunk 7 carries elements of chunk 3, after which slot 3 has none.
    assert second[40:44].view(np.int32)[0] == fixed_point.LOWEST_EXPONENT


def test_exponents_are_those_of_the_original():
    values = {0.0: -126, 1e-45: -126, 0.5: 0, 0.75: 0, 1.0: 1, -3.0: 2, 2.0**126: 127, 2.0**127: -128, np.inf: -127}
    for value, expected in values.items():
        assert fixed_point.exponent(np.array([value, 0.0], np.float32)) == expected
    assert fixed_point.exponent(np.array([np.nan, -np.nan, 1.0], np.float32)) == 1
    assert fixed_point.exponent(np.empty(0, np.float32)) == -126


def alone(*columns):
    """The first of 64 sums, where each worker has one of the numbers, and 1.0 behind it; the sum of those, too."""
    arrays = [np.array([value, 1.0] + [0.0] * 62, np.float32) for value in columns]
    return summed(SMALL, arrays)[0][:2].tolist()


def test_faults_of_the_original_are_kept():
    # The exponents -127 and -128 make the scale infinite: all sums of the packet are zeros.
    assert alone(np.inf, np.inf) == [0.0, 0.0]
    assert alone(2.0**127, -(2.0**127)) == [0.0, 0.0]
    # Another worker's exponent (here of 1.0: 1) is larger: infinity counts as -workers * 2**e, and so does NaN.
    assert alone(np.inf, 0.0) == pytest.approx([-4.0, 2.0])
    assert alone(-np.inf, 0.0) == pytest.approx([-4.0, 2.0])
    assert alone(np.nan, 0.0) == pytest.approx([-4.0, 2.0])
    # Two of them are -2**32, which is 0.
    assert alone(np.nan, np.nan) == pytest.approx([0.0, 2.0])
    # The scale is too large, or too small, for float32.
    assert summed(SMALL, [np.full(3, 1e-31, np.float32)] * 2)[0].tolist() == [0.0] * 3
    assert np.isnan(summed(SMALL, [np.full(3, 2.0**126, np.float32)] * 2)[0]).all()


def test_zeros_of_an_odd_number_of_workers_are_negative():
    for n, sign in ((2, False), (3, True)):
        found = summed(SMALL, [np.zeros(5, np.float32)] * n)[0]
        assert not found.any()
        assert (np.signbit(found) == sign).all()


def test_more_than_32_workers_are_refused():
    switch = new_switch(SMALL)
    join = Control(packets.JOIN, 9, 0, body={"size": 33, "ranks": [0], "slots": 4, "payload": 256, "floats": 64})
    (out,) = switch.receive(join.pack(), 1, 0.0)
    answer = Control.unpack(np.concatenate([out.header, out.payload]))
    assert answer.kind == packets.REFUSAL
    assert answer.body["text"] == "program 'switchml' takes 32 workers, not 33"
    assert not switch.jobs()


def test_timer_is_doubled_after_100_timeouts_then_after_200_more():
    job = Job(new_switch(SMALL), 7, 2, slots=1)
    job.begin(floats(2, 10))
    worker, now, sent_at = job.workers[0], 0.0, []
    while len(sent_at) < 305:
        assert len(ready(worker, now)) == 1
        sent_at.append(now)
        now = worker.due[0]
    waits = np.diff(sent_at)
    assert np.unique(waits.round(6), return_counts=True)[0].tolist() == [0.01, 0.02, 0.04]
    assert np.unique(waits.round(6), return_counts=True)[1].tolist() == [100, 200, 4]


def test_the_pool_is_that_of_the_original():
    program = PROGRAMS["switchml"]
    assert (program.slots, program.payload_nbytes, program.most_workers) == (8192, 1024, 32)
    with pytest.raises(ValueError, match="elements must be 64 or 256, not 128"):
        switchml(128)


def test_a_result_that_is_late_is_not_taken_twice():
    job = Job(new_switch(SMALL), 7, 1, slots=1)
    job.begin(floats(1, 64 * 3))
    worker = job.workers[0]
    (packet,) = ready(worker, 0.0)
    (out,) = job.switch.receive(packet, job.names[0], 0.0)
    assert take(worker, out)
    missing = worker.facts[progress.MISSING]
    assert not take(worker, out)
    assert worker.facts[progress.MISSING] == missing
    job.switch.receive(packet, job.names[0], 0.0)
    assert job.switch.pool.counters[registers.DUPLICATES] == 1


def test_a_tree_agrees_on_exponents_and_adds_as_one_switch_does():
    arrays = floats(4, 64 * 11 + 3)
    root = new_switch(SMALL)
    leaves = {10: [0, 1], 11: [2, 3]}
    switches = {1: root} | {
        name: Switch(SMALL, slots=16, payload_nbytes=256, parent=1, ranks_below=2) for name in leaves
    }
    workers = {}

    def deliver(outs, sender):
        for out in outs:
            if out.name in switches:
                packet = aligned(out.header.size + out.payload.size)[: out.header.size + out.payload.size]
                packet[:] = np.concatenate([out.header, out.payload])
                deliver(switches[out.name].receive(packet, sender, 0.0), out.name)
            elif unpacked(out) is None:
                assert take(workers[out.name], out)

    for name, ranks in leaves.items():
        for rank in ranks:
            body = {"size": 4, "ranks": [rank], "slots": 4, "payload": 256, "floats": 64}
            join = Control(packets.JOIN, 7, rank, body=body)
            deliver(switches[name].receive(join.pack(), 100 + rank, 0.0), name)
    for rank, array in enumerate(arrays):
        worker = make_worker(SMALL, 7, rank % 2, 4, 4)
        recv = np.empty(array.nbytes, np.uint8)
        workers[100 + rank] = begin(worker, array.view(np.uint8), recv, packets.BLOCK32, 256, 1, 5)
        cpu.load("worker").start(workers[100 + rank], 0.0)
    for _ in range(100):
        for rank in range(4):
            for packet in ready(workers[100 + rank], 0.0):
                leaf = 10 + rank // 2
                deliver(switches[leaf].receive(packet, 100 + rank, 0.0), leaf)
    for worker in workers.values():
        assert worker.facts[progress.MISSING] == 0
        assert worker.recv.tobytes() == summed(SMALL, arrays)[0].tobytes()
