"""Collectives for FSDP2's ``set_custom_all_gather`` and ``set_custom_reduce_scatter``.

Source: quantised gathers of parameters and quantised reduce-scatters of gradients are those of Wang et al., "ZeRO++:
extremely efficient collective communication for giant model training", 2023 (arXiv 2306.10209).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from collcomp.codecs import Codec, as_codec
from collcomp.policies import DEFAULT_MIN_NBYTES, Fixed
from collcomp.torch.engine import engine_of, uncompressed
from collcomp.torch.group import op_name
from collcomp.torch.streams import current_stream_of
from collcomp.torch.tensors import own_block, why_foreign
from collcomp.torch.work import Work

__all__ = ["AllGather", "ReduceScatter"]


class _Compressed:
    """What both have in common: the codec, and how FSDP gets memory from them."""

    def __init__(self, codec: str | Codec, *, key: str | None = None, min_nbytes: int = DEFAULT_MIN_NBYTES) -> None:
        self.codec = as_codec(codec)
        self._key = key
        self._policy = Fixed(self.codec, min_nbytes)

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for FSDP's flat tensors."""
        return torch.empty(*size, dtype=dtype, device=device)

    def _start(self, group: dist.ProcessGroup, collective: str, output: torch.Tensor, *args: Any) -> Work | None:
        """The compressed operation; None where it is the group's own, with a record that says why."""
        engine = engine_of(group)
        reason = why_foreign([output], self.codec)
        if not reason:
            with current_stream_of(output):
                operation = engine.plan(collective, *args, policy=self._policy, key=self._key)
                if not operation.native:
                    return Work(engine.start(operation), [output])
            reason = operation.plan.reason
        engine.records.add(collective, "native", "none", output.nbytes, None, None, 0.0, reason=reason)
        return None


class AllGather(_Compressed):
    """Gathers parameters compressed: ``module.set_custom_all_gather(AllGather("int8"))``.

    All ranks, the owner of a shard too, compute with what was sent; the sharded parameters themselves stay exact.

    Parameters
    ----------
    codec : str or Codec
    min_nbytes : int
        Smaller shards travel as they are; so do those that are not of one floating-point dtype.
    """

    def __init__(self, codec: str | Codec, *, min_nbytes: int = DEFAULT_MIN_NBYTES) -> None:
        super().__init__(codec, min_nbytes=min_nbytes)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        """As `torch.distributed.all_gather_single`."""
        send = own_block(output_tensor, input_tensor, group.rank())
        work: dist.Work | None = self._start(group, "allgather", output_tensor, send, output_tensor)
        if work is None:
            work = uncompressed(group).all_gather_single(output_tensor, input_tensor)
        return _waited(work, async_op)


class ReduceScatter(_Compressed):
    """Sums gradients compressed: ``module.set_custom_reduce_scatter(ReduceScatter("int4"))``. One rounding.

    Parameters
    ----------
    codec : str or Codec
    key : str, optional
        The module's name, for codecs that add what they left out of its gradient the next time; one object a module.
    min_nbytes : int
        Smaller gradients travel as they are; so do those that are not of one floating-point dtype.
    """

    def __init__(self, codec: str | Codec, *, key: str | None = None, min_nbytes: int = DEFAULT_MIN_NBYTES) -> None:
        super().__init__(codec, key=key, min_nbytes=min_nbytes)
        if self.codec.needs_key and key is None:
            raise ValueError(f"key: None, codec {self.codec.spec!r} keeps a residual by the module's name")

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work | None:
        """As `torch.distributed.reduce_scatter_single`."""
        args = (input_tensor, output_tensor, None, op_name(op))
        work: dist.Work | None = self._start(group, "reduce_scatter", output_tensor, *args)
        if work is None:
            options = dist.ReduceScatterOptions()
            options.reduceOp = op
            work = uncompressed(group).reduce_scatter_single(output_tensor, input_tensor, options)
        return _waited(work, async_op)


def _waited(work: dist.Work, async_op: bool) -> dist.Work | None:
    if async_op:
        return work
    work.wait()
    return None
