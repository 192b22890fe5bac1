"""Tensors of a call as the engine takes them: one after another, without gaps, in the order of their indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from collcomp.codecs import Codec
from collcomp.devices import missing
from collcomp.operation import IN_PLACE

__all__ = [
    "cat",
    "compressible",
    "copied",
    "dense",
    "joined",
    "listed",
    "overlap",
    "own_block",
    "room",
    "why_foreign",
]

# What NumPy knows, and bfloat16.
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64),
}


def own_block(output: Tensor, tensor: Tensor, rank: int) -> Any:
    """What the engine is to gather: `tensor`, or `IN_PLACE` where that is this rank's block of `output`."""
    if not overlap(output, tensor):
        return tensor.contiguous()
    lies_there = tensor.data_ptr() == output.data_ptr() + rank * tensor.nbytes and tensor.is_contiguous()
    return IN_PLACE if lies_there else copied(tensor)


def listed(tensors: Any) -> list[Tensor]:
    """A list, of one tensor as well."""
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def cat(parts: Sequence[Tensor]) -> Tensor:
    """Their elements in one flat tensor."""
    return torch.cat([part.detach().reshape(-1) for part in parts]) if parts else torch.empty(0)


def copied(tensor: Tensor) -> Tensor:
    """A copy without gaps."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether they share memory."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def joined(tensors: Any) -> tuple[Tensor, Callable[[], None] | None]:
    """One tensor to be worked on in place of several, and what writes the result back to them."""
    several = listed(tensors)
    if len(several) == 1:
        return several[0], None
    flat = cat(several)
    return flat, lambda: _write(flat, several)


def room(parts: Sequence[Tensor]) -> tuple[Any, Callable[[], None]]:
    """Memory for all `parts` one after another, and what copies from there to them."""
    if not parts:  # wrong, as the engine will find and tell the other ranks
        return torch.empty(0), lambda: None
    flat = torch.empty(sum(part.numel() for part in parts), dtype=parts[0].dtype, device=parts[0].device)
    return flat, lambda: _write(flat, parts)


def dense(output: Tensor) -> tuple[Tensor, Callable[[], None] | None]:
    """Memory in the order of `output`'s indices: the engine takes a transpose in the order in which it lies."""
    return (output, None) if output.is_contiguous() else room([output])


def _write(flat: Tensor, parts: Sequence[Tensor]) -> None:
    start = 0
    for part in parts:
        part.detach().copy_(flat[start : start + part.numel()].view_as(part))
        start += part.numel()


def why_foreign(tensors: Sequence[Tensor], codec: Codec) -> str:
    """Why these tensors are nothing for the engine and `codec`, as all ranks see alike; empty where they are."""
    for tensor in tensors:
        if tensor.layout != torch.strided:
            return f"tensor: its layout is {tensor.layout}"
        if tensor.device.type not in ("cpu", "cuda"):
            return f"tensor: on {tensor.device}, codecs have kernels for cpu and cuda only"
        if tensor.is_cuda and not codec.on_devices:
            return f"tensor: on {tensor.device}, codec {codec.spec!r} has kernels for the CPU only"
        if tensor.is_cuda and missing():
            return f"tensor: on {tensor.device}; {missing()}"
        if tensor.dtype not in _DTYPES:
            return f"tensor: of {tensor.dtype}"
    return ""


def compressible(tensors: Any, codec: Codec) -> bool:
    """Whether both sides can tell that a message is to be compressed."""
    several = listed(tensors)
    return not why_foreign(several, codec) and (
        codec.lossless or all(tensor.dtype.is_floating_point for tensor in several)
    )
