"""How switches hash, and source ports turned round."""

import binascii
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collcomp.errors import CollcompError
from collcomp.planner.flows.ecmp import Hashed, addresses_of, hops, switches_of
from collcomp.planner.flows.hashing import METHODS, ROCE_SOURCE_PORTS, FiveTuple, Hop, SwitchHash, source_ports_for
from collcomp.planner.flows.placing import LeastLoaded
from collcomp.planner.flows.table import Flow, FlowTable
from collcomp.planner.topology.families import fat_tree, leaf_spine

PACKET = FiveTuple("10.0.0.1", "10.1.2.3", 0xC123)


def test_hashes_are_those_of_their_names():
    check = b"123456789"
    assert METHODS["crc32"](check) == zlib.crc32(check) == 0xCBF43926
    assert METHODS["crc16"](check) == binascii.crc_hqx(check, 0xFFFF) == 0x29B1


def test_headers_are_hashed_as_they_are_sent():
    assert PACKET.to_bytes().hex() == "0a0000010a01020311c12312b7"
    words = [0x0A00, 0x0001, 0x0A01, 0x0203, 0x0011, 0xC123, 0x12B7]
    assert SwitchHash("xor").value(PACKET) == np.bitwise_xor.reduce(words)


@given(st.sampled_from(sorted(METHODS)), st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(0, 65535))
def test_values_of_all_ports_are_those_of_each(method, seed, shift, port):
    switch = SwitchHash(method, seed, shift)
    packet = FiveTuple("192.168.7.9", "10.255.0.1", port)
    assert switch.values(PACKET).shape == (65536,)
    assert switch.values(packet)[port] == switch.value(packet)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_ports_lead_every_queue_pair_where_it_is_planned(method):
    switches = SwitchHash(method, 12345), SwitchHash(method, 999, shift=8)
    plans = [[Hop(switches[0], 8, i % 8), Hop(switches[1], 6, i % 6)] for i in range(24)]
    ports = source_ports_for(PACKET, plans)
    assert len(set(ports)) == len(ports)
    for port, plan in zip(ports, plans, strict=True):
        assert port in ROCE_SOURCE_PORTS
        for hop in plan:
            assert hop.switch.value(FiveTuple(PACKET.source, PACKET.dest, port)) % hop.ways == hop.way


def test_switches_that_hash_alike_cannot_choose_independently():
    switches = SwitchHash("crc32", 1), SwitchHash("crc32", 2)
    reached = 0
    for first in range(4):
        for second in range(4):
            try:
                source_ports_for(PACKET, [[Hop(switches[0], 4, first), Hop(switches[1], 4, second)]])
                reached += 1
            except CollcompError as error:
                assert "hash alike" in str(error)  # noqa: PT017, the other half of them
    assert reached == 4


def test_hashes_that_cannot_be():
    with pytest.raises(ValueError, match="'md5' is none of"):
        SwitchHash("md5")
    with pytest.raises(ValueError, match="seed"):
        SwitchHash("xor", 1 << 32)


@pytest.mark.parametrize(
    "topology",
    [leaf_spine(4, 4, 6, port_bandwidth=1.0, ports_per_nic=2, planes=2), fat_tree(4, 1.0)],
    ids=["leaf-spine", "fat-tree"],
)
def test_a_network_of_such_switches_sends_packets_the_planned_way(topology):
    """Ports are found from the plan by `hops`, and followed through the network by `Hashed`."""
    rng = np.random.default_rng(3)
    switches, addresses = switches_of(topology, rng), addresses_of(topology)
    ends = topology.ports or topology.devices
    table = FlowTable(topology)
    table.add([Flow("a", (ends[0],), (ends[-2],), 1.0)], LeastLoaded(6))
    (placement,) = table.placements
    packet = FiveTuple(addresses[ends[0]], addresses[ends[-2]])
    found = source_ports_for(packet, [hops(table, placement.flow, way, switches) for way in placement.ways])

    class Given:
        def integers(self, low, high, count):
            return np.array(found[:count])

    hashed = FlowTable(topology)
    hashed.add([placement.flow], Hashed(6, switches, addresses, Given()))
    assert hashed.placements[0].ways == placement.ways


def test_choices_are_among_what_works():
    topology = leaf_spine(2, 2, 3, port_bandwidth=1.0)
    table = FlowTable(topology)
    (placement,) = table.add([Flow("a", ("host0.nic0.port0",), ("host1.nic0.port0",), 1.0)], LeastLoaded(3))
    switches = switches_of(topology, np.random.default_rng(0))
    assert [(hop.ways, hop.way) for way in placement.ways for hop in hops(table, placement.flow, way, switches)] == [
        (3, 0), (3, 1), (3, 2),
    ]  # fmt: skip
    table.fail("spine1", "leaf1")
    (hop,) = hops(table, placement.flow, placement.ways[2], switches)
    assert (hop.ways, hop.way) == (2, 1)
    with pytest.raises(ValueError, match="none that works"):
        hops(table, placement.flow, placement.ways[1], switches)
    with pytest.raises(ValueError, match="leaf0"):
        hops(table, placement.flow, placement.ways[0], {})


def test_hashed_flows_collide_as_balls_in_bins_do():
    """Eight flows on eight uplinks: the fullest one gets 2.6 in the mean."""
    topology = leaf_spine(2, 2, 8, port_bandwidth=1.0, nics_per_host=8)
    addresses = addresses_of(topology)
    flows = [Flow("a", (f"host0.nic{i}.port0",), (f"host1.nic{i}.port0",), 1.0) for i in range(8)]
    fullest = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        table = FlowTable(topology)
        table.add(flows, Hashed(1, switches_of(topology, rng), addresses, rng))
        fullest.append(table.seconds())
    assert np.mean(fullest) == pytest.approx(2.6, abs=0.15)
