"""PyTorch's streams and CuPy's: each library has a current stream of its own, in each thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from collcomp.devices import stream_of

__all__ = ["current_stream_of", "settled"]


def current_stream_of(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Where the engine is to be called for `tensor`: on the stream that PyTorch uses now, where it lies on a GPU."""
    if not tensor.is_cuda:
        return nullcontext()
    return stream_of(torch.cuda.current_stream(tensor.device), tensor.device.index)


def settled(then: Callable[[], object] | None, tensor: torch.Tensor) -> Callable[[], object] | None:
    """`then`, which is called in another thread, and what it begins on the GPU of `tensor`, if it lies on one."""
    if then is None or not tensor.is_cuda:
        return then

    def settle() -> None:
        with torch.cuda.device(tensor.device):
            then()
            torch.cuda.current_stream(tensor.device).synchronize()

    return settle
