"""Ranks behind shaped links on one machine: a star of network namespaces, made and gone with the processes in it.

Every rank gets a network namespace of its own with one interface, `link0`, whose other end is a port of a bridge in
the hub namespace, where `mpirun` runs. A token bucket (`tbf`) shapes both directions of every link: the rank's own
interface what it sends, the bridge's port what it receives, as a switch does; with the sending side alone, a root
that gathers from n ranks would receive n times its rate. With `--fabric` a network of leaves and spines takes the
place of the bridge, see `fabric`.

Nothing has to be cleaned up. The namespaces have no names and no mounts, only open descriptors: when the last process
that is in one or holds one ends, however it ends, the kernel takes interfaces, queues and bridge away. An ordinary
user gets them inside a user namespace of its own; a process that may make them as it is (root, usually) needs none.

`python -m collcomp.bench.testbed --ranks N --rate BYTES_PER_S command...` turns itself into `command` inside the hub;
`enter.py` takes each rank into its namespace. `launch.launch` does both.
"""

import argparse
import functools
import importlib.util
import os
import subprocess
import sys

from .enter import NAMESPACES_VARIABLE, die_with_parent
from .fabric.network import build
from .fabric.spec import TwoTier, rank_address
from .fabric.uplinks import SWITCHES_VARIABLE
from .namespaces import (
    INTERFACE,
    MTU,
    LinkBytes,
    TestbedError,
    burst_nbytes,
    enter_hub,
    index_of,
    inside,
    link_bytes,
    make,
    make_pair,
    new_namespace,
    set_up,
    shape,
    silence_ipv6,
)

__all__ = [
    "HUB_ADDRESS",
    "HUB_INTERFACE",
    "INTERFACE",
    "MAX_RANKS",
    "MTU",
    "ONE_THREAD",
    "PACKET_HEADERS_NBYTES",
    "LinkBytes",
    "TestbedError",
    "burst_nbytes",
    "hub_command",
    "link_bytes",
    "rank_address",
    "unavailable",
]

HUB_INTERFACE = "br0"
"""The bridge in the hub namespace, which `mpirun` listens on."""

HUB_ADDRESS = "10.0.0.254"
"""IPv4 address of the bridge. What listens there is a switch to the ranks: it has one shaped port for each."""

MAX_RANKS = 253

PACKET_HEADERS_NBYTES = 14 + 20 + 8
"""Bytes that a UDP packet takes of a link beside its own: headers of Ethernet, IPv4 and UDP."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
"""Environment of a process without thread pools: one that has any cannot enter a user namespace."""


@functools.cache
def unavailable(fabric: str | None = None) -> str | None:
    """Why the testbed cannot be built here, in one sentence, or None where it can.

    A child process builds one of two ranks and takes it down again; the answer is kept.

    Parameters
    ----------
    fabric : str, optional
        The two-tier network that it is to have.

    Returns
    -------
    str or None
    """
    if sys.platform != "linux":
        return f"network namespaces are Linux's, and this is {sys.platform}"
    if importlib.util.find_spec("pyroute2") is None:
        return "the package pyroute2 is missing (pip install 'collcomp[bench]')"
    command = hub_command([sys.executable, "-I", "-S", "-c", ""], 2, 25e6, fabric)
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


def hub_command(command: list[str], ranks: int, rate: float, fabric: str | None = None) -> list[str]:
    """Command line that builds a testbed and then becomes `command` in its hub.

    Parameters
    ----------
    command : list of str
        What to run, `mpirun` for one; it inherits the environment, with `enter.NAMESPACES_VARIABLE` added.
    ranks : int
        Number of ranks, 1 to `MAX_RANKS`.
    rate : float
        Bytes per second of every rank's link, each way.
    fabric : str, optional
        A two-tier network, as `TwoTier.parse` takes it; a star without.

    Returns
    -------
    list of str
    """
    network = [] if fabric is None else ["--fabric", fabric]
    return [*_this_module(), "--ranks", str(ranks), "--rate", repr(rate), *network, *command]


def _this_module() -> list[str]:
    return [sys.executable, "-m", "collcomp.bench.testbed"]


def _build_star(ranks: int, rate: float) -> list[int]:
    """Make the star around this process's network namespace; one open descriptor per rank's namespace."""
    hub = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    hosts = [new_namespace(hub) for _ in range(ranks)]
    silence_ipv6()
    with inside(hub) as ip:
        set_up(ip, "lo")
        make(ip, "bridges", ifname=HUB_INTERFACE, kind="bridge", mtu=MTU)
        bridge = index_of(ip, HUB_INTERFACE)
        ip.addr("add", index=bridge, address=HUB_ADDRESS, prefixlen=24)
        set_up(ip, HUB_INTERFACE)
        for rank, host in enumerate(hosts):
            port = f"port{rank}"
            make_pair(ip, port, INTERFACE, host)
            shape(ip, port, rate)
            set_up(ip, port, master=bridge)
    for rank, host in enumerate(hosts):
        with inside(host) as ip:
            silence_ipv6()
            set_up(ip, "lo")
            shape(ip, INTERFACE, rate)
            ip.addr("add", index=index_of(ip, INTERFACE), address=rank_address(rank), prefixlen=24)
            set_up(ip, INTERFACE)
    return hosts


def main(argv: list[str] | None = None) -> None:
    """Build a testbed and become the command inside its hub."""
    parser = argparse.ArgumentParser(prog="python -m collcomp.bench.testbed", description=main.__doc__)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="bytes per second of every rank's link, each way")
    parser.add_argument("--fabric", help="leaves=2,spines=2,uplink=200mbit, and maybe place=interleaved")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    if not 1 <= options.ranks <= MAX_RANKS:
        parser.error(f"--ranks must be 1 to {MAX_RANKS}, not {options.ranks}")
    try:
        fabric = None if options.fabric is None else TwoTier.parse(options.fabric)
    except ValueError as error:
        parser.error(str(error))
    die_with_parent()
    switches: list[int] = []
    try:
        enter_hub()
        if fabric is None:
            hosts = _build_star(options.ranks, options.rate)
        else:
            hosts, switches = build(fabric, options.ranks, options.rate, HUB_INTERFACE, HUB_ADDRESS)
    except TestbedError as error:
        sys.exit(str(error))
    # The command keeps the descriptors open: they are all that holds the namespaces of ranks until ranks are in them,
    # and those of switches.
    for name, namespaces in ((NAMESPACES_VARIABLE, hosts), (SWITCHES_VARIABLE, switches)):
        for namespace in namespaces:
            os.set_inheritable(namespace, True)
        os.environ[name] = ":".join(f"/proc/{os.getpid()}/fd/{namespace}" for namespace in namespaces)
    os.execvp(options.command[0], options.command)


if __name__ == "__main__":
    main()
