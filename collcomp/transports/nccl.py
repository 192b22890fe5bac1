"""Bytes between GPUs, by NCCL.

NCCL knows no tags, and two ranks that begin their transfers in different orders wait for each other for ever. So
transfers are done in rounds that all ranks come to. In each, every rank tells every other by a host's transport what it
has for it; then all that was told is moved in one group. The operation is over after a round in which nobody had
anything, and nobody expected anything.

Sources: NCCL user guide, "Point-to-point communication" and "Error handling and communicator abort"; Valiant, "A
bridging model for parallel computation", CACM 1990.
"""

from __future__ import annotations

import struct
import time
from collections import defaultdict, deque
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from collcomp import devices
from collcomp.errors import FrameError, TransportError
from collcomp.transports.base import CHANNELS, TOO_LONG, Request, Transport

__all__ = ["NcclTransport", "Transfer", "nccl"]

# The channel of an operation that rounds are told by; the highest, which no algorithm uses.
_TOLD = CHANNELS - 1
# What is told: whether the rank is through, and how many messages it has; of each the tag and the bytes.
_HEAD, _ENTRY = struct.Struct("<?7xQ"), struct.Struct("<QQ")
_MOST_MESSAGES = 4096
# Calls whose rounds are remembered.
_MOST_CALLS = 1024
_SLEEP_S = 20e-6
# How long a rank that has other things to do waits for a round to end.
_PATIENCE_S = 0.5


def nccl() -> Any:
    """CuPy's module of NCCL; None where there is no NCCL."""
    module = devices.cupy().cuda.nccl
    return module if module.available else None


@dataclass(slots=True, eq=False)
class Transfer:
    """A send to a rank, or a receive from it: `source` is either."""

    data: Any
    source: int
    tag: int
    done: bool = False
    error: Exception | None = None


@dataclass(slots=True)
class _Told:
    """What one rank has for another in a round."""

    through: bool
    messages: list[tuple[int, int]]

    def pack(self) -> np.ndarray:
        data = _HEAD.pack(self.through, len(self.messages)) + b"".join(_ENTRY.pack(*one) for one in self.messages)
        return np.frombuffer(data, np.uint8).copy()

    @classmethod
    def unpack(cls, data: np.ndarray) -> _Told:
        told = data.tobytes()
        through, count = _HEAD.unpack_from(told)
        return cls(through, [_ENTRY.unpack_from(told, _HEAD.size + i * _ENTRY.size) for i in range(count)])


class _Round(NamedTuple):
    told: dict[int, _Told]
    heard: dict[int, _Told]


