"""Bytes between ranks. `mpi` and `shared` are imported by name, because they initialise MPI; `tcp` needs none."""

from collcomp.transports.base import Request, Transport
from collcomp.transports.local import LocalTransport, local_transports

__all__ = ["LocalTransport", "Request", "Transport", "local_transports"]
