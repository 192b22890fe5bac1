"""Bytes over an MPI communicator."""

from __future__ import annotations

import math
import os
import struct
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

from collcomp.devices import wait_for
from collcomp.errors import FrameError, TransportError
from collcomp.transports.base import TOO_LONG, Request, Transport

__all__ = ["MpiRequest", "MpiTransport", "is_gpu_aware"]

_SEQUENCE = struct.Struct("<I")
# How a rank waits: it polls, yielding its core, and after this many polls sleeps in between. More ranks than cores
# are common in tests, and a progress thread must not take the core that the program computes on.
_POLLS_BEFORE_SLEEP = 200
_SLEEP_S = 50e-6
# What `calibrate` sends, and the smallest and largest segment for links up to so many bytes a second: small ones keep
# the flows over slow links even, large ones spare the processor, which is what limits fast links.
_PROBE_NBYTES = 512 << 10
_SEGMENTS = ((60e6, (64 << 10, 512 << 10)), (160e6, (64 << 10, 1 << 20)), (math.inf, (4 << 20, 4 << 20)))
# What tells it in the environments of Cray's MPICH, MPICH, MVAPICH and Open MPI; and a word of our own, which comes
# first, because a build may be aware without any variable, or not in spite of one.
_OWN_WORD = "COLLCOMP_GPU_AWARE_MPI"
_WORDS = ("MPICH_GPU_SUPPORT_ENABLED", "MPIR_CVAR_ENABLE_GPU", "MV2_USE_CUDA", "OMPI_MCA_opal_cuda_support")
_YES = {"1", "true", "yes", "on"}


def is_gpu_aware() -> bool:
    """Whether MPI takes buffers that lie on a CUDA device, as far as the environment tells."""
    own = os.environ.get(_OWN_WORD)
    said = [own] if own is not None else [os.environ.get(word, "") for word in _WORDS]
    return any(word.lower() in _YES for word in said)


class MpiRequest:
    """A send or receive that MPI has under way."""

    __slots__ = ("data", "handle", "sends", "source", "tag")

    def __init__(self, handle: MPI.Request, buf: np.ndarray, sends: bool = False) -> None:
        self.handle = handle
        self.sends = sends
        self.data = buf  # cut to what arrived when complete; kept alive until then
        self.source = self.tag = -1


