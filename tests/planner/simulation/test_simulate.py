"""The simulator, by hand, and beside SimGrid."""

import json

import numpy as np
import pytest
from freeze_simgrid import FIXTURE

from collcomp.bench.planning.instances import random_instance, simulated
from collcomp.bench.planning.reference import by_simgrid, find_simgrid
from collcomp.errors import CollcompError
from collcomp.planner.simulation.simulate import Change, Transfers, routes_of, simulate


def run(paths, nbytes, capacities, changes=(), **more):
    more = {name: np.array(values) for name, values in more.items()}
    capacities = np.array(capacities, float)
    return simulate(Transfers(routes_of(paths, len(capacities)), np.array(nbytes, float), **more), capacities, changes)


def test_what_ends_leaves_its_share_to_the_others():
    outcome = run([[0], [0]], [1, 3], [1])
    np.testing.assert_allclose(outcome.finished, [2, 4])
    np.testing.assert_allclose(outcome.link_nbytes, [4])
    np.testing.assert_allclose(outcome.utilisation, [1])


def test_links_are_used_as_long_as_something_passes():
    outcome = run([[0], [1]], [4, 1], [1, 1], starts=[0.0, 1.0])
    np.testing.assert_allclose(outcome.finished, [4, 2])
    np.testing.assert_allclose(outcome.utilisation, [1, 0.25])


def test_a_transfer_waits_for_all_that_it_depends_on():
    outcome = run([[0], [1], [0]], [2, 3, 1], [1, 1], before=[0, 1], after=[2, 2], delays=[0, 0, 0.5])
    np.testing.assert_allclose(outcome.started, [0, 0, 3.5])
    np.testing.assert_allclose(outcome.finished, [2, 3, 4.5])


def test_events_without_bytes_or_links_take_no_time():
    outcome = run([[0], [], [0], [0]], [1, 0, 0, 1], [1], before=[0, 1, 2], after=[1, 2, 3])
    np.testing.assert_allclose(outcome.finished, [1, 1, 1, 2])


def test_links_break_and_are_mended():
    changes = [Change(1.0, 0, 0.0), Change(3.0, 0, 2.0)]
    np.testing.assert_allclose(run([[0]], [5], [1], changes).finished, [5])


def test_what_nobody_mends_never_ends():
    outcome = run([[0], [1], [1]], [2, 1, 1], [1, 1], [Change(1.0, 0, 0.0)], before=[0], after=[2])
    np.testing.assert_array_equal(outcome.finished, [np.inf, 1, np.inf])
    np.testing.assert_array_equal(outcome.started, [0, 0, np.inf])
    np.testing.assert_allclose(outcome.link_nbytes, [1, 1])


def test_weights_share_links():
    np.testing.assert_allclose(run([[0], [0]], [1, 3], [1], weights=[1.0, 3.0]).finished, [4, 4])


def test_a_split_transfer_is_as_fast_as_its_slowest_part():
    from scipy.sparse import csr_array

    outcome = simulate(Transfers(csr_array([[0.5, 0.5]]), np.array([4.0])), np.array([1.0, 10.0]))
    np.testing.assert_allclose(outcome.finished, [2 / 1])
    np.testing.assert_allclose(outcome.link_nbytes, [2, 2])


@pytest.mark.parametrize(("ranks", "rounds"), [(2, 1), (4, 3)])
def test_steps_of_rings_of_two_jobs(ranks, rounds):
    """Two rings on the same links, step by step: each gets half, and 2 (n - 1) steps of 1 / n of the bytes a round."""
    steps = 2 * (ranks - 1) * rounds
    edges = [(job, step, edge) for job in range(2) for step in range(steps) for edge in range(ranks)]
    index = {edge: i for i, edge in enumerate(edges)}
    waits = [
        (index[job, step - 1, one], index[job, step, edge])
        for job, step, edge in edges
        if step
        for one in {edge, (edge - 1) % ranks}
    ]
    before, after = zip(*waits, strict=True)
    nbytes = 12.0
    outcome = run([[edge] for _, _, edge in edges], [nbytes / ranks] * len(edges), [3.0] * ranks,
                  before=before, after=after)  # fmt: skip
    assert outcome.finished.max() == pytest.approx(rounds * 2 * (ranks - 1) / ranks * nbytes / 1.5)


@pytest.mark.parametrize("capacities", [(2.0, 4.0), (4.0, 2.0)])
def test_changes_at_one_time_count_in_their_order(capacities):
    outcome = run([[0]], [1 + 3 * capacities[1]], [1.0], [Change(1.0, 0, capacity) for capacity in capacities])
    np.testing.assert_allclose(outcome.finished, [4.0])


def test_thousands_of_transfers_at_once():
    rng = np.random.default_rng(0)
    outcome = run([[i, 4000 + i // 4, 5000 + i // 4] for i in range(4000)], rng.integers(1, 4, 4000), [1.0] * 6000)
    assert np.isfinite(outcome.finished).all()
    np.testing.assert_allclose(outcome.link_nbytes[:4000].sum(), outcome.link_nbytes[4000:5000].sum())


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="circle"):
        run([[0], [0]], [1, 1], [1], before=[0, 1], after=[1, 0])
    with pytest.raises(ValueError, match="after: names"):
        run([[0]], [1], [1], before=[0], after=[7])
    with pytest.raises(ValueError, match="nbytes"):
        run([[0]], [-1], [1])
    with pytest.raises(ValueError, match="weights"):
        run([[0]], [1], [1], weights=[0.0])
    with pytest.raises(ValueError, match="starts: shape"):
        run([[0]], [1], [1], starts=[0.0, 0.0])
    with pytest.raises(ValueError, match="changes"):
        run([[0]], [1], [1], [Change(0.0, 3, 1.0)])


@pytest.mark.parametrize("frozen", json.loads(FIXTURE.read_text()), ids=lambda frozen: f"{len(frozen['transfers'])}")
def test_equals_what_simgrid_gave(frozen):
    np.testing.assert_allclose(simulated(frozen).finished, frozen["finished"], rtol=1e-9)


def test_equals_simgrid():
    try:
        find_simgrid()
    except CollcompError as error:
        pytest.skip(str(error))
    for seed in range(5):
        instance = random_instance(seed)
        np.testing.assert_allclose(simulated(instance).finished, by_simgrid(instance), rtol=1e-9)
