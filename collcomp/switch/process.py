"""An aggregating switch as a process that workers reach over UDP."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import time
from collections.abc import Callable

import numpy as np

from collcomp.errors import TransportError
from collcomp.kernels import cpu
from collcomp.kernels.cpu import packets, registers
from collcomp.switch.control import LONGEST_NBYTES
from collcomp.switch.datagrams import Datagrams, datagram_nbytes, datagram_socket, pack_address, unpack_address
from collcomp.switch.pool import aligned, views_of
from collcomp.switch.programs import Program
from collcomp.switch.switch import Outgoing, Switch

__all__ = ["BUFFER_NBYTES", "SwitchProcess", "name_of"]

#: Memory that is asked for each of a socket's two buffers.
BUFFER_NBYTES = 16 << 20
# Packets that are received, and that are sent, at once.
_BATCH = 64
# How long the loop goes on without Python, which looks for signals.
_STRETCH_S = 0.1
# Workers of a job that can send to this switch.
_MOST_WORKERS = 256


class SwitchProcess:
    """A `Switch` behind a socket.

    Parameters
    ----------
    host : str
    port : int
        0 for one that is free.
    program : Program
    slots, payload_nbytes : int, optional
        In place of the program's own.
    parent : tuple of str and int, optional
        Host and port of the switch above; then `ranks_below` is needed, the ranks of a job that send to this switch.
    loss : float
        Share of packets that are dropped on purpose, in each direction.
    seed : int, optional
        Of what is dropped.

    Raises
    ------
    TransportError
        The address cannot be listened on.
    ValueError
        A number is none that can be.
    """

    def __init__(
        self,
        host: str,
        port: int,
        program: Program,
        *,
        slots: int | None = None,
        payload_nbytes: int | None = None,
        parent: tuple[str, int] | None = None,
        ranks_below: int | None = None,
        loss: float = 0.0,
        seed: int | None = None,
    ) -> None:
        if not 0 <= loss < 1:
            raise ValueError(f"loss: {loss} is no share of packets")
        if slots is not None and slots < 1:
            raise ValueError(f"slots: {slots} are too few")
        if payload_nbytes is not None and not 8 <= payload_nbytes <= packets.LARGEST_NBYTES:
            raise ValueError(f"payload: {payload_nbytes} bytes, 8 to {packets.LARGEST_NBYTES} are possible")
        if ranks_below is not None and ranks_below < 1:
            raise ValueError(f"ranks: {ranks_below} are too few")
        if seed is not None and not 0 <= seed < 1 << 63:
            raise ValueError(f"seed: {seed} is not between 0 and 2**63")
        if host in ("", "0.0.0.0"):
            raise ValueError(f"listen: {host!r} is every address of this machine; name the one that workers send to")
        if (parent is None) != (ranks_below is None):
            raise ValueError("ranks: to be given with the switch above (parent), and only with it")
        self._socket = datagram_socket(host, port, BUFFER_NBYTES)
        largest = min(program.payload_nbytes or packets.LARGEST_NBYTES, payload_nbytes or packets.LARGEST_NBYTES)
        if parent is not None:
            largest = min(largest, datagram_nbytes(*parent) - packets.HEADER_NBYTES)
        try:
            self.switch = Switch(
                program,
                slots=slots or program.slots,
                payload_nbytes=largest,
                most_workers=_MOST_WORKERS,
                parent=None if parent is None else name_of(*parent),
                ranks_below=ranks_below,
            )
        except MemoryError:
            self._socket.close()
            raise ValueError(f"slots: {slots} of {largest} bytes do not fit this machine's memory") from None
        room = aligned(packets.HEADER_NBYTES + max(largest, LONGEST_NBYTES)).size
        self._incoming = Datagrams(_BATCH, room)
        self._outgoing = Datagrams(2 * _BATCH, room)
        self._headers = np.zeros((2 * _BATCH, packets.HEADER_WORDS), np.uint64)
        self._cursor = np.zeros(2, np.int64)
        self._luck = np.array([secrets.randbits(63) if seed is None else seed, 0], np.uint64)
        self._threshold = round(loss * 2**32)
        self._loss, self._chance = loss, random.Random(seed)  # of what Python sends
        self._kernels = cpu.load("switching")
        self._stretch(0.0)  # compiles, before anybody waits

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self._socket.getsockname()

    @property
    def buffer_nbytes(self) -> int:
        """Memory that the system grants to packets that wait to be received."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def serve(self, *, done: Callable[[], bool]) -> None:
        """Serve until `done` says so; it is asked a few times a second."""
        nothing = cpu.load("switch").NOTHING
        while not done():
            action, row, job, worker = self._stretch(time.monotonic() + _STRETCH_S)
            if action < 0:
                raise TransportError(f"UDP: {os.strerror(-action)}")
            if action != nothing:
                self._look_after(action, row, job, worker)

    def _stretch(self, until: float) -> tuple[int, int, int, int]:
        return self._kernels.serve(
            self._socket.fileno(), self.switch.pool, views_of(self._incoming.buffers),
            self._incoming.names.view(np.uint64), self._incoming.messages, self._cursor,
            self._outgoing.messages, self._outgoing.iovecs, self._headers, views_of(self._outgoing.buffers),
            self._luck, self._threshold, self.switch.program.mark_nbytes or 0, until,
        )  # fmt: skip

    def _look_after(self, action: int, row: int, job: int, worker: int) -> None:
        place = int(self._cursor[1]) - 1
        packet = self._incoming.received(place)
        name = int(self._incoming.names.view(np.uint64)[place, 0])
        for outgoing in self.switch.act(action, row, job, worker, packet, name, time.monotonic()):
            self._send(outgoing)

    def _send(self, outgoing: Outgoing) -> None:
        if self._chance.random() < self._loss:
            self.switch.pool.counters[registers.LOST] += 1
            return
        name = aligned(16)
        name.view(np.uint64)[0] = outgoing.name
        with contextlib.suppress(OSError):  # whoever is there will ask again, or is gone
            self._socket.sendto(outgoing.header.tobytes() + outgoing.payload.tobytes(), unpack_address(name))

    def report(self) -> str:
        """What was counted, in one line."""
        counts = zip(registers.COUNTERS, self.switch.pool.counters, strict=True)
        return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts if count)

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def name_of(host: str, port: int) -> int:
    """An address in the 8 bytes that packets' senders are told apart by."""
    return int(pack_address(host, port).view(np.uint64)[0])
