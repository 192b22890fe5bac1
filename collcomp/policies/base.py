"""Who decides how an operation is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from collcomp.codecs.base import Codec
from collcomp.collectives import OPS, Plan

__all__ = ["Call", "Policy", "is_float", "plan_for", "unsuited"]

#: Collectives that encode parts of a message.
_CUT = ("bcast", "reduce", "reduce_scatter")


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of an operation on every rank alike, before any data is looked at.

    Attributes
    ----------
    collective : str
        MPI's name in lower case.
    nbytes : int
        Bytes of the message: the whole vector of a reduction or broadcast, this rank's block otherwise.
    dtype : numpy.dtype
    op : str or None
        ``"sum"``, ``"avg"``, ``"max"``, ``"min"``, another name for what only the native library can do; None where
        nothing is reduced.
    size : int
        Number of ranks.
    key : str or None
        The caller's name for the tensor.
    uniform : bool
        Whether `nbytes` is the same on every rank; where it is not (gatherv, scatterv, alltoallv, point to point),
        nothing may be decided by it.
    """

    collective: str
    nbytes: int
    dtype: np.dtype
    op: str | None
    size: int
    key: str | None = None
    uniform: bool = True


class Policy(Protocol):
    """Chooses a plan for each call."""

    def plan(self, call: Call) -> Plan:
        """The plan of `call`. Pure: ranks whose plans differ cannot understand each other."""


def unsuited(call: Call, codec: Codec) -> str | None:
    """Why `codec` cannot be used for `call`, or None when it can."""
    if not codec.lossless and not is_float(call.dtype):
        return f"dtype: {call.dtype} never meets a lossy codec ({codec.spec})"
    if codec.fixed_count is not None and call.collective in _CUT:
        return (
            f"codec: {codec.codec_id!r} with a fixed count encodes messages in one piece, {call.collective} cuts them"
        )
    if call.op is None:
        return None
    if codec.needs_key and call.key is None:
        return f"key: None, codec {codec.spec!r} keeps a residual by the tensor's key"
    if codec.needs_key and call.op in ("max", "min"):
        return f"op: {call.op} has no use for residuals, which codec {codec.spec!r} keeps"
    most = codec.most_ranks()
    if call.collective == "allreduce" and most is not None and call.size > most:
        return f"codec: {codec.spec!r} has room for the sum of {most} ranks, there are {call.size}"
    if call.op == "avg" and not is_float(call.dtype):
        return f"dtype: an average of {call.dtype} is none"
    count = call.nbytes // call.dtype.itemsize
    if codec.fixed_count not in (None, count):
        return f"count: {count} elements, codec {codec.spec!r} is for {codec.fixed_count}"
    if call.op not in OPS:
        return f"op: {call.op} is only done natively, not with codec {codec.spec!r}"
    if call.op in ("max", "min") and not (codec.monotone or codec.lossless):
        return f"op: {call.op} needs a codec that keeps the order of values, {codec.spec!r} does not"
    return None


def is_float(dtype: np.dtype) -> bool:
    """Whether `dtype` is a real floating-point type (bfloat16 included)."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def plan_for(call: Call, codec: Codec, algorithm: str | None = None, reason: str = "") -> Plan:
    """The plan that uses `codec` for `call`, with the default algorithm where none is given."""
    if algorithm is None:
        reduces = call.collective in ("allreduce", "reduce")
        if codec.summable and call.collective == "allreduce":
            algorithm = "summed"
        else:
            algorithm = "gathered" if codec.sparse and reduces else "direct"
    return Plan(algorithm, codec, reason=reason)
