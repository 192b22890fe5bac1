"""The process group: each call is the inner backend's, or the engine's where a codec is chosen for it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from collcomp.codecs import Codec
from collcomp.communicator import Communicator
from collcomp.diagnosis import Records
from collcomp.operation import IN_PLACE
from collcomp.torch.engine import Compressing, connect, disconnect
from collcomp.torch.options import Options
from collcomp.torch.streams import current_stream_of, settled
from collcomp.torch.tensors import (
    cat,
    compressible,
    copied,
    dense,
    joined,
    listed,
    overlap,
    own_block,
    room,
    why_foreign,
)
from collcomp.torch.work import Work, Works

__all__ = ["ProcessGroup", "op_name"]

_Type = dist.ProcessGroup.BackendType
_Op = dist.ReduceOp.RedOpType
_OPS = {_Op.SUM: "sum", _Op.AVG: "avg", _Op.MAX: "max", _Op.MIN: "min"}


class _Call(NamedTuple):
    """A call in the engine's words: its arguments, the tensors that it writes to, and what is left to do then."""

    args: tuple[Any, ...]
    results: list[Tensor]
    then: Callable[[], None] | None = None


_Prepare = Callable[..., _Call | None]


def _compressed(collective: str, vector: bool = False) -> Callable[[_Prepare], Callable[..., dist.Work]]:
    """Of a method that says a call in the engine's words, make one that does it, by whom the group's codecs say."""

    def wrap(prepare: _Prepare) -> Callable[..., dist.Work]:
        name = prepare.__name__

        @functools.wraps(prepare)
        def method(self: ProcessGroup, *args: Any, **how: Any) -> dist.Work:
            if collective in self._codecs:
                work = self._start(collective, args, vector, lambda: prepare(self, *args, **how))
                if work is not None:
                    return work
            return getattr(self._inner, name)(*args, **how)

        method.prepare = prepare
        return method

    return wrap


