"""Communication hooks for `DistributedDataParallel`.

Annotations are evaluated here: PyTorch looks at those of a hook.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.futures import Future

from collcomp.codecs import Codec
from collcomp.diagnosis import Records
from collcomp.operation import IN_PLACE
from collcomp.policies import DEFAULT_MIN_NBYTES
from collcomp.torch.checkpoint import engine_state, load_engine_state
from collcomp.torch.engine import connect, disconnect, group_or_default, uncompressed
from collcomp.torch.options import codec_or_none
from collcomp.torch.streams import current_stream_of, settled
from collcomp.torch.work import future_of

__all__ = ["DdpHook", "bf16_compress_wrapper", "ddp_hook", "fp16_compress_wrapper"]

Hook = Callable[[Any, dist.GradBucket], Future[torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class _Message:
    """What one codec sums of a bucket: where it lies there, and the names and lengths of its tensors."""

    codec: Codec | None
    slices: tuple[slice, ...]
    key: tuple[tuple[str, int], ...]


class DdpHook:
    """A hook that averages gradients compressed: ``model.register_comm_hook(None, ddp_hook("int4"))``. Collective.

    It works on groups of any backend, and has connections of its own until `close`.

    A bucket is one message, whose residuals lie side by side under the names of its parameters: when DDP changes its
    buckets they move along. All that is sent for a bucket is one operation, begun in the order in which DDP hands out
    buckets, which is the same on all ranks.

    Parameters
    ----------
    codec : str, Codec or mapping
        One for all parameters, or by patterns of their names, of which the first that matches counts:
        ``{"*.bias": None, "head.*": "int8", "*": "int4"}``. None, or no pattern: uncompressed.
    feedback : bool
        Add what a step left out of a gradient to the next step's, with codecs that can.
    named_parameters : iterable of (str, Parameter), optional
        ``model.named_parameters()``: what is left out is kept by these names, which outlive a change of buckets and
        checkpoints. Without it parameters are numbered in the order in which their gradients first arrive.
    process_group : ProcessGroup, optional
        That of the model; the default group by default.
    start_step : int
        Steps at the beginning that are averaged uncompressed.
    min_nbytes : int
        Smaller buckets travel uncompressed.

    Attributes
    ----------
    step : int
        Steps that were averaged so far.
    """

    def __init__(
        self,
        codec: str | Codec | Mapping[str, str | Codec | None],
        feedback: bool = True,
        *,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]] | None = None,
        process_group: dist.ProcessGroup | None = None,
        start_step: int = 0,
        min_nbytes: int = DEFAULT_MIN_NBYTES,
    ) -> None:
        if start_step < 0:
            raise ValueError(f"start_step: expected 0 or more, got {start_step}")
        rules = codec if isinstance(codec, Mapping) else {"*": codec}
        self._rules = [(pattern, _prepared(what, feedback)) for pattern, what in rules.items()]
        self._names = {} if named_parameters is None else {id(p): name for name, p in named_parameters}
        self._numbered = named_parameters is None
        self._group = group_or_default(process_group)
        self._engine = connect(self._group)
        self._start_step = start_step
        self._min_nbytes = min_nbytes
        self._messages: dict[tuple[int, ...], list[_Message]] = {}
        self.step = 0
        # PyTorch logs the names of functions.
        self.__name__ = "ddp_hook"
        self.__qualname__ = f"collcomp.torch.ddp_hook({codec!r})"

    @property
    def records(self) -> Records:
        """What its operations did."""
        return self._engine.records

    @property
    def learning_rate(self) -> float | None:
        """See `Residuals.learning_rate`; to be set before each step where it changes."""
        return self._engine.residuals.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float | None) -> None:
        self._engine.residuals.learning_rate = value

    def __call__(self, state: Any, bucket: dist.GradBucket) -> Future[torch.Tensor]:
        """Average a bucket's gradients; `state` is not used."""
        buffer = bucket.buffer()
        if self.step < self._start_step or buffer.nbytes < self._min_nbytes:
            future = self._plain(buffer, buffer)
        else:
            futures = [self._average(buffer, message) for message in self._split(bucket)]
            future = futures[0] if len(futures) == 1 else _returning(torch.futures.collect_all(futures), buffer)
        if bucket.is_last():
            self.step += 1
        return future

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, for a checkpoint: dicts of tensors, numbers and strings. Each rank has its own."""
        return {"step": self.step, **engine_state(self._engine)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, on all ranks."""
        self.step = int(state["step"])
        load_engine_state(self._engine, state)

    def close(self) -> None:
        """Let go of its connections. Collective."""
        disconnect(self._engine)

    def _average(self, buffer: torch.Tensor, message: _Message) -> Future[torch.Tensor]:
        if len(message.slices) == 1:
            flat, then = buffer[message.slices[0]], None
        else:
            views = [buffer[part] for part in message.slices]
            flat = torch.cat(views)

            def then() -> None:
                torch._foreach_copy_(views, list(flat.split([view.numel() for view in views])))

        if message.codec is None:
            return self._plain(flat, buffer, then)
        key = message.key if message.codec.needs_key else None
        with current_stream_of(flat):
            operation = self._engine.plan("allreduce", IN_PLACE, flat, "avg", codec=message.codec, key=key)
            return future_of(self._engine.start(operation, settled(then, flat)), buffer)

    def _plain(
        self, flat: torch.Tensor, buffer: torch.Tensor, then: Callable[[], None] | None = None
    ) -> Future[torch.Tensor]:
        flat.div_(self._group.size())
        return _returning(uncompressed(self._group).allreduce([flat]).get_future(), buffer, then)

    def _split(self, bucket: dist.GradBucket) -> list[_Message]:
        parameters = bucket.parameters()
        layout = tuple(id(parameter) for parameter in parameters)
        messages = self._messages.get(layout)
        if messages is None:
            messages = self._messages[layout] = self._messages_of(parameters)
        return messages

    def _messages_of(self, parameters: Sequence[torch.Tensor]) -> list[_Message]:
        edges = np.cumsum([0, *(parameter.numel() for parameter in parameters)]).tolist()
        by_codec: dict[Codec | None, list[int]] = {}
        for i, parameter in enumerate(parameters):
            by_codec.setdefault(self._codec(self._name(parameter)), []).append(i)
        messages = []
        for codec, members in by_codec.items():
            key = tuple((self._name(parameters[i]), parameters[i].numel()) for i in members)
            if codec is not None:
                codec = codec.for_shapes([tuple(parameters[i].shape) for i in members])
            slices: list[slice] = []
            for i in members:
                adjacent = slices and slices[-1].stop == edges[i]
                slices.append(slice(slices.pop().start if adjacent else edges[i], edges[i + 1]))
            messages.append(_Message(codec, tuple(slices), key))
        return messages

    def _name(self, parameter: torch.Tensor) -> str:
        name = self._names.get(id(parameter))
        if name is None:
            if not self._numbered:
                raise ValueError(f"named_parameters: none of them is the one of shape {tuple(parameter.shape)}")
            name = self._names[id(parameter)] = f"parameter{len(self._names)}"
        return name

    def _codec(self, name: str) -> Codec | None:
        return next((codec for pattern, codec in self._rules if fnmatchcase(name, pattern)), None)


