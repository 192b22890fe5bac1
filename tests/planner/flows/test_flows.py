"""Flows on ways: the table, placing, evening out, splitting, correcting by measured times."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collcomp.planner.flows.ecmp import Hashed, addresses_of, switches_of
from collcomp.planner.flows.placing import LeastLoaded
from collcomp.planner.flows.rebalance import Rebalancer
from collcomp.planner.flows.splitting import Split
from collcomp.planner.flows.table import Flow, FlowTable
from collcomp.planner.simulation.simulate import Transfers, routes_of, simulate
from collcomp.planner.topology import Link, Node, Topology
from collcomp.planner.topology.families import fat_tree, leaf_spine, two_tier


def ports(host, nic=0, count=2):
    return tuple(f"host{host}.nic{nic}.port{port}" for port in range(count))


def network(hosts=4, leaves=4, spines=4, nics=1, **more):
    more = {"port_bandwidth": 1.0, "uplink_bandwidth": 1.0, "ports_per_nic": 2, "planes": 2, **more}
    return FlowTable(leaf_spine(hosts, leaves, spines, nics_per_host=nics, **more))


def names(table, placement):
    return [table.paths.nodes(way) for way in placement.ways]


def expected_loads(table):
    loads = np.zeros(len(table.loads))
    for placement in table.placements:
        for way, share in zip(placement.ways, placement.shares, strict=True):
            loads[list(way)] += share * placement.flow.nbytes
    return loads


# ---------------------------------------------------------------------- the table


def test_bonded_ports_and_spines_are_balanced():
    table = network()
    (placement,) = table.add([Flow("a", ports(0), ports(1), 8.0)], LeastLoaded(8))
    assert Counter(way[0] for way in names(table, placement)) == dict.fromkeys(ports(0), 4)
    spines = Counter(way[2] for way in names(table, placement))
    assert spines == {f"plane{plane}.spine{spine}": 1 for plane in range(2) for spine in range(4)}
    assert table.seconds() == table.fewest_seconds() == 4.0


def test_hosts_of_one_leaf_need_no_spine():
    table = network(hosts=4, leaves=2)
    (placement,) = table.add([Flow("a", ports(0), ports(1), 1.0)], LeastLoaded(2))
    assert {len(way) for way in placement.ways} == {2}


def test_jobs_come_and_go_and_nobody_else_moves():
    table = network(nics=2)
    first = table.add([Flow("a", ports(0, nic), ports(1, nic), 4.0) for nic in range(2)], LeastLoaded(4))
    stayed = [list(placement.ways) for placement in first]
    table.add([Flow("b", ports(2, nic), ports(1, nic), 4.0) for nic in range(2)], LeastLoaded(4))
    assert [placement.ways for placement in first] == stayed
    np.testing.assert_allclose(table.loads, expected_loads(table), atol=1e-9)
    table.remove("a")
    np.testing.assert_allclose(table.loads, expected_loads(table), atol=1e-12)
    assert set(table.jobs) == {"b"}
    table.remove("b")
    np.testing.assert_allclose(table.loads, 0, atol=1e-12)
    with pytest.raises(ValueError, match="'a' is none"):
        table.remove("a")


def test_hosts_without_ports_are_ends_too():
    table = FlowTable(two_tier(4, 2, host_bandwidth=1.0, uplink_bandwidth=[1.0, 0.5], spines=2))
    placements = table.add([Flow("a", (f"host{i}",), (f"host{i + 2}",), 1.0) for i in range(2)], Split())
    assert table.seconds() == pytest.approx(2 / 1.5)
    for placement in placements:
        assert sum(placement.shares) == pytest.approx(1)


def test_three_tiers():
    table = FlowTable(fat_tree(4, 1.0))
    table.add([Flow("a", ("host0",), ("host15",), 4.0)], LeastLoaded(4))
    assert Counter(way[3] for way in names(table, table.placements[0])) == {f"core{i}": 1 for i in range(4)}


def test_what_cannot_be_placed_is_refused_and_nothing_is_changed():
    table = network(spines=1)
    good = Flow("a", ports(0), ports(1), 1.0)
    with pytest.raises(ValueError, match="nothing that works"):
        table.add([good, Flow("a", ports(0)[:1], ports(1)[1:], 1.0)], LeastLoaded())
    assert not table.jobs
    assert not table.loads.any()
    (placement,) = table.add([good], LeastLoaded(2))
    before = list(placement.ways)
    for plane in range(2):
        table.fail(f"plane{plane}.leaf0", f"plane{plane}.spine0")
    assert table.seconds() == math.inf
    with pytest.raises(ValueError, match="nothing that works"):
        table.move([placement], LeastLoaded(2))
    assert placement.ways == before


def test_a_chooser_that_fails_changes_nothing():
    table = network()
    (placement,) = table.add([Flow("a", ports(0), ports(1), 1.0)], LeastLoaded(4))
    before = list(placement.ways), table.loads.copy()

    def fail(table, placements):
        table.put(placements[0], [], [])
        raise RuntimeError("no solution")

    with pytest.raises(RuntimeError, match="no solution"):
        table.move([placement], fail)
    assert placement.ways == before[0]
    np.testing.assert_allclose(table.loads, before[1], atol=1e-12)


@pytest.mark.parametrize(
    ("sources", "dests", "nbytes", "said"),
    [
        ((), ("b",), 1.0, "no end"),
        (("host0.nic0.port0",), ("host1.nic0.port0",), 0.0, "nbytes"),
        (("nowhere",), ("host1.nic0.port0",), 1.0, "'nowhere' is no end"),
        (("host0.nic0.port0",), ("host0.nic0.port0",), 1.0, "sends to itself"),
    ],
)
def test_flows_that_cannot_be(sources, dests, nbytes, said):
    with pytest.raises(ValueError, match=said):
        network().add([Flow("a", sources, dests, nbytes)], LeastLoaded())


def test_links_that_cannot_be():
    table = network()
    with pytest.raises(ValueError, match="nothing leads"):
        table.fail("plane0.leaf0", "plane1.spine0")
    with pytest.raises(ValueError, match="bandwidth"):
        table.set_bandwidth("plane0.leaf0", "plane0.spine0", -1.0)


# ---------------------------------------------------------------------- as even as can be


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_alike_flows_are_spread_as_evenly_as_any_can_be(seed):
    """De Werra: at each leaf every spine gets the rounded-up mean of its flows at most."""
    rng = np.random.default_rng(seed)
    leaves, spines, nics = (int(number) for number in rng.integers((2, 1, 1), (13, 9, 9)))
    table = FlowTable(leaf_spine(leaves, leaves, spines, port_bandwidth=1e3, uplink_bandwidth=1.0, nics_per_host=nics))
    ends = [rng.permutation(leaves) for _ in range(nics)]
    flows = [
        Flow("a", ports(h, nic, 1), ports(order[h], nic, 1), 1.0)
        for nic, order in enumerate(ends)
        for h in range(leaves)
        if order[h] != h
    ]
    table.add([flows[i] for i in rng.permutation(len(flows))], LeastLoaded())
    np.testing.assert_allclose(table.loads, expected_loads(table), atol=1e-9)
    leaving = Counter(flow.sources[0].split(".")[0] for flow in flows)
    reaching = Counter(flow.dests[0].split(".")[0] for flow in flows)
    most = max((*leaving.values(), *reaching.values()), default=0)
    uplinks = [i for i, ends in enumerate(table.paths.links) if "spine" in ends[0] + ends[1]]
    assert table.loads[uplinks].max() <= math.ceil(most / spines) + 1e-9


def test_evening_out_unlike_flows_comes_to_an_end():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        topology = leaf_spine(8, 4, 3, port_bandwidth=9.0, uplink_bandwidth=1.0, ports_per_nic=2, planes=2)
        table = FlowTable(topology.scaled({link: rng.uniform(0.1, 1) for link in topology.links}))
        ends = [rng.choice(8, 2, replace=False) for _ in range(24)]
        table.add([Flow("a", ports(a), ports(b), float(rng.lognormal(0, 3))) for a, b in ends], LeastLoaded(3))
        np.testing.assert_allclose(table.loads, expected_loads(table), rtol=1e-9, atol=1e-9 * table.loads.max())


def test_later_jobs_are_evened_out_around_those_that_stay():
    table = network(hosts=2, leaves=2, spines=4, nics=4, ports_per_nic=1, planes=1)
    table.add([Flow("a", ports(0, nic, 1), ports(1, nic, 1), 1.0) for nic in range(2)], LeastLoaded())
    table.add([Flow("b", ports(0, nic, 1), ports(1, nic, 1), 1.0) for nic in range(2, 4)], LeastLoaded())
    assert table.seconds() == 1.0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
@example(12)
@example(32)
def test_no_single_way_could_relieve_the_busiest_link(seed):
    """Unlike flows on unlike links, two tiers or three."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        topology = leaf_spine(4, 4, 3, port_bandwidth=9.0, uplink_bandwidth=1.0, ports_per_nic=2, planes=2)
        ends = [ports(h) for h in range(4)]
    else:
        topology = fat_tree(4, 1.0)
        ends = [(host,) for host in topology.devices]
    topology = topology.scaled({link: rng.uniform(0.3, 1) for link in topology.links if rng.random() < 0.3})
    table = FlowTable(topology)
    flows = [
        Flow("a", *(ends[i] for i in rng.choice(len(ends), 2, replace=False)), rng.exponential() + 0.1)
        for _ in range(24)
    ]
    table.add(flows, LeastLoaded(int(rng.integers(1, 4))))
    np.testing.assert_allclose(table.loads, expected_loads(table), atol=1e-9)
    before = table.seconds()
    assert before >= table.fewest_seconds() * (1 - 1e-9)
    busiest = int(np.argmax(table.loads[:-1] / table.bandwidths[:-1]))
    for placement in table.placements:
        for i, way in enumerate(placement.ways):
            if busiest not in way:
                continue
            for row in table.ways(placement.flow):
                ways = [*placement.ways[:i], table.way(row), *placement.ways[i + 1 :]]
                old = list(placement.ways)
                table.put(placement, ways, placement.shares)
                touched = [link for link in table.way(row) if link not in way]
                seconds = (table.loads[touched] / table.bandwidths[touched]).max(initial=0)
                assert busiest in table.way(row) or seconds >= before * (1 - 1e-6)
                table.put(placement, old, placement.shares)


