"""Groups and layouts: near ranks together, columns on one plane, and bytes as `hierarchical` sends them."""

import random
from itertools import pairwise

import pytest

from collcomp.planner.layout import Layout
from collcomp.planner.rings.start import Clusters
from collcomp.planner.schedules.algorithms import hierarchical_schedule
from collcomp.planner.schedules.hierarchy import hierarchies, layout_on
from collcomp.planner.topology import families
from collcomp.planner.topology.routes import Routes

GB = 1e9


def shuffled(topology, seed=0):
    devices = list(topology.devices)
    random.Random(seed).shuffle(devices)
    return devices


def test_boxes_are_groups_and_columns_share_a_plane():
    topology = families.dgx_a100(4)
    devices = shuffled(topology)
    (plan,) = hierarchies(topology, devices)
    assert plan.kind == "host"
    assert sorted(rank for group in plan.groups for rank in group) == list(range(32))
    for group in plan.groups:
        assert [devices[rank].partition(".")[2] for rank in group] == [f"gpu{g}" for g in range(8)]
        assert len({topology.nodes[devices[rank]].host for rank in group}) == 1
    assert plan.inside == pytest.approx(7 / 8 / (300 * GB))
    assert plan.between == pytest.approx(2 * 3 / 4 / (200 * GB))


def test_hosts_on_one_leaf_are_groups():
    topology = families.two_tier(8, 2, host_bandwidth=4.0, uplink_bandwidth=[1.0, 1.0], spines=2)
    devices = [f"host{i // 2 + 4 * (i % 2)}" for i in range(8)]
    (plan,) = hierarchies(topology, devices)
    assert plan.kind == "switch"
    assert plan.groups == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert plan.between == pytest.approx(2 * 1 / 2 / 2)


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_bytes_are_those_of_the_schedule(ratio):
    topology = families.two_tier(8, 2, host_bandwidth=4.0, uplink_bandwidth=1.0)
    (plan,) = hierarchies(topology, ratio=ratio)
    schedule = hierarchical_schedule(plan.groups)
    schedule.check()
    routes = Routes(topology)
    loads = sum(cost.loads for cost in schedule.costs(routes, topology.devices, ratio))
    uplink, host = (loads[routes.links.index(link)] for link in (("leaf0", "spine0"), ("host0", "leaf0")))
    assert uplink == pytest.approx(4 * plan.bytes_between(1.0, ratio))
    assert host == pytest.approx(plan.bytes_between(1.0, ratio) + plan.bytes_inside(1.0, ratio))
    # What the plan says is a bound: in the schedule stages come one after another.
    assert plan.seconds(1.0, ratio) <= schedule.seconds(1.0, routes, topology.devices, ratio=ratio)


def test_what_is_scarce_decides():
    """Hosts of two GPUs on leaves of two hosts: groups are leaves where uplinks are scarce, hosts where ports are."""

    def kind(port, uplink):
        topology = families.leaf_spine(
            4, 2, 1, port_bandwidth=port, uplink_bandwidth=uplink, nics_per_host=2, device_bandwidth=100.0
        )
        plans = hierarchies(topology, ratio=1)
        assert {plan.kind for plan in plans} == {"host", "switch"}
        return plans[0].kind

    assert kind(50.0, 1.0) == "switch"
    assert kind(1.0, 4.0) == "host"


def test_no_tiers_no_groups():
    assert hierarchies(families.star(4, 1.0)) == []
    assert hierarchies(families.dgx_a100(2), [f"host0.gpu{g}" for g in range(3)] + ["host1.gpu0"]) == []
    assert layout_on(families.star(4, 1.0)).groups == ()


def test_ranks_of_one_device_are_a_group():
    plans = hierarchies(families.star(3, 1.0), ["host0", "host1", "host2", "host0", "host1", "host2"])
    assert [plan.groups for plan in plans] == [((0, 3), (1, 4), (2, 5))]
    assert plans[0].seconds(6.0) == pytest.approx(2 * 2 / 3 * 6)


def test_a_layout_has_the_ring_and_the_groups(tmp_path):
    topology = families.two_tier(6, 3, host_bandwidth=1.0, uplink_bandwidth=1.0)
    devices = shuffled(topology)
    layout = layout_on(topology, devices)
    layout.save(tmp_path / "layout.json")
    assert Layout.load(tmp_path / "layout.json") == layout
    leaf = {f"host{h}": h // 2 for h in range(6)}
    assert [len({leaf[devices[rank]] for rank in group}) for group in layout.groups] == [1, 1, 1]
    changes = sum(leaf[devices[a]] != leaf[devices[b]] for a, b in pairwise(layout.order))
    assert changes == 2


def test_clusters_keep_pods_together():
    topology = families.fat_tree(4, 1.0)
    hosts = [int(host[0].removeprefix("host")) for host in Clusters(topology, topology.devices).hosts]
    assert [h // 4 for h in hosts] == sorted([h // 4 for h in hosts])


def test_of_very_large_groups_some_pairs_tell_enough(monkeypatch):
    topology = families.two_tier(32, 2, host_bandwidth=4.0, uplink_bandwidth=1.0)
    (whole,) = hierarchies(topology)
    looked_at = []
    shares = Routes.shares
    monkeypatch.setattr(Routes, "shares", lambda self, *ends: looked_at.append(ends) or shares(self, *ends))
    monkeypatch.setattr("collcomp.planner.schedules.hierarchy._MOST_PAIRED", 8)
    (some,) = hierarchies(topology)
    assert some.inside == pytest.approx(whole.inside) == pytest.approx(15 / 16 / 4)
    assert len(set(looked_at)) <= 8**2
