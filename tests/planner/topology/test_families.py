"""Families: how many of what, what is joined to what, and in which plane."""

from collections import Counter

import networkx as nx
import pytest
from all_ways import all_ways

from collcomp.planner.topology.families import (
    FAMILIES,
    copies,
    dgx_a100,
    dragonfly,
    fat_tree,
    leaf_spine,
    mi250,
    star,
    torus,
    two_tier,
)
from collcomp.planner.topology.nvidia_smi import topology_from_nvidia_smi

C4P = {
    "nics_per_host": 8,
    "ports_per_nic": 2,
    "planes": 2,
    "port_bandwidth": 25e9,
    "device_bandwidth": 45.25e9,
}
EXAMPLES = [
    leaf_spine(8, 2, 8, **C4P),
    leaf_spine(5, 2, 3, port_bandwidth=1.0, ports_per_nic=2),
    two_tier(8, 2, host_bandwidth=1.0, uplink_bandwidth=[1.0, 2.0], spines=2),
    star(4, 1.0),
    fat_tree(4, 1.0),
    dragonfly(4, 2, 2, bandwidth=1.0),
    torus([2, 3, 4], 1.0),
    dgx_a100(1),
    dgx_a100(4),
    mi250(1),
    mi250(2),
]


def degree(topology, name):
    return sum(source == name for source, _ in topology.links)


@pytest.mark.parametrize("topology", EXAMPLES, ids=lambda topology: topology.name)
def test_every_cable_goes_both_ways_and_all_is_joined(topology):
    for (source, dest), link in topology.links.items():
        back = topology.links[dest, source]
        assert (back.bandwidth, back.latency) == (link.bandwidth, link.latency)
    assert nx.is_strongly_connected(topology.graph)


def test_leaf_spine_in_two_planes():
    topology = leaf_spine(8, 2, 8, **C4P)
    assert (len(topology.devices), len(topology.ports)) == (64, 128)
    for port in topology.ports:
        node = topology.nodes[port]
        assert port.endswith(f"port{node.plane}")
        (leaf,) = [dest for source, dest in topology.links if source == port and "leaf" in dest]
        assert leaf == f"plane{node.plane}.leaf{int(node.host.removeprefix('host')) // 4}"
    up = [link for link in topology.links.values() if "leaf" in link.source and "spine" in link.dest]
    assert len(up) == 2 * 2 * 8
    assert {link.source.split(".")[0] == link.dest.split(".")[0] for link in up} == {True}
    # 1:1: what goes up from a leaf is what comes in from its 4 hosts with 8 cards each
    assert sum(link.bandwidth for link in up if link.source == "plane1.leaf0") == 4 * 8 * 25e9


def test_uplinks_of_uneven_leaves_fit_the_fullest():
    topology = leaf_spine(5, 2, 3, port_bandwidth=6.0)
    assert Counter(dest for _, dest in topology.links if dest.startswith("leaf"))["leaf0"] == 3 + 3
    assert topology.links["leaf0", "spine0"].bandwidth == 6.0


def test_two_tier_has_a_rate_for_each_spine():
    topology = two_tier(4, 2, host_bandwidth=3.0, uplink_bandwidth=[1.0, 2.0], spines=2, latency=1e-5)
    assert topology.links["leaf1", "spine0"].bandwidth == 1.0
    assert topology.links["leaf1", "spine1"].bandwidth == 2.0
    assert topology.links["host3", "leaf1"].latency == 1e-5
    with pytest.raises(ValueError, match="uplink_bandwidth"):
        two_tier(4, 2, host_bandwidth=3.0, uplink_bandwidth=[1.0], spines=2)


def test_fat_tree_has_k_links_at_every_switch():
    topology = fat_tree(6, 1.0)
    assert len(topology.devices) == 6**3 // 4
    assert {degree(topology, switch) for switch in topology.switches} == {6}
    assert len(all_ways(topology, "host0", f"host{6**3 // 4 - 1}")) == 9


def test_dragonfly_joins_every_two_groups_once():
    topology = dragonfly(4, 2, 2, bandwidth=1.0, global_bandwidth=5.0)
    assert {degree(topology, switch) for switch in topology.switches} == {2 + 3 + 2}
    between = Counter(
        (link.source.split(".")[0], link.dest.split(".")[0])
        for link in topology.links.values()
        if link.bandwidth == 5.0
    )
    assert set(between.values()) == {1}
    assert len(between) == 9 * 8


def test_torus_is_closed_in_every_dimension():
    topology = torus([2, 3, 4], 1.0)
    assert len(topology.devices) == 24
    assert {degree(topology, switch) for switch in topology.switches} == {1 + 1 + 2 + 2}
    assert topology.links["node0-0-0", "node0-0-0.router"].bandwidth == 5.0
    assert ("node0-0-3.router", "node0-0-0.router") in topology.links


def test_mi250_has_112_directed_fabric_links_a_box():
    topology = mi250(1)
    assert sum(link.bandwidth for link in topology.links.values()) == 112 * 50e9
    assert topology.links["host0.gpu9", "host0.gpu8"].bandwidth == 200e9


def test_copies_of_a_host_share_switches_by_plane():
    matrix = "GPU0 GPU1 NIC0 NIC1 CPU\nGPU0 X NV4 PIX SYS\nGPU1 NV4 X SYS PIX\nNIC0 PIX SYS X SYS\nNIC1 SYS PIX SYS X\n"
    host = topology_from_nvidia_smi(matrix, "box")
    topology = copies(host, 3, planes=2)
    assert topology.devices == tuple(f"host{h}.gpu{g}" for h in range(3) for g in range(2))
    assert topology.nodes["host2.NIC1"].plane == 1
    assert topology.links["host2.NIC1", "plane1.switch"].bandwidth == host.links["host0.NIC1", "host0.pix1"].bandwidth
    assert nx.is_strongly_connected(topology.graph)
    with pytest.raises(ValueError, match="no ports"):
        copies(dgx_a100(1), 2)


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("star", {"hosts": 0, "bandwidth": 1.0}, "hosts: 0"),
        ("star", {"hosts": True, "bandwidth": 1.0}, "hosts: True"),
        ("star", {"hosts": 2.0, "bandwidth": 1.0}, "hosts: 2.0"),
        ("star", {"hosts": 2, "bandwidth": -1.0}, "bandwidth"),
        ("fat_tree", {"k": 3, "bandwidth": 1.0}, "k: 3 is odd"),
        ("torus", {"dims": [], "bandwidth": 1.0}, "dims"),
        ("torus", {"dims": [2, 0], "bandwidth": 1.0}, "dims: 0"),
        ("leaf_spine", {"hosts": 2, "leaves": 1, "spines": 1, "port_bandwidth": 1.0, "planes": 2}, "planes: 2"),
    ],
)
def test_impossible_numbers_are_named(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        FAMILIES[family](**arguments)
