"""Bytes between ranks. `mpi` is imported by name, because it initialises MPI."""

from collcomp.transports.base import Request, Transport
from collcomp.transports.local import LocalTransport, local_transports

__all__ = ["LocalTransport", "Request", "Transport", "local_transports"]
