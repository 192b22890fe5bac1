"""Memory for frames that is used again: fresh pages cost more than most kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from collcomp import devices
from collcomp.frame import ALIGNMENT, align

__all__ = ["Scratch"]

_FIRST_NBYTES = 1 << 20


class Scratch:
    """Hands out aligned pieces of memory, which are given back one by one, or all at once.

    Parameters
    ----------
    allocate : callable
        Gives fresh memory: uint8, so many bytes.
    """

    def __init__(self, allocate: Callable[[int], np.ndarray]) -> None:
        self.allocate = allocate
        #: Whether it is a device's.
        self.on_device = allocate is devices.allocate
        self._slabs: list[np.ndarray] = []
        self._offset = 0
        self._free: dict[int, list[np.ndarray]] = {}

    def take(self, nbytes: int) -> np.ndarray:
        """`nbytes` of uint8 memory, aligned to 64 bytes, with whatever it holds."""
        nbytes_aligned = align(nbytes)
        free = self._free.get(nbytes)
        if free:
            return free.pop()
        if not self._slabs or self._offset + nbytes_aligned > self._slabs[-1].size:
            grown = 2 * self._slabs[-1].size if self._slabs else _FIRST_NBYTES
            self._slabs.append(self._slab(max(nbytes_aligned, grown)))
            self._offset = 0
        piece = self._slabs[-1][self._offset : self._offset + nbytes]
        self._offset += nbytes_aligned
        return piece

    def array(self, count: int, dtype: np.dtype) -> np.ndarray:
        """`count` elements of `dtype`, uninitialised."""
        return self.take(count * dtype.itemsize).view(dtype)

    def give(self, piece: np.ndarray) -> None:
        """Take back a piece, whole as it was given: it is the next to be used."""
        self._free.setdefault(piece.nbytes, []).append(piece.view(np.uint8))

    def reset(self) -> None:
        """Take everything back; the next round fits into one slab."""
        if len(self._slabs) > 1:
            self._slabs = [self._slab(sum(slab.size for slab in self._slabs))]
        self._offset = 0
        self._free.clear()

    def _slab(self, nbytes: int) -> np.ndarray:
        memory = self.allocate(nbytes + ALIGNMENT)
        start = 0 if self.on_device else -memory.ctypes.data % ALIGNMENT  # a device's is aligned
        return memory[start : start + nbytes]
