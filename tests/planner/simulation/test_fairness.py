"""Max-min fair rates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from collcomp.planner.simulation.fairness import max_min_rates


def test_the_textbook_example():
    # Three flows on the first link, one of them and two others on the second, which is twice as fast.
    incidence = csr_array([[1, 0], [1, 0], [1, 1], [0, 1]])
    np.testing.assert_allclose(max_min_rates(incidence, [3.0, 6.0]), [1, 1, 1, 5])


def test_weights_are_shares():
    incidence = csr_array([[1.0], [1.0], [1.0]])
    np.testing.assert_allclose(max_min_rates(incidence, [12.0], [1, 2, 3]), [2, 4, 6])


def test_a_flow_may_take_a_part_of_a_link():
    # The first one sends a quarter over one link and the rest over the other.
    incidence = csr_array([[0.25, 0.75], [1, 0]])
    np.testing.assert_allclose(max_min_rates(incidence, [5.0, 3.0]), [4, 4])


def test_nothing_passes_a_broken_link():
    np.testing.assert_array_equal(max_min_rates(csr_array([[1, 1], [0, 1]]), [0.0, 8.0]), [0, 8])


def test_a_flow_without_links_knows_no_limit():
    np.testing.assert_array_equal(max_min_rates(csr_array([[0.0], [1.0]]), [3.0]), [np.inf, 3])
    assert max_min_rates(csr_array((0, 2)), [1.0, 1.0]).shape == (0,)


def test_rates_that_no_number_holds_come_to_an_end():
    np.testing.assert_array_equal(max_min_rates(csr_array([[0.01, 0.0], [0.0, 1.0]]), [1e308, 2.0]), [np.inf, 2])


@given(st.integers(0, 2**32 - 1))
def test_every_flow_has_a_link_that_holds_it_up(seed):
    rng = np.random.default_rng(seed)
    flows, links = rng.integers(1, 30), rng.integers(1, 12)
    matrix = (rng.random((flows, links)) < 0.3) * rng.choice([0.5, 1.0], (flows, links))
    matrix[np.arange(flows), rng.integers(0, links, flows)] = 1
    capacities = rng.choice([1.0, 2.0, 10.0], links) * rng.choice([1.0, rng.uniform(0.5, 2)])
    weights = rng.choice([1.0, 3.0], flows)
    rates = max_min_rates(csr_array(matrix), capacities, weights)
    loads = matrix.T @ rates
    assert (loads <= capacities * (1 + 1e-9)).all()
    full = loads >= capacities * (1 - 1e-9)
    levels = rates / weights
    highest = np.where(matrix > 0, levels[:, None], 0).max(0)
    assert ((matrix > 0) & full & (levels[:, None] >= highest * (1 - 1e-9))).any(1).all()


@pytest.mark.parametrize(
    ("capacities", "weights", "name"),
    [
        ([1.0], None, "capacities"),
        ([1.0, -1.0], None, "capacities"),
        ([1.0, np.inf], None, "capacities"),
        ([1.0, 1.0], [0.0], "weights"),
        ([1.0, 1.0], [1.0, 1.0], "weights"),
    ],
)
def test_what_cannot_be_is_refused(capacities, weights, name):
    with pytest.raises(ValueError, match=name):
        max_min_rates(csr_array([[1.0, 1.0]]), capacities, weights)