# ---------------------------------------------------------------------- after a failure


@pytest.fixture
def broken():
    """A ring over four leaves of four cards each with one of four uplinks down, and those that may have to move."""
    table = network(nics=4)
    flows = [Flow(f"job{nic}", ports(h, nic), ports((h + 1) % 4, nic), 8.0) for nic in range(4) for h in range(4)]
    table.add(flows, LeastLoaded(8))
    assert table.seconds() == table.fewest_seconds() == 4.0
    touched = table.fail("plane0.leaf1", "plane0.spine2")
    assert table.seconds() == math.inf
    assert {placement.flow.sources[0][:5] for placement in touched} == {"host0", "host1"}
    return table, touched


@pytest.mark.parametrize(
    ("choose", "seconds"),
    [
        (LeastLoaded(8, keep_ports=True), 6.0),  # 16 queue pairs of a byte on three links
        (LeastLoaded(8), 5.0),
        (Split(keep_ports=True), 16 / 3),
        (Split(), 32 / 7),
        (Split(ways=8), 32 / 7),
    ],
)
def test_flows_move_off_a_broken_link(broken, choose, seconds):
    table, touched = broken
    stayed = {placement: list(placement.ways) for placement in table.placements if placement not in touched}
    table.move(touched, choose)
    assert table.seconds() == pytest.approx(seconds, rel=1e-6)
    assert table.fewest_seconds() == pytest.approx(32 / 7)
    np.testing.assert_allclose(table.loads, expected_loads(table), atol=1e-9)
    assert all(placement.ways == ways for placement, ways in stayed.items())
    for placement in touched:
        assert sum(placement.shares) == pytest.approx(1)
        assert len(placement.ways) <= 8


