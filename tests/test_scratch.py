"""Frame memory is aligned, never handed out twice at a time, and used again."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collcomp.frame import ALIGNMENT
from collcomp.scratch import Scratch


class Counting:
    def __init__(self):
        self.sizes = []

    def __call__(self, nbytes):
        self.sizes.append(nbytes)
        return np.empty(nbytes, np.uint8)


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_aligned_and_of_the_size_asked_for(nbytes):
    scratch = Scratch(Counting())
    for _ in range(3):
        piece = scratch.take(nbytes)
        assert (piece.size, piece.dtype) == (nbytes, np.uint8)
        assert piece.ctypes.data % ALIGNMENT == 0 or not nbytes


@given(
    st.lists(
        st.one_of(st.tuples(st.just("take"), st.integers(0, 3 << 18)), st.tuples(st.just("give"), st.integers(0, 99))),
        max_size=40,
    )
)
def test_pieces_in_use_never_overlap(steps):
    scratch = Scratch(Counting())
    held = []
    for step, number in steps:
        if step == "take":
            held.append(scratch.take(number))
            held[-1][...] = len(held) % 251
        elif held:
            scratch.give(held.pop(number % len(held)))
        ranges = sorted((piece.ctypes.data, piece.ctypes.data + piece.size) for piece in held if piece.size)
        assert all(end <= start for (_, end), (start, _) in pairwise(ranges))


def test_given_back_is_next():
    scratch = Scratch(Counting())
    piece = scratch.take(1000)
    scratch.take(1000)
    scratch.give(piece)
    assert scratch.take(1000).ctypes.data == piece.ctypes.data


def test_arrays_are_given_back_like_bytes():
    scratch = Scratch(Counting())
    values = scratch.array(10, np.dtype("f8"))
    assert values.dtype == "f8"
    assert values.size == 10
    scratch.give(values)
    assert scratch.take(80).ctypes.data == values.ctypes.data


def test_a_steady_round_allocates_nothing():
    allocate = Counting()
    scratch = Scratch(allocate)
    for number in range(5):
        for nbytes in (3 << 20, 1000, 2 << 20, 64):
            scratch.take(nbytes)
        scratch.reset()
        if number == 0:
            settled = len(allocate.sizes)
    assert len(allocate.sizes) == settled
