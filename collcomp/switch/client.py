"""A worker's connection to a switch, over UDP."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from collcomp.errors import DeadlineError, FrameError, TransportError
from collcomp.kernels import cpu
from collcomp.kernels.cpu import packets, progress
from collcomp.switch.control import LONGEST_NBYTES, Control, brief
from collcomp.switch.datagrams import Datagrams, datagram_nbytes, datagram_socket, pack_address
from collcomp.switch.pool import aligned, views_of
from collcomp.switch.process import BUFFER_NBYTES
from collcomp.switch.programs import EXACT, PROGRAMS
from collcomp.switch.worker import begin, make_worker
from collcomp.units import parse_address

__all__ = ["SwitchClient"]

# Packets that are received, and that are sent, at once.
_BATCH = 32
# How often an answer to a control packet is asked for again.
_AGAIN_S = 0.1
# How long a switch may take to say who is late.
_STATUS_S = 1.0
# How often the caller's `check` is called.
_LOOK_S = 0.05
# What the system may count for a datagram of that size in the socket's buffer.
_COST_NBYTES = 18 << 10


class SwitchClient:
    """One rank of a job that sums through a switch.

    Parameters
    ----------
    address : str
        ``"HOST:PORT"`` of the switch.
    job : int
        A number below 2**63 that all ranks know and no other job has.
    rank, size : int
    slots : int
        Packets that are to be under way; the switch may have room for fewer.
    deadline : float
        Seconds in which something has to arrive.
    check : callable
        Called some twenty times a second while this waits; what it raises ends the waiting.

    Raises
    ------
    TransportError
        There is no switch, or it refuses.
    DeadlineError
        Not all ranks have joined in time; it names those that are missing.
    """

    def __init__(
        self,
        address: str,
        job: int,
        rank: int,
        size: int,
        *,
        slots: int = 32,
        deadline: float,
        check: Callable[[], None],
    ) -> None:
        self._address = address
        self._job = job
        #: Whether an operation has succeeded, for which all ranks had to join.
        self.proven = False
        host, port = parse_address(address, "switch")
        self._socket = datagram_socket("", 0, BUFFER_NBYTES)
        # Programs that end, and communicators that are forgotten, leave too.
        self._leave = weakref.finalize(self, _leave, self._socket, job, "another rank has left the job")
        try:
            self._socket.connect((socket.inet_ntoa(pack_address(host, port)[4:8].tobytes()), port))
            largest = min(datagram_nbytes(host, port) - packets.HEADER_NBYTES, packets.LARGEST_NBYTES)
            # Sums of all slots may be on their way at once.
            slots = min(slots, max(1, self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // _COST_NBYTES))
            room = aligned(packets.HEADER_NBYTES + max(largest, LONGEST_NBYTES)).size
            self._incoming = Datagrams(_BATCH, room)
            self._outgoing = Datagrams(_BATCH, 8)
            self._headers = np.zeros((_BATCH, packets.HEADER_WORDS), np.uint64)
            self._cursor = np.zeros(2, np.int64)
            self._kernels = cpu.load("switching")
            self._worker = make_worker(EXACT, job, 0, 1, size)
            self._exchange(0.0)  # compiles, before anybody waits for this rank; there is nothing to be sent
            welcome = self._join(Control.join(job, size, [rank], slots, largest, largest // 2), deadline, check)
            terms = _terms(address, welcome.body or {}, slots, largest)
            self.program, number, slots, self.payload_nbytes, self.floats = terms
        except BaseException:
            self.close(f"rank {rank} could not join")
            raise
        self._worker = make_worker(self.program, job, number, slots, size)

    def reduce(
        self,
        send: np.ndarray,
        recv: np.ndarray,
        lanes: int,
        epoch: int,
        signature: int,
        *,
        deadline: float,
        check: Callable[[], None],
    ) -> int:
        """Have `send` of all ranks combined into `recv` of all.

        Parameters
        ----------
        send, recv : ndarray of uint8
            Contiguous; they may be the same memory.
        lanes : int
            What the elements are and how they are combined, see `collcomp.kernels.cpu.packets`.
        epoch : int
            Number of the operation, higher than that of the one before.
        signature : int
            32 bits that tell calls apart.

        Returns
        -------
        int
            Bytes that were sent, in packets with their headers.

        Raises
        ------
        FrameError
            The ranks' calls differ, or a rank gave up.
        DeadlineError
            Nothing arrived in time; it names the ranks that the switch waits for.
        TransportError
            The switch cannot be reached any more, or does not know this job.
        """
        width = packets.WIDTHS[lanes]
        most = self.payload_nbytes // width
        if lanes <= packets.BFLOAT16:
            most = min(most, self.floats)
        worker = begin(self._worker, send, recv, lanes, most * width, epoch, signature)
        self._worker = worker
        loops, now = self._kernels, time.monotonic()
        cpu.load("worker").start(worker, now)
        moved, missing = now, -1
        while True:
            status = self._exchange(now + _LOOK_S)
            if status == loops.COMPLETE:
                self.proven = True
                return int(worker.facts[progress.SENT_NBYTES])
            if status < 0:
                raise TransportError(f"switch {self._address}: {_reason(-status)}")
            if status == loops.CONTROL:
                self._heed(Control.unpack(self._incoming.received(int(self._cursor[1]) - 1)), epoch)
            now = time.monotonic()
            if worker.facts[progress.MISSING] != missing:
                missing, moved = worker.facts[progress.MISSING], now
            check()
            if now - moved > deadline:
                raise DeadlineError(self._who_is_late(epoch, deadline))

    def _exchange(self, until: float) -> int:
        return self._kernels.exchange(
            self._socket.fileno(), self._worker, views_of(self._incoming.buffers), self._incoming.messages,
            self._cursor, self._outgoing.messages, self._outgoing.iovecs, self._headers, until,
        )  # fmt: skip

    @property
    def sent(self) -> int:
        """Packets that the last operation sent."""
        return int(self._worker.facts[progress.SENT])

    @property
    def resent(self) -> int:
        """How many of them it sent again."""
        return int(self._worker.facts[progress.RESENT])

    def give_up(self, epoch: int, text: str) -> None:
        """Tell the other ranks that this one has left operation `epoch`."""
        with contextlib.suppress(TransportError):
            self._say(Control(packets.GIVE_UP, self._job, 0, epoch, body={"text": brief(text)}))

    def close(self, why: str | None = None) -> None:
        """Leave the job; when all ranks have, the switch gives its slots to others."""
        if why is None:
            self._leave()
        elif self._leave.detach() is not None:
            _leave(self._socket, self._job, why)

    def _heed(self, control: Control | None, epoch: int) -> None:
        """Raise what the switch says of this operation."""
        if control is None or control.job != self._job or control.kind != packets.FAILURE:
            return
        text = f"switch {self._address}: {(control.body or {}).get('text', '')}"
        if control.epoch == 0:
            raise TransportError(text)
        if control.epoch == epoch:  # a rank that has all sums of this one may have failed in the next
            raise FrameError(text)

    def _who_is_late(self, epoch: int, deadline: float) -> str:
        slots = np.flatnonzero(self._worker.chunks >= 0)
        slot = int(slots[np.argmin(self._worker.chunks[slots])])
        question = Control(packets.STATUS, self._job, 0, epoch, int(self._worker.chunks[slot]), slot)
        for answer in self._ask(question, _STATUS_S, lambda: None):
            if answer.kind == packets.MISSING:
                return f"no sum has come from the switch {self._address} for {deadline:g} s: {_late(answer)}"
        return f"the switch {self._address} has not answered for {deadline:g} s"

    def _join(self, wishes: Control, deadline: float, check: Callable[[], None]) -> Control:
        """Ask to be let into the job until all ranks are there; the switch's terms."""
        late = "it has not answered"
        for answer in self._ask(wishes, deadline, check):
            if answer.kind == packets.WELCOME:
                return answer
            if answer.kind == packets.REFUSAL:
                raise TransportError(f"switch {self._address}: {(answer.body or {}).get('text', '')}")
            if answer.kind == packets.MISSING:
                late = _late(answer)
        raise DeadlineError(f"the switch {self._address} could not be joined within {deadline:g} s: {late}")

    def _ask(self, question: Control, seconds: float, check: Callable[[], None]) -> Iterator[Control]:
        """Send a control packet, again and again for so long, and yield what the switch says of the job meanwhile."""
        now = asked = time.monotonic()
        end = now + seconds
        while now < end:
            if now >= asked:
                self._say(question)
                asked = now + _AGAIN_S
            self._socket.settimeout(min(asked, end) - now)
            try:
                answer = Control.unpack(np.frombuffer(self._socket.recv(1 << 16), np.uint8))
            except TimeoutError:
                answer = None
            except OSError as error:
                raise TransportError(f"switch {self._address}: {_reason(error.errno)}") from None
            check()
            if answer is not None and answer.job == self._job:
                yield answer
            now = time.monotonic()

    def _say(self, control: Control) -> None:
        try:
            self._socket.send(control.pack().tobytes())
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:  # of the packet before; the next answer tells
                raise TransportError(f"switch {self._address}: {_reason(error.errno)}") from None


