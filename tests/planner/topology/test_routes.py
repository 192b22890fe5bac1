"""Loads of links by the bidirectional search: those of all shortest ways, counted one by one."""

from itertools import pairwise, permutations

import pytest
from all_ways import all_ways

from collcomp.planner.topology import families
from collcomp.planner.topology.routes import Routes

TOPOLOGIES = [
    families.fat_tree(4, 1e9),
    families.dgx_a100(2),
    families.mi250(2),
    families.torus([3, 4], 1e9),
    families.dragonfly(3, 2, 1, bandwidth=1.0),
    families.leaf_spine(4, 2, 3, port_bandwidth=1.0, ports_per_nic=2, planes=2, nics_per_host=2, device_bandwidth=9.0),
    families.two_tier(4, 2, host_bandwidth=1.0, uplink_bandwidth=[1.0, 3.0], spines=2, latency=0.5),
]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda topology: topology.name)
def test_shares_are_those_of_all_shortest_ways(topology):
    routes = Routes(topology)
    for source, dest in permutations(topology.devices[::2] + topology.devices[1:2], 2):
        try:
            ways = all_ways(topology, source, dest)
        except ValueError:
            assert not routes.joins(source, dest)
            with pytest.raises(ValueError, match="no way leads"):
                routes.shares(source, dest)
            continue
        expected = {}
        for way in ways:
            for link in pairwise(way):
                expected[link] = expected.get(link, 0) + 1 / len(ways)
        links, parts = routes.shares(source, dest)
        assert {routes.links[i]: part for i, part in zip(links, parts, strict=True)} == pytest.approx(expected)
        latency = sum(topology.links[link].latency * part for link, part in expected.items())
        assert routes.latency(source, dest) == pytest.approx(latency)


def test_a_device_reaches_itself_over_no_link():
    routes = Routes(families.star(2, 1.0))
    assert routes.loads([("host0", "host0"), ("host0", "host1")]).sum() == 2
