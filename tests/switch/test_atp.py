"""Program `atp`: shared aggregators, and a server for what finds its own taken."""

from dataclasses import replace

import numpy as np
import pytest
from switch_loop import Job, finish, new_switch, ready, summed, take, unpacked

from collcomp.kernels.cpu import packets, progress, registers
from collcomp.switch.control import Control
from collcomp.switch.programs import ATP, EXACT
from collcomp.switch.switch import Switch

FEW = replace(ATP, aggregators=3)
FLAGS = slice(44, 46)


def floats(n, count, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(count) * size).astype(np.float32) for _ in range(n)]


def bound(arrays):
    """Most that a sum in fixed point may differ from that of real numbers.

    With n workers, units of 1e-6 and u = 2**-24: a product with 1e6 is rounded by u of itself, then to an integer by
    1/2; the sum of the integers is exact; its conversion to float32 and the division are rounded by u each. In units
    that is n / 2 + u * sum(abs(x)) * 1e6, and twice u of the result, and little more for products of errors.
    """
    x, u = np.array(arrays, np.float64), 2.0**-24
    return 1.000001 * (len(arrays) / 2 * 1e-6 + u * np.abs(x).sum(0) + 2 * u * np.abs(x.sum(0)))


def counters(switch):
    return dict(zip(registers.COUNTERS, switch.pool.counters.tolist(), strict=True))


def idle(switch):
    """Whether all aggregators are free."""
    return (switch.pool.aggregators.owners == -1).all()


@pytest.mark.parametrize("count", [0, 1, 61, 62, 63, 124, 1000, 5000])
def test_sums_are_within_the_bound(count):
    arrays = floats(3, count)
    switch = new_switch(ATP)
    found = summed(ATP, arrays, switch=switch)
    for y in found:
        assert y.tobytes() == found[0].tobytes()
    assert (np.abs(found[0] - np.array(arrays, np.float64).sum(0)) <= bound(arrays)).all()
    assert found[0].size == count
    assert idle(switch)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("program", [ATP, FEW])
def test_lost_and_doubled_packets_change_no_bit(program, seed):
    arrays = floats(4, 62 * 21 + 5, seed)
    arrays[1][100:130] *= 1000  # these chunks are summed as floats
    expected = summed(ATP, arrays)[0]
    switch = new_switch(program)
    for y in summed(program, arrays, switch=switch, seed=seed, loss=0.15, duplicates=0.15):
        assert y.tobytes() == expected.tobytes()
    assert idle(switch)


def test_jobs_collide_and_have_their_own_sums():
    switch = new_switch(FEW)
    jobs = [Job(switch, 7, 3), Job(switch, 8, 2)]
    for epoch in range(3):
        arrays = [floats(job.size, 62 * 30, 10 * epoch + job.number) for job in jobs]
        for job, given in zip(jobs, arrays, strict=True):
            job.begin(given)
        for given, found in zip(arrays, finish(jobs, seed=epoch, loss=0.02), strict=True):
            assert (np.abs(found[0] - np.array(given, np.float64).sum(0)) <= bound(given)).all()
    assert counters(switch)["collisions"] > 0
    assert counters(switch)["flushed"] > 0
    assert idle(switch)


def one_chunk(n, arrays, program=FEW, **kwargs):
    """A job of n workers, each with a packet to send."""
    job = Job(new_switch(program), 7, n, **kwargs)
    job.begin(arrays)
    return job, [ready(worker, 0.0)[0] for worker in job.workers]


