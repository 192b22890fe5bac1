"""Rings: optimal where that is known, within their bound everywhere, and the same however ranks were dealt out."""

import random
from itertools import pairwise, permutations

import numpy as np
import pytest
from all_ways import all_ways

from collcomp.planner.rings.order import ring_order
from collcomp.planner.rings.sets import ring_set
from collcomp.planner.topology import DEVICE, SWITCH, Link, Node, Topology, families
from collcomp.planner.topology.routes import Routes

GB = 1e9


def seconds_of(topology, names):
    """Of the busiest link, for a byte that goes round; infinite where an edge has no way."""
    loads = dict.fromkeys(topology.links, 0.0)
    for edge in pairwise([*names, names[0]]):
        if edge[0] == edge[1]:
            continue
        try:
            ways = all_ways(topology, *edge)
        except ValueError:
            return np.inf
        for way in ways:
            for link in pairwise(way):
                loads[link] += 1 / len(ways)
    return max(load / topology.links[link].bandwidth for link, load in loads.items())


def random_network(seed, devices=6, switches=4, one_way=0):
    """Devices at switches that are joined at random, with links of all speeds, not the same in both directions.

    Links between some more switches lead one way only.
    """
    rng = random.Random(seed)
    nodes = [Node(f"d{i}", DEVICE, f"h{i // 2}") for i in range(devices)]
    nodes += [Node(f"s{i}", SWITCH) for i in range(switches)]
    ends = {(f"d{i}", f"s{rng.randrange(switches)}") for i in range(devices)}
    ends |= {(f"s{i}", f"s{rng.randrange(i)}") for i in range(1, switches)}
    ends |= {(f"s{a}", f"s{b}") for a, b in [rng.sample(range(switches), 2)] if (f"s{b}", f"s{a}") not in ends}
    links = [Link(*way, rng.choice([1.0, 2.0, 5.0])) for a, b in sorted(ends) for way in ((a, b), (b, a))]
    known = {(link.source, link.dest) for link in links}
    free = [(f"s{a}", f"s{b}") for a in range(switches) for b in range(switches) if a != b]
    links += [
        Link(*way, rng.choice([1.0, 2.0, 5.0])) for way in rng.sample([w for w in free if w not in known], one_way)
    ]
    return Topology(f"random-{seed}", nodes, links)


@pytest.mark.parametrize("seed", range(12))
def test_few_devices_are_ordered_as_well_as_can_be(seed):
    topology = random_network(seed)
    plan = ring_order(topology)
    first, *others = topology.devices
    best = min(seconds_of(topology, [first, *rest]) for rest in permutations(others))
    assert plan.seconds_per_byte == pytest.approx(seconds_of(topology, [topology.devices[rank] for rank in plan.order]))
    assert plan.seconds_per_byte == pytest.approx(best)
    assert plan.bound <= best * (1 + 1e-6)
    assert plan.gap < 1e-5


