"""The communicator: checks a call, plans it, runs it, records it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from collcomp import devices
from collcomp.carriers import Carriers
from collcomp.codecs import Codec
from collcomp.collectives import SWITCHED, Exchange
from collcomp.devices import on_device
from collcomp.diagnosis import Records
from collcomp.feedback import Residuals
from collcomp.frame import Envelope
from collcomp.messages import Messages, Received
from collcomp.operation import IN_PLACE, How, Operation, Planner
from collcomp.planner.layout import Layout, layout_for, layout_of_environment
from collcomp.policies import DEFAULT_MIN_NBYTES, Auto, ByCollective, Policy, is_auto, policy_of
from collcomp.request import Persistent, Request
from collcomp.switch.port import SwitchPort
from collcomp.transports import Transport
from collcomp.units import parse_address

__all__ = ["DEFAULT_DEADLINE", "IN_PLACE", "Communicator"]

#: Seconds without progress after which an operation fails.
DEFAULT_DEADLINE = 300.0


class Communicator:
    """Compressed collectives over a transport.

    Every collective takes, beside MPI's arguments, ``codec=`` (a spec such as ``"int4:block=128"`` or a `Codec`),
    ``algorithm=`` (``"direct"``, ``"ring"``, ``"hierarchical"``, ``"gathered"``, ``"merged"``, ``"summed"``,
    ``"switched"``) and ``key=`` (the tensor's name, for codecs that remember; names and lengths, where the message
    consists of several tensors). Its nonblocking form has an ``i`` in front and returns a `Request`.

    Parameters
    ----------
    transport : Transport
        Carries the collectives; nothing else may send on it.
    codec : str or Codec, optional
        For calls that name none; ``"auto"``, ``"auto:error=0.01"`` or ``"auto:int8|int4"`` choose (see
        `policies.Auto`) once it is known what collectives cost: `mpi.Comm` measures it, others call
        `calibration.calibrate`.
    min_nbytes : int
        `codec` is used for messages of at least so many bytes; not with ``"auto"``.
    policy : Policy, optional
        Decides in place of `codec` and `min_nbytes`.
    deadline : float
        Seconds without anything arriving or leaving after which an operation fails.
    measure_error : bool
        Records get the norm of what encoding lost. Costs time.
    records : Records, optional
        Where records go; communicators may share one.
    mailbox : Transport, optional
        Carries point-to-point messages, under the caller's tags; `transport` by default.
    switch : str, optional
        ``"HOST:PORT"`` of a switch that sums, for ``algorithm="switched"``; by default what the environment variable
        ``COLLCOMP_SWITCH`` says.
    layout : Layout or path, optional
        How the ranks lie, the same on all of them: the order of ``algorithm="ring"``, the groups of
        ``"hierarchical"``; by default what the file says that the environment variable ``COLLCOMP_LAYOUT`` names,
        if it is one of so many ranks.
    native : bool
        Whether calls that are planned natively are done by the caller (`plan` tells) and not by this object.
    native_devices : bool
        Whether those whose buffers lie on a device are, too.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        codec: str | Codec | None = None,
        min_nbytes: int = DEFAULT_MIN_NBYTES,
        policy: Policy | None = None,
        deadline: float = DEFAULT_DEADLINE,
        measure_error: bool = False,
        records: Records | None = None,
        mailbox: Transport | None = None,
        switch: str | None = None,
        layout: Layout | str | Path | None = None,
        native: bool = False,
        native_devices: bool = False,
    ) -> None:
        if policy is None:
            policy = policy_of(codec, min_nbytes)
        elif codec is not None:
            raise ValueError(f"codec: {codec!r} given beside a policy, which decides")
        elif isinstance(policy, Auto):
            policy = policy.for_ranks(transport.size)  # what it learns is of this communicator
        if not deadline > 0:
            raise ValueError(f"deadline: {deadline} seconds are too few")
        self.rank = transport.rank
        self.size = transport.size
        self.records = Records() if records is None else records
        self.residuals = Residuals()
        self.deadline = deadline
        self.measure_error = measure_error
        self._transport = transport
        if mailbox is None and transport.shares_memory:
            raise ValueError("mailbox: None, but a transport that shares memory carries no messages of its own")
        self.messages = Messages(mailbox or transport, deadline, self.records)
        if switch is not None:
            parse_address(switch, "switch")
        address = switch or os.environ.get("COLLCOMP_SWITCH")
        self._switch = SwitchPort(address, self.rank, self.size) if address else None
        laid_out = layout_of_environment() if layout is None else layout_for(self.size, layout)
        self._planner = Planner(self.rank, self.size, policy, self.residuals, native, native_devices, address, laid_out)
        self._autos: dict[str, Auto] = {codec: policy} if isinstance(policy, Auto) and isinstance(codec, str) else {}
        self._sequence = 0
        self._draw_ahead = 0
        # One thread: nonblocking collectives are done in the order in which they were called.
        self._background: ThreadPoolExecutor | None = None
        self._carriers = Carriers(transport, deadline)

    # ------------------------------------------------------------------ collectives

    def allreduce(self, sendbuf: Any, recvbuf: Any, op: str = "sum", **how: Any) -> None:
        """Combine all ranks' `sendbuf` into `recvbuf` of all ranks.

        Parameters
        ----------
        sendbuf, recvbuf : buffer
            Equal in count and dtype; `sendbuf` may be `IN_PLACE`.
        op : {"sum", "avg", "max", "min"}
            ``"avg"`` divides the sum by the number of ranks.
        **how
            ``codec``, ``algorithm``, ``key``.

        Raises
        ------
        ValueError, TypeError
            Something is wrong with an argument; nothing was sent.
        FrameError
            The ranks' calls do not fit together, or a frame was damaged.
        DeadlineError
            Nothing moved for `deadline` seconds.
        """
        self.run(self.plan("allreduce", sendbuf, recvbuf, op, **how))

    def reduce(self, sendbuf: Any, recvbuf: Any, op: str = "sum", root: int = 0, **how: Any) -> None:
        """Combine all ranks' `sendbuf` into `recvbuf` of `root`."""
        self.run(self.plan("reduce", sendbuf, recvbuf, op, root, **how))

    def reduce_scatter(
        self, sendbuf: Any, recvbuf: Any, recvcounts: Sequence[int] | None = None, op: str = "sum", **how: Any
    ) -> None:
        """Combine all ranks' `sendbuf`; rank i gets the i-th part of ``recvcounts[i]`` elements (default: equal)."""
        self.run(self.plan("reduce_scatter", sendbuf, recvbuf, recvcounts, op, **how))

    def bcast(self, buf: Any, root: int = 0, **how: Any) -> None:
        """Give `buf` of `root` to all; with a lossy codec the root's own `buf` becomes what the others decode."""
        self.run(self.plan("bcast", buf, root, **how))

    def allgather(self, sendbuf: Any, recvbuf: Any, **how: Any) -> None:
        """Put all ranks' `sendbuf` one after another (or by counts and displacements) into every `recvbuf`."""
        self.run(self.plan("allgather", sendbuf, recvbuf, **how))

    def gather(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> None:
        """Put all ranks' `sendbuf` one after another into `recvbuf` of `root`."""
        self.run(self.plan("gather", sendbuf, recvbuf, root, **how))

    def scatter(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> None:
        """Give rank i the i-th block of `sendbuf` of `root`."""
        self.run(self.plan("scatter", sendbuf, recvbuf, root, **how))

    def alltoall(self, sendbuf: Any, recvbuf: Any, **how: Any) -> None:
        """Send the i-th block of `sendbuf` to rank i, whose block goes to the i-th of `recvbuf`."""
        self.run(self.plan("alltoall", sendbuf, recvbuf, **how))

    def iallreduce(self, sendbuf: Any, recvbuf: Any, op: str = "sum", **how: Any) -> Request:
        """Nonblocking `allreduce`."""
        return self.start(self.plan("allreduce", sendbuf, recvbuf, op, **how))

    def ireduce(self, sendbuf: Any, recvbuf: Any, op: str = "sum", root: int = 0, **how: Any) -> Request:
        """Nonblocking `reduce`."""
        return self.start(self.plan("reduce", sendbuf, recvbuf, op, root, **how))

    def ireduce_scatter(
        self, sendbuf: Any, recvbuf: Any, recvcounts: Sequence[int] | None = None, op: str = "sum", **how: Any
    ) -> Request:
        """Nonblocking `reduce_scatter`."""
        return self.start(self.plan("reduce_scatter", sendbuf, recvbuf, recvcounts, op, **how))

    def ibcast(self, buf: Any, root: int = 0, **how: Any) -> Request:
        """Nonblocking `bcast`."""
        return self.start(self.plan("bcast", buf, root, **how))

    def iallgather(self, sendbuf: Any, recvbuf: Any, **how: Any) -> Request:
        """Nonblocking `allgather`."""
        return self.start(self.plan("allgather", sendbuf, recvbuf, **how))

    def igather(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> Request:
        """Nonblocking `gather`."""
        return self.start(self.plan("gather", sendbuf, recvbuf, root, **how))

    def iscatter(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> Request:
        """Nonblocking `scatter`."""
        return self.start(self.plan("scatter", sendbuf, recvbuf, root, **how))

    def ialltoall(self, sendbuf: Any, recvbuf: Any, **how: Any) -> Request:
        """Nonblocking `alltoall`."""
        return self.start(self.plan("alltoall", sendbuf, recvbuf, **how))

    # ------------------------------------------------------------------ point to point

    def send(self, buf: Any, dest: int, tag: int = 0, *, codec: str | Codec | None = None) -> None:
        """Send `buf` as a frame; the receiver names the same codec."""
        self.messages.post_send(buf, dest, tag, codec).wait()

    def recv(self, buf: Any, source: int, tag: int = 0, *, codec: str | Codec | None = None) -> Received:
        """Receive a frame into `buf`, which may be longer than the message."""
        return self.messages.post_recv(buf, source, tag, codec).wait()

    def isend(self, buf: Any, dest: int, tag: int = 0, *, codec: str | Codec | None = None) -> Request:
        """Nonblocking `send`; `buf` is encoded before this returns and may be used again at once."""
        return self.messages.in_background(self.messages.post_send(buf, dest, tag, codec))

    def irecv(self, buf: Any, source: int, tag: int = 0, *, codec: str | Codec | None = None) -> Request:
        """Nonblocking `recv`; the request's result is the `Received`."""
        return self.messages.in_background(self.messages.post_recv(buf, source, tag, codec))

    def sendrecv(
        self,
        sendbuf: Any,
        dest: int,
        sendtag: int,
        recvbuf: Any,
        source: int,
        recvtag: int,
        *,
        codec: str | Codec | None = None,
    ) -> Received:
        """`send` and `recv` at once."""
        self.messages.check(sendbuf, codec, "sendbuf")
        receive = self.messages.post_recv(recvbuf, source, recvtag, codec)
        send = self.messages.post_send(sendbuf, dest, sendtag, codec)
        received = receive.wait()
        send.wait()
        return received

    # ------------------------------------------------------------------ how a call is done

    @property
    def policy(self) -> Policy:
        """Plans the calls that name no codec; to be changed on all ranks between the same two calls."""
        return self._planner.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._planner.policy = policy

    @property
    def draw(self) -> int:
        """Number of the next operation, for random numbers: a run that is resumed with it goes on as it would have.

        Codecs that round at random draw by it. To be changed on all ranks alike.
        """
        return self._sequence + self._draw_ahead

    @draw.setter
    def draw(self, number: int) -> None:
        # Tags go by the sequence, which never goes back: what a failed operation left is not taken for another's.
        self._draw_ahead = number - self._sequence

    def plan(
        self,
        collective: str,
        *args: Any,
        codec: str | Codec | None = None,
        algorithm: str | None = None,
        key: str | Sequence[tuple[str, int]] | None = None,
        policy: Policy | None = None,
        tell: bool = True,
        **options: Any,
    ) -> Operation:
        """Check the arguments of a collective and plan it; every rank that plans has to `run` or `start` it next.

        When an argument is wrong the other ranks are told, so that they do not wait for this one; not with `tell`
        off, for callers that do the operation by other means then. `policy` decides in place of the communicator's own.
        """
        draw, sequence = self.draw, self.count()
        try:
            how = self._how(codec, algorithm, key, policy)
            operation = self._planner.prepare(collective, args, how, options)
        except (TypeError, ValueError) as error:
            if tell:
                self._refuse(sequence, error)
            raise
        operation.sequence = sequence
        operation.draw = draw
        return operation

    def _how(
        self,
        codec: str | Codec | None = None,
        algorithm: str | None = None,
        key: str | Sequence[tuple[str, int]] | None = None,
        policy: Policy | None = None,
    ) -> How:
        return How(None, algorithm, key, self.auto(codec)) if is_auto(codec) else How(codec, algorithm, key, policy)

    def auto(self, codec: str | Codec | None, collective: str | None = None) -> Auto | None:
        """The policy that decides a call with this codec, where it is an `Auto`: None is the communicator's own."""
        if codec is None:
            policy = self.policy
            if isinstance(policy, ByCollective) and collective is not None:
                policy = policy.policies.get(collective, policy)
            return policy if isinstance(policy, Auto) else None
        if not isinstance(codec, str) or not is_auto(codec):
            return None
        if codec not in self._autos:
            self._autos[codec] = Auto.from_spec(codec)
        return self._autos[codec]

    @property
    def groups(self) -> int:
        """Number of groups of equal size that the ranks lie in; 1 where nobody said."""
        layout = self._planner.layout
        alike = isinstance(layout, Layout) and layout.size == self.size and len({*map(len, layout.groups)}) == 1
        return len(layout.groups) if alike and isinstance(layout, Layout) else 1

    def refuse(self, error: Exception) -> None:
        """Tell the other ranks that this one does not take part in the collective that they are at."""
        self._refuse(self.count(), error)

    def count(self) -> int:
        """The number of an operation that all ranks come to, whether they ask for a plan or not."""
        self._sequence += 1
        return self._sequence - 1

    def idle(self) -> None:
        """Wait until what is under way in the background is over."""
        if self._background is not None:
            self._background.submit(_nothing).result()

    def _refuse(self, sequence: int, error: BaseException) -> None:
        self._transport.notify(sequence, f"{type(error).__name__}: {error}")

    def run(self, operation: Operation) -> None:
        """Do what was planned."""
        on_gpus = self._carriers.in_order and on_device(operation.message.flat)
        if operation.plan.algorithm == SWITCHED or (on_gpus and self._background is not None):
            # A switch, and NCCL, take the operations of a communicator one after another, in the order of the calls.
            try:
                self.idle()
            except BaseException as error:
                self._refuse(operation.sequence, error)
                raise
        self._run(operation)

    def _run(self, operation: Operation) -> None:
        values = operation.message.flat
        if not on_device(values):
            return self._carry(operation, values)
        with devices.lasting(values):
            return self._carry(operation, values)

    def _carry(self, operation: Operation, values: Any) -> None:
        started = time.perf_counter()
        sequence = operation.sequence & 0xFFFFFFFF
        transport = self._carriers.transport(operation)
        scratch = self._carriers.take(transport, values)
        exchange = Exchange(
            transport,
            operation.plan,
            Envelope(values.dtype, values.size, sequence),
            scratch,
            draw=operation.draw & 0xFFFFFFFF,
            deadline=self.deadline,
            memory=operation.memory,
            measure_error=self.measure_error,
            switch=self._switch,
            beside=values,
        )
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # sums that overflow are infinite, as MPI's are
                operation.algorithm(exchange, *operation.args)
                exchange.finish()
        except BaseException as error:
            exchange.abandon(error)
            self._carriers.keep(scratch)
            raise
        self._carriers.give(scratch, operation)
        for output in operation.outputs:
            output.commit()
        plan = operation.plan
        self.records.add(
            operation.collective,
            plan.algorithm,
            plan.codec.label,
            values.nbytes,
            exchange.wire_nbytes,
            exchange.raw_nbytes,
            time.perf_counter() - started,
            exchange.error_norm,
            operation.key,
            plan.reason or (self._carriers.staged if on_device(values) else ""),
        )

    def start(self, operation: Operation, then: Callable[[], object] | None = None) -> Request:
        """Do what was planned, and `then` this, while the caller goes on."""
        if self._background is None:
            self._background = ThreadPoolExecutor(1, thread_name_prefix="collcomp")

        values = operation.message.flat
        if devices.is_capturing(values):
            error = ValueError("capture: a nonblocking call goes on in another thread; make the blocking one")
            self._refuse(operation.sequence, error)
            raise error
        ready = devices.mark(values)

        def work() -> None:
            with devices.apart(values, ready):
                self._run(operation)
            if then is not None:
                then()

        return Request(self._background.submit(work))

    def allreduce_init(self, sendbuf: Any, recvbuf: Any, op: str = "sum", **how: Any) -> Persistent:
        """`allreduce` to be started many times; its arguments are checked now."""
        operation = self._planner.prepare("allreduce", (sendbuf, recvbuf, op), self._how(**how), {})
        again = {**how, "codec": operation.plan.codec, "algorithm": operation.plan.algorithm}
        # Checked anew each time: views of arrays with gaps are copies, and residuals may have been loaded since.
        return Persistent(operation, lambda: self.start(self.plan("allreduce", sendbuf, recvbuf, op, **again)))

    def leave(self, error: BaseException) -> None:
        """Tell the other ranks that this one takes part in nothing any more; transports of one process can."""
        self._transport.leave(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Wait for what is under way in the background, then release the transport."""
        if self._background is not None:
            self._background.shutdown()
        if self._switch is not None:
            self._switch.close()
        self._carriers.close()


def _nothing() -> None:
    """Work that is over when all that was submitted before it is."""
