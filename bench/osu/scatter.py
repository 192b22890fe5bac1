"""Scatter: rank 0's blocks, one for each rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from collcomp.codecs import Codec

from .collective import Collective
from .message import values
from .validate import Check, check_moved

__all__ = ["Scatter"]


class Scatter(Collective):
    """Size: the block of one rank."""

    name = "scatter"
    summary = "rank 0's blocks, one for each rank"

    def allocate(self) -> None:
        self.send = values(0, 0, self.count * self.size) if self.rank == 0 else None
        self.recv = np.empty(self.count, np.float32)

    def call(self, comm: Any, **how: Any) -> None:
        comm.Scatter(self.send, self.recv, root=0, **how)

    def checks(self, codec: Codec, algorithm: str) -> Iterable[Check]:
        part = slice(self.rank * self.count, (self.rank + 1) * self.count)
        return check_moved(self.recv, codec, 0, part, encoded=self.rank != 0)

    def volume(self) -> float:
        return self.size * self.nbytes

    def bus_factor(self) -> float:
        return (self.size - 1) / self.size
