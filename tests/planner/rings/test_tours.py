"""Local search: tours stay tours, changes cost what was predicted, small ones are the shortest."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collcomp.planner.rings import tours


def shortest(cost):
    n = len(cost)
    return min(tours.tour_cost(np.array([0, *rest]), cost) for rest in permutations(range(1, n)))


@given(st.integers(1, 30), st.integers(0, 10**6), st.booleans())
def test_tours_stay_tours_and_never_grow(n, seed, symmetric):
    rng = np.random.default_rng(seed)
    cost = rng.uniform(0, 1, (n, n))
    cost = cost + cost.T if symmetric else cost
    start = rng.permutation(n)
    found = tours.improved(start, cost)
    assert sorted(found) == list(range(n))
    assert tours.tour_cost(found, cost) <= tours.tour_cost(start, cost) + 1e-9


@given(st.integers(5, 14), st.integers(0, 10**6))
def test_each_change_costs_what_it_says(n, seed):
    cost = np.random.default_rng(seed).uniform(0, 1, (n, n))
    before = tours.tour_cost(np.arange(n), cost)
    for gain, change in (tours._best_turn(cost), *(tours._best_move(cost, k) for k in (1, 2, 3))):
        assert sorted(change) == list(range(n))
        assert tours.tour_cost(np.array(change), cost) - before == pytest.approx(gain)


def test_small_tours_with_kicks_are_almost_always_the_shortest():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(20):
        cost = rng.uniform(0, 1, (8, 8))
        cost += cost.T
        found += tours.tour_cost(tours.kicked(np.arange(8), cost, 10, rng), cost) <= shortest(cost) + 1e-9
    assert found >= 18


def test_three_nodes_have_two_tours():
    cost = np.array([[0, 9, 1], [1, 0, 9], [9, 1, 0]])
    assert tours.tour_cost(tours.improved(np.arange(3), cost), cost) == 3
    assert tours.tour_cost(tours.improved(np.array([0, 2, 1]), cost), cost) == 3


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_paths_begin_and_end_where_they_have_to(n):
    rng = np.random.default_rng(n)
    cost = rng.uniform(0, 1, (n, n))
    first, last = n // 2, n - 1 if n > 1 else 0
    if first == last and n > 1:
        first = 0
    way = tours.path(cost, first, last, 3, rng)
    assert sorted(way) == list(range(n))
    assert (way[0], way[-1]) == (first, last)