def test_a_split_keeps_ports_where_it_is_told_to(broken):
    table, touched = broken
    table.move(touched, Split(keep_ports=True))
    for placement in touched:
        by_port = Counter()
        for way, share in zip(names(table, placement), placement.shares, strict=True):
            by_port[way[0]] += share
        assert list(by_port.values()) == pytest.approx([0.5, 0.5])


def test_hashed_flows_leave_broken_links_only(broken):
    table, touched = broken
    topology, rng = table.paths.topology, np.random.default_rng(0)
    before = {placement: list(placement.ways) for placement in touched}
    table.move(touched, Hashed(8, switches_of(topology, rng), addresses_of(topology), rng, only_broken=True))
    moved = 0
    for placement, ways in before.items():
        for old, new in zip(ways, placement.ways, strict=True):
            assert table.bandwidths[list(new)].all()
            assert (old[0], old[-1]) == (new[0], new[-1])
            moved += old != new
    assert moved == 8  # four flows each way had one queue pair there


def test_a_split_is_the_optimum_beside_what_stays():
    # Of three uplinks one is half taken, and one has a third of the others' rate.
    table = FlowTable(two_tier(4, 2, host_bandwidth=10.0, uplink_bandwidth=[3.0, 3.0, 1.0], spines=3))
    (fixed,) = table.add([Flow("fixed", ("host0",), ("host2",), 6.0)], LeastLoaded())
    (split,) = table.add([Flow("split", ("host1",), ("host3",), 8.0)], Split())
    assert table.seconds() == pytest.approx(2.0)
    assert sum(split.shares) == pytest.approx(1)
    assert len(fixed.ways) == 1


