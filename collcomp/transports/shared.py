"""Ranks of one machine that read each other's memory.

MPI carries notes of 48 bytes; the frames themselves stay where their sender encoded them, in memory files that the
receivers map. Values that are sent as they are stay in the program's own memory, which receivers copy from by
``process_vm_readv``; where the kernel forbids that they are copied to a memory file first. MPI's own path through
shared memory copies every byte twice.
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

import numpy as np
from mpi4py import MPI

from collcomp.errors import FrameError, TransportError
from collcomp.transports import remote
from collcomp.transports.base import Request
from collcomp.transports.mpi import MpiTransport

__all__ = ["SharedMemoryTransport", "mpi_transport"]

# Kind, tag; then where the frame is: serial number and file descriptor of the sender's slab, offset, bytes. A frame
# outside of all slabs has serial number 0, and its address for an offset.
_NOTE = struct.Struct("<QQQQQQ")
_NO_SLAB = 0
_FRAME, _READ = 0, 1
_STREAM_TAG = 0
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
    return MpiTransport(comm)


@dataclass(frozen=True, slots=True)
class _Slab:
    """A memory file of this process, which other processes map by way of its descriptor."""

    serial: int
    fd: int
    start: int
    nbytes: int


@dataclass(slots=True, eq=False)
class _SharedRequest:
    """A send, complete when the receiver has read it; or a receive."""

    data: np.ndarray | None
    source: int
    tag: int
    complete: bool = False
    #: Address and bytes of what is to be fetched.
    remote: tuple[int, int] = (0, 0)
    #: Copy of what was sent, where it has to lie in a slab.
    staged: np.ndarray | None = None


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
        self._slabs: dict[int, _Slab] = {}
        self._serials = itertools.count(_NO_SLAB + 1)
        self._mapped: dict[int, OrderedDict[int, np.ndarray]] = {rank: OrderedDict() for rank in range(self.size)}
        self._pids: list[int] = []
        self._lock = threading.Lock()
        self._sends: dict[tuple[int, int], deque[_SharedRequest]] = defaultdict(deque)
        self._receives: dict[tuple[int, int], deque[_SharedRequest]] = defaultdict(deque)
        self._arrivals: dict[tuple[int, int], deque[tuple[np.ndarray | None, tuple[int, int]]]] = defaultdict(deque)
        self._staging: dict[int, list[np.ndarray]] = defaultdict(list)
        self._fetches = False
        self._sources = [rank for rank in range(self.size) if rank != self.rank]
        self._inboxes = [bytearray(_NOTE.size) for _ in self._sources]
        self._streams: list[MPI.Request] = []
        self._notes: list[tuple[MPI.Request, bytes]] = []

    def connect(self) -> bool:
        """Whether every rank can read every other's memory. Collective; no before use."""
        token = os.urandom(16)
        memory = self.allocate(len(token))
        memory[...] = np.frombuffer(token, np.uint8)
        slab = self._slab_of(memory)
        assert slab is not None
        # A shaped or separate network means separate machines, whatever the processes could do by other ways.
        network = os.stat("/proc/self/ns/net").st_ino if os.path.exists("/proc/self/ns/net") else 0
        remote.allow_reading()
        own = np.frombuffer(token, np.uint8)
        cards = self._comm.allgather((os.getpid(), network, slab.serial, slab.fd, token, own.ctypes.data))
        self._pids = [card[0] for card in cards]
        reachable = all(
            card[1] == network and self._read(rank, card[2], card[3], 0, len(token)) == card[4]
            for rank, card in enumerate(cards)
        )
        self._fetches = reachable and all(remote.can_read(card[0], card[5], card[4]) for card in cards)
        self._fetches = bool(self._comm.allreduce(self._fetches, MPI.LAND))
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

    def isend(self, buf: np.ndarray, dest: int, tag: int) -> Request:
        request = _SharedRequest(buf, self.rank, tag)
        with self._lock:
            slab = self._slab_of(buf)
            if slab is None and not self._fetches:
                buf = request.staged = self._stage(buf)
                slab = self._slab_of(buf)
            address = buf.ctypes.data
            place = (_NO_SLAB, 0, address) if slab is None else (slab.serial, slab.fd, address - slab.start)
            self._sends[dest, tag].append(request)
            self._tell(dest, _FRAME, tag, *place, buf.size)
        return request

    def irecv(self, buf: np.ndarray | None, source: int, tag: int) -> Request:
        request = _SharedRequest(_NOTHING, source, tag)
        with self._lock:
            arrivals = self._arrivals.get((source, tag))
            if arrivals:
                request.data, request.remote = arrivals.popleft()
                request.complete = True
                if not arrivals:
                    del self._arrivals[source, tag]
            else:
                self._receives[source, tag].append(request)
        return request

    def fetch(self, request: Request, into: np.ndarray) -> None:
        assert isinstance(request, _SharedRequest)
        address, nbytes = request.remote
        if nbytes != into.size:
            raise FrameError(f"frame: {nbytes} bytes arrived, {into.size} are expected")
        remote.read(self._pids[request.source], address, into)
        request.data = into

    def release(self, requests: Sequence[Request]) -> None:
        with self._lock:
            for request in requests:
                self._tell(request.source, _READ, request.tag)

    def wait_some(self, requests: Sequence[Request], timeout: float) -> list[int]:
        return self._poll(lambda: self._completed(requests), timeout)

    def cancel(self, requests: Sequence[Request]) -> None:
        gone = set(map(id, requests))
        with self._lock:
            for queues in (self._sends, self._receives):
                for route in list(queues):
                    queues[route] = deque(request for request in queues[route] if id(request) not in gone)
                    if not queues[route]:
                        del queues[route]

    def close(self) -> None:
        for stream in self._streams:
            stream.Cancel()
            stream.Wait()
        super().close()

    def _completed(self, requests: Sequence[Request]) -> list[int]:
        with self._lock:
            try:
                while done := MPI.Request.Testsome(self._streams):
                    for i in done:
                        note = _NOTE.unpack(self._inboxes[i])
                        self._streams[i] = self._listen(i)
                        self._read_note(self._sources[i], *note)
            except MPI.Exception as error:
                raise TransportError(f"MPI: {error.Get_error_string()}") from error
            return [i for i, request in enumerate(requests) if request.complete]  # type: ignore[attr-defined]

    def _read_note(self, source: int, kind: int, tag: int, serial: int, fd: int, offset: int, nbytes: int) -> None:
        route = (source, tag)
        if kind == _READ:
            waiting = self._sends.get(route)
            if waiting:  # it may have been cancelled
                request = waiting.popleft()
                request.complete = True
                if request.staged is not None:
                    self._staging[request.staged.size].append(request.staged)
                if not waiting:
                    del self._sends[route]
            return
        data = None
        if serial != _NO_SLAB:
            slab = self._map(source, serial, fd)
            if offset + nbytes > slab.size:
                raise FrameError(f"frame: {nbytes} bytes at {offset} do not lie in the {slab.size} of rank {source}")
            data = slab[offset : offset + nbytes]
        receives = self._receives.get(route)
        if receives:
            receive = receives.popleft()
            receive.data, receive.remote = data, (offset, nbytes)
            receive.complete = True
            if not receives:
                del self._receives[route]
        else:
            self._arrivals[route].append((data, (offset, nbytes)))

    def _listen(self, i: int) -> MPI.Request:
        return self._comm.Irecv([self._inboxes[i], MPI.BYTE], self._sources[i], _STREAM_TAG)

    def _tell(
        self, dest: int, kind: int, tag: int, serial: int = 0, fd: int = 0, offset: int = 0, nbytes: int = 0
    ) -> None:
        note = _NOTE.pack(kind, tag, serial, fd, offset, nbytes)
        self._notes.append((self._comm.Isend([note, MPI.BYTE], dest, _STREAM_TAG), note))
        if len(self._notes) > _NOTES_KEPT:
            self._notes = [entry for entry in self._notes if not entry[0].Test()]

    def _read(self, source: int, serial: int, fd: int, offset: int, nbytes: int) -> bytes | None:
        try:
            return self._map(source, serial, fd)[offset : offset + nbytes].tobytes()
        except OSError:
            return None

    def _map(self, source: int, serial: int, fd: int) -> np.ndarray:
        mapped = self._mapped[source]
        memory = mapped.get(serial)
        if memory is None:
            with open(f"/proc/{self._pids[source]}/fd/{fd}", "rb") as file:
                memory = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            mapped[serial] = memory
            if len(mapped) > _MAPPED:
                mapped.popitem(last=False)
        return memory

    def _stage(self, buf: np.ndarray) -> np.ndarray:
        staging = self._staging[buf.size]
        copy = staging.pop() if staging else self.allocate(buf.size)
        copy[...] = buf
        return copy

    def _slab_of(self, buf: np.ndarray) -> _Slab | None:
        address = buf.ctypes.data
        for slab in self._slabs.values():
            if slab.start <= address and address + buf.size <= slab.start + slab.nbytes:
                return slab
        return None

    def _drop(self, slab: _Slab) -> None:
        del self._slabs[slab.serial]
        os.close(slab.fd)
