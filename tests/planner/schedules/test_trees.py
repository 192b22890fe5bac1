"""Trees: complete, soon at the last rank, and double trees in which nobody is busy twice."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collcomp.planner.schedules.algorithms import tree_schedule
from collcomp.planner.schedules.trees import double_tree, latency_tree
from collcomp.planner.topology import DEVICE, SWITCH, Link, Node, Topology, families
from collcomp.planner.topology.routes import Routes


def is_tree(tree):
    assert sorted(child for those in tree.children for child in those) == [
        rank for rank in range(len(tree.parents)) if rank != tree.root
    ]
    assert all(tree.parents[child] == rank for rank, those in enumerate(tree.children) for child in those)
    tree_schedule([tree.parents]).check()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13, 32])
@pytest.mark.parametrize(("latency", "overhead"), [(1e-6, 1e-6), (8e-6, 1e-6), (0.0, 1e-6)])
def test_equal_links_get_the_optimal_tree(size, latency, overhead):
    """A sender's messages arrive `overhead` apart, a receiver's first one `overhead + latency` after it has heard."""
    arrivals, senders = [0.0], [(overhead + latency)]
    while len(arrivals) < size:
        soonest = min(range(len(senders)), key=senders.__getitem__)
        arrivals.append(senders[soonest])
        senders.append(senders[soonest] + overhead + latency)
        senders[soonest] += overhead
    topology = families.star(size, 1e9, latency=latency / 2)
    tree = latency_tree(topology, overhead=overhead)
    is_tree(tree)
    found = tree.seconds(0, Routes(topology), topology.devices, overhead=overhead)
    assert found == pytest.approx(max(arrivals))


def test_nobody_hears_over_a_slow_way_twice():
    """Two leaves far from each other: whoever hears from the other leaf first goes on inside its own."""
    topology = families.two_tier(8, 2, host_bandwidth=1e9, uplink_bandwidth=1e9)
    latencies = {ends: 1e-3 if "spine0" in ends else 1e-6 for ends in topology.links}
    links = [Link(a, b, 1e9, latency) for (a, b), latency in latencies.items()]
    far = Topology("far", topology.nodes.values(), links)
    tree = latency_tree(far)
    is_tree(tree)
    assert any(rank // 4 != parent // 4 for rank, parent in enumerate(tree.parents))
    once = 2 * (1e-3 + 1e-6)
    assert once < tree.seconds(0, Routes(far), far.devices, overhead=2e-6) < 1.05 * once


def test_large_messages_want_other_trees_than_small_ones():
    """With long messages a rank is busy with each for long: the tree is a binomial one, not a star."""
    topology = families.star(16, 1e9, latency=1e-3)
    small, large = latency_tree(topology, overhead=1e-9), latency_tree(topology, nbytes=1e9)
    assert (small.depth, large.depth) == (1, 4)
    routes = Routes(topology)
    assert large.seconds(1e9, routes, topology.devices) < small.seconds(1e9, routes, topology.devices)


def test_many_ranks_get_a_binomial_tree_that_leaves_hosts_seldom():
    topology = families.dgx_a100(32)
    tree = latency_tree(topology)
    is_tree(tree)
    assert tree.depth == 8
    assert sum(rank // 8 != parent // 8 for rank, parent in enumerate(tree.parents)) == 31


def test_what_cannot_be_reached_is_said():
    nodes = [Node("a", DEVICE), Node("b", DEVICE), Node("c", DEVICE), Node("s", SWITCH)]
    ends = [("a", "s"), ("s", "a"), ("b", "s"), ("s", "b")]
    with pytest.raises(ValueError, match="no tree reaches"):
        latency_tree(Topology("split", nodes, [Link(*both, 1.0) for both in ends]))
    with pytest.raises(ValueError, match="'host9' is no device"):
        latency_tree(families.star(2, 1.0), ["host0", "host9"])
    for loop in ([1, 0], [0, 2, 1]):
        with pytest.raises(ValueError, match="have a loop"):
            tree_schedule([loop])


@given(st.permutations(range(9)) | st.permutations(range(8)) | st.permutations(range(2)) | st.just([0]))
def test_nobody_has_children_in_both_trees(order):
    trees = double_tree(order)
    busy = [{parent for rank, parent in enumerate(parents) if rank != parent} for parents in trees.parents]
    assert not busy[0] & busy[1]
    tree_schedule(trees.parents, 2).check()
    for parents in trees.parents:
        counts = [sum(p == rank and r != rank for r, p in enumerate(parents)) for rank in range(len(order))]
        assert max(counts, default=0) <= 2


def test_double_trees_are_shallow_and_take_segments_as_messages_grow():
    topology = families.star(64, 1e9, latency=1e-5)
    routes, trees = Routes(topology), double_tree(range(64))
    times = [trees.seconds(nbytes, routes, topology.devices) for nbytes in (1e3, 1e5, 1e7)]
    assert len(tree_schedule(trees.parents).steps) <= 2 * 7
    assert all(one < other for (_, one), (_, other) in pairwise(times))
    assert times[0][0] < 2 * 63 * 2e-5, "far fewer steps than a ring"