class MpiTransport(Transport):
    """The ranks of an MPI communicator.

    Parameters
    ----------
    comm : MPI.Intracomm
        Tags of its messages are the transport's alone, except where two transports of one user share it on purpose.
    """

    window: float = 3

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self.takes_devices = is_gpu_aware()
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        limit = comm.Get_attr(MPI.TAG_UB)
        self._notice_tag = 32767 if limit is None else int(limit)
        self._statuses: list[list[MPI.Status]] = []  # to be used again; one a thread is in use
        self._unfinished: list[MpiRequest] = []
        self._unfinished_lock = threading.Lock()
        self._notices: dict[int, tuple[int, str]] = {}

    def calibrate(self) -> None:
        """Choose the size of segments by the slowest link between neighbours. Collective."""
        sent, received = np.zeros(_PROBE_NBYTES, np.uint8), np.empty(_PROBE_NBYTES, np.uint8)
        right, left = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        for _ in range(2):  # the first one also connects
            self._comm.Barrier()
            started = time.perf_counter()
            self._comm.Sendrecv([sent, MPI.BYTE], right, 0, [received, MPI.BYTE], left, 0)
            seconds = time.perf_counter() - started
        rate = _PROBE_NBYTES / self._comm.allreduce(seconds, MPI.MAX)
        self.segment_nbytes = next(nbytes for limit, nbytes in _SEGMENTS if rate <= limit)

    def isend(self, buf: np.ndarray, dest: int, tag: int) -> Request:
        wait_for(buf)  # MPI knows nothing of streams
        return MpiRequest(self._comm.Isend([buf, MPI.BYTE], dest, self._fold(tag)), buf, sends=True)

    def irecv(self, buf: np.ndarray, source: int, tag: int) -> Request:
        wait_for(buf)
        return MpiRequest(self._comm.Irecv([buf, MPI.BYTE], source, self._fold(tag)), buf)

    def wait_some(self, requests: Sequence[Request], timeout: float) -> list[int]:
        return self._poll(lambda: self._completed(requests), timeout)

    def _completed(self, requests: Sequence[Request]) -> list[int]:
        handles = [request.handle for request in requests]  # type: ignore[attr-defined]
        statuses = self._statuses.pop() if self._statuses else []
        statuses += [MPI.Status() for _ in range(len(handles) - len(statuses))]
        try:
            done = MPI.Request.Testsome(handles, statuses)
        except MPI.Exception as error:
            raise _translate(error, statuses) from error
        if done is None:  # none of them is active
            done = list(range(len(requests)))
        for i, status in zip(done, statuses, strict=False):
            self._arrived(requests[i], status)  # type: ignore[arg-type]
        self._statuses.append(statuses)
        return done

    def _poll(self, completed: Callable[[], list[int]], timeout: float) -> list[int]:
        """Call `completed` until it finds something, or `timeout` is over."""
        end = 0.0
        polls = 0
        while not (done := completed()):
            if timeout == 0:
                break
            polls += 1
            if polls < _POLLS_BEFORE_SLEEP:
                os.sched_yield()
                continue
            now = time.monotonic()
            end = end or now + timeout
            if now >= end:
                break
            time.sleep(_SLEEP_S)
        return done

    def cancel(self, requests: Sequence[Request]) -> None:
        for request in requests:
            handle = request.handle  # type: ignore[attr-defined]
            if handle != MPI.REQUEST_NULL:
                if not request.sends:  # type: ignore[attr-defined]
                    handle.Cancel()  # MPI-4 deprecates cancelling sends, and MPICH crashes on it
                self._keep(request)  # type: ignore[arg-type]

    def notify(self, sequence: int, text: str) -> None:
        message = np.frombuffer(_SEQUENCE.pack(sequence) + text.encode()[:1000], np.uint8)
        for dest in range(self.size):
            if dest != self.rank:
                handle = self._comm.Isend([message, MPI.BYTE], dest, self._notice_tag)
                self._keep(MpiRequest(handle, message))

    def notice(self, sequence: int) -> tuple[int, str] | None:
        status = MPI.Status()
        while (matched := self._comm.Improbe(MPI.ANY_SOURCE, self._notice_tag, status)) is not None:
            message = bytearray(status.Get_count(MPI.BYTE))
            matched.Recv([message, MPI.BYTE])
            number = _SEQUENCE.unpack_from(message)[0]
            self._notices[number] = (status.Get_source(), message[_SEQUENCE.size :].decode(errors="replace"))
        with self._unfinished_lock:
            self._unfinished = [request for request in self._unfinished if not request.handle.Test()]
        return self._notices.pop(sequence, None)

    def _keep(self, request: MpiRequest) -> None:
        """Keep the memory of a request that nobody waits for any more."""
        with self._unfinished_lock:
            self._unfinished.append(request)

    def _arrived(self, request: MpiRequest, status: MPI.Status) -> None:
        request.handle = MPI.REQUEST_NULL
        request.source = status.Get_source()
        request.tag = status.Get_tag()
        request.data = request.data[: status.Get_count(MPI.BYTE)]

    def close(self) -> None:
        # What nobody asked for must not wait for the next communicator that gets this one's number.
        self._comm.Barrier()
        status = MPI.Status()
        while (matched := self._comm.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)) is not None:
            matched.Recv([bytearray(status.Get_count(MPI.BYTE)), MPI.BYTE])
        self._comm.Free()

    def _fold(self, tag: int) -> int:
        # Wildcards are negative; the notices' own tag stays free.
        return tag if tag < 0 else tag % self._notice_tag


def _translate(error: MPI.Exception, statuses: list[MPI.Status]) -> Exception:
    codes = {error.Get_error_class(), *(MPI.Get_error_class(s.Get_error()) for s in statuses if s.Get_error() > 0)}
    if MPI.ERR_TRUNCATE in codes:
        return FrameError(TOO_LONG)
    return TransportError(f"MPI: {error.Get_error_string()}")
