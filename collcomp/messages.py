"""Point-to-point messages: one frame from one rank to another."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from collcomp.buffers import as_buffer
from collcomp.codecs import Codec, Identity, as_codec
from collcomp.devices import apart, mark
from collcomp.diagnosis import Records
from collcomp.errors import DeadlineError, FrameError
from collcomp.frame import Frame
from collcomp.policies import Call, unsuited
from collcomp.request import Request, Watcher
from collcomp.transports import Request as TransferRequest
from collcomp.transports import Transport

__all__ = ["Messages", "Received", "Transfer"]

_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Received:
    """Where a message came from, and how long it was (elements, and bytes decoded)."""

    source: int
    tag: int
    count: int
    nbytes: int


@dataclass(slots=True, eq=False)
class Transfer:
    """A send or receive under way, and what is left to do when its bytes have moved."""

    request: TransferRequest
    complete: Callable[[], Any]
    transport: Transport
    deadline: float
    started: float = field(default_factory=time.monotonic)

    def wait(self) -> Any:
        """Wait for the bytes, then complete."""
        while not self.transport.wait_some([self.request], _LOOK_S):
            if time.monotonic() - self.started > self.deadline:
                self.transport.cancel([self.request])
                raise DeadlineError(f"the message was not moved within {self.deadline:g} s")
        return self.complete()


class Messages:
    """Sends and receives frames under the caller's own tags.

    Parameters
    ----------
    transport : Transport
        May know wildcards for source and tag; they are passed on as they are.
    deadline : float
        Seconds that a blocking call waits.
    records : Records
    """

    def __init__(self, transport: Transport, deadline: float, records: Records) -> None:
        self._transport = transport
        self._deadline = deadline
        self._records = records
        self._watcher = Watcher(transport)
        self._streams = itertools.count(transport.rank, transport.size)

    def post_send(self, buf: Any, dest: int, tag: int, codec: str | Codec | None) -> Transfer:
        """Encode `buf` and start to send it."""
        started = time.perf_counter()
        values = as_buffer(buf, "buf").flat
        chosen = self._codec_for(values, codec)
        frame = np.empty(chosen.max_encoded_nbytes(values.size, values.dtype), np.uint8)
        nbytes = chosen.encode(values, frame, stream=next(self._streams))
        request = self._transport.isend(frame[:nbytes], dest, tag)

        def complete() -> None:
            seconds = time.perf_counter() - started
            self._records.add("send", "direct", chosen.spec, values.nbytes, nbytes, values.nbytes, seconds)

        return Transfer(request, complete, self._transport, self._deadline)

    def post_recv(self, buf: Any, source: int, tag: int, codec: str | Codec | None) -> Transfer:
        """Expect a frame; `buf` may be longer than what it holds."""
        started = time.perf_counter()
        buffer = as_buffer(buf, "buf", writable=True)
        chosen = self._codec_for(buffer.flat, codec)
        memory = np.empty(chosen.max_encoded_nbytes(buffer.flat.size, buffer.flat.dtype), np.uint8)
        request = self._transport.irecv(memory, source, tag)
        ready = mark(buffer.flat)

        def complete() -> Received:
            with apart(buffer.flat, ready):
                return decode()

        def decode() -> Received:
            frame = Frame.read(request.data)
            if frame.count > buffer.flat.size:
                raise FrameError(f"count: the message has {frame.count} elements, the buffer {buffer.flat.size}")
            if frame.dtype != buffer.flat.dtype:
                raise FrameError(f"dtype: the message is {frame.dtype}, the buffer {buffer.flat.dtype}")
            chosen.decode(frame, buffer.flat[: frame.count])
            buffer.commit()
            seconds = time.perf_counter() - started
            nbytes = frame.count * frame.dtype.itemsize
            self._records.add("recv", "direct", chosen.spec, nbytes, 0, 0, seconds)
            return Received(request.source, request.tag, frame.count, nbytes)

        return Transfer(request, complete, self._transport, self._deadline)

    def check(self, buf: Any, codec: str | Codec | None, name: str, *, writable: bool = False) -> None:
        """Raise what `post_send` and `post_recv` would of a wrong `buf` or `codec`."""
        self._codec_for(as_buffer(buf, name, writable=writable).flat, codec)

    def in_background(self, transfer: Transfer) -> Request:
        """A request that is over when `transfer` is, without anybody waiting for it."""
        return self._watcher.watch(transfer.request, transfer.complete, transfer.deadline)

    def close(self) -> None:
        """Release the transport."""
        self._transport.close()

    def _codec_for(self, values: np.ndarray, codec: str | Codec | None) -> Codec:
        chosen = Identity() if codec is None else as_codec(codec)
        call = Call("send", values.nbytes, values.dtype, None, self._transport.size, uniform=False)
        problem = unsuited(call, chosen)
        if problem is not None:
            raise TypeError(problem)
        chosen.check_device(values)
        return chosen
