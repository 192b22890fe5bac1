"""Ranks of one machine that read each other's memory.

MPI carries notes of 48 bytes; the frames themselves stay where their sender encoded them, in memory files that the
receivers map. MPI's own path through shared memory copies every byte twice. Values that are sent as they are still go
that way: they would have to be copied to a memory file first, and MPI's copies go through the cache.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import struct
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mpi4py import MPI

from collcomp.errors import FrameError, TransportError
from collcomp.transports.base import Request
from collcomp.transports.mpi import MpiTransport
from collcomp.transports.queues import RoutedRequest, take_oldest

__all__ = ["SharedMemoryTransport", "mpi_transport", "this_machine"]

# Kind, tag; then where the frame is: serial number and file descriptor of the sender's slab, offset, bytes.
_NOTE = struct.Struct("<QQQQQQ")
_FRAME, _READ = 0, 1
_NOTHING = np.empty(0, np.uint8)
# Slabs of one peer that stay mapped.
_MAPPED = 8
# Notes under way that are kept before it is looked which have left.
_NOTES_KEPT = 64


def mpi_transport(comm: MPI.Intracomm) -> MpiTransport:
    """The best transport over `comm`: shared memory where all ranks can read each other's, else MPI's. Collective."""
    if comm.Get_size() > 1:
        shared = SharedMemoryTransport(comm)
        if shared.connect():
            return shared
    transport = MpiTransport(comm)
    transport.calibrate()
    return transport


@dataclass(frozen=True, slots=True)
class _Slab:
    """A memory file of this process, which other processes map by way of its descriptor."""

    serial: int
    fd: int
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a frame lies in another process's memory."""

    serial: int
    fd: int
    offset: int
    nbytes: int


