"""The engine of a process group: a `Communicator` over MPI where MPI started the ranks, over TCP elsewhere."""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import struct
from weakref import WeakKeyDictionary

import numpy as np
import torch.distributed as dist

from collcomp.communicator import Communicator
from collcomp.diagnosis import Records
from collcomp.errors import TransportError
from collcomp.torch.rendezvous import mpi_started_us
from collcomp.transports.base import Transport
from collcomp.transports.tcp import TcpTransport

__all__ = [
    "Compressing",
    "connect",
    "disconnect",
    "engine_of",
    "group_or_default",
    "records_of",
    "timeout_of",
    "uncompressed",
]

_SIOCGIFADDR = 0x8915


class Compressing:
    """A process group with an engine of its own.

    Attributes
    ----------
    engine : Communicator
    records : Records
    uncompressed : ProcessGroup
        Does what is not to be compressed, whatever codecs the group has.
    timeout : timedelta
    """


# Engines of groups that have none of their own, and how many engines each group's store has served.
_engines: WeakKeyDictionary[dist.ProcessGroup, Communicator] = WeakKeyDictionary()
_counts: WeakKeyDictionary[dist.ProcessGroup, itertools.count] = WeakKeyDictionary()


def group_or_default(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """`group`, or the default group for None."""
    return dist.distributed_c10d._get_default_group() if group is None else group


def engine_of(group: dist.ProcessGroup) -> Communicator:
    """The engine that all use on `group` who have none of their own. Collective when called first."""
    if isinstance(group, Compressing):
        return group.engine
    engine = _engines.get(group)
    if engine is None:
        engine = _engines[group] = connect(group)
    return engine


def records_of(group: dist.ProcessGroup) -> Records:
    """Those of the engine of `group`; none where it has had no engine so far."""
    if isinstance(group, Compressing):
        return group.records
    engine = _engines.get(group)
    return Records() if engine is None else engine.records


def uncompressed(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """What does the operations of `group` that are not to be compressed."""
    return group.uncompressed if isinstance(group, Compressing) else group


def connect(group: dist.ProcessGroup) -> Communicator:
    """A new engine for the ranks of `group`, whatever its backend. Collective."""
    number = next(_counts.setdefault(group, itertools.count()))
    store = dist.PrefixStore(f"collcomp/{number}", group.get_group_store())
    deadline = timeout_of(group)
    transport, mailbox = _transports(store, group.rank(), group.size(), deadline)
    engine = Communicator(transport, mailbox=mailbox, native=True, native_devices=True, deadline=deadline)
    # Connects the ranks, so that one whose own first call is refused can tell the others.
    engine.allgather(np.zeros(1, np.int8), np.empty(group.size(), np.int8), algorithm="direct")
    engine.records.clear()
    return engine


def disconnect(engine: Communicator) -> None:
    """Let go of what `connect` has made. Collective."""
    engine.close()
    engine.messages.close()


def timeout_of(group: dist.ProcessGroup) -> float:
    """Seconds after which operations of `group` fail."""
    if isinstance(group, Compressing):
        return group.timeout.total_seconds()
    options = getattr(group._get_backend(group._device_types[0]), "options", None)
    timeout = getattr(options, "_timeout", None) or dist.constants.default_pg_timeout
    return timeout.total_seconds()


def _transports(store: dist.Store, rank: int, size: int, timeout: float) -> tuple[Transport, Transport]:
    """For collectives and for messages."""
    ranks = _ranks_in_mpi(store, rank, size)
    if ranks is not None:
        from collcomp.torch.over_mpi import mpi_transports

        return mpi_transports(ranks)
    host = _reachable_address(store, rank, size)
    transport, mailbox = (
        TcpTransport(dist.PrefixStore(what, store), rank, size, host=host, timeout=timeout)
        for what in ("collectives", "messages")
    )
    return transport, mailbox


def _ranks_in_mpi(store: dist.Store, rank: int, size: int) -> list[int] | None:
    """The group's ranks in MPI's world; None where MPI cannot carry frames between all of them."""
    mine = None
    if mpi_started_us():
        try:
            from collcomp.torch.over_mpi import world_rank
        except (ImportError, RuntimeError):  # no mpi4py, or no MPI behind it
            pass
        else:
            mine = world_rank()
    ranks = [int(text) if text else -1 for text in _tell(store, "mpi", "" if mine is None else str(mine), rank, size)]
    return ranks if min(ranks) >= 0 and len(set(ranks)) == size else None


def _tell(store: dist.Store, what: str, text: str, rank: int, size: int) -> list[str]:
    """What each rank of the group has to say. Collective."""
    store.set(f"{what}/{rank}", text)
    return [store.get(f"{what}/{other}").decode() for other in range(size)]


def _reachable_address(store: dist.Store, rank: int, size: int) -> str:
    """Address of this machine that the other ranks know it by: gloo's interface, else that towards the master."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if interface:
        return _address_of(interface)
    master = os.environ.get("MASTER_ADDR")
    host = _address_towards(master) if master else str(socket.getaddrinfo(socket.gethostname(), None)[0][4][0])
    machines = set(_tell(store, "machine", socket.gethostname(), rank, size))
    if len(machines) > 1 and (host.startswith("127.") or host == "::1"):
        raise TransportError(
            f"{socket.gethostname()}: its address is {host}, which no other machine reaches; set GLOO_SOCKET_IFNAME"
        )
    return host


def _address_of(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError as error:
            raise ValueError(f"GLOO_SOCKET_IFNAME: {interface!r} has no address: {error}") from None


def _address_towards(host: str) -> str:
    family, kind, protocol, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # nothing is sent: this only chooses a route
        return probe.getsockname()[0]
