"""Making the two-tier network: leaves and spines are namespaces that forward.

The hub, where `mpirun` runs, hangs on all leaves by links of its own, so that a launcher can talk to its ranks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..namespaces import (
    INTERFACE,
    TestbedError,
    index_of,
    inside,
    make,
    make_pair,
    new_namespace,
    set_option,
    set_up,
    shape,
    silence_ipv6,
)
from .spec import HASHED, TwoTier, rank_address

if TYPE_CHECKING:
    from pyroute2 import IPRoute

__all__ = ["build", "downlink_name", "uplink_name"]

# Where hosts see their leaf: an address on each of its ports.
_GATEWAY = "169.254.0.1"
_IFA_F_NOPREFIXROUTE = 0x200
_RTNH_F_ONLINK = 4
_SCOPE_LINK = 253
# BBR, which some machines have as their default, stayed at a third of an uplink's rate for a second and more, where
# confirmations come back through full queues and rates change; allreduces took up to 28 % longer for it.
_CONGESTION_CONTROL = "reno"
# Least, first and most bytes. The most is less than queues of 40 Mbit/s and more hold: as in networks with credits,
# nothing has to be lost before a sender slows down, and confirmations do not wait behind more than that.
_RECEIVE_BUFFERS = "4096 131072 524288"


def build(
    fabric: TwoTier, ranks: int, rate: float, hub_interface: str, hub_address: str
) -> tuple[list[int], list[int]]:
    """Make the network around this process's namespace, the hub.

    Parameters
    ----------
    fabric : TwoTier
    ranks : int
    rate : float
        Bytes per second of every rank's link, each way.
    hub_interface, hub_address : str
        Where the hub listens.

    Returns
    -------
    hosts, switches : list of int
        Open descriptors of the namespaces of ranks, and of leaves and spines.

    Raises
    ------
    TestbedError
        The kernel cannot do what this needs.
    """
    hub = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    hosts = [new_namespace(hub) for _ in range(ranks)]
    leaves = [new_namespace(hub) for _ in range(fabric.leaves)]
    spines = [new_namespace(hub) for _ in range(fabric.spines)]
    for namespace in (hub, *hosts, *leaves, *spines):
        with inside(namespace) as ip:
            silence_ipv6()
            set_up(ip, "lo")
            if namespace in hosts:
                _set("ipv4/tcp_congestion_control", _CONGESTION_CONTROL)
                _set("ipv4/tcp_rmem", _RECEIVE_BUFFERS)
            elif namespace != hub:
                _set("ipv4/ip_forward", "1")
                _set("ipv4/fib_multipath_hash_policy", "1")  # ports too, not addresses alone

    with inside(hub) as ip:
        make(ip, "bridges", ifname=hub_interface, kind="bridge")
        _add_address(ip, hub_interface, hub_address, 24)
        _add_address(ip, hub_interface, _hub_side(None), 24)
        for i, leaf in enumerate(leaves):
            make_pair(ip, f"leaf{i}", "hub", leaf)
            set_up(ip, f"leaf{i}", master=index_of(ip, hub_interface))
        set_up(ip, hub_interface)
        for rank in range(ranks):
            _route(ip, rank_address(rank), 32, hub_interface, _hub_side(fabric.leaf(rank, ranks)))

    for i, leaf in enumerate(leaves):
        with inside(leaf) as ip:
            _add_address(ip, "hub", _hub_side(i), 24)
            set_up(ip, "hub")
            _route(ip, hub_address, 32, "hub", _hub_side(None))
            for rank, host in enumerate(hosts):
                if fabric.leaf(rank, ranks) == i:
                    _attach(ip, rank, host, rate, fabric.spines)
            for j, spine in enumerate(spines):
                make_pair(ip, uplink_name(j), downlink_name(i), spine)
                shape(ip, uplink_name(j), fabric.uplinks[j])
                _add_address(ip, uplink_name(j), _leaf_end(i, j), 31)
                set_up(ip, uplink_name(j))

    for j, spine in enumerate(spines):
        with inside(spine) as ip:
            for i in range(fabric.leaves):
                shape(ip, downlink_name(i), fabric.uplinks[j])
                _add_address(ip, downlink_name(i), _spine_end(i, j), 31)
                set_up(ip, downlink_name(i))
            for rank in range(ranks):
                i = fabric.leaf(rank, ranks)
                for path in (HASHED, j + 1):
                    _route(ip, rank_address(rank, path), 32, downlink_name(i), _leaf_end(i, j))

    # Last, when all links are up: a way over a link that is down is none.
    for i, leaf in enumerate(leaves):
        with inside(leaf) as ip:
            ways = []
            for j in range(fabric.spines):
                _route(ip, f"10.{j + 1}.0.0", 24, uplink_name(j), _spine_end(i, j))
                ways.append({"oif": index_of(ip, uplink_name(j)), "gateway": _spine_end(i, j),
                             "flags": _RTNH_F_ONLINK})  # fmt: skip
            ip.route("add", dst="10.0.0.0/24", multipath=ways)

    os.close(hub)
    return hosts, [*leaves, *spines]


def uplink_name(spine: int) -> str:
    """What a leaf calls its link to a spine (counted from 0)."""
    return f"spine{spine + 1}"


def downlink_name(leaf: int) -> str:
    """What a spine calls its link to a leaf."""
    return f"leaf{leaf}"


def _leaf_end(leaf: int, spine: int) -> str:
    return f"172.16.{leaf}.{2 * spine}"


def _spine_end(leaf: int, spine: int) -> str:
    return f"172.16.{leaf}.{2 * spine + 1}"


def _hub_side(leaf: int | None) -> str:
    """Addresses between the hub (None) and the leaves."""
    return f"172.17.0.{254 if leaf is None else leaf + 1}"


def _set(name: str, value: str) -> None:
    try:
        set_option(name, value)
    except OSError as error:
        raise TestbedError(
            f"a two-tier network needs forwarding and equal-cost multipath, and /proc/sys/net/{name} cannot be set "
            f"({error.strerror})"
        ) from None


def _attach(ip: IPRoute, rank: int, host: int, rate: float, spines: int) -> None:
    """Give a rank its link, from within its leaf."""
    port = f"port{rank}"
    make_pair(ip, port, INTERFACE, host)
    shape(ip, port, rate)
    _add_address(ip, port, _GATEWAY, 32)
    set_up(ip, port)
    paths = range(spines + 1)
    with inside(host) as there:
        shape(there, INTERFACE, rate)
        for path in paths:
            _add_address(there, INTERFACE, rank_address(rank, path), 24)
        set_up(there, INTERFACE)
        index = index_of(there, INTERFACE)
        there.route("add", dst="default", gateway=_GATEWAY, oif=index, flags=_RTNH_F_ONLINK,
                    prefsrc=rank_address(rank))  # fmt: skip
    for path in paths:
        ip.route("add", dst=f"{rank_address(rank, path)}/32", oif=index_of(ip, port), scope=_SCOPE_LINK)


def _add_address(ip: IPRoute, name: str, address: str, prefix: int) -> None:
    """Without the route that comes with it: neighbours are not reached directly, except over cables (31)."""
    flags = 0 if prefix == 31 else _IFA_F_NOPREFIXROUTE
    ip.addr("add", index=index_of(ip, name), address=address, prefixlen=prefix, flags=flags)


def _route(ip: IPRoute, dest: str, prefix: int, name: str, gateway: str) -> None:
    ip.route("add", dst=f"{dest}/{prefix}", oif=index_of(ip, name), gateway=gateway,
             flags=_RTNH_F_ONLINK)  # fmt: skip