def test_a_chunk_that_is_split_between_aggregator_and_server_waits_for_a_packet_that_is_sent_again():
    job, sent = one_chunk(3, [np.full(4, 1.5, np.float32)] * 3)
    switch, owners = job.switch, job.switch.pool.aggregators.owners
    owners[:] = 31  # another chunk's, whatever the hash
    assert switch.receive(sent[0], job.names[0], 0.0) == []
    assert counters(switch)["collisions"] == 1
    owners[:] = -1
    assert switch.receive(sent[1], job.names[1], 0.0) == []
    assert switch.receive(sent[2], job.names[2], 0.0) == []
    assert (owners >= 0).sum() == 1
    # A packet that is doubled on the way is not one that its worker sent again.
    assert switch.receive(sent[0], job.names[0], 0.0) == []
    (again,) = ready(job.workers[0], 0.06)
    assert again[FLAGS].view(np.uint16)[0] == packets.AGAIN
    outs = switch.receive(again, job.names[0], 0.06)
    assert sorted(out.name for out in outs) == job.names
    assert outs[0].header[FLAGS].view(np.uint16)[0] == packets.COLLISION
    np.testing.assert_array_equal(outs[0].payload.view(np.int32), [4500000] * 4)
    assert idle(switch)
    # The server keeps the sum.
    (kept,) = switch.receive(again, job.names[0], 0.07)
    assert kept.name == job.names[0]
    assert kept.payload.tobytes() == outs[0].payload.tobytes()


def test_a_packet_that_is_sent_again_takes_the_partial_sum_along():
    job, sent = one_chunk(3, [np.full(4, float(rank), np.float32) for rank in range(3)])
    for rank in (0, 1):
        job.switch.receive(sent[rank], job.names[rank], 0.0)
    (again,) = ready(job.workers[1], 0.06)
    assert job.switch.receive(again, job.names[1], 0.06) == []
    assert counters(job.switch)["flushed"] == 1
    assert idle(job.switch)
    # The last packet finds an aggregator of its own, where it would stay alone.
    assert job.switch.receive(sent[2], job.names[2], 0.06) == []
    (again,) = ready(job.workers[0], 0.07)
    outs = job.switch.receive(again, job.names[0], 0.07)
    np.testing.assert_array_equal(outs[0].payload.view(np.int32), [3000000] * 4)


def test_sums_that_are_too_large_are_done_again_as_floats():
    arrays = floats(32, 62 * 4, 3, size=0.1)
    for array in arrays:
        array[70:80] += 100.0
    switch = new_switch(ATP)
    found = summed(ATP, arrays, switch=switch)[0]
    chunk = slice(62, 124)
    # All of these numbers are multiples of 2**-45, so that float64 has their sums as they are.
    exact = np.array([array[chunk] for array in arrays], np.float64)
    assert (exact * 2**45 % 1 == 0).all()
    np.testing.assert_array_equal(found[chunk], exact.sum(0).astype(np.float32))
    assert (np.abs(found - np.array(arrays, np.float64).sum(0)) <= bound(arrays)).all()
    assert counters(switch)["overflows"] == 1
    assert idle(switch)


@pytest.mark.parametrize("first", [True, False])
def test_a_partial_sum_that_is_too_large_is_found_however_it_is_merged(first):
    """One aggregator has 11 workers' 210.0, which int32 has no room for; the server has -210.0 before or after."""
    job, sent = one_chunk(12, [np.full(4, -210.0, np.float32)] + [np.full(4, 210.0, np.float32)] * 11)
    switch = job.switch
    (again,) = ready(job.workers[0], 0.06)  # goes to the server
    if first:
        assert switch.receive(again, job.names[0], 0.06) == []
    for packet, name in zip(sent[1:], job.names[1:], strict=True):
        assert switch.receive(packet, name, 0.06) == []
    last, name = (ready(job.workers[1], 0.06)[0], job.names[1]) if first else (again, job.names[0])
    outs = switch.receive(last, name, 0.06)
    assert {int(out.header[FLAGS].view(np.uint16)[0]) for out in outs} == {packets.OVERFLOW | packets.REQUEST}
    for out in outs:
        take(job.workers[job.names.index(out.name)], out)
    assert finish([job])[0][0].tolist() == [2100.0] * 4


