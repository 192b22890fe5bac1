"""Pictures are drawn, of all shapes, and show what is busy."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib import image

from collcomp.planner.topology.families import dragonfly, leaf_spine, mi250, torus, two_tier
from collcomp.planner.topology.plot import plot_topology


def pixels(path, colour):
    """How many pixels are near a colour, given in parts of red, green and blue."""
    return int((np.abs(image.imread(path)[..., :3] - np.array(colour)).max(axis=-1) < 0.06).sum())


BUSY, IDLE, DEVICE = (0.776, 0.184, 0.169), (0.8, 0.824, 0.855), (0.184, 0.365, 0.541)


@pytest.mark.parametrize(
    "topology",
    [
        leaf_spine(2, 2, 2, port_bandwidth=1.0, nics_per_host=2, ports_per_nic=2, planes=2, device_bandwidth=2.0),
        mi250(2),
        torus([3, 3], 1.0),
        dragonfly(2, 1, 1, bandwidth=1.0),
    ],
    ids=lambda topology: topology.name,
)
def test_every_shape_has_its_devices(tmp_path, topology):
    assert plot_topology(topology, tmp_path / "a.png") is None
    assert pixels(tmp_path / "a.png", DEVICE) > 20 * len(topology.devices)
    assert pixels(tmp_path / "a.png", BUSY) == 0


def test_busy_links_are_red_and_idle_ones_are_not(tmp_path):
    topology = two_tier(4, 2, host_bandwidth=1.0, uplink_bandwidth=1.0, spines=2)
    reds = []
    for busy in ([], [("leaf0", "spine0")], [("leaf0", "spine0"), ("spine1", "leaf1")], list(topology.links)):
        plot_topology(topology, tmp_path / "a.png", dict.fromkeys(busy, 1.0), title="t")
        reds.append(pixels(tmp_path / "a.png", BUSY))
    scale = reds[0]  # the scale beside the picture has all colours
    assert scale < reds[1] < reds[2] < reds[3]


def test_links_that_are_none_are_refused(tmp_path):
    topology = two_tier(2, 1, host_bandwidth=1.0, uplink_bandwidth=1.0)
    for use in ({("leaf0", "host9"): 0.5}, {("leaf0", "host0"): -0.1}, {("leaf0", "host0"): float("nan")}):
        with pytest.raises(ValueError, match="use: "):
            plot_topology(topology, tmp_path / "a.png", use)
    assert not list(tmp_path.iterdir())
