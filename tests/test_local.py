"""Ranks as threads of one process."""

import doctest
import threading

import numpy as np
import pytest

import collcomp
from collcomp import local


def test_docstrings():
    assert doctest.testmod(local).failed == 0


@pytest.mark.parametrize("size", [1, 2, 7])
def test_every_rank_runs_once_in_its_own_thread(size):
    found = local.run(size, lambda comm, more: (comm.rank, comm.size, threading.get_ident(), more), "x")
    assert [(rank, n, more) for rank, n, _, more in found] == [(rank, size, "x") for rank in range(size)]
    assert threading.get_ident() not in {thread for _, _, thread, _ in found}


def test_the_first_error_by_rank_is_raised_after_all_have_ended():
    ended = []

    def program(comm):
        if comm.rank == 0:
            ended.append(0)
            return
        raise KeyError(comm.rank)

    with pytest.raises(KeyError) as caught:
        local.run(3, program)
    assert caught.value.args == (1,)
    assert ended == [0]


def test_options_reach_every_communicator():
    def program(comm):
        x = np.ones(1000, np.float32)
        comm.allreduce(x, x.copy())
        return comm.deadline, comm.records[-1].codec

    assert local.run(2, program, codec="int8", min_nbytes=1, deadline=9.0) == [(9.0, "int8")] * 2


def test_threads_end():
    before = threading.active_count()
    local.run(3, lambda comm: comm.iallreduce(np.ones(9), np.ones(9)).wait())
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [0, -3])
def test_too_few_ranks(size):
    with pytest.raises(ValueError, match=f"size: {size}"):
        local.run(size, lambda comm: None)


def test_public_names():
    assert all(hasattr(collcomp, name) for name in collcomp.__all__)