OPTIMAL = [
    (families.dgx_a100(1), 300 * GB, 300 * GB),
    (families.dgx_a100(2), 25 * GB, 200 * GB),
    (families.dgx_a100(3), 25 * GB, 200 * GB),  # an odd number of boxes: rings change direction in none
    (families.mi250(1), 50 * GB, 300 * GB),
    (families.fat_tree(4, 1.25 * GB), 1.25 * GB, 1.25 * GB),
    (families.star(5, 1.0), 1.0, 1.0),
    (families.dragonfly(2, 2, 2, bandwidth=1.0), 1.0, 1.0),
    (families.two_tier(8, 2, host_bandwidth=2.0, uplink_bandwidth=[0.5, 0.5], spines=2), 1.0, 1.0),
    (
        families.leaf_spine(4, 2, 2, port_bandwidth=25 * GB, nics_per_host=4, ports_per_nic=2, planes=2,
                            device_bandwidth=400 * GB),
        50 * GB, 200 * GB,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("topology", "one", "several"), OPTIMAL, ids=lambda x: getattr(x, "name", None))
def test_rings_attain_the_bound(topology, one, several):
    devices = list(topology.devices)
    random.Random(0).shuffle(devices)
    plan = ring_order(topology, devices)
    assert sorted(plan.order) == list(range(len(devices)))
    assert plan.seconds_per_byte == pytest.approx(seconds_of(topology, [devices[rank] for rank in plan.order]))
    assert plan.busbw == pytest.approx(one)
    assert plan.gap == pytest.approx(0, abs=1e-6)

    rings = ring_set(topology, devices)
    assert sum(rings.shares) == pytest.approx(1)
    assert rings.busbw == pytest.approx(several, rel=2e-3)
    assert rings.gap < 2e-3
    routes, loads = Routes(topology), 0
    for order, share in zip(rings.orders, rings.shares, strict=True):
        assert sorted(order) == list(range(len(devices)))
        names = [devices[rank] for rank in order]
        loads = loads + share * routes.loads(list(pairwise([*names, names[0]])))
    assert (loads / routes.bandwidths).max() == pytest.approx(rings.seconds_per_byte)


def test_fewer_rings_are_slower_but_as_many_as_asked():
    topology = families.dgx_a100(2)
    found = [ring_set(topology, most=most) for most in (1, 2, 4)]
    assert [len(rings.orders) for rings in found] == [1, 2, 4]
    assert [rings.busbw / GB for rings in found] == pytest.approx([25, 50, 100], rel=1e-3)
    with pytest.raises(ValueError, match="most: 0"):
        ring_set(topology, most=0)


def test_interleaved_ranks_are_gathered_by_leaf():
    topology = families.two_tier(8, 2, host_bandwidth=1.0, uplink_bandwidth=1.0)
    devices = [f"host{i // 2 + 4 * (i % 2)}" for i in range(8)]
    assert seconds_of(topology, devices) == pytest.approx(4)  # as they stand
    assert ring_order(topology, devices).busbw == pytest.approx(1)


def test_ranks_of_one_device_follow_each_other():
    topology = families.star(2, 1.0)
    plan = ring_order(topology, ["host0", "host1", "host0", "host1"])
    assert plan.order == (0, 2, 1, 3)
    assert plan.busbw == 1
    alone = ring_order(topology, ["host1", "host1"])
    assert (alone.order, alone.seconds_per_byte, alone.gap, alone.busiest) == ((0, 1), 0, 0, None)
    assert ring_set(topology, ["host1"]).orders == ((0,),)


def test_what_cannot_be_is_said():
    topology = families.star(3, 1.0)
    with pytest.raises(ValueError, match="'switch' is no device"):
        ring_order(topology, ["host0", "switch"])
    with pytest.raises(ValueError, match="devices: none"):
        ring_order(topology, [])
    with pytest.raises(ValueError, match="no ring was found"):
        ring_order(topology.without(("host1", "switch")))


def test_predicted_time_counts_steps_and_bytes():
    plan = ring_order(families.star(4, 1e9, latency=1e-6))
    assert plan.latency == pytest.approx(2e-6)
    assert plan.seconds(4e9) == pytest.approx(6 * (2e-6 + 1))


@pytest.mark.parametrize("topology", [families.torus([4, 4], 1.0), families.torus([3, 5], 1.0)], ids=lambda x: x.name)
def test_a_single_ring_of_a_torus_goes_from_neighbour_to_neighbour(topology):
    plan = ring_order(topology)
    assert 1 / 4 <= plan.bound <= plan.seconds_per_byte  # each device has four cables
    assert plan.seconds_per_byte == pytest.approx(seconds_of(topology, [topology.devices[i] for i in plan.order]))
    assert plan.seconds_per_byte == pytest.approx(1)
    assert plan.gap == pytest.approx(plan.seconds_per_byte / plan.bound - 1)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 3, 1), (4, 2, 0, 3, 1)])
@pytest.mark.filterwarnings("error")
def test_links_of_one_direction_give_the_only_ring(order):
    size = len(order)
    links = [Link(f"h{a}", f"h{b}", 1.0 + a) for a, b in pairwise([*order, order[0]])]
    topology = Topology("round", [Node(f"h{i}", DEVICE) for i in range(size)], links)
    plan = ring_order(topology)
    start = plan.order.index(order[0])
    assert plan.order[start:] + plan.order[:start] == order
    assert plan.busbw == 1.0
    rings = ring_set(topology)
    assert (rings.orders, rings.busbw) == ((plan.order,), pytest.approx(1.0))


@pytest.mark.parametrize("seed", range(20))
def test_several_rings_are_never_slower_than_one(seed):
    topology = random_network(seed, one_way=2)
    plan = ring_order(topology)
    for most in (1, 2, 64):
        rings = ring_set(topology, most=most)
        assert rings.seconds_per_byte <= plan.seconds_per_byte * (1 + 1e-9)
        assert rings.bound <= rings.seconds_per_byte
        assert len(rings.orders) <= most
