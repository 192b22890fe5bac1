"""Allreduce: the sum of all ranks' vectors, on all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from collcomp.codecs import Codec
from collcomp.collectives import HIERARCHICAL

from .collective import Collective
from .layout import groups_for
from .message import values
from .validate import Check, check_sum

__all__ = ["Allreduce"]


class Allreduce(Collective):
    """Size: the whole vector."""

    name = "allreduce"
    summary = "sum on all ranks"
    reduces = True

    def allocate(self) -> None:
        self.send = values(self.rank, 0, self.count)
        self.recv = np.empty_like(self.send)

    def call(self, comm: Any, **how: Any) -> None:
        comm.Allreduce(self.send, self.recv, **how)

    def checks(self, codec: Codec, algorithm: str) -> Iterable[Check]:
        part = self.share()
        everyone = range(self.size)
        groups = groups_for(self.size) if algorithm == HIERARCHICAL else ()
        return check_sum(self.recv[part], codec, algorithm, self.size, self.count, part, groups, reencoded=everyone)

    def same_everywhere(self) -> np.ndarray:
        return self.recv

    def bus_factor(self) -> float:
        return 2 * (self.size - 1) / self.size

    @classmethod
    def fewest_bytes(cls, frame_nbytes: float, size: int, algorithm: str) -> float:
        # Two tiers move as much in all, only elsewhere.
        return super().fewest_bytes(frame_nbytes, size, "direct" if algorithm == HIERARCHICAL else algorithm)
