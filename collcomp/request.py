"""Operations that go on while their caller computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any

from collcomp.errors import DeadlineError
from collcomp.operation import Operation
from collcomp.transports import Request as TransferRequest
from collcomp.transports import Transport

__all__ = ["Persistent", "Request", "Watcher"]


class Request:
    """A nonblocking operation.

    Errors of the operation are raised by `wait` and `test`, once it is over.
    """

    def __init__(self, future: Future[Any]) -> None:
        self.future = future

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until the operation is over; its result, where it has one.

        Raises
        ------
        DeadlineError
            When it is not over within `timeout` seconds (None: as long as the operation itself may take).
        """
        try:
            return self.future.result(timeout)
        except FutureTimeoutError:
            if self.future.done():
                raise
            raise DeadlineError(f"timeout: the operation is not over after {timeout:g} s") from None

    def test(self) -> bool:
        """Whether the operation is over."""
        if not self.future.done():
            return False
        self.future.result()
        return True


class Persistent:
    """An operation whose arguments are checked once and that can be started many times.

    Parameters
    ----------
    operation : Operation
    start : callable
        Starts the operation and returns its `Request`.
    """

    def __init__(self, operation: Operation, start: Callable[[], Request]) -> None:
        self.operation = operation
        self._start = start
        self._request: Request | None = None

    def start(self) -> None:
        """Start the operation; the one before must be over."""
        if self._request is not None and not self._request.future.done():
            raise ValueError("start: the operation is still under way")
        self._request = self._start()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the operation that was started last is over."""
        if self._request is not None:
            self._request.wait(timeout)

    def test(self) -> bool:
        """Whether no operation is under way."""
        return self._request is None or self._request.test()


class Watcher:
    """Completes transfers in whatever order they end, in a thread that lives while there are any.

    Parameters
    ----------
    transport : Transport
    """

    _LOOK_S = 2e-4

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._transfers: list[_Watched] = []
        self._lock = threading.Lock()
        self._looking = False

    def watch(self, transfer: TransferRequest, complete: Callable[[], Any], deadline: float) -> Request:
        """Call `complete` when `transfer` is, within `deadline` seconds; what it returns is the request's result."""
        watched = _Watched(transfer, complete, time.monotonic() + deadline)
        with self._lock:
            self._transfers.append(watched)
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="collcomp-watcher", daemon=True).start()
        return Request(watched.future)

    def _look(self) -> None:
        while True:
            with self._lock:
                if not self._transfers:
                    self._looking = False
                    return
                watched = list(self._transfers)
            # One by one, so that what is wrong with one is not told of another.
            over = [one for one in watched if one.look(self._transport)]
            with self._lock:
                self._transfers = [one for one in self._transfers if one not in over]
            if not over:
                time.sleep(self._LOOK_S)


@dataclass(slots=True, eq=False)
class _Watched:
    transfer: TransferRequest
    complete: Callable[[], Any]
    end: float
    future: Future[Any] = field(default_factory=Future)

    def look(self, transport: Transport) -> bool:
        """Whether the transfer is over; if so, it is completed."""
        try:
            if not transport.wait_some([self.transfer], 0.0):
                if time.monotonic() < self.end:
                    return False
                transport.cancel([self.transfer])
                raise DeadlineError("the message was not moved within its deadline")
            self.future.set_result(self.complete())
        except Exception as error:
            self.future.set_exception(error)
        return True
