"""One collective call, checked and planned, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from collcomp.buffers import Buffer, as_buffer, check_disjoint
from collcomp.codecs import Codec, Identity, as_codec
from collcomp.collectives import ALGORITHMS, HIERARCHICAL, MERGED, NATIVE, REQUIRED, RING, SUMMED, SWITCHED, Plan
from collcomp.devices import is_capturing
from collcomp.feedback import Memory, Residuals
from collcomp.frame import dtype_code
from collcomp.planner.layout import VARIABLE, Layout
from collcomp.policies import Call, Policy, plan_for, unsuited
from collcomp.switch.lanes import carried_as
from collcomp.switch.programs import EXACT, lanes_for
from collcomp.units import parse_address

__all__ = ["IN_PLACE", "Operation", "Planner"]


class _InPlace:
    """Says that a rank's operand lies in its receive buffer."""

    def __repr__(self) -> str:
        return "IN_PLACE"


# Why a call without a codec is not the library's.
_NOT_AWARE = "buffer: on a device, and the library underneath takes the host's only"
# Algorithms with kernels of their own, or a switch that takes the host's memory.
_ON_HOST = {MERGED, SWITCHED}

#: In place of a send buffer (of `recvbuf` in `scatter`): this rank's data lie in the other buffer.
IN_PLACE = _InPlace()


@dataclass(frozen=True, slots=True)
class How:
    """What a caller may say about one call; None leaves it to the policy.

    Codec ``"none"`` and algorithm ``"native"`` both leave the call to the library underneath.

    Attributes
    ----------
    codec : str or Codec, optional
    algorithm : str, optional
    key : str or sequence of (str, int), optional
        Name of the tensor, for codecs that keep a residual; names and lengths where the message consists of several.
    policy : Policy, optional
        Decides where there is no codec, in place of the communicator's own.
    """

    codec: str | Codec | None = None
    algorithm: str | None = None
    key: str | Sequence[tuple[str, int]] | None = None
    policy: Policy | None = None

    @property
    def label(self) -> str | None:
        """The key in one string."""
        if self.key is None or isinstance(self.key, str):
            return self.key
        first, *others = (name for name, _ in self.key)
        return f"{first} and {len(others)} more" if others else first


@dataclass(slots=True)
class Operation:
    """What is left to do once a call's arguments are known to be right.

    Attributes
    ----------
    collective : str
    plan : Plan
    message : Buffer
        The buffer that the call's size is told by.
    args : tuple
        What the algorithm takes after the `Exchange`.
    outputs : list of Buffer
        Buffers to be committed at the end.
    key : str or None
    memory : Memory or None
        What is remembered of the tensor, where the codec remembers anything.
    sequence : int
        Its number on its communicator, equal on all ranks.
    draw : int
        The number that codecs draw random numbers by, equal on all ranks.
    """

    collective: str
    plan: Plan
    message: Buffer
    args: tuple[Any, ...]
    outputs: list[Buffer]
    key: str | None = None
    memory: Memory | None = None
    sequence: int = 0
    draw: int = 0

    @property
    def native(self) -> bool:
        """Whether the library underneath is to do it."""
        return self.plan.algorithm == NATIVE

    @property
    def call(self) -> Hashable:
        """What tells it from other calls, except where its buffers lie."""
        flat = self.message.flat
        options = tuple(arg for arg in self.args if isinstance(arg, (int, str)))
        return self.collective, self.plan.algorithm, self.plan.codec.spec, flat.size, flat.dtype, options

    @property
    def algorithm(self) -> Callable[..., None]:
        """The function that does it."""
        return ALGORITHMS[self.plan.algorithm][self.collective]