class NcclTransport(Transport):
    """The GPUs of the ranks of another transport, which carries what the host has to say.

    Its operations have to be called in the same order on all ranks, one after another. What lies on the host is left
    to the other transport.

    Parameters
    ----------
    host : Transport
    unique_id : bytes
        That of NCCL's communicator, equal on all ranks.
    """

    # Encoding is ten times as fast as NVLink: large pieces, because each costs launches.
    segment_nbytes = (64 << 20, 256 << 20)
    takes_devices = True

    def __init__(self, host: Transport, unique_id: bytes) -> None:
        self.rank, self.size = host.rank, host.size
        self._host = host
        self._comm: Any = nccl().NcclCommunicator(self.size, unique_id, self.rank)
        self._own = devices.new_stream()
        self._peers = [rank for rank in range(self.size) if rank != self.rank]
        self._sends: dict[int, list[Transfer]] = defaultdict(list)
        self._receives: dict[tuple[int, int], deque[Transfer]] = defaultdict(deque)
        # Messages that came before anybody asked for them.
        self._early: dict[tuple[int, int], deque[Any]] = defaultdict(deque)
        self._round: Iterator[bool] | None = None
        self._telling: list[Request] = []
        self._moving = False
        self._over = False
        # What was told and heard in each round of the operation under way, and of others, for graphs to repeat.
        self._rounds: list[_Round] = []
        self._known: dict[Hashable, list[_Round]] = {}
        self._before: list[_Round] = []

    def begin(self, call: Hashable) -> None:
        """The next operation is such a `call`: while a graph is captured, its rounds are those of the last such one."""
        capturing = devices.current_stream().is_capturing()
        if capturing and call not in self._known:
            raise ValueError("capture: make the same call once on this communicator before it is captured in a graph")
        self._before = self._known[call] if capturing else []
        self._rounds = []
        if not capturing:
            self._known[call] = self._rounds
            if len(self._known) > _MOST_CALLS:
                del self._known[next(iter(self._known))]

    # ------------------------------------------------------------------ transfers

    def isend(self, buf: np.ndarray, dest: int, tag: int) -> Request:
        if not devices.on_device(buf):
            return self._host.isend(buf, dest, tag)
        transfer = Transfer(buf, dest, tag)
        self._sends[dest].append(transfer)
        return transfer

    def irecv(self, buf: np.ndarray, source: int, tag: int) -> Request:
        if not devices.on_device(buf):
            return self._host.irecv(buf, source, tag)
        transfer = Transfer(buf, source, tag)
        early = self._early.get((source, tag))
        if early:
            message = early.popleft()
            self._land(transfer, message.size)
            if transfer.error is None:
                transfer.data[...] = message
            transfer.done = True
        else:
            self._receives[source, tag].append(transfer)
        return transfer

    def wait_some(self, requests: Sequence[Request], timeout: float) -> list[int]:
        if not any(isinstance(request, Transfer) for request in requests):
            return self._host.wait_some(requests, timeout)
        sequence = requests[0].tag // CHANNELS
        if timeout > 0:
            done = self._done(requests)
            if not done:
                self._work(sequence, False, timeout)
                done = self._done(requests)
            return done
        # Between kernels. Which messages go in which round must not depend on how fast others are, or no graph could
        # repeat it: the round that was begun the last time ends, and one is begun with what there is now.
        if self._round is not None:
            self._go_on(_PATIENCE_S)
        if self._round is None:
            self._begin_round(sequence, False)
        return self._done(requests)

    def settled(self, sequence: int, timeout: float) -> bool:
        if not self._over:
            self._work(sequence, True, timeout)
        over, self._over = self._over, False
        return over

    def _work(self, sequence: int, through: bool, timeout: float) -> None:
        """Do a round, or what is left of one, for `timeout` seconds at most."""
        if self._round is None:
            self._begin_round(sequence, through)
        self._go_on(timeout)

    def _done(self, requests: Sequence[Request]) -> list[int]:
        done = [i for i, request in enumerate(requests) if request.done]  # type: ignore[attr-defined]
        for i in done:
            error = requests[i].error  # type: ignore[attr-defined]
            if error is not None:
                raise error
        return done

    # ------------------------------------------------------------------ rounds

    def _begin_round(self, sequence: int, through: bool) -> None:
        """Begin a round of operation `sequence` with what is to be sent now."""
        self._round = self._steps(sequence, through)
        next(self._round)

    def _go_on(self, timeout: float) -> None:
        """Work on the round that was begun until it is done, for `timeout` seconds at most."""
        assert self._round is not None
        end = time.monotonic() + timeout
        for moved in self._round:
            if not moved:
                if time.monotonic() > end:
                    return
                time.sleep(_SLEEP_S)
        self._round = None

    def _steps(self, sequence: int, through: bool) -> Iterator[bool]:
        """A round, step by step; yields whether there was anything to do."""
        # What is sent from now on is for the next round.
        sends = {peer: self._sends.pop(peer, []) for peer in self._peers}
        told = {peer: _Told(through, [(s.tag % CHANNELS, s.data.size) for s in sends[peer]]) for peer in self._peers}
        tag = sequence * CHANNELS + _TOLD
        hearing = {} if devices.current_stream().is_capturing() else self._tell(tag, told)
        yield True
        heard = (yield from self._hear(hearing)) if hearing else self._as_before(told)
        self._rounds.append(_Round(told, heard))
        base = sequence * CHANNELS
        self._moving = True
        received = [self._receive(peer, base + tag, nbytes) for peer in heard for tag, nbytes in heard[peer].messages]
        self._move([send for peer in self._peers for send in sends[peer]], received)
        yield from self._moved()
        self._moving = False
        for transfer in (*received, *(send for queue in sends.values() for send in queue)):
            transfer.done = True
        self._over = through and all(one.through for one in heard.values())

    def _tell(self, tag: int, told: dict[int, _Told]) -> dict[int, Request]:
        """Begin to tell every rank what there is for it; what the others tell will be the data of these requests."""
        room = _HEAD.size + _MOST_MESSAGES * _ENTRY.size
        hearing = {peer: self._host.irecv(np.empty(room, np.uint8), peer, tag) for peer in self._peers}
        self._telling = [*hearing.values()]
        self._telling += [self._host.isend(told[peer].pack(), peer, tag) for peer in self._peers]
        return hearing

    def _hear(self, hearing: dict[int, Request]) -> Generator[bool, None, dict[int, _Told]]:
        while self._telling:
            done = self._host.wait_some(self._telling, 0.0)
            for i in sorted(done, reverse=True):
                del self._telling[i]
            yield bool(done)
        return {peer: _Told.unpack(request.data) for peer, request in hearing.items()}

    def _as_before(self, told: dict[int, _Told]) -> dict[int, _Told]:
        """What the others tell in a round that is captured: what they told when the same call was last made."""
        number = len(self._rounds)
        if number >= len(self._before) or self._before[number].told != told:
            raise ValueError("capture: frames have other sizes than when the same call was made before")
        return self._before[number].heard

    def _receive(self, source: int, tag: int, nbytes: int) -> Transfer:
        """Where a message goes: to whoever asked for it, or to memory of its own."""
        waiting = self._receives.get((source, tag))
        if waiting:
            transfer = waiting.popleft()
            self._land(transfer, nbytes)
            return transfer
        message = devices.allocate(nbytes)
        self._early[source, tag].append(message)
        return Transfer(message, source, tag)

    def _land(self, transfer: Transfer, nbytes: int) -> None:
        if nbytes <= transfer.data.size:
            transfer.data = transfer.data[:nbytes]
            return
        transfer.error = FrameError(TOO_LONG)
        transfer.data = devices.allocate(nbytes)  # it has to be taken all the same

    def _move(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        module, comm, stream = nccl(), self._alive(), self._stream().ptr
        try:
            module.groupStart()
            try:
                for one, call in [*((send, comm.send) for send in sends), *((one, comm.recv) for one in receives)]:
                    if one.data.size:
                        call(one.data.data.ptr, one.data.size, module.NCCL_UINT8, one.source, stream)
            finally:
                module.groupEnd()
        except module.NcclError as error:
            raise TransportError(f"NCCL: {error}") from error

    def _stream(self) -> Any:
        """Where transfers go: beside the stream that encodes and decodes, after what it was given so far."""
        current = devices.current_stream()
        if current.is_capturing():
            return current
        self._own.wait_event(current.record())
        return self._own

    def _moved(self) -> Iterator[bool]:
        """Steps until what the stream was given is done; none in a graph, where it is not done now."""
        if devices.current_stream().is_capturing():
            return
        event = self._own.record()
        while not devices.is_done(event):
            try:
                self._alive().check_async_error()
            except nccl().NcclError as error:
                raise TransportError(f"NCCL: {error}") from error
            yield False

    def _alive(self) -> Any:
        if self._comm is None:
            raise TransportError("NCCL: its communicator was given up after an operation that failed; make a new one")
        return self._comm

    # ------------------------------------------------------------------ the rest

    def cancel(self, requests: Sequence[Request]) -> None:
        """Give up the operation; NCCL's communicator with it where transfers are under way, which it cannot give up."""
        self._host.cancel([*self._telling, *(r for r in requests if not isinstance(r, Transfer))])
        if self._moving and self._comm is not None:
            self._comm.abort()
            self._comm = None
        self._round, self._telling, self._moving, self._over = None, [], False, False
        for queues in (self._sends, self._receives, self._early):
            queues.clear()

    def notify(self, sequence: int, text: str) -> None:
        self._host.notify(sequence, text)

    def notice(self, sequence: int) -> tuple[int, str] | None:
        return self._host.notice(sequence)

    def close(self) -> None:
        """Destroy NCCL's communicator; the host's transport is left alone."""
        if self._comm is not None:
            self._comm.destroy()
            self._comm = None
