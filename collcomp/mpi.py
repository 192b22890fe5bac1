"""The mpi4py face: a communicator that is an `MPI.Intracomm` and compresses where it is asked to.

Importing this module initialises MPI, as ``from mpi4py import MPI`` does.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from mpi4py import MPI

from collcomp.buffers import as_buffer
from collcomp.calibration import QUICK, Effort, calibrate, recall
from collcomp.codecs import Codec, as_codec
from collcomp.communicator import DEFAULT_DEADLINE, Communicator
from collcomp.devices import on_device, wait_for
from collcomp.diagnosis import Records
from collcomp.errors import DeadlineError, TransportError
from collcomp.messages import Messages, Received
from collcomp.operation import IN_PLACE, Operation
from collcomp.planner.cost import CostModel
from collcomp.planner.layout import Layout, layout_for
from collcomp.policies import DEFAULT_MIN_NBYTES, Auto, Policy, is_auto
from collcomp.request import Persistent
from collcomp.request import Request as BackgroundRequest
from collcomp.transports.mpi import MpiTransport, is_gpu_aware
from collcomp.transports.shared import mpi_transport

__all__ = ["Comm", "PersistentRequest", "Request"]

_Intracomm = MPI.Intracomm
_Allreduce = MPI.Intracomm.Allreduce
_WORLD = MPI.Intracomm(MPI.COMM_WORLD)
_now = time.perf_counter
_ndarray = np.ndarray
_MOST_VERDICTS = _MOST_FRESH = 4096
_NATIVES: dict[str, Callable[..., Any]] = {
    "allgather": _Intracomm.Allgather,
    "allreduce": _Intracomm.Allreduce,
    "alltoall": _Intracomm.Alltoall,
    "barrier": _Intracomm.Barrier,
    "bcast": _Intracomm.Bcast,
    "gather": _Intracomm.Gather,
    "reduce": _Intracomm.Reduce,
    "reduce_scatter": _Intracomm.Reduce_scatter_block,
    "scatter": _Intracomm.Scatter,
}
_OPS = {MPI.SUM.handle: "sum", MPI.MAX.handle: "max", MPI.MIN.handle: "min"}


class Request(MPI.Grequest):
    """A nonblocking compressed operation: a real MPI request, so that ``MPI.Request.Waitall`` takes it.

    Its own `Wait` and `Test` raise collcomp's errors; `Waitall` and its relatives can only raise `MPI.Exception`.
    """

    background: BackgroundRequest

    @classmethod
    def of(cls, background: BackgroundRequest) -> Request:
        """The MPI request of a background operation."""

        def query(status: MPI.Status) -> None:
            received = background.future.result()
            status.Set_source(received.source if isinstance(received, Received) else MPI.UNDEFINED)
            status.Set_tag(received.tag if isinstance(received, Received) else MPI.UNDEFINED)
            status.Set_elements(MPI.BYTE, received.nbytes if isinstance(received, Received) else 0)
            status.Set_cancelled(False)

        request = cls(MPI.Grequest.Start(query, _nothing, _nothing))
        request.background = background
        background.future.add_done_callback(lambda future: request.Complete())
        return request

    def Wait(self, status: MPI.Status | None = None) -> Literal[True]:
        self.background.wait()
        return super().Wait(status)

    def Test(self, status: MPI.Status | None = None) -> bool:
        return self.background.test() and super().Test(status)

    def wait(self, status: MPI.Status | None = None) -> Any:
        self.Wait(status)

    def test(self, status: MPI.Status | None = None) -> tuple[bool, Any]:
        return self.Test(status), None


class PersistentRequest:
    """A persistent compressed operation. No MPI request: start and wait for it by its own methods."""

    def __init__(self, persistent: Persistent) -> None:
        self._persistent = persistent

    def Start(self) -> None:
        """Start the operation."""
        self._persistent.start()

    def Wait(self, status: MPI.Status | None = None) -> bool:
        """Wait for it."""
        self._persistent.wait()
        return True

    def Test(self, status: MPI.Status | None = None) -> bool:
        """Whether it is over."""
        return self._persistent.test()

    def Free(self) -> None:
        """Wait for it, and let go of its buffers."""
        self._persistent.wait()
        del self._persistent


class _Shortcut(NamedTuple):
    """What a plain `Allreduce` has to know to be MPI's own without asking for a plan.

    Attributes
    ----------
    below : float
        One of fewer bytes is native, whatever its dtype.
    reason : str or None
        Why.
    counted : Communicator or None
        Counts such calls, because other ranks may come to them by asking for a plan.
    verdicts : dict
        Larger ones that are known to be native: why, by size, dtype and operation.
    fresh : deque
        Where their records go.
    """

    below: float
    reason: str | None
    counted: Communicator | None
    verdicts: dict[tuple[int, np.dtype, int], str]
    fresh: deque[tuple[Any, ...]]


class Comm(MPI.Intracomm):
    """An `MPI.Intracomm` whose buffer operations can compress.

    It shares the handle of the communicator that it is made from. Without a codec every call is MPI's own. Buffer
    operations take, beside mpi4py's arguments, the keywords ``codec``, ``algorithm``, ``key``, and those that sum take
    ``average``. The first compressed collective duplicates the communicator for its own messages.

    Parameters
    ----------
    comm : MPI.Intracomm
    codec : str or Codec, optional
        For collectives that name none, on messages of at least `min_nbytes` of a floating-point dtype. Calls that it
        cannot do (integers, ``PROD``, small or vector-sized messages) stay native, and their records say why.
    min_nbytes : int
    policy : Policy, optional
        Decides in place of `codec` and `min_nbytes`.
    deadline : float
        Seconds without progress after which a compressed operation fails.
    measure_error : bool
        Records get the norm of what encoding lost.
    records : Records, optional
        Where records go; communicators made from this one share it.
    switch : str, optional
        ``"HOST:PORT"`` of a switch that sums, for ``algorithm="switched"``; by default what the environment variable
        ``COLLCOMP_SWITCH`` says.
    layout : Layout or path, optional
        How the ranks lie, the same on all of them: the order of ``algorithm="ring"``, the groups of
        ``"hierarchical"``; by default what the file says that the environment variable ``COLLCOMP_LAYOUT`` names,
        if it is one of so many ranks. Communicators made from this one have the part of it that their ranks are in.

    Notes
    -----
    Point-to-point messages are compressed only where both sides name a codec. ``Split``, ``Dup``, ``Create`` and their
    relatives give a `Comm` with the same settings; topologies and intercommunicators are MPI's own.
    """

    records: Records
    _settings: dict[str, Any]
    _native: bool
    _shortcut: _Shortcut
    _engine: Communicator | None
    _mail: Messages | None

    def __new__(
        cls,
        comm: MPI.Comm | None = None,
        *,
        codec: str | Codec | None = None,
        min_nbytes: int = DEFAULT_MIN_NBYTES,
        policy: Policy | None = None,
        deadline: float = DEFAULT_DEADLINE,
        measure_error: bool = False,
        records: Records | None = None,
        switch: str | None = None,
        layout: Layout | str | Path | None = None,
    ) -> Comm:
        """See the class."""
        if comm is not None and not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm: expected an MPI.Intracomm, got {type(comm).__name__}")
        if is_auto(codec):
            Auto.from_spec(str(codec))  # a wrong one is told now; each communicator makes its own
        elif codec is not None:
            codec = as_codec(codec)
        self = super().__new__(cls, comm)
        self.records = Records() if records is None else records
        self._settings = {
            "codec": codec,
            "min_nbytes": min_nbytes,
            "policy": policy,
            "deadline": deadline,
            "measure_error": measure_error,
            "records": self.records,
            "switch": switch,
            "layout": layout if layout is None or not self else layout_for(self.Get_size(), layout),
        }
        self._native = codec is None and policy is None
        self._shortcut = self._closed_shortcut()
        self._engine = None
        self._mail = None
        return self

    # ------------------------------------------------------------------ reductions

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, **how: Any) -> None:
        if not how and type(recvbuf) is _ndarray:
            # The most frequent call of all: less than a microsecond more than MPI's own.
            nbytes = recvbuf.nbytes
            below, reason, counted, verdicts, fresh = self._shortcut
            if nbytes >= below:
                reason = verdicts.get((nbytes, recvbuf.dtype, op.handle)) if verdicts else None
            if reason is not None:
                if counted is not None:
                    counted.count()
                started = _now()
                _Allreduce(self, sendbuf, recvbuf, op)
                fresh.append((nbytes, _now() - started, reason))
                if len(fresh) >= _MOST_FRESH:
                    self.records.settle()
                return
        self._run("allreduce", _Intracomm.Allreduce, (sendbuf, recvbuf, op), (sendbuf, recvbuf, op), how)

    def Reduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, root: int = 0, **how: Any) -> None:
        self._run("reduce", _Intracomm.Reduce, (sendbuf, recvbuf, op, root), (sendbuf, recvbuf, op, root), how)

    def Reduce_scatter(
        self,
        sendbuf: Any,
        recvbuf: Any,
        recvcounts: Sequence[int] | None = None,
        op: MPI.Op = MPI.SUM,
        **how: Any,
    ) -> None:
        args = (sendbuf, recvbuf, self._counts(sendbuf, recvbuf, recvcounts, how), op)
        self._run("reduce_scatter", _Intracomm.Reduce_scatter, args, args, how)

    def Reduce_scatter_block(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, **how: Any) -> None:
        native = _Intracomm.Reduce_scatter_block
        self._run("reduce_scatter", native, (sendbuf, recvbuf, op), (sendbuf, recvbuf, None, op), how)

    def Iallreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, **how: Any) -> MPI.Request:
        native = _Intracomm.Iallreduce
        return self._start("allreduce", native, (sendbuf, recvbuf, op), (sendbuf, recvbuf, op), how)

    def Ireduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, root: int = 0, **how: Any) -> MPI.Request:
        args = (sendbuf, recvbuf, op, root)
        return self._start("reduce", _Intracomm.Ireduce, args, args, how)

    def Ireduce_scatter(
        self,
        sendbuf: Any,
        recvbuf: Any,
        recvcounts: Sequence[int] | None = None,
        op: MPI.Op = MPI.SUM,
        **how: Any,
    ) -> MPI.Request:
        args = (sendbuf, recvbuf, self._counts(sendbuf, recvbuf, recvcounts, how), op)
        return self._start("reduce_scatter", _Intracomm.Ireduce_scatter, args, args, how)

    def Ireduce_scatter_block(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, **how: Any) -> MPI.Request:
        native = _Intracomm.Ireduce_scatter_block
        return self._start("reduce_scatter", native, (sendbuf, recvbuf, op), (sendbuf, recvbuf, None, op), how)

    def Allreduce_init(  # type: ignore[override]
        self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, info: MPI.Info = MPI.INFO_NULL, **how: Any
    ) -> MPI.Prequest | PersistentRequest:
        if self._native and not how:
            return _Intracomm.Allreduce_init(self, sendbuf, recvbuf, op, info)
        args, words = self._translate("allreduce", (sendbuf, recvbuf, op), how)
        persistent = self._connect().allreduce_init(*args, **words)
        if persistent.operation.native:
            if how.get("average"):
                raise ValueError("average: True, a native persistent call cannot divide; name a codec")
            return _Intracomm.Allreduce_init(self, sendbuf, recvbuf, op, info)
        return PersistentRequest(persistent)

    # ------------------------------------------------------------------ data movement

    def Bcast(self, buf: Any, root: int = 0, **how: Any) -> None:
        self._run("bcast", _Intracomm.Bcast, (buf, root), (buf, root), how)

    def Allgather(self, sendbuf: Any, recvbuf: Any, **how: Any) -> None:
        self._run("allgather", _Intracomm.Allgather, (sendbuf, recvbuf), (sendbuf, recvbuf), how)

    def Allgatherv(self, sendbuf: Any, recvbuf: Any, **how: Any) -> None:
        self._run("allgather", _Intracomm.Allgatherv, (sendbuf, recvbuf), (sendbuf, recvbuf), how)

    def Gather(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> None:
        self._run("gather", _Intracomm.Gather, (sendbuf, recvbuf, root), (sendbuf, recvbuf, root), how)

    def Gatherv(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> None:
        args = (sendbuf, recvbuf, root)
        self._run("gather", _Intracomm.Gatherv, args, args, how, vector=True)

    def Scatter(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> None:
        self._run("scatter", _Intracomm.Scatter, (sendbuf, recvbuf, root), (sendbuf, recvbuf, root), how)

    def Scatterv(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> None:
        args = (sendbuf, recvbuf, root)
        self._run("scatter", _Intracomm.Scatterv, args, args, how, vector=True)

    def Alltoall(self, sendbuf: Any, recvbuf: Any, **how: Any) -> None:
        self._run("alltoall", _Intracomm.Alltoall, (sendbuf, recvbuf), (sendbuf, recvbuf), how)

    def Alltoallv(self, sendbuf: Any, recvbuf: Any, **how: Any) -> None:
        args = (sendbuf, recvbuf)
        self._run("alltoall", _Intracomm.Alltoallv, args, args, how, vector=True)

    def Ibcast(self, buf: Any, root: int = 0, **how: Any) -> MPI.Request:
        return self._start("bcast", _Intracomm.Ibcast, (buf, root), (buf, root), how)

    def Iallgather(self, sendbuf: Any, recvbuf: Any, **how: Any) -> MPI.Request:
        return self._start("allgather", _Intracomm.Iallgather, (sendbuf, recvbuf), (sendbuf, recvbuf), how)

    def Iallgatherv(self, sendbuf: Any, recvbuf: Any, **how: Any) -> MPI.Request:
        return self._start("allgather", _Intracomm.Iallgatherv, (sendbuf, recvbuf), (sendbuf, recvbuf), how)

    def Igather(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> MPI.Request:
        args = (sendbuf, recvbuf, root)
        return self._start("gather", _Intracomm.Igather, args, args, how)

    def Igatherv(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> MPI.Request:
        args = (sendbuf, recvbuf, root)
        return self._start("gather", _Intracomm.Igatherv, args, args, how, vector=True)

    def Iscatter(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> MPI.Request:
        args = (sendbuf, recvbuf, root)
        return self._start("scatter", _Intracomm.Iscatter, args, args, how)

    def Iscatterv(self, sendbuf: Any, recvbuf: Any, root: int = 0, **how: Any) -> MPI.Request:
        args = (sendbuf, recvbuf, root)
        return self._start("scatter", _Intracomm.Iscatterv, args, args, how, vector=True)

    def Ialltoall(self, sendbuf: Any, recvbuf: Any, **how: Any) -> MPI.Request:
        return self._start("alltoall", _Intracomm.Ialltoall, (sendbuf, recvbuf), (sendbuf, recvbuf), how)

    def Ialltoallv(self, sendbuf: Any, recvbuf: Any, **how: Any) -> MPI.Request:
        args = (sendbuf, recvbuf)
        return self._start("alltoall", _Intracomm.Ialltoallv, args, args, how, vector=True)

    # ------------------------------------------------------------------ point to point

    def Send(self, buf: Any, dest: int, tag: int = 0, *, codec: str | Codec | None = None) -> None:
        if codec is None or dest == MPI.PROC_NULL:
            return _Intracomm.Send(self, buf, dest, tag)
        return self._messages().post_send(buf, dest, tag, codec).wait()

    def Recv(
        self,
        buf: Any,
        source: int = MPI.ANY_SOURCE,
        tag: int = MPI.ANY_TAG,
        status: MPI.Status | None = None,
        *,
        codec: str | Codec | None = None,
    ) -> None:
        if codec is None or source == MPI.PROC_NULL:
            return _Intracomm.Recv(self, buf, source, tag, status)
        return _fill(status, self._messages().post_recv(buf, source, tag, codec).wait())

    def Isend(self, buf: Any, dest: int, tag: int = 0, *, codec: str | Codec | None = None) -> MPI.Request:
        if codec is None or dest == MPI.PROC_NULL:
            return _Intracomm.Isend(self, buf, dest, tag)
        mail = self._messages()
        return Request.of(mail.in_background(mail.post_send(buf, dest, tag, codec)))

    def Irecv(
        self,
        buf: Any,
        source: int = MPI.ANY_SOURCE,
        tag: int = MPI.ANY_TAG,
        *,
        codec: str | Codec | None = None,
    ) -> MPI.Request:
        if codec is None or source == MPI.PROC_NULL:
            return _Intracomm.Irecv(self, buf, source, tag)
        mail = self._messages()
        return Request.of(mail.in_background(mail.post_recv(buf, source, tag, codec)))

    def Sendrecv(
        self,
        sendbuf: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = MPI.ANY_SOURCE,
        recvtag: int = MPI.ANY_TAG,
        status: MPI.Status | None = None,
        *,
        codec: str | Codec | None = None,
    ) -> None:
        if codec is None:
            return _Intracomm.Sendrecv(self, sendbuf, dest, sendtag, recvbuf, source, recvtag, status)
        self._messages().check(sendbuf, codec, "sendbuf")
        receive = self.Irecv(recvbuf, source, recvtag, codec=codec)
        self.Send(sendbuf, dest, sendtag, codec=codec)
        receive.Wait(status)
        return None

    # ------------------------------------------------------------------ communicators from this one

    def __reduce__(self) -> Any:
        # Where this is MPI.COMM_WORLD, it is pickled as that, whatever that is in the process that loads it.
        return (_world, ()) if self == _WORLD else super().__reduce__()

    def Dup(self, info: MPI.Info | None = None) -> Comm:
        return self._like_this(_Intracomm.Dup(self, info), same_ranks=True)

    def Clone(self) -> Comm:
        return self._like_this(_Intracomm.Clone(self), same_ranks=True)

    def Dup_with_info(self, info: MPI.Info) -> Comm:
        return self._like_this(_Intracomm.Dup_with_info(self, info), same_ranks=True)

    def Idup(self, info: MPI.Info | None = None) -> tuple[Comm, MPI.Request]:
        return self._like_these(_Intracomm.Idup(self, info))

    def Idup_with_info(self, info: MPI.Info) -> tuple[Comm, MPI.Request]:
        return self._like_these(_Intracomm.Idup_with_info(self, info))

    def Split(self, color: int = 0, key: int = 0) -> Comm:
        return self._like_this(_Intracomm.Split(self, color, key))

    def Split_type(self, split_type: int, key: int = 0, info: MPI.Info = MPI.INFO_NULL) -> Comm:
        return self._like_this(_Intracomm.Split_type(self, split_type, key, info))

    def Create(self, group: MPI.Group) -> Comm:
        return self._like_this(_Intracomm.Create(self, group))

    def Create_group(self, group: MPI.Group, tag: int = 0) -> Comm:
        return self._like_this(_Intracomm.Create_group(self, group, tag))

    def Free(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        _Intracomm.Free(self)

    # ------------------------------------------------------------------ how a call is done

    @property
    def policy(self) -> Policy:
        """Decides the calls that name no codec."""
        return self._connect().policy

    def calibrate(self, collective: str, effort: Effort = QUICK, codec: str | None = None) -> CostModel:
        """Measure what `collective` costs, for codec ``"auto"``, whose first call does it otherwise. Collective.

        Parameters
        ----------
        collective : str
            ``"allreduce"``, ``"bcast"``, ...
        effort : Effort
            How much time to take.
        codec : str, optional
            The spec that this is for; the communicator's own by default.

        Raises
        ------
        ValueError
            If there is no ``"auto"`` to measure for, or no such collective.
        """
        known = [name for name in _NATIVES if name != "barrier"]
        if collective not in known:
            raise ValueError(f"collective: {collective!r} is none of {', '.join(known)}")
        engine = self._connect()
        auto = engine.auto(codec, collective)
        if auto is None:
            raise ValueError(f"codec: {codec!r} chooses nothing; give 'auto' here or to the communicator")
        return self._learn(engine, auto, collective, effort)

    def _run(
        self, name: str, native: Callable[..., Any], given: tuple, args: tuple, how: dict[str, Any], **options: Any
    ) -> None:
        operation, reason = self._plan(name, args, how, options, measures="vector" not in options)
        if operation is not None:
            return self._connect().run(operation)
        _wait_for_devices(given)
        started = _now()
        native(self, *given)
        if how.get("average") and (name != "reduce" or self.Get_rank() == args[-1]):
            _divide(args[1], self.Get_size())
        seconds = _now() - started
        self.records.add(name, "native", "none", _nbytes(*given[:2]), None, None, seconds, reason=reason)
        return None

    def _start(
        self, name: str, native: Callable[..., Any], given: tuple, args: tuple, how: dict[str, Any], **options: Any
    ) -> MPI.Request:
        operation, reason = self._plan(name, args, how, options)
        if operation is not None:
            return Request.of(self._connect().start(operation))
        if how.get("average"):
            raise ValueError("average: True, a native nonblocking call cannot divide; name a codec or an algorithm")
        _wait_for_devices(given)
        started = _now()
        request = native(self, *given)
        seconds = _now() - started
        self.records.add(name, "native", "none", _nbytes(*given[:2]), None, None, seconds, reason=reason)
        return request

    def _plan(
        self, name: str, args: tuple, how: dict[str, Any], options: dict[str, Any], *, measures: bool = False
    ) -> tuple[Operation | None, str]:
        """The compressed operation, or None and the reason why the call is MPI's.

        `measures` says that the call blocks and is of one size everywhere: all ranks can measure what it costs first.
        """
        if self._native and not how:
            return None, ""
        engine = self._connect()
        if how:
            try:
                args, how = self._translate(name, args, how)
            except (TypeError, ValueError) as error:
                engine.refuse(error)
                raise
            if measures:
                self._measure(engine, name, how.get("codec"))
            operation = engine.plan(name, *args, **how, **options)
        else:
            given = args
            args, _ = self._translate(name, args, {})
            if measures:
                self._measure(engine, name, None)
            if name == "allreduce":
                self._go_native_below(engine)
            try:
                operation = engine.plan(name, *args, tell=False, **options)
            except (TypeError, ValueError) as error:
                if not is_gpu_aware() and any(map(on_device, args)):
                    engine.refuse(error)  # MPI would read from where it cannot
                    raise
                # Derived datatypes, or a device: MPI takes them, or knows better what is wrong.
                return None, str(error)
            if measures and operation.native:  # else it may only be so because nothing was measured yet
                self._keep_verdict(name, given, operation.plan.reason)
        return (None, operation.plan.reason) if operation.native else (operation, "")

    def _measure(self, engine: Communicator, name: str, codec: str | Codec | None) -> None:
        """What `name` costs on this communicator, where that decides and nobody knows it yet; collective then."""
        auto = engine.auto(codec, name)
        if auto is None or engine.size == 1:
            return
        if auto.model is None:
            recall(engine, auto)
        if not auto.knows(name):
            self._learn(engine, auto, name, QUICK)

    def _learn(self, engine: Communicator, auto: Auto, name: str, effort: Effort) -> CostModel:
        self._shortcut = self._closed_shortcut()  # to be opened anew
        natives = {name: partial(function, self) for name, function in _NATIVES.items()}
        return calibrate(engine, auto, name, natives, effort)

    def _keep_verdict(self, name: str, args: tuple[Any, ...], reason: str) -> None:
        """Remember that such an allreduce is native, by a policy that decides the same way each time."""
        _, recvbuf, op = args if name == "allreduce" else (None, None, None)
        shortcut = self._shortcut
        if shortcut.counted is not None and type(recvbuf) is _ndarray and len(shortcut.verdicts) < _MOST_VERDICTS:
            shortcut.verdicts[recvbuf.nbytes, recvbuf.dtype, op.handle] = reason

    def _go_native_below(self, engine: Communicator) -> None:
        """From now on, do not even ask for the plan of an allreduce that is native whatever else it is."""
        below = getattr(engine.policy, "native_below", None)
        if below is not None and self._shortcut.counted is None:
            limit = below("allreduce")
            self._shortcut = _Shortcut(limit, f"fewer than {limit} bytes", engine, {}, self.records.fresh)

    def _closed_shortcut(self) -> _Shortcut:
        """Without a codec of its own all is native; with one, nothing is known to be yet."""
        return _Shortcut(math.inf if self._native else 0, "", None, {}, self.records.fresh)

    def _translate(self, name: str, args: tuple, how: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """MPI's constants in collcomp's words."""
        unknown = how.keys() - {"codec", "algorithm", "key"} - ({"average"} if "reduce" in name else set())
        if unknown:
            raise TypeError(f"{name}: unexpected keyword argument {sorted(unknown)[0]!r}")
        average = how.get("average", False)
        words: list[Any] = []
        for arg in args:
            if isinstance(arg, MPI.Op):
                op = _OPS.get(arg.handle, "an operation of MPI's own")
                if average and op != "sum":
                    raise ValueError("average: True, only a sum can be averaged")
                words.append("avg" if average else op)
            else:
                words.append(IN_PLACE if arg is MPI.IN_PLACE else arg)
        return tuple(words), {name: value for name, value in how.items() if name != "average"}

    def _counts(
        self, sendbuf: Any, recvbuf: Any, recvcounts: Sequence[int] | None, how: dict[str, Any]
    ) -> Sequence[int] | None:
        """What Reduce_scatter does without counts: each rank gets as much as its receive buffer holds."""
        if recvcounts is not None or sendbuf is MPI.IN_PLACE or (self._native and not how):
            return recvcounts
        return self.allgather(as_buffer(recvbuf, "recvbuf").flat.size)

    def _connect(self) -> Communicator:
        """The engine, with a duplicate of this communicator for its messages. The first call is collective."""
        if self._engine is None:
            _check_threads()
            private, request = _Intracomm.Idup(self)
            waited_until = time.monotonic() + self._settings["deadline"]
            while not request.Test():
                if time.monotonic() > waited_until:
                    raise DeadlineError("not all ranks of the communicator have come to its first compressed call")
                time.sleep(1e-5)
            mailbox = MpiTransport(self)
            options = {"native": True, "native_devices": is_gpu_aware(), "mailbox": mailbox, **self._settings}
            self._engine = Communicator(mpi_transport(private), **options)
        return self._engine

    def _messages(self) -> Messages:
        if self._mail is None:
            _check_threads()
            self._mail = Messages(MpiTransport(self), self._settings["deadline"], self.records)
        return self._mail

    def _like_this(self, comm: MPI.Comm, *, same_ranks: bool = False) -> Comm:
        settings = self._settings
        if same_ranks and self._engine is not None and isinstance(self._engine.policy, Auto):
            settings = {**settings, "codec": None, "policy": self._engine.policy}  # what was measured holds there too
        if settings["layout"] is not None and comm:
            group, own = comm.Get_group(), self.Get_group()
            settings = {**settings, "layout": settings["layout"].among(group.Translate_ranks(None, own))}
            group.Free()
            own.Free()
        return Comm(comm, **settings)

    def _like_these(self, pair: tuple[MPI.Comm, MPI.Request]) -> tuple[Comm, MPI.Request]:
        return Comm(pair[0], **self._settings), pair[1]


def _check_threads() -> None:
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise TransportError("MPI: compressed operations need MPI.THREAD_MULTIPLE, which mpi4py asks for")


def _world() -> MPI.Intracomm:
    return MPI.COMM_WORLD


def _fill(status: MPI.Status | None, received: Received) -> None:
    if status is not None:
        status.Set_source(received.source)
        status.Set_tag(received.tag)
        status.Set_elements(MPI.BYTE, received.nbytes)


def _wait_for_devices(args: tuple) -> None:
    """MPI knows nothing of streams."""
    for arg in args:
        wait_for(arg[0] if isinstance(arg, (list, tuple)) and arg else arg)


def _divide(recvbuf: Any, size: int) -> None:
    buffer = as_buffer(recvbuf, "recvbuf", writable=True)
    buffer.flat /= size
    buffer.commit()


def _nbytes(*bufs: Any) -> int:
    """Bytes of the first of a native call's buffers that tells; 0 where none does."""
    for buf in bufs:
        nbytes = getattr(buf, "nbytes", None)
        if nbytes is not None:
            return nbytes
        data = buf[0] if isinstance(buf, (list, tuple)) and buf else buf
        if hasattr(data, "__cuda_array_interface__") or (hasattr(data, "__dlpack__") and not hasattr(data, "nbytes")):
            continue  # only MPI itself is to ask for a device's memory, or for a capsule
        if buf is not None and buf is not MPI.IN_PLACE:
            try:
                return as_buffer(buf, "buf").flat.nbytes
            except (TypeError, ValueError):
                continue
    return 0


def _nothing(*args: Any) -> None:
    pass