class Planner:
    """Checks the arguments of each collective and plans it.

    The methods take MPI's arguments and return an `Operation`; every `ValueError` and `TypeError` comes from here.

    Parameters
    ----------
    rank, size : int
    policy : Policy
        Plans the calls that name no codec.
    residuals : Residuals
    native : bool
        Whether there is a library underneath; where there is none, its calls are done by `direct` without a codec.
    native_devices : bool
        Whether it takes buffers that lie on a device; where it does not, those are done by `direct` as well.
    switch : str or None
        Address of a switch that sums.
    layout : Layout or ValueError or None
        How the ranks lie; what is wrong with it is raised by the calls that need it. One of another number of ranks is
        the environment's.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        policy: Policy,
        residuals: Residuals,
        native: bool,
        native_devices: bool = False,
        switch: str | None = None,
        layout: Layout | ValueError | None = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self.policy = policy
        self.residuals = residuals
        self.has_native = native
        self.native_devices = native_devices
        self.switch = switch
        self.layout = layout

    def prepare(self, collective: str, args: Sequence[Any], how: How, options: dict[str, Any]) -> Operation:
        """Check and plan a `collective`, which is the name of one of the methods below."""
        return getattr(self, collective)(*args, how=how, **options)

    # ------------------------------------------------------------------ reductions

    def allreduce(self, sendbuf: Any, recvbuf: Any, op: str = "sum", *, how: How) -> Operation:
        send, recv = self._pair(sendbuf, recvbuf)
        _check_count(send, recv)
        return self._operation("allreduce", send, op, (send.flat, recv.flat, op), [recv], how)

    def reduce(self, sendbuf: Any, recvbuf: Any, op: str = "sum", root: int = 0, *, how: How) -> Operation:
        self._check_root(root)
        recv = as_buffer(recvbuf, "recvbuf", writable=True) if self.rank == root else None
        if sendbuf is IN_PLACE:
            if recv is None:
                raise ValueError(f"sendbuf: IN_PLACE is for the root ({root}), this is rank {self.rank}")
            send = recv
        else:
            send = as_buffer(sendbuf, "sendbuf")
            if recv is not None:
                _check_pair(send, recv)
        if recv is not None:
            _check_count(send, recv)
        return self._operation(
            "reduce", send, op, (send.flat, None if recv is None else recv.flat, op, root), [recv] if recv else [], how
        )

    def reduce_scatter(
        self, sendbuf: Any, recvbuf: Any, recvcounts: Sequence[int] | None = None, op: str = "sum", *, how: How
    ) -> Operation:
        recv = as_buffer(recvbuf, "recvbuf", writable=True)
        if sendbuf is IN_PLACE:
            send = Buffer(recv.flat.copy())
        else:
            send = as_buffer(sendbuf, "sendbuf")
            _check_pair(send, recv)
        if recvcounts is None:
            count, rest = divmod(send.flat.size, self.size)
            if rest:
                raise ValueError(f"sendbuf: {send.flat.size} elements cannot be split into {self.size} equal blocks")
            recvcounts = [count] * self.size
        counts = [int(c) for c in recvcounts]
        if len(counts) != self.size or min(counts) < 0 or sum(counts) != send.flat.size:
            raise ValueError(f"recvcounts: {counts} do not split {send.flat.size} elements among {self.size} ranks")
        if recv.flat.size < counts[self.rank]:
            raise ValueError(f"recvbuf: {recv.flat.size} elements, {counts[self.rank]} are to arrive")
        return self._operation("reduce_scatter", send, op, (send.flat, recv.flat, counts, op), [recv], how)

    # ------------------------------------------------------------------ data movement

    def bcast(self, buf: Any, root: int = 0, *, how: How) -> Operation:
        self._check_root(root)
        try:
            data = as_buffer(buf, "buf", writable=True)
        except ValueError:
            if self.rank != root:
                raise
            data = as_buffer(buf, "buf")  # a root whose buffer is read-only keeps its own values
        return self._operation("bcast", data, None, (data.flat, root), [data], how)

    def allgather(self, sendbuf: Any, recvbuf: Any, *, how: How) -> Operation:
        recv = as_buffer(recvbuf, "recvbuf", writable=True, parts=self.size)
        blocks = recv.blocks(self.size, "recvbuf")
        if sendbuf is IN_PLACE:
            send = Buffer(blocks[self.rank])
        else:
            send = as_buffer(sendbuf, "sendbuf")
            _check_pair(send, recv)
        if send.flat.size != blocks[self.rank].size:
            raise ValueError(f"sendbuf: {send.flat.size} elements, recvbuf has {blocks[self.rank].size} for this rank")
        # The largest block, because that is known on every rank.
        nbytes = max(block.nbytes for block in blocks)
        return self._operation("allgather", send, None, (send.flat, blocks), [recv], how, nbytes=nbytes)

    def gather(self, sendbuf: Any, recvbuf: Any, root: int = 0, *, how: How, vector: bool = False) -> Operation:
        self._check_root(root)
        recv = as_buffer(recvbuf, "recvbuf", writable=True, parts=self.size) if self.rank == root else None
        blocks = recv.blocks(self.size, "recvbuf") if recv is not None else None
        if sendbuf is IN_PLACE:
            if blocks is None:
                raise ValueError(f"sendbuf: IN_PLACE is for the root ({root}), this is rank {self.rank}")
            send = Buffer(blocks[root])
        else:
            send = as_buffer(sendbuf, "sendbuf")
            if recv is not None and blocks is not None:
                _check_pair(send, recv)
                if send.flat.size != blocks[root].size:
                    raise ValueError(
                        f"sendbuf: {send.flat.size} elements, recvbuf has {blocks[root].size} for this rank"
                    )
        return self._operation(
            "gather", send, None, (send.flat, blocks, root), [recv] if recv else [], how, uniform=not vector
        )

    def scatter(self, sendbuf: Any, recvbuf: Any, root: int = 0, *, how: How, vector: bool = False) -> Operation:
        self._check_root(root)
        send = as_buffer(sendbuf, "sendbuf", parts=self.size) if self.rank == root else None
        blocks = send.blocks(self.size, "sendbuf") if send is not None else None
        if recvbuf is IN_PLACE:
            if blocks is None:
                raise ValueError(f"recvbuf: IN_PLACE is for the root ({root}), this is rank {self.rank}")
            recv = Buffer(blocks[root])
        else:
            recv = as_buffer(recvbuf, "recvbuf", writable=True)
            if send is not None and blocks is not None:
                _check_pair(send, recv)
                if recv.flat.size != blocks[root].size:
                    raise ValueError(
                        f"recvbuf: {recv.flat.size} elements, sendbuf has {blocks[root].size} for this rank"
                    )
        return self._operation("scatter", recv, None, (blocks, recv.flat, root), [recv], how, uniform=not vector)

    def alltoall(self, sendbuf: Any, recvbuf: Any, *, how: How, vector: bool = False) -> Operation:
        recv = as_buffer(recvbuf, "recvbuf", writable=True, parts=self.size)
        if sendbuf is IN_PLACE:
            send = Buffer(recv.flat.copy(), recv.counts, recv.displs)
        else:
            send = as_buffer(sendbuf, "sendbuf", parts=self.size)
            _check_pair(send, recv)
        sends, recvs = send.blocks(self.size, "sendbuf"), recv.blocks(self.size, "recvbuf")
        if sends[self.rank].size != recvs[self.rank].size:
            raise ValueError(
                f"sendbuf: {sends[self.rank].size} elements for this rank itself, recvbuf has {recvs[self.rank].size}"
            )
        return self._operation("alltoall", send, None, (sends, recvs), [recv], how, uniform=not vector)

    # ------------------------------------------------------------------ helpers

    def _operation(
        self,
        collective: str,
        message: Buffer,
        op: str | None,
        args: tuple[Any, ...],
        outputs: list[Buffer],
        how: How,
        *,
        nbytes: int | None = None,
        uniform: bool = True,
    ) -> Operation:
        flat = message.flat
        nbytes = flat.nbytes if nbytes is None else nbytes
        call = Call(collective, nbytes, flat.dtype, op, self.size, how.label, uniform)
        plan = self._plan(call, how)
        if message.device != "cpu":
            plan = self._on_device(plan, call, how, message.device, flat)
        memory = None
        if plan.algorithm != NATIVE:
            dtype_code(flat.dtype)
            if plan.codec.needs_key and op is not None and how.key is not None:
                memory = self._memory(how.key, flat, plan.codec)
        return Operation(collective, plan, message, args, outputs, how.label, memory)

    def _on_device(self, plan: Plan, call: Call, how: How, device: str, values: Any) -> Plan:
        """The plan of a call whose buffers lie on a device."""
        unable = f"codec {plan.codec.spec!r}" if not plan.codec.on_devices else f"algorithm {plan.algorithm!r}"
        reason = plan.reason
        if plan.algorithm != NATIVE and (plan.algorithm in _ON_HOST or not plan.codec.on_devices):
            reason = f"buffer: on {device}, {unable} has kernels for the CPU only"
            if how.codec is not None or how.algorithm is not None:
                raise TypeError(reason)
            plan = plan_for(call, Identity(), NATIVE, reason)  # the policy does not know where buffers lie
        if is_capturing(values) and plan.algorithm == NATIVE and self.native_devices:
            raise ValueError("capture: the call is left to the library underneath, which no graph can do")
        if is_capturing(values) and (
            plan.codec.fixed_payload_nbytes(0, call.dtype) is None or plan.algorithm == SUMMED
        ):
            raise ValueError(f"capture: frames of {plan.codec.spec!r} have no fixed size, as they have to in a graph")
        if plan.algorithm == NATIVE and not (self.has_native and self.native_devices):
            plan = plan_for(call, Identity(), "direct", reason or _NOT_AWARE)
            problem = unsuited(call, plan.codec)
            if problem is not None:
                raise ValueError(problem)
        return plan

    def _memory(self, key: str | Sequence[tuple[str, int]], flat: Any, codec: Codec) -> Memory:
        if isinstance(key, str):
            return self.residuals.get(key, flat.size, flat.dtype, codec, flat)
        total = sum(count for _, count in key)
        if total != flat.size:
            raise ValueError(f"key: the tensors have {total} elements together, the message has {flat.size}")
        return self.residuals.together(key, flat.dtype, codec, flat)

    def _plan(self, call: Call, how: How) -> Plan:
        if how.codec is None:
            plan = (how.policy or self.policy).plan(call)
            if how.algorithm is not None:
                plan = plan_for(call, plan.codec, how.algorithm)
        elif how.codec == "none":
            if how.algorithm not in (None, NATIVE):
                raise ValueError(f"codec: 'none' leaves the call as it is, algorithm {how.algorithm!r} does not")
            plan = plan_for(call, Identity(), NATIVE)
        elif how.algorithm == NATIVE:
            raise ValueError(f"algorithm: 'native' does not take a codec, got {how.codec!r}")
        else:
            plan = plan_for(call, as_codec(how.codec), how.algorithm)
        _check_algorithm(plan, call.collective)
        if plan.algorithm == SWITCHED:
            self._check_switched(call, plan.codec)
        if plan.algorithm == NATIVE and not self.has_native:
            plan = plan_for(call, Identity(), "direct", plan.reason)
        if plan.algorithm != NATIVE:
            problem = unsuited(call, plan.codec)
            if problem is not None:
                raise (TypeError if problem.startswith("dtype") else ValueError)(problem)
            if self.size == 1:  # nothing is sent, so nothing is lost
                plan = replace(plan, codec=Identity(), algorithm="direct")
        return self._laid_out(plan) if plan.algorithm in (RING, HIERARCHICAL) else plan

    def _laid_out(self, plan: Plan) -> Plan:
        """The plan with what the layout says of it."""
        layout = self.layout
        if isinstance(layout, ValueError):  # maybe on this rank alone: no rank may go on without
            raise layout
        reason = ""
        if layout is not None and layout.size != self.size:
            reason = f"{VARIABLE}: of {layout.size} ranks, the communicator has {self.size}"
            layout = None
        if plan.algorithm == RING:
            order = plan.order or (layout.order if layout is not None else ())
            return replace(plan, order=order, reason=plan.reason or reason)
        groups = plan.groups or (layout.groups if layout is not None else ())
        if not groups:
            reason = reason or f"give layout=Layout(order, groups) or set {VARIABLE}"
            raise ValueError(f"algorithm: {HIERARCHICAL!r} needs a layout with groups; {reason}")
        if len({len(group) for group in groups}) > 1:
            raise ValueError(f"layout: {HIERARCHICAL!r} needs groups of equal size, not {groups}")
        return replace(plan, groups=groups)

    def _check_switched(self, call: Call, codec: Codec) -> None:
        if not self.switch:
            raise ValueError("algorithm: 'switched' needs a switch; give switch='HOST:PORT' or set COLLCOMP_SWITCH")
        parse_address(self.switch, "COLLCOMP_SWITCH")  # what the program itself says is checked earlier
        if codec.verbatim:
            lanes_for(EXACT, *carried_as(call.dtype, "sum" if call.op == "avg" else str(call.op)))

    def _pair(self, sendbuf: Any, recvbuf: Any) -> tuple[Buffer, Buffer]:
        recv = as_buffer(recvbuf, "recvbuf", writable=True)
        if sendbuf is IN_PLACE:
            return recv, recv
        send = as_buffer(sendbuf, "sendbuf")
        _check_pair(send, recv)
        return send, recv

    def _check_root(self, root: int) -> None:
        if not 0 <= root < self.size:
            raise ValueError(f"root: {root} is not a rank, there are {self.size}")


def _check_algorithm(plan: Plan, collective: str) -> None:
    known = [NATIVE, *(name for name, functions in ALGORITHMS.items() if collective in functions)]
    if plan.algorithm not in known:
        raise ValueError(f"algorithm: {plan.algorithm!r} cannot do {collective}; known: {', '.join(known)}")
    required = REQUIRED.get(plan.algorithm, ())
    if required and not any(getattr(plan.codec, attribute) for attribute in required):
        wish = " or ".join(required)
        raise ValueError(f"algorithm: {plan.algorithm!r} needs a codec that is {wish}, {plan.codec.spec!r} is not")
    whole = plan.algorithm in ("summed", SWITCHED)
    if plan.codec.fixed_count is not None and collective == "allreduce" and not whole:
        raise ValueError(f"algorithm: {plan.algorithm!r} cuts messages, {plan.codec.spec!r} encodes them in one piece")


def _check_pair(send: Buffer, recv: Buffer) -> None:
    if send.device != recv.device:
        raise ValueError(f"recvbuf: on {recv.device}, sendbuf is on {send.device}")
    if send.flat.dtype != recv.flat.dtype:
        raise TypeError(f"recvbuf: dtype {recv.flat.dtype}, sendbuf has {send.flat.dtype}")
    check_disjoint(send.flat, recv.flat)


def _check_count(send: Buffer, recv: Buffer) -> None:
    if send.flat.size != recv.flat.size:
        raise ValueError(f"recvbuf: {recv.flat.size} elements, sendbuf has {send.flat.size}")
