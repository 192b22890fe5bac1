"""Sums without packets are those of packets."""

import numpy as np
import pytest
import switch_loop
from expected_sums import summed

from collcomp.switch.programs import PROGRAMS, switchml


def operands(n, count, seed=0):
    return (np.random.default_rng(seed).standard_t(3, (n, count)) * 1e-2).astype(np.float32)


@pytest.mark.parametrize("program", [*PROGRAMS.values(), switchml(64)], ids=lambda program: program.name)
@pytest.mark.parametrize("n", [1, 3, 8])
def test_sums_are_those_of_the_switch(program, n):
    x = operands(n, 700, n)
    x[0, 300] = 1e5  # for ATP, a packet of floats
    x[:, 600] = 212.0  # for ATP and 11 workers or more, one that is too large
    (expected, *_) = switch_loop.summed(program, list(x))
    assert summed(program, x).tobytes() == expected.tobytes()


def test_a_sum_that_saturates_is_that_of_the_switch():
    x = np.full((11, 100), 210.1, np.float32)
    assert summed(PROGRAMS["atp"], x).tobytes() == switch_loop.summed(PROGRAMS["atp"], list(x))[0].tobytes()