def test_numbers_that_are_too_large_are_sent_as_floats_at_once():
    job, sent = one_chunk(3, [np.array([value, 2.0**-30], np.float32) for value in (213.0, -213.5, 3e38)])
    assert [packet[FLAGS].view(np.uint16)[0] for packet in sent] == [0, packets.OVERFLOW, packets.OVERFLOW]
    switch = job.switch
    assert switch.receive(sent[0], job.names[0], 0.0) == []
    outs = switch.receive(sent[1], job.names[1], 0.0)
    assert [out.payload.size for out in outs] == [0] * 3
    for out in outs:
        assert take(job.workers[job.names.index(out.name)], out)
    # Who sent integers sends again at once; who did not hear is told again.
    (lost,) = switch.receive(sent[0], job.names[0], 0.0)
    assert lost.header[FLAGS].view(np.uint16)[0] == packets.OVERFLOW | packets.REQUEST
    (again,) = ready(job.workers[0], 0.0)
    assert again[FLAGS].view(np.uint16)[0] == packets.AGAIN | packets.OVERFLOW
    assert switch.receive(again, job.names[0], 0.0) == []
    outs = switch.receive(sent[2], job.names[2], 0.0)
    np.testing.assert_array_equal(outs[0].payload.view(np.float32), np.array([3e38, 3 * 2.0**-30], np.float32))
    assert take(job.workers[0], outs[0])
    assert counters(switch)["overflows"] == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([np.inf, 1.0], np.inf),
        ([-np.inf, np.nan], np.nan),
        ([np.inf, -np.inf], np.nan),
        ([np.nan, 1.0], np.nan),
        ([1.0, np.nan], np.nan),
        ([3e38, 3e38], np.inf),
        ([3e38, -3e38], 0.0),
        ([1e-7, 1e-7], 0.0),  # below a unit, on each worker
        ([1e-45, 300.0], 300.0),
    ],
)
def test_specials_are_those_of_float32(values, expected):
    found = summed(ATP, [np.array([value, 0.5], np.float32) for value in values], loss=0.1)
    for y in found:
        np.testing.assert_array_equal(y, np.array([expected, 1.0], np.float32))


def test_int32_stays_at_the_ends_of_its_range():
    most, least = 2**31 - 1, -(2**31)
    arrays = [np.array(column, np.int32) for column in ([most, least, 5, 1 << 30], [7, -7, -6, 1 << 30], [-9, 9, 1, 0])]
    for y in summed(ATP, arrays):
        assert y.tolist() == [most, least, 0, most]
    rng = np.random.default_rng(5)
    arrays = [rng.integers(-(2**28), 2**28, 1000).astype(np.int32) for _ in range(5)]
    for y in summed(FEW, arrays, loss=0.05):
        np.testing.assert_array_equal(y, np.sum(arrays, 0))


def test_windows_follow_marks():
    job = Job(new_switch(ATP, slots=64), 7, 1, slots=32)
    job.begin([np.zeros(62 * 2000, np.float32)])
    worker, name, on_the_way = job.workers[0], job.names[0], []

    def after(sums):
        for _ in range(sums):
            on_the_way.extend(ready(worker, 0.0))
            (out,) = job.switch.receive(on_the_way.pop(0), name, 0.0)
            take(worker, out)
        return worker.facts[progress.WINDOW]

    assert after(32) == 32
    job.switch.see_queue(ATP.mark_nbytes - 1)
    assert after(32) == 32
    job.switch.see_queue(ATP.mark_nbytes)
    assert after(1) == 32
    job.switch.see_queue(0)
    assert after(30) == 32
    assert after(1) == 16  # once a window, however many are marked
    assert after(16) == 20
    assert after(20) == 24
    job.switch.see_queue(ATP.mark_nbytes)
    assert after(24) == 12
    assert after(12 + 6 + 3 + 1 + 1 + 1) == 1


