"""Network namespaces without names, the interfaces in them, and token buckets: what testbeds are built of.

All of it goes away with the last process that is in a namespace or holds its descriptor.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from .enter import join_network

if TYPE_CHECKING:
    from pyroute2 import IPRoute

__all__ = [
    "INTERFACE",
    "MTU",
    "LinkBytes",
    "TestbedError",
    "burst_nbytes",
    "enter_hub",
    "index_of",
    "inside",
    "link_bytes",
    "make",
    "make_pair",
    "new_namespace",
    "set_option",
    "set_up",
    "shape",
    "silence_ipv6",
]

INTERFACE = "link0"
"""The shaped interface inside a rank's namespace."""

# Jumbo frames, as clusters use: at 1500 the headers take 4.6 % of the link, at 9000 they take 0.7 %.
MTU = 9000

# How long a full queue takes to drain: beyond that packets are dropped, as in a switch.
QUEUE_SECONDS = 0.1

_CLONE_NEWNET = 0x40000000
_CLONE_NEWUSER = 0x10000000
_CAP_NET_ADMIN = 12
_CAP_SYS_ADMIN = 21


class LinkBytes(NamedTuple):
    """Bytes that an interface has carried since it exists, headers included."""

    sent: int
    received: int


class TestbedError(Exception):
    """The testbed cannot be built here; the message is one sentence that says why."""

    __test__ = False  # no test class, whatever pytest thinks of its name


def burst_nbytes(rate: float) -> int:
    """Bytes that may pass at full speed after a pause, for a link of `rate` bytes per second.

    A message smaller than the burst passes unshaped after a pause, so it is as small as it can be: one segment that
    the stack hands over whole (64 KiB and headers), and at high rates what the link moves while a busy machine is
    late with waking the queue.
    """
    return max(80 * 1024, int(rate * 2e-4))


def link_bytes(interface: str = INTERFACE) -> LinkBytes:
    """Bytes that this process's network interface has sent and received.

    Compare before and after a collective, on every rank: an MPI library that finds a way round the link (shared
    memory, most often) leaves the counters where they were. Put a barrier after the first reading, or a faster
    rank's bytes have arrived before it, and one before the second, or this rank's still wait in a queue.

    Parameters
    ----------
    interface : str
        Name of the interface; by default the testbed's, which exists only in a rank behind a shaped link.

    Returns
    -------
    LinkBytes

    Raises
    ------
    ValueError
        If there is no such interface here.
    """
    names = []
    with open("/proc/thread-self/net/dev") as lines:
        for line in lines:
            name, colon, numbers = line.partition(":")
            if name.strip() == interface:
                fields = numbers.split()
                return LinkBytes(sent=int(fields[8]), received=int(fields[0]))
            if colon:
                names.append(name.strip())
    raise ValueError(f"no interface {interface!r} here, only {', '.join(names)}")


# ---------------------------------------------------------------------- namespaces


def enter_hub() -> None:
    """Move this process into a new network namespace, in a new user namespace where it takes one."""
    if _has_capabilities():
        try:
            _unshare(_CLONE_NEWNET)
        except OSError as error:
            raise TestbedError(f"the kernel forbids network namespaces here ({error.strerror})") from None
        return
    user, group = os.geteuid(), os.getegid()
    try:
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        # Root inside is this user outside: files keep their owner.
        for name, text in (("uid_map", f"0 {user} 1"), ("setgroups", "deny"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise TestbedError(
            f"the kernel forbids user namespaces to this user ({error.strerror}): run as root, or allow them"
        ) from None


def new_namespace(home: int) -> int:
    """Open descriptor of a new namespace; this process stays in `home`."""
    _unshare(_CLONE_NEWNET)
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    join_network(home)
    return namespace


@contextmanager
def inside(namespace: int) -> Iterator["IPRoute"]:
    """Be in the namespace behind an open descriptor, this thread only, with a socket that configures it."""
    from pyroute2 import IPRoute

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    join_network(namespace)
    try:
        with IPRoute() as ip:
            yield ip
    finally:
        join_network(home)
        os.close(home)


def _unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags):  # os.unshare needs Python 3.12
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _has_capabilities() -> bool:
    """True if this process may make and shape interfaces as it is."""
    with open("/proc/self/status") as lines:
        effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return all(effective >> capability & 1 for capability in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


# ---------------------------------------------------------------------- interfaces


def index_of(ip: "IPRoute", name: str) -> int:
    """Number of an interface."""
    return ip.link_lookup(ifname=name)[0]


def set_up(ip: "IPRoute", name: str, **more: Any) -> None:
    """Switch an interface on."""
    ip.link("set", index=index_of(ip, name), state="up", **more)


def make(ip: "IPRoute", what: str, **link: Any) -> None:
    """Make an interface; `what` is what the error says where the kernel has none."""
    from pyroute2 import NetlinkError

    try:
        ip.link("add", **link)
    except NetlinkError as error:
        raise TestbedError(f"the kernel makes no {what} here ({os.strerror(error.code)})") from None


def make_pair(ip: "IPRoute", name: str, peer: str, namespace: int) -> None:
    """Make a cable: its end `name` is here, its end `peer` in the namespace behind an open descriptor."""
    other = {"ifname": peer, "net_ns_fd": namespace, "mtu": MTU}
    make(ip, "virtual Ethernet pairs (veth)", ifname=name, kind="veth", mtu=MTU, peer=other)


def shape(ip: "IPRoute", name: str, rate: float, *, again: bool = False) -> None:
    """Let an interface send `rate` bytes per second; `again` where it had another rate."""
    from pyroute2 import NetlinkError

    burst = burst_nbytes(rate)
    limit = int(rate * QUEUE_SECONDS) + burst
    how = "change" if again else "add"
    try:
        ip.tc(how, "tbf", index_of(ip, name), handle="1:", rate=int(rate), burst=burst, limit=limit)
    except NetlinkError as error:
        reason = os.strerror(error.code)
        raise TestbedError(f"the kernel has no token bucket (tbf) to shape links with ({reason})") from None


def silence_ipv6() -> None:
    """No IPv6 in this namespace: its neighbour discovery would only add to the counters."""
    with suppress(OSError):  # no IPv6 in this kernel, or /proc/sys is read-only in this container: a few packets more
        set_option("ipv6/conf/default/disable_ipv6", "1")


def set_option(name: str, value: str) -> None:
    """Write an option of this namespace, a path below /proc/sys/net."""
    with open(f"/proc/sys/net/{name}", "w") as file:
        file.write(value)
