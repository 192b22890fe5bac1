"""The part of CuPy's NCCL that collcomp uses, for ranks that are threads and memory that is the host's.

As in NCCL, a transfer ends when its peer has come to it, both have to name the same number of bytes, and transfers
between two ranks are matched by their order.
"""

from __future__ import annotations

import ctypes
import queue
import secrets
import threading
from typing import Any

__all__ = [
    "NCCL_UINT8",
    "NcclCommunicator",
    "NcclError",
    "available",
    "get_unique_id",
    "get_version",
    "groupEnd",
    "groupStart",
]

available = False
NCCL_UINT8 = 1
_PATIENCE_S = 20
_mail: dict[Any, queue.Queue] = {}
_lock = threading.Lock()
_group = threading.local()


class NcclError(RuntimeError):
    """What NCCL raises."""


def get_version() -> int:
    """As of NCCL 2.25.1."""
    return 22501


def get_unique_id() -> bytes:
    """Of a new communicator."""
    return secrets.token_bytes(128)


def groupStart() -> None:
    """Collect what follows."""
    _group.calls = []


def groupEnd() -> None:
    """Do what was collected."""
    calls, _group.calls = _group.calls, []
    for sends, address, nbytes, key in calls:
        if sends:
            _box(key).put(ctypes.string_at(address, nbytes))
    for sends, address, nbytes, key in calls:
        if not sends:
            message = _box(key).get(timeout=_PATIENCE_S)
            if len(message) != nbytes:
                raise NcclError(f"{len(message)} bytes were sent, {nbytes} are expected: NCCL would hang or crash")
            ctypes.memmove(address, message, nbytes)


def _box(key: Any) -> queue.Queue:
    with _lock:
        return _mail.setdefault(key, queue.Queue())


class NcclCommunicator:
    """One rank's."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:  # noqa: N803 - NCCL's name
        assert len(commId) == 128
        self._size, self._id, self._rank = ndev, commId, rank
        self.aborted = False

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        """In a group only."""
        assert datatype == NCCL_UINT8
        _group.calls.append((True, sendbuf, count, (self._id, self._rank, peer)))

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        """In a group only."""
        assert datatype == NCCL_UINT8
        _group.calls.append((False, recvbuf, count, (self._id, peer, self._rank)))

    def check_async_error(self) -> None:
        """Nothing goes wrong here."""

    def abort(self) -> None:
        """Give up."""
        self.aborted = True

    def destroy(self) -> None:
        """Be done."""
