"""Schedules: right ones pass, and each way of breaking one is found where it is."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from collcomp.planner.rings.order import ring_order
from collcomp.planner.schedules.algorithms import direct_schedule, hierarchical_schedule, ring_schedule, tree_schedule
from collcomp.planner.schedules.schedule import Schedule, ScheduleError, Transfer
from collcomp.planner.topology import families
from collcomp.planner.topology.routes import Routes

CHAIN, STAR, BINOMIAL = [0, 0, 1, 2, 3], [2, 2, 2, 2, 2], [0, 0, 0, 2, 0]
SCHEDULES = {
    "ring": ring_schedule([[2, 0, 3, 1]]),
    "two rings": ring_schedule([[0, 1, 2, 3, 4], [0, 2, 4, 1, 3]], [0.25, 0.75]),
    "pair": ring_schedule([[0, 1]]),
    "direct": direct_schedule(5),
    "hierarchical": hierarchical_schedule([[3, 0], [1, 4], [5, 2]]),
    "one group": hierarchical_schedule([[0, 2, 1]]),
    "groups of one": hierarchical_schedule([[0], [2], [1]]),
    "chain": tree_schedule([CHAIN]),
    "pipelined trees": tree_schedule([CHAIN, STAR, BINOMIAL], 3),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_of_algorithms_are_right(name):
    SCHEDULES[name].check()


@given(st.integers(2, 9), st.integers(1, 3), st.randoms(use_true_random=False))
def test_rings_in_any_order_are_right(size, count, rng):
    ring_schedule([rng.sample(range(size), size) for _ in range(count)]).check()


@given(st.integers(1, 4), st.integers(1, 4), st.randoms(use_true_random=False))
def test_groups_of_any_size_are_right(members, groups, rng):
    ranks = rng.sample(range(members * groups), members * groups)
    hierarchical_schedule([ranks[g * members : (g + 1) * members] for g in range(groups)]).check()


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12), st.integers(1, 4))
def test_trees_of_any_shape_are_right(seeds, segments):
    parents = [0, *(seed % (i + 1) for i, seed in enumerate(seeds))]
    tree_schedule([parents, [len(parents) - 1 - p for p in reversed(parents)]], segments).check()


def test_a_loop_is_no_tree():
    with pytest.raises(ValueError, match="loop"):
        tree_schedule([[0, 2, 1]])


# ---------------------------------------------------------------------- broken schedules


def broken(schedule, fault):
    with pytest.raises(ScheduleError, match=fault) as caught:
        schedule.check()
    return caught.value


@pytest.mark.parametrize("name", SCHEDULES)
@given(data=st.data())
def test_no_transfer_can_be_left_out(name, data):
    """Each carries something that is needed."""
    schedule = SCHEDULES[name]
    i = data.draw(st.integers(0, len(schedule.transfers) - 1))
    rest = (*schedule.transfers[:i], *schedule.transfers[i + 1 :])
    broken(replace(schedule, transfers=rest), "lacks|overwritten")


@pytest.mark.parametrize("name", SCHEDULES)
@given(data=st.data())
def test_no_sum_can_be_added_twice(name, data):
    schedule = SCHEDULES[name]
    one = data.draw(st.sampled_from([one for one in schedule.transfers if one.adds]))
    error = broken(replace(schedule, transfers=(*schedule.transfers, one)), "twice")
    assert (error.step, error.rank, error.chunk) == (one.step, one.dest, one.chunk)


@pytest.mark.parametrize("name", SCHEDULES)
@given(data=st.data())
def test_a_result_cannot_go_to_another_rank_or_be_of_another_chunk(name, data):
    schedule = SCHEDULES[name]
    i = data.draw(st.sampled_from([i for i, one in enumerate(schedule.transfers) if not one.adds]))
    one = schedule.transfers[i]
    other = replace(
        one,
        dest=data.draw(st.sampled_from([rank for rank in range(schedule.size) if rank != one.source])),
        chunk=data.draw(st.integers(0, len(schedule.shares) - 1)),
    )
    assume(other != one)
    broken(replace(schedule, transfers=(*schedule.transfers[:i], other, *schedule.transfers[i + 1 :])), "rank")


def test_a_result_that_replaces_a_sum_loses_what_was_there():
    """The last sum of a ring is sent as if it were the result already: what the owner had is lost."""
    schedule = ring_schedule([[0, 1, 2]])
    last = next(one for one in schedule.transfers if one.step == 1 and one.dest == 2)
    transfers = tuple(replace(one, adds=False) if one == last else one for one in schedule.transfers)
    error = broken(replace(schedule, transfers=transfers), "loses what rank 2 had, overwritten by rank 1")
    assert (error.step, error.rank) == (1, 2)


def test_what_is_sent_too_early_is_found():
    """Rank 1 forwards in the same step in which it gets the chunk, which has not arrived then."""
    gather = [Transfer(0, 0, 1, 0), Transfer(1, 1, 2, 0)]
    Schedule("bcast", 3, (1.0,), (0,), tuple(gather)).check()
    early = replace(gather[1], step=0)
    error = broken(Schedule("bcast", 3, (1.0,), (0,), (gather[0], early)), "is sent to rank 2, but has not arrived")
    assert (error.step, error.rank, error.chunk) == (0, 1, 0)


def test_two_results_cannot_be_written_to_one_place():
    copies = (Transfer(0, 0, 1, 0), Transfer(1, 0, 2, 0), Transfer(1, 1, 2, 0))
    error = broken(Schedule("bcast", 3, (1.0,), (0,), copies), "written by ranks 0, 1 at once")
    assert (error.step, error.rank) == (1, 2)


def test_nothing_is_added_to_what_is_not_there():
    broken(Schedule("allgather", 2, (1.0,), (0,), (Transfer(0, 0, 1, 0, adds=True),)), "added to by rank 0")


def test_halves_of_an_allreduce_end_with_their_owners():
    whole = ring_schedule([[0, 1, 2, 3]])
    sums = tuple(one for one in whole.transfers if one.adds)
    results = tuple(replace(one, step=one.step - 3) for one in whole.transfers if not one.adds)
    replace(whole, collective="reduce_scatter", transfers=sums).check()
    replace(whole, collective="allgather", transfers=results).check()
    error = broken(replace(whole, transfers=sums), "lacks what")
    assert error.step == 3
    shifted = replace(whole, collective="reduce_scatter", transfers=sums, owners=(1, 2, 3, 0))
    broken(shifted, "lacks what")
    root = Schedule("reduce", 3, (1.0,), (1,), (Transfer(0, 0, 1, 0, adds=True), Transfer(0, 2, 1, 0, adds=True)))
    root.check()
    broken(replace(root, transfers=root.transfers[:1]), "rank 1, chunk 0: lacks what rank 2 had")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"collective": "scan"}, "collective: 'scan'"),
        ({"shares": (0.5, 0.2)}, "owners"),
        ({"shares": (0.5,) * 5}, "shares"),
        ({"transfers": (Transfer(0, 1, 1, 0),)}, "transfers"),
        ({"transfers": (Transfer(0, 1, 7, 0),)}, "transfers"),
        ({"transfers": (Transfer(0, 0, 1, 9),)}, "transfers"),
    ],
)
def test_what_is_no_schedule_is_refused(change, name):
    with pytest.raises(ValueError, match=name):
        replace(direct_schedule(5), **change)


# ---------------------------------------------------------------------- time


def test_a_ring_takes_what_its_plan_says():
    topology = families.two_tier(8, 2, host_bandwidth=1e9, uplink_bandwidth=0.5e9, latency=1e-5)
    devices = list(topology.devices)
    random.Random(3).shuffle(devices)
    plan = ring_order(topology, devices)
    schedule = ring_schedule([plan.order])
    found = schedule.seconds(8e6, Routes(topology), devices)
    assert found == pytest.approx(plan.seconds(8e6))


def test_direct_exchanges_load_links_by_pairs():
    """On a star every rank sends 2 (n-1)/n of the message, in two steps."""
    topology = families.star(5, 1e9, latency=1e-6)
    costs = direct_schedule(5).costs(Routes(topology), topology.devices)
    assert [cost.latency for cost in costs] == pytest.approx([2e-6] * 2)
    for cost in costs:
        assert cost.loads == pytest.approx([0.8] * 10)
        assert cost.seconds_per_byte == pytest.approx(0.8e-9)


def test_two_tiers_send_less_over_a_scarce_uplink_and_a_codec_shortens_that():
    topology = families.two_tier(8, 2, host_bandwidth=1e9, uplink_bandwidth=1e8)
    routes, devices = Routes(topology), topology.devices
    groups = [list(range(4)), list(range(4, 8))]
    uplink = routes.links.index(("leaf0", "spine0"))

    def over_uplink(schedule, ratio=1.0):
        return sum(cost.loads[uplink] for cost in schedule.costs(routes, devices, ratio))

    two_tiers = hierarchical_schedule(groups)
    assert over_uplink(two_tiers) == pytest.approx(2 * (2 - 1) / 2)  # 2 (G-1)/G of the message for the whole group
    assert over_uplink(two_tiers, ratio=4) == pytest.approx(0.25)
    assert over_uplink(direct_schedule(8)) == pytest.approx(4)
    assert over_uplink(ring_schedule([range(8)])) == pytest.approx(2 * 7 / 8)
    inside = [cost.loads[routes.links.index(("host0", "leaf0"))] for cost in two_tiers.costs(routes, devices, 4.0)]
    assert inside[0] == pytest.approx(3 / 4)  # raw, whatever the codec


def test_ranks_on_one_device_load_no_link():
    topology = families.star(2, 1.0)
    costs = direct_schedule(3).costs(Routes(topology), ["host0", "host0", "host1"])
    assert costs[0].loads.sum() == pytest.approx(4 / 3 * 2)
    with pytest.raises(ValueError, match="devices: 2"):
        direct_schedule(3).costs(Routes(topology), ["host0", "host1"])


def test_the_order_of_a_schedule_follows_the_ring():
    schedule = ring_schedule([[2, 0, 1]])
    assert {(one.source, one.dest) for one in schedule.transfers} == set(pairwise([2, 0, 1, 2]))
