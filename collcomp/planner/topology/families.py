"""Topologies of well-known shapes, made from a few numbers.

Names tell where a thing is: ``host3.gpu5`` and ``host3.nic5.port1`` are in ``host3``, ``plane1.leaf0`` and
``plane1.spine2`` are switches of plane 1 (``leaf0``, ``spine2`` where there is one plane). Every cable is two links of
the same bandwidth, in bytes per second. Devices stand in the order of hosts, and so do ranks unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from types import MappingProxyType

from collcomp.planner.topology import DEVICE, PORT, SWITCH, Topology
from collcomp.planner.topology.drawing import Drawing

__all__ = [
    "FAMILIES",
    "copies",
    "dgx_a100",
    "dragonfly",
    "fat_tree",
    "leaf_spine",
    "mi250",
    "star",
    "torus",
    "two_tier",
]

#: More of anything are a slip of the pen, or meant to fill the memory.
_MOST = 1 << 20


def leaf_spine(
    hosts: int,
    leaves: int,
    spines: int,
    *,
    port_bandwidth: float,
    uplink_bandwidth: float | None = None,
    nics_per_host: int = 1,
    ports_per_nic: int = 1,
    planes: int = 1,
    device_bandwidth: float | None = None,
    latency: float = 0.0,
) -> Topology:
    """Hosts on leaf switches, every leaf with one uplink to every spine, in one or more separate planes.

    Port p of every network card is in plane ``p % planes``; each plane has `leaves` and `spines` of its own, and the
    same hosts share a leaf in all of them. Host h is on leaf ``h * leaves // hosts``: neighbours share one.

    Parameters
    ----------
    hosts : int
    leaves, spines : int
        Of each plane.
    port_bandwidth : float
        Bytes per second between a port and its leaf, and between a port and its device.
    uplink_bandwidth : float, optional
        Bytes per second between a leaf and a spine; by default 1:1, what the ports of the fullest leaf bring, shared
        by its uplinks.
    nics_per_host, ports_per_nic : int, default 1
    planes : int, default 1
        A divisor of `ports_per_nic`.
    device_bandwidth : float, optional
        Bytes per second between a GPU and the host's NVSwitch: the host has a GPU beside every network card. Without it
        the host itself is the one device, and all ports are its own.
    latency : float, default 0
        Seconds, of every link of the network.

    Raises
    ------
    ValueError
        If a number is below 1, or `planes` is no divisor of `ports_per_nic`.
    """
    _check_counts(
        hosts=hosts,
        leaves=leaves,
        spines=spines,
        nics_per_host=nics_per_host,
        ports_per_nic=ports_per_nic,
        planes=planes,
    )
    if ports_per_nic % planes:
        raise ValueError(f"planes: {planes} is no divisor of ports_per_nic={ports_per_nic}")
    if uplink_bandwidth is None:
        hosts_of_fullest = -(-hosts // leaves)
        uplink_bandwidth = hosts_of_fullest * nics_per_host * (ports_per_nic // planes) * port_bandwidth / spines
    drawing = Drawing()

    def switch(plane: int, what: str) -> str:
        return f"plane{plane}.{what}" if planes > 1 else what

    for h in range(hosts):
        host = f"host{h}"
        if device_bandwidth is None:
            devices = [drawing.node(host, DEVICE, host)] * nics_per_host
        else:
            devices = [drawing.node(f"{host}.gpu{g}", DEVICE, host) for g in range(nics_per_host)]
            _join_inside(drawing, host, devices, device_bandwidth)
        for n, p in product(range(nics_per_host), range(ports_per_nic)):
            plane = p % planes
            port = drawing.node(f"{host}.nic{n}.port{p}", PORT, host, plane if planes > 1 else None)
            drawing.cable(devices[n], port, port_bandwidth)
            drawing.cable(port, switch(plane, f"leaf{h * leaves // hosts}"), port_bandwidth, latency)
    for plane in range(planes):
        mark = plane if planes > 1 else None
        for what, count in (("leaf", leaves), ("spine", spines)):
            for i in range(count):
                drawing.node(switch(plane, f"{what}{i}"), SWITCH, None, mark)
        for leaf, spine in product(range(leaves), range(spines)):
            drawing.cable(switch(plane, f"leaf{leaf}"), switch(plane, f"spine{spine}"), uplink_bandwidth, latency)
    return drawing.topology(f"leaf-spine-{hosts}x{nics_per_host}x{ports_per_nic}")


def _join_inside(drawing: Drawing, host: str, devices: Iterable[str], bandwidth: float) -> None:
    nvswitch = drawing.node(f"{host}.nvswitch", SWITCH, host)
    for device in devices:
        drawing.cable(device, nvswitch, bandwidth)


def two_tier(
    hosts: int,
    leaves: int,
    *,
    host_bandwidth: float,
    uplink_bandwidth: float | Sequence[float],
    spines: int = 1,
    latency: float = 0.0,
) -> Topology:
    """Hosts with one link each to a leaf, and leaves with one uplink to every spine: what the testbed builds.

    Parameters
    ----------
    hosts, leaves : int
        Host h is on leaf ``h * leaves // hosts``.
    host_bandwidth : float
        Bytes per second.
    uplink_bandwidth : float or sequence of float
        Bytes per second of every uplink, or of the uplinks to each spine in turn.
    spines : int, default 1
    latency : float, default 0
        Seconds, of every link.

    Raises
    ------
    ValueError
        If a number is below 1, or `uplink_bandwidth` does not have one for each spine.
    """
    _check_counts(hosts=hosts, leaves=leaves, spines=spines)
    uplinks = list(uplink_bandwidth) if isinstance(uplink_bandwidth, Sequence) else [uplink_bandwidth] * spines
    if len(uplinks) != spines:
        raise ValueError(f"uplink_bandwidth: {uplinks} has not one for each of {spines} spines")
    drawing = Drawing()
    for h in range(hosts):
        host = drawing.node(f"host{h}", DEVICE, f"host{h}")
        drawing.cable(host, f"leaf{h * leaves // hosts}", host_bandwidth, latency)
    for leaf in range(leaves):
        drawing.node(f"leaf{leaf}", SWITCH)
        for spine, bandwidth in enumerate(uplinks):
            drawing.cable(f"leaf{leaf}", f"spine{spine}", bandwidth, latency)
    for spine in range(spines):
        drawing.node(f"spine{spine}", SWITCH)
    return drawing.topology(f"two-tier-{hosts}")


def star(hosts: int, bandwidth: float, *, latency: float = 0.0) -> Topology:
    """Hosts with one link each to one switch.

    Parameters
    ----------
    hosts : int
    bandwidth : float
        Bytes per second of every link.
    latency : float, default 0
        Seconds, of every link.
    """
    _check_counts(hosts=hosts)
    drawing = Drawing()
    drawing.node("switch", SWITCH)
    for h in range(hosts):
        drawing.cable(drawing.node(f"host{h}", DEVICE, f"host{h}"), "switch", bandwidth, latency)
    return drawing.topology(f"star-{hosts}")


def fat_tree(k: int, bandwidth: float, *, latency: float = 0.0) -> Topology:
    """The three tiers of switches with `k` ports of Al-Fares, Loukissas and Vahdat (SIGCOMM 2008), k³/4 hosts, 1:1.

    Parameters
    ----------
    k : int
        Ports of a switch, an even number.
    bandwidth : float
        Bytes per second of every link.
    latency : float, default 0
        Seconds, of every link.
    """
    _check_counts(k=k)
    if k % 2:
        raise ValueError(f"k: {k} is odd")
    half = range(k // 2)
    drawing = Drawing()
    for pod, edge, i in product(range(k), half, half):
        name = f"host{(pod * len(half) + edge) * len(half) + i}"
        drawing.cable(drawing.node(name, DEVICE, name), f"pod{pod}.edge{edge}", bandwidth, latency)
    for pod, i in product(range(k), half):
        drawing.node(f"pod{pod}.edge{i}", SWITCH)
        drawing.node(f"pod{pod}.aggregation{i}", SWITCH)
        for j in half:
            drawing.cable(f"pod{pod}.edge{i}", f"pod{pod}.aggregation{j}", bandwidth, latency)
            drawing.cable(f"pod{pod}.aggregation{i}", f"core{i * len(half) + j}", bandwidth, latency)
    for core in range(len(half) ** 2):
        drawing.node(f"core{core}", SWITCH)
    return drawing.topology(f"fat-tree-{k}")


def dragonfly(
    routers: int,
    hosts_per_router: int,
    global_links: int,
    *,
    bandwidth: float,
    global_bandwidth: float | None = None,
    latency: float = 0.0,
) -> Topology:
    """Groups of fully joined routers, and one cable between every two groups (Kim et al., ISCA 2008).

    There are ``routers * global_links + 1`` groups, the most that so many global links can join directly. Global link l
    of a group, counted over its routers, leads l + 1 groups further.

    Parameters
    ----------
    routers : int
        Of a group.
    hosts_per_router, global_links : int
        Of a router.
    bandwidth : float
        Bytes per second of every link inside a group, hosts' links among them.
    global_bandwidth : float, optional
        Bytes per second of a link between groups, by default the same.
    latency : float, default 0
        Seconds, of every link.
    """
    _check_counts(routers=routers, hosts_per_router=hosts_per_router, global_links=global_links)
    groups = routers * global_links + 1
    _check_counts(groups=groups)
    drawing = Drawing()
    for group, router, i in product(range(groups), range(routers), range(hosts_per_router)):
        name = f"host{(group * routers + router) * hosts_per_router + i}"
        drawing.cable(drawing.node(name, DEVICE, name), f"group{group}.router{router}", bandwidth, latency)
    for group in range(groups):
        names = [drawing.node(f"group{group}.router{router}", SWITCH) for router in range(routers)]
        for one, other in combinations(names, 2):
            drawing.cable(one, other, bandwidth, latency)
        for away in range(1, groups):
            there = (group + away) % groups
            if group < there:
                back = groups - away  # the same cable, counted from the other end
                ends = (
                    f"group{group}.router{(away - 1) // global_links}",
                    f"group{there}.router{(back - 1) // global_links}",
                )
                drawing.cable(*ends, bandwidth if global_bandwidth is None else global_bandwidth, latency)
    return drawing.topology(f"dragonfly-{groups}x{routers}x{hosts_per_router}")


def torus(dims: Sequence[int], bandwidth: float, *, latency: float = 0.0) -> Topology:
    """Devices in a grid whose rows are closed to rings, each with a router that bytes of others pass through.

    Parameters
    ----------
    dims : sequence of int
        Devices along each dimension; two of them share one cable, not two.
    bandwidth : float
        Bytes per second of every cable. A device reaches its router as fast as the router's cables together.
    latency : float, default 0
        Seconds, of every cable.
    """
    if not dims:
        raise ValueError("dims: a torus has one dimension at least")
    for length in dims:
        _check_counts(dims=length)
    _check_counts(dims=math.prod(dims))
    drawing = Drawing()

    def label(place: Sequence[int]) -> str:
        return "node" + "-".join(map(str, place))

    degree = sum(min(length - 1, 2) for length in dims)
    for place in product(*map(range, dims)):
        device = drawing.node(label(place), DEVICE, label(place))
        router = drawing.node(f"{device}.router", SWITCH, device)
        drawing.cable(device, router, bandwidth * max(degree, 1))
        for axis, length in enumerate(dims):
            if place[axis] + 1 < length or length > 2:
                there = list(place)
                there[axis] = (place[axis] + 1) % length
                drawing.cable(router, f"{label(there)}.router", bandwidth, latency)
    return drawing.topology("torus-" + "x".join(map(str, dims)))


def dgx_a100(boxes: int, *, latency: float = 0.0) -> Topology:
    """NVIDIA DGX A100: eight GPUs with 300 GB/s to an NVSwitch, and beyond one box a 25 GB/s network card each.

    Cards of even and of odd numbers are on two separate InfiniBand networks. The model, and the figures, are those of
    ForestColl (arXiv 2402.06787, github.com/liangyuRain/ForestColl): a card is beside its GPU, and PCIe is no limit.

    Parameters
    ----------
    boxes : int
    latency : float, default 0
        Seconds, of every link of the network.
    """
    _check_counts(boxes=boxes)
    drawing = Drawing()
    for box in range(boxes):
        host = f"host{box}"
        gpus = [drawing.node(f"{host}.gpu{g}", DEVICE, host) for g in range(8)]
        _join_inside(drawing, host, gpus, 300e9)
        if boxes > 1:
            for g, gpu in enumerate(gpus):
                port = drawing.node(f"{host}.nic{g}.port0", PORT, host, g % 2)
                drawing.cable(gpu, port, 25e9)
                drawing.cable(port, f"plane{g % 2}.switch", 25e9, latency)
    if boxes > 1:
        for plane in range(2):
            drawing.node(f"plane{plane}.switch", SWITCH, None, plane)
    return drawing.topology(f"dgx-a100-x{boxes}")


#: Cables of 50 GB/s between the sixteen dies of a box.
_MI250_CABLES = {
    (0, 1): 4, (2, 3): 4, (4, 5): 4, (6, 7): 4, (8, 9): 4, (10, 11): 4, (12, 13): 4, (14, 15): 4,  # one package
    (0, 4): 2, (3, 7): 2, (8, 12): 2, (11, 15): 2,
    (0, 8): 1, (1, 5): 1, (1, 9): 1, (1, 10): 1, (2, 6): 1, (2, 9): 1, (2, 10): 1, (3, 11): 1,
    (4, 6): 1, (5, 6): 1, (5, 7): 1, (9, 13): 1, (10, 14): 1, (12, 14): 1, (13, 14): 1, (13, 15): 1,
}  # fmt: skip


def mi250(boxes: int, *, latency: float = 0.0) -> Topology:
    """AMD MI250: sixteen dies a box with Infinity Fabric between them, and beyond one box 16 GB/s of network each.

    The model, and the figures, are those of ForestColl (arXiv 2402.06787, github.com/liangyuRain/ForestColl). Dies that
    no cable joins reach each other over the network or, as collectives do, by way of a die that forwards.

    Parameters
    ----------
    boxes : int
    latency : float, default 0
        Seconds, of every link of the network.
    """
    _check_counts(boxes=boxes)
    drawing = Drawing()
    for box in range(boxes):
        host = f"host{box}"
        gpus = [drawing.node(f"{host}.gpu{g}", DEVICE, host) for g in range(16)]
        for (one, other), cables in _MI250_CABLES.items():
            drawing.cable(gpus[one], gpus[other], cables * 50e9)
        if boxes > 1:
            for g, gpu in enumerate(gpus):
                port = drawing.node(f"{host}.nic{g}.port0", PORT, host)
                drawing.cable(gpu, port, 16e9)
                drawing.cable(port, "switch", 16e9, latency)
    if boxes > 1:
        drawing.node("switch", SWITCH)
    return drawing.topology(f"mi250-x{boxes}")


def copies(host: Topology, hosts: int, *, planes: int = 1, latency: float = 0.0) -> Topology:
    """Hosts like a given one, with their ports on one switch, or on one for each of some planes.

    Parameters
    ----------
    host : Topology
        Of one host, with ports, as NCCL and hwloc describe them.
    hosts : int
    planes : int, default 1
        Port i is in plane ``i % planes``.
    latency : float, default 0
        Seconds, of every link between a port and its switch, which is as fast as all other links of the port.

    Raises
    ------
    ValueError
        If `host` has no ports.
    """
    _check_counts(hosts=hosts, planes=planes)
    if not host.ports:
        raise ValueError(f"host: {host.name!r} has no ports")
    drawing = Drawing()
    for h in range(hosts):

        def named(name: str, h: int = h) -> str:
            return f"host{h}." + name.removeprefix(f"{host.nodes[name].host}.")

        plane_of = {port: i % planes if planes > 1 else None for i, port in enumerate(host.ports)}
        for node in host.nodes.values():
            drawing.node(named(node.name), node.kind, f"host{h}", plane_of.get(node.name))
        for (source, dest), link in host.links.items():
            drawing.link(named(source), named(dest), link.bandwidth, link.latency)
            if dest in plane_of:
                drawing.link(named(dest), _switch(plane_of[dest]), link.bandwidth, latency)
            if source in plane_of:
                drawing.link(_switch(plane_of[source]), named(source), link.bandwidth, latency)
    for plane in range(planes):
        mark = plane if planes > 1 else None
        drawing.node(_switch(mark), SWITCH, None, mark)
    return drawing.topology(f"{host.name}-x{hosts}")


def _switch(plane: int | None) -> str:
    return "switch" if plane is None else f"plane{plane}.switch"


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name}: {count!r} is no number of 1 or more")
        if count > _MOST:
            raise ValueError(f"{name}: there are more than {_MOST}")


#: The functions above, by the names that topology files call them.
FAMILIES: Mapping[str, Callable[..., Topology]] = MappingProxyType(
    {
        family.__name__: family
        for family in (copies, dgx_a100, dragonfly, fat_tree, leaf_spine, mi250, star, torus, two_tier)
    }
)
