"""What carries the frames of an operation, and the memory that they lie in.

Values on the host have the communicator's own transport. Those on a device have NCCL where every rank has a GPU of its
own; else the same transport, which takes a device's memory (an MPI that can) or copies of it in the host's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from collcomp import devices
from collcomp.codecs import Identity
from collcomp.collectives import Exchange, Plan, direct
from collcomp.frame import Envelope
from collcomp.scratch import Scratch
from collcomp.transports import Transport
from collcomp.transports.nccl import Card, NcclTransport, nccl

__all__ = ["Carriers"]

# Rounds of the operation that connects NCCL, for which it has channels that algorithms do not use.
_CARDS, _UNIQUE_ID = 7, 6
_UNIQUE_ID_NBYTES = 128


class Carriers:
    """Chooses by where values lie.

    Parameters
    ----------
    host : Transport
    deadline : float
        Seconds that ranks wait for each other when they connect.

    Attributes
    ----------
    staged : str
        Why values on devices are not carried by NCCL; empty where they are, or nobody knows yet.
    """

    def __init__(self, host: Transport, deadline: float) -> None:
        self._host = host
        self._deadline = deadline
        self._gpus: NcclTransport | None = None
        self.staged = ""
        # Memory for frames that is not in use, by what allocates it; and what graphs use for ever.
        self._free: dict[Callable[[int], np.ndarray], list[Scratch]] = defaultdict(list)
        self._kept: list[Scratch] = []

    @property
    def in_order(self) -> bool:
        """Whether operations on values of a device have to be done in the order in which they are called."""
        return not self.staged and self._host.size > 1

    def transport(self, values: np.ndarray, sequence: int) -> Transport:
        """What carries operation `sequence` on these values. Collective when first called for a device's."""
        if not devices.on_device(values) or self._host.size == 1:
            return self._host
        if self._gpus is None and not self.staged:
            if devices.is_capturing(values):
                raise ValueError(
                    "capture: make the same call once on this communicator before it is captured in a graph"
                )
            self._connect(sequence)
        if self.staged and devices.is_capturing(values):
            raise ValueError(f"capture: values go through the host, which no graph does: {self.staged}")
        return self._gpus or self._host

    def take(self, transport: Transport, values: np.ndarray) -> Scratch:
        """Memory for the frames of an operation."""
        allocate: Callable[[int], Any] = transport.allocate
        if devices.on_device(values) and not transport.shares_memory:
            allocate = devices.allocate if transport.takes_devices else devices.allocate_pinned
        free = self._free[allocate]
        return free.pop() if free and not devices.is_capturing(values) else Scratch(allocate)

    def give(self, scratch: Scratch, values: np.ndarray) -> None:
        """Take back memory of an operation that went well."""
        if devices.is_capturing(values):
            self._kept.append(scratch)
            return
        scratch.reset()
        self._free[scratch.allocate].append(scratch)

    def keep(self, scratch: Scratch) -> None:
        """Never use memory again, because other ranks may still be reading it."""
        self._kept.append(scratch)

    def close(self) -> None:
        """Release all. Collective where the transports' own release is."""
        if self._gpus is not None:
            self._gpus.close()
        self._host.close()

    def _connect(self, sequence: int) -> None:
        envelope = Envelope(np.dtype(np.uint8), Card.NBYTES, sequence)
        exchange = Exchange(
            self._host, Plan("direct", Identity()), envelope, Scratch(self._host.allocate), deadline=self._deadline
        )
        try:
            own = Card.own()
            cards = np.empty((self._host.size, own.size), np.uint8)
            with exchange.nested(cards.reshape(-1), _CARDS) as inner:
                direct.allgather(inner, own, list(cards))
            self.staged = Card.problem(cards)
            if self.staged:
                return
            unique_id = np.zeros(_UNIQUE_ID_NBYTES, np.uint8)
            if self._host.rank == 0:
                unique_id[:] = np.frombuffer(nccl().get_unique_id(), np.uint8)
            with exchange.nested(unique_id, _UNIQUE_ID) as inner:
                direct.bcast(inner, unique_id, 0)
            self._gpus = NcclTransport(self._host, unique_id.tobytes())
        except BaseException as error:
            exchange.abandon(error)
            raise
