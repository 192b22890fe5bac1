"""Reduce_scatter_block: the sum of all ranks' vectors, a part on each rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from collcomp.codecs import Codec

from .collective import Collective
from .message import values
from .validate import Check, check_sum

__all__ = ["ReduceScatter"]


class ReduceScatter(Collective):
    """Size: the whole vector that each rank sends."""

    name = "reduce_scatter"
    summary = "sum, a part on each rank"
    reduces = True
    divided = True

    def allocate(self) -> None:
        self.send = values(self.rank, 0, self.count)
        self.recv = np.empty(self.count // self.size, np.float32)

    def call(self, comm: Any, **how: Any) -> None:
        comm.Reduce_scatter_block(self.send, self.recv, **how)

    def checks(self, codec: Codec, algorithm: str) -> Iterable[Check]:
        return check_sum(self.recv, codec, algorithm, self.size, self.count, self.share(), reencoded=())

    def bus_factor(self) -> float:
        return (self.size - 1) / self.size
