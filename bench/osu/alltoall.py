"""Alltoall: a block from each rank to each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from collcomp.codecs import Codec

from .collective import Collective
from .message import values
from .validate import Check, check_moved

__all__ = ["Alltoall"]


class Alltoall(Collective):
    """Size: the whole buffer that each rank sends."""

    name = "alltoall"
    summary = "a block from each rank to each"
    divided = True

    def allocate(self) -> None:
        self.send = values(self.rank, 0, self.count)
        self.recv = np.empty_like(self.send)

    def call(self, comm: Any, **how: Any) -> None:
        comm.Alltoall(self.send, self.recv, **how)

    def checks(self, codec: Codec, algorithm: str) -> Iterator[Check]:
        for source, block in enumerate(self.recv.reshape(self.size, -1)):
            yield from check_moved(block, codec, source, self.share(), encoded=source != self.rank)

    def bus_factor(self) -> float:
        return (self.size - 1) / self.size
