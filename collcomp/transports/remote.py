"""Copying from another process's memory, where the kernel allows it (Linux)."""

from __future__ import annotations

import ctypes
import os

import numpy as np

from collcomp.errors import TransportError

__all__ = ["allow_reading", "can_read", "read"]

# From <linux/prctl.h>: any process of this user may read this one's memory, as MPI libraries also arrange it.
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


class _Piece(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_process_vm_readv = getattr(_libc, "process_vm_readv", None)  # Linux only
if _process_vm_readv is not None:
    _process_vm_readv.restype = ctypes.c_ssize_t


def allow_reading() -> None:
    """Allow other processes of the same user to read this one's memory, where a security module asks for it."""
    if _process_vm_readv is not None:
        _libc.prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)  # an error means that nothing has to be allowed


def can_read(pid: int, address: int, expected: bytes) -> bool:
    """Whether `expected` can be read at `address` of process `pid`."""
    found = np.zeros(len(expected), np.uint8)
    try:
        read(pid, address, found)
    except TransportError:
        return False
    return found.tobytes() == expected


def read(pid: int, address: int, into: np.ndarray) -> None:
    """Copy ``into.size`` bytes from `address` of process `pid` to `into` (uint8, contiguous).

    Raises
    ------
    TransportError
        When they cannot be read.
    """
    done = 0
    while done < into.size:
        here = _Piece(into.ctypes.data + done, into.size - done)
        there = _Piece(address + done, into.size - done)
        copied = -1
        if _process_vm_readv is not None:
            copied = _process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
        if copied <= 0:
            raise TransportError(f"memory of process {pid} cannot be read: {os.strerror(ctypes.get_errno())}")
        done += copied
