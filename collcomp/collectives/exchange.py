"""One operation's traffic: values go in, are encoded and sent; frames arrive, are checked and decoded.

Algorithms are written in terms of an `Exchange`; they see ranks and slices of arrays, never requests or headers.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from collcomp.codecs import Codec, Identity, Nonzeros, Packed
from collcomp.collectives.encoder import Encoder
from collcomp.collectives.plan import Plan
from collcomp.devices import empty, is_capturing, on_device, share_memory, to_host
from collcomp.errors import DeadlineError, FrameError, TransportError
from collcomp.feedback import Memory
from collcomp.frame import HEADER_NBYTES, Envelope, Frame
from collcomp.scratch import Scratch
from collcomp.switch.port import SwitchPort
from collcomp.transports.base import CHANNELS, Request, Transport

__all__ = ["LOSSLESS", "VERBATIM", "Exchange", "Incoming", "Outgoing"]

#: The codec of what an algorithm sends losslessly, whatever the operation's codec is.
LOSSLESS = Nonzeros()
#: That of values that are sent from where they lie, whatever the operation's codec is.
VERBATIM = Identity()

# How often a rank that waits looks for notices and at the clock.
_LOOK_S = 0.05
# Every frame between two ranks has a tag of its own, by operation and channel: frames may be sent in another order than
# they are expected in, and what a failed operation left behind is never taken for another's.
# Channels of one round of an operation that has several, of which there are 8 at most.
_CHANNELS_A_ROUND = 1 << 13
_SEGMENTS_PER_PART = 16


@dataclass(slots=True, eq=False)
class Incoming:
    """A frame that is expected, or has arrived."""

    source: int
    count: int
    total: int
    #: That of its frame.
    codec: Codec
    requests: list[Request] = field(default_factory=list)
    #: Scratch memory that verbatim values land in, where the caller named no other place.
    landed: np.ndarray | None = None
    frame: Frame | None = None


@dataclass(slots=True, eq=False)
class Outgoing:
    """An encoded frame, ready to be sent to any number of ranks."""

    parts: tuple[np.ndarray, ...]
    memory: tuple[np.ndarray, ...]
    count: int
    unsent: int = 0


@dataclass(slots=True, eq=False)
class _Sending:
    """A frame on its way to one rank, or waiting for its turn."""

    outgoing: Outgoing
    dest: int
    channel: int
    missing: int


@dataclass(slots=True, eq=False)
class _Expected:
    """Frames that an action waits for."""

    incoming: Sequence[Incoming]
    action: Callable[[], None]
    missing: int


class Exchange(Encoder):
    """The traffic of one operation on one rank.

    Parameters
    ----------
    transport : Transport
    plan : Plan
    envelope : Envelope
        What every frame of this operation says of its message.
    scratch : Scratch
        Memory for frames; nothing else may use it until `finish` has returned.
    deadline : float
        Seconds without anything arriving or leaving after which the operation fails.
    draw : int
        What codecs draw random numbers by, equal on all ranks and different for each operation.
    memory : Memory, optional
        What is remembered of the whole message, for codecs that remember.
    measure_error : bool
        Sum up the squared error of what this rank encodes.
    switch : SwitchPort, optional
        The way to a switch that sums.
    beside : ndarray, optional
        Values lie where this array does: on the host, or on a device. Frames lie where `scratch` does.
    """

    def __init__(
        self,
        transport: Transport,
        plan: Plan,
        envelope: Envelope,
        scratch: Scratch,
        *,
        deadline: float,
        draw: int = 0,
        memory: Memory | None = None,
        measure_error: bool = False,
        switch: SwitchPort | None = None,
        beside: np.ndarray | None = None,
    ) -> None:
        super().__init__(plan.codec, envelope, transport.rank, transport.size, draw, memory, measure_error)
        self.transport = transport
        self.switch = switch
        self.order = plan.order or tuple(range(transport.size))
        self.groups = plan.groups
        #: The other ranks, each rank beginning with its right neighbour, so that not all send to one at once.
        self.peers = [(self.rank + i) % self.size for i in range(1, self.size)]
        #: Bytes that this rank sent, and what they would have been without a codec.
        self.wire_nbytes = 0
        self.raw_nbytes = 0
        # Frames and headers are lent; values that are sent from where they lie are not in memory that can be.
        self._lends = transport.shares_memory
        self._beside = beside
        self._capturing = is_capturing(beside)
        self._scratch = scratch
        self.deadline = deadline
        self._tag = envelope.sequence * CHANNELS
        # What is under way, and beside each request who waits for it.
        self._requests: list[Request] = []
        self._owners: list[_Sending | _Expected] = []
        # What waits for its turn, by destination, and how many frames do not.
        self._queues: dict[int, deque[_Sending]] = defaultdict(deque)
        self._under_way: dict[int, int] = defaultdict(int)

    @contextmanager
    def nested(self, array: np.ndarray, number: int) -> Iterator[Exchange]:
        """The exchange of round `number` of this operation, in which the integers or floats of `array` travel.

        It is finished when the block ends.
        """
        assert number < CHANNELS // _CHANNELS_A_ROUND, "more rounds than channels"
        plan = Plan("direct", Identity() if array.dtype.kind == "f" or on_device(array) else Packed())
        envelope = replace(self.envelope, dtype=array.dtype, total=array.size)
        scratch = self._scratch
        if scratch.on_device and not on_device(array):
            scratch = Scratch(self.transport.allocate)
        inner = Exchange(self.transport, plan, envelope, scratch, deadline=self.deadline, beside=array)
        inner._tag += number * _CHANNELS_A_ROUND
        try:
            yield inner
            inner.finish()
        except BaseException:
            self._requests, self._owners = inner._requests, inner._owners  # to be abandoned with this exchange
            raise
        self.wire_nbytes += inner.wire_nbytes

    # ------------------------------------------------------------------ cutting

    def segments(self, part: slice) -> list[slice]:
        """`part` in pieces that overlap on their way; one empty piece when it is empty, so that every part has a frame.

        Sender and receiver both know the part, and so cut it alike.
        """
        if self.codec.whole or self.codec.sparse or part.start >= part.stop:
            return [part]
        smallest, largest = self.transport.segment_nbytes
        nbytes = (part.stop - part.start) * self.envelope.dtype.itemsize // _SEGMENTS_PER_PART
        count = min(max(nbytes, smallest), largest) // self.envelope.dtype.itemsize
        count = max(count // self.codec.block, 1) * self.codec.block
        return [slice(i, min(i + count, part.stop)) for i in range(part.start, part.stop, count)]

    def array(self, count: int) -> np.ndarray:
        """Scratch values of the working dtype, to be given back by `recycle` as soon as may be."""
        if on_device(self._beside):
            return empty(count, self.dtype, self._beside)
        return self._scratch.array(count, self.dtype)

    def recycle(self, values: np.ndarray) -> None:
        """Take back what `array` gave: memory that is used again at once is still in the cache."""
        if not on_device(values):
            self._scratch.give(values)

    # ------------------------------------------------------------------ sending

    def encode(
        self,
        values: np.ndarray,
        place: int,
        *,
        part: slice | None = None,
        kept: np.ndarray | None = None,
        total: int | None = None,
        divisor: int = 1,
    ) -> Outgoing:
        """Encode `values`.

        Parameters
        ----------
        values : ndarray
            Of the message's or the working dtype.
        place : int
            A number for what is encoded, its own on this rank in this operation: stochastic codecs draw by it, so that
            results do not depend on the order in which frames happen to arrive.
        part : slice, optional
            Where the values lie in the message: the residual there is added and updated.
        kept : ndarray, optional
            Gets what the receivers will decode.
        total : int, optional
            Elements of the message between two ranks, where it is not the operation's own.
        divisor : int
            What `values` were divided by; residuals are those of operands.
        """
        envelope = self.envelope if total is None else replace(self.envelope, total=total)
        if self.codec.verbatim:
            return self._wrap(values, kept, envelope, self.codec)
        memory = self._scratch.take(self.codec.max_encoded_nbytes(values.size, self.envelope.dtype))
        nbytes = self.encode_into(memory, values, place, envelope, part, kept, divisor)
        return Outgoing((memory[:nbytes],), (memory,), values.size)

    def encode_lossless(
        self, values: np.ndarray, indices: np.ndarray | None = None, count: int | None = None
    ) -> Outgoing:
        """Encode `values` (working dtype), or `count` elements that are zero but for them, at ascending `indices`.

        Such a frame is for a `post` with the codec `LOSSLESS`.
        """
        if count is None:
            count = values.size
        memory = self._scratch.take(LOSSLESS.max_encoded_nbytes(count, self.dtype))
        envelope = replace(self.envelope, dtype=self.dtype)
        if indices is None:
            nbytes = LOSSLESS.encode(values, memory, envelope)
        else:
            nbytes = LOSSLESS.encode_selection(indices, values, count, memory, envelope)
        return Outgoing((memory[:nbytes],), (memory,), count)

    def encode_verbatim(self, values: np.ndarray) -> Outgoing:
        """Have `values` (of the message's dtype) sent from where they lie, to a `post` with the codec `VERBATIM`."""
        return self._wrap(values, None, self.envelope, VERBATIM)

    def encode_sum(
        self, own: np.ndarray, place: int, incoming: Sequence[Incoming], kept: np.ndarray | None, divisor: int
    ) -> Outgoing | None:
        """Encode the sum of `own` and of these frames, in rank order, in one pass, where the codec has one."""
        memory = self._scratch.take(self.codec.max_encoded_nbytes(own.size, self.envelope.dtype))
        frames = {one.source: self.frame(one) for one in incoming}
        nbytes = self.encode_sum_into(memory, own, place, frames, kept, divisor)
        if nbytes is None:
            self._scratch.give(memory)
            return None
        return Outgoing((memory[:nbytes],), (memory,), own.size)

    def send(self, outgoing: Outgoing, dests: int | Sequence[int], channel: int) -> None:
        """Start to send a frame to one rank or several; `channel` tells it from their other frames from this rank."""
        for dest in [dests] if isinstance(dests, int) else dests:
            outgoing.unsent += 1
            self._queues[dest].append(_Sending(outgoing, dest, channel, len(outgoing.parts)))
            self._start_sends(dest)
            self.wire_nbytes += sum(part.size for part in outgoing.parts)
            self.raw_nbytes += outgoing.count * self.envelope.dtype.itemsize

    def _start_sends(self, dest: int) -> None:
        queue = self._queues[dest]
        while queue and self._under_way[dest] < self.transport.window:
            sending = queue.popleft()
            self._under_way[dest] += 1
            tag = self._tag + sending.channel
            head, *values = sending.outgoing.parts
            self._requests.append((self.transport.lend if self._lends else self.transport.isend)(head, dest, tag))
            self._requests.extend(self.transport.isend(part, dest, tag) for part in values)
            self._owners.extend([sending] * len(sending.outgoing.parts))

    def _sent(self, sending: _Sending) -> None:
        sending.missing -= 1
        if sending.missing:
            return
        self._under_way[sending.dest] -= 1
        self._start_sends(sending.dest)
        outgoing = sending.outgoing
        outgoing.unsent -= 1
        if not outgoing.unsent:
            for memory in outgoing.memory:
                self._scratch.give(memory)

    def frame_of(self, outgoing: Outgoing) -> Frame:
        """The frame as its receivers will see it; its memory is kept until the operation is over."""
        outgoing.memory = ()
        return Frame.read(*outgoing.parts)

    def _wrap(self, values: np.ndarray, kept: np.ndarray | None, envelope: Envelope, codec: Codec) -> Outgoing:
        """Header and values apart: the values are sent from where they lie."""
        if values.dtype != envelope.dtype:
            values = values.astype(envelope.dtype)
        if kept is not None and not share_memory(kept, values):
            kept[...] = values
        head = self._scratch.take(HEADER_NBYTES)
        codec.write_header(head, envelope, values.size, values.nbytes)
        if on_device(values) and not self._scratch.on_device and self.size > 1:
            staged = self._scratch.take(values.nbytes)
            to_host(values.view(np.uint8), staged)
            return Outgoing((head, staged), (head, staged), values.size)
        return Outgoing((head, values.view(np.uint8)), (head,), values.size)

    # ------------------------------------------------------------------ receiving

    def post(
        self,
        source: int,
        count: int,
        channel: int,
        *,
        into: np.ndarray | None = None,
        total: int | None = None,
        codec: Codec | None = None,
    ) -> Incoming:
        """Expect a frame of `count` elements from `source`.

        `into` is where verbatim values may land directly; `total` is the message's length as in `encode`; `codec` is
        the frame's where it is not the operation's: `VERBATIM`, or `LOSSLESS` with values of the working dtype.
        """
        fits = into is not None and into.dtype == self.envelope.dtype
        fits = fits and on_device(into) == self._scratch.on_device
        one = Incoming(source, count, self.envelope.total if total is None else total, codec or self.codec)
        tag = self._tag + channel
        if self._lends:
            one.requests.append(self.transport.borrow(source, tag))
        else:
            nbytes = HEADER_NBYTES if one.codec.verbatim else one.codec.max_encoded_nbytes(count, self._dtype_of(one))
            one.requests.append(self.transport.irecv(self._scratch.take(nbytes), source, tag))
        if one.codec.verbatim:
            if not fits:
                one.landed = self._scratch.take(count * self.envelope.dtype.itemsize)
            room = into.view(np.uint8) if one.landed is None else one.landed  # type: ignore[union-attr]
            one.requests.append(self.transport.irecv(room, source, tag))
        return one

    def when(self, incoming: Sequence[Incoming], action: Callable[[], None]) -> None:
        """Have `action` called once all these frames are there and checked; their memory is given back after it."""
        expected = _Expected(incoming, action, sum(len(one.requests) for one in incoming))
        for one in incoming:
            self._requests.extend(one.requests)
            self._owners.extend([expected] * len(one.requests))
        if not expected.missing:
            action()

    def frame(self, incoming: Incoming) -> Frame:
        """The frame, in an action that waited for it."""
        assert incoming.frame is not None
        return incoming.frame

    def decode(self, incoming: Incoming, dst: np.ndarray) -> None:
        """Write a frame's values to `dst`; nothing to do where they landed there already."""
        frame = self.frame(incoming)
        if not (incoming.codec.verbatim and share_memory(frame.payload, dst)):
            incoming.codec.decode(frame, dst)

    def forward(self, incoming: Incoming, dests: int | Sequence[int], channel: int) -> None:
        """Send a frame on, as it came."""
        if not isinstance(dests, int) and not dests:
            return
        parts = [request.data for request in incoming.requests]
        memory: tuple[np.ndarray, ...] = ()
        if self._lends:  # its sender may use that memory again as soon as this rank has read it
            copy = self._scratch.take(parts[0].size)
            copy[...] = parts[0]
            parts[0], memory = copy, (copy,)
        incoming.landed = None  # it is still being sent when this frame's action is over
        self.send(Outgoing(tuple(parts), memory, incoming.count), dests, channel)

    def _dtype_of(self, incoming: Incoming) -> np.dtype:
        of_message = incoming.codec is self.codec or incoming.codec.verbatim
        return self.envelope.dtype if of_message else self.dtype

    def _check(self, incoming: Incoming) -> Frame:
        if self._capturing:
            *_, payload = (request.data for request in incoming.requests)
            payload = payload if incoming.codec.verbatim else payload[HEADER_NBYTES:]
            return self.trusted(incoming.codec, incoming.count, payload)
        try:
            frame = Frame.read(*(request.data for request in incoming.requests))
            if frame.sequence != self.envelope.sequence:
                raise FrameError(
                    f"frame: belongs to operation {frame.sequence}, this rank is at {self.envelope.sequence}"
                )
            if frame.dtype != self._dtype_of(incoming):
                raise FrameError(f"dtype: the sender's buffer is {frame.dtype}, this rank's {self._dtype_of(incoming)}")
            if frame.total != incoming.total:
                raise FrameError(
                    f"count: the sender's message has {frame.total} elements, this rank's {incoming.total}"
                )
            incoming.codec.check(frame, incoming.count)
        except FrameError as error:
            raise FrameError(f"from rank {incoming.source}: {error}") from None
        return frame

    # ------------------------------------------------------------------ waiting

    def progress(self) -> None:
        """Do what can be done without waiting; algorithms call it between kernels."""
        self._advance(0.0)

    def finish(self) -> None:
        """Wait until every action is done and all that was sent has left.

        Raises
        ------
        FrameError
            A frame is not what this rank expects, or another rank gave up.
        DeadlineError
            Nothing arrived or left in time.
        """
        idle_since = None
        while self._requests or not self.transport.settled(self.envelope.sequence, _LOOK_S):
            if self._requests and self._advance(_LOOK_S):
                idle_since = None
                continue
            self.heed_notice()
            now = time.monotonic()
            idle_since = idle_since or now
            if now - idle_since > self.deadline:
                raise DeadlineError(
                    f"nothing arrived or left for {self.deadline:g} s; {len(self._requests)} transfers are open"
                )

    def abandon(self, error: BaseException) -> None:
        """Give up: free this rank's requests, and tell the other ranks unless they told this one."""
        self.transport.cancel(self._requests)
        if not isinstance(error, _GivenUpElsewhereError):
            self.transport.notify(self.envelope.sequence, f"{type(error).__name__}: {error}")

    def heed_notice(self) -> None:
        """Raise what another rank has said, if it has given up on this operation."""
        notice = self.transport.notice(self.envelope.sequence)
        if notice is not None:
            raise _GivenUpElsewhereError(f"rank {notice[0]} gave up on this operation: {notice[1]}")

    def _advance(self, timeout: float) -> bool:
        try:
            done = self.transport.wait_some(self._requests, timeout)
        except TransportError:
            self.heed_notice()  # a rank that gave up and then left has said why
            raise
        owners = [self._owners[i] for i in done]
        for i in sorted(done, reverse=True):
            del self._requests[i], self._owners[i]
        for owner in owners:
            if isinstance(owner, _Sending):
                self._sent(owner)
                continue
            owner.missing -= 1
            if not owner.missing:
                for one in owner.incoming:
                    one.frame = self._check(one)
                owner.action()
                if self._lends:
                    self.transport.release([one.requests[0] for one in owner.incoming])
                for one in owner.incoming:
                    if one.landed is not None:
                        self._scratch.give(one.landed)
        return bool(done)


class _GivenUpElsewhereError(FrameError):
    """Another rank gave up, and said so."""
