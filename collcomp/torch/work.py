"""A compressed operation as PyTorch's `Work`."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from collcomp.request import Request

__all__ = ["Work", "Works", "future_of"]

# Futures are completed here: what users hang on them runs in the thread that completes them, and may wait for another
# operation, whose future another of these threads completes. A thread is only made when all others are busy.
_CALLBACK_THREADS = 1024
_callbacks = ThreadPoolExecutor(_CALLBACK_THREADS, thread_name_prefix="collcomp-future")


def future_of(request: Request, value: Any) -> torch.futures.Future:
    """PyTorch's future of an operation, which becomes `value`."""
    # `set_exception` would only be understood by Python: to DDP's reducer the exception were the value.
    over: torch.futures.Future = torch.futures.Future(devices=_gpus_of(value))

    def outcome(_: torch.futures.Future) -> Any:
        request.future.result()
        return value

    def hand_over(_: Future[Any]) -> None:
        try:
            _callbacks.submit(over.set_result, None)
        except RuntimeError:  # the interpreter is ending, with this operation still under way
            over.set_result(None)

    future = over.then(outcome)
    request.future.add_done_callback(hand_over)
    return future


def _gpus_of(value: Any) -> list[int | str | torch.device]:
    """The GPUs that the tensors of a future lie on, which PyTorch has to know."""
    tensors = value if isinstance(value, list) else [value]
    return sorted({one.device for one in tensors if isinstance(one, torch.Tensor) and one.is_cuda}, key=str)


class _HostWork(dist._Work):
    """Operations that the host has seen the end of, tensors on GPUs included: what has waited may go on."""

    def synchronize(self) -> None:
        """Wait."""
        self.wait()

    def block_current_stream(self) -> None:
        """Wait."""
        self.wait()


class Work(_HostWork):
    """What a process group returns for a compressed operation.

    Parameters
    ----------
    request : Request
    tensors : list of Tensor
        What the operation writes to.
    source : int
        Rank that a message comes from; -1 for collectives.
    """

    def __init__(self, request: Request, tensors: list[Any], source: int = -1) -> None:
        super().__init__()
        self._request = request
        self._tensors = tensors
        self._source = source
        self._future: torch.futures.Future | None = None

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait until the operation is over.

        Raises
        ------
        DeadlineError
            When it is not over within `timeout`.
        CollcompError
            What went wrong with it.
        """
        seconds = timeout.total_seconds() if timeout else None
        self._request.wait(seconds if seconds and seconds > 0 else None)
        return True

    def is_completed(self) -> bool:
        """Whether it is over, in whatever way."""
        return self._request.future.done()

    def is_success(self) -> bool:
        """Whether it is over and nothing went wrong."""
        return self.is_completed() and self._request.future.exception() is None

    def exception(self) -> BaseException | None:
        """What went wrong, if it is over."""
        return self._request.future.exception() if self.is_completed() else None

    def result(self) -> list[Any]:
        """The tensors that it wrote to."""
        return self._tensors

    def source_rank(self) -> int:
        """Rank that the message came from."""
        return self._source

    _source_rank = source_rank

    def get_future(self) -> torch.futures.Future:
        """A future of `result`."""
        if self._future is None:
            self._future = future_of(self._request, self._tensors)
        return self._future


class Works(_HostWork):
    """Several operations as one `Work`."""

    def __init__(self, works: list[dist.Work]) -> None:
        super().__init__()
        self._works = works

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait for all."""
        for work in self._works:
            work.wait(*[timeout] if timeout else [])
        return True

    def is_completed(self) -> bool:
        """Whether all are over."""
        return all(work.is_completed() for work in self._works)

    def is_success(self) -> bool:
        """Whether all are over and nothing went wrong."""
        return all(work.is_completed() and work.is_success() for work in self._works)

    def exception(self) -> BaseException | None:
        """What went wrong first, if it is over."""
        return next((error for work in self._works if (error := work.exception()) is not None), None)

    def result(self) -> list[Any]:
        """The tensors that they wrote to."""
        return [tensor for work in self._works for tensor in work.result()]

    def get_future(self) -> torch.futures.Future:
        """A future of `result`."""
        futures = [work.get_future() for work in self._works]
        return torch.futures.collect_all(futures).then(lambda done: [t for one in done.value() for t in one.value()])