def this_machine() -> str:
    """Equal where processes can see each other's memory files and belong together; empty where there are none.

    Processes with a network of their own stand for machines of their own, whatever else they could do.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return " ".join([boot.strip(), *(os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "pid"))])
    except OSError:
        return ""


class SharedMemoryTransport(MpiTransport):
    """The ranks of an MPI communicator, all on one machine.

    Each rank keeps one MPI receive open for every other, through which come notes of two kinds: there is a frame of
    yours in my memory; I have read a frame of yours.

    Parameters
    ----------
    comm : MPI.Intracomm
        Its messages are the transport's alone.
    """

    # Nothing is gained by overlapping copies between cores that are busy anyway; each segment costs a wait.
    segment_nbytes = (16 << 20, 16 << 20)
    window = math.inf
    shares_memory = True

    def __init__(self, comm: MPI.Intracomm) -> None:
        super().__init__(comm)
        self.takes_devices = False  # frames lie in memory files
        self._notice_tag -= 1  # and so all other tags are below it
        self._stream_tag = self._notice_tag + 1
        self._slabs: dict[int, _Slab] = {}
        self._serials = itertools.count()
        self._mapped: dict[int, OrderedDict[int, np.ndarray]] = {rank: OrderedDict() for rank in range(self.size)}
        self._pids: list[int] = []
        self._lock = threading.Lock()
        self._lent: dict[tuple[int, int], deque[RoutedRequest]] = defaultdict(deque)
        self._borrowed: dict[tuple[int, int], deque[RoutedRequest]] = defaultdict(deque)
        self._arrivals: dict[tuple[int, int], deque[_Place]] = defaultdict(deque)
        self._sources = [rank for rank in range(self.size) if rank != self.rank]
        self._inboxes = [bytearray(_NOTE.size) for _ in self._sources]
        self._streams: list[MPI.Request] = []
        self._notes: list[tuple[MPI.Request, bytes]] = []

    def connect(self) -> bool:
        """Whether every rank can read every other's memory. Collective; no before use."""
        machine = this_machine()
        token = os.urandom(16)
        card: tuple[str, int, _Place, bytes] | None = None
        if machine:
            memory = self.allocate(len(token))
            memory[...] = np.frombuffer(token, np.uint8)
            slab = self._slab_of(memory)
            card = (machine, os.getpid(), _Place(slab.serial, slab.fd, 0, len(token)), token)
        cards = self._comm.allgather(card)
        reachable = all(other is not None and other[0] == machine for other in cards)
        if reachable:
            self._pids = [other[1] for other in cards]
            reachable = all(self._holds(rank, other[2], other[3]) for rank, other in enumerate(cards))
        connected = bool(self._comm.allreduce(reachable, MPI.LAND))
        if connected:
            self._streams = [self._listen(i) for i in range(len(self._sources))]
        return connected

    def allocate(self, nbytes: int) -> np.ndarray:
        fd = os.memfd_create("collcomp")
        os.ftruncate(fd, nbytes)
        memory = np.frombuffer(mmap.mmap(fd, nbytes), np.uint8)
        slab = _Slab(next(self._serials), fd, memory.ctypes.data, nbytes)
        self._slabs[slab.serial] = slab
        weakref.finalize(memory, self._drop, slab)
        return memory

    def lend(self, buf: np.ndarray, dest: int, tag: int) -> Request:
        slab = self._slab_of(buf)
        request = RoutedRequest(buf, self.rank, tag)
        with self._lock:
            self._lent[dest, tag].append(request)
            self._tell(dest, _FRAME, tag, slab.serial, slab.fd, buf.ctypes.data - slab.start, buf.size)
        return request

    def borrow(self, source: int, tag: int) -> Request:
        request = RoutedRequest(_NOTHING, source, tag)
        with self._lock:
            place = take_oldest(self._arrivals, (source, tag))
            if place is not None:
                self._accept(request, place)
            else:
                self._borrowed[source, tag].append(request)
        return request

    def release(self, requests: Sequence[Request]) -> None:
        with self._lock:
            for request in requests:
                self._tell(request.source, _READ, request.tag, 0, 0, 0, 0)

    def cancel(self, requests: Sequence[Request]) -> None:
        gone = {id(request) for request in requests if isinstance(request, RoutedRequest)}
        super().cancel([request for request in requests if id(request) not in gone])
        with self._lock:
            for queues in (self._lent, self._borrowed):
                for route in list(queues):
                    queues[route] = deque(request for request in queues[route] if id(request) not in gone)
                    if not queues[route]:
                        del queues[route]

    def close(self) -> None:
        for stream in self._streams:
            if stream != MPI.REQUEST_NULL:
                stream.Cancel()
                stream.Wait()
        super().close()

    def _completed(self, requests: Sequence[Request]) -> list[int]:
        with self._lock:
            try:
                while done := MPI.Request.Testsome(self._streams):
                    notes = [(self._sources[i], _NOTE.unpack(self._inboxes[i])) for i in done]
                    for i in done:
                        self._streams[i] = self._listen(i)
                    for source, note in notes:
                        self._read_note(source, *note)
            except MPI.Exception as error:
                raise TransportError(f"MPI: {error.Get_error_string()}") from error
        done = [i for i, request in enumerate(requests) if isinstance(request, RoutedRequest) and request.complete]
        for i in done:
            problem = requests[i].error  # type: ignore[attr-defined]
            if problem is not None:
                raise problem
        others = [i for i, request in enumerate(requests) if not isinstance(request, RoutedRequest)]
        if others:
            done += [others[i] for i in super()._completed([requests[i] for i in others])]
        return done

    def _read_note(self, source: int, kind: int, tag: int, *place: int) -> None:
        route = (source, tag)
        request = take_oldest(self._lent if kind == _READ else self._borrowed, route)
        if request is not None:
            if kind == _READ:
                request.complete = True
            else:
                self._accept(request, _Place(*place))
        elif kind == _FRAME:  # the operation has not begun here, or was given up
            self._arrivals[route].append(_Place(*place))

    def _accept(self, request: RoutedRequest, place: _Place) -> None:
        # What is wrong is told to whoever waits for this frame, not to whoever happened to read the note.
        request.complete = True
        try:
            slab = self._map(request.source, place)
        except OSError as error:
            request.error = TransportError(f"memory of rank {request.source} cannot be read: {error}")
            return
        request.data = slab[place.offset : place.offset + place.nbytes]
        if request.data.size != place.nbytes:
            request.error = FrameError(
                f"frame: {place.nbytes} bytes at {place.offset} do not lie in the {slab.size} of rank {request.source}"
            )

    def _listen(self, i: int) -> MPI.Request:
        return self._comm.Irecv([self._inboxes[i], MPI.BYTE], self._sources[i], self._stream_tag)

    def _tell(self, dest: int, *note: int) -> None:
        message = _NOTE.pack(*note)
        self._notes.append((self._comm.Isend([message, MPI.BYTE], dest, self._stream_tag), message))
        if len(self._notes) > _NOTES_KEPT:
            self._notes = [entry for entry in self._notes if not entry[0].Test()]

    def _holds(self, source: int, place: _Place, expected: bytes) -> bool:
        try:
            return self._map(source, place)[: place.nbytes].tobytes() == expected
        except OSError:
            return False

    def _map(self, source: int, place: _Place) -> np.ndarray:
        mapped = self._mapped[source]
        memory = mapped.get(place.serial)
        if memory is not None:
            mapped.move_to_end(place.serial)
        else:
            with open(f"/proc/{self._pids[source]}/fd/{place.fd}", "rb") as file:
                memory = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            mapped[place.serial] = memory
            if len(mapped) > _MAPPED:
                mapped.popitem(last=False)
        return memory

    def _slab_of(self, buf: np.ndarray) -> _Slab:
        address = buf.ctypes.data
        for slab in list(self._slabs.values()):
            if slab.start <= address and address + buf.size <= slab.start + slab.nbytes:
                return slab
        raise AssertionError("what is lent lies in memory from allocate()")

    def _drop(self, slab: _Slab) -> None:
        del self._slabs[slab.serial]
        os.close(slab.fd)
