"""What a described topology promises an allreduce."""

import numpy as np
import pytest
from helpers import F32

from collcomp.planner.cost import NATIVE_CODEC, CodecCost
from collcomp.planner.prospects import prospects
from collcomp.planner.topology import DEVICE, SWITCH, Link, Node, Topology
from collcomp.planner.topology.families import dgx_a100, star, two_tier
from collcomp.policies import Auto, Call

COSTS = {"identity": CodecCost(4.0, 0.0, 1e-11, lossless=True), "int8": CodecCost(1.0, 1e-11, 1e-11)}
MiB = 1 << 20


def seconds(outlook, algorithm, codec="identity", nbytes=64 * MiB):
    return outlook.model.seconds("allreduce", algorithm, codec, nbytes)


def test_on_a_star_all_are_as_fast_as_the_links():
    outlook = prospects(star(4, 25e6), codecs=COSTS)
    bound = 2 * 3 / 4 * 64 * MiB / 25e6
    for algorithm, codec in (("native", NATIVE_CODEC), ("ring", "identity"), ("direct", "identity")):
        assert seconds(outlook, algorithm, codec) == pytest.approx(bound, rel=1e-6)
    assert seconds(outlook, "direct", "int8") == pytest.approx(bound / 4, rel=1e-6)


def test_a_planned_ring_crosses_a_narrow_uplink_once():
    tiers = two_tier(8, 2, host_bandwidth=25e6, uplink_bandwidth=25e6)
    interleaved = [tiers.devices[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    outlook = prospects(tiers, interleaved, COSTS)
    second = 64 * MiB / 25e6
    assert seconds(outlook, "ring") == pytest.approx(2 * 7 / 8 * second)
    # Halving with ranks 4 and 2 away stays on a leaf; with neighbours all four cross at once. A ring would take 7.
    assert seconds(outlook, "native", NATIVE_CODEC) == pytest.approx((2 * (4 + 2) / 8 + 2 * 4 / 8) * second)
    assert sorted(map(sorted, outlook.layout.groups)) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    crossings = sum(
        (a % 2) != (b % 2) for a, b in zip(outlook.ring.order, np.roll(outlook.ring.order, -1), strict=True)
    )
    assert crossings == 2


def test_some_devices_only():
    outlook = prospects(star(4, 25e6), ["host2", "host0"], COSTS)
    assert outlook.model.size == 2
    assert seconds(outlook, "ring") == pytest.approx(64 * MiB / 25e6)


def test_where_some_cannot_reach_others_direct_is_left_out():
    outlook = prospects(dgx_a100(2), codecs=COSTS)
    assert not outlook.model.predicts("allreduce", "direct", "int8")
    policy = Auto(["int8"], outlook.model)
    algorithms = {choice.plan.algorithm for choice in policy.choices(Call("allreduce", MiB, F32, "sum", 16))}
    assert algorithms == {"native", "ring", "hierarchical"}


def test_native_is_one_way_to_sum_and_not_the_best_of_two():
    tiers = two_tier(8, 2, host_bandwidth=25e6, uplink_bandwidth=25e6, latency=1e-3)
    native = prospects(tiers, codecs=COSTS).model.wires["native"]
    # A ring in rank order crosses the uplinks once, and has 14 steps of four links; halving would have 6.
    assert native.frame == pytest.approx(2 * 7 / 8 / 25e6)
    assert native.latency == pytest.approx(14 * 4e-3)
    # On a star both are as fast, and the fewer steps win.
    assert prospects(star(8, 25e6, latency=1e-3)).model.wires["native"].latency == pytest.approx(6 * 2e-3)


def test_ranks_too_many_for_halving_hand_their_message_over():
    slow = {(0, 4), (4, 0), (2, 3), (3, 2)}  # what a ring of five needs, and halving does not
    links = [Link(f"h{a}", f"h{b}", 0.01 if (a, b) in slow else 1.0, 1.0) for a in range(5) for b in range(5) if a != b]
    native = prospects(Topology("mesh", [Node(f"h{i}", DEVICE) for i in range(5)], links)).model.wires["native"]
    # Rank 0 gives all to rank 1 and gets all back; halves and quarters go between the four others, there and back.
    assert native.frame == pytest.approx(1 + 2 * (1 / 2 + 1 / 4) + 1)
    assert native.latency == pytest.approx(6)


def test_hierarchical_is_followed_step_by_step():
    topology = two_tier(4, 2, host_bandwidth=2.0, uplink_bandwidth=1.0, latency=1.0)
    wire = prospects(topology).model.wires["hierarchical"]
    assert wire.raw == pytest.approx(0.5 / 2)  # half of the message to the neighbour
    # Two hosts send a quarter each over the uplink, there and back; the neighbour gets the other's result.
    assert wire.frame == pytest.approx(2 * 0.5 / 1 + 0.25 / 2)
    assert wire.latency == pytest.approx(2 + 4 + 4 + 2)


def test_where_partners_in_other_groups_are_out_of_reach_hierarchical_is_left_out():
    # The first of one host is on the network of the second of the other.
    names = ["a0", "a1", "b0", "b1"]
    nodes = [Node(name, DEVICE, name[0]) for name in names] + [Node("one", SWITCH), Node("two", SWITCH)]
    cables = [("a0", "a1"), ("b0", "b1"), ("a0", "one"), ("b1", "one"), ("a1", "two"), ("b0", "two")]
    topology = Topology("crossed", nodes, [Link(*ends, 1.0) for cable in cables for ends in (cable, cable[::-1])])
    assert set(prospects(topology).model.wires) == {"ring", "native"}


@pytest.mark.parametrize("devices", [["host0"], []])
def test_one_rank_needs_no_plan(devices):
    with pytest.raises(ValueError, match="devices: "):
        prospects(star(4, 25e6), devices)
