"""Allgather: every rank's block, on all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from collcomp.codecs import Codec

from .collective import Collective
from .message import values
from .validate import Check, check_moved

__all__ = ["Allgather"]


class Allgather(Collective):
    """Size: the block of one rank."""

    name = "allgather"
    summary = "all ranks' blocks on all ranks"

    def allocate(self) -> None:
        self.send = values(self.rank, 0, self.count)
        self.recv = np.empty(self.count * self.size, np.float32)

    def call(self, comm: Any, **how: Any) -> None:
        comm.Allgather(self.send, self.recv, **how)

    def checks(self, codec: Codec, algorithm: str) -> Iterable[Check]:
        source = (self.rank + 1) % self.size
        got = self.recv[source * self.count : (source + 1) * self.count]
        return check_moved(got, codec, source, slice(0, self.count))

    def same_everywhere(self) -> np.ndarray:
        return self.recv

    def volume(self) -> float:
        return self.size * self.nbytes

    def bus_factor(self) -> float:
        return (self.size - 1) / self.size