def test_flows_of_very_few_bytes_are_split_too():
    table = FlowTable(two_tier(4, 2, host_bandwidth=1e3, uplink_bandwidth=[1.0, 1.0], spines=2))
    flows = [Flow("a", (f"host{i}",), (f"host{i + 2}",), nbytes) for i, nbytes in enumerate((1e10, 1.0))]
    large, small = table.add(flows, Split())
    for placement in (large, small):
        assert sum(placement.shares) == pytest.approx(1)
        assert min(placement.shares) > 0
    assert table.seconds() == pytest.approx(0.5e10)


def test_a_link_of_one_direction_breaks_too():
    topology = two_tier(4, 2, host_bandwidth=1.0, uplink_bandwidth=[1.0, 1.0], spines=2)
    links = [link for ends, link in topology.links.items() if ends != ("spine0", "leaf0")]
    table = FlowTable(Topology("one way", topology.nodes.values(), links))
    (placement,) = table.add([Flow("a", ("host0",), ("host2",), 1.0)], LeastLoaded())
    assert table.fail("spine0", "leaf0") == [placement]
    assert not table.bandwidths[table.paths.index["leaf0", "spine0"]]
    with pytest.raises(ValueError, match="nor back"):
        table.fail("leaf0", "leaf1")


@pytest.mark.parametrize("only_broken", [False, True])
def test_hashed_flows_leave_a_port_that_broke(only_broken):
    table = network()
    (placement,) = table.add([Flow("a", ports(0), ports(1), 8.0)], LeastLoaded(8))
    touched = table.fail("host0.nic0.port0", "plane0.leaf0")
    topology, rng = table.paths.topology, np.random.default_rng(0)
    table.move(touched, Hashed(8, switches_of(topology, rng), addresses_of(topology), rng, only_broken=only_broken))
    assert {way[0] for way in names(table, placement)} == {"host0.nic0.port1"}
    with pytest.raises(ValueError, match="queue_pairs: 0"):
        Hashed(0, {}, {}, rng)


