"""What carries the frames of an operation, and the memory that they lie in.

Values on the host have the communicator's own transport. Those on a device have NCCL where every rank has a GPU of its
own; else the same transport, which takes a device's memory (an MPI that can) or copies of it in the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from collcomp import devices
from collcomp.codecs import Identity
from collcomp.collectives import Exchange, Plan, direct
from collcomp.frame import Envelope
from collcomp.operation import Operation
from collcomp.scratch import Scratch
from collcomp.transports import Transport
from collcomp.transports.cards import Card
from collcomp.transports.nccl import NcclTransport, nccl

__all__ = ["Carriers"]

# Rounds of the operation that connects NCCL, for which it has channels that algorithms do not use.
_CARDS, _UNIQUE_ID, _ABLE = 7, 6, 5
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
        # Memory that is not in use, for frames of values on the host, and of a device's; and what graphs use for ever.
        self._free_of_host: list[Scratch] = []
        self._free: list[Scratch] = []
        self._kept: list[tuple[Scratch, Operation | None]] = []

    @property
    def in_order(self) -> bool:
        """Whether operations on values of a device have to be done in the order in which they are called."""
        return not self.staged and self._host.size > 1

    def transport(self, operation: Operation) -> Transport:
        """What carries an operation. Collective when first called for one on a device's values."""
        values = operation.message.flat
        if not devices.on_device(values) or self._host.size == 1:
            return self._host
        if self._gpus is None and not self.staged:
            if devices.is_capturing(values):
                raise ValueError(
                    "capture: make the same call once on this communicator before it is captured in a graph"
                )
            self._connect(operation.sequence & 0xFFFFFFFF)
        if self.staged and devices.is_capturing(values):
            raise ValueError(f"capture: values go through the host, which no graph does: {self.staged}")
        if self._gpus is None:
            return self._host
        self._gpus.begin(operation.call)
        return self._gpus

    def take(self, transport: Transport, values: np.ndarray) -> Scratch:
        """Memory for the frames of an operation."""
        if not devices.on_device(values):
            return self._unused(self._host.allocate, self._free_of_host)
        allocate: Callable[[int], Any] = transport.allocate
        if not transport.shares_memory:
            allocate = devices.allocate if transport.takes_devices else devices.allocate_pinned
        return Scratch(allocate) if devices.is_capturing(values) else self._unused(allocate, self._free)

    def give(self, scratch: Scratch, operation: Operation) -> None:
        """Take back the memory of an operation that went well; a graph keeps it, and the operation's own."""
        values = operation.message.flat
        if devices.on_device(values):
            if devices.is_capturing(values):
                self._kept.append((scratch, operation))
                return
            devices.wait_for(values)  # what decodes may still be reading it
        scratch.reset()
        (self._free if devices.on_device(values) else self._free_of_host).append(scratch)

    def keep(self, scratch: Scratch) -> None:
        """Never use memory again, because other ranks may still be reading it."""
        self._kept.append((scratch, None))

    def close(self) -> None:
        """Release all. Collective where the transports' own release is."""
        if self._gpus is not None:
            self._gpus.close()
        self._host.close()

    def _unused(self, allocate: Callable[[int], Any], free: list[Scratch]) -> Scratch:
        if free:
            with suppress(IndexError):  # the background may have taken the last
                return free.pop()
        return Scratch(allocate)

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
            try:
                gpus, problem = NcclTransport(self._host, unique_id.tobytes()), ""
            except Exception as error:
                gpus, problem = None, f"NCCL cannot connect: {error}"
            able = np.array([gpus is not None], np.uint8)
            everyone = np.empty((self._host.size, 1), np.uint8)
            with exchange.nested(everyone.reshape(-1), _ABLE) as inner:
                direct.allgather(inner, able, list(everyone))
            if everyone.all():
                self._gpus = gpus
            else:
                unable = int(np.flatnonzero(everyone[:, 0] == 0)[0])
                self.staged = problem or f"NCCL cannot connect on rank {unable}"
        except BaseException as error:
            exchange.abandon(error)
            raise
