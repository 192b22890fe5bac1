"""The cut bound: known figures, every cut tried, and what it says of the cut."""

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collcomp.planner.forests.optimum import integers, optimum
from collcomp.planner.topology import DEVICE, SWITCH, Link, Node, Topology
from collcomp.planner.topology.families import dgx_a100, leaf_spine, mi250, star, two_tier

WHOLE = st.integers(1, 9)


@st.composite
def topologies(draw, bandwidths=WHOLE):
    """Some nodes of which two at least are devices, in a ring of links and others across it."""
    count = draw(st.integers(3, 6))
    devices = draw(st.integers(2, count))
    nodes = [Node(f"n{i}", DEVICE if i < devices else SWITCH) for i in range(count)]
    order = draw(st.permutations(range(count)))
    ring = {(order[i - 1], order[i]) for i in range(count)}
    pairs = [pair for pair in ((i, j) for i in range(count) for j in range(count) if i != j) if pair not in ring]
    across = draw(st.sets(st.sampled_from(pairs)))
    links = [Link(f"n{i}", f"n{j}", draw(bandwidths)) for i, j in sorted(ring | across)]
    return Topology("drawn", nodes, links)


def worst_of_all_cuts(topology, inward):
    worst = Fraction(0)
    for size in range(1, len(topology.nodes)):
        for cut in map(set, combinations(topology.nodes, size)):
            inside = len(cut & set(topology.devices))
            if 0 < inside < len(topology.devices):
                passed = [
                    Fraction(link.bandwidth)
                    for (source, dest), link in topology.links.items()
                    if (source in cut, dest in cut) == ((False, True) if inward else (True, False))
                ]
                worst = max(worst, inside / sum(passed))
    return worst


@pytest.mark.parametrize(
    ("topology", "algbw", "busbw"),
    [
        (dgx_a100(1), 342.86, 300.00),
        (dgx_a100(2), 346.67, 325.00),
        (dgx_a100(4), 266.67, 258.33),
        (mi250(2), 354.13, 343.07),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_allgather_at_its_best_as_forestcoll_says(topology, algbw, busbw):
    found = optimum(topology)
    assert found.algbw / 1e9 == pytest.approx(algbw, abs=0.005)
    assert found.busbw / 1e9 == pytest.approx(busbw, abs=0.005)
    both = optimum(topology, "allreduce")
    assert both.algbw == pytest.approx(found.algbw / 2)
    assert both.busbw == pytest.approx(found.busbw)


def test_hosts_behind_one_link_each_have_the_known_bound():
    found = optimum(star(4, 1e9 / 8), "allreduce")
    assert found.seconds_per_byte == 2 * Fraction(3, 4) * 8 / 10**9
    assert found.busbw == 1e9 / 8


def test_the_cut_is_where_bandwidth_is_scarce():
    found = optimum(two_tier(8, 2, host_bandwidth=25e6, uplink_bandwidth=5e6, spines=2))
    inside = {name for name in found.cut if name.startswith("host")}
    assert inside in ({f"host{i}" for i in range(4)}, {f"host{i}" for i in range(4, 8)})
    # four hosts' parts go through two uplinks
    assert found.seconds_per_byte == Fraction(4, 8) / 10**7


def test_slower_uplinks_count():
    whole = leaf_spine(4, 2, 2, port_bandwidth=1e9)
    slower = whole.scaled({("leaf0", "spine0"): 0.25, ("leaf0", "spine1"): 0.25})
    assert optimum(slower).seconds_per_byte > optimum(whole).seconds_per_byte
    assert optimum(slower).cut & set(whole.devices) == {"host0", "host1"}


@settings(max_examples=60, deadline=None)
@given(topologies(st.one_of(WHOLE, st.floats(1.0, 100.0))), st.booleans())
def test_it_is_the_worst_of_all_cuts(topology, inward):
    found = optimum(topology, "reduce_scatter" if inward else "allgather")
    worst = worst_of_all_cuts(topology, inward) / len(topology.devices)
    if all(isinstance(link.bandwidth, int) for link in topology.links.values()):
        assert found.seconds_per_byte == worst
    assert float(found.seconds_per_byte / worst) == pytest.approx(1, rel=1e-6)
    assert found.seconds_per_byte <= worst


@settings(max_examples=30, deadline=None)
@given(topologies(), st.integers(2, 9))
def test_faster_links_are_as_much_faster(topology, times):
    faster = topology.scaled(dict.fromkeys(topology.links, times))
    assert optimum(faster).seconds_per_byte * times == optimum(topology).seconds_per_byte


def test_what_has_no_bound_is_refused():
    with pytest.raises(ValueError, match="collective: 'bcast'"):
        optimum(star(2, 1.0), "bcast")
    with pytest.raises(ValueError, match="1 devices"):
        optimum(star(1, 1.0))
    with pytest.raises(ValueError, match="cannot be reached"):
        optimum(star(3, 1.0).without(("host1", "switch")))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=9), st.integers(1, 10**9))
def test_multiples_of_a_unit(numbers, unit):
    multiples, found = integers([number * unit for number in numbers])
    assert [int(multiple) * found for multiple in multiples] == [number * unit for number in numbers]


@given(st.lists(st.floats(1.0, 1e12), min_size=1, max_size=9))
def test_numbers_without_a_unit_are_rounded_down(numbers):
    multiples, unit = integers(numbers, parts=2**40)
    for multiple, number in zip(multiples, numbers, strict=True):
        assert int(multiple) * unit <= Fraction(number) or multiple == 1
        assert abs(int(multiple) * unit - Fraction(number)) < max(unit, Fraction(number) / 10**9)
