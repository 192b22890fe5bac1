"""Ranks behind shaped links on one machine: a star of network namespaces, made and gone with the processes in it.

Every rank gets a network namespace of its own with one interface, `link0`, whose other end is a port of a bridge in
the hub namespace, where `mpirun` runs. A token bucket (`tbf`) shapes both directions of every link: the rank's own
interface what it sends, the bridge's port what it receives, as a switch does; with the sending side alone, a root
that gathers from n ranks would receive n times its rate.

Nothing has to be cleaned up. The namespaces have no names and no mounts, only open descriptors: when the last process
that is in one or holds one ends, however it ends, the kernel takes interfaces, queues and bridge away. An ordinary
user gets them inside a user namespace of its own; a process that may make them as it is (root, usually) needs none.

`python -m collcomp.bench.testbed --ranks N --rate BYTES_PER_S command...` turns itself into `command` inside the hub;
`enter.py` takes each rank into its namespace. `launch.launch` does both.
"""

import argparse
import ctypes
import functools
import importlib.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from .enter import NAMESPACES_VARIABLE, die_with_parent, join_network

if TYPE_CHECKING:
    from pyroute2 import IPRoute

INTERFACE = "link0"
"""The shaped interface inside a rank's namespace."""

HUB_INTERFACE = "br0"
"""The bridge in the hub namespace, which `mpirun` listens on."""

HUB_ADDRESS = "10.0.0.254"
"""IPv4 address of the bridge. What listens there is a switch to the ranks: it has one shaped port for each."""

MAX_RANKS = 253

