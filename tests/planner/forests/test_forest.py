"""Trees that attain the bound, and the check that would find them out if they did not."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collcomp.planner.forests.branchings import pack
from collcomp.planner.forests.forest import Forest, Send, Tree, forest
from collcomp.planner.forests.optimum import optimum
from collcomp.planner.forests.switchless import remove_switches
from collcomp.planner.topology import DEVICE, SWITCH, Link, Node, Topology
from collcomp.planner.topology.families import dgx_a100, dragonfly, leaf_spine, mi250, star, torus, two_tier

WHOLE = st.integers(1, 6)


@st.composite
def cabled(draw, bandwidths=WHOLE, both=True):
    """Some nodes of which two at least are devices, joined by a tree of cables and some more."""
    count = draw(st.integers(2, 7))
    devices = draw(st.integers(2, count))
    nodes = [Node(f"n{i}", DEVICE if i < devices else SWITCH) for i in range(count)]
    order = draw(st.permutations(range(count)))
    pairs = {frozenset((order[i], order[draw(st.integers(0, i - 1))])) for i in range(1, count)}
    pairs |= draw(st.sets(st.frozensets(st.integers(0, count - 1), min_size=2, max_size=2), max_size=5))
    links = []
    for one, other in map(sorted, pairs):
        there = draw(bandwidths)
        back = there if both else draw(bandwidths)
        links += Link(f"n{one}", f"n{other}", there), Link(f"n{other}", f"n{one}", back)
    return Topology("drawn", nodes, links)


SMALL = [
    star(5, 125e6),
    two_tier(8, 2, host_bandwidth=25e6, uplink_bandwidth=[5e6, 10e6], spines=2),
    leaf_spine(4, 2, 2, port_bandwidth=25e9, nics_per_host=2, ports_per_nic=2, planes=2, device_bandwidth=40e9),
    torus([3, 3], 1e9),
    dragonfly(2, 1, 1, bandwidth=1e9),
]
LARGE = [dgx_a100(1), dgx_a100(2), dgx_a100(4), mi250(2)]


@pytest.mark.parametrize(
    ("topology", "collective"),
    [(topology, "allgather") for topology in LARGE] + [(topology, "reduce_scatter") for topology in SMALL],
    ids=lambda value: getattr(value, "name", value),
)
def test_no_gap_is_left(topology, collective):
    trees = forest(topology, collective)
    trees.check()
    bound = optimum(topology, collective)
    assert trees.seconds_per_byte == bound.seconds_per_byte
    assert trees.gap(bound) == 0.0
    assert trees.algbw == bound.algbw
    # what the bottleneck's links carry is all that they can
    inward = collective == "reduce_scatter"
    full = trees.seconds_per_byte * len(topology.devices)
    for ends, link in topology.links.items():
        if (ends[0] in bound.cut, ends[1] in bound.cut) == (not inward, inward):
            assert trees.loads[ends] / Fraction(link.bandwidth) == full


def test_after_a_failure_the_rest_is_used_in_full():
    topology = two_tier(8, 2, host_bandwidth=25e6, uplink_bandwidth=[5e6, 10e6, 4e6], spines=3)
    for broken in ("spine1", ("leaf0", "spine1")):
        left = topology.without(broken)
        trees = forest(left)
        trees.check()
        assert trees.gap(optimum(left)) == 0.0
        assert trees.algbw < forest(topology).algbw


@settings(max_examples=40, deadline=None)
@given(cabled())
def test_no_gap_is_left_on_any_cables(topology):
    trees = forest(topology)
    trees.check()
    assert trees.gap(optimum(topology)) == 0.0


@settings(max_examples=20, deadline=None)
@given(cabled(st.floats(1.0, 50.0)))
def test_measured_bandwidths_leave_a_small_gap(topology):
    trees = forest(topology)
    trees.check()
    assert -1e-6 <= trees.gap(optimum(topology)) < 1e-3


@settings(max_examples=20, deadline=None)
@given(cabled(both=False))
def test_cables_that_differ_by_direction_still_give_trees(topology):
    trees = forest(topology)
    trees.check()
    assert trees.gap(optimum(topology)) >= 0


def test_trees_on_one_switch_are_direct():
    assert forest(star(6, 1e9)).depth == 1
    assert forest(dgx_a100(1)).depth == 1


@settings(max_examples=30, deadline=None)
@given(cabled())
def test_switches_are_replaced_by_ways_that_add_up(topology):
    names = list(topology.nodes)
    whole = np.zeros((len(names),) * 2, np.int64)
    for (source, dest), link in topology.links.items():
        whole[names.index(source), names.index(dest)] = link.bandwidth
    devices = [names.index(device) for device in topology.devices]
    rate = 1 / (optimum(topology).seconds_per_byte * len(devices))
    whole *= rate.denominator
    left = whole.copy()
    routes = remove_switches(left, devices, rate.numerator)
    used = np.zeros_like(whole)
    for (source, dest), ways in routes.items():
        assert left[source, dest] == sum(much for _, much in ways)
        for way, much in ways:
            assert (way[0], way[-1]) == (source, dest)
            for ends in pairwise(way):
                used[ends] += much
    assert (used <= whole).all()
    assert not left[[i for i in range(len(names)) if i not in devices]].any()


def test_uneven_switches_cannot_be_replaced():
    with pytest.raises(ValueError, match="what enters node 0"):
        remove_switches(np.array([[0, 2, 1], [2, 0, 1], [2, 1, 0]]), [0, 1], 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 4), st.data())
def test_as_many_trees_as_there_is_room_for(count, rate, data):
    """Random trees that together fit: there is room for as many, and so they, or others, must be found."""
    capacities = np.zeros((count, count), np.int64)
    for root in range(count):
        for _ in range(rate):
            order = [root, *data.draw(st.permutations([i for i in range(count) if i != root]))]
            for i in range(1, count):
                capacities[order[data.draw(st.integers(0, i - 1))], order[i]] += 1
    packed = pack(capacities, rate)
    used = np.zeros_like(capacities)
    for root in range(count):
        assert sum(tree.weight for tree in packed if tree.root == root) == rate
    for tree in packed:
        assert sorted(tree.members) == list(range(count))
        reached = {tree.root}
        for parent, child in tree.links:
            assert parent in reached
            reached.add(child)
            used[parent, child] += tree.weight
        assert len(reached) == count == len(tree.links) + 1
    assert (used <= capacities).all()


GOOD = forest(star(3, 1e9))
FIRST = GOOD.trees[0]
SEND = FIRST.sends[0]
HALF = tuple((way, part / 2) for way, part in SEND.ways)


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        (GOOD.trees[1:], "are not 1 together"),
        ((*GOOD.trees, FIRST), "are not 1 together"),
        ((*GOOD.trees, replace(FIRST, root="switch", sends=())), "joins 1 devices"),
        ((replace(FIRST, share=Fraction(0)), *GOOD.trees[1:]), "share 0"),
        ((replace(FIRST, sends=FIRST.sends[:1]), *GOOD.trees[1:]), "joins 2 devices"),
        ((replace(FIRST, sends=(SEND, SEND)), *GOOD.trees[1:]), "do not follow"),
        ((replace(FIRST, sends=(Send("host1", "host2", ()), SEND)), *GOOD.trees[1:]), "do not follow"),
        ((replace(FIRST, sends=(replace(SEND, ways=HALF), *FIRST.sends[1:])), *GOOD.trees[1:]), "not 1 together"),
        (
            (
                replace(
                    FIRST,
                    sends=(replace(SEND, ways=(((SEND.source, SEND.dest), Fraction(1)),)), *FIRST.sends[1:]),
                ),
                *GOOD.trees[1:],
            ),
            "is no link",
        ),
        (
            (
                replace(
                    FIRST,
                    sends=(replace(SEND, ways=(((SEND.source, "switch"), Fraction(1)),)), *FIRST.sends[1:]),
                ),
                *GOOD.trees[1:],
            ),
            "is no way",
        ),
    ],
)
def test_trees_that_do_not_do_are_found_out(trees, message):
    GOOD.check()
    with pytest.raises(ValueError, match=message):
        Forest(GOOD.topology, "allgather", trees).check()


def test_loads_are_counted_from_the_trees_alone():
    way = (("host0", "switch", "host1"), Fraction(1))
    back = (way[0][::-1], Fraction(1))
    trees = (
        Tree("host0", Fraction(1), (Send("host0", "host1", (way,)),)),
        Tree("host1", Fraction(1), (Send("host1", "host0", (back,)),)),
    )
    made = Forest(star(2, 10.0), "allgather", trees)
    made.check()
    assert made.loads["host0", "switch"] == 1
    assert made.algbw == 20.0  # each of 2 devices sends half of the bytes, at 10 a second


def test_what_is_no_gathering_is_refused():
    with pytest.raises(ValueError, match="collective: 'allreduce'"):
        forest(star(2, 1.0), "allreduce")
    with pytest.raises(ValueError, match="cannot be reached"):
        forest(star(3, 1.0).without(("host1", "switch")))


@pytest.mark.parametrize("collective", ["allgather", "reduce_scatter"])
def test_cables_that_differ_by_direction_are_to_blame_where_they_are(collective):
    nodes = [Node(f"h{i}", DEVICE) for i in range(3)]
    links = [Link("h0", "h2", 1.0), Link("h2", "h1", 3.0), Link("h1", "h0", 2.0)]
    with pytest.raises(ValueError, match="differ by direction"):
        forest(Topology("round", nodes, links), collective)
    alike = Topology("round", nodes, [replace(link, bandwidth=1.0) for link in links])
    assert forest(alike, collective).gap(optimum(alike, collective)) == 0
