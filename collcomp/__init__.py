"""Compression-aware collective communication.

`collcomp.mpi.Comm` is the face for mpi4py programs; it is imported by its own name, because that initialises MPI.
`collcomp.local.run` runs ranks as threads, without MPI.
"""

from collcomp import codecs, local
from collcomp.communicator import IN_PLACE, Communicator
from collcomp.diagnosis import Record, Records
from collcomp.errors import CollcompError, DeadlineError, FrameError, TransportError

__version__ = "0.1.0.dev0"

__all__ = [
    "IN_PLACE",
    "CollcompError",
    "Communicator",
    "DeadlineError",
    "FrameError",
    "Record",
    "Records",
    "TransportError",
    "codecs",
    "local",
]
