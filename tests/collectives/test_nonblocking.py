"""Nonblocking collectives: as their blocking forms, several at a time, and persistent."""

import threading

import numpy as np
import pytest
from helpers import F32, operands, outcomes, run, same_bits, simulated_allreduce

import collcomp
from collcomp.errors import DeadlineError, FrameError

COUNT = 1000


def arguments(comm, name):
    """Arguments of `name` and the buffer that gets its result."""
    size, x = comm.size, operands(comm.size, COUNT * comm.size)[comm.rank]
    part = x[:COUNT].copy()
    whole, small = np.zeros(COUNT * size, F32), np.zeros(COUNT, F32)
    return {
        "allreduce": ((x, whole), whole),
        "reduce": ((x, whole, "sum", 1), whole),
        "reduce_scatter": ((x, small), small),
        "bcast": ((part, 1), part),
        "allgather": ((part, whole), whole),
        "gather": ((part, whole, 1), whole),
        "scatter": ((x, small, 1), small),
        "alltoall": ((x, whole), whole),
    }[name]


NAMES = ("allreduce", "reduce", "reduce_scatter", "bcast", "allgather", "gather", "scatter", "alltoall")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("codec", ["identity", "int8"])
def test_same_as_blocking(name, codec):
    def program(comm):
        args, blocking = arguments(comm, name)
        getattr(comm, name)(*args, codec=codec)
        args, result = arguments(comm, name)
        request = getattr(comm, "i" + name)(*args, codec=codec)
        assert request.wait() is None
        assert request.test()
        assert comm.records[-1].collective == name
        return blocking, result

    for blocking, result in run(3, program):
        assert same_bits(blocking, result)


def test_all_at_once_waited_for_in_any_order():
    def program(comm):
        expected, requests, results = [], [], []
        for name in NAMES:
            args, result = arguments(comm, name)
            getattr(comm, name)(*args, codec="int8")
            expected.append(result)
        for name in NAMES:
            args, result = arguments(comm, name)
            requests.append(getattr(comm, "i" + name)(*args, codec="int8"))
            results.append(result)
        for i in np.random.default_rng(comm.rank).permutation(len(requests)):
            requests[i].wait()
        return expected, results

    for expected, results in run(3, program):
        assert all(same_bits(a, b) for a, b in zip(expected, results, strict=True))


def test_blocking_ones_go_between():
    """A blocking collective need not wait for the nonblocking ones called before it."""

    def program(comm):
        xs = [operands(comm.size, 50_000, seed=s)[comm.rank] for s in range(6)]
        results = [np.empty_like(x) for x in xs]
        requests = []
        for i, (x, result) in enumerate(zip(xs, results, strict=True)):
            if i % 2:
                comm.allreduce(x, result, codec="int8")
            else:
                requests.append(comm.iallreduce(x, result, codec="int8"))
        for request in requests:
            request.wait()
        return results

    found = run(4, program)
    for s in range(6):
        expected = simulated_allreduce("int8", operands(4, 50_000, seed=s), "sum", "direct")
        assert same_bits(expected, *(results[s] for results in found))


def test_is_not_over_before_all_have_called():
    called = threading.Event()

    def program(comm):
        x = operands(2, COUNT)[comm.rank]
        if comm.rank == 0:
            request = comm.iallreduce(x, result := np.empty_like(x), codec="int8")
            assert not request.test()
            with pytest.raises(DeadlineError, match="timeout"):
                request.wait(0.01)
            called.set()
            request.wait()
            assert request.test()
            return result
        called.wait(60)
        comm.allreduce(x, result := np.empty_like(x), codec="int8")
        return result

    assert same_bits(*run(2, program))


def test_errors_are_raised_by_wait_and_test():
    def program(comm):
        x = operands(2, COUNT)[comm.rank]
        request = comm.iallreduce(x, x.copy(), codec="int8" if comm.rank else "int4")
        with pytest.raises(FrameError):
            request.wait()
        with pytest.raises(FrameError):
            request.test()
        comm.allreduce(x, result := np.empty_like(x), codec="int8")
        return result

    assert same_bits(*run(2, program))


def test_wrong_arguments_are_raised_by_the_call():
    def program(comm):
        x = operands(2, COUNT)[comm.rank]
        with pytest.raises(ValueError, match="codec: unknown codec 'int5'"):
            comm.iallreduce(x, x.copy(), codec="int5")

    assert outcomes(2, program) == [None, None]


# ---------------------------------------------------------------------- persistent


def test_persistent():
    def program(comm):
        send, recv = np.empty(COUNT, F32), np.empty(COUNT, F32)
        persistent = comm.allreduce_init(send, recv, codec="int8")
        assert persistent.test()
        persistent.wait()
        results = []
        for step in range(4):
            send[:] = operands(comm.size, COUNT, seed=step)[comm.rank]
            persistent.start()
            persistent.wait()
            assert persistent.test()
            results.append(recv.copy())
        assert len(comm.records) == 4
        return results

    found = run(3, program)
    for step in range(4):
        expected = simulated_allreduce("int8", operands(3, COUNT, seed=step), "sum", "direct")
        assert same_bits(expected, *(results[step] for results in found))


def test_two_persistent_operations_at_once_and_others_between():
    def program(comm):
        x = operands(comm.size, COUNT)[comm.rank]
        results = [np.empty_like(x) for _ in range(3)]
        pair = [comm.allreduce_init(x, result, codec="int8") for result in results[:2]]
        for _ in range(2):
            for one in pair:
                one.start()
            comm.allreduce(x, results[2], codec="int8")
            for one in reversed(pair):
                one.wait()
        return results

    for results in run(3, program):
        assert same_bits(*results)


def test_persistent_under_way_is_not_started_again():
    called = threading.Event()

    def program(comm):
        x = operands(2, COUNT)[comm.rank]
        persistent = comm.allreduce_init(x, np.empty_like(x), codec="int8")
        if comm.rank == 0:
            persistent.start()
            with pytest.raises(ValueError, match=r"start: .*under way"):
                persistent.start()
            called.set()
        else:
            called.wait(60)
            persistent.start()
        persistent.wait()

    run(2, program)


def test_persistent_checks_its_arguments_at_once():
    comm = collcomp.local.communicators(1)[0]
    x = np.zeros(4, F32)
    with pytest.raises(ValueError, match="recvbuf: 5 elements, sendbuf has 4"):
        comm.allreduce_init(x, np.zeros(5, F32), codec="int8")


def test_persistent_with_feedback_carries_its_residual():
    def program(comm):
        x = operands(comm.size, COUNT)[comm.rank]
        persistent = comm.allreduce_init(x, recv := np.empty_like(x), codec="int4:feedback", key="w")
        total = np.zeros(COUNT)
        for _ in range(20):
            persistent.start()
            persistent.wait()
            total += recv
        return total / 20, comm.residuals.norm("w")

    true = sum(x.astype(float) for x in operands(3, COUNT))
    for mean, norm in run(3, program):
        assert norm > 0
        assert np.abs(mean - true).max() < 0.05  # without feedback: about 0.3