PACKET_HEADERS_NBYTES = 14 + 20 + 8
"""Bytes that a UDP packet takes of a link beside its own: headers of Ethernet, IPv4 and UDP."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
"""Environment of a process without thread pools: one that has any cannot enter a user namespace."""

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
    with open("/proc/self/net/dev") as lines:
        for line in lines:
            name, colon, numbers = line.partition(":")
            if name.strip() == interface:
                fields = numbers.split()
                return LinkBytes(sent=int(fields[8]), received=int(fields[0]))
            if colon:
                names.append(name.strip())
    raise ValueError(f"no interface {interface!r} here, only {', '.join(names)}")


def rank_address(rank: int) -> str:
    """IPv4 address of a rank in the testbed."""
    return f"10.0.0.{rank + 1}"


def burst_nbytes(rate: float) -> int:
    """Bytes that may pass at full speed after a pause, for a link of `rate` bytes per second.

    A message smaller than the burst passes unshaped after a pause, so it is as small as it can be: one segment that
    the stack hands over whole (64 KiB and headers), and at high rates what the link moves while a busy machine is
    late with waking the queue.
    """
    return max(80 * 1024, int(rate * 2e-4))


@functools.cache
def unavailable() -> str | None:
    """Why the testbed cannot be built here, in one sentence, or None where it can.

    A child process builds one of two ranks and takes it down again; the answer is kept.

    Returns
    -------
    str or None
    """
    if sys.platform != "linux":
        return f"network namespaces are Linux's, and this is {sys.platform}"
    if importlib.util.find_spec("pyroute2") is None:
        return "the package pyroute2 is missing (pip install 'collcomp[bench]')"
    command = [*_this_module(), "--ranks", "2", "--rate", "25e6", sys.executable, "-I", "-S", "-c", ""]
    try:
        check = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **ONE_THREAD},
        )
    except subprocess.TimeoutExpired:
        return "a testbed of two ranks was not ready after 60 seconds"
    if check.returncode == 0:
        return None
    lines = check.stderr.strip().splitlines()
    return lines[-1] if lines else f"a testbed of two ranks ended with exit code {check.returncode}"


def hub_command(command: list[str], ranks: int, rate: float) -> list[str]:
    """Command line that builds a testbed and then becomes `command` in its hub.

    Parameters
    ----------
    command : list of str
        What to run, `mpirun` for one; it inherits the environment, with `enter.NAMESPACES_VARIABLE` added.
    ranks : int
        Number of ranks, 1 to `MAX_RANKS`.
    rate : float
        Bytes per second of every link, each way.

    Returns
    -------
    list of str
    """
    return [*_this_module(), "--ranks", str(ranks), "--rate", repr(rate), *command]


def _this_module() -> list[str]:
    return [sys.executable, "-m", "collcomp.bench.testbed"]


def _unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags):  # os.unshare needs Python 3.12
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _has_capabilities() -> bool:
    """True if this process may make and shape interfaces as it is."""
    with open("/proc/self/status") as lines:
        effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return all(effective >> capability & 1 for capability in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


def _enter_hub() -> None:
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


def _build(ranks: int, rate: float) -> list[int]:
    """Make the star around this process's network namespace; one open descriptor per rank's namespace."""
    from pyroute2 import IPRoute

    hub = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    namespaces = []
    _silence_ipv6()
    with IPRoute() as ip:
        _set_up(ip, "lo")
        _make(ip, "bridges", ifname=HUB_INTERFACE, kind="bridge", mtu=MTU)
        bridge = _index(ip, HUB_INTERFACE)
        ip.addr("add", index=bridge, address=HUB_ADDRESS, prefixlen=24)
        ip.link("set", index=bridge, state="up")
        for rank in range(ranks):
            namespace = _new_namespace(hub)
            namespaces.append(namespace)
            port = f"port{rank}"
            peer = {"ifname": INTERFACE, "net_ns_fd": namespace, "mtu": MTU}
            _make(ip, "virtual Ethernet pairs (veth)", ifname=port, kind="veth", mtu=MTU, peer=peer)
            _shape(ip, _index(ip, port), rate)
            ip.link("set", index=_index(ip, port), master=bridge, state="up")
    for rank, namespace in enumerate(namespaces):
        join_network(namespace)
        _silence_ipv6()
        with IPRoute() as ip:
            _set_up(ip, "lo")
            link = _index(ip, INTERFACE)
            _shape(ip, link, rate)
            ip.addr("add", index=link, address=rank_address(rank), prefixlen=24)
            ip.link("set", index=link, state="up")
    join_network(hub)
    return namespaces


def _new_namespace(hub: int) -> int:
    _unshare(_CLONE_NEWNET)
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    join_network(hub)
    return namespace


def _silence_ipv6() -> None:
    """No IPv6 in this namespace: its neighbour discovery would only add to the counters."""
    try:
        with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w") as file:
            file.write("1")
    except OSError:  # no IPv6 in this kernel, or /proc/sys is read-only in this container: a few packets more
        pass


def _index(ip: "IPRoute", name: str) -> int:
    return ip.link_lookup(ifname=name)[0]


def _set_up(ip: "IPRoute", name: str) -> None:
    ip.link("set", index=_index(ip, name), state="up")


def _make(ip: "IPRoute", what: str, **link: Any) -> None:
    from pyroute2 import NetlinkError

    try:
        ip.link("add", **link)
    except NetlinkError as error:
        raise TestbedError(f"the kernel makes no {what} here ({os.strerror(error.code)})") from None


def _shape(ip: "IPRoute", index: int, rate: float) -> None:
    from pyroute2 import NetlinkError

    burst = burst_nbytes(rate)
    limit = int(rate * QUEUE_SECONDS) + burst
    try:
        ip.tc("add", "tbf", index, handle="1:", rate=int(rate), burst=burst, limit=limit)
    except NetlinkError as error:
        reason = os.strerror(error.code)
        raise TestbedError(f"the kernel has no token bucket (tbf) to shape links with ({reason})") from None


def main(argv: list[str] | None = None) -> None:
    """Build a testbed and become the command inside its hub."""
    parser = argparse.ArgumentParser(prog="python -m collcomp.bench.testbed", description=main.__doc__)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="bytes per second of every link, each way")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    if not 1 <= options.ranks <= MAX_RANKS:
        parser.error(f"--ranks must be 1 to {MAX_RANKS}, not {options.ranks}")
    die_with_parent()
    try:
        _enter_hub()
        namespaces = _build(options.ranks, options.rate)
    except TestbedError as error:
        sys.exit(str(error))
    # The command keeps the descriptors open: they are all that holds the ranks' namespaces until ranks are in them.
    for namespace in namespaces:
        os.set_inheritable(namespace, True)
    os.environ[NAMESPACES_VARIABLE] = ":".join(f"/proc/{os.getpid()}/fd/{namespace}" for namespace in namespaces)
    os.execvp(options.command[0], options.command)


if __name__ == "__main__":
    main()