@pytest.mark.parametrize("only_broken", [False, True])
def test_hashed_flows_go_past_dead_ports_of_unlike_lengths(only_broken):
    """Two bonded ports on different leaves: the way left is of another length than the broken one."""
    nodes = [Node(name, "device") for name in ("a", "b", "c")] + [Node(name, "switch") for name in ("s", "t")]
    cables = [("a", "s"), ("b", "s"), ("c", "t"), ("s", "t")]
    topology = Topology("t", nodes, [Link(*ends, 1.0) for cable in cables for ends in (cable, cable[::-1])])
    table = FlowTable(topology)
    (placement,) = table.add([Flow("j", ("a",), ("b", "c"), 1.0)], LeastLoaded())
    assert names(table, placement) == [("a", "s", "b")]
    rng = np.random.default_rng(0)
    hashed = Hashed(1, switches_of(topology, rng), addresses_of(topology), rng, only_broken=only_broken)
    table.move(table.fail("s", "b"), hashed)
    assert names(table, placement) == [("a", "s", "t", "c")]


# ---------------------------------------------------------------------- corrected by what was measured


def measured(table, placement):
    """Seconds of each way when all ways of a table start at once."""
    ways = [(one, way, share) for one in table.placements for way, share in zip(one.ways, one.shares, strict=True)]
    outcome = simulate(
        Transfers(
            routes_of([way for _, way, _ in ways], len(table.bandwidths) - 1),
            np.array([share * one.flow.nbytes for one, _, share in ways]),
        ),
        table.bandwidths[:-1],
    )
    return [seconds for seconds, (one, _, _) in zip(outcome.finished, ways, strict=True) if one is placement]


@pytest.mark.parametrize("slow", [0.5, 0.1])
def test_shares_follow_a_link_that_became_slow(slow):
    table = FlowTable(two_tier(2, 2, host_bandwidth=100.0, uplink_bandwidth=[1.0, 1.0], spines=2))
    (placement,) = table.add([Flow("a", ("host0",), ("host1",), 2.0)], LeastLoaded(2))
    table.set_bandwidth("leaf0", "spine0", slow)
    table.set_bandwidth("spine0", "leaf1", slow)
    rebalancer = Rebalancer()
    before = max(measured(table, placement))
    for _ in range(30):
        rebalancer.update(table, placement, measured(table, placement))
    assert before == pytest.approx(1 / slow)
    assert max(measured(table, placement)) == pytest.approx(2 / (1 + slow), rel=0.01)
    np.testing.assert_allclose(table.loads, expected_loads(table), atol=1e-9)


def test_shares_of_two_flows_settle_near_the_optimum():
    table = FlowTable(two_tier(4, 2, host_bandwidth=100.0, uplink_bandwidth=[1.0, 1.0, 1.0], spines=3))
    placements = table.add([Flow("a", (f"host{h}",), (f"host{h + 2}",), 3.0) for h in range(2)], LeastLoaded(3))
    table.set_bandwidth("leaf0", "spine1", 0.4)
    rebalancer = Rebalancer()
    for _ in range(60):
        times = [measured(table, placement) for placement in placements]
        for placement, seconds in zip(placements, times, strict=True):
            rebalancer.update(table, placement, seconds)
    assert max(max(measured(table, placement)) for placement in placements) <= 1.02 * 6 / 2.4


def test_measurements_that_cannot_be():
    table = network()
    (placement,) = table.add([Flow("a", ports(0), ports(1), 1.0)], LeastLoaded(2))
    for seconds in ([1.0], [1.0, 0.0], [1.0, math.inf]):
        with pytest.raises(ValueError, match="seconds"):
            Rebalancer().update(table, placement, seconds)
    with pytest.raises(ValueError, match="damping"):
        Rebalancer(damping=0)
    with pytest.raises(ValueError, match="queue_pairs"):
        LeastLoaded(0)
    with pytest.raises(ValueError, match="ways"):
        Split(ways=0)
