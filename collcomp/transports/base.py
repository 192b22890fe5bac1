"""What moves bytes between ranks. A transport never looks at a value."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np

__all__ = ["CHANNELS", "TOO_LONG", "Request", "Transport"]

#: Tags of one operation: its number times this, and what tells its messages apart.
CHANNELS = 1 << 16
#: What is wrong when a message is longer than its buffer.
TOO_LONG = "frame: a message was longer than this rank expects; do all ranks agree in the call?"


class Request(Protocol):
    """One send or receive under way.

    Once a receive is complete, `data` (uint8) are the bytes that arrived, `source` and `tag` where they came from.
    """

    source: int
    tag: int

    @property
    def data(self) -> np.ndarray:
        """What arrived."""


class Transport(ABC):
    """Bytes between the ranks of one group. Messages from one rank under one tag arrive in order.

    Attributes
    ----------
    rank, size : int
        This rank, and how many there are.
    segment_nbytes : tuple of int
        Smallest and largest piece, in bytes of the user's values, that a long message should be cut into.
    window : float
        How many frames to one rank an operation should have under way: over shared links, flows that run dry at the
        same time leave none to finish alone.
    shares_memory : bool
        There are `lend` and `borrow` beside `isend` and `irecv`.
    takes_devices : bool
        What is sent and received may lie on a CUDA device.
    """

    rank: int
    size: int
    segment_nbytes: tuple[int, int] = (64 << 10, 1 << 20)
    window: float = math.inf
    shares_memory: bool = False
    takes_devices: bool = False

    def allocate(self, nbytes: int) -> np.ndarray:
        """Memory (uint8) for what is to be sent."""
        return np.empty(nbytes, np.uint8)

    def lend(self, buf: np.ndarray, dest: int, tag: int) -> Request:
        """Let `dest` read `buf`, which lies in memory from `allocate`; complete when it was released there."""
        raise NotImplementedError

    def borrow(self, source: int, tag: int) -> Request:
        """Expect to read what `source` lends."""
        raise NotImplementedError

    def release(self, requests: Sequence[Request]) -> None:
        """The data of these completed `borrow` requests will not be read any more."""
        raise NotImplementedError

    @abstractmethod
    def isend(self, buf: np.ndarray, dest: int, tag: int) -> Request:
        """Start to send `buf` (uint8, contiguous), which must stay as it is until the request is complete."""

    @abstractmethod
    def irecv(self, buf: np.ndarray, source: int, tag: int) -> Request:
        """Start to receive into `buf` (uint8, contiguous).

        A message that is longer than `buf` is an error of the request.
        """

    @abstractmethod
    def wait_some(self, requests: Sequence[Request], timeout: float) -> list[int]:
        """Indices of requests that are complete; waits up to `timeout` seconds for one, then returns an empty list.

        Raises
        ------
        FrameError
            When a message was longer than its buffer.
        TransportError
            When the bytes cannot be moved any more.
        """

    def settled(self, sequence: int, timeout: float) -> bool:
        """Whether the other ranks need no more of this rank for operation `sequence`, all of whose requests are done.

        Waits up to `timeout` seconds for it.
        """
        return True

    @abstractmethod
    def cancel(self, requests: Sequence[Request]) -> None:
        """Give up requests that are not complete. Memory of sends is kept until nobody can read it any more."""

    @abstractmethod
    def notify(self, sequence: int, text: str) -> None:
        """Tell all other ranks, without waiting, that this rank gave up on operation `sequence`, and why."""

    @abstractmethod
    def notice(self, sequence: int) -> tuple[int, str] | None:
        """Rank and reason, when another rank gave up on operation `sequence`."""

    def leave(self, text: str) -> None:  # noqa: B027 - between processes the end of one is not told
        """Tell all other ranks that this rank takes part in nothing any more, and why."""

    def close(self) -> None:  # noqa: B027
        """Release what the transport holds. Collective where the transport's own release is."""