#: By the name that PyTorch gives hooks.
ddp_hook = DdpHook


def fp16_compress_wrapper(hook: Hook) -> Hook:
    """`hook` on gradients cast to `torch.float16`, whose result is cast back."""
    return _cast_wrapper(torch.float16, hook)


def bf16_compress_wrapper(hook: Hook) -> Hook:
    """`hook` on gradients cast to `torch.bfloat16`, whose result is cast back; PyTorch's own insists on NCCL."""
    return _cast_wrapper(torch.bfloat16, hook)


def _cast_wrapper(dtype: torch.dtype, hook: Hook) -> Hook:
    def wrapped(state: Any, bucket: dist.GradBucket) -> Future[torch.Tensor]:
        wide = bucket.buffer()
        bucket.set_buffer(wide.to(dtype))
        return hook(state, bucket).then(lambda done: wide.copy_(done.value()))

    return wrapped


def _returning(
    future: Future[Any], buffer: torch.Tensor, then: Callable[[], None] | None = None
) -> Future[torch.Tensor]:
    """A future of `buffer` that does `then` after `future`, and fails with it."""

    def finish(done: Future[Any]) -> torch.Tensor:
        done.value()
        if then is not None:
            then()
        return buffer

    return future.then(finish)


def _prepared(what: str | Codec | None, feedback: bool) -> Codec | None:
    codec = codec_or_none(what)
    if codec is not None and feedback and "feedback" in (field.name for field in dataclasses.fields(codec)):  # type: ignore[arg-type]
        codec = dataclasses.replace(codec, feedback=True)  # type: ignore[type-var]
    return codec
