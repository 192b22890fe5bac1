"""Reduce: the sum of all ranks' vectors, on rank 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from collcomp.codecs import Codec

from .collective import Collective
from .message import values
from .validate import Check, check_sum

__all__ = ["Reduce"]


class Reduce(Collective):
    """Size: the whole vector."""

    name = "reduce"
    summary = "sum on rank 0"
    reduces = True

    def allocate(self) -> None:
        self.send = values(self.rank, 0, self.count)
        self.recv = np.empty(self.count if self.rank == 0 else 0, np.float32)

    def call(self, comm: Any, **how: Any) -> None:
        comm.Reduce(self.send, self.recv, root=0, **how)

    def checks(self, codec: Codec, algorithm: str) -> Iterable[Check]:
        if self.rank != 0:
            return []
        all_but_root = range(1, self.size)
        part = slice(0, self.count)
        return check_sum(self.recv, codec, algorithm, self.size, self.count, part, reencoded=all_but_root)

    @classmethod
    def fewest_sent(cls, frame_nbytes: float, size: int, algorithm: str) -> float:
        return frame_nbytes
