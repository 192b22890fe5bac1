"""Topologies: what they refuse, the ways through them, what is left of them, and JSON."""

import math

import pytest
from all_ways import all_ways

from collcomp.planner.topology import DEVICE, SWITCH, Link, Node, Topology
from collcomp.planner.topology.families import dgx_a100, leaf_spine, two_tier
from collcomp.planner.topology.files import read_topology

A, B, S = Node("a", DEVICE, "h"), Node("b", DEVICE), Node("s", SWITCH)


@pytest.mark.parametrize(
    ("nodes", "links", "message"),
    [
        ([Node("a", "gpu")], [], "unknown kind 'gpu'"),
        ([A, A], [], "'a' stands twice"),
        ([A], [Link("a", "b", 1.0)], "'b' of the link a -> b is no node"),
        ([A], [Link("a", "a", 1.0)], "a -> a"),
        ([A, B], [Link("a", "b", 1.0), Link("a", "b", 2.0)], "a -> b stands twice"),
        ([A, B], [Link("a", "b", 0.0)], "bandwidth"),
        ([A, B], [Link("a", "b", math.nan)], "bandwidth"),
        ([A, B], [Link("a", "b", 1e308)], "bandwidth"),
        ([A, B], [Link("a", "b", 1.0, -1e-6)], "latency"),
    ],
)
def test_what_cannot_be_is_refused(nodes, links, message):
    with pytest.raises(ValueError, match=message):
        Topology("t", nodes, links)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Node(1, "device"), "no text"),
        (lambda: Node("a", "device", 1), "no text"),
        (lambda: Node("a", "device", plane=1.5), "plane 1.5 of 'a'"),
        (lambda: Link(1, "b", 1.0), "1 -> 'b'"),
        (lambda: Link("a", "b", "1 GB/s"), "bandwidth of a -> b is no number: '1 GB/s'"),
        (lambda: Link("a", "b", 10**400), "bandwidth of a -> b is too large"),
        (lambda: Link("a", "b", 1.0, True), "latency of a -> b is no number"),
        (lambda: Topology(3, [], []), "name: 3"),
    ],
)
def test_what_has_another_type_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bandwidths_become_floats():
    assert type(Link("a", "b", 3).bandwidth) is float


def test_hosts_and_kinds_keep_the_order_of_nodes():
    topology = Topology("t", [S, B, A], [])
    assert (topology.devices, topology.switches, topology.ports) == (("b", "a"), ("s",), ())
    assert topology.hosts == {"b": ("b",), "h": ("a",)}


def test_all_ways_go_through_all_spines_and_not_through_devices():
    topology = two_tier(4, 2, host_bandwidth=1.0, uplink_bandwidth=1.0, spines=3)
    ways = all_ways(topology, "host0", "host3")
    assert sorted(way[2] for way in ways) == ["spine0", "spine1", "spine2"]
    assert {(*way[:2], *way[3:]) for way in ways} == {("host0", "leaf0", "leaf1", "host3")}
    chain = Topology("c", [A, B, Node("c", DEVICE)], [Link("a", "b", 1.0), Link("b", "c", 1.0)])
    with pytest.raises(ValueError, match="'a' to 'c'"):
        all_ways(chain, "a", "c")


def test_broken_nodes_and_cables_leave_the_rest():
    whole = leaf_spine(4, 2, 2, port_bandwidth=1.0)
    less = whole.without("spine0", ("leaf0", "spine1"))
    assert "spine0" not in less.nodes
    assert not {("leaf0", "spine1"), ("spine1", "leaf0")} & less.links.keys()
    assert len(less.links) == len(whole.links) - 4 - 2
    with pytest.raises(ValueError, match="'spine9'"):
        whole.without("spine9")
    with pytest.raises(ValueError, match="spine1"):
        whole.without(("spine0", "spine1"))


def test_scaling_and_turning_round():
    topology = Topology("t", [A, B], [Link("a", "b", 4.0, 1.0)])
    assert topology.scaled({("a", "b"): 0.5}).links["a", "b"] == Link("a", "b", 2.0, 1.0)
    with pytest.raises(ValueError, match=r"\('b', 'a'\)"):
        topology.scaled({("b", "a"): 0.5})
    assert topology.reversed().links == {("b", "a"): Link("b", "a", 4.0, 1.0)}
    assert topology.reversed().reversed() == topology


def test_json_gives_back_what_was_saved(tmp_path):
    for topology in (dgx_a100(2), leaf_spine(2, 1, 1, port_bandwidth=1.5, ports_per_nic=2, planes=2, latency=1e-6)):
        topology.save(tmp_path / "t.json")
        assert read_topology(tmp_path / "t.json") == topology
    with pytest.raises(ValueError, match="links"):
        Topology.from_dict({"name": "t", "nodes": []})
