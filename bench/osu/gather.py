"""Gather: every rank's block, on rank 0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from collcomp.codecs import Codec

from .collective import Collective
from .message import values
from .validate import Check, check_moved

__all__ = ["Gather"]


class Gather(Collective):
    """Size: the block of one rank."""

    name = "gather"
    summary = "all ranks' blocks on rank 0"

    def allocate(self) -> None:
        self.send = values(self.rank, 0, self.count)
        self.recv = np.empty(self.count * self.size if self.rank == 0 else 0, np.float32)

    def call(self, comm: Any, **how: Any) -> None:
        comm.Gather(self.send, self.recv, root=0, **how)

    def checks(self, codec: Codec, algorithm: str) -> Iterable[Check]:
        return self._blocks(codec) if self.rank == 0 else []

    def _blocks(self, codec: Codec) -> Iterator[Check]:
        for source, block in enumerate(self.recv.reshape(self.size, self.count)):
            yield from check_moved(block, codec, source, slice(0, self.count), encoded=source != 0)

    def volume(self) -> float:
        return self.size * self.nbytes

    def bus_factor(self) -> float:
        return (self.size - 1) / self.size

    @classmethod
    def fewest_sent(cls, frame_nbytes: float, size: int, algorithm: str) -> float:
        return frame_nbytes
