"""How ranks that `mpirun` started find each other: `init_process_group` needs no environment variables then."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import _rendezvous_handlers

from collcomp.errors import TransportError

__all__ = ["mpi_started_us", "register_rendezvous"]

_LAUNCHED = ("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def mpi_started_us() -> bool:
    """Whether this process is a rank of MPI's launcher, and was given no rank by PyTorch's, or by hand."""
    launched = any(name in os.environ for name in _LAUNCHED) and "RANK" not in os.environ
    return launched and multiprocessing.parent_process() is None  # children have their parent's variables


def register_rendezvous() -> None:
    """Have ``env://``, the default, ask MPI where the launcher has set no ``RANK``."""
    from_environment = _rendezvous_handlers["env"]

    def handler(url: str, timeout: timedelta = dist.constants.default_pg_timeout, **options: Any) -> Iterator[Any]:
        if "rank=" in url or not mpi_started_us():
            return from_environment(url, timeout=timeout, **options)
        return _from_mpi(timeout)

    _rendezvous_handlers["env"] = handler


def _from_mpi(timeout: timedelta) -> Iterator[tuple[dist.Store, int, int]]:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise TransportError(f"mpirun started this process, but mpi4py does not work here: {error}") from None
    world = MPI.COMM_WORLD
    machine = world.Split_type(MPI.COMM_TYPE_SHARED)
    one_machine = machine.size == world.size
    machine.Free()
    store: dist.Store | None = None
    place: tuple[str, int] | Exception | None = None
    if world.rank == 0:
        try:
            host = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if one_machine else socket.getfqdn())
            port = int(os.environ.get("MASTER_PORT", "0"))
            store = dist.TCPStore(host, port, world.size, is_master=True, timeout=timeout, wait_for_workers=False)
            place = host, store.port
        except (OSError, RuntimeError, ValueError) as error:
            place = error
    place = world.bcast(place)
    if isinstance(place, Exception):
        raise TransportError(f"rank 0 has no store: {place}") from place
    host, port = place
    if store is None:
        store = dist.TCPStore(host, port, world.size, is_master=False, timeout=timeout)
    os.environ.setdefault("MASTER_ADDR", host)  # by which each rank finds its own address towards the others
    yield store, world.rank, world.size
    raise RuntimeError("a rendezvous over MPI cannot be repeated")