@pytest.mark.parametrize("seed", range(5))
def test_windows_that_differ_do_not_wait_for_each_other(seed):
    rng = np.random.default_rng(seed)
    job = Job(new_switch(FEW), 7, 4, slots=8)
    arrays = floats(4, 62 * 40, seed)
    job.begin(arrays)
    for worker in job.workers:
        worker.facts[progress.WINDOW] = rng.integers(1, 4)
    job.switch.see_queue(ATP.mark_nbytes)
    found = finish([job], seed=seed, loss=0.1)[0][0]
    assert (np.abs(found - np.array(arrays, np.float64).sum(0)) <= bound(arrays)).all()
    assert all(worker.facts[progress.WINDOW] == 1 for worker in job.workers)


def test_aggregators_of_a_job_that_fails_or_leaves_are_free_again():
    job, sent = one_chunk(2, floats(2, 62))
    job.switch.receive(sent[0], job.names[0], 0.0)
    assert not idle(job.switch)
    give_up = Control(packets.GIVE_UP, 7, 0, epoch=1, body={"text": "late"})
    assert [unpacked(out).kind for out in job.switch.receive(give_up.pack(), job.names[0], 0.0)] == [
        packets.FAILURE
    ] * 2
    for _ in range(2):  # a slot has two rows
        arrays = floats(2, 62 * 4)
        job.begin(arrays)
        found = finish([job])[0][0]
        assert (np.abs(found - np.array(arrays, np.float64).sum(0)) <= bound(arrays)).all()
    assert idle(job.switch)
    job.begin(floats(2, 62))
    job.switch.receive(ready(job.workers[0], 0.0)[0], job.names[0], 0.0)
    assert not idle(job.switch)
    for name in job.names:
        job.switch.receive(Control(packets.LEAVE, 7).pack(), name, 0.0)
    assert idle(job.switch)


def test_calls_that_differ_are_refused():
    job, sent = one_chunk(2, floats(2, 62))
    job.switch.receive(sent[0], job.names[0], 0.0)
    sent[1][32] ^= 1  # the signature
    outs = job.switch.receive(sent[1], job.names[1], 0.0)
    assert [unpacked(out).kind for out in outs] == [packets.FAILURE] * 2


@pytest.mark.parametrize(
    ("place", "value"),
    [(4 + 1, packets.FLOAT32), (4 + 1, packets.ADD32), (44, packets.REQUEST), (44, packets.ECN), (36, 61)],
)
def test_packets_of_other_programs_are_dropped(place, value):
    job, sent = one_chunk(2, floats(2, 62))
    sent[0][place] = value
    assert job.switch.receive(sent[0], job.names[0], 0.0) == []
    assert counters(job.switch)["malformed"] == 1


def test_exact_drops_packets_of_this_program():
    job = Job(new_switch(EXACT), 7, 2)
    job.begin(floats(2, 62))
    packet = ready(job.workers[0], 0.0)[0]
    packet[5] = packets.FIXED32
    assert job.switch.receive(packet, job.names[0], 0.0) == []
    assert counters(job.switch)["malformed"] == 1


def test_integers_have_no_floats_to_fall_back_on():
    job, sent = one_chunk(2, [np.zeros(62, np.int32)] * 2)
    sent[0][44] = packets.OVERFLOW
    assert job.switch.receive(sent[0], job.names[0], 0.0) == []
    assert counters(job.switch)["malformed"] == 1


def test_it_has_no_trees():
    with pytest.raises(ValueError, match="parent must be None: program 'atp' sums in one switch"):
        Switch(ATP, slots=16, payload_nbytes=248, parent=1)


def test_the_timer_waits_50_ms_then_follows_round_trips_down_to_the_least():
    job, _ = one_chunk(1, floats(1, 62 * 50), ATP, slots=1)
    worker = job.workers[0]
    assert worker.due[0] == pytest.approx(0.05)
    worker.due[0] = worker.tries[0] = worker.facts[progress.IN_FLIGHT] = 0
    now = 0.0
    for _ in range(40):
        (packet,) = ready(worker, now)
        now += 1e-6
        (out,) = job.switch.receive(packet, job.names[0], now)
        take(worker, out, now)
    ready(worker, now)
    assert worker.due[0] - now == pytest.approx(0.0002, rel=0.01)