class ProcessGroup(Compressing, dist.ProcessGroup):
    """A process group that does what gloo does for tensors in memory and NCCL for those on GPUs, and compresses.

    It is itself registered with those backends, so that calls that PyTorch makes past Python reach them. Calls that
    Python sees go to the inner group, or to the engine where a codec is chosen for their kind.

    Parameters
    ----------
    store : Store
    rank, size : int
    timeout : timedelta
        After which operations fail.
    options : Options
        Equal on all ranks.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta, options: Options) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self.timeout = timeout
        self._store = store
        # An object of its own: a call of this one's own base class would hold Python's lock while it waits.
        self._inner = dist.ProcessGroup(store, rank, size)
        for device, kind, backend in _inner_backends(store, rank, size, timeout):
            for group in (self._inner, self):
                group._register_backend(torch.device(device), kind, backend)
                group._set_default_backend(kind)
        self._engine: Communicator | None = None
        # Codecs by the engine's names of collectives; empty where nothing is to be compressed.
        self._codecs: dict[str, Codec] = {}
        self.choose(options)

    # ------------------------------------------------------------------ codecs

    @property
    def engine(self) -> Communicator:
        """What compresses. Collective when first asked for, unless there is a codec."""
        if self._engine is None:
            self._engine = connect(self)
        return self._engine

    @property
    def uncompressed(self) -> dist.ProcessGroup:
        """The group that does what has no codec."""
        return self._inner

    @property
    def records(self) -> Records:
        """What the engine did, where there is one."""
        return Records() if self._engine is None else self._engine.records

    @property
    def chosen(self) -> tuple[Options, str | None]:
        """What was chosen last."""
        return self._options, self._key

    def choose(self, options: Options, key: str | None = None) -> None:
        """Compress as `options` say, from now on, with `key` as the tensors' name. Collective."""
        for codec in options.codecs.values():
            if codec.needs_key and key is None:
                raise ValueError(
                    f"codec: {codec.spec!r} remembers tensors by name; use ddp_hook, or use_codec with key="
                )
        if options.codecs:
            self.engine.policy = options.policy
        self._options, self._codecs, self._key = options, options.codecs, key

    # ------------------------------------------------------------------ reductions

    @_compressed("allreduce")
    def allreduce(self, tensors: Any, *args: Any, **how: Any) -> _Call:
        flat, then = joined(tensors)
        return _Call((IN_PLACE, flat, _op(args, how)), listed(tensors), then)

    @_compressed("allreduce")
    def allreduce_coalesced(self, tensors: Any, *args: Any, **how: Any) -> _Call | None:
        if len({tensor.dtype for tensor in tensors}) > 1:
            return None
        return ProcessGroup.allreduce.prepare(self, tensors, *args, **how)

    @_compressed("reduce")
    def reduce(self, tensors: Any, *args: Any, **how: Any) -> _Call:
        (tensor,), root = listed(tensors), _root(args, how)
        pair = (IN_PLACE, tensor) if self.rank() == root else (tensor, None)
        return _Call((*pair, _op(args, how), root), [tensor])

    @_compressed("reduce_scatter")
    def reduce_scatter(self, outputs: Any, inputs: Any, *args: Any, **how: Any) -> _Call:
        (output,), parts = listed(outputs), _inner_list(inputs)
        into, then = dense(output)
        counts = [part.numel() for part in parts]
        return _Call((cat(parts), into, counts, _op(args, how)), [output], then)

    @_compressed("reduce_scatter")
    def reduce_scatter_single(self, output: Tensor, tensor: Tensor, *args: Any, **how: Any) -> _Call:
        send = copied(tensor) if overlap(output, tensor) else tensor.contiguous()
        into, then = dense(output)
        return _Call((send, into, None, _op(args, how)), [output], then)

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(self, outputs: Any, inputs: Any, *args: Any, **how: Any) -> dist.Work:
        if "reduce_scatter" in self._codecs:
            pairs = zip(outputs, inputs, strict=True)
            return Works([self.reduce_scatter_single(*pair, *args, **how) for pair in pairs])
        return self._inner.reduce_scatter_single_coalesced(outputs, inputs, *args, **how)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced  # type: ignore[assignment]

    # ------------------------------------------------------------------ data movement

    @_compressed("bcast")
    def broadcast(self, tensors: Any, *args: Any, **how: Any) -> _Call:
        (tensor,) = listed(tensors)
        return _Call((tensor, _root(args, how)), [tensor])

    @_compressed("allgather")
    def allgather(self, outputs: Any, inputs: Any, *args: Any, **how: Any) -> _Call:
        (tensor,), parts = listed(inputs), _inner_list(outputs)
        flat, then = room(parts)
        return _Call((tensor.contiguous(), flat), parts, then)

    @_compressed("allgather")
    def all_gather_single(self, output: Tensor, tensor: Tensor, *args: Any, **how: Any) -> _Call:
        into, then = dense(output)
        return _Call((own_block(into, tensor, self.rank()), into), [output], then)

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(self, outputs: Any, inputs: Any, *args: Any, **how: Any) -> dist.Work:
        if "allgather" in self._codecs:
            pairs = zip(outputs, inputs, strict=True)
            return Works([self.all_gather_single(*pair, *args, **how) for pair in pairs])
        return self._inner.all_gather_single_coalesced(outputs, inputs, *args, **how)

    allgather_into_tensor_coalesced = all_gather_single_coalesced  # type: ignore[assignment]

    @_compressed("gather")
    def gather(self, outputs: Any, inputs: Any, *args: Any, **how: Any) -> _Call:
        (tensor,), parts, root = listed(inputs), _inner_list(outputs), _root(args, how)
        flat, then = room(parts) if self.rank() == root else (None, None)
        return _Call((tensor.contiguous(), flat, root), parts, then)

    @_compressed("scatter")
    def scatter(self, outputs: Any, inputs: Any, *args: Any, **how: Any) -> _Call:
        (tensor,), parts, root = listed(outputs), _inner_list(inputs), _root(args, how)
        into, then = dense(tensor)
        return _Call((cat(parts) if self.rank() == root else None, into, root), [tensor], then)

    @_compressed("alltoall", vector=True)
    def alltoall(self, outputs: Any, inputs: Any, *args: Any, **how: Any) -> _Call:
        flat, then = room(outputs)
        sends, recvs = ([part.numel() for part in parts] for parts in (inputs, outputs))
        return _Call(([cat(inputs), sends, None], [flat, recvs, None]), list(outputs), then)

    @_compressed("alltoall", vector=True)
    def all_to_all_single(
        self, output: Tensor, tensor: Tensor, output_splits: Any = (), input_splits: Any = (), *args: Any, **how: Any
    ) -> _Call:
        into, then = dense(output)
        buffers = self._by_rows(tensor.contiguous(), input_splits), self._by_rows(into, output_splits)
        return _Call(buffers, [output], then)

    alltoall_base = all_to_all_single

    # ------------------------------------------------------------------ point to point

    def send(self, tensors: Any, dest: int, tag: int = 0) -> dist.Work:
        codec = self._codecs.get("send")
        if codec is not None and compressible(tensors, codec):
            messages = self.engine.messages
            tensor = listed(tensors)[0].contiguous()
            with current_stream_of(tensor):
                transfer = messages.post_send(tensor, dest, tag, codec)
            return Work(messages.in_background(transfer), listed(tensors))
        return self._inner.send(tensors, dest, tag)

    def recv(self, tensors: Any, source: int, tag: int = 0) -> dist.Work:
        codec = self._codecs.get("send")
        if codec is not None and compressible(tensors, codec):
            messages = self.engine.messages
            (tensor,) = listed(tensors)
            into = tensor if tensor.is_contiguous() else copied(tensor)
            with current_stream_of(tensor):
                transfer = messages.post_recv(into, source, tag, codec)
            complete = transfer.complete
            if into is not tensor:
                copy_back = settled(lambda: tensor.detach().copy_(into), tensor)
                transfer.complete = lambda: (complete(), copy_back())[0]
            return Work(messages.in_background(transfer), [tensor], source)
        return self._inner.recv(tensors, source, tag)

    def recv_anysource(self, tensors: Any, tag: int = 0) -> dist.Work:
        codec = self._codecs.get("send")
        if codec is not None and compressible(tensors, codec):
            raise ValueError(f"src: None, messages of codec {codec.spec!r} are received from a named rank")
        return self._inner.recv_anysource(tensors, tag)

    # ------------------------------------------------------------------ the rest is the inner group's

    def barrier(self, *args: Any, **how: Any) -> dist.Work:
        return self._inner.barrier(*args, **how)

    def monitored_barrier(self, *args: Any, **how: Any) -> None:
        return self._inner.monitored_barrier(*args, **how)

    def get_group_store(self) -> dist.Store:
        return self._store

    def getBackendName(self) -> str:
        return "collcomp"

    def shutdown(self) -> None:
        """Finish what is under way and let go of all connections."""
        engine, self._engine, self._codecs = self._engine, None, {}
        try:
            super().shutdown()  # first: ranks that wait in the inner group are to find out
        finally:
            if engine is not None:
                disconnect(engine)

    # ------------------------------------------------------------------ helpers

    def _start(
        self, collective: str, args: tuple[Any, ...], vector: bool, prepare: Callable[[], _Call | None]
    ) -> Work | None:
        """The compressed operation; None where it is the inner group's, with a record that says why."""
        started = time.perf_counter()
        tensors = _tensors_in(args)
        codec = self._codecs[collective]
        reason = why_foreign(tensors, codec)
        if vector and not reason and not compressible(tensors, codec):
            reason = f"tensor: {tensors[0].dtype} never meets a lossy codec ({codec.spec})"
        call = None
        if not reason:
            try:
                call = prepare()
            except Exception as error:
                self.engine.refuse(error)
                raise
            reason = "" if call else "tensors: of several dtypes"
        if call is not None:
            how: dict[str, Any] = {"key": self._key}
            if vector:  # ranks do not know each other's counts, so nothing but the codec itself can be agreed on
                how |= {"vector": True, "codec": codec}
            with current_stream_of(tensors[0]):
                operation = self.engine.plan(collective, *call.args, **how)
                if not operation.native:
                    then = settled(call.then, tensors[0])
                    return Work(self.engine.start(operation, then), call.results)
            reason = operation.plan.reason
        # Of what it writes to, which comes first; sparse tensors have no `nbytes`.
        nbytes = sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(args[:1]))
        seconds = time.perf_counter() - started
        self.engine.records.add(collective, "native", "none", nbytes, None, None, seconds, reason=reason)
        return None

    def _by_rows(self, tensor: Tensor, rows: Sequence[int]) -> list[Any]:
        """A tensor with each rank's number of elements, from its number of rows; equal ones where none are given."""
        row = tensor.numel() // max(1, len(tensor))
        return [tensor, [row * n for n in rows or [len(tensor) // self.size()] * self.size()], None]


def op_name(op: Any) -> str:
    """The engine's name of a `ReduceOp`; for those that it does not know, a name that it leaves to others."""
    return _OPS.get(getattr(op, "op", op), "an operation of PyTorch's own")


def _op(args: tuple[Any, ...], how: Mapping[str, Any]) -> str:
    given = args[0] if args else how.get("opts", how.get("op", _Op.SUM))
    return op_name(getattr(given, "reduceOp", given))


def _inner_backends(store: dist.Store, rank: int, size: int, timeout: timedelta) -> list[tuple[str, Any, Any]]:
    """Device, type and backend for every device that there is; gloo's last, which becomes the default."""
    found: list[tuple[str, Any, Any]] = []
    if torch.cuda.is_available() and dist.is_nccl_available():
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = timeout
        backend = dist.ProcessGroupNCCL(dist.PrefixStore("cuda", store), rank, size, nccl)
        found.append(("cuda", _Type.NCCL, backend))
    gloo = dist.ProcessGroupGloo(dist.PrefixStore("cpu", store), rank, size, timeout)
    found.append(("cpu", _Type.GLOO, gloo))
    for _, _, backend in found:
        backend._set_sequence_number_for_group()
    return found


def _inner_list(parts: Any) -> list[Tensor]:
    """The tensors of a list of them, or of the list in a list that PyTorch makes of it."""
    return list(parts[0] if parts and isinstance(parts[0], (list, tuple)) else parts)


def _tensors_in(args: Any) -> list[Tensor]:
    if isinstance(args, Tensor):
        return [args]
    return [tensor for item in args for tensor in _tensors_in(item)] if isinstance(args, (list, tuple)) else []


def _root(args: tuple[Any, ...], how: Mapping[str, Any]) -> int:
    given = args[0] if args else how.get("opts", how.get("root", 0))
    return int(getattr(given, "rootRank", given))