def _leave(sock: socket.socket, job: int, why: str) -> None:
    with contextlib.suppress(OSError):
        sock.send(Control(packets.LEAVE, job, body={"text": brief(why)}).pack().tobytes())
    sock.close()


def _late(answer: Control) -> str:
    """For whom a switch waits, by its answer MISSING."""
    ranks = (answer.body or {}).get("ranks")
    numbers = [rank for rank in ranks if isinstance(rank, int)] if isinstance(ranks, list) else []
    return f"it waits for rank {', '.join(map(str, numbers))}" if numbers else "it does not say for whom it waits"


def _terms(address: str, body: dict[str, Any], most_slots: int, most_nbytes: int) -> tuple[Any, int, int, int, int]:
    """What a WELCOME says, checked."""
    program = PROGRAMS.get(str(body.get("program")))
    numbers: list[Any] = [body.get(name) for name in ("worker", "slots", "payload", "floats")]
    if program is None or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise TransportError(f"switch {address}: speaks another version of this protocol")
    worker, slots, payload, floats = numbers
    if not 0 < slots <= most_slots or not 8 <= payload <= most_nbytes or not floats or worker >= 1 << 16:
        raise TransportError(f"switch {address}: offers {slots} slots of {payload} bytes")
    return program, worker, slots, payload, floats


def _reason(code: int | None) -> str:
    if code == errno.ECONNREFUSED:
        return "nothing listens there"
    return os.strerror(code or 0)
