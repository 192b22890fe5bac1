"""What a described topology promises an allreduce."""

import numpy as np
import pytest
from helpers import F32

from collcomp.planner.cost import NATIVE_CODEC, CodecCost
from collcomp.planner.prospects import prospects
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


@pytest.mark.parametrize("devices", [["host0"], []])
def test_one_rank_needs_no_plan(devices):
    with pytest.raises(ValueError, match="devices: "):
        prospects(star(4, 25e6), devices)
